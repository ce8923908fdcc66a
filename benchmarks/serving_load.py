"""The service under four times as many clients as it answers at once, beside a hostile one; then
SIGTERM.

    python benchmarks/serving_load.py [--seconds 600] [--clients 256]

Data and network are of MOSI's shapes (serving.py). Honest clients ask for one prediction each, as
JSON, and ask again as soon as they have it. Where the service is busy (503) or a connection breaks
they wait as long as it says, and up to twice as long after each further try, ten tries in all. The
hostile client, a process of its own, does at the same time, again and again, all that HOSTILE
lists. At the end the service gets SIGTERM while all of them go on. Fails where fewer than nine in
ten honest requests succeed, an accepted one is lost, a health check fails, memory grows, or the
process takes more than 30 seconds to end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from side_by_side import save_untrained

TRIES = 10
ADDRESSES = 16  # of the honest clients
HEADERS = {"content-type": "application/json"}
WIDTHS = {"language": 300, "audio": 74, "vision": 35}


@dataclass
class Load:
    """What honest clients met."""

    tries: Counter[str] = field(default_factory=Counter)  # by outcome of each
    seconds: list[float] = field(default_factory=list)  # of requests that succeeded, waits included
    failed: int = 0
    health: list[float] = field(default_factory=list)  # seconds of each check
    unhealthy: int = 0
    memory: list[float] = field(default_factory=list)  # resident MB, each second
    counting: bool = True  # until the service is to end
    tries_at_the_end: Counter[str] = field(default_factory=Counter)

    @property
    def succeeded(self) -> float:
        """Share of requests."""
        return len(self.seconds) / max(1, len(self.seconds) + self.failed)


def make_model(folder: Path) -> list[bytes]:
    """Writes an untrained network; returns bodies of one sample each."""
    experiment = save_untrained(folder / "student")
    split = experiment.dataset.split("test")
    return [
        json.dumps(
            {
                "samples": [
                    {m: x[row, : split.lengths[m][row]].tolist() for m, x in split.frames.items()}
                ]
            }
        ).encode()
        for row in range(64)
    ]


# --------------------------------------------------------------------------------------------------
# honest clients


async def ask(client: httpx.AsyncClient, body: bytes, load: Load) -> None:
    """One request, with its retries."""
    began, wait = time.monotonic(), 1.0
    for _ in range(TRIES):
        try:
            response = await client.post("/v1/predict", content=body, headers=HEADERS)
            outcome = str(response.status_code) + (
                f" {response.json()['detail'][-60:]}" if response.is_error else ""
            )
            least = float(response.headers.get("retry-after", 0.0))
        except httpx.TransportError as error:
            outcome, least = type(error).__name__, 0.0
        if not load.counting:
            load.tries_at_the_end[outcome] += 1
            await asyncio.sleep(1.0)
            return
        load.tries[outcome] += 1
        if outcome == "200":
            load.seconds.append(time.monotonic() - began)
            return
        await asyncio.sleep(max(least, random.uniform(wait / 2, wait)))
        wait = min(2 * wait, 8.0)
    load.failed += 1


async def honest(url: str, bodies: list[bytes], clients: int, load: Load, process: int) -> None:
    """So many clients of some addresses, with a health check each second, until they are
    cancelled.
    """
    async with contextlib.AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=clients)
        sources = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=url,
                    timeout=60,
                    transport=httpx.AsyncHTTPTransport(
                        local_address=f"127.0.1.{number}", limits=limits, verify=False
                    ),
                )
            )
            for number in range(1, ADDRESSES + 1)
        ]

        async def one(client: httpx.AsyncClient) -> None:
            while True:
                await ask(client, random.choice(bodies), load)

        async def check() -> None:
            while load.counting:
                began = time.monotonic()
                try:
                    async with httpx.AsyncClient(base_url=url, timeout=10, verify=False) as other:
                        load.unhealthy += (await other.get("/healthz")).status_code != 200
                except httpx.TransportError:
                    load.unhealthy += 1
                load.health.append(time.monotonic() - began)
                load.memory.append(resident(process))
                await asyncio.sleep(1)

        await asyncio.gather(
            check(), *(one(sources[number % ADDRESSES]) for number in range(clients))
        )


@contextlib.asynccontextmanager
async def clients_at_work(
    url: str, bodies: list[bytes], clients: int, process: int
) -> AsyncIterator[Load]:
    """Honest clients, as long as the block lasts."""
    load = Load()
    task = asyncio.create_task(honest(url, bodies, clients, load, process))
    try:
        yield load
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def resident(process: int) -> float:
    """Megabytes of a process."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


# --------------------------------------------------------------------------------------------------
# the hostile client


def head(length: int) -> bytes:
    """The head of a request."""
    lines = [
        "POST /v1/predict HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def frames(count: int, value: str, modality: str = "audio") -> str:
    """A sample of so many frames that hold one value."""
    frame = "[" + ",".join([value] * WIDTHS[modality]) + "]"
    return json.dumps({modality: 0}).replace("0", "[" + ",".join([frame] * count) + "]")


NULLS = (
    '{"samples":[' + ",".join(['{"language":[' + ",".join(["null"] * 1000) + "]}"] * 200) + "]}"
).encode()
WRONG = ('{"samples":[' + ",".join([frames(1000, '""')] * 70) + "]}").encode()
LISTS = b'{"samples":[' + b"[]," * 5_000_000 + b"[]]}"
LONG = ('{"samples":[' + ",".join([frames(1000, "0.5", "vision")] * 4) + "]}").encode()
SHORT = ('{"samples":[' + frames(1, "0.5") + "]}").encode()
# What it sends, how many of its connections do so at once, and for how many seconds it then waits
# before it leaves.
HOSTILE = {
    "idle": (b"", 600, 30.0),
    "half a head": (head(10)[:40], 100, 30.0),
    "slow body": (head(1000) + b" " * 10, 100, 30.0),
    "large body, never ended": (head(16_000_000) + b" " * 15_000_000, 4, 30.0),
    "a megabyte of nulls": (head(len(NULLS)) + NULLS, 2, 30.0),
    "wrong values": (head(len(WRONG)) + WRONG, 1, 30.0),
    "millions of lists": (head(len(LISTS)) + LISTS, 1, 30.0),
    "as costly as is allowed": (head(len(LONG)) + LONG, 4, 30.0),
    "leaves at once": (head(len(LONG)) + LONG, 2, 0.0),
    "asks on without reading": (
        (b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n") * 2000,
        4,
        30.0,
    ),
    "no HTTP": (b"\x16\x03\x01\x02\r\n\r\n", 2, 1.0),
    "another site's page": (
        head(len(SHORT)).replace(b"Host: localhost", b"Host: evil.example") + SHORT,
        2,
        1.0,
    ),
}


def hostile(port: int) -> None:
    """Does all of it until it is ended, from an address of its own."""
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2
    )

    async def again(sent: bytes, wait: float, reads: bool) -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, local_addr=("127.0.0.2", 0)
                )
                try:
                    async with asyncio.timeout(wait + 1):
                        writer.write(sent)
                        await writer.drain()
                        if reads:
                            await asyncio.wait_for(reader.read(), wait)
                        else:
                            await asyncio.sleep(wait)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(random.uniform(0.2, 1.0))

    async def everything() -> None:
        await asyncio.gather(
            *(
                again(sent, wait, reads=name != "asks on without reading" and wait > 0)
                for name, (sent, count, wait) in HOSTILE.items()
                for _ in range(count)
            )
        )

    asyncio.run(everything())


# --------------------------------------------------------------------------------------------------
# all of it


@dataclass(frozen=True)
class Figures:
    """What came out."""

    capacity: float  # requests a second
    load: Load
    accepted: int
    answered: int
    given_up: int
    seconds_to_end: float
    code: int
    log: str


def measure(folder: Path, *, seconds: float, clients: int, warm: float = 10.0) -> Figures:
    """Starts a service, loads it, ends it."""
    bodies = make_model(folder)
    log = folder / "log"
    words = [
        sys.executable,
        "-m",
        "corrkd",
        "serve",
        str(folder / "student.json"),
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    with log.open("w") as file:
        service = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
    try:
        while (found := re.search(r"running on (http://\S+:(\d+))", log.read_text())) is None:
            assert service.poll() is None, log.read_text()
            time.sleep(0.1)
        url, port = found[1], int(found[2])
        enemy = multiprocessing.get_context("spawn").Process(
            target=hostile, args=(port,), daemon=True
        )

        async def loaded() -> tuple[int, Load, float]:
            async with clients_at_work(url, bodies, clients // 4, service.pid) as alone:
                await asyncio.sleep(warm)
            enemy.start()
            async with clients_at_work(url, bodies, clients, service.pid) as load:
                await asyncio.sleep(seconds)
                load.counting, began = False, time.monotonic()
                service.send_signal(signal.SIGTERM)
                await asyncio.to_thread(service.wait, 120)
                return len(alone.seconds), load, time.monotonic() - began

        count, load, seconds_to_end = asyncio.run(loaded())
    finally:
        service.kill()
        for process in multiprocessing.active_children():
            process.kill()
    text = log.read_text()
    counts = re.search(
        r"(\d+) requests for the model were accepted, (\d+) answered, (\d+) abandoned", text
    )
    accepted, answered, given_up = map(int, counts.groups()) if counts else (-1, -1, -1)
    return Figures(
        capacity=count / warm,
        load=load,
        accepted=accepted,
        answered=answered,
        given_up=given_up,
        seconds_to_end=seconds_to_end,
        code=service.returncode,
        log=text,
    )


def check(figures: Figures) -> None:
    """Fails where a promise was broken."""
    load = figures.load
    assert load.succeeded >= 0.9, f"{load.succeeded:.1%} succeeded"
    assert figures.accepted == figures.answered + figures.given_up > 0, figures.log
    assert load.unhealthy == 0, f"{load.unhealthy} health checks failed"
    assert figures.code == 0, figures.log
    assert figures.seconds_to_end <= 30, f"{figures.seconds_to_end:.1f} s to the end"
    assert "Traceback" not in figures.log, figures.log
    # Flat: the second half needs no more than the first.
    half = len(load.memory) // 2
    assert max(load.memory[half:]) <= 1.1 * max(load.memory[:half]) + 50, load.memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument(
        "--clients", type=int, default=256, help="four times the service's --max-requests"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), seconds=given.seconds, clients=given.clients)
    load = figures.load
    low, high = np.quantile(load.seconds, [0.5, 0.95])
    print(f"alone, {given.clients // 4} clients: {figures.capacity:.0f} requests/s")
    print(
        f"{given.clients} clients and a hostile one, {given.seconds:.0f} s: "
        f"{len(load.seconds) / given.seconds:.0f} requests/s"
    )
    print(
        f"  {load.succeeded:.2%} of {len(load.seconds) + load.failed} requests succeeded; tries: "
        f"{dict(load.tries)}"
    )
    print(f"  {low:.2f} s median, {high:.2f} s 95th percentile, retries included")
    print(
        f"  health: {statistics.median(load.health):.3f} s median, {max(load.health):.2f} s at "
        f"most, {load.unhealthy} failed"
    )
    half = len(load.memory) // 2
    print(
        f"  memory: {max(load.memory[:half]):.0f} MB at most in the first half, "
        f"{max(load.memory[half:]):.0f} MB in the second"
    )
    print(
        f"  {figures.accepted} accepted, {figures.answered} answered, {figures.given_up} given "
        f"up by their clients"
    )
    print(
        f"SIGTERM: {figures.seconds_to_end:.1f} s to the end, code {figures.code}; tries: "
        f"{dict(load.tries_at_the_end)}"
    )
    check(figures)


if __name__ == "__main__":
    main()
