"""What starting a run would spend and send, site by site, in numbers and in words, before anything is asked of anybody.

Knows settings, the ledger and the base model's shapes, if it lies on this disk. Spends nothing, fetches nothing; a form
asks it at every change. Epsilons of different sites are never added up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cafe_kit.errors import CafeError
from cafe_kit.orders import PrivacyTerms
from cafe_kit.release import clip_steps, sigma_steps

from pipeline import accounting, adapters, models, plan
from pipeline.settings import RunSettings, StagePrivacy
from server_store.ledger import Charge, Ledger

_USUAL_DELTA = 1e-5


@dataclass(frozen=True)
class SiteSpend:
    """Privacy of one site at one delta: spent so far in this federation, asked by this run (None: without a guarantee), after it."""

    site: str
    kind: str
    spent: float
    asked: float | None
    after: float
    unguarded: int  # earlier releases without a formal guarantee


@dataclass(frozen=True)
class Forecast:
    """What is known before a start. ``trained``: numbers that a site trains and sends; None until the base model is on this disk."""

    votes: PrivacyTerms
    deltas: PrivacyTerms
    vote_snr: float | None
    norm_snr: float | None
    refusals: tuple[CafeError, ...]
    trained: int | None
    sites: tuple[SiteSpend, ...]

    @property
    def upload(self) -> int | None:
        """Bytes that a strong site sends a round: integers of the grid where there is noise, else single precision."""
        return None if self.trained is None else self.trained * (8 if self.deltas.mechanism == "gaussian" else 4)


def forecast(settings: RunSettings, ledger: Ledger) -> Forecast:
    """Raises CafeError for settings that cannot be planned (an unreadable label list, a layer that the model has not)."""
    base = models.at_hand(settings.base_model)
    shapes: adapters.Shapes = {}
    if base is not None:
        shapes = adapters.schema(base, settings.stage2.target_modules, settings.stage2.lora_rank)
    planned = settings if base else settings.model_copy(update={"privacy": settings.privacy.model_copy(update={"stage2": None})})
    made = plan.foresee(planned, shapes)
    deltas = made.deltas if base else _deltas(settings)
    return Forecast(
        made.votes,
        deltas,
        made.vote_snr,
        made.norm_snr,
        tuple(plan.refusals(made, settings)),
        adapters.parameters(made.trained) if base else None,
        _spends(settings, made.votes, deltas, ledger),
    )


def spend_words(settings: RunSettings) -> list[str]:
    """One sentence per stage: who is asked for what."""
    weak, strong = len(settings.names("cpu")), len(settings.names("gpu"))
    words = []
    if settings.synthetic and weak:
        words.append(f"Stage 1 does not run: the approved texts of {settings.synthetic} are used again, and nothing is charged for them.")
    elif weak:
        words.append(_stage_words("Stage 1", weak, settings.privacy.stage1, "votes"))
    if strong:
        words.append(_stage_words("Stage 2", strong, settings.privacy.stage2, "adapter updates"))
    return words


def spends(settings: RunSettings) -> bool:
    """Whether a start asks any site for privacy under a guarantee, which then cannot be given back."""
    stage1 = settings.privacy.stage1 and settings.names("cpu") and not settings.synthetic
    return bool(stage1 or (settings.privacy.stage2 and settings.names("gpu")))


def _stage_words(stage: str, number: int, asked: StagePrivacy | None, what: str) -> str:
    sites = f"{number} site{'s' if number > 1 else ''}"
    if asked is None:
        return f"{stage}: {sites} send{'' if number > 1 else 's'} {what} with no formal guarantee."
    each = " each" if number > 1 else ""
    return f"{stage} asks {sites} to spend up to ε = {accounting.shown(asked.epsilon)}{each} (δ = {accounting.shown(asked.delta)})."


def _deltas(settings: RunSettings) -> PrivacyTerms:
    """The terms of stage 2, which do not depend on the base model."""
    asked, stage = settings.privacy.stage2, settings.stage2
    if asked is None or not settings.names("gpu"):
        return PrivacyTerms("none")
    return accounting.calibrate(asked.epsilon, asked.delta, stage.rounds, stage.clip_norm, settings.privacy.trust)


def _spends(settings: RunSettings, votes: PrivacyTerms, deltas: PrivacyTerms, ledger: Ledger) -> tuple[SiteSpend, ...]:
    own = re.compile(rf"{re.escape(settings.name)}-\d{{8}}-\d{{6}}-[0-9a-f]{{4}}")
    before = [charge for charge in ledger.charges() if own.fullmatch(charge.run)]
    found = []
    for site in settings.sites:
        weak = site.kind == "cpu"
        stage, terms, rounds = (1, votes, settings.stage1.rounds) if weak else (2, deltas, settings.stage2.rounds)
        asked = settings.privacy.stage1 if weak else settings.privacy.stage2
        delta = asked.delta if asked else _USUAL_DELTA
        mine = [charge for charge in before if charge.site == site.name]
        kept = [charge for charge in mine if charge.mu2 is not None]
        new = _charges(settings.name, site.name, stage, terms, rounds)
        idle = weak and settings.synthetic is not None
        found.append(
            SiteSpend(
                site.name,
                site.kind,
                accounting.epsilon_spent(kept, delta) if kept else 0.0,
                0.0 if idle else None if terms.mechanism == "none" else accounting.epsilon_spent(new, delta),
                accounting.epsilon_spent([*kept, *new], delta) if kept or new else 0.0,
                len(mine) - len(kept),
            )
        )
    return tuple(found)


def _charges(name: str, site: str, stage: int, terms: PrivacyTerms, rounds: int) -> list[Charge]:
    """What the ledger would hold after the stage."""
    if terms.mechanism == "none":
        return []
    one = {"clip_steps": clip_steps(terms), "sigma_steps": sigma_steps(terms)}
    return [Charge(f"planned/{n}", name, stage, 1, n, "planned", site, accounting.cost(terms), one) for n in range(1, rounds + 1)]
