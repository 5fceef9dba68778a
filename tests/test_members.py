"""Only sites of active members take part: looked up at each round, remembered for a minute, and for one round while Globus is silent."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError
from click.testing import Result
from typer.testing import CliRunner

from pipeline import enrolling, federations, groups, members
from pipeline.cli import app
from server_store.errors import StoreError
from server_store.site_kits import SiteKit, SiteKits
from tests.globus_auth_stand_in import Person
from tests.globus_groups_stand_in import Globus, globus_at, signs_in


@pytest.fixture
def globus(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    with globus_at(cafe_home, monkeypatch) as service:
        monkeypatch.setenv("GLOBUS_SDK_HTTP_TIMEOUT", "1")
        yield service


@pytest.fixture
def group(globus: Globus, cafe_home: Path) -> str:
    """The group of the federation ``clinic`` with an active member, Bob; returns its id."""
    ada = signs_in(globus, cafe_home, "ada@uni.example")
    made = groups.create(cafe_home, "clinic", ada.id)
    groups.invite(cafe_home, "clinic", "bob@hospital.example")
    globus.accepts(made.id, "bob@hospital.example")
    return made.id


def a_kit(home: Path, site: str = "north", federation: str = "clinic") -> SiteKit:
    kits = SiteKits(home / "store.db")
    kits.issue(SiteKit(f"{site}-serial", federation, site, "cpu", 1.0, 9e9, "issued", "00", "", ""))
    kit = kits.connect(f"{site}-serial", {"via": "folder"})
    kits.close()
    return kit


def looks(globus: Globus, group: str) -> int:
    """How often the group was asked for its members."""
    return sum(path == f"/v2/groups/{group}" and method == "GET" for method, path in globus.requests)


def minute_passes(home: Path) -> None:
    """What was heard is older now."""
    file = home / "groups" / "clinic.known"
    known = json.loads(file.read_text())
    known["looked"] -= members.FRESH_S + 1
    file.write_text(json.dumps(known))


def test_a_federation_without_a_group_asks_nobody(globus: Globus, cafe_home: Path) -> None:
    members.check(a_kit(cafe_home), "r1")
    assert globus.requests == []


def test_an_active_member_takes_part_and_one_look_serves_a_minute(globus: Globus, cafe_home: Path, group: str) -> None:
    kit = members.bind(a_kit(cafe_home).serial, "bob@hospital.example")
    assert kit.connection == {
        "via": "folder", "member": {"identity_id": globus.find("bob@hospital.example").id, "email": "bob@hospital.example"}  # type: ignore[union-attr]
    }  # fmt: skip
    before = looks(globus, group)
    for round in range(5):
        members.check(kit, f"r{round}")
    assert looks(globus, group) == before + 1
    minute_passes(cafe_home)
    members.check(kit, "r6")
    assert looks(globus, group) == before + 2


def test_a_site_of_nobody_or_of_somebody_who_has_not_accepted_is_refused(globus: Globus, cafe_home: Path, group: str) -> None:
    kit = a_kit(cafe_home)
    with pytest.raises(CafeError, match=r"CAFE-197.*issued to nobody"):
        members.check(kit, "r1")
    with pytest.raises(CafeError, match="CAFE-198"):
        members.bind(kit.serial, "stranger@lab.example")
    with pytest.raises(StoreError, match="CAFE-147"):
        members.bind("no-serial", "bob@hospital.example")
    groups.invite(cafe_home, "clinic", "eve@lab.example")
    kit = members.bind(kit.serial, "eve@lab.example")
    with pytest.raises(CafeError, match=r"CAFE-197.*eve@lab\.example"):
        members.check(kit, "r1")
    globus.accepts(group, "eve@lab.example")
    minute_passes(cafe_home)
    members.check(kit, "r2")


def cafe(*words: str) -> Result:
    return CliRunner().invoke(app, ["site", "add", "clinic", *words, "--kind", "gpu"], catch_exceptions=True)


@pytest.mark.parametrize("by", ["address", "identity"])
def test_a_kit_is_made_for_a_member_in_one_step(globus: Globus, cafe_home: Path, group: str, by: str) -> None:
    made = federations.create("clinic", "classification", "messages to a clinic")
    federations.save("clinic", {**made.data, "task": {**made.data["task"], "labels": ["billing", "records"]}})
    bob = globus.find("bob@hospital.example").id  # type: ignore[union-attr]
    done = cafe("north", "--member", "bob@hospital.example" if by == "address" else bob)
    assert done.exit_code == 0 and "Issued to    bob@hospital.example" in done.output, done.output
    kits = SiteKits(cafe_home / "store.db")
    (kit,) = kits.kits("clinic")
    other = a_kit(cafe_home, "south")
    assert kit.connection["member"] == members.bind(other.serial, bob).connection["member"], "as bind does it afterwards"
    members.check(kit, "r1")
    (person,) = [one for one in groups.members(cafe_home, "clinic") if one.is_called(bob)]
    assert set(members.sites_of("clinic", person)) == {"north", "south"}
    refused = cafe("east", "--member", "stranger@lab.example")
    assert isinstance(refused.exception, CafeError) and refused.exception.code == "CAFE-198"
    assert {one.site for one in kits.kits("clinic")} == {"north", "south"} and len(list((cafe_home / "kits").rglob("*.zip"))) == 1
    assert cafe("west").exit_code == 0 and members.untied("clinic") == {"west": kits.kits("clinic")[0].serial}
    kits.close()


def test_without_a_group_nobody_can_answer_for_a_site(globus: Globus, cafe_home: Path) -> None:
    federations.create("clinic", "classification", "messages to a clinic")
    refused = cafe("north", "--member", "bob@hospital.example")
    assert isinstance(refused.exception, CafeError) and refused.exception.code == "CAFE-198" and "no Globus group" in str(refused.exception)
    assert not enrolling.listed("clinic")


def test_a_member_who_is_removed_here_is_refused_at_once_and_one_who_leaves_within_a_minute(
    globus: Globus, cafe_home: Path, group: str
) -> None:
    kit = members.bind(a_kit(cafe_home).serial, "bob@hospital.example")
    members.check(kit, "r1")
    globus.leaves(group, "bob@hospital.example")
    members.check(kit, "r2")  # heard less than a minute ago
    minute_passes(cafe_home)
    with pytest.raises(CafeError, match="CAFE-197"):
        members.check(kit, "r3")

    groups.invite(cafe_home, "clinic", "bob@hospital.example")
    globus.accepts(group, "bob@hospital.example")
    members.forget("clinic")
    members.check(kit, "r4")
    members.remove("clinic", "bob@hospital.example")
    with pytest.raises(CafeError, match="CAFE-197"):
        members.check(kit, "r5")


def test_who_accepted_with_another_of_his_identities_is_the_same_member(globus: Globus, cafe_home: Path, group: str) -> None:
    kit = members.bind(a_kit(cafe_home).serial, "bob@hospital.example")
    (found,) = [one for one in globus.groups if one.id == group]
    other = Person("bob@home.example")
    globus.people.append(other)
    membership = found.members.pop(globus.find("bob@hospital.example").id)  # type: ignore[union-attr]
    found.members[other.id] = {**membership, "identity_id": other.id, "username": other.username}
    members.check(kit, "r1")
    found.members[other.id]["invite_email_address"] = None
    minute_passes(cafe_home)
    with pytest.raises(CafeError, match="CAFE-197"):
        members.check(kit, "r2")


def test_the_silence_of_globus_is_borne_for_one_round_and_said(
    globus: Globus, cafe_home: Path, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    kit = members.bind(a_kit(cafe_home).serial, "bob@hospital.example")
    other = members.bind(a_kit(cafe_home, "south").serial, "bob@hospital.example")
    members.check(kit, "r1")
    globus.stop()
    members.check(kit, "r2")  # of this minute
    minute_passes(cafe_home)
    with caplog.at_level(logging.WARNING):
        members.check(kit, "r3")
    assert "north goes on for this round" in caplog.text and "CAFE-196" in caplog.text
    assert "CAFE-196" in members.silence("clinic")
    members.check(kit, "r3")  # sent once more in the same round
    members.check(other, "r3")
    for later in ("r4", "r5"):
        with pytest.raises(CafeError, match="CAFE-196"):
            members.check(kit, later)
    globus.start()
    minute_passes(cafe_home)
    members.check(kit, "r6")
    assert members.silence("clinic") == ""
    globus.stop()
    minute_passes(cafe_home)
    members.check(kit, "r7")  # another silence, another round


def test_a_silence_is_not_borne_for_who_was_not_active_nor_where_nothing_is_known(globus: Globus, cafe_home: Path, group: str) -> None:
    groups.invite(cafe_home, "clinic", "eve@lab.example")
    eve = members.bind(a_kit(cafe_home, "east").serial, "eve@lab.example")
    bob = members.bind(a_kit(cafe_home).serial, "bob@hospital.example")
    globus.stop()
    with pytest.raises(CafeError, match="CAFE-196"):
        members.check(bob, "r1")  # never heard
    globus.start()
    minute_passes(cafe_home)
    members.check(bob, "r2")
    globus.stop()
    minute_passes(cafe_home)
    with pytest.raises(CafeError, match="CAFE-197"):
        members.check(eve, "r3")


def test_an_answer_of_the_day_before_yesterday_is_no_reason_to_go_on(
    globus: Globus, cafe_home: Path, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = members.bind(a_kit(cafe_home).serial, "bob@hospital.example")
    members.check(kit, "r1")
    globus.stop()
    monkeypatch.setattr(members, "KNOWN_S", 0.0)
    minute_passes(cafe_home)
    time.sleep(0.01)
    with pytest.raises(CafeError, match="CAFE-196"):
        members.check(kit, "r2")


def test_whom_sites_are_issued_to(globus: Globus, cafe_home: Path, group: str) -> None:
    a_kit(cafe_home)
    a_kit(cafe_home, "south")
    a_kit(cafe_home, "bank", "other")
    assert members.untied("clinic") == {"north": "north-serial", "south": "south-serial"}
    members.bind("south-serial", "bob@hospital.example")
    (bob,) = [one for one in groups.members(cafe_home, "clinic") if one.username == "bob@hospital.example"]
    assert members.sites_of("clinic", bob) == ["south"] and list(members.untied("clinic")) == ["north"]


def test_a_damaged_note_of_what_was_heard_only_means_another_look(globus: Globus, cafe_home: Path, group: str) -> None:
    kit = members.bind(a_kit(cafe_home).serial, "bob@hospital.example")
    for damage in ("", "[1]", "7", '{"looked": 9e99, "heard": 9e99}'):
        (cafe_home / "groups" / "clinic.known").write_text(damage)
        members.check(kit, "r1")
