"""What a run says while it works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from corrkd.escape import terminal_text

PLAIN_SECONDS = 5.0


class Reporter:
    """Where messages and progress go.

    Args:
        quiet: say nothing (the Python interface's default).
        plain: lines even on a terminal, as several processes at once need.
    """

    def __init__(self, *, quiet: bool = False, plain: bool = False) -> None:
        self.quiet = quiet
        self.plain = plain
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, message: str) -> None:
        """One line."""
        self._console.print(terminal_text(" ".join(message.splitlines())), markup=False)

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """A piece of work whose length is not known before: a spinner, or a plain line."""
        if self._console.is_terminal and not (self.quiet or self.plain):
            with self._console.status(escape(terminal_text(title))):
                yield
        else:
            self.say(title)
            yield

    @contextmanager
    def task(
        self, title: str, total: int, done: int = 0, *, remaining: bool = False
    ) -> Iterator[Task]:
        """A piece of work of `total` steps: a bar, or a plain line at its start and every few
        seconds.

        `remaining`: plain lines say how long it will take still; bars do in any case.
        """
        if self.quiet or self.plain or not self._console.is_terminal:
            yield _Plain(self, title, total, done, remaining=remaining)
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


class Task:
    """A piece of work under way."""

    def step(self, count: int = 1, note: str = "") -> None:
        """So many steps are done; `note` is a word on how it goes."""


class _Plain(Task):
    def __init__(
        self, reporter: Reporter, title: str, total: int, done: int, *, remaining: bool
    ) -> None:
        self._reporter, self._title, self._total, self._done = reporter, title, total, done
        self._said = self._began = time.monotonic()
        self._before, self._remaining = done, remaining

    def step(self, count: int = 1, note: str = "") -> None:
        self._done += count
        if time.monotonic() - self._said >= PLAIN_SECONDS or self._done == self._total:
            self._said = time.monotonic()
            words = [f"{self._title}: {self._done}/{self._total}", self._time_left(), note]
            self._reporter.say("  ".join(filter(None, words)))

    def _time_left(self) -> str:
        if not self._remaining or self._done in (self._before, self._total):
            return ""
        each = (time.monotonic() - self._began) / (self._done - self._before)
        return f"about {duration_text(each * (self._total - self._done))} left"


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
