"""Kits for sites of other machines: who got one, who asks with it, and what the operator decided.

Knows rows and which state follows which, each step in one transaction. Does not know what a request means or whether it is genuine;
whoever calls has checked that. Of the join code it keeps a derived key alone, and that only until the operator has decided.

``issued -> requested -> approved | refused``; ``issued, requested, approved -> revoked``; ``approved -> left``.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from server_store.errors import StoreError
from server_store.store import Store

KitState = Literal["issued", "requested", "approved", "refused", "revoked", "left"]
_COLUMNS = (
    "serial, federation, site, kind, issued, expires, state, code_key, exchange, zip_sha256, "
    "request, site_key, decided, decided_by, reason, downloads, connection, seen"
)
_NEW_KIT = "Make a new kit: `cafe site add`."


@dataclass(frozen=True)
class SiteKit:
    """One kit. ``code_key``: proves the join code, empty once decided. ``request``: the site's document, as it was accepted.

    ``connection``: how orders reach the site (``via`` folder or globus, ``client_id``, ``endpoint_id``), without any secret.
    ``seen``: what the site's last answer said (``time``, ``kit``, ``ledger_head``, ``charges``, ``mu_squared``).
    """

    serial: str
    federation: str
    site: str
    kind: str
    issued: float
    expires: float
    state: KitState
    code_key: str
    exchange: str
    zip_sha256: str
    request: dict[str, Any] | None = None
    site_key: str = ""
    decided: float | None = None
    decided_by: str = ""
    reason: str = ""
    downloads: int = 0
    connection: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)


class SiteKits(Store):
    """The store, with the kits. One instance per thread."""

    def issue(self, kit: SiteKit) -> None:
        """Keep a new kit. One that expired without being used makes room for it. Raises StoreError CAFE-145 for a site that has one."""
        row = (kit.serial, kit.federation, kit.site, kit.kind, kit.issued, kit.expires, kit.code_key, kit.exchange, kit.zip_sha256)
        try:
            with self._transaction():
                self._db.execute(
                    """UPDATE site_kits SET state='revoked', code_key='', decided=?, reason='It expired; a new kit was made.'
                       WHERE federation=? AND site=? COLLATE NOCASE AND state='issued' AND expires<?""",
                    (kit.issued, kit.federation, kit.site, kit.issued),
                )
                self._db.execute(
                    """INSERT INTO site_kits (serial, federation, site, kind, issued, expires, state, code_key, exchange, zip_sha256)
                       VALUES (?,?,?,?,?,?,'issued',?,?,?)""",
                    row,
                )
        except sqlite3.IntegrityError:
            raise _taken(kit.site) from None

    def kit(self, serial: str) -> SiteKit:
        """Raises StoreError CAFE-147 for an unknown serial."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM site_kits WHERE serial=?", (serial,)).fetchone()
        if row is None:
            raise StoreError(
                "CAFE-147", "This server has made no such kit.", "Is it the request of another federation, or was CAFE_HOME another folder?"
            )
        return _kit(row)

    def kits(self, federation: str | None = None) -> list[SiteKit]:
        """All kits, or those of a federation, the newest first."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM site_kits WHERE ?1 IS NULL OR federation=?1 ORDER BY issued DESC, rowid DESC", (federation,)
        )
        return [_kit(row) for row in rows]

    def check_free(self, federation: str, site: str, now: float) -> None:
        """Before a kit is built: that the site has none yet. Raises StoreError CAFE-145."""
        for kit in self.kits(federation):
            used = kit.state in ("requested", "approved") or (kit.state == "issued" and kit.expires >= now)
            if used and kit.site.lower() == site.lower():
                raise _taken(kit.site)

    def request(self, serial: str, site_key: str, request: dict[str, Any], now: float) -> SiteKit:
        """A genuine request came. The same site may ask again until it is decided; then it changes nothing.

        Raises:
            StoreError: CAFE-152 expired, 142 revoked, 143 used by another key, 147 unknown, 149 refused.
        """
        with self._transaction():
            kit = self.kit(serial)
            _check_open(kit, site_key, now)
            if kit.state in ("issued", "requested"):
                self._db.execute(
                    "UPDATE site_kits SET state='requested', site_key=?, request=? WHERE serial=?", (site_key, json.dumps(request), serial)
                )
        return self.kit(serial)

    def approve(self, serial: str, site_key: str, by: str, now: float) -> SiteKit:
        """Let the site with this key in. Of two approvals at once the first is kept, and both are told of it.

        Raises:
            StoreError: CAFE-142, 143, 147, 149; CAFE-146 when there is no request.
        """
        with self._transaction():
            kit = self.kit(serial)
            _check_open(kit, site_key, kit.issued)
            if kit.state not in ("requested", "approved"):
                raise _not_so(kit)
            if kit.state == "requested":
                self._decide(serial, "approved", by, "", now)
        return self.kit(serial)

    def refuse(self, serial: str, by: str, reason: str, now: float) -> SiteKit:
        """Say no to a request. Raises StoreError CAFE-147; CAFE-146 when there is no request that waits."""
        return self._end(serial, ("requested",), "refused", by, reason, now)

    def revoke(self, serial: str, by: str, reason: str, now: float) -> SiteKit:
        """Take a kit back, whether it was used or not. Raises StoreError CAFE-147; CAFE-146 when it has ended already."""
        return self._end(serial, ("issued", "requested", "approved"), "revoked", by, reason, now)

    def leave(self, serial: str, now: float) -> SiteKit:
        """The site itself has left. Raises StoreError CAFE-147; CAFE-146 when it was not in."""
        return self._end(serial, ("approved",), "left", "the site", "", now)

    def connect(self, serial: str, connection: dict[str, Any]) -> SiteKit:
        """Keep how orders reach the site. Raises StoreError CAFE-147."""
        self.kit(serial)
        with self._transaction():
            self._db.execute("UPDATE site_kits SET connection=? WHERE serial=?", (json.dumps(connection), serial))
        return self.kit(serial)

    def settle(self, serial: str, connection: dict[str, Any]) -> None:
        """Keep the connection as the site is told it; of two at once the first counts."""
        with self._transaction():
            if "sealed" not in self.kit(serial).connection:
                self._db.execute("UPDATE site_kits SET connection=? WHERE serial=?", (json.dumps(connection), serial))

    def saw(self, serial: str, seen: dict[str, Any]) -> None:
        """Keep what a site's answer said of itself."""
        with self._transaction():
            self._db.execute("UPDATE site_kits SET seen=? WHERE serial=?", (json.dumps(seen), serial))

    def count_download(self, serial: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE site_kits SET downloads=downloads+1 WHERE serial=?", (serial,))

    def _end(self, serial: str, before: tuple[KitState, ...], after: KitState, by: str, reason: str, now: float) -> SiteKit:
        with self._transaction():
            kit = self.kit(serial)
            if kit.state not in before:
                raise _not_so(kit)
            self._decide(serial, after, by, reason, now)
        return self.kit(serial)

    def _decide(self, serial: str, state: KitState, by: str, reason: str, now: float) -> None:
        """The code has served its purpose, so its key goes too."""
        self._db.execute(
            "UPDATE site_kits SET state=?, decided=?, decided_by=?, reason=?, code_key='' WHERE serial=?", (state, now, by, reason, serial)
        )


def _check_open(kit: SiteKit, site_key: str, now: float) -> None:
    """Whether the site with this key may still speak with this kit."""
    if kit.state in ("revoked", "left"):
        raise StoreError("CAFE-142", f"The kit of {kit.site!r} is no longer valid: it was {_word(kit)}.", _NEW_KIT)
    if kit.state == "refused":
        raise StoreError("CAFE-149", f"The request of {kit.site!r} was refused: {kit.reason}", _NEW_KIT)
    if kit.state == "issued" and now > kit.expires:
        raise StoreError("CAFE-152", f"The kit of {kit.site!r} has expired.", _NEW_KIT)
    if kit.site_key and kit.site_key != site_key:
        raise StoreError(
            "CAFE-143",
            f"The join code of {kit.site!r} was used already, by a site with another key.",
            "Ask the site: if it began anew, revoke this kit and make a new one; if not, somebody else has its code.",
        )


def _taken(site: str) -> StoreError:
    return StoreError("CAFE-145", f"There is a kit for {site!r} already.", f"`cafe site revoke {site}` takes it back, then make a new one.")


def _not_so(kit: SiteKit) -> StoreError:
    return StoreError("CAFE-146", f"That cannot be done with the kit of {kit.site!r}: it is {_word(kit)}.", "See `cafe site list`.")


def _word(kit: SiteKit) -> str:
    return {"issued": "not used yet", "requested": "waiting for a decision", "left": "given up by the site"}.get(kit.state, kit.state)


def _kit(row: tuple[Any, ...]) -> SiteKit:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    assert values["state"] in get_args(KitState)
    read = {name: json.loads(values[name]) if values[name] else None for name in ("request", "connection", "seen")}
    return SiteKit(**{**values, **read})
