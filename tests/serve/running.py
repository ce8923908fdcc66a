"""A real service in a process of its own, on loopback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = 120.0


class Running:
    """A service under way: its address, its process, what it wrote."""

    def __init__(self, model: Path, log: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.log = log
        words = [sys.executable, "-m", "corrkd.cli", "serve", str(model), "--port", "0", "--device", "cpu", *options]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                words, stdout=file, stderr=file, env={**os.environ, **(environment or {})}, start_new_session=True
            )
        end = time.monotonic() + LIMIT
        while (found := re.search(r"running on (http://\S+:(\d+))", self.text)) is None:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)
        self.url, self.port = found[1], int(found[2])

    @property
    def text(self) -> str:
        """What it wrote so far."""
        return self.log.read_text()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT)


@contextmanager
def running(model: Path, log: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Running]:
    """A service that ends with the block."""
    service = Running(model, log, *options, environment=environment)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()
