"""What a service grants a client: size and time of a body, requests at once, and a token where one is asked for. Plain ASGI."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corrkd.errors import CorrKDError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


ELSEWHERE = 1 << 16  # bytes of a body where none is wanted
READ_ON = 4  # a body is read up to so many times its limit before the connection is closed


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is granted.

    Attributes:
        body: bytes of a request's body.
        seconds: in which it must have arrived, and its answer been taken.
        requests: answered at once; more are told to come again.
        samples: in one request.
        frames: of one modality of a sample; None: 1024, or as many as the training data has, whichever is more.
    """

    body: int = 16 << 20
    seconds: float = 10.0
    requests: int = 64
    samples: int = 256
    frames: int | None = None


def read_token(path: Path | None) -> str | None:
    """The token in a file, else that of the variable CORRKD_TOKEN, else None. Raises CorrKDError where that is no token."""
    given = os.environ.get("CORRKD_TOKEN")
    if path is None and given is None:
        return None
    try:
        token = (path.read_text("utf-8") if path is not None else given or "").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CorrKDError(f"{path}: the token cannot be read: {error}") from None
    if not token or not token.isascii() or len(token.split()) != 1:
        raise CorrKDError(f"{path or 'CORRKD_TOKEN'}: expected one token of plain characters, without blanks")
    return token


class Refused(Exception):  # noqa: N818
    """A request that gets no more than an error: its status and one line."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Guard:
    """Lets through to `app` what is within the limits.

    Paths that begin with /v1/ and /metrics ask for the token; health checks and the page do not. A body is read whole before the
    app is called, so that what reaches it is complete and was accepted.

    Args:
        app: what is guarded.
        limits: what is granted.
        token: of the header `Authorization: Bearer TOKEN`; None: none is asked for.
        on_answer: called with path ("refused" for what did not come through), status and seconds.

    Attributes:
        accepted, answered: requests below /v1/ that came through whole, and those of them that were answered.
        draining: whether the service is about to stop, and clients are told so.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        token: str | None = None,
        on_answer: Callable[[str, int, float], None] = lambda path, status, seconds: None,
    ) -> None:
        self.app, self.limits, self._on_answer = app, limits, on_answer
        self._token = None if token is None else token.encode()
        self._busy = 0
        self.accepted = self.answered = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        private = scope["path"].startswith(("/v1/", "/metrics"))
        counted = scope["path"].startswith("/v1/")
        if counted and self._busy >= self.limits.requests:
            busy = Refused(503, f"{self.limits.requests} requests are being answered; try again in a second")
            await self._refuse(busy, send)
            return
        self._busy += counted
        try:
            if private:
                self._check_token(scope)
            body = await self._body(scope, receive, self.limits.body if counted else ELSEWHERE)
            self.accepted += counted
            await self._answer(scope, _replay(body, receive), send)
            self.answered += counted
        except Refused as refused:
            await self._refuse(refused, send)
        finally:
            self._busy -= counted

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the app answer, and tells how that went."""
        began, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.draining:  # clients that stay connected are to go elsewhere
                    message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = scope.get("route")
            self._on_answer(getattr(route, "path", "other"), status, time.perf_counter() - began)

    def _check_token(self, scope: Scope) -> None:
        if self._token is None:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        # Always compared, in a time that does not tell where they differ.
        same = hmac.compare_digest(token.strip(), self._token)
        if scheme.lower() != b"bearer" or not same:
            raise Refused(401, "give the service's token in the header `Authorization: Bearer TOKEN`")

    async def _body(self, scope: Scope, receive: Receive, most: int) -> bytes:
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        too_large = Refused(413, f"the body is larger than {most:,} bytes; send fewer samples")
        if declared.isdigit() and int(declared) > most and b"expect" in headers:
            raise too_large  # this client waits to be told before it sends
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self.limits.seconds):
                # A body that is too large is read on, but not kept: a client that still sends does not hear an answer.
                while more and size <= READ_ON * most:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the body ended early")
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    if size <= most:
                        parts.append(part)
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {self.limits.seconds:g} seconds") from None
        if size > most:
            raise too_large
        return b"".join(parts)

    async def _refuse(self, refused: Refused, send: Send) -> None:
        self._on_answer("refused", refused.status, 0.0)
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        extra = {401: (b"www-authenticate", b"Bearer"), 503: (b"retry-after", b"1")}
        headers += [extra[refused.status]] if refused.status in extra else []
        body = json.dumps({"detail": refused.detail}).encode()
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
