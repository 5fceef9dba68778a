"""Bytes to and from an object store by presigned URLs: one object, one method, some minutes.

Knows HTTP, sizes and hashes. Does not know what the bytes are, nor orders. A URL is a bearer token: it is never logged or shown.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from cafe_kit.errors import CafeError
from cafe_kit.orders import Blob

_TIMEOUT_S = 30.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def is_link(place: str) -> bool:
    """Whether ``place`` is a URL that may be used: https, or http on this very machine."""
    parts = urlsplit(place)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


def download(url: str, target: Path, blob: Blob) -> None:
    """Write the object to ``target``, checked by size and hash before it gets that name.

    Raises:
        CafeError: CAFE-161 (the URL has expired or is refused), CAFE-162 (the store cannot be reached), CAFE-107 (other bytes).
    """
    beside = target.with_name(f".{target.name}.part")
    digest, left = hashlib.sha256(), blob.size + 1
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as source, beside.open("wb") as file:
            while left and (block := source.read(min(left, 2**20))):
                left -= len(block)
                digest.update(block)
                file.write(block)
        if left != 1 or digest.hexdigest() != blob.sha256:
            raise CafeError("CAFE-107", "What was fetched is not what the order names.", "Ask the operator to send the order again.")
        beside.replace(target)
    except urllib.error.HTTPError as error:
        raise _refused(error.code) from None
    except (OSError, ValueError):
        raise _unreachable() from None
    finally:
        beside.unlink(missing_ok=True)


def read(url: str, most: int) -> bytes | None:
    """A small object, of which at most ``most`` bytes and one more are read; None while it is not there.

    A store that may not tell whether there is one says 403, as it does to a link that has expired.

    Raises:
        CafeError: CAFE-161, CAFE-162.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as source:
            data: bytes = source.read(most + 1)
            return data
    except urllib.error.HTTPError as error:
        if error.code in (403, 404):
            return None
        raise _refused(error.code) from None
    except (OSError, ValueError, http.client.HTTPException):
        raise _unreachable() from None


def upload(body: Path, url: str) -> None:
    """Put the file's bytes to the URL.

    Raises:
        CafeError: CAFE-161, CAFE-162.
    """
    try:
        with body.open("rb") as file:
            headers = {"Content-Length": str(body.stat().st_size), "Content-Type": "application/octet-stream"}
            with urllib.request.urlopen(urllib.request.Request(url, file, headers, method="PUT"), timeout=_TIMEOUT_S):
                pass
    except urllib.error.HTTPError as error:
        raise _refused(error.code) from None
    except (OSError, ValueError):
        raise _unreachable() from None


def _refused(status: int) -> CafeError:
    return CafeError("CAFE-161", f"The object store refused the link (HTTP {status}).", "It may have expired; the order comes again.")


def _unreachable() -> CafeError:
    return CafeError("CAFE-162", "The object store cannot be reached.", "Check the way to it (proxy, firewall); the order comes again.")
