"""Synthetic sets as they are judged: figures on tiny sets by hand, repeats against a slow and plain search, real tiny runs."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import time
from fractions import Fraction
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import accounting, approval, datasets, launch
from pipeline.datasets import Dataset, Share
from pipeline.duplicates import Duplicates, duplicates, grams, normalised
from pipeline.settings import load
from server_store.desk import Desk
from tests.federation import Federation

PRIVATE = {"stage1": {"epsilon": 8, "delta": 1e-5}, "stage2": {"epsilon": 4, "delta": 1e-5}, "accept_noise": True}
words = st.sampled_from(["pay", "bill", "the", "a", "refund", "now", "Now!", "travel", "ſ", "ß", "١", "-"])
texts = st.lists(st.one_of(st.lists(words, max_size=6).map(" ".join), st.text(max_size=8)), max_size=25)


# Repeats


def test_what_is_compared() -> None:
    assert normalised("  Where's MY\tbill?? ") == "where s my bill" == normalised("where’s my Bill")
    assert normalised("STRASSE ﬁn") == normalised("straße fin") and normalised("١") == "١"
    assert normalised("?!  ?") == "?! ?" != normalised("!") and normalised(" \n") == ""
    assert grams("abcd") == {"abc", "bcd"} and grams("ab") == {"ab"} and grams("") == {""}


def test_the_line_between_near_and_not() -> None:
    just = duplicates(["abcdefghijk", "abcdefghijkl"])  # 9 grams, 10 grams, 9 shared: 0.9
    edge = duplicates(["abcdefghij", "abcdefghijkl"])  # 8 of 10: exactly 0.8
    not_quite = duplicates(["abcdefghi", "abcdefghijkl"])  # 7 of 10
    assert just.near == edge.near == ((0, 1),) and not_quite.near == () and edge.exact == ()


def test_groups_and_what_to_leave_out() -> None:
    found = duplicates(["one bill please", "other", "One bill, please!", "one bill please.", "one bill pleased", "OTHER"])
    assert found == Duplicates(6, ((0, 2, 3), (1, 5)), ((0, 4),))
    assert found.spare == (2, 3, 4, 5) and (found.exact_spare, found.near_spare) == (3, 1)
    assert found.without(found.spare).spare == ()
    assert found.without({0}) == Duplicates(6, ((1, 5), (2, 3)), ((2, 4),))  # a copy stands where the first row stood
    assert found.without({0, 2, 3}) == Duplicates(6, ((1, 5),), ())


def _slowly(rows: list[str]) -> list[set[int]]:
    """Groups of rows that repeat each other, exactly or nearly, by comparing all pairs."""
    groups = [{row} for row in range(len(rows))]
    for one, other in itertools.combinations(range(len(rows)), 2):
        a, b = grams(normalised(rows[one])), grams(normalised(rows[other]))
        if Fraction(len(a & b), len(a | b)) >= Fraction(4, 5):
            mine, its = (next(group for group in groups if row in group) for row in (one, other))
            if mine is not its:
                mine |= its
                groups.remove(its)
    return groups


@settings(max_examples=150, deadline=None)
@given(texts)
def test_all_repeats_are_found_and_nothing_else(rows: list[str]) -> None:
    found = duplicates(rows)
    for group in found.exact:
        assert len({normalised(rows[row]) for row in group}) == 1
    for group in found.near:
        assert len({normalised(rows[row]) for row in group}) == len(group)
    kept = set(range(len(rows))) - set(found.spare)
    same_grams = {min(group) for group in _slowly(rows)}  # of texts with equal grams but another order, too
    assert kept == same_grams


@settings(max_examples=60, deadline=None)
@given(texts, st.sets(st.integers(0, 24)))
def test_leaving_rows_out_leaves_no_repeat_of_them(rows: list[str], out: set[int]) -> None:
    found = duplicates(rows).without(out)
    shown = {row for group in (*found.exact, *found.near) for row in group}
    assert not shown & out and found.without(found.spare).spare == ()
    alone = duplicates([text for row, text in enumerate(rows) if row not in out])
    assert sum(len(group) - 1 for group in found.exact) == alone.exact_spare


def test_five_thousand_texts_are_quick() -> None:
    begun = time.monotonic()
    found = duplicates([f"question {n * 7919 % 5000} about invoice {n} of clinic {n % 97} in town {n % 13}" for n in range(5000)])
    assert time.monotonic() - begun < 30 and found.rows == 5000


# Distributions


def test_shares_by_hand() -> None:
    assert datasets.shares(["a", "b", "a", "a"], ("b", "a", "c")) == [Share("b", 1, 0.25), Share("a", 3, 0.75), Share("c", 0, 0.0)]
    assert datasets.shares([], ("a",)) == [Share("a", 0, 0.0)]


def test_lengths_by_hand() -> None:
    found = datasets.lengths(["one", "one two three", "one  two\nthree", "a b c d"])
    assert found == datasets.Lengths(1, 3.0, 4, ((1, 1, 1), (2, 2, 0), (3, 3, 2), (4, 4, 1)))
    assert datasets.lengths([]) is None


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60))
def test_lengths_lose_nobody(numbers: list[int]) -> None:
    found = datasets.lengths([" ".join(["x"] * number) for number in numbers])
    assert found and sum(rows for *_, rows in found.bins) == len(numbers) and len(found.bins) <= 20
    assert found.bins[0][0] == min(numbers) <= max(numbers) <= found.bins[-1][1]
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(found.bins))


# Real tiny runs


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A private run that has made its set and waits for a word on it."""
    tiny = Federation(tmp_path_factory.mktemp("sets") / "f", privacy=PRIVATE, stage1={"approve": "operator"}, stage2={"rounds": 1})
    assert tiny.work(tiny.create()) == 0
    return tiny


@pytest.fixture
def desk(waiting: Federation, cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A copy of it in this test's own home; no worker is started."""
    shutil.copytree(waiting.home, cafe_home, dirs_exist_ok=True)
    with sqlite3.connect(cafe_home / "store.db") as rows:
        rows.execute("UPDATE runs SET folder=replace(folder, ?, ?)", (str(waiting.home), str(cafe_home)))
    monkeypatch.setattr(launch, "spawn", lambda run: None)
    return Desk(cafe_home / "store.db")


def _one(desk: Desk) -> Dataset:
    return datasets.listed(desk)[0]


def test_a_set_that_waits(desk: Desk) -> None:
    one = _one(desk)
    assert one.state == datasets.WAITING and one.size == len(one.rows) == len(one.kept) and one.used_in == ()
    assert one.score and one.made.zero_shot and one.score.n == one.made.zero_shot.n == 9 and one.kept_score is None
    assert datasets.spent(one) == {f"weak{n}": 8.0 for n in range(3)} and datasets.promised(one) == "ε 8 per site, δ = 1e-5"
    assert datasets.making(desk) == [] and datasets.public(one) == ()
    first = one.rows[0]
    assert datasets.matching(one, first.text[:9].upper(), first.answer, range(one.size))[0] == 0
    assert datasets.matching(one, "no such words", None, range(one.size)) == []
    assert "up to ε = 4 at δ = 1e-5; spent privacy is not given back" in approval.goes_on(one)


def test_what_a_second_attempt_costs(desk: Desk) -> None:
    one = _one(desk)
    cost = approval.cost_of_reject(one)
    terms = accounting.calibrate(8, 1e-5, 3, 1.0, "server")
    assert cost.now == 8.0 and cost.after == accounting._epsilon(((accounting.cost(terms), 6),), 1e-5) and 11 < cost.after < 13
    assert cost.told.startswith("A new attempt asks every one of the 3 sites to spend again: ε 8 → about 1")
    assert "not given back" in cost.told and cost.private


def test_rows_are_left_out_and_taken_back_until_the_word_is_given(desk: Desk) -> None:
    one = _one(desk)
    approval.leave_out(desk, one.run, 1, [0, 2, 3])
    approval.leave_out(desk, one.run, 1, [2], out=False)
    one = _one(desk)
    assert one.excluded == {0, 3} and len(one.kept) == one.size - 2 and f"{one.size - 2} of {one.size} rows go on" in approval.goes_on(one)
    assert approval.decide(one, True, "fine", "dana") == "Approved. Stage 2 starts."
    with pytest.raises(CafeError, match="approved already, by dana") as refused:
        approval.leave_out(desk, one.run, 1, [5])
    assert refused.value.code == "CAFE-659" and _one(desk).excluded == {0, 3}
    one = _one(desk)
    assert one.state == datasets.APPROVED and one.told.endswith(": fine") and "dana" in one.told


def test_of_two_operators_the_first_is_heard(desk: Desk) -> None:
    mine = its = _one(desk)
    assert approval.decide(mine, False, "nonsense", "dana") == "Rejected. Attempt 2 starts."
    told = approval.decide(its, True, "", "eli")
    assert told.startswith("Your word came second: this set was rejected by dana on ") and told.endswith(": nonsense")
    one = _one(desk)
    assert one.state == datasets.REJECTED and "eli" not in one.told
    assert [seen.attempt for seen in datasets.making(desk)] == [2]


def test_a_stale_page_does_not_decide_on_the_next_attempt(desk: Desk) -> None:
    """The set of attempt 2 is there when the word on attempt 1 comes late: it is not taken for it."""
    stale = _one(desk)
    approval.decide(stale, False, "nonsense", "dana")
    run = desk.run(stale.run)
    desk.save_step(run.id, run.epoch, "stage1/2/synthetic", stale.sha256, {"rows": stale.size})
    assert approval.decide(stale, True, "", "eli").startswith("Your word came second")
    assert desk.step(run.id, "stage1/2/approval") is None


def test_words_that_lack_something_are_refused(desk: Desk) -> None:
    one = _one(desk)
    with pytest.raises(CafeError) as bare:
        approval.decide(one, False, " \n")
    approval.leave_out(desk, one.run, 1, range(one.size))
    with pytest.raises(CafeError) as empty:
        approval.decide(_one(desk), True, "")
    assert bare.value.code == empty.value.code == "CAFE-612" and _one(desk).state == datasets.WAITING


def test_a_run_without_noise_promises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Federation(tmp_path / "f", stage2={"rounds": 1})
    monkeypatch.setenv("CAFE_HOME", str(tiny.home))
    first = tiny.create()
    assert tiny.work(first) == 0
    monkeypatch.setattr(launch, "spawn", lambda run: None)
    second = launch.start(load(tiny.config).model_copy(update={"synthetic": first})).id
    assert tiny.work(second) == 0
    again, own = datasets.listed(Desk(tiny.home / "store.db"))
    assert (own.run, own.state, own.used_in) == (first, datasets.APPROVED, (first, second)) and "automatically" in own.told
    assert (again.run, again.state, again.used_in) == (second, datasets.AGAIN, (second,)) and first in again.told
    assert again.rows == own.rows and datasets.promised(again) == datasets.promised(own) == accounting.NO_GUARANTEE
    cost = approval.cost_of_reject(own)
    assert not cost.private and "ε 8" not in cost.told and "no ε to add up" in cost.told
