"""One site answers one order: what is checked, computed, charged, noised, sealed and delivered, in this order.

Knows: the order of acts, which is the promise. Does not know formats, models, noise or how a budget adds up (the modules
it calls do), nor who asks. Nothing but the body, the closed list of figures and a code with its sentence ever leaves.
To extend: a new kind of order is a row in ``work.INPUTS`` and a case in ``_compute``; the acts around it stay as they are.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from cafe_kit import records, release
from cafe_kit.engine import Engine
from cafe_kit.errors import CafeError
from cafe_kit.failpoints import failpoint
from cafe_kit.ledger import SiteLedger, Spent
from cafe_kit.links import is_link
from cafe_kit.orders import PROTOCOL, Numbers, Order, Reply, Transport, VoteParams, order_hash, sign, verify
from cafe_kit.outbox import Draft, Outbox, Sealed
from cafe_kit.policy import check_not_paused, load_policy
from cafe_kit.seat_config import SeatConfig
from cafe_kit.site_home import SiteHome
from cafe_kit.task import Record, Task
from cafe_kit.work import INPUTS, KIT_VERSION, Work, check_finite, load_inputs, name_of, read_order

Answer = tuple[Reply, str]  # and the site's signature over it
_Outcome = TypeVar("_Outcome")
Progress = Callable[[str, str, int, int], None]  # site, phase, done, of
REFUSALS = {*(f"CAFE-{n}" for n in range(101, 106)), *(f"CAFE-{n}" for n in range(310, 321))}  # we could, but will not


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
        load_policy(self._home.folder / "policy.toml")
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
        self._check_address(order, transport)
        work = Work(order, order_hash(order), transport)
        check_not_paused(self._home.folder)
        sealed = self._sealed_before(work)
        if sealed is not None:
            self._outbox.publish(sealed, transport.output)
            return sealed.reply, sealed.signature
        self._check_policy(order, self._ledger.after(order, work.hash))
        self._load(work)
        if order.kind in ("hello", "result"):  # a result's folder was checked and is kept on the shelf
            return self._signed(Reply(work.hash, self.site, "ok", numbers=self._figures(work)))
        failpoint("site.before_work")
        return work

    def close(self, work: Work, result: Mapping[str, np.ndarray], seconds: float) -> Answer:
        """Charge, release, seal, complete and deliver what was computed in ``seconds``."""
        began = time.monotonic()
        body = self._released(work, result)
        numbers = replace(self._figures(work), seconds_work=seconds, seconds_release=time.monotonic() - began)
        sealed = self._complete(work, self._outbox.put_body(work.order, work.hash, body, numbers))
        self._outbox.publish(sealed, work.transport.output)
        self._outbox.forget(work.order)
        self._home.log("answered", release=work.order.release_id, body=sealed.reply.outputs["body"].sha256)
        return sealed.reply, sealed.signature

    def refuse(self, order_json: Any, error: Exception) -> Answer:
        """The reply that says why not: a code and a sentence, of an unforeseen error nothing but its class."""
        if not isinstance(error, CafeError):
            self._home.log("failed", error)
            error = CafeError("CAFE-109", f"The site could not finish this order ({type(error).__name__}).", "See the site's own log.")
        else:
            self._home.log("refused", code=error.code)
        status: Literal["refused", "failed"] = "refused" if error.code in REFUSALS else "failed"
        return self._signed(Reply(name_of(order_json), self.site, status, code=error.code, sentence=error.message[:500]))

    def _check_address(self, order: Order, transport: Transport) -> None:
        """Whether the order is for this site, in this protocol, and refers to what its kind may refer to."""
        if order.protocol != PROTOCOL:
            raise CafeError("CAFE-103", f"The order speaks protocol {order.protocol}, this kit speaks {PROTOCOL}.", "Update the older one.")
        if order.site != self.site:
            raise CafeError("CAFE-104", "The order is for another site.", "Check which site this kit was made for.")
        if set(order.inputs) != INPUTS[order.kind] or set(transport.inputs) != INPUTS[order.kind]:
            raise CafeError("CAFE-105", f"These are not the inputs of a {order.kind} order.", "Kit and server must be of one version.")
        if order.kind not in ("hello", "result") and not self._may_write(transport.output):
            raise CafeError(
                "CAFE-131",
                "The answer may not be put there: it is no absolute path, or the site's own folder or data.",
                "Check the server's exchange folder.",
            )

    def _check_policy(self, order: Order, spent: Spent) -> None:
        """What the admin allows *now*: a limit that was lowered, or a pause, counts for an order that is already being computed."""
        check_not_paused(self._home.folder)
        load_policy(self._home.folder / "policy.toml").check(order, spent)

    def _may_write(self, output: str) -> bool:
        if not output or is_link(output):
            return True
        if "\0" in output or not Path(output).is_absolute():
            return False
        place = Path(output).resolve()
        return place != self._source.path.resolve() and self._home.folder.resolve() not in place.parents

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
        work.given = load_inputs(work.order, work.transport, self._shelf)
        if work.order.kind == "result":
            return
        work.records = self._own_records(work.order.task)
        load_policy(self._home.folder / "policy.toml").check_rows(len(work.records))
        told = work.order.kind != "hello" and work.order.privacy.mechanism == "none"
        work.numbers = Numbers(seconds_load=time.monotonic() - work.began, records=len(work.records) if told else None)

    def _own_records(self, task: Task) -> list[Record]:
        """Read once per process, again when the file changes."""
        key = records.fingerprint(self._source), task
        if self._read is None or self._read[0] != key:
            self._read = key, records.read(self._source, task)
        return self._read[1]

    def _released(self, work: Work, result: Mapping[str, np.ndarray]) -> bytes:
        """The body: on the grid, clipped, *charged*, and only then noised; for the server's eyes only unless it carries noise."""
        terms, params = work.order.privacy, work.order.params
        if terms.mechanism == "none":
            check_finite(result)
            arrays = dict(result)
        else:
            flat = np.concatenate([result[name].astype(np.float64).ravel() for name in sorted(result)])
            most = params.max_votes_per_candidate if isinstance(params, VoteParams) else None
            arrays = {"q": release.bound(release.to_grid(flat, terms.grid), terms, most)}
        self._outbox.begin(work.hash)
        failpoint("site.before_charge")
        self._ledger.charge(work.order, work.hash, self._check_policy)
        failpoint("site.after_charge")
        noised = terms.mechanism == "gaussian" and terms.trust == "local"
        if noised:
            arrays["q"] = arrays["q"] + release.GaussianNoise(release.sigma_steps(terms)).draw(arrays["q"].size)
        data = release.body_to_bytes(arrays)
        return data if noised else release.Box.seal(data, self._seal_to, work.hash.encode())

    def _complete(self, work: Work, draft: Draft) -> Sealed:
        return self._outbox.put_reply(*self._signed(Reply(work.hash, self.site, "ok", {"body": draft.blob}, draft.numbers)))

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
    waiting = _groups(works)
    while waiting:
        group = waiting.pop(0)
        began = time.monotonic()
        try:
            results = _compute([works[index] for index in group], engine, progress)
        except Exception as error:
            if len(group) > 1:  # one site's failure is not the others'
                waiting = [[index] for index in group] + waiting
            else:
                answers[group[0]] = asked[group[0]].seat.refuse(asked[group[0]].order, error)
            continue
        seconds = time.monotonic() - began
        for index in group:
            site = asked[index].seat.site
            answers[index] = _guarded(asked[index], partial(asked[index].seat.close, works[index], results[site], seconds))
    return [answers[index] for index in range(len(asked))]


def _guarded(request: Request, act: Callable[[], _Outcome]) -> _Outcome | Answer:
    """What ``act`` returns, or the reply that says why not."""
    try:
        return act()
    except Exception as error:
        return request.seat.refuse(request.order, error)


def _groups(works: Mapping[int, Work]) -> list[list[int]]:
    """Indices of orders that are computed together: equal training of different sites."""
    groups: dict[str, list[int]] = {}
    for index, work in works.items():
        order = work.order
        shared = repr((order.params, order.task, order.round, sorted(order.inputs.items())))
        taken = [works[other].order.site for other in groups.get(shared, [])]
        groups.setdefault(shared if order.kind == "train" and order.site not in taken else f"{index}", []).append(index)
    return list(groups.values())


def _compute(works: Sequence[Work], engine: Engine, progress: Progress) -> dict[str, Mapping[str, np.ndarray]]:
    """Site to arrays: trained deltas, or the votes as ``counts``."""
    order, given = works[0].order, works[0].given
    stop = min(work.began + work.transport.deadline_s for work in works)

    def step(site: str, done: int, of: int) -> None:
        if time.monotonic() > stop:
            raise CafeError("CAFE-108", "The time for this order is over.", "Give the round a longer deadline or fewer steps.")
        progress(site, order.kind, done, of)

    if order.kind == "vote":
        step(order.site, 0, 1)
        counts = engine.vote(order.params, order.task, works[0].records, given["candidates"], given["embedder"])  # type: ignore[arg-type]
        step(order.site, 1, 1)
        return {order.site: {"counts": counts}}
    shards = {work.order.site: work.records for work in works}
    deltas = engine.train(order.params, order.task, given["base_model"], given["adapter"], shards, order.round, step)  # type: ignore[arg-type]
    return {site: deltas[site] for site in shards}
