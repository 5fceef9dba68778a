"""A whole tiny run with sites that joined with kits, through a folder that both sides reach: what it makes, and what may go wrong."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError

from pipeline import delivery, enrolling
from tests.federation import Federation
from tests.joined import KINDS, Joined, wait_until

pytestmark = pytest.mark.runs


@pytest.fixture
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    made = Joined(tmp_path, monkeypatch)
    yield made
    made.stop()
    assert made.wait_for_no_processes(), "a process was left behind"


def told(federation: Federation, run: str) -> str:
    return "\n".join(f"{event.site or ''}: {event.text}" for event in federation.store.events(run))


def test_both_stages_and_the_adapter_at_every_site(joined: Joined) -> None:
    joined.start()
    run = joined.create()
    assert joined.work(run) == 0, told(joined, run)
    results = joined.results(run)
    assert [round["round"] for round in results["rounds"]] == [1, 2, 3, 4]
    assert {site["name"]: site["answered"] for site in results["sites"]} == {"north": 3, "south": 3, "lab": 4}
    final = joined.adapter(run)
    for name in KINDS:
        (got,) = joined.sites[name].json("adapter")
        assert got["run"] == run
        to = joined.folder / f"for {name}"
        assert joined.sites[name].command("adapter", "--run", run, "--to", str(to)).returncode == 0
        assert next(to.rglob("adapter_model.safetensors")).read_bytes() == final


def test_the_same_bytes_as_with_sites_of_this_machine(joined: Joined, tmp_path: Path) -> None:
    near = Federation(tmp_path / "near", weak=0, strong=0, sites=[
        {"name": name, "kind": kind, "data": str(joined.sites[name].data)} for name, kind in KINDS.items()
    ])  # fmt: skip
    joined.start()
    far_run, near_run = joined.create(), near.create()
    assert joined.work(far_run) == 0 and near.work(near_run) == 0
    assert joined.adapter(far_run) == near.adapter(near_run)


def test_a_site_killed_in_the_middle_answers_with_what_it_sealed(joined: Joined) -> None:
    joined.sites["north"].start()
    joined.sites["south"].start()
    joined.sites["lab"].start(CAFE_FAILPOINT="site.after_seal", CAFE_FAILPOINT_ONCE=str(joined.folder / "once"))

    def again() -> None:
        lab = joined.sites["lab"]
        assert lab.process and lab.process.wait(timeout=120) == -signal.SIGKILL
        lab.start()

    healer = threading.Thread(target=again)
    healer.start()
    run = joined.create()
    assert joined.work(run) == 0, told(joined, run)
    healer.join()
    sent = joined.sites["lab"].json("outbox")
    assert len(sent) == 4 and len({item["release_id"] for item in sent}) == 4


def test_a_revoked_site_is_asked_nothing_more(joined: Joined) -> None:
    joined.start()
    run = joined.create()
    worker = threading.Thread(target=joined.work, args=(run,))
    worker.start()
    assert wait_until(lambda: joined.store.step(run, "stage1/1/1/votes/closed") is not None, 60)
    enrolling.revoke(enrolling.find("south").serial, "the contract has ended")
    worker.join(timeout=240)
    assert joined.store.run(run).state == "Done", told(joined, run)
    assert "south: vote of round 3: CAFE-167 Site 'south' was revoked, so it is asked nothing." in told(joined, run)


def test_a_site_that_is_away_is_waited_for_and_gets_the_adapter_later(joined: Joined) -> None:
    joined.start("north", "lab")
    run = joined.create()
    worker = threading.Thread(target=joined.work, args=(run,))
    worker.start()
    assert wait_until(lambda: joined.store.run(run).state == "Waiting for sites", 60)
    joined.sites["south"].start()
    worker.join(timeout=240)
    assert joined.store.run(run).state == "Done", told(joined, run)
    joined.sites["south"].stop()
    (answer,) = [answer for answer in delivery.deliver(run, ["north"])]
    assert answer.code == ""


def test_a_site_that_refuses_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Joined(tmp_path, monkeypatch)
    joined.sites["south"].command("limits", "set", "allow_without_noise=false")
    joined.start()
    try:
        run = joined.create()
        assert joined.work(run) == 0, told(joined, run)
        assert "CAFE-311" in told(joined, run)
        assert joined.sites["south"].json("outbox") == []
    finally:
        joined.stop()


def test_the_operator_hears_once_that_an_answer_waits_for_the_sites_admin(joined: Joined) -> None:
    north = joined.sites["north"]
    assert north.command("limits", "set", "outbox=review").returncode == 0
    joined.start()
    run = joined.create()

    def lets_out() -> None:
        wait_until(lambda: north.json("status")["waiting"], 120)
        wait_until(lambda: "its admin looks at the answer" in told(joined, run), 60)
        while "done: the adapter is ready" not in told(joined, run):
            north.command("outbox", "approve", "--all")

    admin = threading.Thread(target=lets_out, daemon=True)
    admin.start()
    assert joined.work(run) == 0, told(joined, run)
    admin.join()
    said = told(joined, run).count("north: its admin looks at the answer before it leaves")
    assert 1 <= said <= len([row for row in joined.store.orders(run) if row.site == "north"]), "once a round at most"


def test_a_site_that_leaves_is_out_and_a_revoked_one_reads_why(joined: Joined) -> None:
    assert joined.sites["north"].command("leave", "--yes").returncode == 0
    found, wrong = enrolling.received("tiny")
    assert (found, wrong) == ([], []) and enrolling.find("north").state == "left"
    enrolling.revoke(enrolling.find("south").serial, "the contract has ended")
    assert "the contract has ended" in joined.sites["south"].command("join", "--wait", "0").stderr
    assert joined.sites["south"].json("status")["state"] == "refused"


def test_a_farewell_counts_only_from_the_site_itself(joined: Joined, tmp_path: Path) -> None:
    north, south = joined.sites["north"], enrolling.find("south")
    assert north.command("leave", "--yes").returncode == 0
    forged = json.loads(next(joined.exchange.glob("*.leave.json")).read_text())
    forged["document"] |= {"serial": south.serial, "site": "south"}
    file = tmp_path / "forged.json"
    file.write_text(json.dumps(forged))
    with pytest.raises(CafeError, match="CAFE-102"):
        enrolling.receive_leave(file)
    assert enrolling.find("south").state == "approved"


def test_the_operators_own_cluster_trains_for_the_weak_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Joined(tmp_path / "here", monkeypatch)
    here.start()
    try:
        run = here.create()
        assert here.work(run) == 0, told(here, run)
        adapter = here.adapter(run)
    finally:
        here.stop()
    away = Joined(tmp_path / "away", monkeypatch, machine={"proxies": "cluster"})
    away.stand_in("cluster")
    away.start()
    away.sites["cluster"].start()
    try:
        run = away.create()
        assert away.work(run) == 0, told(away, run)
        assert away.adapter(run) == adapter
        sent = away.sites["cluster"].json("outbox")
        assert sorted({item["release_id"].split("/")[4] for item in sent}) == ["proxies.all", "proxy.north", "proxy.south"]
    finally:
        away.stop()
