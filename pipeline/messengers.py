"""How a message reaches a site of another machine and how its answer comes back: here, as files in a folder that both sides reach.

Knows names of files and tickets. Does not know what a message asks, and trusts no answer: whoever collects it checks its signature.
Through Globus Compute it is ``globus_compute.GlobusMessenger``. Layout of the folder: ``docs/architecture.md``, the exchange folder.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cafe_kit.errors import CafeError
from cafe_kit.orders import MAX_BYTES

from pipeline import site_words
from server_store.blobs import write_whole
from server_store.site_kits import SiteKit

_MOST = 4 * MAX_BYTES  # bytes of a file from a site, before it is parsed


@dataclass(frozen=True)
class Doing:
    """What a site says it does now: ``done`` of ``of`` steps of a phase of the order with this hash."""

    order_hash: str
    phase: str
    done: int
    of: int


class Messenger(Protocol):
    """A way to and from sites. A ticket names one message; delivery is at-least-once."""

    def send(self, kit: SiteKit, message: dict[str, Any]) -> str:
        """Hand the message over; its ticket. Raises CafeError where that cannot be done now."""
        ...

    def collect(self, tickets: Collection[str]) -> dict[str, dict[str, Any] | CafeError]:
        """The answers that came, or why none will; a ticket that is not in it is still open."""
        ...

    def forget(self, ticket: str) -> None:
        """Nobody waits for this answer any more."""
        ...

    def heard(self, kit: SiteKit) -> float | None:
        """When the site last showed life (seconds since 1970); None when never, or not known."""
        ...

    def doing(self, kit: SiteKit) -> Doing | None:
        """What the site does now, where the way tells."""
        ...


def place(kit: SiteKit, end: str, *names: str) -> Path:
    """A place in the kit's exchange folder; ``end``: whose it is, "server" or "site". Each side writes and deletes in its own only."""
    return Path(kit.exchange, f"{kit.serial}.{end}", *names)


def open_to_both(folder: Path) -> Path:
    """``folder``, made so that the other side (perhaps another Unix user) reads it."""
    for path in (folder.parent, folder):
        path.mkdir(exist_ok=True)
        with suppress(PermissionError):  # the exchange folder itself is somebody else's
            path.chmod(0o755)
    return folder


def write_for_both(path: Path, data: bytes) -> None:
    """Write whole, readable for the other side; it holds nothing that is not public, sealed or noised."""
    write_whole(path, data)
    path.chmod(0o644)


class FolderMessenger:
    """Messages as files: ``<serial>.server/orders/<name>`` and ``<serial>.site/answers/<name>``. A ticket is such a path."""

    def send(self, kit: SiteKit, message: dict[str, Any]) -> str:
        order = message["order"]
        name = f"{order['site']}.{order['params']['kind']}.json"
        try:
            folder = open_to_both(place(kit, "server", "orders"))
            for before in folder.glob("*.json"):  # a seat has one order of a kind at a time; what a run that died has left is over
                if before.name.partition("-")[2] == name and order["params"]["kind"] != "result":
                    before.unlink(missing_ok=True)
            path = folder / f"{time.time_ns():020d}-{name}"
            write_for_both(path, json.dumps(message).encode())
        except OSError as error:
            raise CafeError(
                "CAFE-169",
                f"The exchange folder of {kit.site!r} cannot be written ({error.strerror}).",
                "Is it mounted, and may the operator's account write there?",
            ) from None
        return str(path)

    def collect(self, tickets: Collection[str]) -> dict[str, dict[str, Any] | CafeError]:
        found: dict[str, dict[str, Any] | CafeError] = {}
        for ticket in tickets:
            data = _read(_answer_to(Path(ticket)))
            if data is not None:
                found[ticket] = _plain(data)
        return found

    def forget(self, ticket: str) -> None:
        Path(ticket).unlink(missing_ok=True)

    def heard(self, kit: SiteKit) -> float | None:
        try:
            return place(kit, "site", "alive.json").stat().st_mtime
        except OSError:
            return None

    def doing(self, kit: SiteKit) -> Doing | None:
        data = _read(place(kit, "site", "alive.json"))
        try:
            told = json.loads(data or b"{}")["doing"]
            phase, done, of = site_words.line(told["phase"], 40), site_words.count(told["done"]), site_words.count(told["of"])
            return Doing(str(told["order_hash"]), phase, done, of)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def _answer_to(order: Path) -> Path:
    folder = order.parents[1]
    return folder.with_name(f"{folder.name.removesuffix('.server')}.site") / "answers" / order.name


def _read(path: Path) -> bytes | None:
    """At most a little more than is allowed; None for no file. A site may put anything there: nothing is followed or waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(_MOST + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None


def _plain(data: bytes) -> dict[str, Any] | CafeError:
    try:
        told = json.loads(data) if len(data) <= _MOST else None
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict):
        return told
    return CafeError("CAFE-170", "What came from the site is no answer (too large, or not plain JSON).", "Look at the site.")
