"""A real service in a process of its own, on loopback."""

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


def _alone(environment: dict[str, str]) -> None:
    """Before the service starts: these variables, and a session of its own."""
    os.environ.update(environment)
    os.setsid()


class Running:
    """A service under way: its address, its process, what it wrote."""

    def __init__(
        self, model: Path, log: Path, *options: str, environment: dict[str, str] | None = None
    ) -> None:
        self.log = log
        log.touch()
        words = ["serve", model, "--port", "0", "--device", "cpu", *options]
        self.process = Started(*words, first=partial(_alone, environment or {}), log=log).process
        end = time.monotonic() + LIMIT
        while (found := re.search(r"running on (http://\S+:(\d+))", self.text)) is None:
            assert self.process.is_alive(), self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)
        self.url, self.port = found[1], int(found[2])

    @property
    def text(self) -> str:
        """What it wrote so far."""
        return self.log.read_text()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        self.process.join(LIMIT)
        assert self.process.exitcode is not None, "the service does not end"
        return self.process.exitcode


@contextmanager
def running(
    model: Path, log: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[Running]:
    """A service that ends with the block."""
    service = Running(model, log, *options, environment=environment)
    try:
        yield service
    finally:
        if service.process.is_alive():
            service.process.kill()
            service.process.join()
