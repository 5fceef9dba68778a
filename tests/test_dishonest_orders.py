"""A dishonest server, and whoever stands in its place: every order that asks for too much is refused with a code, and nothing happens.

Nothing: the ledger, the outbox and every file of the site, of its data and around them are as they were. What may be asked once is
asked again in disguise, and gets the same sealed bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cafe_kit import enrolment, limits
from cafe_kit.errors import CafeError
from cafe_kit.ledger import SiteLedger
from cafe_kit.orders import Blob, HelloParams, Order, PrivacyTerms, Reply, VoteParams, order_hash, parse, sign, verify
from cafe_kit.policy import TEMPLATE, Policy, load_policy
from cafe_kit.release import body_to_bytes
from cafe_kit.seat import REFUSALS, Seat
from cafe_kit.seat_config import SeatConfig
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tests.fakes import BY_SERVER, BY_SITE, NO_NOISE, TASK, TRAIN, TinyEngine, TinyServer
from tests.site_place import Place, make_place
from tests.test_seat import Untouchable, quiet

Json = dict[str, Any]


class World:
    """A site as it is joined: its home, its data in a folder of their own, and a folder that it shares with the server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.private, self.home = folder, folder / "private", folder / "home"
        self.server = TinyServer(folder / "exchange")
        told = self.server.seat_config("north")
        self.private.mkdir()
        self.data = self.private / "north.jsonl"
        (self.server.folder / "north.jsonl").rename(self.data)
        (self.private / "other.csv").write_text("not for anybody\n")
        self.home.mkdir(mode=0o700)
        told |= {"home": str(self.home), "data": {"path": str(self.data)}}
        self.config = SeatConfig.model_validate(told | {"task": TASK, "reach": [str(self.server.folder)]})
        self.allow()

    def allow(self, **settings: Any) -> None:
        """The site's own limits."""
        (self.home / "policy.toml").write_text(limits.edited(TEMPLATE, settings))

    def order(self, kind: str = "train", privacy: PrivacyTerms = BY_SERVER, **changes: Any) -> Order:
        return self.server.order("north", kind, privacy, **changes)

    def ask(self, order: Order | None = None, **transport: Any) -> Json:
        asked = self.server.ask(order or self.order())
        asked["transport"] |= transport
        return asked

    def put(self, name: str, data: bytes) -> Blob:
        """A file where the server puts its inputs."""
        (self.server.folder / name).write_bytes(data)
        return self.server.blob(name)

    def answer(self, asked: Json, engine: Any = None) -> Reply:
        """The site's answer, its signature checked."""
        seat = Seat(self.config)
        reply, signature = seat.answer(asked["order"], asked["signature"], asked["transport"], engine or TinyEngine(), quiet)
        verify(reply, signature, Ed25519PublicKey.from_public_bytes(bytes.fromhex(seat.verify_key)))
        return reply

    def everything(self) -> dict[str, str]:
        """All that must stay as it is: every file but the site's own log, and what a link points to."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.is_symlink():
                found[name] = f"-> {path.readlink()}"
            elif path.is_file() and not name.startswith("home/log/") and path.stat().st_size < 2**30:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def charges(self) -> int:
        return SiteLedger(self.home / "ledger").verify()


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    Seat(made.config)
    return made


def refused(world: World, asked: Json, code: str, engine: Any = None) -> Reply:
    """Refused with this code, and nothing has happened."""
    before, charged = world.everything(), world.charges()
    reply = world.answer(asked, engine or Untouchable())
    assert (reply.code, reply.outputs) == (code, {}), reply.sentence
    assert reply.status == ("refused" if code in REFUSALS else "failed")
    assert world.everything() == before and world.charges() == charged
    assert "north message" not in reply.sentence and str(world.private) not in reply.sentence
    return reply


# --- one order alone ---------------------------------------------------------------------------------------------------

Make = Callable[[World], Json]


def signed(**changes: Any) -> Make:
    """Signed by the server itself: it may sign what it likes."""
    return lambda world: world.ask(replace(world.order(), **changes))


def terms(**changes: Any) -> Make:
    return signed(privacy=replace(BY_SERVER, **changes))


def vote(**changes: Any) -> Make:
    return lambda world: world.ask(world.order("vote", **changes))


def raw(path: str, value: Any) -> Make:
    """A field of the message replaced, also by what no order holds; signed again where it still is an order."""

    def make(world: World) -> Json:
        asked = json.loads(json.dumps(world.ask()))
        *way, last = path.split("/")
        place = asked
        for key in way:
            place = place[key]
        place[last] = value
        try:
            return asked | {"signature": sign(parse(Order, asked["order"]), world.server.signing)}
        except CafeError:
            return asked

    return make


def with_transport(**changes: Any) -> Make:
    return lambda world: world.ask(**{name: str(value(world)) if callable(value) else value for name, value in changes.items()})


def adapter_at(place: Callable[[World], str]) -> Make:
    return lambda world: world.ask(inputs={"base_model": str(world.server.folder / "base_model"), "adapter": place(world)})


def input_of(name: str, data: bytes, claim: Callable[[Blob], Blob] = lambda blob: blob) -> Make:
    """An order whose candidates or adapter are these bytes, correctly named unless ``claim`` says otherwise."""

    def make(world: World) -> Json:
        kind = "vote" if name == "candidates" else "train"
        blob = claim(world.put(name, data))
        order = world.order(kind)
        return world.ask(replace(order, inputs={**order.inputs, name: blob}))

    return make


def stranger(world: World) -> Json:
    return replace(world.server, signing=Ed25519PrivateKey.generate()).ask(world.order())


def forged(world: World) -> Json:
    asked = world.ask()
    return asked | {"signature": "00" * 64}


def signature_of_another_order(world: World) -> Json:
    return world.ask() | {"signature": world.ask(world.order(round=2))["signature"]}


def altered(world: World) -> Json:
    asked = world.ask()
    asked["order"]["privacy"]["noise_multiplier"] = 0.5
    return asked


def nested(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def fifo(world: World) -> str:
    os.mkfifo(world.server.folder / "pipe")
    return str(world.server.folder / "pipe")


def link_to(target: Callable[[World], Path]) -> Callable[[World], str]:
    def make(world: World) -> str:
        (world.server.folder / "link").symlink_to(target(world))
        return str(world.server.folder / "link")

    return make


def sparse(world: World) -> Json:
    """A file that is as large as the order says: ten gigabytes."""
    with (world.server.folder / "adapter").open("r+b") as file:
        file.truncate(10 * 10**9)
    order = world.order("vote")
    claim = {"base_model": world.server.blob("base_model"), "adapter": Blob("ab" * 32, 10 * 10**9)}
    return world.ask(replace(order, stage=2, params=TRAIN, inputs=claim), inputs={name: str(world.server.folder / name) for name in claim})


def candidates(*lines: Any) -> bytes:
    return b"".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n" for line in lines)


GOOD = {"answer": "billing", "text": "a bill"}
BIG_HEADER = struct.pack("<Q", 2**62) + b"{}"
ORDERS: dict[str, tuple[Make, str]] = {
    # less noise, or more of it than can be computed with
    "little noise": (terms(noise_multiplier=0.1), "CAFE-313"),
    "hardly any noise": (terms(noise_multiplier=1e-300), "CAFE-313"),
    "no noise in a private order": (terms(noise_multiplier=0.0), "CAFE-312"),
    "minus no noise": (terms(noise_multiplier=-0.0), "CAFE-312"),
    "negative noise": (raw("order/privacy/noise_multiplier", -2.0), "CAFE-101"),
    "noise that is no number": (raw("order/privacy/noise_multiplier", float("nan")), "CAFE-101"),
    "endless noise": (raw("order/privacy/noise_multiplier", float("inf")), "CAFE-101"),
    "noise as text": (raw("order/privacy/noise_multiplier", "2.0"), "CAFE-101"),
    "noise beyond the grid": (terms(noise_multiplier=1e308), "CAFE-302"),
    # a clip or a grid that bounds nothing
    "a huge clip": (terms(clip_norm=1e300), "CAFE-301"),
    "a clip beyond the grid": (terms(clip_norm=2.0**31, grid=2), "CAFE-301"),
    "a clip below one step": (terms(clip_norm=1e-9, grid=1), "CAFE-301"),
    "no clip": (raw("order/privacy/clip_norm", 0.0), "CAFE-101"),
    "a negative clip": (raw("order/privacy/clip_norm", -4.0), "CAFE-101"),
    "a clip that is no number": (raw("order/privacy/clip_norm", float("nan")), "CAFE-101"),
    "a grid beyond integers": (terms(clip_norm=1e-300, grid=10**301), "CAFE-343"),
    "a grid of steps that overflow": (terms(clip_norm=1e-15, grid=2**61), "CAFE-343"),
    "a grid of none": (raw("order/privacy/grid", 0), "CAFE-101"),
    "a broken grid": (raw("order/privacy/grid", 1024.5), "CAFE-101"),
    # other promises
    "an unknown mechanism": (raw("order/privacy/mechanism", "laplace"), "CAFE-101"),
    "a unit that is smaller": (raw("order/privacy/unit", "record"), "CAFE-101"),
    "an unknown trust": (raw("order/privacy/trust", "nobody"), "CAFE-101"),
    "a promise more": (raw("order/privacy/seed", 7), "CAFE-101"),
    # votes and training beyond use
    "votes without end": (vote(params=VoteParams(max_votes_per_candidate=10**30)), "CAFE-343"),
    "votes that overflow the grid": (vote(params=VoteParams(max_votes_per_candidate=2**53)), "CAFE-343"),
    "a billion steps": (signed(params=replace(TRAIN, steps=10**9)), "CAFE-343"),
    "a huge batch": (signed(params=replace(TRAIN, batch_size=10**9)), "CAFE-343"),
    "a huge rank": (signed(params=replace(TRAIN, lora_rank=10**9)), "CAFE-343"),
    "a million threads": (signed(params=replace(TRAIN, threads=10**6)), "CAFE-343"),
    # who asks
    "forged": (forged, "CAFE-102"),
    "unsigned": (lambda world: world.ask() | {"signature": ""}, "CAFE-102"),
    "another order's signature": (signature_of_another_order, "CAFE-102"),
    "another server's signature": (stranger, "CAFE-102"),
    "altered after signing": (altered, "CAFE-102"),
    "a signature that is none": (lambda world: world.ask() | {"signature": "'; --"}, "CAFE-102"),
    # what is no order
    "an unknown kind": (raw("order/params", {"kind": "shell", "command": "ls"}), "CAFE-101"),
    "an unknown field": (raw("order/command", "ls"), "CAFE-101"),
    "code": (raw("order/params/code", "import os"), "CAFE-101"),
    "an unknown field of the transport": (raw("transport/headers", {"Authorization": "x"}), "CAFE-101"),
    "nothing": (raw("order", None), "CAFE-101"),
    "a list": (raw("order", [1]), "CAFE-101"),
    "larger than 64 kB": (signed(task=replace(TASK, description="x" * 70_000)), "CAFE-101"),
    "a transport larger than 64 kB": (raw("transport/output", "/" + "x" * 70_000), "CAFE-101"),
    "nested deeply": (raw("order/task/labels", nested(900)), "CAFE-101"),
    "nested without end": (lambda world: world.ask() | {"order": nested(100_000)}, "CAFE-101"),
    "half a letter": (raw("order/task/description", "\ud800"), "CAFE-101"),
    "a number without end": (raw("order/round", 10**5000), "CAFE-101"),
    "a run with a path": (raw("order/run", "../../evil"), "CAFE-101"),
    "a head that is none": (raw("transport/seen_head", "x"), "CAFE-101"),
    "an old protocol": (signed(protocol=0), "CAFE-103"),
    "a later protocol": (signed(protocol=2), "CAFE-103"),
    "another site's": (signed(site="south"), "CAFE-104"),
    # other questions of the data
    "other labels": (signed(task=replace(TASK, labels=("billing", "HIV"))), "CAFE-344"),
    "a label left out": (signed(task=replace(TASK, labels=("card",))), "CAFE-344"),
    "another kind of data": (signed(task=replace(TASK, kind="instruction", labels=())), "CAFE-344"),
    "a free question for a label": (
        lambda world: world.ask(world.order("hello", NO_NOISE, task=replace(TASK, labels=("HIV",)), params=HelloParams())),
        "CAFE-344",
    ),
    # inputs
    "an input too many": (
        lambda world: world.ask(world.order(inputs={n: world.server.blob("adapter") for n in ("base_model", "adapter", "../data")})),
        "CAFE-105",
    ),
    "an input too few": (lambda world: world.ask(world.order(inputs={"base_model": world.server.blob("base_model")})), "CAFE-105"),
    "an input of the site's": (adapter_at(lambda world: str(world.data)), "CAFE-345"),
    "an input up and down again": (adapter_at(lambda world: f"{world.server.folder}/inbox/../../private/other.csv"), "CAFE-345"),
    "the site's key as input": (adapter_at(lambda world: str(world.home / "site.key")), "CAFE-345"),
    "a link out of the exchange": (adapter_at(link_to(lambda world: world.data)), "CAFE-345"),
    "a link to itself": (adapter_at(link_to(lambda world: world.server.folder / "link")), "CAFE-345"),
    "a file of the system": (adapter_at(lambda world: "/etc/passwd"), "CAFE-345"),
    "a device": (adapter_at(lambda world: "/dev/zero"), "CAFE-345"),
    "an address of a file": (adapter_at(lambda world: "file:///etc/passwd"), "CAFE-345"),
    "an address of this network": (adapter_at(lambda world: "http://169.254.169.254/latest/meta-data"), "CAFE-345"),
    "an address that is none": (adapter_at(lambda world: "http://[::1"), "CAFE-345"),
    "a relative input": (adapter_at(lambda world: "adapter"), "CAFE-345"),
    "no place for an input": (adapter_at(lambda world: ""), "CAFE-345"),
    "a NUL in an input": (adapter_at(lambda world: f"{world.server.folder}/a\0b"), "CAFE-345"),
    "an input that waits for ever": (adapter_at(fifo), "CAFE-106"),
    "an input that is a folder": (adapter_at(lambda world: str(world.server.folder / "inbox")), "CAFE-106"),
    "an input that is not there": (adapter_at(lambda world: str(world.server.folder / "nowhere")), "CAFE-106"),
    "ten gigabytes": (sparse, "CAFE-343"),
    "a claim of ten gigabytes": (input_of("adapter", b"x", lambda blob: replace(blob, size=10 * 10**9)), "CAFE-343"),
    "a claim of one byte more": (input_of("adapter", b"x", lambda blob: replace(blob, size=2)), "CAFE-107"),
    "another hash": (input_of("adapter", b"x", lambda blob: replace(blob, sha256="ab" * 32)), "CAFE-107"),
    # hostile files, correctly named
    "an adapter that is a pickle": (input_of("adapter", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix."), "CAFE-107"),
    "an adapter with a huge header": (input_of("adapter", BIG_HEADER), "CAFE-107"),
    "an empty adapter": (input_of("adapter", b""), "CAFE-107"),
    "candidates nested deeply": (input_of("candidates", b'{"answer":' + b"[" * 100_000 + b"]" * 100_000 + b',"text":"x"}\n'), "CAFE-111"),
    "candidates that are no numbers": (input_of("candidates", b'{"answer":NaN,"text":"x"}\n'), "CAFE-111"),
    "candidates with vectors": (input_of("candidates", candidates(GOOD | {"embedding": [1.0]})), "CAFE-111"),
    "candidates of another form": (input_of("candidates", b'{"text": "a bill", "answer": "billing"}\n'), "CAFE-111"),
    "candidates without an end": (input_of("candidates", candidates(GOOD).rstrip()), "CAFE-111"),
    "a flood of candidates": (input_of("candidates", b"\n" * 200_001), "CAFE-112"),
    # places for the answer
    "an answer into the home": (with_transport(output=lambda world: world.home / "body"), "CAFE-131"),
    "an answer over the key": (with_transport(output=lambda world: world.home / "site.key"), "CAFE-131"),
    "an answer over the limits": (with_transport(output=lambda world: world.home / "policy.toml"), "CAFE-131"),
    "an answer into the ledger": (with_transport(output=lambda world: world.home / "ledger" / "00000001.json"), "CAFE-131"),
    "an answer into the outbox": (with_transport(output=lambda world: world.home / "outbox" / "x"), "CAFE-131"),
    "an answer over the data": (with_transport(output=lambda world: world.data), "CAFE-131"),
    "an answer over other data": (with_transport(output=lambda world: world.private / "other.csv"), "CAFE-131"),
    "an answer up and down again": (with_transport(output=lambda world: f"{world.server.folder}/../home/site.key"), "CAFE-131"),
    "an answer through a link": (with_transport(output=link_to(lambda world: world.home / "policy.toml")), "CAFE-131"),
    "an answer into a folder that is a link": (
        with_transport(output=lambda world: Path(link_to(lambda world: world.private)(world)) / "x"),
        "CAFE-131",
    ),
    "an answer into the system": (with_transport(output="/etc/cron.d/evil"), "CAFE-131"),
    "an answer to a relative place": (with_transport(output="here"), "CAFE-131"),
    "an answer with a NUL": (with_transport(output="/tmp/a\0b"), "CAFE-131"),
    "an answer to an address of this network": (with_transport(output="http://169.254.169.254/x"), "CAFE-131"),
    # a ledger that somebody remembers otherwise
    "a head that the ledger does not have": (with_transport(seen_head="ab" * 32), "CAFE-329"),
}


@pytest.mark.parametrize("name", ORDERS)
def test_refused_with_a_code_and_nothing_happened(world, name):
    make, code = ORDERS[name]
    inputs = {name: (world.server.folder / name).read_bytes() for name in ("adapter", "candidates")}
    refused(world, make(world), code)
    for file, data in inputs.items():
        world.put(file, data)
    assert world.answer(world.ask(world.order(run="honest"))).status == "ok", "an honest order is answered as before"


def test_there_are_enough_of_them() -> None:
    assert len(ORDERS) >= 90 and len({code for _, code in ORDERS.values()}) >= 15


# --- what is refused while or after it is computed -----------------------------------------------------------------------


def spoilt(world: World, change: Callable[[np.ndarray], np.ndarray]) -> Json:
    tensors = {f"layer.{n}.lora_{m}.weight": change(np.full((2, 3), 0.01, np.float32)) for n in (1, 2) for m in "AB"}
    return input_of("adapter", body_to_bytes(tensors))(world)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("trust", ["server", "local", "none"])
def test_an_adapter_that_is_not_finite(world, value, trust):
    world.put("adapter", body_to_bytes({"layer.1.lora_B.weight": np.full((2, 3), value, np.float32)}))
    order = world.order(privacy=NO_NOISE if trust == "none" else replace(BY_SERVER, trust=trust))
    refused(world, world.ask(order), "CAFE-403" if trust == "none" else "CAFE-303", TinyEngine())


def test_numbers_beyond_the_grid_are_not_released(world):
    refused(world, spoilt(world, lambda tensor: tensor * np.float32(1e38)), "CAFE-303", TinyEngine())


def test_candidates_without_one_and_of_other_classes(world):
    """With the real vote: the engine of the tests would not mind."""

    class Real(TinyEngine):
        def vote(self, *given: Any) -> np.ndarray:
            from cafe_kit.vote import vote

            class Embeds:
                def embed(self, texts: Any) -> np.ndarray:
                    return np.ones((len(texts), 2), np.float32)

            return vote(*given[:4], Embeds())

    refused(world, input_of("candidates", b"")(world), "CAFE-113", Real())
    refused(world, input_of("candidates", candidates(GOOD, {"answer": "HIV", "text": "x"}))(world), "CAFE-114", Real())


def test_markup_among_candidates_is_a_text_like_others(world):
    asked = input_of("candidates", candidates(GOOD, {"answer": "card", "text": "<script>\x1b[2J\u202e"}))(world)
    assert world.answer(asked).status == "ok"
    written = next((world.home / "outbox").glob("*/contents.json")).read_text(encoding="utf-8")
    assert not {"\x1b", "\u202e"} & set(written)


# --- the same again, in disguise -----------------------------------------------------------------------------------------

DISGUISES: dict[str, Json] = {
    "more noise": {"privacy": replace(BY_SITE, noise_multiplier=9.0)},
    "less noise": {"privacy": replace(BY_SITE, noise_multiplier=1.9)},
    "trust swapped": {"privacy": replace(BY_SITE, trust="server")},
    "no promise": {"privacy": NO_NOISE},
    "another clip": {"privacy": replace(BY_SITE, clip_norm=3.0)},
    "another grid": {"privacy": replace(BY_SITE, grid=2048)},
    "another cap": {"params": VoteParams(max_votes_per_candidate=7)},
    "another description": {"task": replace(TASK, description="something else")},
    "labels in another order": {"task": replace(TASK, labels=tuple(reversed(TASK.labels)))},
}


@pytest.mark.parametrize("name", DISGUISES)
def test_one_statistic_is_answered_once(world, name):
    """Another draw of the same counts would halve the noise: whatever differs, it is the same release."""
    order = world.order("vote", BY_SITE)
    assert world.answer(world.ask(order)).status == "ok"
    refused(world, world.ask(replace(order, **DISGUISES[name])), "CAFE-317")


def test_other_candidates_in_the_same_round(world):
    order = world.order("vote", BY_SITE)
    assert world.answer(world.ask(order)).status == "ok"
    refused(world, input_of("candidates", candidates(GOOD))(world), "CAFE-317")


def spelt_otherwise(asked: Json) -> Json:
    """The same order in other words: sorted otherwise, whole numbers for floats, another place and time."""
    order = json.loads(json.dumps(asked["order"]))
    order = {name: order[name] for name in reversed(list(order))}
    order["privacy"] |= {"clip_norm": 4, "noise_multiplier": 2}
    output = asked["transport"]["output"] + ".again"
    return asked | {"order": order, "transport": asked["transport"] | {"deadline_s": 7.0, "output": output}}


@pytest.mark.parametrize("trust", [NO_NOISE, BY_SERVER, BY_SITE], ids=["none", "server", "local"])
def test_the_same_order_gets_the_same_bytes(world, trust):
    asked = world.ask(world.order("vote", trust))
    first = world.answer(asked)
    again = world.answer(spelt_otherwise(asked) if trust is not NO_NOISE else asked | {"transport": asked["transport"]})
    assert again == first and world.charges() == 1
    sent = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (world.server.folder / "inbox").iterdir()}
    assert sent == {first.outputs["body"].sha256}


def test_an_old_order_is_not_drawn_again(world):
    """Its body was dropped two rounds later; the charge was not."""
    orders = [world.order("vote", BY_SITE, round=number) for number in range(1, 5)]
    world.allow(max_epsilon=None)
    for order in orders:
        assert world.answer(world.ask(order)).status == "ok"
    (world.server.folder / "inbox" / order_hash(orders[0])).unlink()
    refused(world, world.ask(orders[0]), "CAFE-132")


# --- limits over many orders -----------------------------------------------------------------------------------------------


def answered(world: World, orders: list[Order]) -> int:
    """How many of them, in a row, until the first refusal."""
    for number, order in enumerate(orders):
        if world.answer(world.ask(order)).status != "ok":
            return number
    return len(orders)


@pytest.mark.parametrize("again", ["round", "attempt", "run", "stage", "kind"])
def test_the_limit_over_everything_holds_whatever_the_order_is_called(world, again):
    world.allow(max_epsilon=3.0)  # two answers at mu = 1/2
    named: dict[str, list[Json]] = {
        "round": [{"round": number} for number in range(1, 6)],
        "attempt": [{"attempt": number} for number in range(1, 6)],
        "run": [{"run": f"run-{number}"} for number in range(1, 6)],
        "stage": [{"stage": stage, "round": number} for number in (1, 2) for stage in (1, 2)],
        "kind": [{}, {"params": TRAIN, "stage": 2}, {"round": 2}, {"params": TRAIN, "stage": 2, "round": 2}],
    }
    orders = [world.order("train" if "params" in changes else "vote", BY_SITE, **changes) for changes in named[again]]
    assert answered(world, orders) == 2 and world.charges() == 2
    refused(world, world.ask(orders[2]), "CAFE-313")


def test_the_limit_of_one_run(world):
    world.allow(max_epsilon=20.0, max_epsilon_per_run=3.0)
    assert answered(world, [world.order("vote", BY_SITE, round=number) for number in range(1, 6)]) == 2
    refused(world, world.ask(world.order("vote", BY_SITE, round=3)), "CAFE-313")
    assert answered(world, [world.order("vote", BY_SITE, run="other", round=number) for number in range(1, 6)]) == 2


def test_a_round_more_than_allowed(world):
    world.allow(max_epsilon=None, max_rounds_per_run=3)
    orders = [world.order("vote", NO_NOISE, round=number) for number in range(1, 6)]
    assert answered(world, orders) == 3
    refused(world, world.ask(orders[3]), "CAFE-314")
    refused(world, world.ask(world.order("train", BY_SITE, round=9)), "CAFE-314")


@pytest.mark.parametrize(
    ("settings", "order", "code"),
    [
        ({"allow_without_noise": False}, {"privacy": NO_NOISE}, "CAFE-311"),
        ({"min_noise_multiplier": 3.0}, {}, "CAFE-312"),
        ({"trust": ["local"]}, {}, "CAFE-346"),
        ({"kinds": ["hello", "vote"]}, {}, "CAFE-310"),
        ({"min_rows": 13}, {}, "CAFE-315"),
    ],
)
def test_what_the_site_does_not_allow(world, settings, order, code):
    world.allow(**settings)
    refused(world, world.ask(world.order(**order)), code)


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("https://10.0.0.5/admin", "CAFE-345"),
        ("https://intranet.example.org/adapter", "CAFE-345"),
        ("http://localhost:1/adapter", "CAFE-345"),
        ("https://s3.example.org.evil.example/adapter", "CAFE-345"),
        ("https://evils3.example.org/adapter", "CAFE-345"),
        ("https://s3.example.org@evil.example/adapter", "CAFE-345"),
        ("http://127.0.0.1:1/adapter", "CAFE-162"),  # named, and nobody there
    ],
)
def test_only_the_named_hosts_are_asked(world, place, code):
    """Else the server could learn which hosts the site's own network has, order after order, and for nothing."""
    world.allow(store_hosts=["s3.example.org", "127.0.0.1"])
    refused(world, adapter_at(lambda world: place)(world), code)
    if code == "CAFE-345":  # one that names an account is no link at all
        refused(world, world.ask(output=place), "CAFE-131" if "@" in place else code)
    assert load_policy(world.home / "policy.toml").allows_link("https://bucket.s3.example.org:9000/x?X-Amz-Signature=1")


def test_a_named_host_more_is_a_raise(world):
    few, more, any_ = (Policy(store_hosts=hosts) for hosts in (["a.example"], ["a.example", "b.example"], None))
    assert (
        limits.raised(few, more) == limits.raised(few, any_) == ["store_hosts"]
        and limits.raised(any_, few) == limits.raised(more, few) == []
    )


def test_a_paused_site(world):
    asked = world.ask()
    assert world.answer(asked).status == "ok"
    (world.server.folder / "inbox" / order_hash(world.order())).unlink()
    limits.pause(world.home)
    refused(world, asked, "CAFE-320")  # what was answered before does not leave again, either
    refused(world, world.ask(world.order("hello", NO_NOISE)), "CAFE-320")
    limits.resume(world.home)
    assert world.answer(asked).status == "ok"


def test_limits_that_cannot_be_read_allow_nothing(world):
    (world.home / "policy.toml").write_text("max_epsilon = ")
    with pytest.raises(CafeError, match="CAFE-316"):
        Seat(world.config)
    world.allow()
    seat, asked = Seat(world.config), world.ask()
    (world.home / "policy.toml").write_text("max_epsilon = -1.0")
    reply, _ = seat.answer(asked["order"], asked["signature"], asked["transport"], Untouchable(), quiet)
    assert reply.code == "CAFE-316" and world.charges() == 0


def one_of_eight(world: World, number: int) -> None:
    """A process of the site answers an order of its own; how it ended is the exit status."""
    reply = world.answer(world.ask(world.order("vote", BY_SITE, round=number)))
    os._exit({"": 0, "CAFE-313": 13}.get(reply.code, 1))


@pytest.mark.parametrize("trial", range(3))
def test_eight_writers_and_one_last_slot(world, trial):
    """Eight processes, each with an order of its own, and room for one more answer: one gets it."""
    world.allow(max_epsilon=3.0)
    assert world.answer(world.ask(world.order("vote", BY_SITE, round=100))).status == "ok"
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            one_of_eight(world, number)
        children.append(child)
    ended = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert ended == [0] + 7 * [13]
    assert world.charges() == 2 and SiteLedger(world.home / "ledger").spent(1e-5) <= 3.0
    assert len(list((world.server.folder / "inbox").iterdir())) == 2


# --- a ledger that was set back ---------------------------------------------------------------------------------------------


def test_a_home_from_an_older_backup_spends_nothing(world, tmp_path):
    """Restored whole, outbox and all: the site itself cannot know, but the server remembers the head."""
    old = tmp_path.parent / f"{tmp_path.name}-backup"
    assert world.answer(world.ask(world.order("vote", BY_SITE))).status == "ok"
    shutil.copytree(world.home, old)
    seen = world.answer(world.ask(world.order("vote", BY_SITE, round=2))).numbers.ledger_head
    assert world.answer(world.ask(world.order("vote", BY_SITE, round=3), seen_head=seen)).status == "ok"
    shutil.rmtree(world.home)
    old.rename(world.home)
    reply = refused(world, world.ask(world.order("vote", BY_SITE, round=4), seen_head=seen), "CAFE-329")
    assert "of 1 charges" in reply.sentence
    refused(world, world.ask(world.order("hello", NO_NOISE), seen_head=seen), "CAFE-329")


def test_every_head_that_the_ledger_ever_had_is_known(world):
    """A reply may have been lost: the server then remembers an older head, which is no reason to refuse."""
    heads = [""]
    world.allow(max_epsilon=None)
    for number in range(1, 4):
        heads.append(world.answer(world.ask(world.order("vote", BY_SITE, round=number))).numbers.ledger_head)
    for number, head in enumerate(heads, start=10):
        assert world.answer(world.ask(world.order("vote", BY_SITE, round=number), seen_head=head)).status == "ok"


def test_the_site_is_told_why_and_the_server_is_not(world):
    """A line of the data is the site's own business; its log has it, the reply has only the code."""
    lines = world.data.read_text().splitlines()
    lines[6] = json.dumps({"text": "a message", "label": "HIV"})
    world.data.write_text("\n".join(lines) + "\n")
    reply = refused(world, world.ask(), "CAFE-213")
    assert "7" not in reply.sentence and "HIV" not in reply.sentence
    assert "Line 7 has a label" in (world.home / "log" / "site.log").read_text()


# --- the whole way: a joined site, and its answering process ------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A site that was let in."""
    monkeypatch.setattr(enrolment, "_code_key", functools.cache(enrolment._code_key))
    made = make_place(tmp_path)
    assert made.join().returncode == 3
    made.approve()
    assert made.join().returncode == 0
    return made


def process(place: Place, asked: Json) -> Json:
    """What ``cafe-site answer`` says to the message, in a process of its own."""
    (place.exchange / f"{place.info.serial}.site" / "bodies").mkdir(parents=True, exist_ok=True)
    known = place.environment(None) | {
        "CAFE_KIT_ENGINE": "tests.fakes:TinyEngine",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    line = [sys.executable, "-m", "cafe_kit.cli", "answer"]
    done = subprocess.run(line, input=json.dumps(asked).encode(), env=known, cwd=place.folder, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told["reply"] if "reply" in told else told["problem"]


def message(place: Place, changed: Callable[[Order], Order] = lambda order: order, **transport: Any) -> Json:
    order = changed(place.server.order("north", "vote", BY_SITE))
    asked = place.server.ask(order)
    output = str(place.exchange / f"{place.info.serial}.site" / "bodies" / order_hash(order))
    asked["transport"] |= {"output": output} | {name: str(value) for name, value in transport.items()}
    return asked


def test_a_joined_site_refuses_in_its_own_process(place):
    """Limits as consented to, the task as the kit named it, the folder as agreed: none of it is said anew by an order."""
    home = {path: path.read_bytes() for path in sorted(place.home.rglob("*")) if path.is_file() and path.parent.name != "log"}
    codes = {
        "CAFE-313": message(place, lambda order: replace(order, privacy=replace(BY_SITE, noise_multiplier=0.5))),
        "CAFE-344": message(place, lambda order: replace(order, task=replace(TASK, labels=("HIV",)))),
        "CAFE-102": message(place) | {"signature": "00" * 64},
        "CAFE-131": message(place, output=place.home / "site.key"),
        "CAFE-329": message(place, seen_head="ab" * 32),
        "CAFE-104": message(place, lambda order: replace(order, site="south")),
    }
    astray = message(place)
    astray["transport"]["inputs"]["candidates"] = f"{place.exchange}/../{place.data.relative_to(place.folder)}"
    for code, asked in (codes | {"CAFE-345": astray}).items():
        told = process(place, asked)
        assert (told["code"], told.get("outputs")) == (code, {}), told
    after = {path: path.read_bytes() for path in home}
    assert after == home and not list((place.exchange / f"{place.info.serial}.site" / "bodies").iterdir())
    assert place.json("status")["answers"] == 0


def test_an_order_of_before_is_no_order_after_leaving(place):
    """Captured and sent again: while the site was in it gets the same bytes; after it has left nothing."""
    asked = message(place)
    first = process(place, asked)
    body = Path(asked["transport"]["output"])
    assert first["status"] == "ok" and process(place, asked) == first
    body.unlink()
    assert place.run("leave", "--yes").returncode == 0
    told = process(place, asked)
    assert "code" in told and told.get("status") != "ok" and not body.exists()
    assert not (place.home / "site.key").exists(), "no new key comes into being by an old order"


def test_an_order_of_before_is_no_order_after_the_operator_took_his_yes_back(place):
    asked = message(place)
    assert process(place, asked)["status"] == "ok"
    body = Path(asked["transport"]["output"])
    body.unlink()
    place.approve(approved=False, sealed="", reason="revoked")
    shutil.copy(place.exchange / enrolment.answer_name(place.info.serial), place.home / "answer.json")
    assert process(place, asked)["code"] == "CAFE-154" and not body.exists()
