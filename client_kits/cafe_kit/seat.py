"""One site answers one order: what is checked, computed, charged, noised, sealed and delivered, in this order.

Knows: the order of acts, which is the promise. Does not know formats, models, noise or how a budget adds up (the modules
it calls do), nor who asks. Nothing but the body, the closed list of figures and a code with its sentence ever leaves.
To extend: a new kind of order is a row in ``work.INPUTS`` and a case in ``computing``; the acts around it stay as they are.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from cafe_kit import bounds, outgoing, records, results
from cafe_kit.address import Address
from cafe_kit.computing import Progress, compute, groups
from cafe_kit.engine import Engine
from cafe_kit.errors import CafeError
from cafe_kit.failpoints import failpoint
from cafe_kit.ledger import SiteLedger, Spent
from cafe_kit.orders import Numbers, Order, Reply, Transport, order_hash, parse, sign, verify
from cafe_kit.outbox import Draft, Outbox, Sealed
from cafe_kit.policy import Policy, check_not_paused, load_policy
from cafe_kit.seat_config import SeatConfig
from cafe_kit.site_home import SiteHome
from cafe_kit.task import Record, Task
from cafe_kit.work import KIT_VERSION, Work, load_inputs, name_of, read_order

Answer = tuple[Reply, str]  # and the site's signature over it
_Outcome = TypeVar("_Outcome")
_REFUSED = (*range(101, 106), *range(310, 321), 329, 330, *range(342, 347))
REFUSALS = {f"CAFE-{n}" for n in _REFUSED}  # we could, but will not


@dataclass(frozen=True)
class Request:
    """One order for one seat, as it came."""

    seat: Seat
    order: Any
    signature: str
    transport: Any


class Seat:
    """A site: its data, its key, its policy, its ledger, its outbox.

    Raises:
        CafeError: at birth, CAFE-133 to 135 (home), 316 (policy), 318, 319 (ledger): a site in doubt answers nothing.
    """

    def __init__(self, config: SeatConfig) -> None:
        self.site = config.site
        self._home = SiteHome(Path(config.home))
        self._policy()
        self._ledger = SiteLedger(self._home.folder / "ledger")
        self._outbox = Outbox(self._home.folder / "outbox")
        if not all(self._ledger.has(answered) for answered in self._outbox.answered()):
            raise CafeError(
                "CAFE-319",
                "The site's outbox holds an answer that its ledger does not know: the ledger was set back.",
                "Restore the newest copy of the ledger folder; until then this site answers nothing.",
            )
        self._source = config.source()
        self._shelf = [Path(folder) for folder in config.shelf]
        self._address = Address(config)
        self._server = Ed25519PublicKey.from_public_bytes(bytes.fromhex(config.server.verify_key))
        self._seal_to = X25519PublicKey.from_public_bytes(bytes.fromhex(config.server.seal_key))
        self._read: tuple[tuple[str, Task], list[Record]] | None = None

    @property
    def verify_key(self) -> str:
        """The site's public key (Ed25519, raw hexadecimal): replies are signed with its other half."""
        return self._home.verify_key

    def answer(self, order: Any, signature: str, transport: Any, engine: Engine, progress: Progress) -> Answer:
        """Answer one order; never raises for what is wrong with it. The same order always gets the same sealed bytes.

        Args:
            order, transport: JSON-like data as received; ``signature``: the server's, over the order.

        Returns:
            The reply and the site's signature over it (hexadecimal). A body lies at ``transport.output`` if it is "ok".
        """
        return answer_many([Request(self, order, signature, transport)], engine, progress)[0]

    def admit(self, order_json: Any, signature: str, transport_json: Any) -> Work | Answer:
        """Let the order in, or answer at once: a refusal, a greeting, or the sealed answer that it already has."""
        order, transport = read_order(order_json, transport_json)
        verify(order, signature, self._server)
        self._address.check(order, transport, self._policy())
        bounds.check(order)
        work = Work(order, order_hash(order), transport)
        check_not_paused(self._home.folder)
        self._check_head(transport)
        if (sealed := self._sealed_before(work)) is not None:
            return self._delivered(sealed, transport)
        self._check_policy(order, self._ledger.after(order, work.hash))
        if self._policy().outbox == "dry-run" and self._outbox.rehearsed(work.hash):
            raise _dry_run()
        self._load(work)
        if order.kind == "result":
            results.keep(self._home.folder, order, signature, work.given["adapter_folder"])
        if order.kind in ("hello", "result"):
            return self._signed(Reply(work.hash, self.site, "ok", numbers=self._figures(work)))
        failpoint("site.before_work")
        return work

    def close(self, work: Work, result: Mapping[str, np.ndarray], seconds: float) -> Answer:
        """Charge, release, seal, complete and deliver what was computed in ``seconds``; in a dry run only write what would leave."""
        began = time.monotonic()
        clipped, mode = outgoing.bounded(work, result), self._policy().outbox
        if mode == "dry-run":
            self._outbox.rehearse(work.order, work.hash, outgoing.made(work, result, clipped, self._seal_to).contents)
            self._outbox.forget(work.order)
            raise _dry_run()
        self._outbox.begin(work.hash)
        failpoint("site.before_charge")
        self._ledger.charge(work.order, work.hash, self._check_policy)
        failpoint("site.after_charge")
        out = outgoing.made(work, result, clipped, self._seal_to)
        numbers = replace(self._figures(work), seconds_work=seconds, seconds_release=time.monotonic() - began)
        draft = self._outbox.put_body(work.order, work.hash, out.body, numbers, out.contents, held=mode == "review")
        sealed = self._complete(work, draft)
        self._outbox.forget(work.order)
        answer = self._delivered(sealed, work.transport)
        self._home.log("answered", release=work.order.release_id, body=sealed.reply.outputs["body"].sha256)
        return answer

    def refuse(self, order_json: Any, error: Exception) -> Answer:
        """The reply that says why not: a code and a sentence, of an unforeseen error nothing but its class."""
        if not isinstance(error, CafeError):
            self._home.log("failed", error)
            error = CafeError("CAFE-109", f"The site could not finish this order ({type(error).__name__}).", "See the site's own log.")
        else:
            self._home.log("refused", code=error.code, sentence=error.message[:500])
        status: Literal["refused", "failed"] = "refused" if error.code in REFUSALS else "failed"
        try:
            site = self._address.in_whose_name(parse(Order, order_json))
        except CafeError:
            site = self.site
        return self._signed(Reply(name_of(order_json), site, status, code=error.code, sentence=_told(error)))

    def _check_policy(self, order: Order, spent: Spent) -> None:
        """What the admin allows *now*: a limit that was lowered, or a pause, counts for an order that is already being computed."""
        check_not_paused(self._home.folder)
        self._policy().check(order, spent)

    def _policy(self) -> Policy:
        return load_policy(self._home.folder / "policy.toml")

    def _check_head(self, transport: Transport) -> None:
        """Whoever remembers more of this ledger than is in it, remembers what was spent: then it was set back."""
        if not self._ledger.knows(transport.seen_head):
            own = len(self._ledger.charges)
            raise CafeError(
                "CAFE-329",
                f"The server remembers an entry that this site's ledger, of {own} charges, does not have: it was set back.",
                "Restore the newest copy of the site's folder; what was spent stays spent.",
            )

    def _delivered(self, sealed: Sealed, transport: Transport) -> Answer:
        """Hand out a complete answer, unless the admin keeps it in."""
        if self._policy().outbox == "dry-run":
            raise _dry_run()
        self._outbox.check_free(sealed.reply.order_hash)
        self._outbox.publish(sealed, transport.output)
        return sealed.reply, sealed.signature

    def _sealed_before(self, work: Work) -> Sealed | None:
        """The answer that this order already has, also one that a crash left one step before its end."""
        if not self._ledger.has(work.hash):
            return None
        if (sealed := self._outbox.find(work.hash)) is not None:
            return sealed
        draft = self._outbox.recover(work.hash)
        return self._complete(work, draft) if draft else None

    def _load(self, work: Work) -> None:
        """Records and inputs, everything checked, before any work."""
        if work.order.kind == "result":
            work.given = load_inputs(work.order, work.transport, [results.shelf(self._home.folder)])
            return
        work.given = load_inputs(work.order, work.transport, self._shelf)
        if work.order.site != self.site:  # a proxy: public records, and none of this site's
            work.records = work.given.pop("records")
            work.numbers = Numbers(seconds_load=time.monotonic() - work.began)
            return
        work.records = self._own_records(work.order.task)
        self._policy().check_rows(len(work.records))
        told = work.order.kind != "hello" and work.order.privacy.mechanism == "none"
        work.numbers = Numbers(seconds_load=time.monotonic() - work.began, records=len(work.records) if told else None)

    def _own_records(self, task: Task) -> list[Record]:
        """Read once per process, again when the file changes."""
        key = records.fingerprint(self._source), task
        if self._read is None or self._read[0] != key:
            self._read = key, records.read(self._source, task)
        return self._read[1]

    def _complete(self, work: Work, draft: Draft) -> Sealed:
        reply = Reply(work.hash, work.order.site, "ok", {"body": draft.blob}, draft.numbers)
        return self._outbox.put_reply(*self._signed(reply), held=draft.held)

    def _figures(self, work: Work) -> Numbers:
        charges = self._ledger.charges
        spent = float(sum((charge.cost for charge in charges), Fraction(0)))
        figures = replace(work.numbers, kit=KIT_VERSION, python=platform.python_version(), ledger_head=self._ledger.head)
        return replace(figures, charges=len(charges), mu_squared=spent)

    def _signed(self, reply: Reply) -> Answer:
        return reply, sign(reply, self._home.key)


def answer_many(requests: Iterable[Request], engine: Engine, progress: Progress) -> list[Answer]:
    """Answer orders of one or several seats; what trains the same adapter the same way is trained in one call.

    Returns:
        One answer per request, in their order. Every exception on the way is an answer too.
    """
    asked = list(requests)
    outcomes = {index: _guarded(ask, partial(ask.seat.admit, ask.order, ask.signature, ask.transport)) for index, ask in enumerate(asked)}
    answers = {index: outcome for index, outcome in outcomes.items() if not isinstance(outcome, Work)}
    works = {index: outcome for index, outcome in outcomes.items() if isinstance(outcome, Work)}
    waiting = groups(works)
    while waiting:
        group = waiting.pop(0)
        began = time.monotonic()
        try:
            found = compute([works[index] for index in group], engine, progress)
        except Exception as error:
            if len(group) > 1:  # one site's failure is not the others'
                waiting = [[index] for index in group] + waiting
            else:
                answers[group[0]] = asked[group[0]].seat.refuse(asked[group[0]].order, error)
            continue
        seconds = time.monotonic() - began
        for index in group:
            own = found[works[index].order.site]
            answers[index] = _guarded(asked[index], partial(asked[index].seat.close, works[index], own, seconds))
    return [answers[index] for index in range(len(asked))]


def _guarded(request: Request, act: Callable[[], _Outcome]) -> _Outcome | Answer:
    """What ``act`` returns, or the reply that says why not."""
    try:
        return act()
    except Exception as error:
        return request.seat.refuse(request.order, error)


def _told(error: CafeError) -> str:
    """What the server is told. What is wrong with the data, and in which line, is the site's alone: its own log has it."""
    if error.code.startswith("CAFE-2"):
        return "The site's data cannot be used for this order; its own log says why."
    return error.message[:500]


def _dry_run() -> CafeError:
    return CafeError("CAFE-330", "This site only rehearses: what it would have sent stays there.", "Its admin ends this in policy.toml.")
