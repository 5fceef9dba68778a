"""Who may operate this server by signing in with Globus, and since when the sessions of somebody count as ended.

Knows ``CAFE_HOME/operators.json``. Does not know how somebody signed in. The first one of all may claim the server, if he holds its
one-time link; the others are added by name. A name is pinned to its Globus identity at the first sign-in: names can be given anew.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError

from pipeline import globus_settings
from pipeline.globus_login import Identity, signed_in
from server_store.blobs import write_whole

FILE = "operators.json"
_NAME = re.compile(r"[^\s@<>\"'`|\\]{1,64}@[A-Za-z0-9.-]{1,128}")


@dataclass(frozen=True)
class Operator:
    """One who may operate. ``identity``: his Globus identity, empty until he has signed in once."""

    username: str
    identity: str
    since: float
    by: str


def listed(home: Path) -> list[Operator]:
    """All who may operate, in the order in which they were added."""
    return [Operator(**one) for one in _read(home)["operators"]]


def add(home: Path, username: str, by: str, identity: str = "") -> Operator:
    """Let somebody operate; twice changes nothing.

    Raises:
        CafeError: CAFE-192 for what cannot be a Globus username.
    """
    username = username.strip().lower()
    if not _NAME.fullmatch(username):
        raise CafeError(
            "CAFE-192",
            f"{username[:60]!r} is no username of Globus.",
            "It looks like an e-mail address: ada@uni.example, as app.globus.org shows it.",
        )
    with _changing(home) as found:
        known = next((one for one in found["operators"] if one["username"] == username), None)
        if known is None:
            known = asdict(Operator(username, identity, time.time(), by))
            found["operators"].append(known)
    return Operator(**known)


def remove(home: Path, username: str) -> bool:
    """Take the right away, at once: every session of his has ended. False: he was not listed."""
    username = username.strip().lower()
    with _changing(home) as found:
        left = [one for one in found["operators"] if one["username"] != username]
        gone = len(left) < len(found["operators"])
        found["operators"] = left
    return gone


def admit(home: Path, identity: Identity, *, claims: bool = False) -> Operator | None:
    """Whether this identity may operate; at the first time his identity is pinned.

    claims: he holds this server's one-time link; where nobody may operate yet, he becomes the first.
    """
    with _changing(home) as found:
        if claims and not found["operators"]:
            found["operators"].append(asdict(Operator(identity.username.lower(), identity.id, time.time(), "the one-time link")))
        for one in found["operators"]:
            if one["identity"] in identity.ids or (not one["identity"] and one["username"] in identity.names):
                one["identity"] = one["identity"] or identity.id
                return Operator(**one)
    return None


def by_identity(home: Path, identity: str) -> Operator | None:
    """The operator with exactly this identity."""
    return next((one for one in listed(home) if one.identity == identity), None) if identity else None


def end_sessions(home: Path, who: str) -> None:
    """Every session of ``who`` (an identity; "" for those by the one-time link) that began until now has ended."""
    with _changing(home) as found:
        found["ended"][who] = time.time()


def ended(home: Path, who: str) -> float:
    """Until when the sessions of ``who`` have ended; 0.0 for never."""
    return float(_read(home)["ended"].get(who, 0.0))


def at_terminal(home: Path) -> str:
    """Who acts for the command line: the one who signed in there with Globus, else the account."""
    person = signed_in(home, globus_settings.read(home).account)
    return person.username if person else account()


def account() -> str:
    """The account that runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _read(home: Path) -> dict[str, Any]:
    try:
        found = json.loads((home / FILE).read_text(encoding="utf-8"))
        return {"operators": list(found["operators"]), "ended": dict(found["ended"])}
    except FileNotFoundError:
        return {"operators": [], "ended": {}}
    except (ValueError, KeyError, TypeError):
        raise CafeError(
            "CAFE-192", f"{FILE} in the home folder cannot be read, so nobody is let in.", "Restore it from a backup."
        ) from None


@contextmanager
def _changing(home: Path) -> Iterator[dict[str, Any]]:
    """The file's content, to be changed by one process at a time; written where it changed."""
    with (home / f".{FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _read(home)
        before = json.dumps(found)
        yield found
        if json.dumps(found) != before:
            write_whole(home / FILE, (json.dumps(found, indent=1) + "\n").encode())
