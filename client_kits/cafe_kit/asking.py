"""The site's request on its way to the operator, and his word on its way back: by a folder, by links into an object store, or by hand.

Knows the places, and that of two answers the later one counts. Does not know what the documents prove (``enrolment.py``) or what follows
from them. The links that the join code opened are bearer tokens: they are kept sealed to the site's own key, and never shown.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cafe_kit import enrolment as documents
from cafe_kit import links, site_folder
from cafe_kit.enrolment import Approval
from cafe_kit.errors import CafeError
from cafe_kit.orders import MAX_BYTES
from cafe_kit.release import Box, seal_file
from cafe_kit.site_folder import SiteSettings
from cafe_kit.site_home import SiteHome

POLL_S = 2.0
_LINK_POLL_S = 5.0
_PATIENCE = 5  # looks at an answer that is not whole: somebody may be copying it
REQUEST, ANSWER, SENT = "request.json", "answer.json", "request.sent"
_LINKS = ("request_url", "answer_url", "leave_url")

Say = Callable[[str], None]


def sealed_links(address: dict[str, str], site: SiteHome, serial: str) -> str:
    """The links of an address as only this site reads them, in hexadecimal; "" where there are none.

    Raises:
        CafeError: CAFE-161 for what is no link over TLS.
    """
    kept = {name: address[name] for name in _LINKS if address.get(name)}
    if not all(map(links.is_link, kept.values())):
        raise CafeError("CAFE-161", "The kit names places that may not be used: only https is.", "Ask the operator for a new kit.")
    return Box.seal(json.dumps(kept).encode(), site.seal_key.public_key(), _context(serial)).hex() if kept else ""


def link(home: Path, settings: SiteSettings, name: str) -> str:
    """One of them; "" where there is none. Raises CAFE-459 when it was sealed to another key."""
    if not settings.links:
        return ""
    plain = Box.open(bytes.fromhex(settings.links), SiteHome(home).seal_key, _context(settings.serial))
    return str(json.loads(plain).get(name, ""))


def _context(serial: str) -> bytes:
    return b"cafe-kit links " + serial.encode()


def deliver(home: Path, settings: SiteSettings) -> bool:
    """Put the request where the operator looks for it; False where there is no such place and it has to be handed over.

    Raises:
        CafeError: CAFE-159 when there is one and it does not take it.
    """
    data = (home / REQUEST).read_bytes()
    try:
        if settings.links:
            _upload(home, link(home, settings, "request_url"), data)
            return True
        return _into_exchange(settings, documents.request_name(settings.serial), data)
    except (CafeError, OSError) as error:
        why = error.message.rstrip(".") if isinstance(error, CafeError) else str(error.strerror)
        raise CafeError(
            "CAFE-159",
            f"The request could not be put where the operator looks for it: {why}.",
            f"Try again, or hand the file over: {home / REQUEST}",
        ) from None


def _upload(home: Path, url: str, data: bytes) -> None:
    """Once: the operator takes the request away when he has read it."""
    mark, digest = home / SENT, hashlib.sha256(data).hexdigest().encode()
    if mark.is_file() and mark.read_bytes() == digest:
        return
    links.upload(home / REQUEST, url)
    seal_file(mark, digest)


def _into_exchange(settings: SiteSettings, name: str, data: bytes) -> bool:
    folder = Path(settings.exchange) if settings.exchange else None
    if folder is None or not folder.is_absolute() or not folder.is_dir():
        return False
    target = folder / name
    with suppress(OSError):
        if target.read_bytes() == data:
            return True
    seal_file(target, data)
    target.chmod(0o644)  # the operator reads it with another account; it holds nothing secret
    return True


def say_left(home: Path, settings: SiteSettings) -> bool:
    """Tell the operator, signed, that the site has left; False where the file has to be handed over: ``leave.json``, which is kept."""
    site = SiteHome(home)
    leaving = documents.Leaving(settings.federation, settings.serial, settings.site, site.verify_key, float(int(time.time())))
    data = documents.sign_leaving(leaving, site.key)
    seal_file(home / site_folder.LEAVE, data)
    with suppress(CafeError, OSError):
        if url := link(home, settings, "leave_url"):
            links.upload(home / site_folder.LEAVE, url)
            return True
        return _into_exchange(settings, documents.leaving_name(settings.serial), data)
    return False


def receive(home: Path, settings: SiteSettings, given: Path | None = None) -> Approval | None:
    """The operator's word if it is there: as a file given by hand, in the exchange folder or at its link. It is checked, then kept.

    Of two that he gave the later one counts, and None is returned while there is none at all.

    Raises:
        CafeError: CAFE-101, 102, 103, 148 (not this server's answer to this site), 159 (a given file cannot be read), 162 (the store).
    """
    kept = site_folder.answer(home, settings)
    data = _found(home, settings, given)
    if not data or (kept is not None and data == (home / ANSWER).read_bytes()):
        return kept
    approval = documents.check_approval(data, settings.server.verify_key, settings.serial, settings.site_key)
    if kept is not None and approval.made <= kept.made:
        return kept
    seal_file(home / ANSWER, data)
    SiteHome(home).log("joined" if approval.approved else "not let in")
    return approval


def _found(home: Path, settings: SiteSettings, given: Path | None) -> bytes:
    if given is None and settings.links:
        return links.read(link(home, settings, "answer_url"), MAX_BYTES) or b""
    place = given or (Path(settings.exchange) / documents.answer_name(settings.serial) if settings.exchange else None)
    if place is None:
        return b""
    try:
        with place.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError:
        if given is not None:
            raise CafeError("CAFE-159", "The file with the answer cannot be read.", "Check its path.") from None
        return b""


def wait(home: Path, settings: SiteSettings, seconds: float | None, say: Say) -> Approval:
    """The operator's first word, waited for.

    Raises:
        CafeError: CAFE-155 when it did not come in time; else as ``receive``, but a store that is away is waited for.
    """
    stop, odd, told = None if seconds is None else time.monotonic() + seconds, 0, False
    poll = _LINK_POLL_S if settings.links else POLL_S
    while True:
        try:
            if (approval := receive(home, settings)) is not None:
                return approval
        except CafeError as error:
            odd += error.code == "CAFE-101"
            if error.code not in ("CAFE-101", "CAFE-162") or odd >= _PATIENCE:
                raise
            if error.code == "CAFE-162" and not told:
                told = True
                say(f"   {error.message} It is tried again.")
        if stop is not None and time.monotonic() >= stop:
            raise CafeError("CAFE-155", "The operator has not answered yet.", "Run cafe-site join again: it continues here.")
        time.sleep(poll if stop is None else max(0.0, min(poll, stop - time.monotonic())))
