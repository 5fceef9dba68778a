"""What an operator does with a synthetic set: reads its score, leaves rows out, approves, uses it again in another run."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from pipeline import launch
from pipeline.settings import load
from server_store.desk import Desk
from tests.federation import Federation

pytestmark = pytest.mark.runs

PRIVATE = {"stage1": {"epsilon": 8, "delta": 1e-5}, "stage2": "off", "accept_noise": True}


def awaiting(tmp_path, monkeypatch, **settings):
    """A run that has made its set and waits for a word on it."""
    tiny = Federation(tmp_path / "one", privacy=PRIVATE, stage1={"approve": "operator"}, stage2={"rounds": 2}, **settings)
    monkeypatch.setenv("CAFE_HOME", str(tiny.home))
    run = tiny.create()
    assert tiny.work(run) == 0 and tiny.store.run(run).state == "Stopped"
    return tiny, run


def test_the_set_is_scored_before_anybody_decides_on_it(tmp_path, monkeypatch):
    tiny, run = awaiting(tmp_path, monkeypatch)
    assert [metric.phase for metric in tiny.store.metrics(run) if metric.name == "accuracy"] == ["zero_shot", "synthetic_only"]
    before = tiny.store.step(run, "stage2/1/warm/adapter")
    launch.decide(run, True, "")
    tiny.store.queue(run)
    assert tiny.work(run) == 0
    assert tiny.results(run)["synthetic_only"]["accuracy"] == tiny.store.step(run, "stage2/1/0/score").facts["accuracy"]
    assert tiny.store.step(run, "stage2/1/warm/adapter") == before and tiny.store.step(run, "stage2/1/warm kept/adapter") is None


@pytest.mark.parametrize("approved", [True, False])
def test_a_word_that_comes_while_the_set_is_scored_counts(tmp_path, monkeypatch, approved):
    tiny = Federation(tmp_path / "one", privacy=PRIVATE, stage1={"approve": "operator"}, stage2={"rounds": 1, "warm_start_steps": 8})
    monkeypatch.setenv("CAFE_HOME", str(tiny.home))
    run = tiny.create()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(tiny.work, run, CAFE_TINY_SECONDS="0.3")
        while tiny.store.step(run, "stage1/1/synthetic") is None:
            assert not work.done(), tiny.store.run(run)
            time.sleep(0.02)
        assert tiny.store.step(run, "stage2/1/0/score") is None
        launch.decide(run, approved, "read it at once")
        assert launch.take_up(run).active  # the worker that is there goes on by itself
    ended = tiny.store.run(run)
    assert ended.state == ("Done" if approved else "Stopped"), ended.error
    assert (tiny.store.step(run, "stage1/2/synthetic") is None) == approved


def test_rows_that_were_left_out_are_not_trained_on_nor_given_away(tmp_path, monkeypatch):
    tiny, run = awaiting(tmp_path, monkeypatch)
    whole = pq.read_table(tiny.home / "runs" / run / "synthetic" / "attempt-1" / "train.parquet").to_pylist()
    desk = Desk(tiny.home / "store.db")
    for row in (0, 3, 5):
        desk.exclude(run, 1, row)
    desk.exclude(run, 1, 5, excluded=False)
    launch.decide(run, True, "two bad rows")
    desk.exclude(run, 1, 7)  # too late: the word was given
    tiny.store.queue(run)
    assert tiny.work(run) == 0
    kept = pq.read_table(tiny.results(run)["synthetic"]).to_pylist()
    assert kept == [row for number, row in enumerate(whole) if number not in (0, 3)]
    proxies = [line for file in (tiny.home / "runs" / run / "proxies").glob("1.proxy.*.jsonl") for line in file.read_text().splitlines()]
    assert len(proxies) == len(kept)
    retrained = tiny.store.step(run, "stage2/1/warm kept/adapter")
    assert retrained and retrained.sha256 != tiny.store.step(run, "stage2/1/warm/adapter").sha256
    assert tiny.results(run)["synthetic_only"]["accuracy"] == tiny.store.step(run, "stage2/1/0 kept/score").facts["accuracy"]


def test_a_rejected_set_is_made_again_and_both_were_charged(tmp_path, monkeypatch):
    tiny, run = awaiting(tmp_path, monkeypatch)
    launch.decide(run, False, "nonsense")
    tiny.store.queue(run)
    assert tiny.work(run) == 0 and tiny.store.run(run).state == "Stopped"
    assert tiny.store.step(run, "stage2/2/0/score") is not None
    assert {charge.attempt for charge in tiny.ledger.charges(run=run)} == {1, 2}


def test_a_set_used_again_is_not_charged_again_and_its_price_stays_in_the_promise(tmp_path, monkeypatch):
    tiny, first = awaiting(tmp_path, monkeypatch)
    Desk(tiny.home / "store.db").exclude(first, 1, 0)
    launch.decide(first, True, "")
    tiny.store.queue(first)
    assert tiny.work(first) == 0
    charges = len(tiny.ledger.charges(stage=1))

    settings = load(tiny.config).model_copy(update={"synthetic": first})
    launch.check_at_hand(settings)
    monkeypatch.setattr(launch, "spawn", lambda run: None)
    second = launch.start(settings, operator="dana").id
    assert tiny.store.run(second).operator == "dana"
    assert tiny.work(second) == 0
    assert len(tiny.ledger.charges(stage=1)) == charges
    one, two = tiny.results(first), tiny.results(second)
    assert two["privacy"]["stage1"] == one["privacy"]["stage1"] and two["privacy"]["stage1"]["epsilon"] <= 8
    assert pq.read_table(two["synthetic"]).to_pylist() == pq.read_table(one["synthetic"]).to_pylist()
    assert tiny.adapter(second) == tiny.adapter(first) or len(two["rounds"]) == 2


def test_a_run_without_an_approved_set_cannot_lend_it(tmp_path, monkeypatch):
    tiny, run = awaiting(tmp_path, monkeypatch)
    settings = load(tiny.config).model_copy(update={"synthetic": run})
    try:
        launch.check_at_hand(settings)
    except Exception as error:
        assert getattr(error, "code", "") == "CAFE-610"
    else:
        raise AssertionError("a set that nobody approved was taken")
