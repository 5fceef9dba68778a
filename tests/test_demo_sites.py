"""The demo's sites join by kit, code, words and approval, as any site; doing it again changes nothing; an interrupted one begins anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from cafe_kit import site_folder

from pipeline import demo_sites, enrolling, federations
from pipeline.federations import Federation

SITES = [("riverside", "cpu"), ("stonegate", "gpu")]


@pytest.fixture
def demo(cafe_home: Path) -> Federation:
    return federations.create_demo()


def test_they_join_with_kits_and_consent(demo: Federation) -> None:
    told: list[tuple[int, int]] = []
    demo_sites.join_all(demo, SITES, lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]
    kits = {kit.site: kit for kit in enrolling.listed("demo")}
    assert {site: (kit.kind, kit.state) for site, kit in kits.items()} == {
        "riverside": ("cpu", "approved"),
        "stonegate": ("gpu", "approved"),
    }
    config = demo_sites.seat_config(kits["riverside"])
    assert config is not None and config.data.path == str(demo.folder / "riverside.jsonl") and config.reach is None
    settings = site_folder.joined(Path(config.home))
    assert settings.site_key == kits["riverside"].site_key and settings.consent.agreed
    assert enrolling.waiting(kits["riverside"].serial).request.records == len((demo.folder / "riverside.jsonl").read_text().splitlines())


def test_twice_is_once(demo: Federation) -> None:
    for _ in range(2):
        demo_sites.join_all(demo, SITES[:1], lambda *_: None)
    assert len(enrolling.listed("demo")) == 1


def test_an_interrupted_joining_begins_anew_with_the_same_key(demo: Federation, cafe_home: Path) -> None:
    demo_sites.join_all(demo, SITES[:1], lambda *_: None)
    (kit,) = enrolling.listed("demo")
    enrolling.revoke(kit.serial, "as if the demo had ended here")
    demo_sites.join_all(demo, SITES[:1], lambda *_: None)
    newest = enrolling.listed("demo")[0]
    assert newest.state == "approved" and newest.serial != kit.serial and newest.site_key == kit.site_key


def test_a_site_that_its_own_admin_starts_is_not_served_here(demo: Federation, tmp_path: Path) -> None:
    demo_sites.join_all(demo, SITES[:1], lambda *_: None)
    enrolling.store().connect(enrolling.listed("demo")[0].serial, {"via": "folder"})
    assert demo_sites.seat_config(enrolling.listed("demo")[0]) is None
