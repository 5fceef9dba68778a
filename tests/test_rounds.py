"""A round with sites that fail, come late or send what they should not: the run goes on, and says what happened."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import bundles
from pipeline.adapters import flatten, from_bytes
from pipeline.cli import app
from tests import plans
from tests.federation import Federation

pytestmark = pytest.mark.runs

ROGUE = {"CAFE_KIT_ENGINE": "tests.rogue_engine:RogueEngine"}


@pytest.mark.parametrize(("mode", "code"), [("nan", "CAFE-403"), ("shape", "CAFE-45"), ("missing", "CAFE-45")])
def test_an_update_that_is_not_one_is_quarantined_and_the_run_goes_on(tmp_path, mode, code):
    federation = Federation(tmp_path / "f", stage2={"rounds": 2})
    run = federation.create()
    assert federation.work(run, CAFE_ROGUE=f"strong0={mode}", **ROGUE) == 0
    spoiled = [row for row in federation.store.orders(run, stage=2) if row.site == "strong0"]
    assert {row.state for row in spoiled} == {"failed"} and all(row.code.startswith(code) for row in spoiled), spoiled
    assert {site["name"]: site["failed"] for site in federation.results(run)["sites"]}["strong0"] == 2
    assert any(event.level == "warning" and event.site == "strong0" for event in federation.store.events(run))
    assert np.isfinite(flatten(from_bytes(federation.adapter(run)))).all()


@pytest.mark.parametrize(
    ("mode", "told"), [("zero", "train of round 1: the update is all zero"), ("same", "train of round 2: the update is byte for byte")]
)
def test_an_odd_update_is_said_to_the_operator_and_stands_in_no_export(tmp_path, monkeypatch, mode, told):
    federation = Federation(tmp_path / "f", stage2={"rounds": 2})
    run = federation.create()
    assert federation.work(run, CAFE_ROGUE=f"strong0={mode}", **ROGUE) == 0
    assert {event.site for event in federation.store.events(run) if event.confidential} == {"strong0"}
    monkeypatch.setenv("CAFE_HOME", str(federation.home))
    shown = CliRunner().invoke(app, ["status", run], catch_exceptions=False).output
    assert f"[strong0] {told}" in " ".join(shown.split())
    page = plans.page("runs", run=run)
    assert len(page.warning) == 1 and told in page.warning[0].value.replace("\\", "") and "strong0" in page.warning[0].value
    with zipfile.ZipFile(bundles.export(federation.store, run, tmp_path / "export.zip")) as export:
        assert "round 2 of 2" in export.read("events.jsonl").decode(), "what is for everybody is there"
        assert not [name for name in export.namelist() if told.partition(": ")[2].encode() in export.read(name)]


def test_a_late_site_does_not_hold_up_the_round(tmp_path):
    federation = Federation(tmp_path / "f", stage2={"rounds": 1, "deadline_s": 6.0})
    run = federation.create()
    assert federation.work(run, CAFE_ROGUE="strong0=slow", **ROGUE) == 0
    states = {row.site: row.state for row in federation.store.orders(run, stage=2, round=1)}
    assert states["strong0"] == "late" and states["strong1"] == "answered"
    assert federation.wait_for_no_processes()


def test_below_the_quorum_the_run_waits_and_a_mended_site_lets_it_go_on(tmp_path):
    federation = Federation(tmp_path / "f", stage2={"rounds": 2, "quorum": 2})
    run = federation.create()
    assert federation.work(run, CAFE_ROGUE="strong0=nan", **ROGUE) == 1
    error = federation.store.run(run).error
    assert error["code"] == "CAFE-121" and "strong0: CAFE-403" in error["message"] and "1 of 2" in error["message"]
    federation.store.queue(run)
    assert federation.work(run) == 0
    assert len(federation.results(run)["rounds"]) == 2


def test_with_privacy_a_huge_update_moves_the_mean_by_its_clip_at_most(tmp_path):
    """The influence of one site is bounded by clip_norm over the public number of sites, whatever it sends."""
    terms = {"stage1": "off", "stage2": {"epsilon": 1e6, "delta": 1e-5}, "accept_noise": True}
    adapters = {}
    for mode in ("", "huge"):
        federation = Federation(
            tmp_path / f"f{mode}", privacy=terms, stage2={"rounds": 1, "clip_norm": 0.5, "proxy_weight": 0.0, "warm_start": False}
        )
        run = federation.create()
        assert federation.work(run, CAFE_ROGUE=f"strong0={mode}", **ROGUE) == 0, federation.store.run(run).error
        adapters[mode] = flatten(from_bytes(federation.adapter(run)))
    moved = float(np.linalg.norm(adapters["huge"] - adapters[""]))
    assert 0 < moved <= 2 * 0.5 / 2 + 0.05  # replacing one clipped vector by another; the rest is noise at a huge epsilon


def test_the_operator_rejects_a_synthetic_set_and_the_next_one_is_charged_anew(tmp_path):
    federation = Federation(tmp_path / "f", stage1={"approve": "operator"}, privacy={"epsilon": 8, "delta": 1e-5, "accept_noise": True})
    run = federation.create()
    assert federation.work(run) == 0
    assert federation.store.run(run).state == "Stopped"
    spent = len(federation.ledger.charges(run=run, stage=1))
    for number, approved in ((1, False), (2, True)):
        store = federation.store
        store.save_step(run, store.run(run).epoch, f"stage1/{number}/approval", None, {"approved": approved, "reason": "too short"})
        store.queue(run)
        assert federation.work(run) == 0, federation.store.run(run).error
    assert federation.store.run(run).state == "Done"
    assert len(federation.ledger.charges(run=run, stage=1)) == 2 * spent
    assert federation.results(run)["privacy"]["stage1"]["epsilon"] > 8


def test_instruction_data_from_start_to_end(tmp_path):
    """One class, texts with answers, scored by loss; a JSONL of instruction, input, output comes back as synthetic set."""
    few = {"candidates_per_label": 8, "survivors_per_label": 3, "synthetic_per_label": 12}
    federation = Federation(tmp_path / "f", instruction=True, stage1=few, stage2={"rounds": 1})
    run = federation.create()
    assert federation.work(run) == 0, federation.store.run(run).error
    results = federation.results(run)
    assert set(results["federated"]) == {"loss", "n"} and results["zero_shot"]["n"] == 9
    rows = [json.loads(line) for line in Path(results["synthetic"]).with_name("train.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(row["instruction"] and row["output"] for row in rows)


def test_trust_local_the_sites_add_the_noise_and_both_ledgers_say_so(tmp_path):
    terms = {"epsilon": 8, "delta": 1e-5, "trust": "local", "accept_noise": True}
    federation = Federation(tmp_path / "f", privacy=terms, stage2={"rounds": 2})
    run = federation.create()
    assert federation.work(run) == 0, federation.store.run(run).error
    results = federation.results(run)
    assert {results["privacy"][stage]["trust"] for stage in ("stage1", "stage2")} == {"local"}
    assert 7 < results["privacy"]["maximum"]["epsilon"] <= 8
    for site, releases in (("weak0", 3), ("strong0", 2)):
        own = [json.loads(path.read_text()) for path in sorted((federation.home / "sites" / "tiny" / site / "ledger").glob("*.json"))]
        assert len(own) == releases == len(federation.ledger.charges(run=run, site=site))
        assert {entry["trust"] for entry in own} == {"local"}
        cost = sum(entry["clip_steps"] ** 2 / entry["sigma_steps"] ** 2 for entry in own)
        assert cost == pytest.approx(sum(float(charge.mu2) for charge in federation.ledger.charges(run=run, site=site)))
