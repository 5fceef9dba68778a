"""What the pages know of a site of another machine: how far it has come, whether it is there, what it allows, what it says of itself.

Knows kits, their requests, the last verified answer, and the file by which a site in an exchange folder shows that it lives. Decides
nothing, keeps nothing, asks no network: a page may look as often as it likes.
"""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline import messengers, site_words
from pipeline.connecting import HERE
from pipeline.federations import Federation
from pipeline.overview import Overview
from server_store.site_kits import SiteKit, SiteKits

NOT_JOINED, EXPIRED, WAITS = "Not joined yet", "Kit expired", "Waits for you"
ONLINE, PAUSED, SILENT, JOINED = "Online", "Paused by the site", "Last heard", "Joined"
REFUSED, REVOKED, LEFT = "Refused", "Revoked", "Left"
ONLINE_S = 30.0  # a site in a folder shows life every few seconds
_OPEN = ("issued", "requested", "approved")
_ENDED = {"refused": REFUSED, "revoked": REVOKED, "left": LEFT}
_MOST = 4096  # bytes of a sign of life


@dataclass(frozen=True)
class Alive:
    """A site's sign of life, unsigned and only shown. ``time``: when it came, by this machine's clock."""

    time: float
    paused: bool = False
    phase: str = ""
    done: int = 0
    of: int = 0


@dataclass(frozen=True)
class JoinedSite:
    """One site of another machine, by its newest kit."""

    kit: SiteKit
    alive: Alive | None
    now: float

    @property
    def name(self) -> str:
        return self.kit.site

    @property
    def open(self) -> bool:
        """Whether it takes part, or may still come to."""
        return self.kit.state in _OPEN

    @property
    def joined(self) -> bool:
        return self.kit.state == "approved"

    @property
    def waits(self) -> bool:
        """Whether the operator is to decide."""
        return self.kit.state == "requested"

    @property
    def heard(self) -> float | None:
        """When it last showed life: a sign in the folder, or an answer."""
        times = [self.alive.time if self.alive else None, self.kit.seen.get("time")]
        return max((float(one) for one in times if isinstance(one, int | float)), default=None)

    @cached_property
    def state(self) -> str:
        """One of the words above."""
        if self.kit.state == "issued":
            return EXPIRED if self.kit.expires < self.now else NOT_JOINED
        if self.kit.state == "requested":
            return WAITS
        if self.kit.state in _ENDED:
            return _ENDED[self.kit.state]
        if self.alive and self.now - self.alive.time <= ONLINE_S:
            return PAUSED if self.alive.paused else ONLINE
        return JOINED if self.heard is None else SILENT

    @property
    def served_here(self) -> bool:
        """Whether a run serves it by a process of this machine, as it does the demo's; its home then lies here."""
        return self.kit.connection.get("via") == HERE

    @property
    def doing(self) -> str:
        """What it says it does now; "" for nothing, or not known."""
        if self.state != ONLINE or self.alive is None or not self.alive.phase:
            return ""
        return self.alive.phase + (f", {self.alive.done} of {self.alive.of}" if self.alive.of else "")

    @property
    def limit(self) -> tuple[float, float] | None:
        """(epsilon, delta) over all runs, as the site consented to; None where it sets none, or has not asked yet."""
        limits = self._asked.get("limits") or {}
        most = limits.get("max_epsilon")
        return (float(most), float(limits.get("delta", 0.0))) if most is not None else None

    @property
    def records(self) -> int | None:
        """How many it told; None where it does not share it."""
        told = self._asked.get("records")
        return int(told) if told is not None else None

    @property
    def version(self) -> str:
        """Of its kit, by its last answer."""
        return str(self.kit.seen.get("kit", ""))

    @property
    def connection(self) -> str:
        """How its orders travel, in words; "" where no way leads to it."""
        via = self.kit.connection.get("via", "folder" if self.kit.exchange else "")
        if via == "globus":
            return f"through Globus Compute, to the endpoint {self.kit.connection.get('endpoint_name', '')}".rstrip()
        return {"folder": "as files in the exchange folder", HERE: "to a process of this machine"}.get(via, "")

    @property
    def _asked(self) -> dict[str, Any]:
        return self.kit.request or {}


def of(federation: Federation, kits: SiteKits) -> dict[str, JoinedSite]:
    """Name → site, by its newest kit; also of sites that have left, were refused or revoked."""
    found: dict[str, JoinedSite] = {}
    for kit in kits.kits(federation.name):
        found.setdefault(kit.site, look(kit))
    return found


def look(kit: SiteKit) -> JoinedSite:
    """One kit's site now."""
    lives = kit.exchange and kit.state == "approved" and kit.connection.get("via") != HERE
    return JoinedSite(kit, _alive(kit) if lives else None, time.time())


def asking(kits: SiteKits, federation: str | None = None) -> list[SiteKit]:
    """Kits whose sites wait for the operator's word, the newest first."""
    return [kit for kit in kits.kits(federation) if kit.state == "requested"]


def absent(seen: Overview, kits: SiteKits) -> list[JoinedSite]:
    """Sites of other machines that a run awaits, and that do not show that they are there."""
    awaited = {site.name for site in seen.sites if site.open and not site.by_server}
    newest: dict[str, JoinedSite] = {}
    for kit in kits.kits(seen.run.name):
        if kit.site in awaited:
            newest.setdefault(kit.site, look(kit))
    return [site for site in newest.values() if not site.served_here and site.state != ONLINE]


def _alive(kit: SiteKit) -> Alive | None:
    """What lies in the folder. What the site wrote is taken for no more than words and numbers."""
    try:
        # the site may write anything there: nothing is followed, and nothing is waited for
        descriptor = os.open(messengers.place(kit, "site", "alive.json"), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                return None
            data, came = file.read(_MOST + 1), state.st_mtime
    except OSError:
        return None
    try:
        told = json.loads(data) if len(data) <= _MOST else {}
        doing = told.get("doing") or {}
        counts = site_words.count(doing.get("done")), site_words.count(doing.get("of"))
        return Alive(came, told.get("paused") is True, site_words.line(doing.get("phase", ""), 40), *counts)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Alive(came)
