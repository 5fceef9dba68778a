"""A site moves to a newer kit, as its pages say: leave, a new kit, unzip, join. What it spent and how its answers leave stay."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from cafe_kit.ledger import SiteLedger
from cafe_kit.orders import Order, order_hash

from pipeline import enrolling
from server_store.errors import StoreError
from tests import ledgers
from tests.fakes import TASK, VOTE
from tests.joined import Joined

pytestmark = pytest.mark.runs


def test_a_site_leaves_and_joins_with_a_newer_kit_and_its_ledger_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Joined(tmp_path / "tiny", monkeypatch)
    north = tiny.sites["north"]
    asked = Order("tiny-20260102-030405-abcd", 1, 1, 1, "north", TASK, ledgers.terms(4.0, 1), {}, VOTE)
    SiteLedger(north.home / "ledger").charge(asked, order_hash(asked), lambda order, spent: None)
    assert north.command("limits", "set", "outbox=review", "min_rows=5").returncode == 0
    before = north.json("status")
    with pytest.raises(StoreError, match="CAFE-145"):
        tiny.issue("north", "cpu")  # while the old kit is good there is no other
    serial = enrolling.find("north", "tiny").serial

    assert north.command("leave", "--yes").returncode == 0
    enrolling.received("tiny")
    assert enrolling.find(serial).state == "left"
    shutil.rmtree(north.kit)
    issued = tiny.issue("north", "cpu")
    zipfile.ZipFile(issued.zip).extractall(north.kit.parent)
    answers = north.kit.parent / "answers.toml"
    answers.write_text(answers.read_text().replace("max_epsilon = 200.0", "max_epsilon = 150.0"))
    asks = north.command("join", "--answers", str(answers), "--yes", "--wait", "0", CAFE_JOIN_CODE=issued.code)
    assert asks.returncode == 3, asks.stdout + asks.stderr
    enrolling.received("tiny")
    enrolling.approve(issued.serial, north.json("status")["words"], "the test")
    assert north.command("join", "--wait", "10").returncode == 0

    after = north.json("status")
    assert enrolling.find("north", "tiny").state == "approved" and enrolling.find("north", "tiny").serial != serial
    assert (after["state"], after["paused"], after["answers"]) == ("joined", False, 1) and after["epsilon"] == before["epsilon"] > 3.9
    assert (after["outbox"], after["max_epsilon"], north.json("limits")["min_rows"]) == ("review", 150.0, 5)
    assert after["words"] != before["words"], "the site has a new key"
