"""The Globus group of a federation over real HTTP: made, chosen, its people invited, listed and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError

from pipeline import federations, globus_login, groups
from pipeline.globus_login import SERVER
from tests.globus_auth_stand_in import Person
from tests.globus_groups_stand_in import Globus, globus_at, own_application, signs_in
from tests.http_stand_in import Fault

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def globus(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    with globus_at(cafe_home, monkeypatch) as service:
        yield service


@pytest.fixture
def ada(globus: Globus, cafe_home: Path) -> Person:
    """The operator, signed in."""
    return signs_in(globus, cafe_home, "ada@uni.example")


def statuses(home: Path) -> dict[str, str]:
    return {one.username: one.status for one in groups.members(home, "clinic")}


def test_a_group_is_made_private_and_closed(globus: Globus, cafe_home: Path, ada: Person) -> None:
    made = groups.create(cafe_home, "clinic", ada.id)
    assert groups.of(cafe_home, "clinic") == made and made.by == ada.id and made.name == "Café au Lait: clinic"
    (group,) = globus.groups
    assert group.policies["group_visibility"] == "private" and group.policies["group_members_visibility"] == "managers"
    assert group.policies["join_requests"] is False and group.policies["is_high_assurance"] is False
    assert statuses(cafe_home) == {"ada@uni.example": "active"}
    with pytest.raises(CafeError, match=r"CAFE-198.*already"):
        groups.create(cafe_home, "clinic", ada.id)
    assert groups.of(cafe_home, "other") is None


def test_people_are_invited_by_mail_accept_and_are_removed(globus: Globus, cafe_home: Path, ada: Person) -> None:
    groups.create(cafe_home, "clinic", ada.id)
    invited = groups.invite(cafe_home, "clinic", " bob@hospital.example ")
    assert (invited.email, invited.status, invited.role) == ("bob@hospital.example", "invited", "member")
    assert globus.mails == ["bob@hospital.example"] and globus.find("bob@hospital.example").status == "unused"  # type: ignore[union-attr]
    globus.accepts(globus.groups[0].id, "bob@hospital.example")
    groups.invite(cafe_home, "clinic", "eve@lab.example")
    assert statuses(cafe_home) == {"ada@uni.example": "active", "bob@hospital.example": "active", "eve@lab.example": "invited"}
    assert [one.username for one in groups.members(cafe_home, "clinic")][-1] == "eve@lab.example"
    gone = groups.remove(cafe_home, "clinic", "BOB@hospital.example")
    assert gone.username == "bob@hospital.example" and statuses(cafe_home)["bob@hospital.example"] == "removed"
    groups.remove(cafe_home, "clinic", "eve@lab.example")  # an invitation is taken back
    with pytest.raises(CafeError, match=r"CAFE-198.*not in the group"):
        groups.remove(cafe_home, "clinic", "bob@hospital.example")


def test_an_error_for_one_person_in_an_answer_with_status_200_is_heard(globus: Globus, cafe_home: Path, ada: Person) -> None:
    groups.create(cafe_home, "clinic", ada.id)
    bob = globus.person("bob@hospital.example")
    globus.no_invitations.add(bob.id)
    with pytest.raises(CafeError, match=r"CAFE-198.*invite not allowed"):
        groups.invite(cafe_home, "clinic", "bob@hospital.example")
    assert "bob@hospital.example" not in statuses(cafe_home)


@pytest.mark.parametrize("address", ["", "bob", "bob@", "bob@host", "a b@c.example", "<script>@c.example", "a@b.example,c@d.example"])
def test_what_is_no_address_is_not_sent_anywhere(globus: Globus, cafe_home: Path, ada: Person, address: str) -> None:
    groups.create(cafe_home, "clinic", ada.id)
    asked = len(globus.requests)
    with pytest.raises(CafeError, match="CAFE-198"):
        groups.invite(cafe_home, "clinic", address)
    assert len(globus.requests) == asked


def test_a_group_that_exists_is_chosen_by_its_manager_only(globus: Globus, cafe_home: Path, ada: Person) -> None:
    made = groups.create(cafe_home, "clinic", ada.id)
    eve = signs_in(globus, cafe_home, "eve@lab.example")
    assert groups.mine(cafe_home, eve.id) == []
    with pytest.raises(CafeError, match="CAFE-195"):
        groups.choose(cafe_home, "bank", made.id, eve.id)
    groups.invite(cafe_home, "clinic", "eve@lab.example")
    globus.accepts(made.id, "eve@lab.example")
    with pytest.raises(CafeError, match=r"CAFE-19[58]"):
        groups.choose(cafe_home, "bank", made.id, eve.id)
    assert groups.of(cafe_home, "bank") is None
    assert [one.id for one in groups.mine(cafe_home, ada.id)] == [made.id]
    assert groups.choose(cafe_home, "bank", made.id, ada.id) == groups.of(cafe_home, "bank")
    groups.forget(cafe_home, "bank")
    assert groups.of(cafe_home, "bank") is None and len(globus.groups) == 1


def test_the_servers_own_application_runs_the_group_without_anybody_being_signed_in(globus: Globus, cafe_home: Path, ada: Person) -> None:
    application = own_application(globus, cafe_home).id
    made = groups.create(cafe_home, "clinic", ada.id)
    assert made.by == SERVER
    assert globus.groups[0].members[application]["role"] == "admin"
    assert globus.groups[0].members[ada.id]["role"] == "admin" and globus.groups[0].members[ada.id]["status"] == "invited"
    globus_login.sign_out(cafe_home, ada.id)
    groups.invite(cafe_home, "clinic", "bob@hospital.example")
    assert statuses(cafe_home) == {"ada@uni.example": "invited", "bob@hospital.example": "invited"}  # the application is no person


def test_who_lost_the_right_or_the_way_is_told(globus: Globus, cafe_home: Path, ada: Person) -> None:
    made = groups.create(cafe_home, "clinic", ada.id)
    globus.faults.append(Fault("/v2/groups", 503, times=2))
    with pytest.raises(CafeError, match="CAFE-196"):
        groups.members(cafe_home, "clinic")
    globus.groups[0].members[ada.id]["role"] = "member"
    with pytest.raises(CafeError, match="CAFE-195"):
        groups.invite(cafe_home, "clinic", "bob@hospital.example")
    globus_login.sign_out(cafe_home, ada.id)
    with pytest.raises(CafeError, match="CAFE-195"):
        groups.members(cafe_home, "clinic")
    (cafe_home / "groups" / "clinic.json").write_text("{}")
    with pytest.raises(CafeError, match="CAFE-198"):
        groups.of(cafe_home, "clinic")
    with pytest.raises(CafeError, match="CAFE-198"):
        groups.of(cafe_home, "../clinic")
    assert made.id


def cafe(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words], cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ
    )
    return done.returncode, done.stdout + done.stderr


def test_the_commands_about_members(globus: Globus, cafe_home: Path, ada: Person) -> None:
    federations.create("clinic", "classification", "what a patient wants")
    assert cafe("members", "group", "nowhere")[0] == 2
    code, told = cafe("members", "group", "clinic")
    assert code == 0 and globus.groups[0].id in told
    code, told = cafe("members", "invite", "clinic", "bob@hospital.example", "--format", "json")
    assert code == 0 and json.loads(told)["status"] == "invited"
    globus.accepts(globus.groups[0].id, "bob@hospital.example")
    code, told = cafe("members", "list", "clinic")
    assert code == 0 and "bob@hospital.example" in told and "active" in told
    code, told = cafe("members", "remove", "clinic", "bob@hospital.example", "--yes")
    assert code == 0 and "removed" in told
    found = json.loads(cafe("members", "list", "clinic", "--format", "json")[1])
    assert [one["status"] for one in found if one["username"] == "bob@hospital.example"] == ["removed"]
    code, told = cafe("members", "group", "clinic", "--forget", "--yes")
    assert code == 0 and groups.of(cafe_home, "clinic") is None
