"""What the pages know of a site of another machine: its states in their order, signs of life of every kind, what it consented to."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cafe_kit.enrolment import Limits
from cafe_kit.errors import CafeError

from pipeline import enrolling, federations, joined_sites, messengers
from pipeline.federations import Federation
from pipeline.joined_sites import JoinedSite
from tests.test_enrolling import Site, at_once


@pytest.fixture
def federation(cafe_home: Path) -> Federation:
    made = federations.create("clinics", "classification", "messages to a clinic")
    return federations.save("clinics", {**made.data, "task": {**made.data["task"], "labels": ["billing", "records"]}})


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture
def site(federation: Federation, shared: Path) -> Site:
    return Site(enrolling.issue("clinics", "hpc", "gpu", exchange=shared))


def _now(name: str = "hpc") -> JoinedSite:
    return joined_sites.of(federations.get("clinics"), enrolling.store())[name]


def _joins(site: Site, file: Path, **changes: object) -> None:
    enrolling.receive(site.ask(file, **changes))
    enrolling.approve(site.info.serial, site.words, "ada")


def _alive(**told: object) -> Path:
    path = messengers.place(_now().kit, "site", "alive.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"time": 0.0, "kit": "1", "paused": False} | told))
    return path


def _sites() -> list[dict[str, object]]:
    return federations.get("clinics").data["sites"]


def test_from_the_kit_to_the_end_every_state_has_its_word(site: Site, tmp_path: Path) -> None:
    assert (_now().state, _now().open, _now().records, _now().limit) == ("Not joined yet", True, None, None)
    assert replace(_now(), now=_now().kit.expires + 1).state == "Kit expired"
    enrolling.receive(site.ask(tmp_path / "r"))
    assert _now().state == "Waits for you" and [kit.site for kit in joined_sites.asking(enrolling.store())] == ["hpc"]
    enrolling.approve(site.info.serial, site.words)
    assert (_now().state, _now().records, _now().limit) == ("Joined", 2000, (3.0, 1e-5)) and not joined_sites.asking(enrolling.store())
    _alive()
    assert _now().state == "Online"
    _alive(paused=True)
    assert _now().state == "Paused by the site"
    enrolling.revoke(site.info.serial)
    assert (_now().state, _now().open) == ("Revoked", False)


def test_a_refusal_and_a_leaving(site: Site, tmp_path: Path) -> None:
    enrolling.receive(site.ask(tmp_path / "r"))
    enrolling.refuse(site.info.serial, "no")
    assert _now().state == "Refused"
    second = Site(enrolling.issue("clinics", "hpc", "gpu"))
    _joins(second, tmp_path / "s")
    enrolling.store().leave(second.info.serial, time.time())
    assert _now().state == "Left" and _now().connection == ""


def test_a_site_that_was_silent_for_half_a_minute_is_not_online(site: Site, tmp_path: Path) -> None:
    _joins(site, tmp_path / "r")
    file = _alive(doing={"order_hash": "a", "phase": "train", "done": 3, "of": 9})
    assert _now().doing == "train, 3 of 9"
    then = time.time() - 31
    os.utime(file, (then, then))
    assert (_now().state, _now().doing) == ("Last heard", "") and abs((_now().heard or 0.0) - then) < 1
    enrolling.store().saw(site.info.serial, {"time": then + 20, "kit": "1.2"})
    assert abs((_now().heard or 0.0) - then - 20) < 1 and _now().version == "1.2"


def _not_json(file: Path) -> None:
    file.write_bytes(b"{")


def _odd(file: Path) -> None:
    file.write_text('{"paused": "yes", "doing": [1]}')


def _large(file: Path) -> None:
    file.write_text(json.dumps({"paused": True, "more": "x" * 5000}))


@pytest.mark.parametrize("spoil", [_not_json, _odd, _large])
def test_a_sign_of_life_that_is_no_document_is_only_a_sign_of_life(site: Site, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    _joins(site, tmp_path / "r")
    spoil(_alive())
    assert (_now().state, _now().doing) == ("Online", "")


def test_no_file_of_a_site_is_followed_or_waited_for(site: Site, tmp_path: Path) -> None:
    _joins(site, tmp_path / "r")
    file = _alive()
    file.unlink()
    file.symlink_to(federations.get("clinics").folder / federations.FILE)
    assert _now().state == "Joined"
    file.unlink()
    os.mkfifo(file)
    assert _now().state == "Joined"


def test_a_site_may_set_no_limit_and_tell_no_number(site: Site, tmp_path: Path) -> None:
    _joins(site, tmp_path / "r", limits=Limits(max_epsilon=None), records=None)
    assert (_now().limit, _now().records) == (None, None)


def test_the_draft_has_exactly_the_sites_that_were_let_in(site: Site, tmp_path: Path) -> None:
    assert _sites() == []
    _joins(site, tmp_path / "r")
    enrolling.approve(site.info.serial, site.words)
    assert _sites() == [{"name": "hpc", "kind": "gpu"}]
    enrolling.revoke(site.info.serial)
    assert _sites() == []


def test_a_site_of_this_machine_keeps_its_name(site: Site, tmp_path: Path) -> None:
    data = tmp_path / "a.csv"
    data.write_text("text,label\na,billing\n")
    federations.add_site("clinics", {"name": "HPC", "kind": "gpu", "data": str(data)})
    with pytest.raises(CafeError, match="CAFE-602"):
        _joins(site, tmp_path / "r")
    enrolling.revoke(site.info.serial)
    assert [one["name"] for one in _sites()] == ["HPC"]
    federations.remove_joined_site("clinics", "HPC")
    assert [one["name"] for one in _sites()] == ["HPC"]


def test_two_sites_let_in_at_once_are_both_there(site: Site, shared: Path, tmp_path: Path) -> None:
    other = Site(enrolling.issue("clinics", "ward", "gpu", exchange=shared))
    for number, one in enumerate((site, other)):
        enrolling.receive(one.ask(tmp_path / str(number)))
    at_once(*(lambda one=one: enrolling.approve(one.info.serial, one.words) for one in (site, other)))
    assert sorted(str(one["name"]) for one in _sites()) == ["hpc", "ward"]
