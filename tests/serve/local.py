"""A service in a thread of the test's process, with a network that a test can pause."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from corrkd.serve.app import Service
from corrkd.serve.explore import Exhibit
from corrkd.serve.limits import Limits
from corrkd.serve.predictor import Predictor
from corrkd.serve.server import bound, server_of
from tests.serve.conftest import student

ONE_FRAME = {"audio": [[0.0] * 3]}


class HeldPredictor(Predictor):
    """A predictor that waits while it is held, and records the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__(student())
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.seconds = 0.0

    def logits(self, arrays: Mapping[str, Any]) -> Any:
        self.sizes.append(len(next(iter(arrays.values())).frames))
        assert self.go.wait(60)
        time.sleep(self.seconds)
        return super().logits(arrays)


class Local:
    """A running service: its address and its network."""

    def __init__(
        self, limits: Limits, patience: int, student: Predictor | None = None, **options: Any
    ) -> None:
        self.predictor = HeldPredictor()
        self.service = Service(
            Exhibit({"student": student or self.predictor}), limits=limits, **options
        )
        self._server = server_of(self.service, patience=patience)
        listener = bound("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()
        wait_until(lambda: self._server.started)
        self.predictor.sizes.clear()

    @property
    def connections(self) -> int:
        """Return the number of open connections."""
        return len(self._server.server_state.connections)

    @property
    def max_connections(self) -> int:
        """Return the number of connections that may be open."""
        limit: int = self._server.config.http.keywords["most"]  # type: ignore[union-attr]
        return limit

    def stop(self) -> None:
        """Stop as after SIGTERM."""
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def client(self, *chunks: bytes, source: str = "127.0.0.1") -> socket.socket:
        """Return a client at this address that has sent these chunks."""
        client = socket.create_connection(
            ("127.0.0.1", self.port), timeout=30, source_address=(source, 0)
        )
        for chunk in chunks:
            client.sendall(chunk)
        return client


@contextmanager
def local(*, patience: int = 30, **options: Any) -> Iterator[Local]:
    """Run a service within the block. Options: those of `Limits` and `Service`, and `student`."""
    limits = {
        name: options.pop(name) for name in list(options) if name in Limits.__dataclass_fields__
    }
    service = Local(Limits(**limits), patience, wait=0.0, **options)
    try:
        yield service
    finally:
        service.predictor.go.set()
        service.stop()


def wait_until(condition: Any) -> None:
    """Return once the condition holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def body_of(*samples: Mapping[str, Any]) -> bytes:
    """Return the JSON body of a request."""
    plain = [
        {m: x.tolist() if isinstance(x, np.ndarray) else x for m, x in sample.items()}
        for sample in samples
    ]
    return json.dumps({"samples": plain}).encode()


GOOD = body_of(ONE_FRAME)


def request(
    body: bytes, *lines: str, path: str = "/v1/predict", length: int | None = None
) -> bytes:
    """Return the bytes of a request."""
    size = len(body) if length is None else length
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {size}",
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    out = b""
    try:
        while chunk := client.recv(65536):
            out += chunk
    except ConnectionError:
        pass
    finally:
        client.close()
    return out
