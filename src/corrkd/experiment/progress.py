"""Progress of a run: bars on a terminal, an updated line in a notebook, plain lines elsewhere; all
with the time left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from corrkd.escape import terminal_text

PLAIN_SECONDS = 5.0
NOTEBOOK_SECONDS = 0.5  # between updates of the line


class Reporter:
    """Output of messages and progress, to standard error or below the cell of a notebook. `quiet`:
    whether to show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.notebook = in_notebook()
        # In a notebook standard error is red, and rich's Jupyter output needs ipywidgets.
        options: dict[str, Any] = (
            {"file": sys.stdout, "force_jupyter": False} if self.notebook else {"stderr": True}
        )
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True, **options)

    def say(self, message: str) -> None:
        """Print a message as one line."""
        self._console.print(terminal_text(" ".join(message.splitlines())), markup=False)

    @property
    def draws(self) -> bool:
        """Whether bars and live tables can be shown."""
        return self._console.is_terminal and not (self.quiet or self.notebook)

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """Show a spinner or a plain line during work of unknown length."""
        if self.draws:
            with self._console.status(escape(terminal_text(title))):
                yield
        else:
            self.say(title)
            yield

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Yield a task of `total` steps, `done` of which are already finished: a bar, an updated
        line, or a plain line every few seconds.
        """
        if self.notebook and not self.quiet:
            yield _Updated(title, total, done)
            return
        if not self.draws:
            yield _Plain(self, title, total, done)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self._console) as bars:
            yield _Bar(bars, title, total, done)


def reporter_of(progress: bool | None) -> Reporter:
    """Return the reporter for a call from Python.

    Args:
        progress: whether to show progress; None: only on a terminal or in a notebook.
    """
    if progress is None:
        progress = in_notebook() or bool(sys.stderr and sys.stderr.isatty())
    return Reporter(quiet=not progress)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a Jupyter notebook."""
    return Console().is_jupyter


class Countdown:
    """Estimate of the time left for some work, from the time taken so far.

    Args:
        total: number of steps.
        done: number of steps finished before the countdown starts.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._before = total, done
        self._began = time.monotonic()

    def left(self, done: int) -> str:
        """Return a text like "about 12 min left" after `done` steps; "" before the first and after
        the last step.
        """
        if not self._before < done < self._total:
            return ""
        each = (time.monotonic() - self._began) / (done - self._before)
        return f"about {duration_text(each * (self._total - done))} left"


class Task:
    """Work in progress. This base class shows nothing."""

    def step(self, count: int = 1, note: str = "") -> None:
        """Advance by `count` steps, with a short `note` on the current state."""


class _Line(Task):
    """Task that shows a line of text every few seconds and at the end."""

    seconds = PLAIN_SECONDS

    def __init__(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._done = title, total, done
        self._shown_at = time.monotonic()
        self._countdown = Countdown(total, done)

    def step(self, count: int = 1, note: str = "") -> None:
        self._done += count
        if time.monotonic() - self._shown_at >= self.seconds or self._done == self._total:
            self._shown_at = time.monotonic()
            words = [
                f"{self._title}: {self._done}/{self._total}",
                self._countdown.left(self._done),
                note,
            ]
            self.show("  ".join(filter(None, words)))

    def show(self, line: str) -> None:
        raise NotImplementedError


class _Plain(_Line):
    def __init__(self, reporter: Reporter, title: str, total: int, done: int) -> None:
        super().__init__(title, total, done)
        self._reporter = reporter

    def show(self, line: str) -> None:
        self._reporter.say(line)


class _Updated(_Line):
    """Task that updates a line below the cell of a notebook."""

    seconds = NOTEBOOK_SECONDS

    def __init__(self, title: str, total: int, done: int) -> None:
        super().__init__(title, total, done)
        from IPython.display import display

        first = {"text/plain": terminal_text(f"{title}: {done}/{total}")}
        self._handle: Any = display(first, raw=True, display_id=True)

    def show(self, line: str) -> None:
        self._handle.update({"text/plain": terminal_text(line)}, raw=True)


def duration_text(seconds: float) -> str:
    """Return a readable duration: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _Bar(Task):
    def __init__(self, bars: Progress, title: str, total: int, done: int) -> None:
        self._bars = bars
        self._task = bars.add_task(terminal_text(title), total=total, completed=done, note="")

    def step(self, count: int = 1, note: str = "") -> None:
        self._bars.update(self._task, advance=count, note=terminal_text(note))
