"""The Globus group of a federation: made or chosen once, its people invited by e-mail, looked at, removed.

Knows ``CAFE_HOME/groups`` (which group a federation has, and in whose name it is looked at) and the Groups service. Does not know sites:
what a membership means for one is in ``members.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError
from globus_sdk import GroupsClient, GroupsManager

from pipeline import globus_login, globus_settings
from pipeline.globus_login import SERVER
from server_store.blobs import write_whole

ACTIVE, INVITED = "active", "invited"
_GONE = ("removed", "left", "declined", "rejected")
_MAIL = re.compile(r"[^\s@<>\"'`|\\,]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_FEDERATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Group:
    """``by``: the identity in whose name it is looked at; SERVER for this server's own application."""

    id: str
    name: str
    by: str = SERVER


@dataclass(frozen=True)
class Member:
    """Somebody in a group, or asked into it. ``email``: where the invitation went. ``status`` is Globus's word."""

    identity: str
    username: str
    email: str
    role: str
    status: str

    @property
    def active(self) -> bool:
        return self.status == ACTIVE

    def is_called(self, name: str) -> bool:
        """By identity id, username, or the address of the invitation."""
        return name.strip().lower() in (self.identity, self.username.lower(), self.email.lower())


def of(home: Path, federation: str) -> Group | None:
    """The group of a federation; None where it has none.

    Raises:
        CafeError: CAFE-198 when what is kept of it cannot be read.
    """
    try:
        found = json.loads(_file(home, federation).read_text(encoding="utf-8"))
        return Group(found["id"], found["name"], found["by"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise CafeError(
            "CAFE-198", f"What is kept of the group of {federation!r} cannot be read.", "Choose the group again: `cafe members group`."
        ) from None


def create(home: Path, federation: str, person: str = "") -> Group:
    """A new group for a federation: by this server's application where there is one, which then runs it; else by ``person``.

    Raises:
        CafeError: CAFE-194, 195, 196; CAFE-198 when the federation has a group.
    """
    if of(home, federation):
        raise CafeError("CAFE-198", f"{federation!r} has a group already.", "`cafe members list` shows it.")
    by = SERVER if globus_settings.read(home).confidential else person
    told = f"People whose sites take part in the federation {federation} (Café au Lait)."
    with globus_login.groups(home, by) as client:
        manager = GroupsManager(client)
        made = manager.create_group(f"Café au Lait: {federation}", told)
        manager.set_group_policies(
            made["id"],
            is_high_assurance=False,
            group_visibility="private",
            group_members_visibility="managers",
            join_requests=False,
            signup_fields=[],
        )
        if by == SERVER and person:  # so that a person can look after it on Globus's own pages, too
            _act(client, made["id"], "invite", {"identity_id": person, "role": "admin"})
    return _keep(home, federation, Group(made["id"], made["name"], by))


def choose(home: Path, federation: str, group: str, person: str = "") -> Group:
    """Take a group that exists, and which ``person`` (else this server's application) may manage.

    Raises:
        CafeError: CAFE-194, 195, 196; CAFE-198 for one who may not look at its members.
    """
    by = person or SERVER
    with globus_login.groups(home, by) as client:
        found = client.get_group(group, include=["memberships"])
        if not any(one.get("role") in ("manager", "admin") and one.get("status") == ACTIVE for one in found.get("my_memberships") or ()):
            raise CafeError("CAFE-198", f"You do not manage the group {found['name']!r}.", "Ask its admin to make you a manager of it.")
    return _keep(home, federation, Group(found["id"], found["name"], by))


def mine(home: Path, person: str) -> list[Group]:
    """The groups that ``person`` may choose from: those that he manages."""
    with globus_login.groups(home, person) as client:
        found = client.get_my_groups(statuses=["active"])
        return [
            Group(one["id"], one["name"], person)
            for one in found
            if any(membership.get("role") in ("manager", "admin") for membership in one.get("my_memberships") or ())
        ]


def forget(home: Path, federation: str) -> None:
    """The federation has no group any more; at Globus nothing changes."""
    _file(home, federation).unlink(missing_ok=True)


def members(home: Path, federation: str) -> list[Member]:
    """Everybody in the group or asked into it, active ones first. Raises CafeError CAFE-194, 195, 196, 198."""
    group = _needed(home, federation)
    with globus_login.groups(home, group.by) as client:
        found = client.get_group(group.id, include=["memberships"]).get("memberships") or ()
    people = [_member(one) for one in found if not _is_application(home, one)]
    return sorted(people, key=lambda one: (one.status in _GONE, not one.active, one.username))


def invite(home: Path, federation: str, email: str) -> Member:
    """Ask somebody in, by an e-mail of Globus. Who has no Globus identity of that name yet gets one that waits for him.

    Raises:
        CafeError: CAFE-194, 195, 196; CAFE-198 for an address that is none, or somebody who cannot be invited.
    """
    group, email = _needed(home, federation), email.strip()
    if not _MAIL.fullmatch(email):
        raise CafeError("CAFE-198", f"{email[:80]!r} is no e-mail address.", "Type it as ada@uni.example.")
    with globus_login.auth(home, group.by) as client:
        found = client.get_identities(usernames=[email], provision=True)["identities"]
    if not found:
        raise CafeError(
            "CAFE-198",
            f"Globus has no identity for {email} and makes none.",
            "Ask which address the person signs in with at app.globus.org.",
        )
    asked = {"identity_id": found[0]["id"], "role": "member", "invite_email_address": email}
    with globus_login.groups(home, group.by) as client:
        return _member({"username": found[0]["username"], **_act(client, group.id, "invite", asked)})


def remove(home: Path, federation: str, name: str) -> Member:
    """Take somebody out, or his invitation back; his site stops at its next round. Raises as ``invite`` does."""
    group = _needed(home, federation)
    found = next((one for one in members(home, federation) if one.is_called(name) and one.status not in _GONE), None)
    if found is None:
        raise CafeError("CAFE-198", f"{name[:80]!r} is not in the group.", "`cafe members list` shows who is.")
    with globus_login.groups(home, group.by) as client:
        _act(client, group.id, "remove", {"identity_id": found.identity})
    return found


def _act(client: GroupsClient, group: str, action: str, what: Mapping[str, str]) -> dict[str, Any]:
    """One action on one membership. What Globus refuses for an identity comes with HTTP 200."""
    answer = client.batch_membership_action(group, {action: [dict(what)]})
    for error in (answer.get("errors") or {}).get(action) or ():
        code = str(error.get("code") or "")
        why = code.lower().replace("_", " ") if re.fullmatch(r"[A-Za-z_]{1,60}", code) else "no reason given"
        raise CafeError(
            "CAFE-198",
            f"Globus does not {action} this person ({why}).",
            "Perhaps he is in the group already, or does not want invitations; he can change that at app.globus.org.",
        )
    done: list[dict[str, Any]] = answer.get(action) or [{}]
    return {**what, **done[0]}


def _member(found: Mapping[str, Any]) -> Member:
    return Member(
        str(found["identity_id"]),
        str(found.get("username") or ""),
        str(found.get("invite_email_address") or ""),
        str(found.get("role") or ""),
        str(found.get("status") or ""),
    )


def _is_application(home: Path, found: Mapping[str, Any]) -> bool:
    """This server itself is no person."""
    return found.get("identity_id") == globus_settings.read(home).confidential


def _needed(home: Path, federation: str) -> Group:
    group = of(home, federation)
    if group is None:
        raise CafeError(
            "CAFE-198", f"{federation!r} has no Globus group.", "Make one: `cafe members group FEDERATION`, or on the page Sites."
        )
    return group


def _keep(home: Path, federation: str, group: Group) -> Group:
    write_whole(_file(home, federation), (json.dumps(asdict(group), indent=1) + "\n").encode())
    return group


def _file(home: Path, federation: str) -> Path:
    if not _FEDERATION.fullmatch(federation):
        raise CafeError("CAFE-198", f"{federation[:60]!r} is no federation's name.", "`cafe members group FEDERATION`.")
    folder = home / "groups"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{federation}.json"
