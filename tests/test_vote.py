"""Stage 1 at a site: who gets a vote, what the cap does, and the one form of a list of candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from cafe_kit import vote as module
from cafe_kit.errors import CafeError
from cafe_kit.orders import VoteParams
from cafe_kit.task import Record, Task
from cafe_kit.vote import candidates_from_bytes, candidates_to_bytes, vote
from hypothesis import given
from hypothesis import strategies as st

ROUTING = Task(kind="classification", description="", labels=("billing", "cardiology", "dental"))
CHAT = Task(kind="instruction", description="")
FREE = VoteParams(max_votes_per_candidate=10**6)


class Plane:
    """An embedder of "x y" texts: the unit vector in that direction."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        points = np.array([[float(part) for part in text.split()[:2]] for text in texts], np.float32)
        return points / np.linalg.norm(points, axis=1, keepdims=True)


class Hashed:
    """An embedder of any text: a unit vector from its hash, always the same one."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        points = np.array([np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts], np.float32) - 127.5
        return points / np.linalg.norm(points, axis=1, keepdims=True)


def billing(*texts: str) -> list[Record]:
    return [Record(text, "billing") for text in texts]


def test_each_record_votes_for_the_nearest_candidate() -> None:
    counts = vote(FREE, ROUTING, billing("1 0.1", "0.1 1", "0 5"), billing("1 0", "0 1", "-1 0"), Plane())
    assert counts.tolist() == [1, 2, 0] and counts.dtype == np.int64


def test_it_is_the_angle_that_counts_and_not_the_distance() -> None:
    assert vote(FREE, ROUTING, billing("100 1"), billing("1 1", "1 0"), Plane()).tolist() == [0, 1]


def test_of_equally_near_candidates_the_first_gets_the_vote() -> None:
    assert vote(FREE, ROUTING, billing("1 0"), billing("0 1", "1 1", "1 -1", "1 1"), Plane()).tolist() == [0, 1, 0, 0]


def test_votes_stay_in_the_class_and_a_class_without_candidates_casts_none() -> None:
    records = [Record("1 0", "billing"), Record("1 0", "dental"), Record("1 0", "dental")]
    candidates = [Record("0 1", "billing"), Record("1 0", "cardiology")]
    assert vote(FREE, ROUTING, records, candidates, Plane()).tolist() == [1, 0]


def test_instruction_data_are_one_class_and_the_answer_counts() -> None:
    seen: list[str] = []

    class Listening(Plane):
        def embed(self, texts: Sequence[str]) -> np.ndarray:
            seen.extend(texts)
            return super().embed(texts)

    records, candidates = [Record("1 0", "a"), Record("0 1", "b")], [Record("1 0", "c"), Record("0 1", "d")]
    assert vote(FREE, CHAT, records, candidates, Listening()).tolist() == [1, 1]
    assert "1 0\na" in seen


def test_cap_per_candidate() -> None:
    records = billing(*["1 0"] * 9, "0 1")
    assert vote(VoteParams(max_votes_per_candidate=4), ROUTING, records, billing("1 0", "0 1"), Plane()).tolist() == [4, 1]


def test_no_records_no_votes() -> None:
    assert vote(FREE, ROUTING, [], billing("1 0", "0 1"), Plane()).tolist() == [0, 0]


def test_refused_candidates() -> None:
    for candidates, code in (([], "CAFE-113"), ([Record("1 0", "surgery")], "CAFE-114")):
        with pytest.raises(CafeError) as caught:
            vote(FREE, ROUTING, billing("1 0"), candidates, Plane())
        assert caught.value.code == code


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    records, candidates = billing(*map(str, range(500))), billing(*(f"c{i}" for i in range(37)))
    whole = vote(FREE, ROUTING, records, candidates, Hashed())
    for size in (1, 40, 37 * 11):
        monkeypatch.setattr(module, "_CHUNK", size)
        assert np.array_equal(vote(FREE, ROUTING, records, candidates, Hashed()), whole)


some_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
some_records = st.lists(st.builds(Record, text=some_text, answer=st.sampled_from(ROUTING.labels)))
some_candidates = some_records.filter(bool)


@given(some_records, some_candidates, st.integers(1, 5))
def test_bounds(records: list[Record], candidates: list[Record], cap: int) -> None:
    counts = vote(VoteParams(max_votes_per_candidate=cap), ROUTING, records, candidates, Hashed())
    assert counts.shape == (len(candidates),) and counts.min() >= 0 and counts.max() <= cap
    for label in ROUTING.labels:
        mine = [i for i, candidate in enumerate(candidates) if candidate.answer == label]
        voters = sum(record.answer == label for record in records)
        assert counts[mine].sum() <= voters
        if cap >= voters and mine:
            assert counts[mine].sum() == voters


@given(st.data(), some_records, some_candidates)
def test_order_of_the_records_changes_nothing(data: st.DataObject, records: list[Record], candidates: list[Record]) -> None:
    shuffled = data.draw(st.permutations(records))
    assert np.array_equal(vote(FREE, ROUTING, records, candidates, Hashed()), vote(FREE, ROUTING, shuffled, candidates, Hashed()))


@given(some_records, some_candidates, st.sampled_from(ROUTING.labels))
def test_one_record_more_changes_one_count_by_at_most_one(records: list[Record], candidates: list[Record], label: str) -> None:
    params = VoteParams(max_votes_per_candidate=2)
    more = vote(params, ROUTING, [*records, Record("one more", label)], candidates, Hashed())
    change = more - vote(params, ROUTING, records, candidates, Hashed())
    assert change.min() >= 0 and change.sum() <= 1


@given(some_records)
def test_candidates_round_trip(candidates: list[Record]) -> None:
    assert candidates_from_bytes(candidates_to_bytes(candidates)) == candidates


def test_candidates_have_one_form() -> None:
    assert candidates_to_bytes([Record("né\n", "a")]) == '{"answer":"a","text":"né\\n"}\n'.encode()


@pytest.mark.parametrize("data", [
    b'{"answer":"a","text":"b"}', b'{"text":"b","answer":"a"}\n', b'{"answer": "a","text":"b"}\n', b'{"answer":"a","text":"b","id":1}\n',
    b'{"answer":"a"}\n', b'{"answer":"a","text":1}\n', b'{"answer":"a","text":null}\n', b'["a","b"]\n', b'"a"\n', b"\n", b"{\n", b"\xff\n",
    b'{"answer":"a","text":"b"}\n\n', b'{"answer":"a","text":"x","text":"b"}\n', b'{"answer":"a","text":"\\u00e9"}\n',
    b'{"answer":"a","text":"\\ud800"}\n', b"\xef\xbb\xbf" + b'{"answer":"a","text":"b"}\n', b"[" * 100_000 + b"\n",
])  # fmt: skip
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CafeError) as caught:
        candidates_from_bytes(data)
    assert caught.value.code == "CAFE-111"


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        assert candidates_to_bytes(candidates_from_bytes(data)) == data
    except CafeError as error:
        assert error.code == "CAFE-111"


def test_too_many_and_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    three = candidates_to_bytes(billing("a", "b", "c"))
    monkeypatch.setattr(module, "MAX_CANDIDATES", 2)
    for call in (lambda: candidates_from_bytes(three), lambda: candidates_to_bytes(billing("a", "b", "c"))):
        with pytest.raises(CafeError) as caught:
            call()
        assert caught.value.code == "CAFE-112"
    monkeypatch.setattr(module, "MAX_CANDIDATES", 10)
    monkeypatch.setattr(module, "MAX_CANDIDATE_BYTES", 20)
    with pytest.raises(CafeError) as caught:
        candidates_from_bytes(three)
    assert caught.value.code == "CAFE-112"
    with pytest.raises(CafeError):
        candidates_to_bytes([Record("\ud800", "a")])
