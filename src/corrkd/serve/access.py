"""Access to the service: its token, its host names, and which sites may call it."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from corrkd.errors import CorrKDError

HEALTH = ("/healthz", "/readyz")
PUBLIC = ("/", "/docs", *HEALTH)  # without data, so that they and /static/ need no token
ANY_HOST = "*"


class Refused(Exception):  # noqa: N818
    """Raised to refuse a request, with an HTTP status and a message of one line."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        return {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": "1"}}.get(self.status, {})


def read_token(path: Path | None) -> str | None:
    """Return the token from a file or else the variable CORRKD_TOKEN, or None without both. Raises
    CorrKDError if the file cannot be read or the token is invalid.
    """
    from_environment = os.environ.get("CORRKD_TOKEN")
    if path is None and from_environment is None:
        return None
    try:
        token = (path.read_text("utf-8") if path is not None else from_environment or "").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CorrKDError(f"{path}: the token cannot be read: {error}") from None
    if not token or not token.isascii() or len(token.split()) != 1:
        raise CorrKDError(
            f"{path or 'CORRKD_TOKEN'}: expected one token of ASCII characters without spaces"
        )
    return token


class Access:
    """Checks of requests by their headers.

    Args:
        token: token required in the header `Authorization: Bearer TOKEN`; None if none is needed.
        hosts: host names that the service accepts, besides localhost and IP addresses; "*" for any.
    """

    def __init__(self, *, token: str | None = None, hosts: Iterable[str] = ()) -> None:
        self._token = None if token is None else token.encode()
        self._hosts = {"localhost", *(host.lower().rstrip(".") for host in hosts)}

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise Refused with status 421 if the host name is unknown, 401 if the token is missing or
        wrong, or 403 if the request comes from a page of another site.
        """
        if path not in HEALTH:
            self._check_host(headers.get(b"host", b"").decode("latin-1"))
        if path not in PUBLIC and not path.startswith("/static/"):
            self._check_token(headers.get(b"authorization", b""))
            _check_origin(headers)

    def _check_host(self, host: str) -> None:
        """Refuse unknown host names, to prevent DNS rebinding: a page with a host name that now
        resolves to this address sends that name, never an IP address. Requests without the Host
        header use HTTP/1.0, which browsers do not use.
        """
        name = _hostname(host)
        if (
            host
            and ANY_HOST not in self._hosts
            and name not in self._hosts
            and not _is_address(name)
        ):
            raise Refused(
                421,
                f"host {host[:60]!r} is not a name of this service; to allow it, start the "
                f"service with --allow-host",
            )

    def _check_token(self, authorization: bytes) -> None:
        if self._token is None:
            return
        scheme, _, token = authorization.partition(b" ")
        # in constant time, so that timing reveals nothing about the token
        same = hmac.compare_digest(token.strip(), self._token)
        if scheme.lower() != b"bearer" or not same:
            raise Refused(
                401, "give the service's token in the header `Authorization: Bearer TOKEN`"
            )


def _check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Refuse requests from pages of other sites. Only browsers send the Origin header."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        allowed = site in (b"same-origin", b"none")  # "none" if the user typed the address
    else:
        allowed = (
            origin is None
            or origin.partition(b"://")[2].lower() == headers.get(b"host", b"").lower()
        )
    if not allowed:
        raise Refused(403, "pages of other sites may not use this service")


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:  # unbalanced brackets
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
