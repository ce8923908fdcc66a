"""Which requests are refused by their headers."""

from __future__ import annotations

import pytest

from corrkd.serve.access import Access, Refused

HOST = "predict.example.org"


def status(access: Access, path: str = "/v1/predict", **headers: str) -> int:
    encoded = {
        name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()
    }
    try:
        access.check(path, encoded)
    except Refused as refused:
        return refused.status if refused.detail.isprintable() else 0
    return 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("localhost.", 200),
        ("127.0.0.1:8000", 200),
        ("10.1.2.3", 200),  # a health check of a container; an address cannot be rebound
        ("[::1]:8000", 200),
        (f"{HOST}:443", 200),
        (HOST.upper(), 200),
        ("", 200),  # HTTP/1.0
        ("evil.example", 421),
        (f"{HOST}.evil.example", 421),
        (f"x{HOST}", 421),
        ("localhost.evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("2130706433", 421),
        ("[::1", 421),
        ("evil.example\n\x1b[31m", 421),
        (":8000", 421),
    ],
)
def test_hosts(host: str, expected: int) -> None:
    access = Access(hosts=["127.0.0.1", HOST])
    assert status(access, host=host) == expected
    assert status(access, "/", host=host) == expected
    assert status(access, "/healthz", host=host) == 200
    assert status(Access(hosts=["*"]), host=host) == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),  # no browser
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "http://LOCALHOST:8000"}, 200),
        ({"origin": "https://localhost:8000", "sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"origin": "http://localhost:9000"}, 403),
        ({"origin": "http://localhost"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "cross-site", "origin": "http://localhost:8000"}, 403),
    ],
)
def test_origins(headers: dict[str, str], expected: int) -> None:
    for path in ("/v1/predict", "/v1/explore", "/v1/samples/0", "/metrics", "/openapi.json"):
        assert status(Access(), path, host="localhost:8000", **headers) == expected
    assert status(Access(), "/", host="localhost:8000", **headers) == 200  # a link to the page


def test_the_token_is_needed_everywhere_but_for_the_page_and_health() -> None:
    access = Access(token="s3cret")
    for path in (
        "/v1/predict",
        "/v1/samples",
        "/metrics",
        "/openapi.json",
        "/healthz/",
        "//",
        "/static",
        "/nowhere",
    ):
        assert status(access, path) == 401
        assert status(access, path, authorization="Bearer s3cret") == 200
    for path in ("/", "/docs", "/healthz", "/readyz", "/static/app.js"):
        assert status(access, path) == 200
