"""Limits on the requests of a service: size and duration of a body, concurrent requests, and total
memory. The module uses plain ASGI.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import anyio

from corrkd.serve.access import Access, Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


ELSEWHERE = 1 << 16  # bytes; limit of a body on routes that need none
READ_ON = 4  # a body is read up to this many times its limit before the connection is closed
MEDIA_PATH = "/v1/predict/media"  # bodies are recordings, which are stored in files
BODY_FILE = "corrkd.body_file"  # key of an ASGI scope for the path of a file with a recording
LEFT = 499  # status in the metrics if the client left, as in nginx


@dataclass(frozen=True, kw_only=True)
class ClipLimits:
    """Limits of recordings.

    Attributes:
        body: size of the body of a request, in bytes.
        upload_seconds: time in which the body must arrive, in seconds.
        seconds: duration of a recording, in seconds.
        work_seconds: time in which features must be extracted, in seconds.
        memory: memory of the process that extracts features, in bytes.
        processes: number of such processes that run at a time.
        waiting: number of requests per process that may wait.
    """

    body: int = 64_000_000
    upload_seconds: float = 60.0
    seconds: float = 120.0
    work_seconds: float = 120.0
    memory: int = 3_000_000_000
    processes: int = 1
    waiting: int = 4


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of requests.

    Attributes:
        body: size of the body of a request, in bytes.
        seconds: time in which the body must arrive, and in which the client must receive the
            response, in seconds; at most half of it may pass without progress.
        requests: number of requests answered at a time; others get a 503.
        samples: number of samples in a request.
        frames: number of frames per sample and modality; None for 1024, or the longest in the
            training data if that is more.
        cost: cost of a request: the sum over samples and modalities of frames x (width + frames),
            the number of values of the input and of an attention map. None for 8 million, or the
            cost of one sample with `frames` frames if that is more.
        together: ratio of the bytes and the cost of all concurrent requests to those of one.
        connections: number of open connections.
        clips: limits of recordings.
    """

    body: int = 16_000_000
    seconds: float = 10.0
    requests: int = 64
    samples: int = 256
    frames: int | None = None
    cost: int | None = None
    together: int = 8
    connections: int = 512
    clips: ClipLimits = field(default_factory=ClipLimits)

    def seconds_of(self, path: str) -> float:
        """Return the time in seconds in which a body for a path must arrive."""
        return max(self.seconds, self.clips.upload_seconds) if path == MEDIA_PATH else self.seconds


class _Store(Protocol):
    """Storage of a body while it arrives."""

    async def add(self, chunk: bytes) -> None: ...

    async def drop(self) -> None: ...


class _Memory:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    async def add(self, chunk: bytes) -> None:
        self.chunks.append(chunk)

    async def drop(self) -> None:
        self.chunks.clear()


class _File:
    """A file written in threads, so that a slow disk does not block other requests."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    async def add(self, chunk: bytes) -> None:
        try:
            await anyio.to_thread.run_sync(self._file.write, chunk)
        except OSError as error:
            raise Refused(
                503, f"a recording cannot be stored ({error.strerror}); try again in a second"
            ) from None

    async def drop(self) -> None:
        await anyio.to_thread.run_sync(self._file.truncate, 0)

    def close(self) -> None:
        self._file.close()


class _Nowhere:
    async def add(self, chunk: bytes) -> None:
        pass

    async def drop(self) -> None:
        pass


@dataclass
class _Arrival:
    """A body that has not arrived completely."""

    bodies: _Bodies
    timeout: asyncio.Timeout
    address: str
    size: int = 0
    expelled: bool = False


@dataclass
class _Bodies:
    """The total size of all bodies. If it exceeds the limit, the oldest incomplete body from the
    address with the most bytes is discarded.
    """

    most: int
    size: int = 0
    arriving: dict[int, _Arrival] = field(default_factory=dict)  # the oldest first

    @contextmanager
    def arrival(self, timeout: asyncio.Timeout, address: str) -> Iterator[_Arrival]:
        """Yield a body that arrives within the block. Its bytes count until `release`, or until the
        block fails.
        """
        arrival = _Arrival(self, timeout, address)
        self.arriving[id(arrival)] = arrival
        try:
            yield arrival
        except BaseException:
            self.release(arrival)
            raise
        finally:
            self.arriving.pop(id(arrival), None)

    def add(self, arrival: _Arrival, size: int) -> None:
        arrival.size += size
        self.size += size
        while self.size > self.most and self.arriving:
            sizes: Counter[str] = Counter()
            for other in self.arriving.values():
                sizes[other.address] += other.size
            # the oldest of the address, as `arriving` is in order of arrival
            leaving = max(self.arriving.values(), key=lambda other: sizes[other.address])
            del self.arriving[id(leaving)]
            self.release(leaving)
            leaving.expelled = True
            leaving.timeout.reschedule(asyncio.get_running_loop().time())

    def release(self, arrival: _Arrival) -> None:
        self.size -= arrival.size
        arrival.size = 0


class Guard:
    """ASGI middleware that passes requests within the limits to `app`.

    A body is read completely before the app is called. Only then does the request count as being
    answered. When a client leaves, its request is cancelled.

    Args:
        app: the ASGI application.
        limits: limits of requests.
        access: checks of tokens and host names.
        on_answer: called with the path ("refused" for requests that did not reach the app), status
            and seconds.
        takes_recordings: whether bodies of `MEDIA_PATH` are stored, each in a separate folder that
            is removed after the request.

    Attributes:
        accepted: number of requests below /v1/ that arrived completely.
        answered: number of accepted requests that were answered.
        given_up: number of accepted requests that the client abandoned.
        draining: whether the service is stopping and asks clients to disconnect.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        access: Access | None = None,
        on_answer: Callable[[str, int, float], None] = lambda path, status, seconds: None,
        takes_recordings: bool = False,
    ) -> None:
        self.app, self.limits, self._on_answer = app, limits, on_answer
        self._access = access or Access()
        self._takes_recordings = takes_recordings
        self._bodies = _Bodies(limits.together * limits.body)
        self._recordings = _Bodies(limits.together * limits.clips.body)
        self._busy = 0
        self.accepted = self.answered = self.given_up = 0
        self.draining = False

    @property
    def held(self) -> int:
        """Total size of all bodies in bytes."""
        return self._bodies.size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection as defined by ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._access.check(scope["path"], dict(scope["headers"]))
            await self._accept(scope, receive, send)
        except Refused as refused:
            await self._refuse(refused, send)

    async def _accept(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != MEDIA_PATH:
            memory, most = (
                _Memory(),
                self.limits.body if scope["path"].startswith("/v1/") else ELSEWHERE,
            )
            arrival = await self._arrive(scope, receive, memory, self._bodies, most)
            await self._let_in(scope, b"".join(memory.chunks), arrival, receive, send)
        elif not self._takes_recordings:  # the app refuses the request, with the reason
            arrival = await self._arrive(
                scope, receive, _Nowhere(), self._recordings, self.limits.clips.body
            )
            await self._let_in(scope, b"", arrival, receive, send)
        else:
            with TemporaryDirectory(prefix="corrkd-clip-", ignore_cleanup_errors=True) as folder:
                path = Path(folder) / "body"
                with closing(_File(path)) as file:
                    arrival = await self._arrive(
                        scope, receive, file, self._recordings, self.limits.clips.body
                    )
                scope = {**scope, BODY_FILE: path}
                await self._let_in(scope, b"", arrival, receive, send)

    async def _let_in(
        self, scope: Scope, body: bytes, arrival: _Arrival, receive: Receive, send: Send
    ) -> None:
        counted = scope["path"].startswith("/v1/")
        try:
            if counted and self._busy >= self.limits.requests:
                raise Refused(
                    503,
                    f"{self.limits.requests} requests are being answered; try again in a second",
                )
            self._busy += counted
            self.accepted += counted
            try:
                client_left = await self._answer(scope, body, receive, send)
                self.answered += counted and not client_left
                self.given_up += counted and client_left
            finally:
                self._busy -= counted
        finally:
            arrival.bodies.release(arrival)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> bool:
        """Let the app answer, call `on_answer`, and return whether the client left too early."""
        began, status, ended, client_left = time.perf_counter(), 500, False, False

        async def watched(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.draining:  # clients must open a new connection next time
                    message = {
                        **message,
                        "headers": [*message.get("headers", []), (b"connection", b"close")],
                    }
            else:
                ended = not message.get("more_body", False)
            await send(message)

        async def watch() -> None:
            nonlocal client_left
            while (await receive())[
                "type"
            ] != "http.disconnect":  # the client left, or has the response
                pass
            if not ended:
                client_left = True
                group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                await self.app(scope, _replay(body), watched)
                group.cancel_scope.cancel()
        finally:
            route = scope.get("route")
            seconds = time.perf_counter() - began
            self._on_answer(
                getattr(route, "path", "other"), LEFT if client_left else status, seconds
            )
        return client_left

    async def _arrive(
        self, scope: Scope, receive: Receive, store: _Store, bodies: _Bodies, most: int
    ) -> _Arrival:
        """Store a body of at most `most` bytes and count them in `bodies`. Raises Refused if the
        body is too large, too slow or incomplete.
        """
        headers, loop = dict(scope["headers"]), asyncio.get_running_loop()
        declared = headers.get(b"content-length", b"0")
        advice = "send a shorter recording" if bodies is self._recordings else "send fewer samples"
        too_large = Refused(413, f"the body is larger than {most:,} bytes; {advice}")
        seconds = self.limits.seconds_of(scope["path"])
        if declared.isdigit() and int(declared) > most and b"expect" in headers:
            raise too_large  # before this client sends the body
        size, more, end = 0, True, loop.time() + seconds
        try:
            async with asyncio.timeout_at(end) as timeout:
                with bodies.arrival(timeout, (scope.get("client") or ("",))[0]) as arrival:
                    # A body that is too large is read but not kept, because a client that is still
                    # sending does not receive the response.
                    while more and size <= READ_ON * most and not arrival.expelled:
                        timeout.reschedule(min(end, loop.time() + self.limits.seconds / 2))
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise Refused(400, "the body ended early")
                        chunk, more = message.get("body", b""), message.get("more_body", False)
                        size += len(chunk)
                        if size <= most:
                            bodies.add(arrival, len(chunk))
                            await store.add(chunk)
                        else:
                            await store.drop()
                            bodies.release(arrival)
                    if arrival.expelled:
                        raise TimeoutError
                    if size > most:
                        raise too_large
        except TimeoutError:
            if arrival.expelled:
                raise Refused(
                    503, "too much data is being sent at once; try again in a second"
                ) from None
            raise Refused(408, f"the body did not arrive within {seconds:g} seconds") from None
        return arrival

    async def _refuse(self, refused: Refused, send: Send) -> None:
        self._on_answer("refused", refused.status, 0.0)
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers += [(name.encode(), value.encode()) for name, value in refused.headers.items()]
        body = json.dumps({"detail": refused.detail}).encode()
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _replay(body: bytes) -> Receive:
    chunks = [body]

    async def replayed() -> Message:
        if not chunks:
            await anyio.sleep_forever()  # the guard waits for the disconnect instead
        return {"type": "http.request", "body": chunks.pop(), "more_body": False}

    return replayed
