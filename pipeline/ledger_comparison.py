"""Two ledgers about one joined site: what this server charged to it, and what the site says of its own.

Knows sums, not entries: a site of another machine tells how many answers it has charged and what they cost together. Writes to
neither ledger and decides nothing. Of two figures the larger is used, and a difference is always said.

A site charges when it answers, the server when the round closes: an answer to a round under way is no difference. Nor do runs
without noise make one: they are answers that cost nothing, for which there is no guarantee and no epsilon. The server charges all sites of
a round, the silent ones too.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from pipeline import site_accounts
from pipeline.accounting import NO_GUARANTEE, epsilon_spent, shown
from pipeline.ledger_book import USUAL_DELTA, federation_of
from pipeline.site_accounts import Told
from server_store.ledger import Charge, Ledger
from server_store.site_kits import SiteKit
from server_store.store import Store

_ANSWERS = ("vote", "train")


@dataclass(frozen=True)
class Spent:
    """``charges``: answers, or releases, also those without noise; ``mu_squared`` of those with noise, and their epsilon.

    ``bare``: how many are known to be without noise.
    """

    charges: int
    mu_squared: float
    epsilon: float
    bare: int = 0


@dataclass(frozen=True)
class Comparison:
    """``site`` is None as long as it has told nothing. ``delta``: of the site's own limit. ``sentence``: for people."""

    agrees: bool
    server: Spent
    site: Spent | None
    delta: float
    sentence: str

    @property
    def used(self) -> Spent:
        """The figure that counts: the site's, unless the server's is larger."""
        return self.server if self.site is None or self.server.mu_squared > self.site.mu_squared else self.site

    @property
    def spent(self) -> str:
        """The figure that counts, in words. A site that answered without noise has no guarantee, whatever else it spent."""
        if not self.used.charges and not self.server.charges:
            return "nothing"
        if self.used.bare or self.server.bare:
            return NO_GUARANTEE
        return f"ε {self.used.epsilon:g} at δ {shown(self.delta)}"


def compare(kit: SiteKit, ledger: Ledger, store: Store | None = None) -> Comparison:
    """What ``ledger`` holds against this kit's site, over all runs of its federation, beside what the site's last answer said.

    ``store``: tells which rounds are under way; without it an answer to such a round counts as a difference.
    """
    charges = [charge for charge in ledger.charges(site=kit.site) if federation_of(charge.run, {}) == kit.federation]
    delta = _delta(kit)
    server = _of_server(charges, delta)
    site = _of_site(kit, server, delta)
    ahead = site.charges - server.charges if site else 0
    open_ = _under_way(kit, charges, store) if store and ahead > 0 else 0
    told = Told(site.charges, site.mu_squared) if site else None
    agrees = told is None or (ahead == 0 and told.same(server.mu_squared)) or (0 < ahead <= open_ and not _less(told, server))
    return Comparison(agrees, server, site, delta, _sentence(kit.site, server, site, delta, agrees))


def _of_server(charges: list[Charge], delta: float) -> Spent:
    noised = [charge for charge in charges if charge.mu2 is not None]
    total = sum((charge.mu2 for charge in noised if charge.mu2 is not None), Fraction(0))
    return Spent(len(charges), float(total), epsilon_spent(noised, delta), len(charges) - len(noised))


def _of_site(kit: SiteKit, server: Spent, delta: float) -> Spent | None:
    """What its last answer said. It does not tell how many of its answers had no noise: that follows where the two fit together."""
    told = site_accounts.told(kit)
    if told is None:
        return None
    figure, bare = told.epsilon(delta, server.mu_squared, server.epsilon), told.bare(server.mu_squared, server.charges - server.bare)
    return Spent(told.charges, told.mu_squared, figure, bare)


def _less(site: Told, server: Spent) -> bool:
    return site.mu_squared < server.mu_squared and not site.same(server.mu_squared)


def _under_way(kit: SiteKit, charges: list[Charge], store: Store) -> int:
    """Orders that the site may have answered, and so charged, in rounds that have not closed."""
    closed = {(charge.run, charge.stage, charge.attempt, charge.round) for charge in charges}
    moving = [run.id for run in store.runs() if run.active and run.name == kit.federation]
    rows = [(run, row) for run in moving for row in store.orders(run) if row.site == kit.site and row.kind in _ANSWERS]
    return sum((run, row.stage, row.attempt, row.round) not in closed for run, row in rows)


def _delta(kit: SiteKit) -> float:
    """At which the site's own limit is counted."""
    delta = ((kit.request or {}).get("limits") or {}).get("delta")
    return float(delta) if isinstance(delta, int | float) and 1e-12 <= delta < 1 else USUAL_DELTA


def _sentence(name: str, server: Spent, site: Spent | None, delta: float, agrees: bool) -> str:
    if site is None:
        return f"{name} has not said yet what its own ledger holds; this server counted {_figure(server, 'release', delta)}."
    own = _figure(site, "answer", delta)
    if agrees and site.charges == server.charges:
        return f"{name} and this server agree: {own}."
    if agrees:
        more = site.charges - server.charges
        return f"{name} and this server agree: {own}; {more} of them in a round that has not closed, which this server charges then."
    used = "This server's figure is used, the larger one. " if server.mu_squared > site.mu_squared else "The site's figure is used. "
    used = "" if site.epsilon == server.epsilon else used  # what differs had no noise
    why = (
        "A site charges every answer, also one that came late or to a round that was never released."
        if site.charges > server.charges
        else "This server charges all sites of a round, also one that did not answer; or the site's ledger was begun anew."
        if site.charges < server.charges
        else "They hold as many entries, which cost differently: one of the two was altered or is of another site."
    )
    counted = _figure(server, "release", delta)
    return f"{name} and this server differ: the site's own ledger holds {own}; this server counted {counted}. {used}{why}"


def _figure(spent: Spent, noun: str, delta: float) -> str:
    if not spent.charges:
        return f"no {noun}"
    number = f"{spent.charges} {noun}{'' if spent.charges == 1 else 's'}"
    if spent.bare == spent.charges:
        return f"{number} without noise, for which there is {NO_GUARANTEE} and no ε"
    figure = f"{number}, ε {spent.epsilon:g} at δ {shown(delta)}"
    return f"{figure}, {spent.bare} of them without noise and so with {NO_GUARANTEE}" if spent.bare else figure
