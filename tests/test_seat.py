"""One site answers one order: at least once, with the same bytes, charged before it is noised, and never more than agreed."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cafe_kit.errors import CafeError
from cafe_kit.ledger import SiteLedger
from cafe_kit.orders import Order, PrivacyTerms, Reply, order_hash, verify
from cafe_kit.release import body_from_bytes, bound, clip_steps, to_grid
from cafe_kit.seat import Request, Seat, answer_many
from cafe_kit.seat_config import SeatConfig
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tests.fakes import BY_SERVER, BY_SITE, NO_NOISE, TRAIN, TinyEngine, TinyServer

VOTES = ((6,), "int64")
DELTA = ((24,), "int64")  # four tensors of 2 x 3
FAILPOINTS = [
    "site.before_work", "site.before_charge", "site.after_charge", "seal.before_write", "seal.half_written", "seal.before_rename",
    "seal.after_rename", "site.after_seal", "site.before_publish", "site.after_publish",
]  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> TinyServer:
    return TinyServer(tmp_path)


@pytest.fixture
def config(server: TinyServer) -> SeatConfig:
    return SeatConfig.model_validate(server.seat_config("north"))


def quiet(*_: Any) -> None:
    pass


def ask(seat: Seat, server: TinyServer, order: Order, engine: Any = None, **changes: Any) -> Reply:
    """The seat's answer, its signature checked. ``changes`` replace parts of what travels."""
    asked = server.ask(order) | changes
    reply, signature = seat.answer(asked["order"], asked["signature"], asked["transport"], engine or TinyEngine(), quiet)
    verify(reply, signature, Ed25519PublicKey.from_public_bytes(bytes.fromhex(seat.verify_key)))
    return reply


def charges(config: SeatConfig) -> int:
    return SiteLedger(Path(config.home) / "ledger").verify()


def bodies(config: SeatConfig) -> list[str]:
    return sorted(path.name for path in Path(config.home).glob("outbox/*/body.*"))


def killed_at(point: str, act: Callable[[], object]) -> None:
    """Do ``act`` in a process of its own, which dies by SIGKILL at the failpoint."""
    child = os.fork()
    if child == 0:
        os.environ["CAFE_FAILPOINT"] = point
        try:
            act()
        finally:
            os._exit(0)  # came through: the failpoint was never passed
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9, f"{point} was never passed"


# --- what an answer is ---------------------------------------------------------------------------------------------


def test_votes_without_noise_are_counts_sealed_to_the_server(server, config):
    order = server.order("north", "vote")
    reply = ask(Seat(config), server, order)
    counts = body_from_bytes(server.open(order), {"counts": VOTES})["counts"]
    assert reply.status == "ok" and reply.numbers.records == 12 and counts.sum() == 12
    with pytest.raises(CafeError):
        body_from_bytes(server.output(order).read_bytes(), {"counts": VOTES})


@pytest.mark.parametrize("kind", ["vote", "train"])
def test_a_private_answer_is_on_the_grid_within_the_clip_and_says_no_counts(server, config, kind):
    terms = replace(BY_SERVER, clip_norm=0.125)
    order = server.order("north", kind, terms)
    reply = ask(Seat(config), server, order)
    q = body_from_bytes(server.open(order), {"q": VOTES if kind == "vote" else DELTA})["q"]
    assert 0 < int(q @ q) <= clip_steps(terms) ** 2
    assert reply.numbers.records is None


def test_all_tensors_are_clipped_together_in_the_order_of_their_names(server, config):
    order = server.order("north", "train", BY_SERVER)
    ask(Seat(config), server, order)
    plain = server.order("north", "train", NO_NOISE, round=order.round, run="other")
    ask(Seat(config), server, plain)
    schema = {f"layer.{n}.lora_{m}.weight": ((2, 3), "float32") for n in (1, 2) for m in "AB"}
    deltas = body_from_bytes(server.open(plain), schema)
    flat = np.concatenate([deltas[name].ravel() for name in sorted(schema)])
    expected = bound(to_grid(flat, BY_SERVER.grid), BY_SERVER)
    assert np.array_equal(body_from_bytes(server.open(order), {"q": DELTA})["q"], expected)


def test_noise_of_the_site_is_there_and_of_the_agreed_size(server, config):
    seat, spread = Seat(config), []
    for n in range(8):
        local, clean = server.order("north", "train", BY_SITE, run=f"l{n}"), server.order("north", "train", BY_SERVER, run=f"s{n}")
        (Path(config.home) / "policy.toml").write_text("")  # no limit
        seat = Seat(config)
        assert ask(seat, server, local).status == ask(seat, server, clean).status == "ok"
        noised, exact = (body_from_bytes(server.open(order), {"q": DELTA})["q"] for order in (local, clean))
        spread.append(noised - exact)
    score = np.sum((np.concatenate(spread) / (2.0 * clip_steps(BY_SITE))) ** 2)  # chi-square with 192 degrees of freedom
    assert 192 - 7 * 19.6 < score < 192 + 7 * 19.6


def test_hello_reads_the_data_charges_nothing_and_says_no_counts(server, config):
    reply = ask(Seat(config), server, server.order("north", "hello"))
    assert reply.status == "ok" and reply.outputs == {} and reply.numbers.records is None
    assert charges(config) == 0
    Path(config.data.path).write_text("")
    assert ask(Seat(config), server, server.order("north", "hello")).status == "failed"


def test_the_home_is_private_and_made_once(config):
    first = Seat(config).verify_key
    home = Path(config.home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700 and stat.S_IMODE((home / "site.key").stat().st_mode) == 0o600
    assert Seat(config).verify_key == first
    home.chmod(0o755)
    with pytest.raises(CafeError, match="CAFE-133"):
        Seat(config)


# --- at least once, the same bytes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [NO_NOISE, BY_SERVER, BY_SITE], ids=["none", "server", "local"])
def test_a_hundred_asks_one_answer(server, config, terms):
    order, seen, replies = server.order("north", "train", terms), set(), set()
    for n in range(100):
        if n % 20 == 0:
            seat = Seat(config)
        replies.add(json.dumps(asdict(ask(seat, server, order))))
        seen.add(sha256(server.output(order).read_bytes()).hexdigest())
        server.output(order).unlink()
    assert len(seen) == len(replies) == charges(config) == len(bodies(config)) == 1


def as_it_is(seat: Seat) -> Seat:
    return seat


def survives(server: TinyServer, config: SeatConfig, point: str, terms: PrivacyTerms, change: Callable[[Seat], Seat] = as_it_is) -> None:
    """Kill the site at ``point``, ask again, and compare what was seen from outside. ``change`` plants a bug."""
    order = server.order("north", "train", terms)
    killed_at(point, lambda: ask(change(Seat(config)), server, order))
    passed = FAILPOINTS.index(point)
    assert charges(config) == (1 if passed >= FAILPOINTS.index("site.after_charge") else 0), "charged before anything is drawn or written"
    whole = [name for name in bodies(config) if name.count(".") == 1]
    assert len(whole) == (1 if passed >= FAILPOINTS.index("seal.after_rename") else 0)
    seen = server.output(order).read_bytes() if server.output(order).exists() else None
    reply = ask(change(Seat(config)), server, order)
    body = server.output(order).read_bytes()
    assert reply.status == "ok" and sha256(body).hexdigest() == reply.outputs["body"].sha256
    assert seen in (None, body), "what was out before the kill is what is out after it"
    assert bodies(config) == (whole or [f"body.{reply.outputs['body'].sha256}"]), "a whole body is adopted, never drawn again"
    assert charges(config) == 1


@pytest.mark.parametrize("terms", [BY_SERVER, BY_SITE], ids=["server", "local"])
@pytest.mark.parametrize("point", FAILPOINTS)
def test_a_kill_anywhere_leaves_one_charge_and_one_body(server, config, point, terms):
    survives(server, config, point, terms)


def redraws(seat: Seat) -> Seat:
    """A planted bug: what a crash left is thrown away and drawn again."""
    seat._outbox.recover = lambda order_hash: None  # type: ignore[method-assign]
    return seat


def charges_late(seat: Seat) -> Seat:
    """A planted bug: the charge comes when the answer is out."""
    charge, publish = seat._ledger.charge, seat._outbox.publish
    waiting: list[Any] = []
    seat._ledger.charge = lambda *given: waiting.append(given)  # type: ignore[method-assign, assignment]

    def publish_then_charge(*given: Any) -> None:
        publish(*given)
        charge(*waiting.pop())

    seat._outbox.publish = publish_then_charge  # type: ignore[method-assign]
    return seat


@pytest.mark.parametrize("bug", [redraws, charges_late])
def test_the_kill_test_catches_a_planted_bug(server, config, bug):
    with pytest.raises(AssertionError):
        survives(server, config, "seal.after_rename", BY_SITE, bug)


@pytest.mark.soak
def test_kills_at_random_times(server, config):
    """A site answers two hundred orders while it is killed again and again; what was seen once is what stays."""
    (Path(config.home)).mkdir(parents=True, mode=0o700)
    (Path(config.home) / "policy.toml").write_text("")
    kinds = [(kind, terms) for kind in ("train", "vote") for terms in (BY_SITE, BY_SERVER)]
    orders = [server.order("north", kind, terms, round=n, run=terms.trust) for n in range(50) for kind, terms in kinds]
    chance, seen, kills, done, patience = random.Random(5), dict[str, bytes](), 0, 0, 0.2
    while done < len(orders):
        child = os.fork()
        if child == 0:
            seat = Seat(config)
            for order in orders[done:]:
                ask(seat, server, order)
            os._exit(0)
        time.sleep(chance.uniform(0.0, patience))
        os.kill(child, 9)
        kills += os.waitpid(child, 0)[1] == 9
        for order in orders:
            if (place := server.output(order)).exists():
                assert seen.setdefault(place.name, place.read_bytes()) == place.read_bytes()
        charged = SiteLedger(Path(config.home) / "ledger")
        assert set(seen) <= {charge.order_hash for charge in charged.charges}
        before, done = done, sum(order_hash(order) in seen for order in orders)
        patience *= 0.8 if done > before else 1.3  # about half of the seats get somewhere, on a fast machine and on a busy one
    assert kills >= 20 and charges(config) == len(orders) == len(seen)


def test_a_body_that_cannot_be_delivered_is_kept(server, config):
    order = server.order("north", "vote", BY_SITE)
    shutil.rmtree(server.folder / "inbox")
    assert (reply := ask(Seat(config), server, order)).code == "CAFE-131" and reply.status == "failed"
    kept = bodies(config)
    (server.folder / "inbox").mkdir()
    reply = ask(Seat(config), server, order)
    assert reply.status == "ok" and [f"body.{reply.outputs['body'].sha256}"] == kept and charges(config) == 1


def test_what_was_lost_is_not_drawn_again(server, config):
    order = server.order("north", "vote", BY_SITE)
    ask(Seat(config), server, order)
    body = next(Path(config.home).glob("outbox/*/body.*"))
    body.write_bytes(b"x" + body.read_bytes()[1:])
    assert ask(Seat(config), server, order).code == "CAFE-132"
    shutil.rmtree(body.parent)
    assert ask(Seat(config), server, order).code == "CAFE-132"
    assert charges(config) == 1 and bodies(config) == []


def test_a_ledger_that_was_set_back_stops_the_site(server, config):
    ask(Seat(config), server, server.order("north", "vote", BY_SITE))
    shutil.rmtree(Path(config.home) / "ledger")
    with pytest.raises(CafeError, match="CAFE-319"):
        Seat(config)


def test_bodies_of_old_rounds_go_and_their_hashes_stay(server, config):
    seat = Seat(config)
    orders = [server.order("north", "train", round=n) for n in range(1, 5)]
    replies = [ask(seat, server, order) for order in orders]
    assert sorted(name[5:] for name in bodies(config)) == sorted(reply.outputs["body"].sha256 for reply in replies[2:])
    assert ask(seat, server, orders[0]).code == "CAFE-132"
    assert ask(seat, server, orders[3]) == replies[3] and charges(config) == 4


# --- what a site refuses -------------------------------------------------------------------------------------------


class Untouchable(TinyEngine):
    """Nothing may be computed."""

    def vote(self, *_: Any) -> np.ndarray:
        raise AssertionError("an order that was to be refused was computed")

    train = vote  # type: ignore[assignment]


def changed(path: str, value: Any) -> Callable[[TinyServer], dict[str, Any]]:
    """An order whose field at ``path`` is replaced; signed by the server again where it still is an order."""

    def make(server: TinyServer) -> dict[str, Any]:
        asked = server.ask(server.order("north", "train", BY_SERVER))
        *way, last = path.split("/")
        place = asked
        for key in way:
            place = place[key]
        place[last] = value
        return asked

    return make


def resigned(**changes: Any) -> Callable[[TinyServer], dict[str, Any]]:
    return lambda server: server.ask(replace(server.order("north", "train", BY_SERVER), **changes))


def by_a_stranger(server: TinyServer) -> dict[str, Any]:
    return replace(server, signing=Ed25519PrivateKey.generate()).ask(server.order("north", "train", BY_SERVER))


def deep(server: TinyServer) -> dict[str, Any]:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    return changed("order/task", nested)(server)


HOSTILE = {
    "unknown field": (changed("order/command", "ls"), "CAFE-101"),
    "missing field": (lambda server: changed("order", {"site": "north"})(server), "CAFE-101"),
    "wrong type": (changed("order/round", "1"), "CAFE-101"),
    "not a number": (changed("order/params/learning_rate", float("nan")), "CAFE-101"),
    "unknown kind": (changed("order/params", {"kind": "shell", "command": "ls"}), "CAFE-101"),
    "a list": (changed("order", []), "CAFE-101"),
    "nothing": (changed("order", None), "CAFE-101"),
    "a nest": (deep, "CAFE-101"),
    "a site with a path": (changed("order/site", "../north"), "CAFE-101"),
    "oversized": (changed("order/task/description", "x" * 70_000), "CAFE-101"),
    "oversized transport": (changed("transport/output", "/" + "x" * 70_000), "CAFE-101"),
    "transport with extras": (changed("transport/headers", {}), "CAFE-101"),
    "no signature": (changed("signature", ""), "CAFE-102"),
    "altered after signing": (changed("order/privacy/noise_multiplier", 0.5), "CAFE-102"),
    "a stranger's": (by_a_stranger, "CAFE-102"),
    "another protocol": (resigned(protocol=99), "CAFE-103"),
    "another site's": (resigned(site="south"), "CAFE-104"),
    "path-like input": (lambda s: resigned(inputs={"base_model": s.blob("base_model"), "../../data": s.blob("adapter")})(s), "CAFE-105"),
    "an input too few": (lambda s: resigned(inputs={"base_model": s.blob("base_model")})(s), "CAFE-105"),
    "input not there": (changed("transport/inputs/adapter", "/nowhere"), "CAFE-106"),
    "input a device": (changed("transport/inputs/adapter", "/dev/zero"), "CAFE-106"),
    "input with a NUL": (changed("transport/inputs/adapter", "a\0b"), "CAFE-106"),
    "input of other bytes": (lambda s: changed("transport/inputs/adapter", str(s.folder / "candidates"))(s), "CAFE-107"),
    "another base model": (lambda s: changed("transport/inputs/base_model", str(s.folder / "inbox"))(s), "CAFE-107"),
    "input no safetensors": (lambda s: changed("transport/inputs/adapter", str(s.folder / "candidates"))(
        s) | _signed_for(s, "candidates"), "CAFE-107"),
    "output relative": (changed("transport/output", "somewhere"), "CAFE-131"),
    "output in the home": (lambda s: changed("transport/output", str(s.folder / "inbox/../homes/north/site.key"))(s), "CAFE-131"),
    "output on the data": (lambda s: changed("transport/output", str(s.folder / "north.jsonl"))(s), "CAFE-131"),
    "no noise in a private order": (resigned(privacy=replace(BY_SERVER, noise_multiplier=0.0)), "CAFE-312"),
    "too dear": (resigned(privacy=replace(BY_SERVER, noise_multiplier=0.1)), "CAFE-313"),
}  # fmt: skip


def _signed_for(server: TinyServer, name: str) -> dict[str, Any]:
    """The order and its signature, with the file ``name`` as adapter."""
    asked = server.ask(server.order("north", inputs={"base_model": server.blob("base_model"), "adapter": server.blob(name)}))
    return {"order": asked["order"], "signature": asked["signature"]}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_a_code_and_nothing_spent(server, config, name):
    make, code = HOSTILE[name]
    seat, asked = Seat(config), make(server)
    key = (Path(config.home) / "site.key").read_bytes()
    reply, signature = seat.answer(asked["order"], asked["signature"], asked["transport"], Untouchable(), quiet)
    verify(reply, signature, Ed25519PublicKey.from_public_bytes(bytes.fromhex(seat.verify_key)))
    assert (reply.code, reply.outputs) == (code, {}) and reply.status in ("refused", "failed")
    assert (Path(config.home) / "site.key").read_bytes() == key
    assert charges(config) == 0 and bodies(config) == [] and not list((server.folder / "inbox").iterdir())


def test_two_orders_for_one_release(server, config):
    seat = Seat(config)
    assert ask(seat, server, server.order("north", "vote", BY_SITE)).status == "ok"
    other = server.order("north", "vote", replace(BY_SITE, noise_multiplier=3.0))
    assert ask(seat, server, other, Untouchable()).code == "CAFE-317"
    assert charges(config) == 1 and not server.output(other).exists()


def test_a_kind_that_the_admin_took_off_the_list(server, config):
    Seat(config)
    (Path(config.home) / "policy.toml").write_text('kinds = ["hello"]\n')
    assert ask(Seat(config), server, server.order("north", "vote"), Untouchable()).code == "CAFE-310"


def test_too_few_rows(server, config):
    Seat(config)
    (Path(config.home) / "policy.toml").write_text("min_rows = 13\n")
    reply = ask(Seat(config), server, server.order("north", "vote"), Untouchable())
    assert (reply.status, reply.code) == ("refused", "CAFE-315") and "12" not in reply.sentence


# --- what goes wrong inside ----------------------------------------------------------------------------------------


class Diverges(TinyEngine):
    def train(self, *given: Any) -> dict[str, dict[str, np.ndarray]]:
        return {site: {name: tensor * np.float32("nan") for name, tensor in delta.items()} for site, delta in super().train(*given).items()}


class Quotes(TinyEngine):
    """Fails like a library that puts the text that it chokes on into its message."""

    def train(self, *given: Any) -> Any:
        raise ValueError(f"cannot tokenise {given[4]}")


class Slow(TinyEngine):
    def __init__(self) -> None:
        self._pause = 0.05


@pytest.mark.parametrize("terms", [NO_NOISE, BY_SERVER, BY_SITE], ids=["none", "server", "local"])
def test_an_update_that_is_not_finite_is_not_released(server, config, terms):
    reply = ask(Seat(config), server, server.order("north", "train", terms), Diverges())
    assert reply.status == "failed" and reply.code == ("CAFE-403" if terms is NO_NOISE else "CAFE-303")
    assert charges(config) == 0 and bodies(config) == []


def test_no_text_of_a_record_leaves_in_an_error_or_stays_in_the_log(server, config):
    reply = ask(Seat(config), server, server.order("north", "train"), Quotes())
    assert reply.status == "failed" and reply.code == "CAFE-109" and "ValueError" in reply.sentence
    log = (Path(config.home) / "log" / "site.log").read_text()
    assert "ValueError" in log and "test_seat.py" in log
    assert "message" not in reply.sentence + log


def test_the_deadline_ends_the_work(server, config):
    order = server.order("north", "train", params=replace(TRAIN, steps=1000))
    asked = server.ask(order)
    asked["transport"]["deadline_s"] = 0.2
    assert ask(Seat(config), server, order, Slow(), transport=asked["transport"]).code == "CAFE-108"
    assert charges(config) == 0


# --- several seats -------------------------------------------------------------------------------------------------


class Counting(TinyEngine):
    def __init__(self) -> None:
        super().__init__()
        self.trained: list[list[str]] = []

    def train(self, *given: Any) -> dict[str, dict[str, np.ndarray]]:
        self.trained.append(list(given[4]))
        if "sick" in given[4]:
            raise CafeError("CAFE-402", "An answer is too long.", "")
        return super().train(*given)


def together(server: TinyServer, orders: list[Order], engine: Any) -> list[Reply]:
    seats = {site: Seat(SeatConfig.model_validate(server.seat_config(site))) for site in {order.site for order in orders}}
    requests = [Request(seats[order.site], **server.ask(order)) for order in orders]
    return [reply for reply, _ in answer_many(requests, engine, quiet)]


def test_equal_training_is_one_call_and_gives_the_bytes_of_single_ones(server, tmp_path):
    engine = Counting()
    orders = [server.order(site, "train", round=n) for site in ("a", "b", "c") for n in (1, 2)]
    replies = together(server, [*orders, server.order("b", "vote")], engine)
    assert [reply.site for reply in replies] == ["a", "a", "b", "b", "c", "c", "b"] and {reply.status for reply in replies} == {"ok"}
    assert sorted(map(sorted, engine.trained)) == [["a", "b", "c"], ["a", "b", "c"]]
    alone = replace(server, folder=tmp_path / "alone")
    for order in orders:
        assert together(alone, [order], TinyEngine())[0].status == "ok"
        assert alone.open(order) == server.open(order)


def test_one_sites_failure_is_not_the_others(server):
    engine = Counting()
    replies = together(server, [server.order("well", "train"), server.order("sick", "train")], engine)
    assert [(reply.site, reply.status, reply.code) for reply in replies] == [("well", "ok", ""), ("sick", "failed", "CAFE-402")]
