"""What must hold of everything that leaves, as functions that pass on the real code and must fail on every mutant.

Each takes an empty folder and raises AssertionError. Every name is looked up in its module at the moment of the call, so
that a planted bug is seen. Statistical checks have a false-alarm rate of 1e-9 or less and say what they reject.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cafe_kit import release as kit
from cafe_kit.errors import CafeError
from cafe_kit.orders import PrivacyTerms
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare, norm

from pipeline import accounting, privacy
from server_store.ledger import Charge, Ledger, LedgerError

ALARM = 1e-9
SITES = ("east", "north", "south", "west")


def terms(noise_multiplier: float = 4.0, clip_norm: float = 1.0, trust: str = "server", grid: int = 2**16) -> PrivacyTerms:
    return PrivacyTerms(mechanism="gaussian", trust=trust, clip_norm=clip_norm, noise_multiplier=noise_multiplier, grid=grid)  # type: ignore[arg-type]


def release(
    length: int, of: PrivacyTerms, roster: tuple[str, ...] = SITES, round: int = 0, statistic: str = "delta", cap: float | None = None
) -> privacy.Release:
    return privacy.Release("run", 2, 1, round, statistic, of, roster, length, cap)  # type: ignore[arg-type]


def door(folder: Path) -> privacy.PrivacyDoor:
    return privacy.PrivacyDoor(Ledger(folder / "ledger.db"), folder / "releases")


def hashes(contributions: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {site: hashlib.sha256(q.tobytes()).hexdigest() for site, q in contributions.items()}


def through(folder: Path, of: privacy.Release, contributions: Mapping[str, np.ndarray]) -> np.ndarray:
    """The released values in grid steps."""
    return door(folder).release(of, contributions, hashes(contributions)).values * of.terms.grid


def assert_scale(draws: np.ndarray, sigma: float) -> None:
    """Sum of (z / sigma)**2 against chi-square, both sides. With 200,000 draws it rejects a sigma that is 2 % off."""
    total = float(((draws / sigma) ** 2).sum())
    low, high = chi2.ppf(ALARM / 2, draws.size), chi2.isf(ALARM / 2, draws.size)
    assert low < total < high, f"noise of {math.sqrt(total / draws.size):.4f} of the agreed sigma"


# --- noise -----------------------------------------------------------------------------------------------------------


def server_noise_has_the_agreed_scale(folder: Path) -> None:
    """Four sites of zeros through the real door: what comes out is the noise, once, at sigma of the *sum*."""
    of = release(200_000, terms())
    assert_scale(through(folder, of, {site: np.zeros(of.length, np.int64) for site in SITES}), kit.sigma_steps(of.terms))


def site_noise_has_the_agreed_scale(folder: Path) -> None:
    """Under trust "local" every site carries all of the noise itself, and the door neither adds to it nor clips it."""
    of = release(200_000, terms(trust="local"), roster=SITES[:1])
    own = kit.contribution(np.zeros(of.length), of.terms)
    assert_scale(own, kit.sigma_steps(of.terms))
    assert (through(folder, of, {SITES[0]: own}) == own).all()


def noise_has_the_exact_shape(folder: Path) -> None:
    """Chi-square per cell against the exact masses of the rounded Gaussian, for sigmas at which every cell counts."""
    for sigma in (2, 4, 8):
        draws = kit.GaussianNoise(sigma).draw(200_000)
        assert draws.dtype == np.int64
        far = 3 * sigma
        borders = norm.cdf((np.arange(-far, far + 2) - 0.5) / sigma)
        masses = np.diff(np.concatenate([[0.0], borders, [1.0]]))
        counts = np.bincount(np.clip(draws, -far - 1, far + 1) + far + 1, minlength=masses.size)
        p = chisquare(counts, masses * draws.size).pvalue
        assert ALARM < p < 1 - ALARM, f"sigma {sigma}: p = {p:.2g}"


def noise_is_never_used_twice(folder: Path) -> None:
    """No vector twice over sites and over rounds, and none correlated with another: |r| < 7 / sqrt(n)."""
    length = 2_000
    local, server = terms(trust="local"), terms()
    drawn = [kit.contribution(np.zeros(length), local) for _ in range(20)]
    empty = {SITES[0]: np.zeros(length, np.int64)}
    drawn += [through(folder, release(length, server, round=number), empty) for number in range(10)]
    assert len({np.asarray(q, np.int64).tobytes() for q in drawn}) == len(drawn), "the same noise twice"
    r = np.corrcoef(np.stack(drawn)) - np.eye(len(drawn))
    assert np.abs(r).max() < 7 / math.sqrt(length), "noise of one release tells about another's"


# --- sensitivity -----------------------------------------------------------------------------------------------------

_VALUE = st.one_of(st.sampled_from([0.0, -0.0, 5e-324, 1e-9, 0.5, 1.0, -1.0, 65504.0, 1e9]), st.floats(-100, 100))


@settings(derandomize=True, max_examples=100, deadline=None, database=None)
@given(st.lists(st.lists(_VALUE, min_size=6, max_size=6), min_size=2, max_size=4), st.sampled_from([0.37, 1.0, 3.0]))
@example([[1.0] * 6, [0.0] * 6], 1.0)  # many labels at once: a clip per label would let sqrt(labels) pass
@example([[9.0, 0, 0, 0, 0, 0], [0.0] * 6], 1.0)  # all votes on one bin
@example([[0, 0, 0, 0, 0, 50.0], [0.0] * 6], 1.0)  # only the last tensor
@example([[0, 0, 0, 0, 50.0, 50.0], [1.0] * 6], 1.0)
def _one_site_moves_the_sum_by_at_most_the_clip(vectors: list[list[float]], clip_norm: float) -> None:
    of = release(6, terms(0.0, clip_norm))
    honest = {site: kit.contribution(np.array(x), of.terms) for site, x in zip(SITES, vectors, strict=False)}
    raw = {site: kit.to_grid(np.array(x), of.terms.grid) for site, x in zip(SITES, vectors, strict=False)}
    for contributions in (honest, raw):  # raw: what a site sends that does not clip
        zeroed = contributions | {SITES[0]: np.zeros(6, np.int64)}
        moved = privacy.aggregate(of, contributions) - privacy.aggregate(of, zeroed)
        assert sum(int(step) ** 2 for step in moved) <= kit.clip_steps(of.terms) ** 2
        assert (privacy.aggregate(of, honest) == sum(honest.values())).all(), "the door changed an honest contribution"


def one_site_moves_the_sum_by_at_most_the_clip(folder: Path) -> None:
    """Zero-out neighbours through the real clip and sum, in exact integers."""
    _one_site_moves_the_sum_by_at_most_the_clip()


def one_site_has_a_bounded_say_over_one_candidate(folder: Path) -> None:
    """A stuffing voter moves one candidate by at most the cap; five honest ones are not held to the cap of one."""
    roster = (*SITES, "stuffer")
    of = release(4, terms(1e-3, clip_norm=40.0, grid=2**11), roster, statistic="votes", cap=10)
    stuffed = {site: np.zeros(4, np.int64) for site in SITES} | {"stuffer": np.array([0, 0, 0, 2**40])}
    assert through(folder / "a", of, stuffed)[3] <= 10 * of.terms.grid + kit.GaussianNoise(kit.sigma_steps(of.terms)).bound
    agreed = {site: kit.contribution(np.array([10.0, 0, 0, 0]), of.terms, 10) for site in roster}
    assert abs(through(folder / "b", of, agreed)[0] - 50 * of.terms.grid) <= kit.GaussianNoise(kit.sigma_steps(of.terms)).bound


def a_missing_site_counts_as_zero(folder: Path) -> None:
    """The sum of three of four sites is their sum: nothing is scaled up to make good for the missing one."""
    of = release(1, terms(1e-3))
    full = kit.clip_steps(of.terms)
    values = through(folder, of, {site: np.array([full]) for site in SITES[:3]})
    assert abs(values[0] - 3 * full) <= kit.GaussianNoise(kit.sigma_steps(of.terms)).bound


# --- the ledger ------------------------------------------------------------------------------------------------------


def every_site_of_the_roster_is_charged_once(folder: Path) -> None:
    """Also the one that did not answer; and a repeated call charges nothing more."""
    of = release(3, terms())
    gate = door(folder)
    arrived = {site: np.zeros(3, np.int64) for site in SITES[:2]}
    for _ in range(3):
        gate.release(of, arrived, hashes(arrived))
    cost = Fraction(kit.clip_steps(of.terms), kit.sigma_steps(of.terms)) ** 2
    assert [(c.site, c.mu2) for c in gate.ledger.charges(run="run")] == [(site, cost) for site in SITES]


class _FullDisk(Ledger):
    def reserve(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
        raise LedgerError("CAFE-668", "The disk is full.", "Free space.")


def nothing_leaves_before_it_is_charged(folder: Path) -> None:
    """A ledger that cannot be written: no error may be swallowed, no value returned and no body sealed."""
    of = release(3, terms())
    gate = privacy.PrivacyDoor(_FullDisk(folder / "ledger.db"), folder / "releases")
    arrived = {SITES[0]: np.zeros(3, np.int64)}
    try:
        gate.release(of, arrived, hashes(arrived))
    except (CafeError, LedgerError):
        pass
    else:
        raise AssertionError("a release without a charge")
    assert not list((folder / "releases").iterdir()), "a body was sealed before it was charged"


class _PowerCut(BaseException):
    pass


def _cut_before_the_mark(folder: Path, of: privacy.Release, contributions: Mapping[str, np.ndarray]) -> None:
    class Dying(privacy.PrivacyDoor):
        def _mark(self, *args: object) -> None:  # type: ignore[override]
            raise _PowerCut

    with pytest.raises(_PowerCut):
        Dying(Ledger(folder / "ledger.db"), folder / "releases").release(of, contributions, hashes(contributions))


def a_sealed_body_is_never_drawn_again(folder: Path) -> None:
    """Killed between seal and mark: what lies whole on the disk is *the* body, and a retry returns it for ever."""
    of = release(50, terms())
    arrived = {site: np.zeros(50, np.int64) for site in SITES}
    _cut_before_the_mark(folder, of, arrived)
    (sealed,) = (folder / "releases").glob("*.safetensors")
    sha256 = hashlib.sha256(sealed.read_bytes()).hexdigest()
    seen = {door(folder).release(of, arrived, hashes(arrived)).sha256 for _ in range(3)}
    door(folder).recover("run")
    seen.add(door(folder).release(of, {}, {}).sha256)
    assert seen == {sha256}, "a second body for one release"


def a_lost_body_is_not_drawn_again(folder: Path) -> None:
    """The file is gone: an error, for ever; the charge stays."""
    of = release(50, terms())
    arrived = {site: np.zeros(50, np.int64) for site in SITES}
    through(folder, of, arrived)
    for body in (folder / "releases").glob("*.safetensors"):
        body.unlink()
    for _ in range(2):
        try:
            door(folder).release(of, arrived, hashes(arrived))
        except CafeError as error:
            assert error.code == "CAFE-325"
        else:
            raise AssertionError("a second body for one release")
    assert len(Ledger(folder / "ledger.db").charges(run="run")) == len(SITES)


def the_inputs_of_a_release_are_frozen(folder: Path) -> None:
    """Charged, then killed before the seal: a retry must bring the bodies that were frozen, not others."""
    of = release(3, terms())
    first, other = ({SITES[0]: np.full(3, step)} for step in (1, 2))

    class Dying(privacy.PrivacyDoor):
        def _path(self, *args: object) -> Path:  # type: ignore[override]
            raise _PowerCut

    with pytest.raises(_PowerCut):
        Dying(Ledger(folder / "ledger.db"), folder / "releases").release(of, first, hashes(first))
    try:
        door(folder).release(of, other, hashes(other))
    except CafeError as error:
        assert error.code == "CAFE-663"
    else:
        raise AssertionError("other inputs under the same reservation")
    door(folder).release(of, first, hashes(first))


# --- accounting ------------------------------------------------------------------------------------------------------


def charges(mu2: list[tuple[int, int]]) -> list[Charge]:
    """(clip_steps, sigma_steps) of each release of one site, as the ledger would hand them out."""
    return [
        Charge(f"r{i}", "run", 1, 1, i, "votes", "east", Fraction(clip, sigma) ** 2, {"clip_steps": clip, "sigma_steps": sigma})
        for i, (clip, sigma) in enumerate(mu2)
    ]


def epsilons_are_the_published_ones(folder: Path) -> None:
    """Aug-PE's Yelp setting, and two stages of one site, from public tables; and calibration never promises too much."""
    n = 1_939_290
    assert accounting.epsilon_spent(charges([(100, 1534)] * 10), 1 / (n * math.log(n))) == pytest.approx(1.004, abs=1e-3)
    assert accounting.epsilon_spent(charges([(1, 4)] * 20), 1e-5) == pytest.approx(4.98, abs=0.01)
    assert accounting.epsilon_spent(charges([(10_000, 10_811)] * 1 + [(10_000, 10_811)] * 1), 1e-5) == pytest.approx(5.99, abs=0.01)
    for epsilon in (0.5, 8.0):
        of = release(3, accounting.calibrate(epsilon, 1e-5, 2, 1.0, "server"))
        gate = door(folder / str(epsilon))
        for round in range(2):
            gate.release(release(3, of.terms, round=round), {}, {})
        for site in SITES:
            assert 0.999 * epsilon < accounting.epsilon_spent(gate.ledger.charges(site=site), 1e-5) <= epsilon


# --- the aggregator audit --------------------------------------------------------------------------------------------


def the_audit_finds_the_claimed_mu(folder: Path, statistic: str = "delta", canaries: int = 1000) -> None:
    """Tier 1: canary clients in or out by a fair coin, through the real site code and the real door, projected back.

    For a Gaussian mechanism the gap of the means over the noise is mu; standard error sqrt(4/m + mu**2/(2m)). The bar is
    6 of these: it sees a mu that is 45 % off (a sigma halved, a site counted twice); the scale test sees 2 %.
    """
    mu, coins = 0.925, np.random.default_rng(7)
    roster = tuple(f"canary-{i:04d}" for i in range(canaries))
    length = canaries if statistic == "votes" else 4 * canaries
    of = release(length, terms(1 / mu, clip_norm=4.0), roster, statistic=statistic)
    directions = np.eye(canaries, length) if statistic == "votes" else coins.standard_normal((canaries, length))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    present = coins.random(canaries) < 0.5
    sent = {roster[i]: kit.contribution(9 * directions[i], of.terms) for i in np.flatnonzero(present)}  # 9: longer than the clip
    seen = directions @ through(folder, of, sent) / kit.sigma_steps(of.terms)
    spread = math.sqrt((seen[present].var() * present.sum() + seen[~present].var() * (~present).sum()) / canaries)
    measured = (seen[present].mean() - seen[~present].mean()) / spread
    error = math.sqrt(4 / canaries + mu**2 / (2 * canaries))
    crosstalk = 1.0 if statistic == "votes" else 1 / math.sqrt(1 + mu**2 * present.sum() / length)  # other canaries are noise, too
    assert abs(measured - mu * crosstalk) < 6 * error, f"mu of {measured:.3f}, claimed {mu}"


def the_audit_of_votes_finds_the_claimed_mu(folder: Path) -> None:
    the_audit_finds_the_claimed_mu(folder, "votes")


ALL = (
    server_noise_has_the_agreed_scale,
    site_noise_has_the_agreed_scale,
    noise_has_the_exact_shape,
    noise_is_never_used_twice,
    one_site_moves_the_sum_by_at_most_the_clip,
    one_site_has_a_bounded_say_over_one_candidate,
    a_missing_site_counts_as_zero,
    every_site_of_the_roster_is_charged_once,
    nothing_leaves_before_it_is_charged,
    a_sealed_body_is_never_drawn_again,
    a_lost_body_is_not_drawn_again,
    the_inputs_of_a_release_are_frozen,
    epsilons_are_the_published_ones,
    the_audit_finds_the_claimed_mu,
    the_audit_of_votes_finds_the_claimed_mu,
)
