"""Stage 1: private evolution over the sites without a GPU (Aug-PE's loop, federated; our reconstruction of the paper).

    pool ← examples + propose                           # the operator's invented ones; the server's model, from public words
    for t = 1 … rounds:
        h ← Σ_sites clip(votes) + noise                 # the door; each site votes for what is nearest to its records
        survivors ← select(pool, h)
        if t < rounds: pool ← survivors + vary(survivors)
    synthetic ← survivors + examples + expand(both)     # few-shot after the last vote: costs no privacy

Knows the loop. Does not know how a text is asked for (``prompts``), how a site votes, or how noise is made. Everything
here is public or was released. Random choices of the plan are functions of (seed, attempt, round): a restart repeats them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cafe_kit.errors import CafeError
from cafe_kit.failpoints import failpoint
from cafe_kit.orders import Blob, VoteParams
from cafe_kit.task import Record
from cafe_kit.vote import candidates_from_bytes, candidates_to_bytes

from pipeline import prompts
from pipeline.context import Progress, RunContext
from pipeline.privacy import Release
from pipeline.rounds import Round, empty_inbox, gather, total
from pipeline.settings import load
from server_store.blobs import Blobs
from server_store.store import Store

_PASSES = 6  # how often missing texts of a class are asked for again
_SURPLUS = 1.4  # asked for, per text wanted: some are dropped

Ask = Callable[[str, random.Random], prompts.Ask]


def run(ctx: RunContext, attempt: int) -> list[Record]:
    """The synthetic set of this attempt, made or remembered."""
    name, rounds = f"stage1/{attempt}", ctx.settings.stage1.rounds
    made = ctx.step(f"{name}/synthetic")
    if made is not None:
        return candidates_from_bytes(ctx.data(made))
    survivors: list[Record] = []
    for t in range(1, rounds + 1):
        pool = _pool(ctx, attempt, t, survivors)
        votes = _vote(ctx, attempt, t, pool)
        survivors = select(ctx, attempt, t, pool, votes)
        ctx.say(f"stage 1, vote {t} of {rounds}: {len(pool)} candidates, {len(survivors)} kept")
        ctx.may_stop(after_round=True)
    with ctx.timed("generate"):
        synthetic = _expand(ctx, attempt, survivors)
    ctx.keep(f"{name}/synthetic", candidates_to_bytes(synthetic), rows=len(synthetic), survivors=len(survivors))
    ctx.say(f"stage 1: {len(synthetic)} synthetic texts")
    return synthetic


def kept(synthetic: Sequence[Record], approval: Mapping[str, Any]) -> list[Record]:
    """The set without the rows that the operator left out when he approved it."""
    out = set(approval.get("excluded", ()))
    return [record for number, record in enumerate(synthetic) if number not in out]


def reused(ctx: RunContext) -> list[Record]:
    """The approved set of the run that ``settings.synthetic`` names, taken over once and for good.

    Raises:
        CafeError: CAFE-610 when that run has no approved set, CAFE-611 when its texts are for another task.
    """
    name = "stage1/1/synthetic"
    made = ctx.step(name)
    if made is None:
        source = str(ctx.settings.synthetic)
        records, facts = approved_set(ctx.store, source)
        if any(ctx.plan.task.class_of(record) not in ctx.plan.task.classes for record in records):
            raise CafeError("CAFE-611", f"The synthetic set of {source} has labels that this task has not.", "Take a set of the same task.")
        made = ctx.keep(name, candidates_to_bytes(records), rows=len(records), source=source, **facts)
        ctx.say(f"stage 1: {len(records)} synthetic texts of run {source} are used again; nothing is charged for them")
    return candidates_from_bytes(ctx.data(made))


def approved_set(store: Store, source: str) -> tuple[list[Record], dict[str, Any]]:
    """The approved set of a run without the rows that were left out, and under which terms it was made.

    Raises:
        CafeError: CAFE-610 when there is none. StoreError: CAFE-655 for an unknown run.
    """
    run, steps = store.run(source), {step.name: step for step in store.steps(source, "stage1/")}
    words = [step for name, step in steps.items() if name.endswith("/approval") and step.facts["approved"]]
    made = steps.get(words[0].name.replace("/approval", "/synthetic")) if words else None
    if made is None or made.sha256 is None:
        raise CafeError(
            "CAFE-610", f"Run {source} has no approved synthetic set.", "Approve its set on the page Datasets, or take another run."
        )
    records = candidates_from_bytes(Blobs(Path(run.folder) / "blobs").get(made.sha256))
    before = load(Path(run.folder) / "config.yaml")
    # A set that was itself taken over rests on what its own source was charged.
    delta = before.privacy.stage1.delta if before.privacy.stage1 else None
    facts = {"charged_to": made.facts.get("charged_to", source), "delta": made.facts.get("delta", delta)}
    return kept(records, words[0].facts), facts


def select(ctx: RunContext, attempt: int, t: int, pool: Sequence[Record], votes: np.ndarray) -> list[Record]:
    """Keep ``survivors_per_label`` of each class: the best by noised votes, or drawn in proportion to them.

    Sampling is without replacement and from max(votes, 0); a class without a positive vote is drawn evenly.
    """
    settings, task = ctx.settings.stage1, ctx.plan.task
    rng = np.random.default_rng([ctx.settings.seed, attempt, t])  # of the plan: the noise is in the votes already
    kept: list[Record] = []
    for label in task.classes:
        own = [i for i, record in enumerate(pool) if task.class_of(record) == label]
        number = min(settings.survivors_per_label, len(own))
        if settings.select == "rank":
            chosen = sorted(own, key=lambda i: (-votes[i], i))[:number]
        else:
            weights = np.maximum(votes[own], 0.0) + 1e-12
            chosen = list(rng.choice(own, size=number, replace=False, p=weights / weights.sum()))
        kept += [pool[i] for i in chosen]
    return kept


def _pool(ctx: RunContext, attempt: int, t: int, survivors: Sequence[Record]) -> list[Record]:
    """The candidates of vote t: proposed at first, later the survivors and their variations."""
    step = ctx.step(f"stage1/{attempt}/{t}/candidates")
    if step is None:
        task, examples = ctx.plan.task, ctx.settings.examples()
        wanted = ctx.settings.stage1.candidates_per_label
        with ctx.timed("generate"):
            if t == 1:
                pool, dropped = _ask(
                    ctx, attempt, t, "propose", wanted, _public(ctx, wanted), lambda label, rng: prompts.propose(task, label, examples, rng)
                )
            else:

                def vary(label: str, rng: random.Random) -> prompts.Ask:
                    own = [record for record in survivors if task.class_of(record) == label]
                    return prompts.vary(task, rng.choice(own), [*survivors, *examples], rng)

                pool, dropped = _ask(ctx, attempt, t, "vary", wanted, survivors, vary)
        step = ctx.keep(f"stage1/{attempt}/{t}/candidates", candidates_to_bytes(pool), candidates=len(pool), dropped=dropped)
        failpoint("worker.after_candidates")
    return candidates_from_bytes(ctx.data(step))


def _vote(ctx: RunContext, attempt: int, t: int, pool: Sequence[Record]) -> np.ndarray:
    """The released votes for each candidate, (len(pool),): a noised sum, or the plain sum where the run has no privacy."""
    settings, weak, terms = ctx.settings.stage1, ctx.settings.names("cpu"), ctx.plan.votes
    release = Release(ctx.run, 1, attempt, t, "votes", terms, weak, len(pool), settings.vote_cap * settings.clip_norm)
    released = ctx.door.find(release)
    if released is None:
        step = ctx.step(f"stage1/{attempt}/{t}/candidates")
        assert step is not None and ctx.embedder is not None
        private = terms.mechanism == "gaussian"
        asked = Round(
            f"stage1/{attempt}/{t}/votes",
            f"stage 1: vote {t} of {ctx.settings.stage1.rounds}",
            1,
            attempt,
            t,
            weak,
            terms,
            VoteParams(max_votes_per_candidate=settings.max_votes_per_candidate),
            {"candidates": ctx.blob(step), "embedder": (Blob(ctx.embedder.sha256, ctx.embedder.size), ctx.embedder.path)},
            {"q" if private else "counts": ((len(pool),), "int64")},
            ctx.settings.quorum(1),
            settings.deadline_s,
        )
        with ctx.timed("vote"):
            (gathered,) = gather(ctx, asked)
            released = ctx.door.release(release, total(gathered, list(asked.schema)), gathered.hashes)
        failpoint("round.after_release")
    empty_inbox(ctx)
    return released.values


def _expand(ctx: RunContext, attempt: int, survivors: Sequence[Record]) -> list[Record]:
    """The synthetic set: the survivors, the public examples, and few-shot texts like them until every class has its quota."""
    task = ctx.plan.task
    wanted = ctx.settings.stage1.synthetic_per_label
    shown = list(dict.fromkeys([*survivors, *_public(ctx, wanted)]))
    made, dropped = _ask(ctx, attempt, 0, "expand", wanted, shown, lambda label, rng: prompts.expand(task, label, shown, rng))
    ctx.say(f"stage 1: dropped while expanding: {_told(dropped)}")
    return made


def _public(ctx: RunContext, most: int) -> list[Record]:
    """The operator's invented examples, at most ``most`` of each class: they stand for election with the generator's texts."""
    task, examples = ctx.plan.task, ctx.settings.examples()
    return [record for label in task.classes for record in [one for one in examples if task.class_of(one) == label][:most]]


def _ask(
    ctx: RunContext, attempt: int, t: int, what: str, wanted: int, held: Sequence[Record], ask: Ask
) -> tuple[list[Record], dict[str, int]]:
    """``held`` and new texts, ``wanted`` of each class, in the order of the classes; and what was dropped, by reason.

    Raises:
        CafeError: CAFE-514 when a class stays without any text.
    """
    task, settings = ctx.plan.task, ctx.settings.stage1
    kept = {label: [record for record in held if task.class_of(record) == label] for label in task.classes}
    sieve = prompts.Filter(task, [*held, *ctx.settings.examples()], embed=ctx.models.embed if settings.drop_off_label else None)
    goal = wanted * len(task.classes)
    tell = ctx.progress(f"stage 1: {what}")
    for number in range(_PASSES):
        rng = random.Random(f"{ctx.settings.seed}/{attempt}/{t}/{what}/{number}")
        missing = {label: wanted - len(records) for label, records in kept.items()}
        asks = [ask(label, rng) for label, lack in missing.items() for _ in range(_asked(lack))]
        if not asks:
            break
        base = goal - sum(missing.values())
        seed = rng.getrandbits(30)
        texts = ctx.models.generator().complete(
            [one.prompt for one in asks],
            max_tokens=ctx.settings.new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            stop=asks[0].stop,
            seed=seed,
            progress=partial(_tell_share, tell, base, goal),
        )
        for one, text in zip(asks, texts, strict=True):
            record = prompts.parse(task, one, text)
            if record is not None and len(kept[one.label]) < wanted and sieve.keep(record):
                kept[one.label].append(record)
        ctx.may_stop()
    bare = [label for label, records in kept.items() if not records]
    if bare:
        raise CafeError(
            "CAFE-514",
            f"The generator wrote no usable text for {bare[0]!r}" + (f" and {len(bare) - 1} more labels" if bare[1:] else "") + ".",
            "Give examples for it (task.examples), raise stage1.temperature, or use a stronger generator.",
        )
    short = sum(max(0, wanted - len(records)) for records in kept.values())
    if short:
        ctx.say(f"stage 1: {what}: {short} texts fewer than asked for; dropped: {_told(sieve.counts)}", level="warning")
    return [record for label in task.classes for record in kept[label]], dict(sieve.counts)


def _tell_share(tell: Progress, base: int, goal: int, done: int, of: int) -> None:
    tell(base + (goal - base) * done // max(of, 1), goal)


def _asked(lack: int) -> int:
    return 0 if lack <= 0 else int(np.ceil(lack * _SURPLUS)) + 1


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items()) if reason != "kept") or "nothing"
