"""The command line in processes that are forked from one that has imported everything: each takes
one second, not six.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOAD = [
    "corrkd.cli",
    "corrkd.experiment.run",
    "corrkd.data.inspect",
    "corrkd.data.convert",
    "corrkd.methods.corrkd",
    "corrkd.report",
    "corrkd.serve.predict_file",
    "corrkd.serve.server",
    "corrkd.serve.clip_worker",
    "tests.command",
    "tests.frozen",  # last: what is imported before it stays in shared memory
]
LIMIT = 300.0
START_METHOD = "forkserver"  # also for processes of other tests, which this one forks as fast
# Beginnings of lines that are no errors.
PROGRESS = (
    "reading ",
    "note: ",
    "seed ",
    "writing ",
    "converting ",
    "evaluation: ",
    "runs: ",
    "trials: ",
    "prediction: ",
    "features: ",
    "left out: ",
)
_processes = multiprocessing.get_context(START_METHOD)
_processes.set_forkserver_preload(PRELOAD)

# Settings of a run that takes a second.
TINY: dict[str, Any] = {
    "data": {
        "synthetic": {"train": 30, "valid": 18, "test": 18, "frames": 4, "widths": 8, "noise": 0.3},
        "target": "classes",
    },
    "teacher": {
        "network": {"width": 8, "heads": 2, "layers": 1, "feedforward": 16, "classifier": [8]},
        "epochs": 3,
        "batch_size": 6,
        "lr": 3e-2,
    },
    "student": {"epochs": 3, "batch_size": 6, "lr": 3e-2},
    "evaluation": {"conditions": {"ratio": [0.0, 0.5, 1.0], "burst": [0.5]}, "draws": 2},
    "device": "cpu",
}


@dataclass(frozen=True)
class Ended:
    """A command's exit code (minus the signal's number if one killed it) and output."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """Return the line of a user's error, after lines of progress."""
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        *before, last = self.err.splitlines()
        assert last.startswith("error: "), self.err
        assert all(line.startswith(PROGRESS) for line in before), self.err
        return last


class Started:
    """A running command, whose output goes to `log` if there is one."""

    def __init__(
        self,
        *arguments: object,
        first: Callable[[], object] | None = None,
        cwd: Path | None = None,
        report: bool = True,
        log: Path | None = None,
    ) -> None:
        self._files = [Path(tempfile.mkstemp()[1]) for _ in range(2)] if log is None else [log, log]
        parameters = ([str(x) for x in arguments], self._files, first, cwd, report)
        self.process: BaseProcess = _processes.Process(target=_child, args=parameters)
        self.process.start()

    def end(self, limit: float = LIMIT) -> Ended:
        """Wait for the end of the command."""
        self.process.join(limit)
        assert self.process.exitcode is not None, "the command hangs"
        out, err = (file.read_text() for file in self._files)
        for file in self._files:
            file.unlink()
        return Ended(self.process.exitcode, out, err)


def corrkd(
    *arguments: object,
    first: Callable[[], object] | None = None,
    cwd: Path | None = None,
    report: bool = True,
) -> Ended:
    """Run `corrkd` with these arguments, after calling `first` in its process.

    Without a `report`, a run takes a third of the time.
    """
    return Started(*arguments, first=first, cwd=cwd, report=report).end()


def _child(
    arguments: list[str],
    files: list[Path],
    first: Callable[[], object] | None,
    cwd: Path | None,
    report: bool,
) -> None:
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd or Path.cwd())
    sys.argv = ["corrkd", *arguments]
    if not report:
        from corrkd.experiment import run

        run.write_report = lambda folder: folder
    if first is not None:
        first()
    from corrkd.cli import main

    main()


def sketch(name: str, caption: str, alt: str, figure: Any) -> Any:
    """Replace `figures.picture` by a figure that is not drawn, as drawing takes long."""
    from corrkd.report.figures import Picture

    return Picture(name, caption, alt, b"<svg/>", b"")


def sketched() -> None:
    """Draw no figures in this process; an argument for `first`."""
    from corrkd.report import figures

    figures.picture = sketch


def ends_at(owner: str, name: str, call: int, signals: int = signal.SIGKILL) -> Callable[[], None]:
    """Return an argument for `first`: the process gets a signal at call number `call` of
    `owner.name`, after half of the bytes if that writes.
    """
    return partial(_end_at, owner, name, call, signals)


def _end_at(owner: str, name: str, call: int, number: int) -> None:
    import importlib

    module, _, attribute = owner.partition(":")
    target: Any = importlib.import_module(module)
    target = getattr(target, attribute) if attribute else target
    original = getattr(target, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            if name == "write_bytes":
                original(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(target, name, wrapped)
