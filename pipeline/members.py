"""Whether the people behind a joined site still take part: the members of the federation's Globus group, where it has one.

Knows who a kit was issued to, and what the group said last. An answer is good for a minute, for all processes of this home. Where Globus
does not answer, a site goes on for one round on what was known (of the last day), and is refused from the next round on.
"""

from __future__ import annotations

import fcntl
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError

from pipeline import groups
from pipeline.home import home
from server_store.blobs import write_whole
from server_store.site_kits import SiteKit, SiteKits

FRESH_S = 60.0  # how long an answer of the group, or its silence, is taken for true
KNOWN_S = 86400.0  # an older answer is no reason to go on while the group is silent


def check(kit: SiteKit, moment: str) -> None:
    """Whether the site may take part in a round; called again within the round it says the same.

    moment: names the round, so that the silence of Globus is borne for one.

    Raises:
        CafeError: CAFE-197 for a site whose member is not (or no longer) active, or that was issued to nobody; 196 where Globus is silent
            for longer than one round.
    """
    here = home()
    if groups.of(here, kit.federation) is None:
        return
    member = kit.connection.get("member")
    if not member:
        raise CafeError(
            "CAFE-197",
            f"{kit.site!r} was issued to nobody of the federation's Globus group.",
            f"Invite its admin, then tie the site to him: `cafe members invite`, `cafe members bind {kit.site}`.",
        )
    with _asking(here, kit.federation) as known:
        silent = _look(here, kit.federation, known)
        if silent:
            _bear(kit, moment, known, silent)
        else:
            known["borne"].pop(kit.serial, None)
    if not _is_active(member, known):
        raise CafeError(
            "CAFE-197",
            f"{member['email']} is not an active member of the federation's Globus group, so {kit.site!r} is not asked.",
            "If it is meant so, revoke the kit; else let him accept the invitation: `cafe members list` shows who has.",
        )


def bind(serial: str, name: str) -> SiteKit:
    """The kit is issued to this member of the group. Raises as ``named``; StoreError CAFE-147."""
    kits = SiteKits(home() / "store.db")
    try:
        kit = kits.kit(serial)
        return kits.connect(serial, {**kit.connection, "member": named(kit.federation, name)})
    finally:
        kits.close()


def named(federation: str, name: str) -> dict[str, str]:
    """A member of the federation's group, invited or active, as a kit notes him; ``name``: his address, username or identity.

    Raises:
        CafeError: CAFE-194 to 196; CAFE-198 for somebody who is not in the group.
    """
    for one in groups.members(home(), federation):
        if one.is_called(name) and one.status in (groups.ACTIVE, groups.INVITED):
            return {"identity_id": one.identity, "email": one.email or one.username}
    raise CafeError("CAFE-198", f"{name[:80]!r} is not in the group of {federation!r}.", "Invite him first: `cafe members invite`.")


def sites_of(federation: str, person: groups.Member) -> list[str]:
    """The sites whose kits were issued to this member and are good, by name."""
    mails = {person.email.lower(), person.username.lower()} - {""}
    issued = [(kit.site, kit.connection["member"]) for kit in _good(federation) if kit.connection.get("member")]
    return [site for site, member in issued if member["identity_id"] == person.identity or member["email"].lower() in mails]


def untied(federation: str) -> dict[str, str]:
    """Sites whose kits are good and were issued to nobody: name and serial."""
    return {kit.site: kit.serial for kit in _good(federation) if not kit.connection.get("member")}


def _good(federation: str) -> list[SiteKit]:
    kits = SiteKits(home() / "store.db")
    try:
        return [kit for kit in kits.kits(federation) if kit.state in ("issued", "requested", "approved")]
    finally:
        kits.close()


def remove(federation: str, name: str) -> groups.Member:
    """Take somebody out of the group; his site is refused from now on, without waiting for a minute. Raises as ``groups.remove``."""
    gone = groups.remove(home(), federation, name)
    forget(federation)
    return gone


def forget(federation: str) -> None:
    """Ask the group anew at the next look."""
    with _asking(home(), federation) as known:
        known["looked"] = 0.0


def silence(federation: str) -> str:
    """A sentence where Globus did not answer at the last look; else "". It asks nobody."""
    known = _read(home() / "groups" / f"{federation}.known")
    since = time.strftime("%d %b %H:%M", time.localtime(known["heard"])) if known["heard"] else "never"
    return f"{known['silent']} The group was last heard: {since}." if known["silent"] else ""


def _look(here: Path, federation: str, known: dict[str, Any]) -> str:
    """Ask the group, if its last answer is not of this minute. Returns why it is silent; "" where it answered."""
    now = time.time()
    if not now - FRESH_S < known["looked"] <= now:
        try:
            people = groups.members(here, federation)
            known |= {"heard": now, "silent": "", "active": [[one.identity, one.email.lower()] for one in people if one.active]}
        except CafeError as error:
            known["silent"] = str(error)
        known["looked"] = now
    return str(known["silent"])


def _is_active(member: dict[str, str], known: dict[str, Any]) -> bool:
    """By his identity; or by the address of his invitation, which he may have accepted with another of his identities."""
    return any(identity == member["identity_id"] or (email and email == member["email"].lower()) for identity, email in known["active"])


def _bear(kit: SiteKit, moment: str, known: dict[str, Any], silent: str) -> None:
    """The group is silent: this round goes on as it was known, the next does not."""
    borne = known["borne"].setdefault(kit.serial, moment)
    if borne != moment or time.time() - known["heard"] > KNOWN_S:
        raise CafeError(
            "CAFE-196",
            f"Whether {kit.site!r} still takes part cannot be asked: its federation's Globus group does not answer. {silent}",
            "When Globus answers again, resume the run: `cafe members list` shows whether it does.",
        )
    logging.getLogger(__name__).warning("site %s goes on for this round unasked: %s", kit.site, silent)


@contextmanager
def _asking(here: Path, federation: str) -> Iterator[dict[str, Any]]:
    """What the group said last, shared by the processes of this home; one of them asks, the others wait for the answer."""
    folder = here / "groups"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"{federation}.known"
    with (folder / f".{federation}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = _read(file)
        before = json.dumps(known)
        try:
            yield known
        finally:
            if json.dumps(known) != before:
                write_whole(file, json.dumps(known).encode())


def _read(file: Path) -> dict[str, Any]:
    """Nothing is known where nothing can be read: then the group is asked."""
    known: dict[str, Any] = {"looked": 0.0, "heard": 0.0, "silent": "", "active": [], "borne": {}}
    with suppress(FileNotFoundError, ValueError, TypeError):
        known |= json.loads(file.read_text(encoding="utf-8"))
    return known
