"""What a service grants its clients: size and time of a body, requests at once, memory of all
together. Plain ASGI.
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


ELSEWHERE = 1 << 16  # bytes of a body where none is wanted
READ_ON = 4  # a body is read up to so many times its limit before the connection is closed
MEDIA_PATH = "/v1/predict/media"  # whose bodies are recordings, which go to files
BODY_FILE = "corrkd.body_file"  # key of a scope: where the body of a recording lies
LEFT = 499  # the status, in metrics, of a request that its client gave up (nginx's number)


@dataclass(frozen=True, kw_only=True)
class ClipLimits:
    """Limits of recordings.

    Attributes:
        body: bytes of a request's body.
        upload_seconds: in which it must have arrived.
        seconds: duration of a recording.
        work_seconds: in which its features must be made.
        memory: bytes that the process may take that makes them.
        processes: such processes at once.
        waiting: requests for each of them that may wait for their turn.
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
        body: bytes of a request's body.
        seconds: in which it must have arrived, and its answer been taken; half of them may pass
            without any of it.
        requests: answered at once; others get a 503.
        samples: in one request.
        frames: of one modality of a sample; None: 1024, or as many as the training data has,
            whichever is more.
        cost: of a request: over its samples and modalities, the sum of frames x (width + frames),
            which are the numbers of the input and of an attention map. None: 8 million, or as much
            as one sample of `frames` frames costs, whichever is more.
        together: all requests at once may have so many times the bytes, and so many times the cost,
            of one.
        connections: open at once.
        clips: limits of recordings.
    """

    body: int = 16 << 20
    seconds: float = 10.0
    requests: int = 64
    samples: int = 256
    frames: int | None = None
    cost: int | None = None
    together: int = 8
    connections: int = 512
    clips: ClipLimits = field(default_factory=ClipLimits)

    def seconds_of(self, path: str) -> float:
        """Return the seconds in which a body for a path must have arrived."""
        return max(self.seconds, self.clips.upload_seconds) if path == MEDIA_PATH else self.seconds


class _Store(Protocol):
    """Where a body is kept while it arrives."""

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
    """Written in threads, so that a slow disk blocks no other request."""

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
    """A body that has not arrived whole."""

    bodies: _Bodies
    timeout: asyncio.Timeout
    address: str
    size: int = 0
    expelled: bool = False


@dataclass
class _Bodies:
    """The bytes of all bodies. Where they are too many, one that has not arrived whole gives way:
    the oldest of the address with most.
    """

    most: int
    size: int = 0
    arriving: dict[int, _Arrival] = field(default_factory=dict)  # the oldest first

    @contextmanager
    def arrival(self, timeout: asyncio.Timeout, address: str) -> Iterator[_Arrival]:
        """A body that arrives within the block; its bytes count until `release`, or until it
        fails.
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
            leaving = max(
                self.arriving.values(), key=lambda other: sizes[other.address]
            )  # the first of them
            del self.arriving[id(leaving)]
            self.release(leaving)
            leaving.expelled = True
            leaving.timeout.reschedule(asyncio.get_running_loop().time())

    def release(self, arrival: _Arrival) -> None:
        self.size -= arrival.size
        arrival.size = 0


class Guard:
    """Passes requests within the limits on to `app`.

    A body is read whole before the app is called, so that what reaches it is complete and was
    accepted. Only then does the request count as one of those answered at once. Where a client
    leaves, its request is cancelled.

    Args:
        app: the ASGI application behind it.
        limits: of requests.
        access: checks tokens and names.
        on_answer: called with path ("refused" for what did not come through), status and seconds.
        takes_recordings: whether bodies of `MEDIA_PATH` are kept, each in a folder of its own that
            lasts as long as its request.

    Attributes:
        accepted, answered, given_up: requests below /v1/ that came through whole; those of them
            that were answered; those whose client left.
        draining: whether the service is stopping, and tells its clients to disconnect.
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
        """Bytes of all bodies."""
        return self._bodies.size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
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
        elif not self._takes_recordings:  # which the app is going to say
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
        """Let the app answer, and report it. Returns whether the client left before the end."""
        began, status, ended, client_left = time.perf_counter(), 500, False, False

        async def watched(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.draining:  # clients that stay connected are to go elsewhere
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
            ] != "http.disconnect":  # the client is gone, or has its answer
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
        """Store a body of `most` bytes at most, which count among `bodies`."""
        headers, loop = dict(scope["headers"]), asyncio.get_running_loop()
        declared = headers.get(b"content-length", b"0")
        advice = "send a shorter recording" if bodies is self._recordings else "send fewer samples"
        too_large = Refused(413, f"the body is larger than {most:,} bytes; {advice}")
        seconds = self.limits.seconds_of(scope["path"])
        if declared.isdigit() and int(declared) > most and b"expect" in headers:
            raise too_large  # this client waits to be told before it sends
        size, more, end = 0, True, loop.time() + seconds
        try:
            async with asyncio.timeout_at(end) as timeout:
                with bodies.arrival(timeout, (scope.get("client") or ("",))[0]) as arrival:
                    # A body that is too large is read on, but not kept: a client that still sends
                    # does not hear an answer.
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
            await anyio.sleep_forever()  # the guard itself watches for a disconnect
        return {"type": "http.request", "body": chunks.pop(), "more_body": False}

    return replayed
