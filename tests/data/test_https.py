"""Downloads over TLS from a local server with its certificate authority."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import trustme

from corrkd.data.hazumi.sources import https
from corrkd.errors import CorrKDError

CONTENT = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    """Serve a file, a 404 response, and a response that is not HTTP."""

    def do_GET(self) -> None:
        if self.path == "/garbage":
            self.wfile.write(b"not HTTP at all\r\n\r\n")
            return
        self.send_response(200 if self.path == "/file" else 404)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(authority: trustme.CA, host: str) -> Iterator[str]:
    """Yield the address of a server whose certificate is for `host`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """An authority that this process trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return authority


def test_a_file_is_downloaded_completely_or_not_at_all(authority: trustme.CA) -> None:
    with serving(authority, "localhost") as address:
        assert https(f"{address}/file", len(CONTENT)) == CONTENT
        with pytest.raises(CorrKDError, match="is larger than 10,239 bytes"):
            https(f"{address}/file", len(CONTENT) - 1)
        for path, reason in (("absent", "Not Found"), ("garbage", "not HTTP at all")):
            with pytest.raises(CorrKDError, match=f"/{path}: cannot be downloaded: {reason}"):
                https(f"{address}/{path}", len(CONTENT))
    with pytest.raises(CorrKDError, match=r"cannot be downloaded: .*refused"):
        https(f"{address}/file", len(CONTENT))


@pytest.mark.parametrize("host", ["localhost", "elsewhere.example"])
def test_an_invalid_certificate_is_refused(authority: trustme.CA, host: str) -> None:
    other = trustme.CA() if host == "localhost" else authority
    with (
        serving(other, host) as address,
        pytest.raises(CorrKDError, match="certificate verify failed"),
    ):
        https(f"{address}/file", len(CONTENT))
