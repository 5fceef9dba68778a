"""A dishonest site: what it sends counts for its clip at most, or not at all; it speaks for nobody else, and stops nobody's round.

Everything behind a site is real: the round, the door, the store, the ledger. The sites are small fakes that send what they like.
"""

from __future__ import annotations

import json
import os
import pickletools
import queue
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cafe_kit.errors import CafeError
from cafe_kit.orders import Blob, Numbers, Order, PrivacyTerms, Reply, TrainParams, Transport, VoteParams, order_hash, parse, sign
from cafe_kit.release import Box, body_to_bytes, bound, clip_steps, sigma_steps, squared_norm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pipeline import site_words
from pipeline.context import RunContext
from pipeline.doubts import Doubts
from pipeline.keys import server_keys
from pipeline.messengers import Doing, FolderMessenger, place
from pipeline.privacy import PrivacyDoor, Release, aggregate
from pipeline.remote_sites import RemoteSites, Way
from pipeline.rounds import Gathered, Round, Schema, gather, total
from pipeline.sites import Answer, Envelope
from server_store.blobs import Blobs
from server_store.ledger import Ledger
from server_store.site_kits import SiteKit, SiteKits
from server_store.store import Store
from tests.fakes import BY_SERVER, BY_SITE, NO_NOISE, TASK, TRAIN

SITES = ("east", "mid", "north", "south", "west")
LENGTH = 12
VOTES: Schema = {"q": ((LENGTH,), "int64")}
UPDATE: Schema = {"layer.lora_A.weight": ((2, 3), "float32"), "layer.lora_B.weight": ((3, 2), "float32")}
VOTE = VoteParams(max_votes_per_candidate=3)
QUIET = replace(BY_SERVER, noise_multiplier=1e-6)  # noise of one step: what comes out is the sum, give or take 14 steps

Sent = bytes | Callable[[Order], "bytes | Answer"]


@dataclass
class World:
    """A run under way, with a store, a ledger, a door and keys of its own."""

    ctx: RunContext
    answers: dict[str, Sent] = field(default_factory=dict)

    def ask(self, envelopes: Sequence[Envelope], on_progress: Any = None) -> Iterator[Answer]:
        """Every site sends its body, sealed as agreed unless it brings an answer of its own."""
        for envelope in envelopes:
            made = self.answers[envelope.order.site]
            sent = made(envelope.order) if callable(made) else made
            yield sent if isinstance(sent, Answer) else self.answer(envelope.order, sent)

    def seal(self, order: Order, data: bytes) -> bytes:
        noised = order.privacy.mechanism == "gaussian" and order.privacy.trust == "local"
        return data if noised else Box.seal(data, self.ctx.keys.sealing.public_key(), order_hash(order).encode())

    def put(self, order: Order, body: bytes) -> Blob:
        (self.ctx.folder / "inbox" / order_hash(order)).write_bytes(body)
        return Blob(sha256(body).hexdigest(), len(body))

    def answer(self, order: Order, data: bytes, **numbers: Any) -> Answer:
        """As an honest site answers, but for what is in the body."""
        told = Numbers(records=10 if order.privacy.mechanism == "none" else None, **numbers)
        return Answer(order, Reply(order_hash(order), order.site, "ok", {"body": self.put(order, self.seal(order, data))}, told))

    def gather(self, terms: PrivacyTerms, schema: Schema = VOTES, params: VoteParams | TrainParams = VOTE, **changes: Any) -> Gathered:
        stage = 1 if isinstance(params, VoteParams) else 2
        asked = Round("r", "round", stage, 1, 1, SITES, terms, params, {}, schema, 1, 60.0)  # type: ignore[arg-type]
        (gathered,) = gather(self.ctx, replace(asked, **changes))
        return gathered

    def row(self, site: str) -> Any:
        return next(row for row in self.ctx.store.orders("run") if row.site == site)

    def events(self, site: str) -> list[tuple[str, str]]:
        return [(event.level, event.text) for event in self.ctx.store.events("run") if event.site == site]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = Store(tmp_path / "store.db")
    (tmp_path / "run").mkdir()
    store.create_run("run", "tiny", tmp_path / "run")
    epoch = store.claim("run", os.getpid())
    ctx = RunContext(
        "run", tmp_path / "run", tmp_path, None, SimpleNamespace(task=TASK), store, epoch, Blobs(tmp_path / "run" / "blobs"),  # type: ignore[arg-type]
        PrivacyDoor(Ledger(tmp_path / "ledger.db"), tmp_path / "run" / "releases"), server_keys(tmp_path), None, None, None, None,  # type: ignore[arg-type]
        lambda: None, {},
    )  # fmt: skip
    made = World(ctx)
    ctx.sites = made  # type: ignore[assignment]
    yield made
    store.close()


def honest(terms: PrivacyTerms, number: int, params: Any = VOTE) -> np.ndarray:
    """What site ``number`` sends, in steps of the grid."""
    rng = np.random.default_rng(number)
    if isinstance(params, VoteParams):
        return bound(rng.integers(0, 3, LENGTH) * terms.grid, terms, params.max_votes_per_candidate)
    return bound(np.rint(rng.standard_normal(LENGTH) * terms.grid).astype(np.int64), terms)


def all_honest(world: World, terms: PrivacyTerms, params: Any = VOTE) -> dict[str, np.ndarray]:
    sent = {site: honest(terms, number, params) for number, site in enumerate(SITES)}
    world.answers |= {site: body_to_bytes({"q": q}) for site, q in sent.items()}
    return sent


def of(terms: PrivacyTerms, statistic: str) -> Release:
    return Release("run", 1 if statistic == "votes" else 2, 1, 1, statistic, terms, SITES, LENGTH)  # type: ignore[arg-type]


# --- influence ---------------------------------------------------------------------------------------------------------


def directions(trials: int) -> list[np.ndarray]:
    """Random ones, along an axis, all the same way, and the largest numbers that a body can hold."""
    rng = np.random.default_rng(3)
    found = [rng.standard_normal(LENGTH) for _ in range(trials)] + [np.eye(LENGTH)[0], -np.eye(LENGTH)[3], np.ones(LENGTH)]
    poison = [np.rint(1e6 * one / np.linalg.norm(one) * QUIET.grid).astype(np.int64) for one in found]
    extremes = np.array([2**63 - 1, -(2**63)] + [0] * (LENGTH - 2), np.int64)
    return [*poison, extremes, np.full(LENGTH, -(2**63), np.int64)]


@pytest.mark.parametrize("number", range(len(directions(8))))
def test_an_update_of_a_million_moves_the_mean_by_its_clip_over_the_public_number_of_sites(world, number):
    sent = all_honest(world, QUIET, TRAIN)
    world.answers["mid"] = body_to_bytes({"q": directions(8)[number]})
    gathered = world.gather(QUIET, params=TRAIN)
    assert ("warning", "train of round 1: not clipped as agreed; it is clipped here") in world.events("mid")
    release, vectors = of(QUIET, "delta"), total(gathered, ["q"])
    others = sum(sent[site] for site in SITES if site != "mid")
    moved = aggregate(release, vectors) - others
    assert squared_norm(moved) <= clip_steps(QUIET) ** 2, "exact, in steps of the grid"
    released = world.ctx.door.release(release, vectors, gathered.hashes).values / len(SITES)
    noise = 14 * sigma_steps(QUIET) * LENGTH**0.5 / QUIET.grid
    assert np.linalg.norm(released - others / QUIET.grid / len(SITES)) <= (QUIET.clip_norm + noise) / len(SITES)


def test_without_the_second_clip_the_same_update_moves_a_million(world):
    """That the test above sees something: the sum of what was sent, unclipped, is far away."""
    sent = all_honest(world, QUIET, TRAIN)
    world.answers["mid"] = body_to_bytes({"q": directions(1)[0]})
    vectors = total(world.gather(QUIET, params=TRAIN), ["q"])
    moved = sum(vectors.values()) - sum(sent[site] for site in SITES if site != "mid")
    assert squared_norm(moved) > (100_000 * clip_steps(QUIET)) ** 2


@pytest.mark.parametrize("votes", [[3] * LENGTH, [3] + [0] * (LENGTH - 1), [0] * LENGTH])
def test_votes_within_the_cap_but_beyond_the_clip(world, votes):
    """Everything allowed for every candidate: still one clip, over all labels together."""
    sent = all_honest(world, QUIET)
    world.answers["mid"] = body_to_bytes({"q": np.array(votes) * QUIET.grid})
    gathered = world.gather(QUIET)
    moved = aggregate(of(QUIET, "votes"), total(gathered, ["q"])) - sum(sent[site] for site in SITES if site != "mid")
    assert squared_norm(moved) <= clip_steps(QUIET) ** 2 and moved.min() >= 0


def test_under_noise_of_the_sites_an_impossible_body_counts_as_zero(world):
    """A second clip would bias what carries noise; what clip and noise can never give is left out."""
    sent = all_honest(world, BY_SITE)
    far = clip_steps(BY_SITE) + 14 * sigma_steps(BY_SITE)
    for poison in (np.full(LENGTH, 10**9), np.array([far + 1] + [0] * (LENGTH - 1)), np.array([-far - 1] + [0] * (LENGTH - 1))):
        vectors = sent | {"mid": poison}
        assert np.array_equal(aggregate(of(BY_SITE, "delta"), vectors), sum(sent[site] for site in SITES if site != "mid"))


# --- bodies that are none ------------------------------------------------------------------------------------------------

ONES = np.ones(LENGTH, np.int64)


def raw(header: Any, payload: bytes = bytes(8 * LENGTH)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def entry(shape: Any = (LENGTH,), dtype: str = "I64", start: int = 0, end: int = 8 * LENGTH) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def zipped() -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("q.npy", bytes(100))
    return made.getvalue()


PICKLE = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."
MALFORMED: dict[str, tuple[bytes, str]] = {
    "too few candidates": (body_to_bytes({"q": ONES[:-1]}), "CAFE-455"),
    "too many candidates": (body_to_bytes({"q": np.ones(LENGTH + 1, np.int64)}), "CAFE-455"),
    "another rank": (body_to_bytes({"q": ONES.reshape(3, 4)}), "CAFE-455"),
    "a scalar": (raw({"q": entry((), end=8)}, bytes(8)), "CAFE-455"),
    "no numbers at all": (raw({"q": entry((0,), end=0)}, b""), "CAFE-455"),
    "a negative shape": (raw({"q": entry((-LENGTH,))}), "CAFE-455"),
    "a shape of text": (raw({"q": entry(("12",))}), "CAFE-455"),
    "floats off the grid": (body_to_bytes({"q": ONES * 0.5}), "CAFE-454"),
    "floats that are no numbers": (body_to_bytes({"q": ONES * np.nan}), "CAFE-454"),
    "smaller integers": (body_to_bytes({"q": ONES.astype(np.int32)}), "CAFE-454"),
    "an unknown type": (raw({"q": entry(dtype="F4")}), "CAFE-454"),
    "another name": (body_to_bytes({"counts": ONES}), "CAFE-453"),
    "a tensor more": (body_to_bytes({"q": ONES, "loss": ONES}), "CAFE-453"),
    "a name that is a path": (body_to_bytes({"../../q": ONES}), "CAFE-453"),
    "metadata": (raw({"__metadata__": {"note": "hello"}, "q": entry()}), "CAFE-453"),
    "no tensor": (raw({}, b""), "CAFE-453"),
    "a name twice": (raw(b'{"q":' + json.dumps(entry()).encode() + b',"q":' + json.dumps(entry()).encode() + b"}"), "CAFE-452"),
    "offsets that overlap": (raw({"q": entry(start=8)}), "CAFE-452"),
    "a header that is a list": (raw([1, 2]), "CAFE-452"),
    "a header nested deeply": (raw(b"[" * 100_000), "CAFE-452"),
    "a header of entries that are none": (raw({"q": 7}), "CAFE-452"),
    "a header without an end": (raw(b'{"q": {'), "CAFE-452"),
    "a header beyond the file": ((2**62).to_bytes(8, "little") + b"{}", "CAFE-451"),
    "a header of many names": (raw({f"t{n}": entry() for n in range(6_000)}), "CAFE-451"),
    "bytes after the end": (body_to_bytes({"q": ONES}) + b"x", "CAFE-451"),
    "cut": (body_to_bytes({"q": ONES})[:-1], "CAFE-451"),
    "empty": (b"", "CAFE-451"),
    "seven bytes": (b"1234567", "CAFE-451"),
    "a pickle": (PICKLE, "CAFE-451"),
    "a zip": (zipped(), "CAFE-451"),
    "votes below zero": (body_to_bytes({"q": ONES * -BY_SERVER.grid}), "CAFE-349"),
    "one vote below zero": (body_to_bytes({"q": np.array([-1] + [0] * (LENGTH - 1))}), "CAFE-349"),
    "more votes for one than count": (body_to_bytes({"q": np.array([3 * BY_SERVER.grid + 1] + [0] * (LENGTH - 1))}), "CAFE-349"),
    "a million votes": (body_to_bytes({"q": ONES * 10**6 * BY_SERVER.grid}), "CAFE-349"),
}


def quarantined(world: World, site: str, code: str, schema: Schema = VOTES) -> None:
    """The reason is in the order's row and shown as an event; the body is gone."""
    row = world.row(site)
    assert (row.state, row.code) == ("failed", code) and row.sentence
    assert [level for level, text in world.events(site) if code in text] == ["warning"]
    inbox = {path.name for path in (world.ctx.folder / "inbox").iterdir()}
    assert row.order_hash not in inbox


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_body_is_put_aside_and_counts_as_zero(world, name):
    data, code = MALFORMED[name]
    sent = all_honest(world, QUIET)
    world.answers["mid"] = data
    gathered = world.gather(QUIET)
    quarantined(world, "mid", code)
    assert set(gathered.bodies) == set(gathered.hashes) == set(SITES) - {"mid"}
    assert np.array_equal(aggregate(of(QUIET, "votes"), total(gathered, ["q"])), sum(sent[site] for site in SITES if site != "mid"))
    world.ctx.door.release(of(QUIET, "votes"), total(gathered, ["q"]), gathered.hashes)
    assert {charge.site for charge in world.ctx.door.ledger.charges(run="run")} == set(SITES), "its silence is in the sum, so it is charged"


def test_the_pickle_of_these_tests_is_one() -> None:
    assert [code.name for code, _, _ in pickletools.genops(PICKLE)][-2:] == ["REDUCE", "STOP"]


SPOILT: dict[str, tuple[Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], str]] = {
    "not a number": (lambda body: body | {"layer.lora_B.weight": np.full((3, 2), np.nan, np.float32)}, "CAFE-456"),
    "endless": (lambda body: body | {"layer.lora_B.weight": np.full((3, 2), -np.inf, np.float32)}, "CAFE-456"),
    "another rank": (lambda body: body | {"layer.lora_A.weight": np.zeros((16, 3), np.float32)}, "CAFE-455"),
    "half precision": (lambda body: {name: tensor.astype(np.float16) for name, tensor in body.items()}, "CAFE-454"),
    "a tensor less": (lambda body: {"layer.lora_A.weight": body["layer.lora_A.weight"]}, "CAFE-453"),
    "the whole model": (lambda body: body | {"embed_tokens.weight": np.zeros((9, 9), np.float32)}, "CAFE-453"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_an_update_without_noise_that_is_not_as_agreed(world, name):
    spoil, code = SPOILT[name]
    good = {tensor: np.full(shape, 0.5, np.float32) for tensor, (shape, _) in UPDATE.items()}
    world.answers = {site: body_to_bytes(good) for site in SITES} | {"mid": body_to_bytes(spoil(good))}
    gathered = world.gather(NO_NOISE, UPDATE, TRAIN)
    quarantined(world, "mid", code)
    release = Release("run", 2, 1, 1, "delta", NO_NOISE, SITES, 12)
    weights = {site: float(number) for site, number in gathered.records.items()}
    mean = world.ctx.door.release(release, total(gathered, sorted(UPDATE)), gathered.hashes, weights)
    assert np.array_equal(mean.values, np.full(12, 0.5))


def test_counts_without_noise_that_are_none(world):
    """Without a guarantee nothing is clipped, so the agreed cap is the bound."""
    schema: Schema = {"counts": ((LENGTH,), "int64")}
    for votes in (ONES * -1, ONES * 4, ONES * 10**12):
        world.ctx.store.delete("run")
        world.ctx.store.create_run("run", "tiny", world.ctx.folder)
        world.ctx.epoch = world.ctx.store.claim("run", os.getpid())
        world.answers = {site: body_to_bytes({"counts": ONES}) for site in SITES} | {"mid": body_to_bytes({"counts": votes})}
        gathered = world.gather(NO_NOISE, schema)
        quarantined(world, "mid", "CAFE-349")
        assert set(gathered.bodies) == set(SITES) - {"mid"}


@pytest.mark.parametrize("records", [None, 0])
def test_an_update_without_a_weight_does_not_stop_the_others(world, records):
    """In a run without noise the mean is weighed by declared sizes: one that is missing would make the mean impossible."""
    good = {tensor: np.full(shape, 0.5, np.float32) for tensor, (shape, _) in UPDATE.items()}
    world.answers = {site: body_to_bytes(good) for site in SITES}

    def weightless(order: Order) -> Answer:
        found = world.answer(order, body_to_bytes(good))
        assert found.reply
        return replace(found, reply=replace(found.reply, numbers=Numbers(records=records)))

    world.answers["mid"] = weightless
    assert set(world.gather(NO_NOISE, UPDATE, TRAIN).bodies) == set(SITES) - {"mid"}
    quarantined(world, "mid", "CAFE-349")


# --- updates that are taken and odd --------------------------------------------------------------------------------------

TERMS = {"noise by the server": QUIET, "noise by the sites": BY_SITE, "no noise": NO_NOISE}
ALL_ZERO = "train of round 1: the update is all zero; it was taken and changes nothing"
AGAIN = "train of round 2: the update is byte for byte that of round 1, so the site has not trained; it was taken"


def update(terms: PrivacyTerms, number: int) -> bytes:
    """One that passes the gate and the clip; of 0 it is all zero."""
    if terms.mechanism == "none":
        return body_to_bytes({name: np.full(shape, number, np.float32) for name, (shape, _) in UPDATE.items()})
    return body_to_bytes({"q": np.full(LENGTH, number, np.int64)})


def updated(world: World, terms: PrivacyTerms, round: int, **numbers: int) -> dict[str, list[tuple[str, str]]]:
    """A round in which all sites send another update each, but for those that are named; what was said of whom until now."""
    sent = {site: 10 * round + place for place, site in enumerate(SITES, start=1)} | numbers
    world.answers = {site: update(terms, number) for site, number in sent.items()}
    gathered = world.gather(terms, UPDATE if terms.mechanism == "none" else VOTES, TRAIN, name=f"r{round}", round=round)
    assert set(gathered.bodies) == set(SITES), "it is taken all the same"
    return {site: world.events(site) for site in SITES if world.events(site)}


@pytest.mark.parametrize("terms", TERMS.values(), ids=list(TERMS))
def test_an_update_that_is_all_zero_is_taken_and_the_operator_alone_is_warned(world, terms):
    assert updated(world, terms, 1, mid=0) == {"mid": [("warning", ALL_ZERO)]}
    assert [event.text for event in world.ctx.store.events("run") if event.confidential] == [ALL_ZERO]
    assert world.ctx.store.public_events("run") == [] and world.ctx.store.newest_events(1)[0][1].confidential
    assert updated(world, terms, 2) == {"mid": [("warning", ALL_ZERO)]}, "honest ones are not spoken of"


@pytest.mark.parametrize("terms", TERMS.values(), ids=list(TERMS))
def test_an_update_that_came_before_is_taken_and_the_operator_alone_is_warned(world, terms):
    assert updated(world, terms, 1, mid=7, south=9) == {}
    assert updated(world, terms, 2, mid=7, north=9) == {"mid": [("warning", AGAIN)]}, "another site's update is none of its own"
    assert world.ctx.store.public_events("run") == []


def test_one_of_two_updates_that_differ_in_a_single_step_is_no_copy(world):
    world.answers = {site: update(QUIET, 5) for site in SITES}
    world.gather(QUIET, params=TRAIN, name="r1")
    nearly = np.full(LENGTH, 5, np.int64)
    nearly[3] += 1
    world.answers = {site: body_to_bytes({"q": nearly}) for site in SITES}
    world.gather(QUIET, params=TRAIN, name="r2", round=2)
    assert not world.ctx.store.events("run")


def test_an_update_of_which_one_tensor_is_zero_is_none_that_is_all_zero(world):
    """As after a single step from a fresh adapter, whose B is zero: A has no gradient yet."""
    half = {name: np.full(shape, float("lora_B" in name), np.float32) for name, (shape, _) in UPDATE.items()}
    world.answers = {site: body_to_bytes(half) for site in SITES}
    world.gather(NO_NOISE, UPDATE, TRAIN)
    assert not world.ctx.store.events("run")


def test_votes_may_be_all_zero_and_the_same_again(world):
    """A site without records of any class gives none."""
    world.answers = {site: body_to_bytes({"q": np.zeros(LENGTH, np.int64)}) for site in SITES}
    for number in (1, 2):
        world.gather(QUIET, name=f"r{number}", round=number)
    assert not world.ctx.store.events("run")


def test_a_round_that_is_asked_again_warns_once_and_is_no_copy_of_itself(world):
    for _ in range(2):
        assert updated(world, BY_SITE, 1, mid=0) == {"mid": [("warning", ALL_ZERO)]}
    world.ctx.doubts = Doubts()  # another worker
    assert updated(world, BY_SITE, 1, mid=0) == {"mid": [("warning", ALL_ZERO)]}


def test_of_what_was_sent_nothing_is_written_down_for_the_comparison(world):
    updated(world, QUIET, 1, mid=7)
    kept = b"".join(path.read_bytes() for path in world.ctx.home.rglob("*") if path.is_file())
    for form in (update(QUIET, 7), sha256(update(QUIET, 7)).digest(), sha256(update(QUIET, 7)).hexdigest().encode()):
        assert form not in kept
    assert world.row("mid").body.encode() in kept, "the hash of the sealed body is there, and so would the other be found"


# --- seals, hashes, two bodies -------------------------------------------------------------------------------------------


def of_another_order(world: World, data: bytes) -> Callable[[Order], Answer]:
    """A body that is good, for another site's order or another set of candidates."""

    def make(order: Order) -> Answer:
        other = replace(order, site="north") if order.site != "north" else replace(order, round=2)
        body = world.put(order, world.seal(other, data))
        return Answer(order, Reply(order_hash(order), order.site, "ok", {"body": body}))

    return make


def to_another_key(world: World, data: bytes) -> Callable[[Order], Answer]:
    def make(order: Order) -> Answer:
        body = world.put(order, Box.seal(data, X25519PrivateKey.generate().public_key(), order_hash(order).encode()))
        return Answer(order, Reply(order_hash(order), order.site, "ok", {"body": body}))

    return make


def named(world: World, data: bytes, body: Callable[[Blob], dict[str, Blob]]) -> Callable[[Order], Answer]:
    def make(order: Order) -> Answer:
        return Answer(order, Reply(order_hash(order), order.site, "ok", body(world.put(order, world.seal(order, data)))))

    return make


def gone(world: World, data: bytes) -> Callable[[Order], Answer]:
    def make(order: Order) -> Answer:
        found = world.answer(order, data)
        (world.ctx.folder / "inbox" / order_hash(order)).unlink()
        return found

    return make


GOOD = body_to_bytes({"q": ONES})
SEALS: dict[str, tuple[Callable[[World, bytes], Callable[[Order], Answer]], str]] = {
    "sealed for another site's order": (of_another_order, "CAFE-459"),
    "sealed to another key": (to_another_key, "CAFE-459"),
    "not sealed": (
        lambda world, data: lambda order: Answer(order, Reply(order_hash(order), order.site, "ok", {"body": world.put(order, data)})),
        "CAFE-459",
    ),
    "no body named": (lambda world, data: named(world, data, lambda body: {}), "CAFE-460"),
    "another output named": (lambda world, data: named(world, data, lambda body: {"model": body}), "CAFE-460"),
    "ten gigabytes": (lambda world, data: named(world, data, lambda body: {"body": replace(body, size=10**10)}), "CAFE-460"),
    "a size beyond numbers": (lambda world, data: named(world, data, lambda body: {"body": replace(body, size=10**400)}), "CAFE-460"),
    "another size": (lambda world, data: named(world, data, lambda body: {"body": replace(body, size=body.size - 1)}), "CAFE-462"),
    "another hash": (lambda world, data: named(world, data, lambda body: {"body": replace(body, sha256="ab" * 32)}), "CAFE-462"),
    "not there": (gone, "CAFE-461"),
}


@pytest.mark.parametrize("name", SEALS)
def test_bytes_that_are_not_those_of_the_reply(world, name):
    make, code = SEALS[name]
    all_honest(world, QUIET)
    world.answers["mid"] = make(world, GOOD)
    assert set(world.gather(QUIET).bodies) == set(SITES) - {"mid"}
    quarantined(world, "mid", code)


def test_two_sites_swap_their_bodies(world):
    """Each is sealed for its own order: neither opens in the other's place."""
    sent = all_honest(world, QUIET)
    pair = {"mid": "north", "north": "mid"}

    def swapped(order: Order) -> Answer:
        other = replace(order, site=pair[order.site])
        body = world.put(order, world.seal(other, body_to_bytes({"q": sent[other.site]})))
        return Answer(order, Reply(order_hash(order), order.site, "ok", {"body": body}))

    world.answers |= {"mid": swapped, "north": swapped}
    assert set(world.gather(QUIET).bodies) == set(SITES) - set(pair)
    for site in pair:
        quarantined(world, site, "CAFE-459")


def test_of_two_bodies_for_one_order_the_first_counts(world):
    sent = all_honest(world, QUIET)
    once = world.ask

    def twice(envelopes: Sequence[Envelope], on_progress: Any = None) -> Iterator[Answer]:
        yield from once(envelopes)
        mid = next(envelope.order for envelope in envelopes if envelope.order.site == "mid")
        yield world.answer(mid, body_to_bytes({"q": ONES * QUIET.grid}))

    world.ctx.sites = SimpleNamespace(ask=twice)  # type: ignore[assignment]
    gathered = world.gather(QUIET)
    assert np.array_equal(gathered.bodies["mid"]["q"], sent["mid"])
    assert ("error", "two different bodies for one order; the first counts") in world.events("mid")
    assert world.row("mid").state == "answered" and world.row("mid").body == gathered.hashes["mid"]


# --- words ---------------------------------------------------------------------------------------------------------------

HOSTILE = "\x1b[31mred\x1b[0m \u202egnihton\u202c\n<script>alert(1)</script> ![x](https://evil/x.png) **bold** `code` $x$ |cell| \x00\x7f"


def test_a_sentence_is_plain_words_before_it_is_kept_or_shown(world):
    all_honest(world, QUIET)

    def refuses(order: Order) -> Answer:
        reply = Reply(order_hash(order), order.site, "refused", code="CAFE-313", sentence=HOSTILE)
        return Answer(order, reply, reply.code, reply.sentence)

    world.answers["mid"] = refuses
    world.gather(QUIET)
    row = world.row("mid")
    assert (row.state, row.code) == ("refused", "CAFE-313") and "alert(1)" in row.sentence
    for told in (row.sentence, *(text for _, text in world.events("mid"))):
        assert told.isprintable() and not set("<>[]`|*$\\\u202e\u202c\x1b") & set(told) and "://" not in told


@pytest.mark.parametrize("told", ["", "CAFE-1", "CAFE-9999", "cafe-313", "CAFE-31x", "<script>", "CAFE-313\n", 313, None])
def test_a_code_that_is_none_is_no_answer(told):
    assert site_words.code(told) == "CAFE-123"


def test_words_and_counts() -> None:
    assert site_words.line("ε 4 of 'north', 50 % (x = 1)") == "ε 4 of 'north', 50 % (x = 1)"
    assert len(site_words.line("x" * 10**6)) == 500 and site_words.line(None) == "None" and site_words.line("é\u0301" * 3).isprintable()
    assert [site_words.count(told) for told in (3, 0, -1, 10**400, True, 2.5, float("inf"), "7", None, [])] == [3] + 9 * [0]


@pytest.mark.parametrize(
    "changes",
    [
        {"kit": "<b>1</b>"},
        {"python": "3\x1b[2J"},
        {"ledger_head": "z" * 64},
        {"ledger_head": "ab"},
        {"records": 10**400},
        {"charges": -1},
        {"charges": 10**400},
        {"seconds_work": 1e300},
        {"seconds_load": -1.0},
        {"mu_squared": float("inf")},
        {"accuracy": 0.9},
    ],
)
def test_figures_beyond_the_closed_list_are_no_reply(changes):
    plain = asdict(Reply("ab" * 32, "north", "ok"))
    assert parse(Reply, plain).site == "north"
    with pytest.raises(CafeError, match="CAFE-101"):
        parse(Reply, plain | {"numbers": plain["numbers"] | changes})


# --- sites of other machines: who speaks ------------------------------------------------------------------------------------


class Mail:
    """A messenger whose sites answer what the test says: order → the document that comes back."""

    def __init__(self, sites: Mapping[str, Callable[[dict[str, Any]], Any]]) -> None:
        self.sites, self.sent = sites, dict[str, dict[str, Any]]()

    def send(self, kit: SiteKit, message: dict[str, Any]) -> str:
        ticket = f"{kit.site}-{len(self.sent)}"
        self.sent[ticket] = message
        return ticket

    def collect(self, tickets: Collection[str]) -> dict[str, Any]:
        found = {ticket: self.sites[self.sent[ticket]["order"]["site"]](self.sent[ticket]) for ticket in tickets}
        return {ticket: told for ticket, told in found.items() if told is not None}

    def forget(self, ticket: str) -> None:
        pass

    def heard(self, kit: SiteKit) -> float | None:
        return None

    def doing(self, kit: SiteKit) -> Doing | None:
        return None


class Shelf:
    """A depot in which nothing travels: a body lies where the order's own transport says."""

    def offer(self, kit: SiteKit, blob: Blob, path: Path, shared: bool = False, anew: bool = False) -> str:
        return str(path)

    def withdraw(self, kit: SiteKit, blob: Blob) -> None:
        pass

    def place(self, kit: SiteKit, order_hash: str, body: Blob | None) -> str:
        return "/body"

    def collect(self, kit: SiteKit, order_hash: str, body: Blob, target: Path) -> None:
        pass

    def clear(self, kit: SiteKit, order_hash: str) -> None:
        pass

    def sweep(self) -> int:
        return 0


@dataclass
class Far:
    """Joined sites with keys of their own, of which some do not keep to the order."""

    folder: Path
    keys: dict[str, Ed25519PrivateKey]
    says: dict[str, Callable[[dict[str, Any]], Any]]

    def honest(self, message: dict[str, Any], **changes: Any) -> dict[str, Any]:
        order = parse(Order, message["order"])
        reply = Reply(order_hash(order), order.site, "ok", {"body": Blob("ab" * 32, 3)}, Numbers(kit="1", ledger_head="cd" * 32, charges=1))
        reply = replace(reply, **changes)
        return {"reply": asdict(reply), "signature": sign(reply, self.keys[order.site])}

    def ask(self, **says: Callable[[dict[str, Any]], Any]) -> dict[str, Answer]:
        """What came of one order for each site."""
        mail = Mail({site: says.get(site, self.honest) for site in SITES})
        sites = RemoteSites(
            self.folder / "kits.db", "tiny", way=lambda kit: Way(mail, Shelf()), may_take_part=lambda kit, name: None, keys={}, poll_s=0.01
        )
        orders = [Order("run", 1, 1, 1, site, TASK, BY_SERVER, {}, VOTE) for site in SITES]
        envelopes = [Envelope(order, "00" * 64, Transport({}, str(self.folder / order.site), 3.0), 1000) for order in orders]
        answers: queue.Queue[Any] = queue.Queue()
        sites.hand_out(envelopes, answers)
        found: dict[str, Answer] = {}
        end = time.monotonic() + 20
        while len(found) < len(SITES) and time.monotonic() < end:
            told = answers.get(timeout=20)
            if isinstance(told, Answer):
                found[told.order.site] = told
        sites.close()
        return found

    def seen(self, site: str) -> dict[str, Any]:
        kits = SiteKits(self.folder / "kits.db")
        try:
            return next(kit.seen for kit in kits.kits("tiny") if kit.site == site)
        finally:
            kits.close()


@pytest.fixture
def far(tmp_path: Path) -> Far:
    made = Far(tmp_path, {site: Ed25519PrivateKey.generate() for site in SITES}, {})
    kits = SiteKits(tmp_path / "kits.db")
    for number, (site, key) in enumerate(made.keys.items()):
        serial, public = f"{number:032x}", key.public_key().public_bytes_raw().hex()
        kits.issue(SiteKit(serial, "tiny", site, "cpu", 0.0, time.time() + 1000, "issued", "", "", ""))
        kits.request(serial, public, {}, time.time())
        kits.approve(serial, public, "the test", time.time())
    kits.close()
    return made


def only_mid_fails(found: dict[str, Answer], code: str) -> None:
    assert {site for site, answer in found.items() if answer.reply and answer.reply.status == "ok"} == set(SITES) - {"mid"}
    assert found["mid"].reply is None and found["mid"].code == code, found["mid"]


def test_honest_sites_are_heard_and_remembered(far):
    found = far.ask()
    assert {answer.reply.status for answer in found.values() if answer.reply} == {"ok"} and len(found) == len(SITES)
    assert far.seen("mid")["ledger_head"] == "cd" * 32 and far.seen("mid")["charges"] == 1


def swap_of(message: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(message["order"])) | changes


SPEAKERS: dict[str, tuple[Callable[[Far, dict[str, Any]], Any], str]] = {
    "in another's name": (lambda far, asked: far.honest(asked, site="north"), "CAFE-125"),
    "with another's key": (
        lambda far, asked: {
            "reply": far.honest(asked)["reply"],
            "signature": sign(parse(Reply, far.honest(asked)["reply"]), far.keys["north"]),
        },
        "CAFE-102",
    ),
    "another's answer": (lambda far, asked: far.honest({"order": swap_of(asked, site="north")}), "CAFE-125"),
    "an answer of another round": (lambda far, asked: far.honest(asked, order_hash="ab" * 32), "CAFE-125"),
    "unsigned": (lambda far, asked: far.honest(asked) | {"signature": ""}, "CAFE-102"),
    "signed by nobody": (lambda far, asked: far.honest(asked) | {"signature": {"no": "text"}}, "CAFE-102"),
    "altered after signing": (
        lambda far, asked: far.honest(asked) | {"reply": far.honest(asked)["reply"] | {"code": "CAFE-313"}},
        "CAFE-102",
    ),
    "a field more": (lambda far, asked: far.honest(asked) | {"reply": far.honest(asked)["reply"] | {"accuracy": 0.9}}, "CAFE-101"),
    "no reply": (lambda far, asked: {}, "CAFE-101"),
    "a reply that is a list": (lambda far, asked: {"reply": [], "signature": ""}, "CAFE-101"),
    "a problem in hostile words": (lambda far, asked: {"problem": {"code": "<script>", "sentence": HOSTILE}}, "CAFE-123"),
    "a problem that is none": (lambda far, asked: {"problem": {"code": ["x"], "sentence": {"a": 1}}}, "CAFE-123"),
    "a head that would break the next order": (
        lambda far, asked: far.honest(asked) | {"reply": far.honest(asked)["reply"] | {"numbers": {"ledger_head": "z" * 64}}},
        "CAFE-101",
    ),
    "ten gigabytes": (lambda far, asked: far.honest(asked, outputs={"body": Blob("ab" * 32, 10**10)}), "CAFE-460"),
    "no answer at all": (lambda far, asked: None, "CAFE-124"),
    "something that nobody foresaw": (lambda far, asked: 7, "CAFE-124"),  # tried again until the deadline
}


@pytest.mark.parametrize("name", SPEAKERS)
def test_a_site_speaks_for_nobody_else_and_stops_nobody(far, name):
    say, code = SPEAKERS[name]
    found = far.ask(mid=lambda asked: say(far, asked))
    only_mid_fails(found, code)
    assert found["mid"].sentence.isprintable() and not set("<>[]`|*$") & set(found["mid"].sentence)
    assert far.seen("mid") == {} or code == "CAFE-460", "nothing is remembered that the site did not sign"


def test_two_sites_swap_their_answers(far):
    """Envelopes crossed: each sends what the other was asked, correctly signed by itself."""

    def crossed(asked: dict[str, Any]) -> dict[str, Any]:
        other = {"mid": "north", "north": "mid"}[asked["order"]["site"]]
        reply = parse(Reply, far.honest({"order": swap_of(asked, site=other)})["reply"])
        return {"reply": asdict(reply), "signature": sign(reply, far.keys[asked["order"]["site"]])}

    found = far.ask(mid=crossed, north=crossed)
    assert {found[site].code for site in ("mid", "north")} == {"CAFE-125"}
    assert {site for site, answer in found.items() if answer.reply} == set(SITES) - {"mid", "north"}


def test_another_body_for_the_same_order(far):
    """First told one hash, then another: the first counts, and the operator is told."""
    told = iter([Blob("ab" * 32, 3), Blob("cd" * 32, 3)])

    class Late(Shelf):
        def place(self, kit: SiteKit, order_hash: str, body: Blob | None) -> str:
            return "" if body is None else "/body"

    mail = Mail({"mid": lambda asked: far.honest(asked, outputs={"body": next(told)})})
    sites = RemoteSites(
        far.folder / "kits.db", "tiny", way=lambda kit: Way(mail, Late()), may_take_part=lambda kit, name: None, keys={}, poll_s=0.01
    )
    order = Order("run", 1, 1, 1, "mid", TASK, BY_SERVER, {}, VOTE)
    (answer,) = sites.ask([Envelope(order, "00" * 64, Transport({}, str(far.folder / "mid"), 5.0), 1000)])
    sites.close()
    assert answer.reply is None and answer.code == "CAFE-186"


# --- files that a site may put into the folder ----------------------------------------------------------------------------------


def in_folder(tmp_path: Path) -> SiteKit:
    kit = SiteKit("0" * 32, "tiny", "mid", "cpu", 0.0, 0.0, "approved", "", str(tmp_path), "")
    place(kit, "site", "answers").mkdir(parents=True)
    return kit


def test_what_lies_in_the_exchange_is_not_waited_for(tmp_path):
    kit = in_folder(tmp_path)
    ticket = str(place(kit, "server", "orders", "1-mid.vote.json"))
    answer = place(kit, "site", "answers", "1-mid.vote.json")
    (tmp_path / "secret.json").write_text('{"reply": {}, "signature": ""}')
    puts: list[Callable[[], object]] = [
        lambda: os.mkfifo(answer),
        lambda: answer.symlink_to(tmp_path / "secret.json"),
        lambda: answer.symlink_to("/dev/zero"),
        answer.mkdir,
    ]
    for put in puts:
        put()
        assert FolderMessenger().collect([ticket]) == {}
        answer.rmdir() if answer.is_dir() and not answer.is_symlink() else answer.unlink()
    for data in (b"x" * 300_000, b"[" * 100_000, b"[]", b"{", b"\xff", b""):
        answer.write_bytes(data)
        told = FolderMessenger().collect([ticket])[ticket]
        assert isinstance(told, CafeError) and told.code == "CAFE-170"


@pytest.mark.parametrize(
    "doing",
    [
        '{"order_hash": "a", "phase": "x", "done": Infinity, "of": 1}',
        '{"order_hash": "a", "phase": "x", "done": NaN, "of": 1}',
        '{"order_hash": "a", "phase": "x", "done": 1' + 400 * "0" + ', "of": 1}',
        '{"order_hash": "a", "phase": "\\u001b[31m<b>\\u202e' + 100 * "x" + '", "done": -1, "of": "2"}',
        '{"order_hash": "a"}',
        "[]",
        '"x"',
    ],
)
def test_a_sign_of_life_is_words_and_small_numbers(tmp_path, doing):
    kit = in_folder(tmp_path)
    place(kit, "site", "alive.json").write_text(f'{{"time": 1, "doing": {doing}}}')
    told = FolderMessenger().doing(kit)
    assert told is None or ((told.done, told.of) in ((0, 1), (0, 0)) and told.phase.isprintable() and len(told.phase) <= 40)
    place(kit, "site", "alive.json").unlink()
    os.mkfifo(place(kit, "site", "alive.json"))
    assert FolderMessenger().doing(kit) is None
