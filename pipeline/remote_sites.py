"""Gives orders to sites of other machines, which joined with a kit, and brings their answers back.

Knows trips: which message was sent, when it is sent again, when it is over. Does not know how a message travels (``messengers``), where
bytes wait (``depots``), what an order asks for, or what is in a body. Delivery is at-least-once: a site answers the same order with the
same sealed bytes, so sending again is free. An answer counts when it is signed by the key that the operator approved.
"""

from __future__ import annotations

import queue
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError
from cafe_kit.orders import Blob, Reply, Transport, order_hash, parse, verify
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipeline import site_words
from pipeline.depots import Depot
from pipeline.messengers import Messenger
from pipeline.settings import SERVER_SEATS
from pipeline.sites import WAITS_FOR_ADMIN, Answer, Answers, Envelope, listen
from server_store.errors import StoreError
from server_store.site_kits import SiteKit, SiteKits

POLL_S = 0.5
AGAIN_S = 5.0  # after a failure that may pass; doubled each time, at most a minute
_TRIES = 8
# The bytes did not find their way: the same order once more, with new links to its inputs.
_PASSING = ("CAFE-106", "CAFE-131", "CAFE-161", "CAFE-162")
_OTHER = ("CAFE-107", "CAFE-165")  # what the site fetched is not what the order names: its inputs are put there anew,
_ANEW = 3  # so many times; then the site has no part in the round
_WAITING = "CAFE-328"  # the site's admin looks at the answer before it leaves: asked again until the deadline
_NO_BODY = ("hello", "result")
_SHARED = ("base_model", "embedder")


@dataclass(frozen=True)
class Way:
    """How one site is reached: ``messenger`` carries words, ``depot`` bytes."""

    messenger: Messenger
    depot: Depot


@dataclass
class _Trip:
    """One order under way."""

    envelope: Envelope
    hash: str
    deadline: float
    kit: SiteKit | None = None
    way: Way | None = None
    ticket: str = ""
    body: Blob | None = None  # what the site has sealed, once it has said so
    send_at: float = 0.0
    sent: int = 0
    sent_at: float = 0.0
    failed: int = 0
    damaged: bool = False  # its inputs are to be put anew
    renewed: int = 0
    offered: list[Blob] = field(default_factory=list)
    over: bool = False


class RemoteSites:
    """The joined sites of one federation.

    Args:
        store: path of the store that holds the kits.
        way: the way to a site, by its kit. Raises CafeError where there is none.
        may_take_part: raises CafeError for a site that may not (any more) in the round of this name; asked at every sending.
        keys: site → public key (hexadecimal), filled with those that the operator approved.
        stand_in: the joined site that answers for the server's own seats (proxies), where one does.
    """

    def __init__(
        self,
        store: Path,
        federation: str,
        *,
        way: Callable[[SiteKit], Way],
        may_take_part: Callable[[SiteKit, str], None],
        keys: dict[str, str],
        stand_in: str | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self._stand_in = stand_in
        self._store, self._federation, self._way, self._may, self._keys, self._poll_s = store, federation, way, may_take_part, keys, poll_s
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ways: list[Way] = []
        self._renewed: dict[str, float] = {}  # SHA-256 of an input -> when it was last put anew, for whichever site

    def sweep(self) -> None:
        """The run is over: nothing of it stays on the way. A store that is down keeps it; ``cafe storage sweep`` is for that."""
        for before in self._threads:
            before.join()
        for depot in {id(way.depot): way.depot for way in self._ways}.values():
            with suppress(CafeError):
                depot.sweep()

    def close(self) -> None:
        """Stop waiting; what is under way can be asked again."""
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def ask(self, envelopes: Sequence[Envelope]) -> Iterator[Answer]:
        """Hand out the orders and yield one answer each, as they come. Never raises for what a site did."""
        answers: Answers = queue.Queue()
        self.hand_out(envelopes, answers)
        return listen(answers, len(envelopes))

    def hand_out(self, envelopes: Sequence[Envelope], answers: Answers) -> None:
        """Send the orders and put one answer each, and progress before it, into ``answers``, as they come. Returns at once."""
        for before in self._threads:
            before.join()  # all its answers are out, and it tidies: what it takes away must not be what is offered now
        thread = threading.Thread(target=self._carry, args=(list(envelopes), answers), daemon=True)
        self._threads = [thread]
        thread.start()

    def _carry(self, envelopes: list[Envelope], answers: Answers) -> None:
        now = time.monotonic()
        trips = [_Trip(envelope, order_hash(envelope.order), now + envelope.transport.deadline_s) for envelope in envelopes]
        kits = SiteKits(self._store)
        try:
            while (open_ := [trip for trip in trips if not trip.over]) and not self._closed.is_set():
                for trip in open_:
                    self._guarded(trip, answers, lambda trip=trip: self._step(trip, kits, answers))  # type: ignore[misc]
                self._collect([trip for trip in open_ if not trip.over], kits, answers)
                self._closed.wait(self._poll_s)
        except Exception as error:
            traceback.print_exc()  # into the worker's own log
            for trip in trips:
                self._end(trip, answers, CafeError("CAFE-127", f"The site could not be asked ({type(error).__name__}).", ""))
        finally:
            for trip in trips:
                self._tidy(trip)
            kits.close()

    def _step(self, trip: _Trip, kits: SiteKits, answers: Answers) -> None:
        """Send when it is time to; end what is over time; tell how far the site is."""
        if time.monotonic() >= trip.deadline:
            raise CafeError("CAFE-124", "The site did not answer before the deadline.", "Raise deadline_s, or look at the site.")
        if not trip.ticket and time.monotonic() >= trip.send_at:
            self._send(trip, kits)
        elif trip.ticket and trip.kit and trip.way and (doing := trip.way.messenger.doing(trip.kit)) and doing.order_hash == trip.hash:
            answers.put((trip.envelope.order.site, doing.phase, doing.done, doing.of))

    def _send(self, trip: _Trip, kits: SiteKits) -> None:
        order = trip.envelope.order
        trip.kit = kit = approved(kits, self._federation, self._host(order.site))
        self._may(kit, f"{order.run} {order.stage}/{order.attempt}/{order.round}")
        self._keys[order.site] = kit.site_key
        trip.way = way = trip.way or self._way(kit)
        self._ways.append(way)
        try:
            trip.ticket = way.messenger.send(kit, self._message(trip, kit, way))
            trip.sent, trip.sent_at, trip.damaged = trip.sent + 1, time.monotonic(), False
        except CafeError as error:  # offline, a network that is down: it may pass
            self._again(trip, error)

    def _host(self, site: str) -> str:
        """The joined site that answers orders to ``site``: itself, or who stands in for it."""
        return self._stand_in if self._stand_in and site.startswith(SERVER_SEATS) else site

    def _message(self, trip: _Trip, kit: SiteKit, way: Way) -> dict[str, Any]:
        """The order with the places where its bytes are now."""
        order, local = trip.envelope.order, trip.envelope.transport
        inputs = {name: self._offered(trip, kit, way, name, blob) for name, blob in order.inputs.items()}
        trip.offered = [blob for name, blob in order.inputs.items() if Path(local.inputs[name]).is_file()]
        output = "" if order.kind in _NO_BODY else way.depot.place(kit, trip.hash, trip.body)
        left = max(1.0, trip.deadline - time.monotonic())
        transport = Transport(inputs, output, left, str(kit.seen.get("ledger_head", "")))
        return {"order": asdict(order), "signature": trip.envelope.signature, "transport": asdict(transport)}

    def _offered(self, trip: _Trip, kit: SiteKit, way: Way, name: str, blob: Blob) -> str:
        """Where the site fetches this input. One that was put anew since this order last left, for another site, is not put again."""
        anew = trip.damaged and self._renewed.get(blob.sha256, 0.0) <= trip.sent_at
        where = way.depot.offer(kit, blob, Path(trip.envelope.transport.inputs[name]), name in _SHARED, anew)
        if anew:
            self._renewed[blob.sha256] = time.monotonic()
        return where

    def _collect(self, trips: Sequence[_Trip], kits: SiteKits, answers: Answers) -> None:
        """What has arrived, from each messenger at once."""
        by_way: dict[int, list[_Trip]] = {}
        for trip in trips:
            if trip.ticket and trip.way:
                by_way.setdefault(id(trip.way.messenger), []).append(trip)
        for group in by_way.values():
            messenger = group[0].way.messenger  # type: ignore[union-attr]
            try:
                found = messenger.collect([trip.ticket for trip in group])
            except CafeError:
                continue  # the way is down for everybody; the deadline ends it
            for trip in group:
                if trip.ticket in found:
                    told = found[trip.ticket]
                    messenger.forget(trip.ticket)
                    trip.ticket = ""
                    self._guarded(trip, answers, lambda trip=trip, told=told: self._arrived(trip, told, kits, answers))  # type: ignore[misc]

    def _arrived(self, trip: _Trip, told: dict[str, Any] | CafeError, kits: SiteKits, answers: Answers) -> None:
        if isinstance(told, CafeError):
            self._again(trip, told)
            return
        reply = self._checked(trip, told)
        assert trip.kit and trip.way
        _remember(kits, trip.kit, reply)
        if reply.status != "ok":
            if reply.code == _WAITING:
                answers.put((reply.site, WAITS_FOR_ADMIN, 0, 0))
                trip.send_at = time.monotonic() + AGAIN_S
            elif reply.code in _PASSING or (reply.code in _OTHER and trip.renewed < _ANEW):
                trip.damaged = reply.code in _OTHER
                trip.renewed += trip.damaged
                self._again(trip, CafeError(reply.code, reply.sentence, ""))
            else:
                self._end(trip, answers, Answer(trip.envelope.order, reply, reply.code, reply.sentence))
            return
        if trip.envelope.order.kind not in _NO_BODY and not self._fetched(trip, reply):
            return
        self._end(trip, answers, Answer(trip.envelope.order, reply))

    def _fetched(self, trip: _Trip, reply: Reply) -> bool:
        """Whether the body is here. Where it had nowhere to go yet, or did not arrive whole, the order is sent once more."""
        assert trip.kit and trip.way
        body = reply.outputs.get("body")
        if body is None or body.size > trip.envelope.most:
            raise CafeError("CAFE-460", "The reply names no body, or one of an impossible size.", "Look at the site.")
        if trip.body is not None and trip.body != body:
            raise CafeError(
                "CAFE-186", "The site names another body for the same order than before.", "The first one counts; look at the site."
            )
        if trip.body is None and not trip.way.depot.place(trip.kit, trip.hash, None):
            trip.body = body  # its place can be made now
            return False
        trip.body = body
        try:
            trip.way.depot.collect(trip.kit, trip.hash, body, Path(trip.envelope.transport.output))
        except CafeError as error:
            self._again(trip, error)
            return False
        return True

    def _checked(self, trip: _Trip, told: dict[str, Any]) -> Reply:
        """A reply to this order, by the site that was asked, signed with the key that was approved.

        Raises:
            CafeError: CAFE-101, 102, 125; with the site's own code where it could not sign.
        """
        assert trip.kit
        if isinstance(problem := told.get("problem"), dict):
            raise CafeError(site_words.code(problem.get("code")), site_words.line(problem.get("sentence", "")) or site_words.NOT_SAID, "")
        reply = parse(Reply, told.get("reply"))
        if reply.site != trip.envelope.order.site:
            raise CafeError("CAFE-125", "A reply names another site.", "Look at the site.")
        verify(reply, str(told.get("signature", "")), Ed25519PublicKey.from_public_bytes(bytes.fromhex(trip.kit.site_key)))
        if reply.order_hash != trip.hash:
            raise CafeError("CAFE-125", "A reply answers another order than was sent.", "Look at the site.")
        return reply

    def _again(self, trip: _Trip, why: CafeError) -> None:
        """Once more after a while, unless it has failed too often."""
        trip.failed += 1
        if trip.failed >= _TRIES:
            raise why
        trip.send_at = time.monotonic() + min(60.0, AGAIN_S * 2 ** (trip.failed - 1)) * random.uniform(0.5, 1.0) * min(
            1.0, self._poll_s / POLL_S
        )

    def _guarded(self, trip: _Trip, answers: Answers, act: Callable[[], None]) -> None:
        try:
            act()
        except (CafeError, StoreError) as error:
            self._end(trip, answers, error)
        except Exception as error:  # a slip of a library, or whatever a site brought about: this trip once more, the others go on
            traceback.print_exc()  # into the worker's own log
            try:
                self._again(trip, CafeError("CAFE-127", f"The site could not be asked ({type(error).__name__}).", ""))
            except CafeError as last:
                self._end(trip, answers, last)

    def _end(self, trip: _Trip, answers: Answers, how: Answer | CafeError | StoreError) -> None:
        if not trip.over:
            trip.over = True
            answers.put(how if isinstance(how, Answer) else Answer(trip.envelope.order, None, how.code, how.message))

    def _tidy(self, trip: _Trip) -> None:
        """What this order needed on its way is not kept; a result stays for a site that is away."""
        if trip.kit is None or trip.way is None or trip.envelope.order.kind == "result":
            return
        try:
            if trip.ticket:
                trip.way.messenger.forget(trip.ticket)
            trip.way.depot.clear(trip.kit, trip.hash)
            for blob in trip.offered:
                trip.way.depot.withdraw(trip.kit, blob)
        except (CafeError, OSError):
            pass  # a store that is down: the run's sweep finds it


def approved(kits: SiteKits, federation: str, site: str) -> SiteKit:
    """The kit with which this site takes part.

    Raises:
        CafeError: CAFE-167 when it has none, or it is not (or no longer) approved.
    """
    found = [kit for kit in kits.kits(federation) if kit.site == site]
    for kit in found:
        if kit.state == "approved":
            return kit
    state = {"issued": "has not joined yet", "requested": "waits for your approval", "left": "has left"}
    told = state.get(found[0].state, f"was {found[0].state}") if found else "has no kit of this federation"
    raise CafeError("CAFE-167", f"Site {site!r} {told}, so it is asked nothing.", "See `cafe site list`; make a kit with `cafe site add`.")


def _remember(kits: SiteKits, kit: SiteKit, reply: Reply) -> None:
    """What a verified reply says of the site: what the pages show, and what the next order compares the ledger with."""
    told = reply.numbers
    seen = {"time": time.time(), "kit": told.kit, "python": told.python, "ledger_head": told.ledger_head or kit.seen.get("ledger_head", "")}
    known = {"charges": told.charges, "mu_squared": told.mu_squared}
    kits.saw(kit.serial, kit.seen | seen | {name: value for name, value in known.items() if value is not None})
