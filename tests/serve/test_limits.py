"""A service's limits, against hostile clients."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrkd.serve.access import Refused
from corrkd.serve.app import SLICE, Service
from corrkd.serve.explore import Exhibit
from corrkd.serve.predictor import Predictor
from corrkd.serve.schema import refuse_oversized
from tests.serve.conftest import student
from tests.serve.local import GOOD, ONE_FRAME, Local, body_of, local, read_all, request, wait_until

ROOT = Path(__file__).parents[2]
LONG = {"audio": np.zeros((1000, 3))}


def predict(service: Local, *samples: Any) -> httpx.Response:
    body = body_of(*samples or (ONE_FRAME,))
    return httpx.post(
        f"{service.url}/v1/predict",
        content=body,
        headers={"content-type": "application/json"},
        timeout=60,
    )


# -------------------------------------------------------------------------------------------------
# connections and bodies


def test_slow_senders_block_nobody_and_get_a_timeout() -> None:
    with local(requests=2, seconds=4.0) as service:
        slow = [service.client(request(GOOD[:10], length=len(GOOD))) for _ in range(20)]
        assert predict(service).status_code == 200
        for response in map(read_all, slow):
            assert response.startswith(b"HTTP/1.1 408 ")
            assert b"did not arrive within 4 seconds" in response


def test_a_body_that_makes_no_progress_has_half_the_time() -> None:
    with local(seconds=6.0) as service:
        stuck, late = (service.client(request(b"", length=100)) for _ in range(2))
        wait_until(lambda: service.connections == 2)
        start = time.monotonic()
        for _ in range(4):
            time.sleep(1.0)
            late.sendall(b" ")
        stuck.settimeout(0.0)
        assert stuck.recv(100).startswith(b"HTTP/1.1 408 ")
        stuck.close()
        late.sendall(b" " * 95)  # 99 of 100
        assert read_all(late).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - start > 5


def test_concurrent_requests_are_bounded() -> None:
    with local(requests=2) as service, ThreadPoolExecutor() as pool:
        service.predictor.go.clear()
        waiting = [pool.submit(predict, service) for _ in range(2)]
        wait_until(lambda: service.service.guard.accepted == 2)
        response = predict(service)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert "2 requests are being answered" in response.json()["detail"]
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        service.predictor.go.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert predict(service).status_code == 200


def test_idle_connections_give_way_to_new_ones() -> None:
    with local(connections=8) as service:
        first = service.client()
        idle = [service.client(b"GET / HT" if number % 2 else b"") for number in range(60)]
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        assert predict(service).status_code == 200
        assert read_all(first) == b""
        wait_until(lambda: service.connections <= 8)
        for client in idle:
            client.close()


def test_an_address_with_many_connections_loses_them_first() -> None:
    with local(connections=8) as service:
        honest = service.client()
        wait_until(lambda: service.connections == 1)
        idle = [service.client(source="127.0.0.2") for _ in range(40)]
        honest.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_all(honest).startswith(b"HTTP/1.1 200 ")
        for client in idle:
            client.close()


def test_connections_that_wait_for_a_response_do_not_give_way() -> None:
    with local(connections=4) as service, ThreadPoolExecutor() as pool:
        service.predictor.go.clear()
        waiting = [pool.submit(predict, service) for _ in range(3)]
        wait_until(lambda: service.service.guard.accepted == 3)
        idle = [service.client() for _ in range(20)]
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        service.predictor.go.set()
        assert [future.result().status_code for future in waiting] == [200] * 3
        for client in idle:
            client.close()


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_descriptors")
def test_descriptors_suffice(caplog: pytest.LogCaptureFixture) -> None:
    """The clients' sockets count, too: 400 of them, and half of 1,024 for the service."""
    with local(connections=10_000) as service:
        assert service.max_connections == 512
    with local(connections=100) as service:
        idle = [service.client() for _ in range(400)]
        wait_until(lambda: service.connections <= 100)
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        for client in idle:
            client.close()
    assert not caplog.records


def test_bodies_have_bounded_memory_and_the_oldest_unfinished_gives_way() -> None:
    with local(body=100_000, together=2, seconds=20.0) as service:
        slow = []
        for number in range(5):
            slow.append(service.client(request(b" " * 90_000, length=100_000)))
            wait_until(lambda n=number: service.service.guard.held >= min(n + 1, 2) * 90_000)
        for client in slow[:3]:
            response = read_all(client)
            assert response.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in response
        assert service.service.guard.held == 180_000
        large = b" " * 99_000 + GOOD
        assert len(large) < 100_000
        headers = {"content-type": "application/json"}
        assert (
            httpx.post(f"{service.url}/v1/predict", content=large, headers=headers).status_code
            == 200
        )
        for client in slow:
            client.close()
        wait_until(lambda: service.service.guard.held == 0)


def test_an_address_that_sends_much_loses_its_bodies_first() -> None:
    with local(body=100_000, together=2, seconds=20.0) as service:
        honest = service.client(request(b" " * 10_000, length=10_000 + len(GOOD)))
        wait_until(lambda: service.service.guard.held == 10_000)
        slow = [
            service.client(request(b" " * 90_000, length=100_000), source="127.0.0.2")
            for _ in range(4)
        ]
        assert read_all(slow[0]).startswith(b"HTTP/1.1 503 ")
        assert read_all(slow[1]).startswith(b"HTTP/1.1 503 ")
        honest.sendall(GOOD)
        assert honest.recv(65536).startswith(b"HTTP/1.1 200 ")
        for client in (honest, *slow):
            client.close()


def test_clients_that_do_not_read_are_disconnected() -> None:
    with local(seconds=1.0) as service:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", service.port))
        client.settimeout(0.5)
        head = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises(OSError, match=r"timed out|reset|Broken pipe"):
            client.sendall(head * 1_000_000)
        wait_until(lambda: service.connections == 0)
        client.close()


def test_a_client_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with local() as service:
        for _ in range(20):
            assert read_all(service.client(b"NONSENSE \x1b[31m\r\n\r\n")).startswith(
                b"HTTP/1.1 400 "
            )
    assert len([record for record in caplog.records if "Invalid HTTP" in record.message]) <= 1
    assert "\x1b" not in caplog.text


# --------------------------------------------------------------------------------------------------
# cost


@pytest.fixture(scope="module")
def plain() -> Service:
    return Service(Exhibit({"student": Predictor(student())}))


def refusal(service: Service, body: bytes) -> tuple[Refused, int]:
    """Return how a body is refused, and Python's peak memory meanwhile."""
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as caught:
            service.read_body(body, "application/json")
        return caught.value, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_megabyte_of_nulls_is_refused_before_it_takes_memory(plain: Service) -> None:
    sample = b'{"language":[' + b",".join([b"null"] * 1000) + b"]}"
    body = b'{"samples":[' + b",".join([sample] * 200) + b"]}"
    assert len(body) > 1_000_000
    refused, peak = refusal(plain, body)
    assert refused.status == 413
    assert "cost more than 8,000,000" in refused.detail
    assert peak < 8 * len(body)


@pytest.mark.parametrize("value", [b'""', b"null", b"{}", b"[]", b"[[[]]]"])
def test_wrong_values_take_little_memory(plain: Service, value: bytes) -> None:
    frames = b"[" + b",".join([b"[" + b",".join([value] * 3) + b"]"] * 1000) + b"]"
    body = b'{"samples":[' + b",".join([b'{"audio":' + frames + b"}"] * 100) + b"]}"
    refused, peak = refusal(plain, body)
    assert refused.status in (413, 422)
    assert peak < 2 * len(body)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["language", "audio", "vision"]), st.integers(1, 60), min_size=1
        ),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_bodies_within_the_limits_are_never_refused_as_oversized(
    frames: list[dict[str, int]], null: bool
) -> None:
    """The bounds on a body's values, lists and names follow from its cost, whatever the cost is."""
    widths = {"language": 5, "audio": 1, "vision": 4}
    samples = [
        {m: [None if null else [0] * widths[m]] * count for m, count in sample.items()}
        for sample in frames
    ]
    cost = sum(count * (widths[m] + count) for sample in frames for m, count in sample.items())
    refuse_oversized(
        json.dumps({"samples": samples}).encode(), cost=cost, samples=len(samples), modalities=3
    )


def test_cost_of_a_request_and_of_all_together() -> None:
    with local(cost=2_100_000, together=2, requests=10) as service, ThreadPoolExecutor() as pool:
        two = predict(service, LONG, LONG)
        assert two.status_code == 200
        assert service.predictor.sizes == [1, 1]  # one after the other: each is a slice
        response = predict(service, LONG, LONG, LONG)
        assert response.status_code == 413
        assert "cost more than 2,100,000" in response.json()["detail"]
        service.predictor.go.clear()
        waiting = [pool.submit(predict, service, LONG, LONG) for _ in range(2)]
        wait_until(lambda: service.service.guard.accepted == 4)
        wait_until(lambda: predict(service, LONG).status_code == 503)
        response = predict(service, LONG)
        assert response.headers["retry-after"] == "1"
        assert "too many requests are waiting" in response.json()["detail"]
        service.predictor.go.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert predict(service, LONG, LONG).status_code == 200


def test_batches_are_padded_to_no_more_than_a_slice() -> None:
    """Many short samples and a long one, in one request: never all padded to the longest."""
    with local() as service:
        assert (
            predict(service, *[ONE_FRAME] * 200, {"audio": np.zeros((700, 3))}).status_code == 200
        )
    assert sum(service.predictor.sizes) == 201
    assert 1 in service.predictor.sizes  # the long one
    assert max(service.predictor.sizes) <= 64
    assert SLICE > 700 * 703


def test_a_small_request_overtakes_a_large_one() -> None:
    with local(cost=10**8) as service, ThreadPoolExecutor() as pool:
        service.predictor.seconds = 0.2
        large = pool.submit(predict, service, *[LONG] * 60)  # 12 seconds
        wait_until(lambda: service.predictor.sizes)
        assert predict(service).status_code == 200
        assert not large.done()
        service.predictor.seconds = 0.0
        assert len(large.result().json()["predictions"]) == 60


# -----------------------------------------------------------------------------------------------
# clients that leave, the end


def test_pending_work_of_a_disconnected_client_is_dropped() -> None:
    with local(requests=1, cost=10**8) as service:
        service.predictor.go.clear()
        with service.client(request(body_of(*[LONG] * 10))):
            wait_until(lambda: service.predictor.sizes)
        wait_until(lambda: service.service.guard.given_up == 1)
        service.predictor.go.set()
        wait_until(lambda: predict(service).status_code == 200)
        assert (
            service.predictor.sizes == [1] * 3
        )  # the slice of two that had begun, and the other request
        metrics = httpx.get(f"{service.url}/metrics").text
        assert 'corrkd_requests_total{path="/v1/predict",status="499"} 1.0' in metrics


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_closes_its_sending_side_gets_its_response(version: str) -> None:
    with local() as service:
        service.predictor.go.clear()
        client = service.client(request(GOOD).replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: service.predictor.sizes)
        time.sleep(1.0)
        service.predictor.go.set()
        responses = read_all(client)
    *informational, last = responses.split(b"HTTP/1.1 ")[1:]
    assert all(response.startswith(b"100 ") for response in informational)
    assert bool(informational) == (version == "1.1")
    assert last.startswith(b"200 ")
    assert json.loads(last.partition(b"\r\n\r\n")[2])["predictions"]


def test_pipelined_requests_are_answered_after_the_sending_side_is_closed() -> None:
    with local() as service:
        client = service.client(request(GOOD) * 3)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).count(b"HTTP/1.1 200 ") == 3


def test_a_request_that_ends_early_is_not_accepted() -> None:
    with local() as service:
        client = service.client(request(GOOD[:10], length=len(GOOD)))
        client.shutdown(socket.SHUT_WR)
        assert b"200" not in read_all(client)
        assert service.service.guard.accepted == 0


def test_stopping_is_in_time_and_answers_every_client() -> None:
    """Fifty seconds of work, and six seconds of patience."""
    with local(patience=6, cost=10**8) as service, ThreadPoolExecutor() as pool:
        service.predictor.seconds = 0.5
        large = [pool.submit(predict, service, *[LONG] * 20) for _ in range(5)]
        wait_until(lambda: service.service.guard.accepted == 5)
        small = pool.submit(predict, service)
        wait_until(lambda: service.service.guard.accepted == 6)
        start = time.monotonic()
        service.stop()
        assert time.monotonic() - start < 8
        assert small.result().status_code == 200
        for response in (future.result() for future in large):
            assert response.status_code == 503
            assert response.json() == {"detail": "the service is stopping; try again in a second"}


STUCK = """
import sys
from corrkd.serve.app import Service
from corrkd.serve.explore import Exhibit
from corrkd.serve.server import bound, run
from tests.serve.local import HeldPredictor

predictor = HeldPredictor()
service = Service(Exhibit({"student": predictor}))
logits = predictor.logits
def after_the_first(arrays):
    result = logits(arrays)
    predictor.logits, predictor.seconds = logits, 1000.0
    return result
predictor.logits = after_the_first
run(service, bound("127.0.0.1", int(sys.argv[1])), patience=6)
"""


@pytest.mark.slow
def test_a_hanging_network_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", STUCK, str(port)], stderr=log, cwd=ROOT)
    try:
        wait_until(
            lambda: process.poll() is not None or "running on" in (tmp_path / "log").read_text()
        )
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(request(GOOD))
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)  # again, which gains no time
            assert read_all(client).startswith(b"HTTP/1.1 503 ")
        assert process.wait(30) == 1
        assert "Timeout (0:00:06)!\nThread " in (tmp_path / "log").read_text()  # where each stood
    finally:
        process.kill()
        process.wait()


# --------------------------------------------------------------------------------------------------
# hosts and origins


def test_pages_of_other_sites_get_nothing() -> None:
    with local(hosts=["predict.example"]) as service:

        def get(path: str, **headers: str) -> int:
            encoded = {name.replace("_", "-"): value for name, value in headers.items()}
            return httpx.get(f"{service.url}{path}", headers=encoded).status_code

        assert get("/v1/model", host="evil.example") == 421  # its name resolves to this address
        assert get("/", host="evil.example") == 421
        assert get("/healthz", host="evil.example") == 200
        assert get("/v1/model", host="predict.example") == 200
        assert get("/v1/model", host="predict.example", origin="https://predict.example") == 200
        assert get("/v1/model", origin="https://evil.example") == 403
        response = read_all(service.client(request(GOOD, "Origin: https://evil.example")))
        assert response.startswith(b"HTTP/1.1 403 ")
        assert service.service.guard.accepted == 2
