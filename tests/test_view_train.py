"""*Train* in its states: nothing, a draft, refused, an earlier set, running, waiting for approval, failed, done, compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import federations, launch
from pipeline.settings import load
from server_store.rows import Run
from tests.federation import Federation
from tests.plans import HOSTILE, button, change, draft, field, move_in, number, page, run, told


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = Federation(tmp_path_factory.mktemp("train") / "f", stage1={"rounds": 1}, stage2={"rounds": 3})
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


def test_nothing_leads_to_home(cafe_home: Path) -> None:
    assert "Nothing is set up yet" in told(page("train"))


def test_an_unfinished_draft_is_kept_as_typed(cafe_home: Path) -> None:
    federations.create("north", "classification", "letters")
    shown = page("train")
    assert "CAFE-602" in told(shown) and "No site yet." in told(shown) and button(shown, "Start…").disabled
    number(shown, "Steps").set_value(20)
    run(shown)
    assert number(shown, "Steps").value == 20 and "Not saved yet" not in told(shown)
    button(shown, "Save").click()
    run(shown)
    assert federations.get("north").data["stage2"] == {"steps": 20}


def test_a_valid_draft_says_who_trains_on_what_and_how_much_is_sent(cafe_home: Path) -> None:
    draft(cafe_home)
    words = told(shown := page("train"))
    assert "The server trains for 3 sites without a GPU, on synthetic data." in words
    assert "2 sites with a GPU train on their own data and send only adapter weights." in words
    assert "no formal guarantee" in words and "no run of this federation has finished yet" in words
    figures = {one.label: one.value for one in shown.metric}
    assert figures["Trained numbers"] == "256" and figures["Sent per site and round"] == "1.0 kB"


def test_the_sizes_and_the_exact_rank_are_one_number(cafe_home: Path, still: list[Run]) -> None:
    draft(cafe_home)
    shown = page("train")
    assert field(shown, "Size of the adapter").value == "M"
    field(shown, "Size of the adapter").set_value("L")
    run(shown)
    assert number(shown, "LoRA rank").value == 16
    number(shown, "LoRA rank").set_value(6)
    run(shown)
    assert field(shown, "Size of the adapter").value is None
    button(shown, "Save").click()
    run(shown)
    assert federations.get("tiny").settings().stage2.lora_rank == 6


def test_both_ratios_are_shown_and_the_second_refuses(cafe_home: Path) -> None:
    draft(cafe_home, weak=3, strong=2)
    shown = page("train")
    field(shown, "Stage 2 under differential privacy").set_value(True)
    run(shown)
    number(shown, "Exactly ε").set_value(0.5)
    run(shown)
    vote, norm = float(shown.metric[0].value), float(shown.metric[1].value)
    assert vote > 1 > norm and "Stage 2 would drown" in told(shown) and button(shown, "Start and spend privacy…").disabled
    assert list(shown.dataframe[0].value["site"]) == ["strong0", "strong1"] and list(shown.dataframe[0].value["this run"]) == ["0.5"] * 2
    button(shown, "Save").click()
    run(shown)
    assert federations.get("tiny").settings().privacy.stage2 is not None and federations.get("tiny").settings().privacy.stage1 is not None


def test_an_earlier_set_costs_nothing_again(done: tuple[Path, str], still: list[Run]) -> None:
    _home, made = done
    shown = page("train")
    field(shown, "Synthetic set").set_value(made)
    run(shown)
    assert "nothing is charged for this set again" in told(shown) and "Stage 1 does not run" in told(shown).replace("\\", "")
    button(shown, "Start…").click()
    run(shown)
    button(shown, "Start").click()
    run(shown)
    assert load(Path(still[0].folder) / "config.yaml").synthetic == made and federations.get("tiny").data["synthetic"] == made


def test_done_shows_rounds_best_and_the_ways_on(done: tuple[Path, str]) -> None:
    _, made = done
    shown = page("train", run=made)
    words = told(shown)
    rounds = next(one.value for one in shown.dataframe if "sites answered" in one.value)
    assert list(rounds["sites answered"]) == ["–", "2 of 2", "2 of 2", "2 of 2"] and list(rounds["trained by the server"])[1:] == [3, 3, 3]
    assert sum("best" in str(one) for one in rounds["round"]) == 1 and "Best: round" in words
    assert button(shown, "Try it") and "The adapter is ready" in words
    assert [one.proto.url for one in shown.get("link_button")] == [f"files/runs/{made}/adapter.zip"]
    assert "A round took" in words and "rounds of 12 steps are planned" in words


def test_running_shows_rounds_so_far_and_who_is_waited_for(done: tuple[Path, str]) -> None:
    home, _made = done
    change(home, "DELETE FROM steps WHERE name LIKE 'stage2/1/2/%' OR name LIKE 'stage2/1/3/%'")
    change(home, "DELETE FROM orders WHERE stage=2 AND round>1")
    change(home, "UPDATE runs SET state='Running', pid=?, heartbeat=strftime('%s','now')", 1)
    shown = page("train")
    rounds = next(one.value for one in shown.dataframe if "sites answered" in one.value)
    assert len(rounds) == 2 and button(shown, "Stop now…") and button(shown, "Start and spend privacy…").disabled


def test_a_set_that_waits_leads_to_datasets(done: tuple[Path, str]) -> None:
    home, made = done
    change(home, "DELETE FROM steps WHERE name LIKE '%/approval' OR name LIKE 'stage2/%'")
    change(home, "UPDATE runs SET state='Stopped'")
    config = Path(launch.store().run(made).folder) / "config.yaml"
    config.write_text(config.read_text().replace("approve: automatic", "approve: operator"))
    assert button(page("train"), "Read and decide")


def test_failed_is_a_card_and_says_from_where_it_resumes(done: tuple[Path, str]) -> None:
    home, _ = done
    change(home, "DELETE FROM steps WHERE name LIKE 'stage2/1/3/%'")
    change(home, "DELETE FROM metrics WHERE round=3")
    error = json.dumps({"code": "CAFE-402", "message": f"Site {HOSTILE} is late", "hint": "Ask it."})
    change(home, "UPDATE runs SET state='Failed', error=?", error)
    shown = page("train")
    assert "CAFE-402" in told(shown) and button(shown, "Resume") and "Goes on from round 3 of 3" in told(shown)
    assert "<script>" not in "\n".join(str(one.value) for one in shown.markdown)


def test_compared_with_another_run_only_differences_are_shown(done: tuple[Path, str], still: list[Run]) -> None:
    _, made = done
    settings = load(Path(launch.store().run(made).folder) / "config.yaml")
    other = launch.start(settings.model_copy(update={"seed": 7}))
    shown = page("train", run=made)
    differ = next(one.value for one in shown.dataframe if "setting" in one.value)
    assert differ.to_dict("records") == [{"setting": "seed", "this run": "0", "the other": "7"}] and other.id in field(shown, "Run").options


def test_hostile_words_show_as_typed(cafe_home: Path) -> None:
    draft(cafe_home, base_model=HOSTILE)
    shown = page("train")
    marks = "\n".join(str(one.value) for kind in ("markdown", "caption") for one in shown.get(kind))
    assert field(shown, "Base model").value == HOSTILE and "<script>" not in marks and "](http" not in marks
