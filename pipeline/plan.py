"""What a run will ask and promise, before anything runs: the terms of both stages, their cost and their chances.

Knows the settings and the base model's shapes. Spends nothing and starts nothing; the form, the command line and the
worker read the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from cafe_kit.errors import CafeError
from cafe_kit.orders import PrivacyTerms
from cafe_kit.task import Task

from pipeline import accounting
from pipeline.adapters import Shapes, parameters, trained
from pipeline.settings import RunSettings

_OFF = PrivacyTerms("none")


@dataclass(frozen=True)
class Plan:
    """The public terms of a run.

    votes, deltas: the terms of one release of stage 1 and of stage 2.
    vote_snr, norm_snr: expected signal over noise (algorithm notes §6.2 and §4.5); None without noise.
    shapes: of the whole adapter; trained: of what is trained and sent.
    """

    task: Task
    votes: PrivacyTerms
    deltas: PrivacyTerms
    vote_snr: float | None
    norm_snr: float | None
    shapes: Shapes
    trained: Shapes


def plan(settings: RunSettings, shapes: Shapes) -> Plan:
    """Calibrate both stages and foresee their signal.

    Raises:
        CafeError: CAFE-331 when a stage's signal would drown in its noise and ``privacy.accept_noise`` is not set.
    """
    made = foresee(settings, shapes)
    if not settings.privacy.accept_noise:
        for refusal in refusals(made, settings):
            raise refusal
    return made


def foresee(settings: RunSettings, shapes: Shapes) -> Plan:
    """The same without a refusal: what a form shows while it is filled in."""
    task = settings.public_task()
    weak, strong = settings.names("cpu"), settings.names("gpu")
    sent = trained(shapes, settings.ffa)
    asked, trust = settings.privacy, settings.privacy.trust
    votes = deltas = _OFF
    vote_snr = norm_snr = None
    if asked.stage1 and weak and settings.synthetic is None:
        votes = accounting.calibrate(asked.stage1.epsilon, asked.stage1.delta, settings.stage1.rounds, settings.stage1.clip_norm, trust)
        kept = len(task.classes) * settings.stage1.survivors_per_label
        vote_snr = accounting.vote_snr(len(weak), kept, votes, settings.stage1.rounds)
    if asked.stage2 and strong:
        deltas = accounting.calibrate(asked.stage2.epsilon, asked.stage2.delta, settings.stage2.rounds, settings.stage2.clip_norm, trust)
        norm_snr = accounting.norm_snr(len(strong), parameters(sent), deltas, settings.stage2.rounds)
    made = Plan(task, votes, deltas, vote_snr, norm_snr, shapes, sent)
    return made


def refusals(made: Plan, settings: RunSettings) -> list[CafeError]:
    """CAFE-331 for each stage whose signal would drown in its noise; ``privacy.accept_noise`` starts anyway."""
    weak, strong = len(settings.names("cpu")), len(settings.names("gpu"))
    anyway = "privacy.accept_noise: true starts anyway."
    found = []
    if made.vote_snr is not None and made.vote_snr < 1:
        found.append(
            CafeError(
                "CAFE-331",
                f"Stage 1 would drown in its noise: with {weak} sites this epsilon gives a vote signal-to-noise ratio"
                f" of {made.vote_snr:.2f}.",
                f"More sites, a larger epsilon, fewer rounds or survivors_per_label raise it; {anyway}",
            )
        )
    if made.norm_snr is not None and made.norm_snr < 1:
        found.append(
            CafeError(
                "CAFE-331",
                f"Stage 2 would drown in its noise: {strong} sites, {parameters(made.trained):,} trained numbers and this epsilon"
                f" give a norm signal-to-noise ratio of {made.norm_snr:.3f}.",
                f"More sites, a larger epsilon or a smaller lora_rank raise it; {anyway}",
            )
        )
    return found
