"""A real service in a separate process, on loopback."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.command import Started

LIMIT = 120.0


def _prepare(environment: dict[str, str]) -> None:
    """Set these variables and start a session."""
    os.environ.update(environment)
    os.setsid()


class Running:
    """A running service: its address, its process, its log."""

    def __init__(
        self, model: Path, log: Path, *options: str, environment: dict[str, str] | None = None
    ) -> None:
        self.log = log
        log.touch()
        args = ["serve", model, "--port", "0", "--device", "cpu", *options]
        self.process = Started(*args, first=partial(_prepare, environment or {}), log=log).process
        end = time.monotonic() + LIMIT
        while (match := re.search(r"running on (http://\S+:(\d+))", self.text)) is None:
            assert self.process.is_alive(), self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)
        self.url, self.port = match[1], int(match[2])

    @property
    def text(self) -> str:
        """Return the log so far."""
        return self.log.read_text()

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.process.terminate()
        self.process.join(LIMIT)
        assert self.process.exitcode is not None, "the service does not end"
        return self.process.exitcode


@contextmanager
def running(
    model: Path, log: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[Running]:
    """Run a service within the block."""
    service = Running(model, log, *options, environment=environment)
    try:
        yield service
    finally:
        if service.process.is_alive():
            service.process.kill()
            service.process.join()
