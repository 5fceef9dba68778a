"""The console's door: one-time keys for a browser on this machine, and the signed cookie that a browser carries afterwards.

Knows keys (only their hashes are kept) and who a cookie stands for. Does not know HTTP (``app/gate.py``) nor how Globus signs somebody in.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cafe_kit.errors import CafeError
from itsdangerous import BadData, URLSafeSerializer

from pipeline import operators
from pipeline.globus_login import Identity
from pipeline.keys import cookie_secret
from server_store.blobs import write_whole

KEY_S = 8 * 3600.0  # how long an unused link is good
LINK_S, GLOBUS_S = 30 * 86400, 12 * 3600  # how long a browser stays in: by the link, by a sign-in
Way = Literal["link", "globus", "proxy"]


@dataclass(frozen=True)
class Person:
    """Who sits before a browser. ``identity``: his Globus identity, where he signed in with Globus."""

    name: str
    way: Way
    identity: str = ""


def by_link() -> Person:
    """Whoever holds a one-time link acts for the account that runs the console: he can read its home folder."""
    return Person(operators.account(), "link")


def by_globus(home: Path, identity: Identity, *, claims: bool) -> Person:
    """The operator behind a Globus identity. ``claims``: see ``operators.admit``.

    Raises:
        CafeError: CAFE-192 for one who may not operate.
    """
    found = operators.admit(home, identity, claims=claims)
    if found is None:
        raise CafeError(
            "CAFE-192",
            f"{identity.username} is signed in with Globus, but is no operator of this server.",
            f"An operator can add you: `cafe operators add {identity.username}`.",
        )
    return Person(found.username, "globus", found.identity)


def new_key(home: Path) -> str:
    """A key that opens the console once."""
    key, now = secrets.token_urlsafe(32), time.time()
    for old in _keys(home).iterdir():
        if old.stat().st_mtime < now - KEY_S:
            old.unlink(missing_ok=True)
    write_whole(_key_file(home, key), b"")
    return key


def use_key(home: Path, key: str) -> bool:
    """Whether the key opens the console. It does so once: of two who try, one gets in."""
    file = _key_file(home, key)
    try:
        fresh = file.stat().st_mtime > time.time() - KEY_S
        file.unlink()
    except FileNotFoundError:
        return False
    return fresh


def cookie_name(home: Path) -> str:
    """Of this home: cookies do not tell ports apart, and two consoles of one machine must not throw each other's people out."""
    return "cafe_" + hashlib.sha256(b"cookie name " + cookie_secret(home).encode()).hexdigest()[:12]


def write_cookie(home: Path, person: Person) -> str:
    """What the browser carries: who, and since when, signed."""
    return _signer(home).dumps({**asdict(person), "since": time.time()})


def read_cookie(home: Path, cookie: str) -> Person | None:
    """Who carries it; None where it is altered, too old, ended by a sign-out, or its operator may not operate any more."""
    try:
        kept = dict(_signer(home).loads(cookie))
        since = float(kept.pop("since"))
        person = Person(**kept)
    except (BadData, TypeError, ValueError, KeyError):
        return None
    if time.time() > since + (GLOBUS_S if person.way == "globus" else LINK_S) or since <= operators.ended(home, person.identity):
        return None
    return person if person.way == "link" or operators.by_identity(home, person.identity) else None


def announce(home: Path, address: str) -> None:
    """Remember where the console is, for ``cafe link``."""
    write_whole(_keys(home).parent / "address.json", json.dumps({"address": address}).encode())


def link(home: Path) -> str:
    """A new one-time link to the console that was started last."""
    file = _keys(home).parent / "address.json"
    address = json.loads(file.read_text(encoding="utf-8"))["address"] if file.exists() else "http://127.0.0.1:8501/"
    return f"{address}?key={new_key(home)}"


def _keys(home: Path) -> Path:
    folder = home / "console" / "keys"
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    return folder


def _key_file(home: Path, key: str) -> Path:
    return _keys(home) / hashlib.sha256(key.encode()).hexdigest()


def _signer(home: Path) -> URLSafeSerializer:
    return URLSafeSerializer(cookie_secret(home), salt="cafe console")
