"""*Generate* in its states: nothing, a draft, refused, started by typing, running, waiting for approval, failed, done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pipeline import federations, launch, sample
from pipeline.settings import load
from server_store.ledger import Ledger
from server_store.rows import Run
from tests.federation import Federation
from tests.plans import HOSTILE, button, change, draft, field, move_in, number, page, run, told


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = Federation(
        tmp_path_factory.mktemp("generate") / "f",
        privacy={"stage1": {"epsilon": 20, "delta": 1e-5}, "stage2": "off", "accept_noise": True},
        stage1={"rounds": 2},
        stage2={"rounds": 2},
    )
    assert federation.work(federation.create()) == 0
    return federation


@pytest.fixture
def done(finished: Federation, cafe_home: Path) -> tuple[Path, str]:
    made = finished.store.runs()[0]
    move_in(finished.home, cafe_home, made.id, made.folder)
    draft(cafe_home)
    return cafe_home, made.id


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Runs that are started, but carried by nobody."""
    started: list[Run] = []
    monkeypatch.setattr(launch, "spawn", started.append)
    return started


def start(shown: Any, typed: str | None) -> Any:
    button(shown, "Start and spend privacy…" if typed is not None else "Start…").click()
    run(shown)
    if typed is not None:
        field(shown, "Type the name of the federation to confirm").set_value(typed)
        run(shown)
    return shown


def test_nothing_leads_to_home(cafe_home: Path) -> None:
    shown = page("generate")
    assert "Nothing is set up yet" in told(shown) and [one.label for one in shown.button] == ["Go to Home"]


def test_an_unfinished_draft_says_what_is_missing_and_keeps_what_was_typed(cafe_home: Path) -> None:
    federations.create("north", "classification", "letters")
    shown = page("generate")
    assert "CAFE-602" in told(shown) and "sites" in told(shown) and button(shown, "Start…").disabled
    field(shown, "Description").set_value("letters to a bank")
    run(shown)
    assert field(shown, "Description").value == "letters to a bank" and "Not saved yet" not in told(shown)
    button(shown, "Save").click()
    run(shown)
    saved = federations.get("north").data
    assert saved["task"]["description"] == "letters to a bank" and saved["stage1"]["approve"] == "operator"
    assert "Not saved yet" not in told(shown)


def test_a_valid_draft_shows_what_a_start_costs(cafe_home: Path) -> None:
    draft(cafe_home)
    shown = page("generate")
    words = told(shown)
    assert list(shown.dataframe[0].value["site"]) == ["weak0", "weak1", "weak2"]
    assert list(shown.dataframe[0].value["this run"]) == ["20"] * 3 and list(shown.dataframe[0].value["spent so far"]) == ["0"] * 3
    assert "Stage 1 asks 3 sites to spend up to ε" in words and "with no formal guarantee" in words
    assert "Unit: client" in words and "zero-out of one client" in words and "Read: 3 labels · 9 test records" in words
    assert not button(shown, "Start and spend privacy…").disabled and "cafe run federation.yaml" in words


def test_the_ratio_follows_epsilon_and_a_drowned_signal_is_refused_until_accepted(cafe_home: Path, still: list[Run]) -> None:
    draft(cafe_home)
    shown = page("generate")
    before = float(shown.metric[0].value)
    shown.select_slider[0].set_value(0.5)
    run(shown)
    assert number(shown, "Exactly ε").value == 0.5 and float(shown.metric[0].value) < min(before, 1)
    assert "CAFE-331" in told(shown) and button(shown, "Start and spend privacy…").disabled
    assert "The signal would drown in the noise." in told(shown)
    shown.checkbox[0].set_value(True)
    run(shown)
    assert not button(shown, "Start and spend privacy…").disabled
    start(shown, "tiny")
    button(shown, "Start").click()
    run(shown)
    kept = load(Path(still[0].folder) / "config.yaml").privacy
    assert kept.accept_noise and kept.stage1 and kept.stage1.epsilon == 0.5 and federations.get("tiny").settings().privacy.accept_noise


def test_the_vote_ratio_needs_no_base_model(cafe_home: Path) -> None:
    draft(cafe_home, base_model="somebody/something", privacy={"epsilon": 20, "delta": 1e-5})
    shown = page("generate")
    assert float(shown.metric[0].value) > 1 and shown.metric[1].value == "–"
    assert "known once the base model is on this disk" in told(shown)


def test_only_the_typed_name_starts(cafe_home: Path, still: list[Run]) -> None:
    draft(cafe_home)
    shown = start(page("generate"), "Tiny")
    assert button(shown, "Start").disabled and "cannot be given back" in told(shown)
    field(shown, "Type the name of the federation to confirm").set_value("tiny")
    run(shown)
    assert not button(shown, "Start").disabled and not still
    button(shown, "Start").click()
    run(shown)
    assert len(still) == 1 and still[0].operator and shown.query_params["run"] in (still[0].id, [still[0].id])
    assert [tab.label for tab in shown.tabs] == ["Run", "Plan the next run"] and "Queued" in told(shown)


def test_the_typed_word_is_checked_again_behind_the_button(cafe_home: Path, still: list[Run]) -> None:
    draft(cafe_home)
    press = """
import streamlit as st
from app import start
from pipeline import federations
start._begin({"name": "tiny", "data": federations.get("tiny").data, "newest": None}, "other")
start.told()
"""
    shown = run(AppTest.from_string(press))
    assert not still and "Not started" in told(shown)


def test_without_a_guarantee_nothing_is_typed_and_it_is_said(cafe_home: Path, still: list[Run]) -> None:
    draft(cafe_home, privacy="off")
    shown = start(page("generate"), None)
    assert "makes no promise" in told(shown)
    button(shown, "Start").click()
    run(shown)
    assert len(still) == 1


def test_two_operators_get_one_run(cafe_home: Path, still: list[Run]) -> None:
    draft(cafe_home)
    first, second = start(page("generate"), "tiny"), start(page("train"), "tiny")
    button(first, "Start").click()
    run(first)
    change(cafe_home, "UPDATE runs SET operator='dana'")
    button(second, "Start").click()
    run(second)
    assert len(still) == 1 and len(launch.store().runs()) == 1
    assert "Already started" in told(second) and "ago by dana" in told(second)


def test_what_a_start_refuses_stands_beside_the_form(cafe_home: Path, still: list[Run]) -> None:
    federation = draft(cafe_home)
    shown = start(page("generate"), "tiny")
    (federation.folder / "test.jsonl").write_text("{}\n")
    button(shown, "Start").click()
    run(shown)
    assert not still and "CAFE-2" in told(shown) and "Traceback" not in told(shown)


def test_yaml_is_loaded_or_refused_without_losing_a_letter(cafe_home: Path) -> None:
    federation = draft(cafe_home)
    shown = page("generate")
    shown.text_area[0].set_value(federation.text.replace("rounds: 2", "runds: 2"))
    button(shown, "Load").click()
    run(shown)
    assert "CAFE-601" in told(shown) and "runds: 2" in shown.text_area[0].value and federations.get("tiny").text == federation.text
    shown.text_area[0].set_value(federation.text.replace("rounds: 2", "rounds: 3"))
    button(shown, "Load").click()
    run(shown)
    assert federations.get("tiny").settings().stage1.rounds == 3 and number(shown, "Votes").value == 3 and "CAFE-601" not in told(shown)


def test_an_uploaded_file_is_kept_with_what_was_typed(cafe_home: Path) -> None:
    draft(cafe_home)
    shown = page("generate")
    assert "Do not upload private text here" in told(shown)
    field(shown, "Description").set_value("letters")
    rows = "".join(json.dumps({"text": f"an invented one, {n}", "label": "travel"}) + "\n" for n in range(4))
    next(one for one in shown.file_uploader if one.label == "Invented examples").set_value(
        ("mine.jsonl", rows.encode(), "application/jsonl")
    )
    run(shown)
    saved = federations.get("tiny").data
    assert saved["task"]["examples"] == "examples.jsonl" and saved["task"]["description"] == "letters"
    assert "4 invented examples" in told(shown)


def test_a_sample_asks_no_site_and_is_found_again(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFE_MODELS", "tests.tiny_models:TinyModels")
    draft(cafe_home)
    shown = page("generate")
    button(shown, "Sample first").click()
    run(shown)
    for _ in range(100):
        found = sample.found("tiny")
        if found and found.state != "running":
            break
        time.sleep(0.2)
    assert found and found.state == "done" and 0 < len(found.texts) <= 10, found
    run(shown)
    assert any(list(one.value.columns) == ["text", "label"] for one in shown.dataframe) and not Ledger(cafe_home / "ledger.db").charges()


def test_a_sample_whose_process_is_gone_is_told(cafe_home: Path) -> None:
    federation = draft(cafe_home)
    gone = {"state": "running", "begun": 1.0, "pid": 0, "texts": [], "dropped": "", "error": None}
    (federation.folder / "sample.json").write_text(json.dumps(gone))
    shown = page("generate")
    assert "ended without a result" in told(shown).replace("\\", "") and not button(shown, "Sample first").disabled


def test_running_shows_phase_votes_and_texts_and_one_run_at_a_time(done: tuple[Path, str]) -> None:
    home, made = done
    change(home, "DELETE FROM steps WHERE name NOT LIKE 'stage1/1/1/%' AND name NOT LIKE 'stage1/1/2/cand%' AND name != 'frozen'")
    change(home, "UPDATE runs SET state='Running', pid=?, heartbeat=strftime('%s','now')", 1)
    shown = page("generate", run=made)
    words = told(shown)
    votes = next(one.value for one in shown.dataframe if "candidates" in one.value)
    assert list(votes["vote"]) == [1, 2] and list(votes["kept by the vote"]) == ["6", "–"] and votes["sites answered"][0] == "3 of 3"
    assert "Some of the candidates of vote 2" in words and "none is a site's record" in words
    assert button(shown, "Stop after this round") and button(shown, "Start and spend privacy…").disabled
    assert "A run of this federation goes on" in words


def test_a_set_that_waits_leads_to_datasets(done: tuple[Path, str]) -> None:
    home, made = done
    change(home, "DELETE FROM steps WHERE name LIKE '%/approval' OR name LIKE 'stage2/%'")
    change(home, "UPDATE runs SET state='Stopped'")
    config = Path(launch.store().run(made).folder) / "config.yaml"
    config.write_text(config.read_text().replace("approve: automatic", "approve: operator"))
    shown = page("generate")
    assert "waits for you" in told(shown) and button(shown, "Read and decide")


def test_failed_is_a_card_with_resume(done: tuple[Path, str]) -> None:
    home, _made = done
    error = json.dumps({"code": "CAFE-514", "message": f"No text for {HOSTILE}", "hint": "Give examples."})
    change(home, "UPDATE runs SET state='Failed', error=?", error)
    shown = page("generate")
    assert "CAFE-514" in told(shown) and "What to do: Give examples" in told(shown) and button(shown, "Resume")
    assert "<script>" not in "\n".join(str(one.value) for one in shown.markdown)


def test_done_shows_the_set_and_what_was_spent_before(done: tuple[Path, str]) -> None:
    home, _ = done
    assert Ledger(home / "ledger.db").charges()
    shown = page("generate")
    assert "Some of the synthetic set" in told(shown)
    cost = next(one.value for one in shown.dataframe if "spent so far" in one.value)
    assert list(cost["spent so far"]) == ["20"] * 3 and all(float(after) > 25 for after in cost["after"])


def test_an_unknown_run_is_told_and_the_form_stays(cafe_home: Path) -> None:
    draft(cafe_home)
    shown = page("generate", run="nobody")
    assert "CAFE-655" in told(shown) and number(shown, "Votes").value == 2


def test_hostile_words_show_as_typed(cafe_home: Path) -> None:
    draft(cafe_home, task={"kind": "classification", "description": HOSTILE, "labels": [HOSTILE, "b"]}, test="none.jsonl")
    shown = page("generate")
    marks = "\n".join(str(one.value) for kind in ("markdown", "caption") for one in shown.get(kind))
    assert field(shown, "Description").value == HOSTILE and "<script>" not in marks and "](http" not in marks
