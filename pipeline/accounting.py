"""From charges to epsilon, and from epsilon to noise: what a guarantee costs and what it leaves of the signal.

Knows: Gaussian mechanisms in which every site of a public roster takes part (no sampling, so no amplification), composed.
Epsilon is computed twice, by the closed form of the Gaussian mechanism and by dp-accounting's privacy loss
distributions, and the two must agree. Does not know who was charged or when: events come from the ledger.

Adjacency is *zero-out* of one client: the site stays on the public roster and its contribution becomes zero. A sum then
moves by one clipped vector, L2 norm <= clip, exactly as when a record is added or removed; so the accountant's
ADD_OR_REMOVE_ONE with z = sigma / clip is the right relation (REPLACE_ONE would be a distance of up to 2 * clip).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Context
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from cafe_kit.errors import CafeError
from cafe_kit.orders import PrivacyTerms
from cafe_kit.release import clip_steps, sigma_steps
from mpmath import MPContext

from server_store.ledger import Charge, Ledger

ADJACENCY = "zero-out of one client"
NO_GUARANTEE = "no formal guarantee"
GUARANTEE = "client-level differential privacy"
_CLIP_BITS = 16  # calibrate() chooses the grid so that the clip is 2**16 to 2**17 steps: rounding is then far below any noise
_AGREEMENT = 1e-3  # largest relative difference between the two ways to epsilon
_mp = MPContext()
_mp.dps = 60  # the closed form is a difference of nearly equal numbers

Events = tuple[tuple[Fraction, int], ...]  # (mu**2 of one release, how many of them), sorted

_UP = Context(prec=6, rounding=ROUND_CEILING)


# --- epsilon ---------------------------------------------------------------------------------------------------------


def delta_at(epsilon: float, mu: float) -> float:
    """delta(epsilon) of mu-Gaussian DP: Phi(-eps/mu + mu/2) - e**eps * Phi(-eps/mu - mu/2) (Balle and Wang 2018, Theorem 8)."""
    return float(_delta(_mp.mpf(epsilon), _mp.mpf(mu)))


def mu_for(epsilon: float, delta: float) -> float:
    """The largest mu whose delta(epsilon) stays within ``delta``, from below."""
    low, high = _mp.mpf(0), _mp.mpf(1)
    while _delta(_mp.mpf(epsilon), high) <= delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(_mp.mpf(epsilon), middle) <= delta else (low, middle)
    return math.nextafter(float(low), 0.0)


def epsilon_spent(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon at ``delta`` of all these charges together, rounded up to 4 digits; infinite if one has no guarantee.

    The charges are those of *one* site: what several sites spent is never added up.

    Raises:
        CafeError: CAFE-335 if a charge contradicts its terms, CAFE-337 if the two ways to epsilon disagree.
    """
    events: Counter[Fraction] = Counter()
    for charge in charges:
        if charge.mu2 is None:
            return math.inf
        if charge.mu2 != Fraction(charge.terms["clip_steps"], charge.terms["sigma_steps"]) ** 2:
            raise CafeError(
                "CAFE-335",
                f"The ledger's charge for release {charge.rid} contradicts its own terms.",
                "Stop all runs and check the ledger (`cafe doctor`).",
            )
        events[charge.mu2] += 1
    return _epsilon(tuple(sorted(events.items())), delta)


@lru_cache(maxsize=1024)
def _epsilon(events: Events, delta: float) -> float:
    _check_delta(delta)
    closed = _closed_epsilon(events, delta)
    if closed == 0.0:
        return 0.0
    accounted = _accounted_epsilon(events, delta, interval=closed / 2000)
    if not math.isclose(closed, accounted, rel_tol=_AGREEMENT):
        raise CafeError(
            "CAFE-337",
            f"Two ways to compute epsilon disagree: {closed:.6g} and {accounted:.6g}.",
            "Report this; until it is understood no release is made.",
        )
    return float(Context(prec=4, rounding=ROUND_CEILING).create_decimal_from_float(max(closed, accounted)))


def _closed_epsilon(events: Events, delta: float) -> float:
    """By mu**2 = sum of clip**2 / sigma**2, an exact fraction, and bisection of the closed form, from above."""
    total = sum((mu2 * count for mu2, count in events), Fraction(0))
    mu = _mp.sqrt(_mp.mpf(total.numerator) / total.denominator)
    low, high = _mp.mpf(0), _mp.mpf(1)
    if total == 0 or _delta(low, mu) <= delta:
        return 0.0
    while _delta(high, mu) > delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(middle, mu) > delta else (low, middle)
    return float(high)


def _accounted_epsilon(events: Events, delta: float, interval: float) -> float:
    """By dp-accounting's privacy loss distributions, event by event. Its discretisation errs on the safe side."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation  # seconds to import, and only accounting needs it
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=interval)
    for mu2, count in events:
        accountant.compose(GaussianDpEvent(noise_multiplier=1 / math.sqrt(mu2)), count)
    return float(accountant.get_epsilon(delta))


def _delta(epsilon: Any, mu: Any) -> Any:
    if mu == 0:
        return _mp.mpf(0)
    return _mp.ncdf(mu / 2 - epsilon / mu) - _mp.exp(epsilon) * _mp.ncdf(-mu / 2 - epsilon / mu)


def shown(number: float) -> str:
    """An epsilon or delta as people write it: 8, 0.25, 1e-5. Six digits, rounded up: what is promised is never understated."""
    return f"{float(_UP.create_decimal(repr(number))):g}".replace("e-0", "e-")


def _check_delta(delta: float) -> None:
    if not 1e-12 <= delta < 1:
        raise CafeError("CAFE-333", f"Delta {delta:g} is not between 1e-12 and 1.", "Take 1e-5, or less than one over the number of sites.")


# --- noise -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def calibrate(epsilon: float, delta: float, releases: int, clip_norm: float, trust: Literal["server", "local"]) -> PrivacyTerms:
    """The terms under which ``releases`` releases cost a site at most ``epsilon`` at ``delta``, as printed.

    Args:
        epsilon: > 0. delta: in 1e-12..1. releases: >= 1, all of one stage.
        clip_norm: L2 bound of one contribution, in the units of the statistic.

    Raises:
        CafeError: CAFE-332 to CAFE-334.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise CafeError("CAFE-332", f"Epsilon {epsilon:g} is not a positive number.", "Take 1 to 8, or switch privacy off for the stage.")
    _check_delta(delta)
    if releases < 1 or not (math.isfinite(clip_norm) and clip_norm > 0):
        raise CafeError("CAFE-334", "Noise needs at least one release and a positive clip norm.", "Check rounds and clip norm.")
    grid = 2 ** max(0, _CLIP_BITS - math.floor(math.log2(clip_norm)))
    smallest, raised = math.sqrt(releases) / mu_for(epsilon, delta), 0.0
    while True:
        terms = PrivacyTerms(mechanism="gaussian", trust=trust, clip_norm=clip_norm, noise_multiplier=smallest * (1 + raised), grid=grid)
        if _epsilon(((cost(terms), releases),), delta) <= epsilon:
            return terms
        raised = 2 * raised or 1e-7


def cost(terms: PrivacyTerms) -> Fraction:
    """mu**2 of one release under ``terms``, exactly: clip_steps**2 / sigma_steps**2.

    Raises:
        CafeError: CAFE-336 for a Gaussian mechanism without noise: that is no guarantee and must not look like one.
    """
    sigma = sigma_steps(terms)
    if sigma == 0:
        raise CafeError("CAFE-336", "A release under a guarantee has no noise.", "Set epsilon, or switch privacy off for the stage.")
    return Fraction(clip_steps(terms), sigma) ** 2


# --- what is left of the signal --------------------------------------------------------------------------------------


def vote_snr(num_sites: int, kept_bins: int, terms: PrivacyTerms, releases: int) -> float:
    """Signal to noise of one vote bin when all sites agree over ``kept_bins`` bins: n * mu / sqrt(k * T), mu of the stage.

    The sites' joint signal per bin is n * clip / sqrt(k). T cancels where ``terms`` were calibrated for T releases
    (mu = sqrt(T) * clip / sigma); it is asked for so that the formula reads as published.
    """
    return math.inf if terms.mechanism == "none" else num_sites * _stage_mu(num_sites, terms, releases) / math.sqrt(kept_bins * releases)


def norm_snr(num_sites: int, trained_parameters: int, terms: PrivacyTerms, releases: int) -> float:
    """Norm of the signal over norm of the noise after all rounds of stage 2: n * mu / sqrt(d). Below 1 the noise wins."""
    return math.inf if terms.mechanism == "none" else num_sites * _stage_mu(num_sites, terms, releases) / math.sqrt(trained_parameters)


def _stage_mu(num_sites: int, terms: PrivacyTerms, releases: int) -> float:
    """mu of the sum over the stage; under trust "local" the sum carries every site's noise, so sqrt(n) less."""
    mu = math.sqrt(releases * cost(terms))
    return mu / math.sqrt(num_sites) if terms.trust == "local" else mu


# --- the statement ---------------------------------------------------------------------------------------------------


def run_statement(ledger: Ledger, run: str, deltas: Mapping[int, float], source: str | None = None) -> dict[str, Any]:
    """What the run promises, from the ledger alone: per stage, per site, and the maximum over sites. JSON-able.

    Args:
        deltas: stage -> delta, for every stage that has a guarantee.
        source: the run whose synthetic set this one uses again: what it was charged in stage 1 belongs to this promise.
    """
    charges = (ledger.charges(run=source, stage=1) if source else []) + ledger.charges(run=run)
    by_stage = {stage: [c for c in charges if c.stage == stage] for stage in sorted({c.stage for c in charges})}
    stages = {str(stage): _stage_statement(own, deltas) for stage, own in by_stage.items()}
    per_site: dict[str, dict[str, Any]] = {}
    for site in sorted({c.site for c in charges}):
        own = [c for c in charges if c.site == site]
        per_site[site] = _figure(own, deltas) | {"stages": sorted({c.stage for c in own}), "releases": len(own)}
    covered = [figure for figure in per_site.values() if figure["guarantee"] == GUARANTEE]
    units = {c.terms["unit"] for c in charges if c.mu2 is not None}
    maximum = None
    if covered and len(units) == 1:
        maximum = {
            "epsilon": max(f["epsilon"] for f in covered),
            "delta": max(f["delta"] for f in covered),
            "unit": units.pop(),
            "adjacency": ADJACENCY,
            "over_sites": len(covered),
        }
    return {
        "run": run,
        "stages": stages,
        "sites": per_site,
        "maximum": maximum,
        "ledger_head": ledger.head(),
        "sites_without_guarantee": sorted(site for site, figure in per_site.items() if figure["guarantee"] != GUARANTEE),
    }


def _stage_statement(charges: list[Charge], deltas: Mapping[int, float]) -> dict[str, Any]:
    """The worst site of one stage, with the words that make the number mean something."""
    sites = sorted({c.site for c in charges})
    figures = [_figure([c for c in charges if c.site == site], deltas) for site in sites]
    common = {"releases": len({c.rid for c in charges}), "sites": len(sites)}
    if any(figure["guarantee"] != GUARANTEE for figure in figures):
        return {"guarantee": NO_GUARANTEE, **common}
    worst = max(figures, key=lambda figure: figure["epsilon"])
    trusts = sorted({c.terms["trust"] for c in charges})
    return worst | {"unit": charges[0].terms["unit"], "trust": "+".join(trusts), "adjacency": ADJACENCY} | common


def _figure(charges: list[Charge], deltas: Mapping[int, float]) -> dict[str, Any]:
    """Epsilon and delta of one site's charges. Over stages of different deltas: all charges at the largest delta."""
    if any(c.mu2 is None for c in charges):
        return {"guarantee": NO_GUARANTEE}
    missing = sorted({c.stage for c in charges} - set(deltas))
    if missing:
        raise CafeError("CAFE-333", f"No delta was given for stage {missing[0]}.", "Give each stage with a guarantee its delta.")
    delta = max(deltas[stage] for stage in {c.stage for c in charges})
    return {"guarantee": GUARANTEE, "epsilon": epsilon_spent(charges, delta), "delta": delta}
