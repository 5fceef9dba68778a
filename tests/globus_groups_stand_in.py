"""A stand-in of Globus Groups beside the one of Globus Auth: groups, policies, invitations, roles, memberships.

Errors of single identities come in an answer with HTTP 200, as the real service does it. Knows who may do what: admins and managers.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import globus_login, globus_settings
from pipeline.globus_settings import GlobusSettings
from pipeline.vault import Vault
from tests.globus_auth_stand_in import Application, GlobusAuth, Person
from tests.http_stand_in import Answer, Refused, Request

ALL = "urn:globus:auth:scope:groups.api.globus.org:all"
_AFTER = {"invite": "invited", "add": "active", "accept": "active", "decline": "declined", "remove": "removed", "leave": "left"}


@dataclass
class Group:
    """One group; ``members`` by identity id."""

    name: str
    description: str = ""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    policies: dict[str, Any] = field(default_factory=dict)
    members: dict[str, dict[str, Any]] = field(default_factory=dict)


class Globus(GlobusAuth):
    """Auth and Groups on one port. ``no_invitations``: identities whose owners do not want to be asked. ``mails``: who was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[Group] = []
        self.no_invitations: set[str] = set()
        self.mails: list[str] = []
        self.calls += [
            ("GET", "/v2/groups/my_groups", self._my_groups),
            ("POST", "/v2/groups", self._create),
            ("PUT", "/v2/groups/", self._policies),
            ("POST", "/v2/groups/", self._act),
            ("GET", "/v2/groups/", self._group),
        ]

    def accepts(self, group: str, username: str) -> None:
        """As the person does it on Globus's own page."""
        person = self.find(username)
        assert person is not None
        member = self._of(group).members[person.id]
        assert member["status"] == "invited", member
        member["status"], person.status = "active", "used"

    def leaves(self, group: str, username: str) -> None:
        person = self.find(username)
        assert person is not None
        self._of(group).members[person.id]["status"] = "left"

    def _of(self, group: str) -> Group:
        found = next((one for one in self.groups if one.id == group), None)
        if found is None:
            raise Refused(404, "NOT_FOUND", "no such group")
        return found

    def _create(self, asked: Request) -> Answer:
        owner = self.caller(asked, ALL).owner
        group = Group(asked.json["name"], asked.json.get("description") or "")
        self.groups.append(group)
        self._put(group, owner, "admin", "active")
        return self._document(group, owner)

    def _my_groups(self, asked: Request) -> Any:
        owner = self.caller(asked, ALL).owner
        wanted = (asked.query.get("statuses") or "active").split(",")
        return [self._document(one, owner) for one in self.groups if one.members.get(owner, {}).get("status") in wanted]

    def _group(self, asked: Request) -> Answer:
        owner = self.caller(asked).owner
        group = self._of(asked.path.split("/")[3])
        if owner not in group.members:
            raise Refused(404, "NOT_FOUND", "no such group")
        document = self._document(group, owner)
        if asked.query.get("include") == "memberships":
            if group.members[owner]["role"] == "member" and group.policies.get("group_members_visibility") != "members":
                raise Refused(403, "FORBIDDEN", "members are visible to managers")
            document["memberships"] = list(group.members.values())
        return document

    def _policies(self, asked: Request) -> Answer:
        group = self._managed(asked)
        group.policies = asked.json
        return group.policies

    def _act(self, asked: Request) -> Answer:
        """A batch of actions; what cannot be done for one identity is said in ``errors``, and the others are done."""
        group = self._managed(asked)
        answer: dict[str, Any] = {}
        for action, wishes in asked.json.items():
            for wish in wishes:
                try:
                    answer.setdefault(action, []).append(self._one_act(group, action, wish))
                except Refused as no:
                    told = {"code": no.code, "detail": no.detail, "identity_id": wish["identity_id"]}
                    answer.setdefault("errors", {}).setdefault(action, []).append(told)
        return answer

    def _one_act(self, group: Group, action: str, wish: dict[str, Any]) -> dict[str, Any]:
        identity, member = wish["identity_id"], group.members.get(wish["identity_id"], {})
        if self.find(identity) is None and identity not in {one.id for one in self.applications}:
            raise Refused(400, "IDENTITY_NOT_FOUND", "no such identity")
        if action == "invite" and (identity in self.no_invitations or member.get("status") == "active"):
            raise Refused(400, "INVITE_NOT_ALLOWED", "this identity cannot be invited")
        if action == "remove" and member.get("status") not in ("active", "invited", "pending"):
            raise Refused(400, "NOT_A_MEMBER", "not a member")
        mail = wish.get("invite_email_address")
        if action == "invite" and mail:
            self.mails.append(mail)
        role = wish.get("role") or member.get("role", "member")
        return self._put(group, identity, role, _AFTER[action], mail or member.get("invite_email_address"))

    def _managed(self, asked: Request) -> Group:
        group, owner = self._of(asked.path.split("/")[3]), self.caller(asked, ALL).owner
        if group.members.get(owner, {}).get("role") not in ("admin", "manager"):
            raise Refused(403, "FORBIDDEN", "not a manager of this group")
        return group

    def _put(self, group: Group, identity: str, role: str, status: str, mail: str | None = None) -> dict[str, Any]:
        person = self.find(identity)
        username = person.username if person else f"{identity}@clients.auth.globus.org"
        group.members[identity] = {
            "group_id": group.id, "identity_id": identity, "username": username, "role": role, "status": status,
            "invite_email_address": mail,
        }  # fmt: skip
        return group.members[identity]

    def _document(self, group: Group, viewer: str) -> dict[str, Any]:
        mine = [group.members[viewer]] if viewer in group.members else []
        return {"id": group.id, "name": group.name, "description": group.description, "policies": group.policies, "my_memberships": mine}


@contextmanager
def globus_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    """The service for this process and those that it starts; the home knows a public application of it."""
    with Globus() as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        globus_settings.write(home, GlobusSettings(public=service.application("Café au Lait, by code").id))
        yield service


def own_application(service: Globus, home: Path, redirect: str = "") -> Application:
    """The server's own application, with its secret in the vault."""
    own = service.application("Café au Lait, server", confidential=True, redirects=(redirect,) if redirect else ())
    globus_settings.write(home, replace(globus_settings.read(home), confidential=own.id, redirect=redirect))
    Vault(home).put(globus_settings.application_secret(own.id), {"client_secret": own.secret})
    return own


def signs_in(service: Globus, home: Path, username: str) -> Person:
    """Somebody new, by code, at a terminal."""
    person = service.person(username)
    flow = globus_login.begin(home)
    globus_login.finish(home, flow.id, service.code_for(flow.url, person))
    globus_settings.remember_account(home, person.id)
    return person
