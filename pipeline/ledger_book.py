"""The privacy ledger as people read it: every charge in words, and what each site has spent over all runs.

Knows the server's ledger and, of the sites of this machine, their own ledger and limit; writes to none of them. Epsilon
is computed by ``accounting`` alone. Where a site and this server count differently, both figures are given with the
reason, and the larger one is used.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any

from cafe_kit.errors import CafeError

from pipeline import catalogue, site_accounts
from pipeline.accounting import NO_GUARANTEE, epsilon_spent, shown
from pipeline.home import home
from pipeline.settings import RunSettings
from pipeline.site_accounts import Account, Told
from server_store.errors import StoreError
from server_store.ledger import Charge, Ledger, LedgerRelease
from server_store.store import Store

USUAL_DELTA = 1e-5
_RUN_ID = re.compile(r"(?P<name>.+)-\d{8}-\d{6}-[0-9a-f]{4}")  # as ``launch.start`` names runs: known also of deleted ones
_Place = tuple[str, int, int, int]  # run, stage, attempt, round: what a site and the server both call one release


@dataclass(frozen=True)
class Entry:
    """One release, as it was charged. ``mu2``: exact, per site; None without a guarantee."""

    release: LedgerRelease
    federation: str
    sites: tuple[str, ...]
    mu2: Fraction | None

    @property
    def time(self) -> float:
        return datetime.fromisoformat(self.release.time).timestamp()

    @property
    def what(self) -> str:
        return what_left(self.release.statistic, self.release.terms)

    @property
    def noise(self) -> str:
        return noise_words(self.release.terms)


@dataclass(frozen=True)
class SiteTotal:
    """What one site of one federation has spent, over all runs.

    counted: epsilon of its noised releases as this server counted them; reported: by the site's own ledger, or by what a site of another
    machine said of it (told); None where nothing is known of it. this_run: of it, the run that was asked for. at_limit: what the limit is
    compared with, at its own delta. releases: by either ledger; charged: by this server's. only_site, only_server: releases that one of the
    two has charged and the other has not, but for runs that are under way.
    """

    federation: str
    site: str
    delta: float
    counted: float
    reported: float | None
    this_run: float | None
    releases: int
    charged: int
    without_noise: int
    runs: int
    limit: float | None
    limit_delta: float
    at_limit: float
    only_site: int
    only_server: int
    own_head: str
    problem: CafeError | None
    told: Told | None = None

    @property
    def spent(self) -> float:
        """The figure that is used: of two, the larger."""
        return max(self.counted, self.reported or 0.0)

    @property
    def guaranteed(self) -> bool:
        return not self.without_noise

    @property
    def share(self) -> float | None:
        """Of its own limit; None without one."""
        return min(1.0, self.at_limit / self.limit) if self.limit else None

    @property
    def difference(self) -> str:
        """What to say where a site of this machine and the server do not agree; empty where they do."""
        if self.reported is None or not (self.only_site or self.only_server):
            return ""
        used = "The site's figure is used." if self.reported >= self.counted else "This server's figure is used, the larger one."
        reasons = []
        if self.only_site:
            reasons.append(f"The site charged {_times(self.only_site, 'answer')} for which this server's ledger has no release.")
        if self.only_server:
            reasons.append(f"This server charged {_times(self.only_server, 'release')} that the site did not answer.")
        figures = f"Site {self.site} reports ε {self.reported:g}, this server counted {self.counted:g}. {used}"
        if self.reported == self.counted:
            figures = f"Site {self.site} and this server did not charge the same releases; by both it spent ε {self.counted:g}."
        return " ".join([figures, *reasons])

    @property
    def own_word(self) -> str:
        """What the site's own ledger says beside ``difference``, in words; empty where nothing is known of it."""
        if self.reported is None or self.difference:
            return ""
        if self.told is None:
            return "The site's own ledger says the same." if self.reported == self.counted else ""
        if self.reported == self.counted and self.told.charges == self.charged:
            return "The site's own ledger says the same, by its last answer."
        if not self.told.charges:
            return "By its last answer the site's own ledger holds nothing."
        figure = f"ε {self.reported:g}" if self.told.mu_squared else NO_GUARANTEE
        return f"By its last answer the site's own ledger holds {_times(self.told.charges, 'answer')}: {figure}."

    @property
    def sentence(self) -> str:
        """Spent and limit, in words."""
        if not self.releases:
            return "Nothing was charged."
        noised = self.releases - self.without_noise
        if not noised:
            return f"{NO_GUARANTEE}: {_times(self.releases, 'release')} without noise."
        told = f"ε {self.spent:g} at δ {shown(self.delta)} for {_times(noised, 'release')} with noise"
        return told + (f"; {self.without_noise} more without noise: {NO_GUARANTEE} for these." if self.without_noise else ".")

    @property
    def limit_sentence(self) -> str:
        if self.limit is None:
            return "This site has set no limit of its own."
        return f"ε {self.at_limit:g} of its own limit {self.limit:g}, both at the site's δ {shown(self.limit_delta)}."


@dataclass(frozen=True)
class Book:
    """The whole ledger at one look. ``deltas``: those that runs and sites asked for.

    ``problem``: why the chain does not hold; no total is computed from such a ledger, its entries are evidence only.
    """

    entries: tuple[Entry, ...]
    sites: tuple[SiteTotal, ...]
    delta: float
    deltas: tuple[float, ...]
    head: str
    problem: StoreError | None

    @property
    def runs(self) -> tuple[str, ...]:
        """Runs with charges, the newest first; also such as were deleted since."""
        return tuple(dict.fromkeys(entry.release.run for entry in reversed(self.entries)))


def read(store: Store, *, run: str | None = None, delta: float | None = None) -> Book:
    """The ledger of this home. ``run``: whose share of each total is told. ``delta``: left out, the largest that a run asked for.

    Raises:
        LedgerError: CAFE-661, CAFE-668 where it cannot be read at all. A broken chain is told in ``problem``.
    """
    path = home() / "ledger.db"
    ledger = Ledger(path) if path.exists() else None
    problem = _verified(ledger) if ledger else None
    charges = ledger.charges() if ledger else []
    names = {known.id: known.name for known in store.runs()}
    federation = {one: federation_of(one, names) for one in {charge.run for charge in charges}}
    asked = {value for one in federation if one in names for value in deltas_of(store, one).values()}
    moving = {known.id for known in store.runs() if known.active}
    seats = site_accounts.of({(federation[charge.run], charge.site) for charge in charges})
    deltas = tuple(sorted(asked | {seat.policy.delta for seat in seats.values() if seat.policy and seat.policy.max_epsilon}))
    shown = delta or max(asked, default=USUAL_DELTA)
    by_site: dict[tuple[str, str], list[Charge]] = {key: [] for key in sorted(seats)}
    for charge in charges:
        by_site[federation[charge.run], charge.site].append(charge)
    return Book(
        entries=_entries(ledger.releases() if ledger else [], charges, federation),
        sites=() if problem else tuple(_total(*key, own, seats[key], shown, run, moving) for key, own in by_site.items()),
        delta=shown,
        deltas=tuple(sorted({*deltas, shown})),
        head=ledger.head() if ledger else "",
        problem=problem,
    )


def head() -> str:
    """The hash of the last entry: when it changes, something was charged. Empty before the first."""
    path = home() / "ledger.db"
    return Ledger(path).head() if path.exists() else ""


def federation_of(run: str, names: Mapping[str, str]) -> str:
    """Whose run it was; ``names``: of the runs that are still known."""
    found = _RUN_ID.fullmatch(run)
    return names.get(run) or (found["name"] if found else run)


def deltas_of(store: Store, run: str) -> dict[int, float]:
    """Stage -> delta that the run asked for, of the settings with which it began; of a synthetic set that it took over too."""
    begun = store.step(run, "frozen")
    if begun is None:
        return {}
    asked = RunSettings.model_validate_json(begun.facts["settings"]).privacy
    taken = catalogue.taken_over(store.step(run, "stage1/1/synthetic"))
    own = {stage: part.delta for stage, part in ((1, asked.stage1), (2, asked.stage2)) if part}
    return own | ({1: taken["delta"]} if taken.get("delta") else {})


def highest(charges: Sequence[Charge], deltas: Mapping[int, float]) -> str:
    """One run's figure for a table: the highest epsilon of a site, and which stage has no guarantee."""
    if not charges:
        return "nothing spent"
    noised: dict[str, list[Charge]] = defaultdict(list)
    for charge in charges:
        if charge.mu2 is not None:
            noised[charge.site].append(charge)
    bare = sorted({charge.stage for charge in charges if charge.mu2 is None})
    if not noised:
        return NO_GUARANTEE
    figures = [epsilon_spent(own, max(deltas.get(charge.stage, USUAL_DELTA) for charge in own)) for own in noised.values()]
    left = f" (stage {' and '.join(map(str, bare))}: {NO_GUARANTEE})" if bare else ""
    return f"ε {max(figures):g}{left}"


def what_left(statistic: str, terms: Mapping[str, Any]) -> str:
    """What one release is about."""
    length = f"{terms['length']:,}" if "length" in terms else "its"
    return f"votes for {length} candidate texts" if statistic == "votes" else f"changes of {length} trained numbers"


def noise_words(terms: Mapping[str, Any]) -> str:
    """The mechanism: sigma against the clip, the clip, the grid, and who adds the noise."""
    if terms.get("mechanism") != "gaussian":
        return f"without noise: {NO_GUARANTEE}"
    adder = {"server": "the server", "local": "each site"}.get(str(terms.get("trust")), "?")
    clip, sigma, grid = terms["clip_steps"], terms["sigma_steps"], terms["grid"]
    return f"Gaussian noise of {sigma / clip:.3g} × clip, clip {clip / grid:.3g} (L2), grid 1/{grid}, added by {adder}"


# --- totals ----------------------------------------------------------------------------------------------------------


def _total(federation: str, site: str, charges: list[Charge], seat: Account, delta: float, run: str | None, moving: set[str]) -> SiteTotal:
    own = seat.charges
    theirs = {_place(charge) for charge in own or ()}
    ours = {_place(charge) for charge in charges}
    limit, limit_delta = (seat.policy.max_epsilon, seat.policy.delta) if seat.policy else (None, delta)
    of_run = [charge for charge in charges if charge.run == run]
    told, noised = seat.told, [charge.mu2 for charge in charges if charge.mu2 is not None]
    cost, bare = float(sum(noised, Fraction(0))), len({_place(charge) for charge in [*charges, *(own or ())] if charge.mu2 is None})
    counted, reported = _epsilon(charges, delta), None if own is None else _epsilon(own, delta)
    at_limit = max(_epsilon(charges, limit_delta), _epsilon(own or [], limit_delta))
    if told:
        reported, at_limit = told.epsilon(delta, cost, counted), max(at_limit, told.epsilon(limit_delta, cost, at_limit))
    return SiteTotal(
        federation=federation,
        site=site,
        delta=delta,
        counted=counted,
        reported=reported,
        this_run=_epsilon(of_run, delta) if of_run else None,
        releases=max(len(ours | theirs), told.charges if told else 0),
        charged=len(ours),
        without_noise=max(bare, told.bare(cost, len(noised)) if told else 0),
        runs=len({place[0] for place in ours | theirs}),
        limit=limit,
        limit_delta=limit_delta,
        at_limit=at_limit if limit else 0.0,
        only_site=_ended(theirs - ours, moving) if own is not None else 0,
        only_server=_ended(ours - theirs, moving) if own is not None else 0,
        own_head=seat.head,
        problem=seat.problem,
        told=told,
    )


def _ended(places: set[_Place], moving: set[str]) -> int:
    """A run that is under way charges at the site first, and here when the round closes: no difference yet."""
    return sum(place[0] not in moving for place in places)


def _place(charge: Charge) -> _Place:
    return charge.run, charge.stage, charge.attempt, charge.round


def _epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Of those with noise; the others have no figure and are named beside it."""
    found = epsilon_spent([charge for charge in charges if charge.mu2 is not None], delta)
    assert math.isfinite(found)
    return found


def _entries(releases: list[LedgerRelease], charges: list[Charge], federation: Mapping[str, str]) -> tuple[Entry, ...]:
    by_release: dict[str, list[Charge]] = defaultdict(list)
    for charge in charges:
        by_release[charge.rid].append(charge)
    return tuple(
        Entry(release, federation[release.run], tuple(charge.site for charge in own), own[0].mu2)
        for release in releases
        if (own := by_release[release.rid])
    )


def _verified(ledger: Ledger) -> StoreError | None:
    try:
        ledger.verify()
    except StoreError as error:
        return error
    return None


def _times(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
