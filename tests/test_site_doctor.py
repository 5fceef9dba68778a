"""Which link of the way to a joined site is broken: each is broken once, by itself, and named; a whole chain says so."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cafe_kit.seat import Seat
from cafe_kit.seat_config import SeatConfig

from pipeline import enrolling, federations, globus_compute
from pipeline.site_doctor import Link, broken, diagnose
from pipeline.vault import Vault
from server_store.site_kits import SiteKit, SiteKits
from tests.fakes import TinyEngine, TinyServer
from tests.globus_stand_in import StandIn, stand_in
from tests.joined import Joined
from tests.rabbitmq import free_port
from tests.test_house import ROOT

NAME = "cafe-clinics-north"


def states(links: list[Link]) -> dict[str, str]:
    return {link.name: link.state for link in links}


def named(links: list[Link]) -> tuple[str, str]:
    """The broken link and its code; all before it hold, none after it was tried."""
    found = broken(links)
    assert found is not None and found.hint and found.detail
    at = links.index(found)
    assert all(link.ok for link in links[:at]) and all(link.state == "not tried" for link in links[at + 1 :])
    return found.name, found.code


def known(home: Path, connection: dict[str, str], exchange: str = "", state: str = "approved") -> SiteKit:
    """A kit of the federation "clinics" as far as the store knows it."""
    if not federations.listed():
        made = federations.create("clinics", "classification", "messages to a clinic")
        federations.save("clinics", made.data | {"task": made.data["task"] | {"labels": ["billing", "card"]}})
    with contextlib.closing(SiteKits(home / "store.db")) as kits:
        serial, now = os.urandom(16).hex(), time.time()
        kits.issue(SiteKit(serial, "clinics", "north", "gpu", now, now + 1e5, "issued", "", exchange, "00"))
        if state != "issued":
            kits.request(serial, "ab" * 32, {}, now)
        if state == "approved":
            kits.approve(serial, "ab" * 32, "the test", now)
        return kits.connect(serial, dict(connection))


# A site in a folder


def alive(exchange: Path, kit: SiteKit, seconds_ago: float = 0.0, skew: float = 0.0, text: str = "") -> None:
    path = exchange / f"{kit.serial}.site" / "alive.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text or json.dumps({"time": time.time() - seconds_ago + skew, "kit": "0", "paused": False}))
    os.utime(path, (time.time() - seconds_ago, time.time() - seconds_ago))


def test_the_links_of_a_folder(cafe_home: Path, tmp_path: Path) -> None:
    exchange = tmp_path / "exchange"
    kit = known(cafe_home, {"via": "folder"}, str(exchange))
    assert named(diagnose(kit, cafe_home, 0.2)) == ("exchange folder", "CAFE-169")
    exchange.mkdir()
    assert named(diagnose(kit, cafe_home, 0.2)) == ("sign of life", "CAFE-180")
    for text in ("{", "[]", '{"time": "now"}'):
        alive(exchange, kit, text=text)
        assert named(diagnose(kit, cafe_home, 0.2)) == ("sign of life", "CAFE-180")
    alive(exchange, kit, seconds_ago=300)
    assert named(diagnose(kit, cafe_home, 0.2)) == ("sign of life", "CAFE-180")
    alive(exchange, kit, skew=500)
    assert named(diagnose(kit, cafe_home, 0.2)) == ("sign of life", "CAFE-153")
    alive(exchange, kit)
    assert named(diagnose(kit, cafe_home, 0.2)) == ("round trip", "CAFE-124")  # nobody answers there


def test_a_kit_that_is_not_approved_or_has_no_way(cafe_home: Path) -> None:
    assert named(diagnose(known(cafe_home, {"via": "folder"}, "/x", "requested"), cafe_home)) == ("approval", "CAFE-167")
    with contextlib.closing(SiteKits(cafe_home / "store.db")) as kits:
        kits.revoke(kits.kits()[0].serial, "the test", "", time.time())
    assert named(diagnose(known(cafe_home, {}), cafe_home)) == ("connection", "CAFE-168")


@pytest.mark.runs
def test_a_whole_chain_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Joined(tmp_path, monkeypatch)
    joined.start("lab")
    try:
        kit = enrolling.find("lab")
        deadline = time.monotonic() + 20
        while not (joined.exchange / f"{kit.serial}.site" / "alive.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        links = diagnose(kit, joined.home, 30.0)
        assert broken(links) is None, links
        told = ["approval", "exchange folder", "sign of life", "clock", "round trip", "signature", "version", "ledger"]
        assert list(states(links)) == told and enrolling.find("lab").seen["kit"]
        command = [sys.executable, "-m", "pipeline.cli", "site", "doctor"]
        environment = os.environ | {"CAFE_HOME": str(joined.home)}
        done = subprocess.run([*command, "lab", "--format", "json"], env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and {link["state"] for link in json.loads(done.stdout)} == {"ok"}, done.stderr
        done = subprocess.run([*command, "south"], env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "FAIL sign of life: The site has not been started." in done.stdout
        assert "--   round trip" in done.stdout
    finally:
        joined.stop()


def test_a_greeting_may_bring_a_few_bytes_and_nothing_else(tmp_path: Path) -> None:
    """By which a site shows that it reaches the object store."""
    server = TinyServer(tmp_path)
    seat = Seat(SeatConfig.model_validate(server.seat_config("north")))

    def asked(name: str, size: int = 1024, **changes: Any) -> tuple[str, str]:
        (tmp_path / name).write_bytes(bytes(size))
        order = server.order("north", "hello", inputs={name: replace(server.blob(name), **changes)})
        told = server.ask(order)
        reply, _ = seat.answer(told["order"], told["signature"], told["transport"], TinyEngine(), lambda *_: None)
        return reply.status, reply.code

    assert asked("probe") == ("ok", "")
    assert asked("probe", sha256="0" * 64) == ("failed", "CAFE-107")
    assert asked("probe", size=70_000) == ("refused", "CAFE-343")
    assert asked("other") == ("refused", "CAFE-105")


# A site that is reached through Globus Compute


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as running:
        monkeypatch.setenv("CAFE_GLOBUS_LOCAL_URL", running.url)
        yield running


def test_the_links_of_globus_compute(service: StandIn, cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, secret = service.service.new_client()
    kit = known(cafe_home, {"via": "globus", "client_id": client, "endpoint_name": NAME, "service": "local", "function_id": "none yet"})

    def found() -> tuple[str, str]:
        return named(diagnose(enrolling.find(kit.serial), cafe_home, 0.5))

    assert found() == ("application", "CAFE-174")  # no secret
    vault = Vault(cafe_home)
    vault.put(f"globus.{client}", {"client_secret": "wrong"})
    assert found() == ("application", "CAFE-174")
    vault.put(f"globus.{client}", {"client_secret": secret})
    function = globus_compute.function_id(cafe_home, client, "local")
    assert found() == ("endpoint", "CAFE-179")  # never started
    made = service.service.register_endpoint(client, {"endpoint_name": NAME})
    assert found() == ("endpoint", "CAFE-180")  # not online
    core = service.service.endpoints[str(made["endpoint_id"])]
    core.heard, core.period = time.monotonic(), 30.0
    assert found() == ("function", "CAFE-181")  # it runs anything
    core.data["allowed_functions"] = [function]
    assert found() == ("function", "CAFE-181")  # another one than the kit says
    with contextlib.closing(SiteKits(cafe_home / "store.db")) as kits:
        kits.connect(kit.serial, enrolling.find(kit.serial).connection | {"function_id": function})
    assert found() == ("object store", "CAFE-189")
    monkeypatch.setenv("CAFE_GLOBUS_LOCAL_URL", f"http://localhost:{free_port()}")
    assert found() == ("application", "CAFE-177")  # Globus is away


def test_a_look_that_breaks_is_a_finding_itself(cafe_home: Path, tmp_path: Path) -> None:
    kit = known(cafe_home, {"via": "folder"}, str(tmp_path))
    alive(tmp_path, kit)
    links = diagnose(replace(kit, federation="unknown"), cafe_home, 0.2)
    assert named(links) == ("approval", "CAFE-167")
    (tmp_path / f"{kit.serial}.site" / "alive.json").unlink()
    (tmp_path / f"{kit.serial}.site" / "alive.json").mkdir()
    assert named(diagnose(kit, cafe_home, 0.2)) == ("sign of life", "CAFE-180")
