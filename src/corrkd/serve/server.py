"""The service as a process: its port, and a shutdown that answers accepted requests first."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections import Counter
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from corrkd.errors import CorrKDError
from corrkd.serve.access import Refused
from corrkd.serve.app import Service

logger = logging.getLogger("uvicorn.error")
SETTLE = (
    0.25  # seconds for requests already sent to arrive, after the service stops accepting others
)
# seconds past its time limit that a connection stays open, so that the client gets its 408
GRACE = 1.0
PROBES = (
    0.01,
    0.25,
)  # first and longest seconds between two looks whether a client that sends no more still listens
BACKLOG = 128  # connections that the system takes before the service does


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, where clients wait until `run`. Port 0: a free one. Raises
    CorrKDError where that is not possible.
    """
    listener = None
    try:
        flags = socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=flags
        )[0]
        listener = socket.socket(
            family, kind, protocol
        )  # asyncio sends at once only where it sees that this is TCP
        if os.name == "posix":  # Windows would let a second service have the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # else a second service could bind it too
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        reason = getattr(error, "strerror", None) or error
        raise CorrKDError(
            f"cannot listen on {host}, port {port}: {reason}; choose another --host or --port"
        ) from None
    return listener


def run(
    service: Service, listener: socket.socket, *, patience: int = 30, log: str = "info"
) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted and returns.

    Args:
        service: to run.
        listener: from `bound`; it is closed at the end.
        patience: most seconds between the signal and the end. A process that has not come to its
            end by then ends with status 1, after writing to stderr the stack of each thread.
        log: uvicorn's level.
    """
    # uvicorn ends well and then raises the signal again, which is to end nothing more.
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server_of(service, patience=patience, log=log).run([listener])
        service.batcher.join()
    finally:
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)


def server_of(service: Service, *, patience: int = 30, log: str = "info") -> uvicorn.Server:
    """A server that is not running."""
    # Of the descriptors, half are for connections; between the system and the count some four
    # backlogs may be on their way.
    descriptors = _most_descriptors()
    config = uvicorn.Config(
        service.app,
        loop="asyncio",
        http=partial(_Protocol, most=max(1, min(service.limits.connections, descriptors // 2))),  # type: ignore[arg-type]
        ws="none",
        log_level=log,
        access_log=False,
        server_header=False,
        backlog=max(1, min(BACKLOG, descriptors // 16)),
        timeout_graceful_shutdown=int(0.9 * patience),
    )
    return _Server(config, service, patience)


def _most_descriptors() -> int:
    """How many files and connections this process may have open."""
    try:
        import resource
    except ImportError:  # Windows, which sets no limit
        return sys.maxsize
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _ignore(*_: object) -> None:
    """Ignore a signal that was already handled."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, patience: int) -> None:
        super().__init__(config)
        self._service, self._patience, self._once_per_minute = service, patience, _OncePerMinute()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal to end."""
        if not self.should_exit:  # the first of them
            # Neither a busy loop nor the interpreter's lock can hold it up.
            faulthandler.dump_traceback_later(self._patience, exit=True, file=2)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and log the address."""
        await super().startup(sockets)
        logger.addFilter(self._once_per_minute)
        self._closing = asyncio.create_task(self._close_idle())
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            logger.info(
                "running on http://%s:%d (Ctrl-C ends it)",
                f"[{host}]" if ":" in host else host,
                port,
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more clients, answer the others if there is time, and ask them to
        disconnect.
        """
        self._service.guard.draining = True
        for server in self.servers:
            server.close()
        stopping = Refused(503, "the service is stopping; try again in a second")
        asyncio.get_running_loop().call_later(0.8 * self._patience, self._service.stop, stopping)
        await asyncio.sleep(SETTLE)
        await super().shutdown(sockets)
        self._closing.cancel()
        logger.removeFilter(self._once_per_minute)
        guard = self._service.guard
        counts = guard.accepted, guard.answered, guard.given_up
        logger.info(
            "%d requests for the model were accepted, %d answered, %d abandoned by their clients",
            *counts,
        )

    async def _close_idle(self) -> None:
        """End connections whose client sends no request or does not read its answer."""
        while True:
            await asyncio.sleep(0.5)
            now, limits = asyncio.get_running_loop().time(), self._service.limits
            for connection in list(self.server_state.connections):
                if not isinstance(connection, _Protocol) or not connection.waits:
                    continue
                if connection.since < now - limits.seconds_of(connection.path) - GRACE:
                    connection.transport.abort()


class _Protocol(H11Protocol):
    """uvicorn's, with a bound on connections, and with answers for clients that have closed their
    sending side.

    Attributes:
        since: since when the service waits for this client, where it does.
        half_closed: the client sends no more.
    """

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most, self.since, self.half_closed = most, self.loop.time(), False

    @property
    def address(self) -> str:
        """Of the client."""
        return self.client[0] if self.client else ""

    @property
    def path(self) -> str:
        """Path of the request whose body is arriving; "" without one."""
        cycle: Any = self.cycle
        return str(cycle.scope["path"]) if cycle is not None and cycle.more_body else ""

    @property
    def waits(self) -> bool:
        """Whether the service waits for the client, not the client for the service."""
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came. Where there are too many, one goes that keeps the service waiting: the
        oldest of the address with most of them.
        """
        super().connection_made(transport)
        # Writing pauses as soon as something is left that the client does not take.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self._most:
            waiting = [c for c in self.connections if isinstance(c, _Protocol) and c.waits]
            counts = Counter(c.address for c in waiting)
            leaving = min(waiting, key=lambda c: (-counts[c.address], c.since))
            self.connections.discard(leaving)
            leaving.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Part of a request arrived."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self.since = self.loop.time()

    def on_response_complete(self) -> None:
        """An answer was given. After it, the next of the requests that are there already is
        answered.
        """
        self.since = self.loop.time()
        super().on_response_complete()
        if self.half_closed and self.cycle.response_complete:
            self.transport.close()

    def pause_writing(self) -> None:
        """The client does not take its answer."""
        self.since = self.loop.time()
        super().pause_writing()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. Where it waits for an answer it gets that, unless it turns out
        to be gone.
        """
        cycle: Any = self.cycle
        self.half_closed = cycle is not None and not cycle.response_complete and not cycle.more_body
        if self.half_closed:
            self._probe(PROBES[0])
        return self.half_closed

    def _probe(self, wait: float) -> None:
        """Writes what a client skips that still listens; the system of one that is gone rejects it,
        which the next write notices.

        Until then TCP does not tell the two apart.
        """
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if not self.cycle.response_started and self.cycle.scope["http_version"] == "1.1":
            event = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(event))
        self.loop.call_later(wait, self._probe, min(2 * wait, PROBES[1]))


class _OncePerMinute(logging.Filter):
    """Passes a warning at most once a minute, so that clients cannot fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log it."""
        logged = (
            record.levelno != logging.WARNING
            or record.created >= self._last.get(record.msg, 0.0) + 60
        )
        if logged:
            self._last[record.msg] = record.created
        return logged
