"""One HTTP request to the address of a link: straight, or through the proxy that this machine is told to use.

Knows HTTP and proxies (``HTTPS_PROXY``, ``NO_PROXY``). Follows no redirect. Does not know what an answer means. Nothing here says the
address aloud: it holds a signature.
"""

from __future__ import annotations

import base64
import http.client
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

CONNECT_S, SILENCE_S = 5.0, 30.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def split(place: str) -> SplitResult | None:
    """The parts of an address that may be used: https, or http on this very machine, without a user in it; None for any other."""
    try:
        parts = urlsplit(place)
        here = parts.scheme == "http" and parts.hostname in _LOOPBACK
        port = parts.port
    except ValueError:
        return None
    sound = place.isascii() and place.isprintable() and " " not in place and parts.hostname and "@" not in parts.netloc and port != 0
    return parts if sound and (here or parts.scheme == "https") else None


@contextmanager
def asked(place: SplitResult, method: str, headers: Mapping[str, str], body: BinaryIO | None = None) -> Iterator[http.client.HTTPResponse]:
    """Send a request and hold its answer, whatever its status. ``body`` is sent from where it is.

    Raises:
        OSError: no connection, a certificate that is not trusted, or a silence; http.client.HTTPException: no HTTP.
    """
    connection = _connection(place)
    try:
        connection.connect()
        assert connection.sock is not None
        connection.sock.settimeout(SILENCE_S)
        target = place.path + (f"?{place.query}" if place.query else "")
        try:
            connection.request(method, target or "/", body, dict(headers) | {"Connection": "close"})
        except (BrokenPipeError, ConnectionResetError):
            with suppress(OSError):  # a server that refuses says so before it has heard all
                connection.sock.settimeout(CONNECT_S)
        yield connection.getresponse()
    finally:
        connection.close()


def _connection(place: SplitResult) -> http.client.HTTPConnection:
    assert place.hostname is not None
    if place.scheme == "http":
        return http.client.HTTPConnection(place.hostname, place.port or 80, timeout=CONNECT_S)  # this machine: never by a proxy
    context = ssl.create_default_context()
    proxy = None if urllib.request.proxy_bypass(place.hostname) else urllib.request.getproxies().get("https")
    if not proxy:
        return http.client.HTTPSConnection(place.hostname, place.port or 443, timeout=CONNECT_S, context=context)
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = http.client.HTTPSConnection(via.hostname or "", via.port or 80, timeout=CONNECT_S, context=context)
    user = f"{unquote(via.username)}:{unquote(via.password or '')}" if via.username else ""
    told = {"Proxy-Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    connection.set_tunnel(place.hostname, place.port or 443, headers=told)
    return connection
