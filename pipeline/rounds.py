"""One round with several sites: orders out, bodies in, and the door.

Knows orders, signatures, quorum, deadline and the inbox. Does not know what a vote or an update is. A round closes once:
which bodies went in is kept before the door sees them, so that a restart releases the same. What comes later is
deleted unread. Un-noised bodies exist only in the inbox, sealed to the server, and are gone after the release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from cafe_kit.errors import CafeError
from cafe_kit.failpoints import failpoint
from cafe_kit.orders import Blob, Order, PrivacyTerms, TrainParams, Transport, VoteParams, order_hash, sign
from cafe_kit.release import Box, body_from_bytes

from pipeline import body_limits
from pipeline.context import RunContext
from pipeline.sites import WAITS_FOR_ADMIN, Answer, Envelope
from server_store.rows import OrderRow, Step

Schema = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Round:
    """What is asked of a group of sites in one round; all of it public.

    schema: tensor name → (shape, dtype) of a valid body. quorum: valid bodies without which the round does not close.
    """

    name: str  # where its steps are kept, such as "stage1/1/2/votes"
    title: str  # for people
    stage: Literal[1, 2]
    attempt: int
    round: int
    sites: tuple[str, ...]
    terms: PrivacyTerms
    params: VoteParams | TrainParams
    inputs: Mapping[str, tuple[Blob, Path]]
    schema: Schema
    quorum: int
    deadline_s: float
    own: Mapping[str, Mapping[str, tuple[Blob, Path]]] = field(default_factory=dict)  # inputs of one site alone


@dataclass(frozen=True)
class _Body:
    tensors: dict[str, np.ndarray]
    sha256: str
    records: int


@dataclass(frozen=True)
class Gathered:
    """The bodies of a closed round: site → tensors, and site → SHA-256 of the sealed body; ``records``: declared sizes."""

    bodies: dict[str, dict[str, np.ndarray]]
    hashes: dict[str, str]
    records: dict[str, int]


def gather(ctx: RunContext, *rounds: Round) -> list[Gathered]:
    """Ask all sites of all these rounds at once, wait until all answered or their deadline, close each round.

    Raises:
        CafeError: CAFE-121 when fewer than ``quorum`` sites sent a valid body; the run can be resumed.
    """
    closed = [ctx.step(f"{asked.name}/closed") for asked in rounds]
    sites = [tuple(done.facts["hashes"]) if done else asked.sites for asked, done in zip(rounds, closed, strict=True)]
    asked_by = {}
    envelopes = []
    for asked, names in zip(rounds, sites, strict=True):
        for site in names:
            envelope = _envelope(ctx, asked, site)
            _note(ctx, envelope.order)
            ctx.at_site(site, "asked")
            envelopes.append(envelope)
            asked_by[order_hash(envelope.order)] = asked
    failpoint("round.before_ask")
    found: dict[str, dict[str, _Body]] = {asked.name: {} for asked in rounds}
    shares: dict[str, float] = {}
    looks: set[str] = set()
    tell = ctx.progress(rounds[0].title)

    def at_work(site: str, doing: str, done: int, of: int) -> None:
        shares[site] = done / of if of else 0.0
        if doing == WAITS_FOR_ADMIN and site not in looks:
            looks.add(site)
            ctx.say("its admin looks at the answer before it leaves; the round waits until its deadline", site=site)
        ctx.at_site(site, doing, done, of)
        tell(int(100 * sum(shares.values())), 100 * len(envelopes))

    for answer in ctx.sites.ask(envelopes, at_work):
        asked = asked_by[order_hash(answer.order)]
        body = _receive(ctx, asked, answer)
        at_work(answer.order.site, "sent" if body else _ending(answer), 1, 1)
        if body is not None:
            found[asked.name][answer.order.site] = body
        ctx.may_stop()
    failpoint("round.after_gather")
    return [_close(ctx, asked, done, found[asked.name]) for asked, done in zip(rounds, closed, strict=True)]


def _note(ctx: RunContext, order: Order) -> None:
    row = OrderRow(order_hash(order), order.site, order.stage, order.attempt, order.round, order.kind, "sent", None, "", "", {}, 0.0, None)
    ctx.store.order_sent(ctx.run, ctx.epoch, row)


def _close(ctx: RunContext, asked: Round, closed: Step | None, found: Mapping[str, _Body]) -> Gathered:
    """Fix which bodies went in. A round that was closed before must find the same bodies again."""
    hashes = {site: found[site].sha256 for site in sorted(found)}
    if closed and hashes != closed.facts["hashes"]:
        raise CafeError(
            "CAFE-122", "A closed round cannot be repeated: a site no longer has what it sent.", "Start the stage anew; it is charged anew."
        )
    if len(found) < asked.quorum:
        raise CafeError(
            "CAFE-121",
            f"{len(found)} of {len(asked.sites)} sites answered with a valid body; {asked.quorum} are needed ({_reasons(ctx, asked)}).",
            "Mend the sites or lower the quorum, then resume the run.",
        )
    if not closed:
        ctx.keep(f"{asked.name}/closed", hashes=hashes)
        failpoint("round.after_closed")
    return Gathered({site: found[site].tensors for site in hashes}, hashes, {site: found[site].records for site in hashes})


def empty_inbox(ctx: RunContext) -> None:
    """Delete every body of the rounds so far, read or unread: after a release nothing un-noised stays here."""
    for path in (ctx.folder / "inbox").glob("*"):
        path.unlink(missing_ok=True)


def _envelope(ctx: RunContext, asked: Round, site: str) -> Envelope:
    inputs = {**asked.inputs, **asked.own.get(site, {})}
    order = Order(
        run=ctx.run,
        stage=asked.stage,
        attempt=asked.attempt,
        round=asked.round,
        site=site,
        task=ctx.plan.task,
        privacy=asked.terms,
        inputs={name: blob for name, (blob, _) in inputs.items()},
        params=asked.params,
    )
    inbox = ctx.folder / "inbox"
    inbox.mkdir(exist_ok=True, mode=0o700)
    transport = Transport({name: str(path) for name, (_, path) in inputs.items()}, str(inbox / order_hash(order)), asked.deadline_s)
    return Envelope(order, sign(order, ctx.keys.signing), transport, _most(asked))


def _receive(ctx: RunContext, asked: Round, answer: Answer) -> _Body | None:
    """A valid body; None, noted with the reason, for anything else."""
    order, hash_ = answer.order, order_hash(answer.order)
    try:
        if answer.reply is None or answer.reply.status != "ok":
            raise CafeError(answer.code or "CAFE-123", answer.sentence or "The site gave no answer.", "")
        body, sha256 = _open(ctx, asked, answer)
    except CafeError as error:
        state = _ending(answer)
        ctx.store.order_ended(ctx.run, ctx.epoch, hash_, state, code=error.code, sentence=error.message)
        ctx.say(f"{order.kind} of round {order.round}: {error.code} {error.message}", level="warning", site=order.site)
        (ctx.folder / "inbox" / hash_).unlink(missing_ok=True)
        return None
    numbers = answer.reply.numbers
    shown = {"seconds_load": numbers.seconds_load, "seconds_work": numbers.seconds_work, "seconds_release": numbers.seconds_release}
    shown["bytes"] = answer.reply.outputs["body"].size
    if not ctx.store.order_ended(ctx.run, ctx.epoch, hash_, "answered", body=sha256, numbers=shown):
        ctx.say("two different bodies for one order; the first counts", level="error", site=order.site)
        return None
    if body_limits.is_longer(order, body):
        ctx.say(f"{order.kind} of round {order.round}: not clipped as agreed; it is clipped here", level="warning", site=order.site)
    if doubt := ctx.doubts.about(order, body):
        again = f" of attempt {order.attempt}" if order.attempt > 1 else ""
        ctx.warn_operator(f"{order.kind} of round {order.round}{again}: {doubt}", order.site)
    return _Body(body, sha256, numbers.records or 0)


def _ending(answer: Answer) -> Literal["refused", "late", "failed"]:
    """How an order ended that brought no valid body."""
    if answer.reply is not None and answer.reply.status == "refused":
        return "refused"
    return "late" if answer.code == "CAFE-124" else "failed"


def _open(ctx: RunContext, asked: Round, answer: Answer) -> tuple[dict[str, np.ndarray], str]:
    """Hash, seal, gate: the body's tensors. The hash in the signed reply binds the site to these bytes."""
    assert answer.reply is not None
    promised = answer.reply.outputs.get("body")
    path = ctx.folder / "inbox" / order_hash(answer.order)
    if promised is None or promised.size > _most(asked):
        raise CafeError("CAFE-460", "The reply names no body, or one of an impossible size.", "")
    try:
        data = path.read_bytes() if path.stat().st_size == promised.size else b""
    except OSError:
        raise CafeError("CAFE-461", "The body is not in the inbox.", "") from None
    if hashlib.sha256(data).hexdigest() != promised.sha256:
        raise CafeError("CAFE-462", "The body is not the one that the reply names (hash or size differ).", "")
    if answer.order.privacy.trust == "server" or answer.order.privacy.mechanism == "none":
        data = Box.open(data, ctx.keys.sealing, order_hash(answer.order).encode())
    tensors = body_from_bytes(data, dict(asked.schema))
    body_limits.check(answer.order, tensors, answer.reply.numbers.records)
    return tensors, promised.sha256


def _most(asked: Round) -> int:
    """Bytes that a body may have: twice what the numbers take, and room for names and seal."""
    return 2 * sum(8 * int(np.prod(shape)) for shape, _ in asked.schema.values()) + 1_000_000


def _reasons(ctx: RunContext, asked: Round) -> str:
    rows = ctx.store.orders(ctx.run, asked.stage, asked.attempt, asked.round)
    told = [f"{row.site}: {row.code} {row.sentence}" for row in rows if row.site in asked.sites and row.state != "answered"]
    return "; ".join(told) or "no answer"


def total(gathered: Gathered, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Site → one vector: the named tensors end to end, in the given order."""
    return {site: np.concatenate([body[name].ravel() for name in names]) for site, body in gathered.bodies.items()}
