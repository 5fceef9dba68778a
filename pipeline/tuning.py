"""Stage 2: federated LoRA with proxies.

    θ ← first adapter; with a warm start: trained on the synthetic set alone        (``audition``; scored: synthetic_only)
    for r = 1 … rounds:
        strong sites train θ on their own records         ∥ proxies train θ, one per weak site, on its synthetic shard
        m_S ← release(Σ clip(Δ_s)) / |S|                    (the door; without privacy FedAvg's weighted mean)
        θ ← θ + (m_S + ρ·mean(Δ_v)) / (1 + ρ)               (scored on the public test set)

Knows the loop. Does not know how one site trains (``cafe_kit.train``, the same function for sites and proxies), how noise
is made, or how a model is scored. Proxies train on what was released: their updates are public and cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cafe_kit.failpoints import failpoint
from cafe_kit.orders import Blob, PrivacyTerms, TrainParams
from cafe_kit.task import Record

from pipeline import adapters, proxies
from pipeline.aggregation import Arrivals, State, fedavg
from pipeline.context import RunContext
from pipeline.evaluation import evaluate
from pipeline.machine import Machine
from pipeline.privacy import Release
from pipeline.proxies import Own, Proxies
from pipeline.rounds import Round, empty_inbox, gather, total
from pipeline.settings import PROXIES
from server_store.rows import Step

_WHOLE, _KEPT = f"{PROXIES}all", f"{PROXIES}kept"  # seats for the warm start: the whole synthetic set, and what an operator kept of it
_OFF = PrivacyTerms("none")


def audition(ctx: RunContext, attempt: int, synthetic: Sequence[Record], machine: Machine) -> None:
    """Train on the whole synthetic set alone and score that: whoever decides on the set sees what it is worth. Costs no privacy."""
    seated = proxies.seat(ctx, attempt, synthetic, machine.slots, _WHOLE)
    _warm(ctx, attempt, _WHOLE, machine, seated)


def run(ctx: RunContext, attempt: int, synthetic: Sequence[Record], machine: Machine, whole: bool = True) -> Step:
    """All rounds of this attempt, from where they stand; the last adapter. ``whole``: no row was left out of the synthetic set."""
    everything, dtype = _WHOLE if whole else _KEPT, machine.dtype
    seated = proxies.seat(ctx, attempt, synthetic, machine.slots, everything)
    adapter = _fresh(ctx, attempt)
    if seated.names:
        warm = _warm(ctx, attempt, everything, machine, seated)
        adapter = warm if ctx.settings.stage2.warm_start else adapter
    for r in range(1, ctx.settings.stage2.rounds + 1):
        begun = time.monotonic()
        adapter = _next(ctx, attempt, r, adapter, seated, dtype)
        score(ctx, attempt, "round", r, adapter, begun=begun)
        ctx.may_stop(after_round=True)
    return adapter


def score(ctx: RunContext, attempt: int, phase: str, round: int, adapter: Step | None, kept: str = "", begun: float | None = None) -> None:
    """Score the adapter (None: the base model) on the public test set, once; keep its PEFT folder.

    ``kept``: told apart from an earlier score of the round, where the operator has left out rows since. ``begun``: of the round, on
    the monotonic clock; the operator is told how long the others may take.
    """
    name = "zero_shot" if adapter is None else f"stage2/{attempt}/{round}{kept}/score"
    if ctx.step(name) is not None:
        return
    scorer, model = ctx.models.scorer(), ctx.models.base
    with ctx.timed("evaluate"):
        if adapter is not None:
            model = f"{ctx.run}-{attempt}-{round}"
            scorer.load_adapter(model, save_adapter(ctx, adapter, f"attempt-{attempt}/round-{round}"))
        found = evaluate(scorer, model, ctx.plan.task, ctx.settings.test_records(), ctx.progress(f"evaluate: {phase.replace('_', ' ')}"))
        if adapter is not None:
            scorer.unload_adapter(model)
    figure = found.as_json()
    ctx.keep(name, None, phase=phase, round=round, **figure)
    kind = "accuracy" if "accuracy" in figure else "loss"
    ctx.metric(phase, round, kind, float(figure[kind]), found.n)
    shown = f"{figure[kind]:.1%}" if kind == "accuracy" else f"{figure[kind]:.3f}"
    what = {"zero_shot": "base model", "synthetic_only": "synthetic only"}.get(phase, f"round {round} of {ctx.settings.stage2.rounds}")
    left = (ctx.settings.stage2.rounds - round) * (time.monotonic() - begun) if begun else 0.0
    ctx.say(f"{what}: {kind} {shown} on {found.n} public test records" + (f"; about {_span(left)} left" if left else ""))


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def save_adapter(ctx: RunContext, adapter: Step, name: str, card: str = "") -> Path:
    """The PEFT folder ``adapters/<name>`` of this run."""
    settings = ctx.settings.stage2
    folder = ctx.folder / "adapters" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    base = Path(ctx.settings.base_model).name if Path(ctx.settings.base_model).is_absolute() else ctx.settings.base_model
    card = card or f"# LoRA adapter `{ctx.settings.name}`, {name}\n\nRun `{ctx.run}`. Base model sha256 `{ctx.base_model.sha256}`.\n"
    adapters.save_peft(
        folder,
        adapters.from_bytes(ctx.data(adapter)),
        base=base,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        target_modules=settings.target_modules,
        card=card,
    )
    return folder


def _fresh(ctx: RunContext, attempt: int) -> Step:
    """The adapter before any training, from the public seed."""
    first = adapters.first_adapter(ctx.plan.shapes, ctx.settings.ffa, ctx.settings.seed)
    return ctx.keep(f"stage2/{attempt}/fresh", adapters.to_bytes(first))


def _warm(ctx: RunContext, attempt: int, seat: str, machine: Machine, seated: Proxies) -> Step:
    """The adapter trained by ``seat`` on its synthetic texts alone, by all threads as nothing runs beside it; scored."""
    kept_rows = "" if seat == _WHOLE else " kept"
    name, fresh = f"stage2/{attempt}/warm{kept_rows}", _fresh(ctx, attempt)
    kept = ctx.step(f"{name}/adapter")
    if kept is None:
        threads = 0 if ctx.settings.machine.proxies else machine.all_threads  # another machine chooses for itself
        params = _params(ctx, machine.dtype, steps=ctx.settings.stage2.warm_start_steps, threads=threads)
        with ctx.timed("warm start"):
            (trained,) = gather(ctx, _round(ctx, name, attempt, 0, (seat,), _OFF, params, fresh, 1, seated.own))
        (delta,) = total(trained, list(ctx.plan.trained)).values()
        kept = _advance(ctx, f"{name}/adapter", 0, fresh, Arrivals(None, [delta], 1.0))
    score(ctx, attempt, "synthetic_only", 0, kept, kept_rows)
    return kept


def _next(ctx: RunContext, attempt: int, r: int, before: Step, seated: Proxies, dtype: str) -> Step:
    """The adapter after federated round r, made or remembered."""
    name = f"stage2/{attempt}/{r}"
    kept = ctx.step(f"{name}/adapter")
    if kept is None:
        with ctx.timed("train"):
            strong_mean, public = _updates(ctx, name, attempt, r, seated, before, dtype)
        kept = _advance(ctx, f"{name}/adapter", r, before, Arrivals(strong_mean, public, ctx.settings.stage2.proxy_weight))
    return kept


def _advance(ctx: RunContext, name: str, r: int, before: Step, arrivals: Arrivals) -> Step:
    """Average, keep, forget the bodies."""
    after = fedavg(State(r - 1, adapters.from_bytes(ctx.data(before))), arrivals, ctx.plan.trained)
    kept = ctx.keep(name, adapters.to_bytes(after.adapter))
    failpoint("worker.after_adapter")
    empty_inbox(ctx)
    return kept


def _updates(
    ctx: RunContext, name: str, attempt: int, r: int, seated: Proxies, before: Step, dtype: str
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """The released mean of the strong sites (None if there are none) and the proxies' updates, computed side by side."""
    settings, strong, terms, names = ctx.settings.stage2, ctx.settings.names("gpu"), ctx.plan.deltas, list(ctx.plan.trained)
    release = Release(ctx.run, 2, attempt, r, "delta", terms, strong, adapters.parameters(ctx.plan.trained))
    released = ctx.door.find(release) if strong else None
    params = _params(ctx, dtype, steps=settings.steps)
    rounds = []
    if strong and released is None:
        rounds.append(_round(ctx, f"{name}/strong", attempt, r, strong, terms, params, before, ctx.settings.quorum(2)))
    if seated.names:
        rounds.append(_round(ctx, f"{name}/proxies", attempt, r, seated.names, _OFF, params, before, len(seated.names), seated.own))
    arrived = dict(zip([asked.name for asked in rounds], gather(ctx, *rounds), strict=True)) if rounds else {}
    if strong and released is None:
        from_strong = arrived[f"{name}/strong"]
        vectors = total(from_strong, names if terms.mechanism == "none" else ["q"])
        weights = {site: float(number) for site, number in from_strong.records.items()} if terms.mechanism == "none" else None
        released = ctx.door.release(release, vectors, from_strong.hashes, weights)
        failpoint("round.after_release")
    mean = None
    if released is not None:
        # With privacy the released sum is divided by a public constant, so that a missing site counts as zero.
        mean = released.values if terms.mechanism == "none" else released.values / len(strong)
    public = list(total(arrived[f"{name}/proxies"], names).values()) if seated.names else []
    return mean, [_clipped(delta, terms) for delta in public]


def _clipped(delta: np.ndarray, terms: PrivacyTerms) -> np.ndarray:
    """Proxies owe no clip to privacy; with a private stage they take the sites' clip, so that the two stay comparable."""
    if terms.mechanism == "none":
        return delta
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    return delta * min(1.0, terms.clip_norm / norm) if norm > 0 else delta


def _params(ctx: RunContext, dtype: str, *, steps: int, threads: int = 0) -> TrainParams:
    settings = ctx.settings.stage2
    return TrainParams(
        steps=steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=settings.target_modules,
        seed=ctx.settings.seed,
        trained="B" if ctx.settings.ffa else "A+B",
        warmup_steps=settings.warmup_steps,
        max_tokens=settings.max_tokens,
        dtype="float32" if dtype == "float32" else "bfloat16",
        threads=threads,
    )


def _round(
    ctx: RunContext,
    name: str,
    attempt: int,
    r: int,
    sites: tuple[str, ...],
    terms: PrivacyTerms,
    params: TrainParams,
    adapter: Step,
    quorum: int,
    own: Own | None = None,
) -> Round:
    private = terms.mechanism == "gaussian"
    shapes = ctx.plan.trained
    return Round(
        name,
        f"stage 2: round {r} of {ctx.settings.stage2.rounds}" if r else "stage 2: warm start on the synthetic set",
        2,
        attempt,
        r,
        sites,
        terms,
        params,
        {"base_model": (Blob(ctx.base_model.sha256, ctx.base_model.size), ctx.base_model.path), "adapter": ctx.blob(adapter)},
        {"q": ((adapters.parameters(shapes),), "int64")} if private else {tensor: (shape, "float32") for tensor, shape in shapes.items()},
        quorum,
        ctx.settings.stage2.deadline_s,
        own or {},
    )
