"""The service behind nginx, configured as docs/service.md says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.serve.local import GOOD, Local, body_of, local, read_all, request, wait_until
from tests.test_docs import ROOT, blocks

NAME = "predict.example.org"


@dataclass(frozen=True)
class Proxied:
    """A service, and the port at which nginx passes requests on to it."""

    service: Local
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, *chunks: bytes) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        for chunk in chunks:
            client.sendall(chunk.replace(b"Host: localhost", b"Host: " + NAME.encode()))
        return client


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def nginx(folder: Path, backend: int) -> Iterator[int]:
    """Run the documented server, without TLS and with timeouts of a second; yield its port."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        # Where the set-up provides nginx its absence is a failure.
        assert "CORRKD_NGINX" not in os.environ, "nginx is not installed"
        pytest.skip("needs nginx")
    (documented,) = blocks((ROOT / "docs" / "service.md").read_text("utf-8"), "nginx")
    port = free_port()
    server = documented.replace("127.0.0.1:8000", f"127.0.0.1:{backend}").replace(
        "443 ssl", f"127.0.0.1:{port}"
    )
    server = re.sub(r"^ *ssl_.*\n", "", server, flags=re.MULTILINE).replace(
        "_timeout 10s", "_timeout 1s"
    )
    paths = "".join(
        f"{kind}_temp_path {kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}{server}}}\n"
    )
    process = subprocess.Popen([program, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"])

    def listens() -> bool:
        assert process.poll() is None, (folder / "error.log").read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens)
        yield port
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    with (
        local(hosts=[NAME], requests=2, connections=32, seconds=2.0) as service,
        nginx(tmp_path, service.port) as port,
    ):
        yield Proxied(service, port)


def predict(proxied: Proxied, body: bytes = GOOD, **headers: str) -> httpx.Response:
    all_headers = {"host": NAME, "content-type": "application/json"} | headers
    return httpx.post(f"{proxied.url}/v1/predict", content=body, headers=all_headers, timeout=60)


def test_predictions_pass_with_the_name_that_clients_use(proxied: Proxied) -> None:
    for _ in range(3):  # over connections that are kept
        assert len(predict(proxied).json()["predictions"]) == 1
    assert predict(proxied, origin=f"https://{NAME}").status_code == 200
    assert predict(proxied, origin="https://evil.example").status_code == 403
    assert predict(proxied, host="evil.example").status_code == 421
    assert httpx.get(f"{proxied.url}/", headers={"host": NAME}).status_code == 200
    assert httpx.get(f"{proxied.url}/metrics", headers={"host": NAME}).status_code == 200


def test_bodies_arrive_completely_or_not_at_all(proxied: Proxied) -> None:
    """Slow senders and idle clients never reach the service."""
    slow = [proxied.client(request(GOOD[:10], length=len(GOOD))) for _ in range(6)]
    idle = [proxied.client(b"") for _ in range(60)]
    assert predict(proxied).status_code == 200
    assert proxied.service.connections <= 2
    for client in slow:
        assert not read_all(client).startswith(b"HTTP/1.1 200")
    for client in idle:
        client.close()
    assert proxied.service.service.guard.accepted == 1


def test_large_bodies_are_refused_and_permitted_ones_pass(proxied: Proxied) -> None:
    assert predict(proxied, b" " * (17 << 20) + GOOD).status_code == 413
    assert predict(proxied, b" " * (15 << 20) + GOOD).status_code == 200


def test_connections_of_an_address_are_limited(proxied: Proxied) -> None:
    many = [proxied.client(request(GOOD[:10], length=len(GOOD))) for _ in range(20)]
    try:
        wait_until(lambda: predict(proxied).status_code == 503)
    finally:
        for client in many:
            client.close()
    wait_until(lambda: predict(proxied).status_code == 200)


def test_requests_beyond_the_service_limits_are_asked_to_retry(proxied: Proxied) -> None:
    proxied.service.predictor.go.clear()
    waiting = [proxied.client(request(GOOD)) for _ in range(2)]
    wait_until(lambda: proxied.service.service.guard.accepted == 2)
    response = predict(proxied)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    proxied.service.predictor.go.set()
    for client in waiting:
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.close()


def test_disconnected_clients_are_detected_through_nginx(proxied: Proxied) -> None:
    proxied.service.predictor.go.clear()
    with proxied.client(request(body_of(*[{"audio": [[0.0] * 3] * 900}] * 5))):
        wait_until(lambda: proxied.service.predictor.sizes)
    wait_until(lambda: proxied.service.service.guard.given_up == 1)
