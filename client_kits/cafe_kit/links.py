"""Bytes to and from an object store by presigned URLs: one object, one method, some minutes.

Knows sizes, hashes, and which faults pass by themselves: those are waited out, and a body that breaks off is gone on with where it broke.
Does not know what the bytes are, nor orders. A URL is a bearer token: it is never logged or shown.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import io
import random
import re
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import SplitResult, parse_qs

from cafe_kit.errors import CafeError
from cafe_kit.http_request import asked, split
from cafe_kit.orders import Blob

PATIENCE_S = 60.0  # without a byte of progress
LONGEST_S = 24 * 3600.0  # however slowly it progresses
SKEW_S = 300.0
_BLOCK, _REASON = 2**20, 4096
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_DAMAGED = {"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch", "InvalidDigest"}
_BROKEN = (OSError, http.client.HTTPException)
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}  # faults of this machine, not of the network
_WHOLE_TRIES = 3
_T = TypeVar("_T")


class _Passing(Exception):
    """A fault that may pass; ``why`` in words."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def is_link(place: str) -> bool:
    """Whether ``place`` is a URL that may be used: https, or http on this very machine."""
    return split(place) is not None


def fetch(url: str, blob: Blob, longest_s: float = LONGEST_S) -> bytes:
    """A small object, in memory alone, checked by size and hash. What is wrong is fetched anew: it may be damaged on its way.

    Raises:
        CafeError: CAFE-161 (the URL has expired or is refused), 162 (the store cannot be reached), 163 (clocks), 107 (other bytes).
    """
    for _ in range(_WHOLE_TRIES):
        file = io.BytesIO()
        receive(url, file, blob.size, longest_s, exactly=True)
        if hashlib.sha256(file.getbuffer()).hexdigest() == blob.sha256:
            return file.getvalue()
    raise _other_bytes()


def receive(url: str, file: BinaryIO, most: int, longest_s: float = LONGEST_S, *, exactly: bool = False) -> None:
    """Append to ``file`` what of the object is not in it yet: what is there counts as its beginning. The caller checks the bytes.

    ``most``: a larger object is refused before a byte is read; with ``exactly`` any smaller one, too.

    Raises:
        CafeError: CAFE-161, 162, 163; 107 for another size. OSError: the disk.
    """
    place, end = _place(url), time.monotonic() + longest_s
    state = {"etag": ""}

    def rest() -> None:
        at = file.seek(0, io.SEEK_END)
        headers = {"Accept-Encoding": "identity"}
        if at:
            headers |= {"Range": f"bytes={at}-"} | ({"If-Match": state["etag"]} if state["etag"] else {})
        with asked(place, "GET", headers) as answer:
            if at and answer.status in (200, 412, 416):  # whole again, replaced, or nothing is left of it
                if answer.status == 416 and answer.headers.get("Content-Range") == f"bytes */{at}":
                    return
                file.truncate(0)
                at = file.seek(0)
                if answer.status != 200:
                    raise _Passing("has another object than before")
            left = _length(answer, at, most, exactly) if answer.status in (200, 206) else _refuse(place, answer)
            state["etag"] = answer.headers.get("ETag", "")
            while time.monotonic() < end and (block := answer.read1(min(left, _BLOCK))):
                left -= len(block)
                file.write(block)
            if left:
                raise _Passing("breaks off, or is too slow")

    _patiently(rest, lambda: file.seek(0, io.SEEK_END), longest_s)


def read(url: str, most: int) -> bytes | None:
    """A small object, of which at most ``most`` bytes and one more are read; None while it is not there.

    A store that may not tell whether there is one says 403, as it does to a link that has expired.

    Raises:
        CafeError: CAFE-161, 162, 163.
    """
    place = _place(url)

    def whole() -> bytes | None:
        with asked(place, "GET", {"Accept-Encoding": "identity"}) as answer:
            if answer.status in (403, 404):
                return None
            if answer.status != 200:
                _refuse(place, answer)
            data = answer.read(most + 1)
            told = answer.headers.get("Content-Length", "")
            if not told.isdecimal() or len(data) < min(int(told), most + 1):
                raise _Passing("breaks off")
            return data

    return _patiently(whole)


def upload(body: Path, url: str) -> None:
    """Put the file's bytes to the URL, as often as it takes; the store notices a body that was damaged on its way.

    Raises:
        CafeError: CAFE-161, 162, 163. OSError: the file cannot be read.
    """
    place = _place(url)
    with body.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()  # a checksum that S3 asks for
        headers = {
            "Content-Length": str(size), "Content-Type": "application/octet-stream", "Content-MD5": base64.b64encode(digest).decode()
        }  # fmt: skip

        def put() -> None:
            file.seek(0)
            with asked(place, "PUT", headers, file) as answer:
                if answer.status not in (200, 201, 204):
                    _refuse(place, answer)

        _patiently(put)


def _place(url: str) -> SplitResult:
    place = split(url)
    if place is None:
        raise CafeError("CAFE-161", "A link is no address that this site goes to.", "Ask the operator to check the store's address.")
    return place


def _length(answer: http.client.HTTPResponse, at: int, most: int, exactly: bool) -> int:
    """How many bytes are to come, as the store says: a body without a length, or from another place, is not begun."""
    told = answer.headers.get("Content-Length", "")
    if not told.isdecimal():
        raise _Passing("does not say how much it sends")
    if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {at}-"):
        raise _Passing("sends another part than was asked for")
    size = at + int(told)
    if size > most or (exactly and size != most):
        raise _other_bytes()
    return int(told)


def _refuse(place: SplitResult, answer: http.client.HTTPResponse) -> int:
    """Raise what a status means that is none of success."""
    found = re.search(rb"<Code>([A-Za-z0-9]{1,60})</Code>", answer.read(_REASON))
    code = found[1].decode() if found else ""
    if answer.status in _PASSING or code in _DAMAGED:
        raise _Passing(f"is out of order (HTTP {answer.status})")
    late = _late_s(place, answer)
    if late is not None and late < -SKEW_S:
        raise CafeError(
            "CAFE-163",
            f"The object store refused the link: it was signed {_minutes(late)} in the store's future, so two clocks differ.",
            "Tell the operator: the clock of the server or of the store is wrong.",
        )
    if answer.status == 404:
        why = "the object is not there"
    elif late is not None and late > 0:
        why = f"it expired {_minutes(late)} ago"
    elif answer.status in range(300, 400):
        why = "it points to another address, which is not followed"
    else:
        why = f"{code or 'no reason told'}"
    raise CafeError("CAFE-161", f"The object store refused the link (HTTP {answer.status}): {why}.", "The order comes again.")


def _late_s(place: SplitResult, answer: http.client.HTTPResponse) -> float | None:
    """By the store's own clock: seconds since the link expired; below zero, until it was even signed. None: neither, or not known."""
    told = parse_qs(place.query)
    try:
        signed = datetime.strptime(told["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        now = parsedate_to_datetime(answer.headers["Date"])
        age = (now - signed).total_seconds()
        over = age - float(told["X-Amz-Expires"][0])
    except (KeyError, TypeError, ValueError):
        return None
    return age if age < 0 else over if over >= 0 else None


def _minutes(seconds: float) -> str:
    minutes = max(1, round(abs(seconds) / 60))
    return f"{minutes} minute{'s' * (minutes > 1)}"


def _patiently(act: Callable[[], _T], progress: Callable[[], int] = lambda: 0, longest_s: float = LONGEST_S) -> _T:
    """Do it; after a fault that passes, again, with random pauses that grow, until there was no progress for ``PATIENCE_S``."""
    last = time.monotonic() + longest_s
    end, pause, before = time.monotonic() + PATIENCE_S, 0.25, progress()
    while True:
        try:
            return act()
        except ssl.SSLCertVerificationError:
            raise CafeError(
                "CAFE-162",
                "The object store's certificate is not trusted here.",
                "If it is of your own authority, name its file in SSL_CERT_FILE; check this machine's clock.",
            ) from None
        except _Passing as error:
            why = error.why
        except _BROKEN as error:
            if getattr(error, "errno", None) in DISK:
                raise
            why = "cannot be reached"
        if progress() > before:
            end, pause, before = time.monotonic() + PATIENCE_S, 0.25, progress()
        wait = random.uniform(0, pause)
        if time.monotonic() + wait > min(end, last):
            hint = "Check the way to it (proxy, firewall); the order comes again."
            raise CafeError("CAFE-162", f"The object store {why}.", hint) from None
        time.sleep(wait)
        pause = min(2 * pause, 8.0)


def _other_bytes() -> CafeError:
    return CafeError("CAFE-107", "What was fetched is not what the order names.", "Ask the operator to send the order again.")
