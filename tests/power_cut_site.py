"""A site that answers orders while its power is cut: what it does, what must hold of what is left, and planted bugs.

``python -m tests.power_cut_site FOLDER [BUG]`` is the site at work: a real seat in ``disk``, whose answers leave to ``outside``. Each order
is asked for twice: first of a process that is killed just before one of its fsyncs, then of another that comes through. (With a planted
bug nothing is killed, unless it shows only so.)
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from cafe_kit import documents, ledger, outbox, policy, release
from cafe_kit.ledger import SiteLedger
from cafe_kit.orders import Order, Reply, order_hash, parse, verify
from cafe_kit.outbox import Outbox
from cafe_kit.seat import Seat
from cafe_kit.seat_config import SeatConfig
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.fakes import BY_SERVER, BY_SITE, NO_NOISE, TinyEngine, TinyServer

ROUNDS = 4  # of five orders
FSYNCS = 14  # that one answer needs, about


@dataclass
class Operator(TinyServer):
    """A server whose keys are always the same, and whose inbox lies outside of the site's disk."""

    inbox: Path = Path()
    signed: dict[str, dict[str, Any]] = field(default_factory=dict)

    def output(self, order: Order) -> Path:
        return self.inbox / order_hash(order)

    def ask_knowing(self, order: Order, head: str) -> dict[str, Any]:
        """The order as it travels from a server that has seen this head of the site's ledger."""
        name = order_hash(order)
        asked = self.signed[name] = self.signed.get(name) or self.ask(order)
        return asked | {"transport": asked["transport"] | {"seen_head": head}}


def operator(folder: Path, inbox: Path) -> Operator:
    keys = Ed25519PrivateKey.from_private_bytes(bytes(32)), X25519PrivateKey.from_private_bytes(bytes(32))
    return Operator(folder / "inputs", *keys, inbox=inbox)


def config(server: Operator, disk: Path) -> SeatConfig:
    return SeatConfig.model_validate(server.seat_config("north") | {"home": str(disk / "sites" / "north")})


def orders(server: Operator) -> list[Order]:
    """Votes and updates of several rounds, with noise by the site, by the server and by nobody, within the site's own limit."""
    terms = {"local": replace(BY_SITE, noise_multiplier=4.0), "server": replace(BY_SERVER, noise_multiplier=4.0)}
    kinds = [(kind, run) for kind in ("vote", "train") for run in terms] + [("train", "bare")]
    asked = [(kind, run, number) for number in range(1, ROUNDS + 1) for kind, run in kinds]
    return [server.order("north", kind, terms.get(run, NO_NOISE), run=run, round=number) for kind, run, number in asked]


def quiet(*_: Any) -> None:
    pass


# --- the site at work --------------------------------------------------------------------------------------------------


def work(folder: Path, *, kills: bool = True) -> None:
    server = operator(folder, folder / "outside")
    settings, every = config(server, folder / "disk"), orders(server)
    for number in range(1, 4) if kills else ():
        in_a_process(list, lambda _: Seat(settings), killed_before=number)
    for number, pair in enumerate(zip(every[::2], every[1::2], strict=True)):
        for half, order in enumerate(pair) if kills else ():
            in_a_process(partial(Seat, settings), partial(answer, server, order), killed_before=1 + (2 * number + half) % FSYNCS)
        for order in reversed(pair):  # what was half done waits while another order is answered
            in_a_process(partial(Seat, settings), partial(answer, server, order))


def answer(server: Operator, order: Order, seat: Seat) -> None:
    asked = server.ask(order)
    reply, signature = seat.answer(asked["order"], asked["signature"], asked["transport"], TinyEngine(), quiet)
    assert reply.status == "ok", reply
    told = json.dumps({"reply": asdict(reply), "signature": signature})
    (server.inbox / f"reply-{order_hash(order)}").write_text(told)


def in_a_process(start: Callable[[], Any], act: Callable[[Any], object], *, killed_before: int = 0) -> None:
    """``act`` on what ``start`` gives, in a process of its own, which dies by SIGKILL just before its so-manieth fsync in ``act``."""
    child = os.fork()
    if child == 0:
        status, fsync, left = 1, os.fsync, killed_before

        def counted(handle: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)

        try:
            started = start()
            os.fsync = counted  # type: ignore[assignment]
            act(started)
            status = 0
        finally:
            os._exit(status)
    ended = os.waitpid(child, 0)[1]
    assert ended == 0 or (killed_before and ended == signal.SIGKILL), f"ended with {ended}"


# --- what must hold ----------------------------------------------------------------------------------------------------


class Examiner:
    """Opens what a cut has left of the site and asks everything again that it had been asked."""

    def __init__(self, folder: Path) -> None:
        self._looks = 0
        self._server = operator(folder, folder / "again")
        self._server.inbox.mkdir()
        self._orders = {order_hash(order): order for order in orders(self._server)}

    def look(self, disk: Path, seen: dict[str, bytes]) -> None:
        """Raises AssertionError, or what the site's own code raises, when a promise is broken."""
        replies = [json.loads(data) for path, data in seen.items() if path.startswith("reply-") and data.endswith(b"}")]
        told = {one["reply"]["order_hash"]: one for one in replies}
        newest = max((one["reply"]["numbers"] for one in replies), key=lambda numbers: numbers["charges"], default={"ledger_head": ""})
        home = disk / "sites" / "north"
        seat = Seat(config(self._server, disk))
        charged = {charge.order_hash for charge in SiteLedger(home / "ledger").charges}
        for one in replies:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(seat.verify_key))
            verify(parse(Reply, one["reply"]), one["signature"], key)
        bodies = {name: [data for path, data in seen.items() if data and path.lstrip(".").startswith(name)] for name in self._orders}
        published = {name for name in self._orders if bodies[name]} | told.keys()
        assert published <= charged, "published, and not in the ledger"
        last = max((place for place, name in enumerate(self._orders) if name in charged), default=-1)
        asked = [*self._orders][: last + 2]
        self._looks += 1
        for place, name in enumerate(asked):  # what was answered long ago is asked for again in every eighth state
            if len(asked) - place > 6 and name in told and (self._looks + place) % 8:
                continue
            self._ask_again(seat, name, newest["ledger_head"], told.get(name), bodies[name])
        now = SiteLedger(home / "ledger")
        assert sorted(charge.order_hash for charge in now.charges) == sorted(asked), "charged twice, or never"
        assert policy.load_policy(home / "policy.toml").max_epsilon == 10.0, "the limit is gone"

    def _ask_again(self, seat: Seat, name: str, head: str, told: dict[str, Any] | None, seen: list[bytes]) -> None:
        order, place = self._orders[name], self._server.inbox / name
        asked = self._server.ask_knowing(order, head)
        reply, _ = seat.answer(asked["order"], asked["signature"], asked["transport"], TinyEngine(), quiet)
        if reply.code == "CAFE-132" and told is not None and self._is_old(order, seat):
            return  # bodies of old rounds go
        assert reply.status == "ok", f"{reply.code} {reply.sentence}"
        body = place.read_bytes()
        place.unlink()
        assert sha256(body).hexdigest() == reply.outputs["body"].sha256, "the reply names another body"
        assert all(body.startswith(part) for part in seen), "a second body"
        assert told is None or json.loads(json.dumps(asdict(reply))) == told["reply"], "another reply"

    def _is_old(self, order: Order, seat: Seat) -> bool:
        """Whether the site has gone two rounds further since."""
        later = replace(order, round=order.round + 2)
        return seat._ledger.has(order_hash(later))


# --- planted bugs ------------------------------------------------------------------------------------------------------


def _never(*_: Any) -> None:
    pass


def charge_not_named() -> None:
    """The charge's bytes are durable, its name is not: no fsync of the ledger's folder."""
    ledger.sync_folder = _never  # type: ignore[attr-defined]


def charge_not_written() -> None:
    """The charge's name is durable, its bytes are not: no fsync before the link."""
    _leave_out(SiteLedger, "_link", os, "fsync")


def charge_without_the_one_before() -> None:
    """A charge is linked before the name of the one before it, of a killed process, is durable."""
    _leave_out(SiteLedger, "_link", ledger, "sync_folder")


def body_without_figures() -> None:
    """The body may last, and the figures of its reply not."""
    _leave_out(Outbox, "put_body", outbox, "sync_folder")


def adopted_not_named() -> None:
    """A body that a killed process has left is taken over without making its name durable."""
    _leave_out(Outbox, "recover", outbox, "sync_folder")


def _leave_out(owner: type, method: str, module: ModuleType, sync: str) -> None:
    """Within one method, what makes durable does nothing."""
    real = getattr(owner, method)

    def sloppy(*given: Any, **more: Any) -> Any:
        kept = getattr(module, sync)
        setattr(module, sync, _never)
        try:
            return real(*given, **more)
        finally:
            setattr(module, sync, kept)

    setattr(owner, method, sloppy)


def answer_not_named() -> None:
    """The folders of the outbox are never made durable; that of the ledger is."""
    for module in (release, documents, outbox):
        module.sync_folder = _never  # type: ignore[attr-defined]


def charge_after_publish() -> None:
    """The charge comes when the answer is out."""
    charge, publish, waiting = SiteLedger.charge, Outbox.publish, []
    SiteLedger.charge = lambda *given: waiting.append(given)  # type: ignore[method-assign, assignment, return-value]

    def late(self: Outbox, *given: Any) -> None:
        publish(self, *given)
        if waiting:
            charge(*waiting.pop())

    Outbox.publish = late  # type: ignore[method-assign]


def publish_before_seal() -> None:
    """What was drawn leaves at once, and is kept afterwards."""
    put = Outbox.put_body

    def hasty(self: Outbox, order: Order, name: str, body: bytes, *given: Any, **more: Any) -> Any:
        (Path(sys.argv[1]) / "outside" / name).write_bytes(body)
        return put(self, order, name, body, *given, **more)

    Outbox.put_body = hasty  # type: ignore[method-assign]


BUGS = {
    bug.__name__: bug
    for bug in (
        charge_not_named, charge_not_written, charge_without_the_one_before, body_without_figures, adopted_not_named, answer_not_named,
        charge_after_publish, publish_before_seal,
    )
}  # fmt: skip
AFTER_KILLS = ("charge_without_the_one_before", "body_without_figures", "adopted_not_named")


def prepare(folder: Path) -> None:
    """What the orders refer to, outside of the disk."""
    operator(folder, folder / "outside")


if __name__ == "__main__":
    planted = sys.argv[2:]
    for name in planted:
        BUGS[name]()
    work(Path(sys.argv[1]), kills=all(name in AFTER_KILLS for name in planted))
