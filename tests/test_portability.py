"""Systems that lack modules and calls of POSIX."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import corrkd

SOURCE = Path(corrkd.__file__).parent

# As on Windows: these modules, calls and signals do not exist.
WITHOUT_POSIX = """
import multiprocessing, os, signal, subprocess, sys, tempfile
import psutil
sys.modules["fcntl"] = sys.modules["resource"] = None
for module, names in {
    os: ("setsid", "killpg", "O_NOFOLLOW", "O_NONBLOCK", "sysconf", "getuid"),
    signal: ("SIGKILL", "SIGALRM", "SIGXCPU", "alarm"),
}.items():
    for name in names:
        delattr(module, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""

IMPORTS = f"""
import torch, uvicorn  # before POSIX is hidden, as they use it on Linux
{WITHOUT_POSIX}
import corrkd, corrkd.cli, corrkd.serve.server, corrkd.serve.clip_worker
import corrkd.serve.clip_processes, corrkd.workers
assert corrkd.serve.server._most_descriptors() > 0
"""

WORKS = f"""
{WITHOUT_POSIX}
from pathlib import Path
from corrkd.errors import CorrKDError
from corrkd.files import exclusive, remove_parts, replacing, replacing_all
from corrkd.memory import available_memory
folder = Path(sys.argv[1])
with exclusive(folder, "busy"):
    try:
        with exclusive(folder, "busy"):
            raise AssertionError("two at once")
    except CorrKDError as error:
        assert str(error) == "busy"
    with replacing(folder / "a.txt") as temporary:
        temporary.write_bytes(b"a")
        remove_parts(folder)
    with replacing_all(folder / "b", ("c",)) as aside:
        (aside / "c").write_bytes(b"c")
assert available_memory() > 0
"""


def run_without_posix(code: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_package_imports_where_posix_is_missing() -> None:
    run_without_posix(IMPORTS)


def test_no_module_imports_modules_of_posix() -> None:
    """Except in a function, or where the import may fail."""
    posix_import = re.compile(
        r"^(import|from) (fcntl|resource|pwd|grp|termios|tty|pty)\b", re.MULTILINE
    )
    modules = {path: path.read_text("utf-8") for path in SOURCE.rglob("*.py")}
    assert len(modules) > 100
    assert [path.name for path, text in modules.items() if posix_import.search(text)] == []


def test_files_are_written_and_locked_where_posix_is_missing(tmp_path: Path) -> None:
    run_without_posix(WORKS, str(tmp_path))
    assert (tmp_path / "a.txt").read_text() == "a"
    assert (tmp_path / "b" / "c").read_text() == "c"
    assert not list(tmp_path.rglob("*.part"))
