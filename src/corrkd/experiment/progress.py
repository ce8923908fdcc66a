"""What a run reports while it works: bars on a terminal, a line that is updated in a notebook,
plain lines elsewhere; each with the time that is left.
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
    """Where messages and progress go: to standard error, in a notebook below the cell. `quiet`: say
    nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.notebook = in_notebook()
        # In a notebook standard error is red, and rich's own output needs ipywidgets.
        options: dict[str, Any] = (
            {"file": sys.stdout, "force_jupyter": False} if self.notebook else {"stderr": True}
        )
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True, **options)

    def say(self, message: str) -> None:
        """One line."""
        self._console.print(terminal_text(" ".join(message.splitlines())), markup=False)

    @property
    def draws(self) -> bool:
        """Whether bars and tables that are redrawn can be shown."""
        return self._console.is_terminal and not (self.quiet or self.notebook)

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """A piece of work whose length is not known before: a spinner, or a plain line."""
        if self.draws:
            with self._console.status(escape(terminal_text(title))):
                yield
        else:
            self.say(title)
            yield

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """A piece of work of `total` steps, of which `done` are done before: a bar, a line that is
        updated, or a plain line every few seconds.
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
    """Return the reporter of a function that is called from Python.

    Args:
        progress: whether it says anything; None: on a terminal and in a notebook alone.
    """
    if progress is None:
        progress = in_notebook() or bool(sys.stderr and sys.stderr.isatty())
    return Reporter(quiet=not progress)


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    return Console().is_jupyter


class Countdown:
    """How long a piece of work will still take, judged by what it has taken so far.

    Args:
        total: steps of it.
        done: steps that were done before.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._before = total, done
        self._began = time.monotonic()

    def left(self, done: int) -> str:
        """Return "about 12 min left" when so many steps are done; "" before the first and after the
        last.
        """
        if not self._before < done < self._total:
            return ""
        each = (time.monotonic() - self._began) / (done - self._before)
        return f"about {duration_text(each * (self._total - done))} left"


class Task:
    """A piece of work under way."""

    def step(self, count: int = 1, note: str = "") -> None:
        """So many steps are done; `note` is a word on how it goes."""


class _Line(Task):
    """A piece of work whose state is a line of text, shown every few seconds and at its end."""

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
    """A line below a notebook's cell that is replaced by the next."""

    seconds = NOTEBOOK_SECONDS

    def __init__(self, title: str, total: int, done: int) -> None:
        super().__init__(title, total, done)
        from IPython.display import display

        first = {"text/plain": terminal_text(f"{title}: {done}/{total}")}
        self._handle: Any = display(first, raw=True, display_id=True)

    def show(self, line: str) -> None:
        self._handle.update({"text/plain": terminal_text(line)}, raw=True)


def duration_text(seconds: float) -> str:
    """Return a duration as people write it: "40 s", "12 min", "3 h 20 min"."""
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
