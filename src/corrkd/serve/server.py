"""The service in a process of its own: a port, and an end that finishes what was accepted."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from corrkd.errors import CorrKDError
from corrkd.serve.app import Service

logger = logging.getLogger("uvicorn.error")
SETTLE = 0.25  # seconds in which what is on its way still arrives, once no one is let in any more


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, where clients wait until `run`. Port 0: a free one. Raises CorrKDError where that is not possible."""
    made = None
    try:
        flags = socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
        made = socket.socket(family, kind, protocol)  # asyncio sends at once only where it sees that this is TCP
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen()  # else a second service could bind it too
    except (OSError, UnicodeError) as error:
        if made is not None:
            made.close()
        reason = getattr(error, "strerror", None) or error
        raise CorrKDError(f"cannot listen on {host}, port {port}: {reason}; choose another --host or --port") from None
    return made


def run(service: Service, place: socket.socket, *, patience: float = 30.0, log: str = "info") -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted and returns.

    Args:
        service: what is served.
        place: from `bound`; it is closed at the end.
        patience: most seconds between the signal and the end.
        log: uvicorn's level.
    """
    config = uvicorn.Config(
        service.app,
        http=partial(_Protocol, seconds=service.limits.seconds),  # type: ignore[arg-type]
        ws="none",
        log_level=log,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(patience),
    )
    # uvicorn ends well and then raises the signal again, which is to end nothing more.
    before = {number: signal.signal(number, _heard) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _Server(config, service).run([place])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heard(*_: object) -> None:
    """A signal that was answered already."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins, and says where."""
        await super().startup(sockets)
        for place in sockets or []:
            host, port = place.getsockname()[:2]
            logger.info("running on http://%s:%d (Ctrl-C ends it)", f"[{host}]" if ":" in host else host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets no one in, answers who is in, and tells them to go."""
        self._service.guard.draining = True
        for server in self.servers:
            server.close()
        await asyncio.sleep(SETTLE)
        await super().shutdown(sockets)
        guard = self._service.guard
        logger.info("%d requests for the model were accepted, %d answered", guard.accepted, guard.answered)


class _Protocol(H11Protocol):
    """uvicorn's, which ends a connection that does not bring a request's head in time, or does not take its answer."""

    def __init__(self, *given: Any, seconds: float, **named: Any) -> None:
        super().__init__(*given, **named)
        self._seconds = seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came."""
        super().connection_made(transport)
        # Writing pauses as soon as something is left that the client does not take.
        transport.set_write_buffer_limits(high=0)
        self._waiting: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Some of a request came."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went."""
        super().connection_lost(exc)
        self._stop_waiting()
        self._taken()

    def pause_writing(self) -> None:
        """The client is behind."""
        super().pause_writing()
        self._unread = self.loop.call_later(self._seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken everything."""
        super().resume_writing()
        self._taken()

    def _taken(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _wait(self) -> None:
        asking: Any = self.cycle
        if asking is not None and not asking.response_complete:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self._seconds, self._too_late)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_late(self) -> None:
        self._waiting = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
