from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from corrkd.errors import CorrKDError
from corrkd.files import (
    check_new,
    exclusive,
    make_folder,
    remove_parts,
    replacing,
    replacing_all,
    write_bytes,
    write_text,
    write_with,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


def test_files_are_replaced_completely(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    write_bytes(path, b"other")
    assert path.read_bytes() == b"other"
    write_with(path, lambda temporary: temporary.write_text("third"))
    assert path.read_text() == "third"
    assert names(tmp_path) == ["a.txt", "new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        assert temporary.parent == tmp_path  # the same disk: the replacement is one step
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_unwritable_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deep" / "a.txt"):
        with pytest.raises(CorrKDError, match="cannot create the folder"):
            write_text(path, "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CorrKDError, match="cannot be written: Is a directory"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(CorrKDError, match="cannot create the folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(CorrKDError, match="cannot be written: File name too long"):
        write_text(tmp_path / ("x" * 300), "x")
    assert names(tmp_path) == ["file", "folder"]


def test_only_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    kept = [tmp_path / "a.part", tmp_path / ".hidden", tmp_path / "seed-0" / "model.json"]
    stale = [tmp_path / ".a.json.01234567.part", tmp_path / "seed-0" / "deep" / ".b.89abcdef.part"]
    for path in kept + stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    remove_parts(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in stale)


def test_the_temporary_file_may_be_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "aside").mkdir()
    with replacing(tmp_path / "a.txt", aside=tmp_path / "aside") as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path / "aside"
        assert names(tmp_path) == sorted(["aside", temporary.name, f"{temporary.stem}.lock"])
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert names(tmp_path) == ["a.txt", "aside"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_is_written_completely_or_not_at_all(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "deep" / "model"
    if exists:
        folder.mkdir(parents=True)
        for name in ("a", "card", "other"):
            (folder / name).write_text("old")
    before = {p.name: p.read_text() for p in folder.glob("*")}
    for error in (KeyboardInterrupt, CorrKDError):
        with pytest.raises(error), replacing_all(folder, ("a", "card")) as aside:  # noqa: PT012
            (aside / "a").write_text("new")
            raise error
        assert folder.exists() is exists
        assert {p.name: p.read_text() for p in folder.glob("*")} == before
    with replacing_all(folder, ("a", "card")) as aside:
        for name in ("a", "card"):
            (aside / name).write_text("new")
        assert {p.name: p.read_text() for p in folder.glob("[!.]*")} == before
    assert {p.name: p.read_text() for p in folder.glob("*")} == {
        **before,
        "a": "new",
        "card": "new",
    }
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    with (
        pytest.raises(CorrKDError, match="model: cannot be written: no room"),
        replacing_all(folder, ("a",)),
    ):
        raise OSError(28, "no room")
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(CorrKDError, match="cannot create the folder"),
        replacing_all(tmp_path / "file" / "x", ("a",)),
    ):
        pass


def test_a_folder_is_locked_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with exclusive(folder, "first"):
        with pytest.raises(CorrKDError, match=r"^wait$"), exclusive(folder, "wait"):
            pass
        with pytest.raises(CorrKDError, match=r"^wait$"), exclusive(folder, "wait"):  # still
            pass
    with pytest.raises(ValueError), exclusive(folder, "second"):
        raise ValueError
    with exclusive(folder, "third"):
        pass
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(CorrKDError, match="cannot create the folder"),
        exclusive(tmp_path / "file" / "x", "busy"),
    ):
        pass


def test_a_temporary_file_is_never_an_existing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if somebody has guessed its name and put a link there."""
    (tmp_path / "precious").write_text("precious")
    names = iter(["00000000", "11111111"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    (tmp_path / ".a.txt.00000000.part").symlink_to(tmp_path / "precious")
    with pytest.raises(CorrKDError, match="cannot be written: File exists"):
        write_text(tmp_path / "a.txt", "new")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "a.txt").read_text() == "new"
    remove_parts(tmp_path)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_that_is_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.txt").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "a.txt", "new")
    assert not (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"


def test_files_being_written_are_not_removed(tmp_path: Path) -> None:
    """Neither by this process nor by another, as a lock shows that the writer lives."""
    with replacing(tmp_path / "a.txt") as file, replacing_all(tmp_path / "new", ("b",)) as aside:
        remove_parts(tmp_path)
        check = (
            "import sys; from pathlib import Path; from corrkd.files import remove_parts; "
            "remove_parts(Path(sys.argv[1]))"
        )
        subprocess.run([sys.executable, "-c", check, str(tmp_path)], check=True, timeout=60)
        file.write_text("a")
        (aside / "b").write_text("b")
    assert names(tmp_path) == ["a.txt", "b", "new"]


KILLED = """
import os, signal, sys
from pathlib import Path
from corrkd.files import replacing, replacing_all
folder = Path(sys.argv[1])
with (
    replacing(folder / "a.txt") as first,
    replacing(folder / "deep" / "b.txt") as second,
    replacing_all(folder / "new", ("c",)) as aside,
):
    for path in (first, second, aside / "c"):
        path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    assert (
        subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=60
        ).returncode
        == -9
    )
    leftovers = [
        p
        for p in tmp_path.rglob(".*")
        if p.suffix in (".part", ".lock") or p.name.startswith(".writing-")
    ]
    assert len(leftovers) == 6  # each with its lock
    check_new(tmp_path / "a.txt", overwrite=False)  # removes leftovers beside the file
    assert [p.parent.name for p in leftovers if p.exists()] == ["deep", "deep"]
    remove_parts(tmp_path)
    assert names(tmp_path) == ["deep"]


HOLDS = """
import sys
from pathlib import Path
from corrkd.files import exclusive
with exclusive(Path(sys.argv[1]), "busy"):
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_folder_ends_with_its_process(tmp_path: Path) -> None:
    """A second process is refused until the first is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "inside\n"
        with pytest.raises(CorrKDError, match=r"^busy$"), exclusive(tmp_path, "busy"):
            pass
        first.kill()
        first.wait()
    with exclusive(tmp_path, "busy"):
        pass


def test_the_temporary_file_is_closed_and_locked_when_it_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows moves no open file, and another process may clean the folder at any time."""
    moves = []

    def replace(source: Path, target: Path) -> None:
        open_files = [Path(file.path) for file in psutil.Process().open_files()]
        moves.append(source not in open_files)
        remove_parts(tmp_path)
        original(source, target)

    original = os.replace
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "a.txt", "a")
    with replacing_all(tmp_path, ("b",)) as aside:
        (aside / "b").write_text("b")
    assert moves == [True, True]
    assert names(tmp_path) == ["a.txt", "b"]


def test_files_of_other_programs_are_kept(tmp_path: Path) -> None:
    others = (
        ".x.part",
        ".part",
        "y.12345678.part",
        ".writing-here",
        ".z.1234567g.part",
        ".writing-ABCDEFGHIJ",
    )
    for name in others:
        (tmp_path / name).write_text("x")
    remove_parts(tmp_path)
    check_new(tmp_path / "x", overwrite=False)
    assert names(tmp_path) == sorted(others)
