"""Running the service: its socket, and a shutdown that first answers accepted requests."""

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
# first and longest time, in seconds, between checks whether a half-closed client is connected
PROBES = 0.01, 0.25
BACKLOG = 128  # connections that wait until the service accepts them


def bound(host: str, port: int) -> socket.socket:
    """Return a listening socket, on which clients wait until `run`. Port 0 selects a free port.
    Raises CorrKDError if the host or port cannot be used.
    """
    listener = None
    try:
        flags = socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=flags
        )[0]
        # With the protocol, because asyncio sets TCP_NODELAY only if it is TCP.
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # on Windows it would let a second service use the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # otherwise a second service could bind it too
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
    """Serve until SIGTERM or SIGINT, then answer the accepted requests and return.

    Args:
        service: the service to run.
        listener: socket from `bound`; it is closed at the end.
        patience: longest time between the signal and the end, in seconds. After that the process
            writes the stack of each thread to stderr and exits with status 1.
        log: log level of uvicorn.
    """
    # uvicorn shuts down and then raises the signal again, which must have no effect.
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server_of(service, patience=patience, log=log).run([listener])
        service.batcher.join()
    finally:
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)


def server_of(service: Service, *, patience: int = 30, log: str = "info") -> uvicorn.Server:
    """Return a server that is not started yet."""
    # Only half of the descriptors, since four backlogs of connections may be open and not counted.
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
    """Return the number of files and connections that this process may open."""
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
        if not self.should_exit:  # only for the first signal
            # Works even if the event loop is busy or the GIL is held.
            faulthandler.dump_traceback_later(self._patience, exit=True, file=2)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start and log the address."""
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
        """Stop accepting clients, answer accepted requests while time allows, and disconnect."""
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
        """Close connections with clients that send no request or do not read the response."""
        while True:
            await asyncio.sleep(0.5)
            now, limits = asyncio.get_running_loop().time(), self._service.limits
            for connection in list(self.server_state.connections):
                if not isinstance(connection, _Protocol) or not connection.waits:
                    continue
                if connection.since < now - limits.seconds_of(connection.path) - GRACE:
                    connection.transport.abort()


class _Protocol(H11Protocol):
    """The protocol of uvicorn, with a limit on connections and with responses to clients that have
    closed their sending side.

    Attributes:
        since: time since which the service has waited for the client, if it waits.
        half_closed: whether the client has closed its sending side.
    """

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most, self.since, self.half_closed = most, self.loop.time(), False

    @property
    def address(self) -> str:
        """Address of the client."""
        return self.client[0] if self.client else ""

    @property
    def path(self) -> str:
        """Path of the request whose body is arriving; "" without one."""
        cycle: Any = self.cycle
        return str(cycle.scope["path"]) if cycle is not None and cycle.more_body else ""

    @property
    def waits(self) -> bool:
        """Whether the service waits for the client and not the client for the service."""
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Register a new connection. If there are too many, close the oldest waiting connection of
        the address with the most waiting connections.
        """
        super().connection_made(transport)
        # Writing pauses as soon as the client leaves data unread.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self._most:
            waiting = [c for c in self.connections if isinstance(c, _Protocol) and c.waits]
            counts = Counter(c.address for c in waiting)
            leaving = min(waiting, key=lambda c: (-counts[c.address], c.since))
            self.connections.discard(leaving)
            leaving.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Process a part of a request."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self.since = self.loop.time()

    def on_response_complete(self) -> None:
        """Handle the end of a response; the next pipelined request is then answered."""
        self.since = self.loop.time()
        super().on_response_complete()
        if self.half_closed and self.cycle.response_complete:
            self.transport.close()

    def pause_writing(self) -> None:
        """Pause the response, because the client does not read it."""
        self.since = self.loop.time()
        super().pause_writing()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Handle a client that closes its sending side. A pending response is still sent, unless
        the client has left.
        """
        cycle: Any = self.cycle
        self.half_closed = cycle is not None and not cycle.response_complete and not cycle.more_body
        if self.half_closed:
            self._probe(PROBES[0])
        return self.half_closed

    def _probe(self, wait: float) -> None:
        """Write data that a connected client ignores. If the client has left, its system rejects
        the data and the next write fails; TCP gives no other sign of it.
        """
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if not self.cycle.response_started and self.cycle.scope["http_version"] == "1.1":
            event = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(event))
        self.loop.call_later(wait, self._probe, min(2 * wait, PROBES[1]))


class _OncePerMinute(logging.Filter):
    """Log filter that passes each warning at most once a minute, so that clients cannot fill the
    log.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        logged = (
            record.levelno != logging.WARNING
            or record.created >= self._last.get(record.msg, 0.0) + 60
        )
        if logged:
            self._last[record.msg] = record.created
        return logged
