"""Progress on a terminal, in a notebook and elsewhere."""

from __future__ import annotations

import builtins
import io
import sys
import types
from typing import Any

import pytest

import corrkd
from corrkd.errors import CorrKDError
from corrkd.experiment import progress
from corrkd.experiment.progress import Countdown, Reporter, reporter_of


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be set by a test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Handle:
    """The return value of IPython.display.display."""

    def __init__(self, lines: list[str], index: int) -> None:
        self._lines, self._index = lines, index

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self._lines[self._index] = data["text/plain"]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines below the cell, as in a Jupyter kernel."""
    lines: list[str] = []

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        lines.append(data["text/plain"])
        return Handle(lines, len(lines) - 1)

    module: Any = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    kernel = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: kernel, raising=False)
    return lines


def test_plain_lines_show_the_remaining_time(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter().task("seed 0  student", 10, done=2) as task:
        for second in (10, 11, 30, 80):
            clock[0] = second
            task.step(note="loss 1.5")
        task.step(4)
    assert capsys.readouterr().err.splitlines() == [
        "seed 0  student: 3/10  about 70 s left  loss 1.5",
        "seed 0  student: 5/10  about 50 s left  loss 1.5",
        "seed 0  student: 6/10  about 80 s left  loss 1.5",
        "seed 0  student: 10/10",
    ]


def test_the_countdown_is_empty_before_the_first_step(clock: list[float]) -> None:
    countdown = Countdown(5, done=1)
    clock[0] = 600.0
    assert [countdown.left(done) for done in range(6)] == [
        "",
        "",
        "about 30 min left",
        "about 10 min left",
        "about 3 min left",
        "",
    ]


def test_a_notebook_has_one_line_for_each_task(
    notebook: list[str], clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = reporter_of(None)
    reporter.say("note: [b]\x1b[2J")
    with reporter.busy("reading data"):
        pass
    for title in ("teacher", "student"):
        with reporter.task(title, 3) as task:
            for _ in range(3):
                clock[0] += 1.0
                task.step(note="loss 2")
            if title == "teacher":
                assert notebook == ["teacher: 3/3  loss 2"]
    assert notebook == ["teacher: 3/3  loss 2", "student: 3/3  loss 2"]
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["note: [b]\\x1b[2J", "reading data"]
    assert printed.err == ""
    with reporter_of(False).task("control", 3) as task:
        task.step(3)
    assert len(notebook) == 2


@pytest.mark.parametrize(
    ("terminal", "requested", "quiet"),
    [(False, None, True), (False, True, False), (True, None, False), (True, False, True)],
)
def test_when_a_reporter_is_quiet(
    terminal: bool, requested: bool | None, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    assert reporter_of(requested).quiet == quiet
    monkeypatch.setattr(sys, "stderr", None)  # as in a windowed program
    assert reporter_of(None).quiet


@pytest.mark.parametrize("requested", [None, True])
def test_functions_print_nothing_unless_requested(
    requested: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = corrkd.load_plan(data=["nowhere.npz"], arms=["kl"])
    calls = (
        lambda: corrkd.run({"data": {"path": "nowhere.npz"}}, progress=requested),
        lambda: corrkd.compare(plan, "out", progress=requested),
    )
    for call in calls:
        with pytest.raises(CorrKDError, match="no such file"):
            call()
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err == ("reading nowhere.npz\n" if requested else "")
