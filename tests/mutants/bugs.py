"""Planted privacy bugs: each a small patch of the real functions, of a kind that has been seen in the wild.

``BUGS`` maps a name to (the patch, the checks that must fail on it). None of this is importable by the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cafe_kit import noise
from cafe_kit import release as kit
from cafe_kit.noise import GaussianNoise, Steps
from cafe_kit.orders import PrivacyTerms

from pipeline import accounting, privacy
from pipeline.privacy import PrivacyDoor
from server_store import ledger as ledger_room
from server_store.ledger import Ledger, LedgerRelease
from tests.mutants import checks

Patch = pytest.MonkeyPatch
_draw, _init = GaussianNoise.draw, GaussianNoise.__init__
_bound, _clip, _aggregate, _reserve, _cost = kit.bound, kit.clip_to_norm, privacy.aggregate, Ledger.reserve, accounting.cost


# --- noise -----------------------------------------------------------------------------------------------------------


def sigma_over_root_two(patch: Patch) -> None:
    """Real and imaginary part, two halves of a Box-Muller pair, a variance split over two parties that never adds up."""
    patch.setattr(GaussianNoise, "__init__", lambda self, sigma: _init(self, round(sigma / math.sqrt(2))))


def sigma_halved(patch: Patch) -> None:
    patch.setattr(GaussianNoise, "__init__", lambda self, sigma: _init(self, sigma // 2))


def noise_scaled_to_the_mean(patch: Patch) -> None:
    """The noise of a sum, divided by n as if it were that of a mean."""
    real = privacy._draw

    def draw(release: privacy.Release, total: Steps) -> bytes:
        patch.setattr(GaussianNoise, "draw", lambda self, size: _draw(self, size) // len(release.roster))
        try:
            return real(release, total)
        finally:
            patch.setattr(GaussianNoise, "draw", _draw)

    patch.setattr(privacy, "_draw", draw)


def noise_of_a_seeded_float_generator(patch: Patch) -> None:
    """numpy, float32, a fixed seed for "reproducible runs"."""
    patch.setattr(
        GaussianNoise,
        "draw",
        lambda self, size: np.rint(np.random.default_rng(42).standard_normal(size, dtype=np.float32) * self.sigma_steps).astype(np.int64),
    )


def noise_key_reused(patch: Patch) -> None:
    """One key for the process: rounds and sites share their noise, and a difference of two releases has none."""
    patch.setattr(noise.os, "urandom", lambda count: b"k" * count)


def noise_quantised_coarsely(patch: Patch) -> None:
    """The right variance and the wrong shape: a sum of a few uniform numbers instead of a Gaussian."""

    def draw(self: GaussianNoise, size: int) -> Steps:
        uniform = np.random.default_rng().uniform(-1, 1, (3, size)).sum(axis=0)  # variance 1
        return np.rint(uniform * self.sigma_steps).astype(np.int64)

    patch.setattr(GaussianNoise, "draw", draw)


def clip_after_noise(patch: Patch) -> None:
    """The site clips what it has noised already: the noise is gone, and what is left is not a Gaussian mechanism."""

    def contribution(x: Any, terms: PrivacyTerms, most: float | None = None) -> Steps:
        q = kit.to_grid(x, terms.grid)
        if terms.trust == "local":
            q = q + GaussianNoise(kit.sigma_steps(terms)).draw(q.size)
        return kit.bound(q, terms, most)

    patch.setattr(kit, "contribution", contribution)


def local_noise_added_again_by_the_server(patch: Patch) -> None:
    """Not a leak, but a result with twice the noise that was paid for."""
    real = privacy._draw
    patch.setattr(
        privacy,
        "_draw",
        lambda release, total: real(
            release, total + GaussianNoise(kit.sigma_steps(release.terms)).draw(total.size) if release.terms.trust == "local" else total
        ),
    )


# --- sensitivity -----------------------------------------------------------------------------------------------------


def clip_per_label(patch: Patch) -> None:
    """Each class's votes clipped to the norm of all of them together: K classes move sqrt(K) times as much."""
    patch.setattr(kit, "clip_to_norm", lambda q, limit: np.concatenate([_clip(part, limit) for part in np.array_split(q, 3)]))


def one_tensor_left_out_of_the_clip(patch: Patch) -> None:
    """The classifier head was added later and never reached the clip."""
    patch.setattr(kit, "clip_to_norm", lambda q, limit: np.concatenate([_clip(q[:-2], limit), q[-2:]]))


def clip_in_the_largest_coordinate(patch: Patch) -> None:
    """The bound is one of each coordinate, not of the vector."""
    patch.setattr(kit, "clip_to_norm", lambda q, limit: np.clip(q, -limit, limit))


def no_second_clip_on_the_server(patch: Patch) -> None:
    """Sites are believed."""
    patch.setattr(privacy, "bound", lambda q, terms, most=None: q)


def a_site_counted_twice(patch: Patch) -> None:
    patch.setattr(privacy, "aggregate", lambda release, sent: _aggregate(release, sent) * 2)


def missing_sites_shrink_the_divisor(patch: Patch) -> None:
    """The mean over those who arrived, scaled to the roster: one site's say depends on whether the others came."""
    patch.setattr(privacy, "aggregate", lambda release, sent: _aggregate(release, sent) * len(release.roster) // max(1, len(sent)))


def cap_left_to_the_site(patch: Patch) -> None:
    patch.setattr(privacy, "bound", lambda q, terms, most=None: _bound(q, terms))


def cap_after_the_release(patch: Patch) -> None:
    """The cap of one site's votes applied to everybody's noised sum."""
    real = PrivacyDoor._open

    def opened(self: PrivacyDoor, release: privacy.Release, row: LedgerRelease) -> privacy.Released:
        out = real(self, release, row)
        values = np.clip(out.values, -release.cap, release.cap) if release.cap else out.values
        return privacy.Released(values, out.sha256, out.sites_charged)

    patch.setattr(PrivacyDoor, "_open", opened)


# --- ledger ----------------------------------------------------------------------------------------------------------


def retry_draws_again_after_the_seal(patch: Patch) -> None:
    """What was sealed but not marked is thrown away at the next start."""

    def adopt(self: PrivacyDoor, row: LedgerRelease) -> LedgerRelease:
        for path in self.folder.glob(f"{privacy._name(row.rid)}.*"):
            path.unlink()
        return row

    patch.setattr(PrivacyDoor, "_adopt", adopt)


def a_lost_body_is_made_anew(patch: Patch) -> None:
    """The file is gone, the inputs are still there: why not compute it again."""
    real = PrivacyDoor.find

    def find(self: PrivacyDoor, release: privacy.Release) -> privacy.Released | None:
        row = self.ledger.find(release.rid)
        gone = row is not None and row.state == "sealed" and not self._whole(self._path(row.rid, str(row.sha256)))
        return None if gone else real(self, release)

    patch.setattr(PrivacyDoor, "find", find)
    patch.setattr(PrivacyDoor, "_mark", lambda self, rid, path, size: _Unlost(self.ledger.get(rid), path.name.split(".")[1]))


class _Unlost:
    """A row that says what the mutant wants to hear."""

    def __init__(self, row: LedgerRelease, sha256: str) -> None:
        self.rid, self.sha256, self.state = row.rid, sha256, "sealed"


def charged_after_the_seal(patch: Patch) -> None:
    """The ledger is written when all has gone well."""
    real_reserve, real_mark = PrivacyDoor._reserve, PrivacyDoor._mark
    later: list[tuple[Any, ...]] = []
    patch.setattr(PrivacyDoor, "_reserve", lambda self, *args: later.append(args))

    def mark(self: PrivacyDoor, rid: str, path: Path, size: int) -> LedgerRelease:
        real_reserve(self, *later.pop())
        return real_mark(self, rid, path, size)

    patch.setattr(PrivacyDoor, "_mark", mark)


def only_those_who_answered_are_charged(patch: Patch) -> None:
    """A site that is missing still takes part: its silence is in the sum."""
    patch.setattr(
        Ledger,
        "reserve",
        lambda self, *args, inputs, charges, **more: _reserve(
            self, *args, inputs=inputs, charges={site: charges[site] for site in inputs}, **more
        ),
    )


def inputs_not_frozen(patch: Patch) -> None:
    """A late update slips into a round that was charged and perhaps already drawn."""
    patch.setattr(ledger_room, "_same", lambda known, asked: None)


def cost_of_a_larger_noise(patch: Patch) -> None:
    """The accountant is told another sigma than the noise has (a factor that somebody meant to divide out later)."""
    for room in (accounting, privacy):
        patch.setattr(room, "cost", lambda terms: _cost(terms) / 2)
    patch.setattr(accounting, "epsilon_spent", lambda charges, delta: accounting._epsilon(tuple((c.mu2, 1) for c in charges), delta))


def mu_added_instead_of_squared(patch: Patch) -> None:
    """sqrt(T) forgotten: ten releases calibrated as one."""
    real = accounting._epsilon
    patch.setattr(accounting, "_epsilon", lambda events, delta: real(tuple((mu2, 1) for mu2, _ in events), delta))


BUGS: dict[str, tuple[Callable[[Patch], None], tuple[Callable[[Path], None], ...]]] = {
    bug.__name__: (bug, fails)
    for bug, *fails in (  # type: ignore[misc]
        (sigma_over_root_two, checks.server_noise_has_the_agreed_scale, checks.site_noise_has_the_agreed_scale),
        (
            sigma_halved,
            checks.server_noise_has_the_agreed_scale,
            checks.site_noise_has_the_agreed_scale,
            checks.noise_has_the_exact_shape,
            checks.the_audit_finds_the_claimed_mu,
            checks.the_audit_of_votes_finds_the_claimed_mu,
        ),
        (noise_scaled_to_the_mean, checks.server_noise_has_the_agreed_scale, checks.the_audit_finds_the_claimed_mu),
        (noise_of_a_seeded_float_generator, checks.noise_is_never_used_twice),
        (noise_key_reused, checks.noise_is_never_used_twice),
        (noise_quantised_coarsely, checks.noise_has_the_exact_shape),
        (clip_after_noise, checks.site_noise_has_the_agreed_scale),
        (local_noise_added_again_by_the_server, checks.site_noise_has_the_agreed_scale),
        (clip_per_label, checks.one_site_moves_the_sum_by_at_most_the_clip),
        (one_tensor_left_out_of_the_clip, checks.one_site_moves_the_sum_by_at_most_the_clip),
        (clip_in_the_largest_coordinate, checks.one_site_moves_the_sum_by_at_most_the_clip),
        (no_second_clip_on_the_server, checks.one_site_moves_the_sum_by_at_most_the_clip),
        (
            a_site_counted_twice,
            checks.one_site_moves_the_sum_by_at_most_the_clip,
            checks.the_audit_finds_the_claimed_mu,
            checks.the_audit_of_votes_finds_the_claimed_mu,
        ),
        (missing_sites_shrink_the_divisor, checks.a_missing_site_counts_as_zero),
        (cap_left_to_the_site, checks.one_site_has_a_bounded_say_over_one_candidate),
        (cap_after_the_release, checks.one_site_has_a_bounded_say_over_one_candidate),
        (retry_draws_again_after_the_seal, checks.a_sealed_body_is_never_drawn_again),
        (a_lost_body_is_made_anew, checks.a_lost_body_is_not_drawn_again),
        (charged_after_the_seal, checks.nothing_leaves_before_it_is_charged),
        (only_those_who_answered_are_charged, checks.every_site_of_the_roster_is_charged_once),
        (inputs_not_frozen, checks.the_inputs_of_a_release_are_frozen),
        (cost_of_a_larger_noise, checks.epsilons_are_the_published_ones, checks.every_site_of_the_roster_is_charged_once),
        (mu_added_instead_of_squared, checks.epsilons_are_the_published_ones),
    )
}
