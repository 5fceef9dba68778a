"""What a site says of its own spending: of this machine its ledger and its limit, of another its last word and the limit it consented to.

Knows the homes of sites, the requests with which others joined, and what their answers said. Reads only what is there: neither a limit nor
a ledger comes into being by looking.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from fractions import Fraction
from pathlib import Path

from cafe_kit import ledger as site_side
from cafe_kit.errors import CafeError
from cafe_kit.noise import MAX_STEPS
from cafe_kit.policy import Policy, load_policy

from pipeline.home import home
from server_store.ledger import Charge
from server_store.site_kits import SiteKit, SiteKits

Key = tuple[str, str]  # federation, site
_SAME = 1e-9  # relative: a site tells its exact sum as a float
_DEAREST = float(MAX_STEPS) ** 2  # the largest cost of one answer that the integer grid allows


@dataclass(frozen=True)
class Told:
    """What a site of another machine said of its ledger with its last answer: how many answers, and what those with noise cost together."""

    charges: int
    mu_squared: float

    def same(self, mu_squared: float) -> bool:
        """Whether this server counted as much."""
        return math.isclose(self.mu_squared, mu_squared, rel_tol=_SAME)

    def more(self, mu_squared: float) -> bool:
        """Whether this server counted less."""
        return self.mu_squared > mu_squared and not self.same(mu_squared)

    def epsilon(self, delta: float, mu_squared: float, counted: float) -> float:
        """At ``delta``, rounded up. For a sum equal to this server's ``mu_squared`` the figure that it ``counted``, to the last digit."""
        if self.same(mu_squared):
            return counted
        exact = site_side.epsilon(Fraction(self.mu_squared), delta)
        return float(Context(prec=4, rounding=ROUND_CEILING).create_decimal_from_float(exact))

    def bare(self, mu_squared: float, noised: int) -> int:
        """How many of its answers had no noise, which it does not tell: all, where they cost nothing; where they cost as much as the
        ``noised`` releases of this server, those beyond these. Else it does not follow, and is 0."""
        if not self.mu_squared:
            return self.charges
        return max(0, self.charges - noised) if self.same(mu_squared) else 0


@dataclass(frozen=True)
class Account:
    """One site's own word. ``charges`` in the server's form; None where no ledger of the site's own is on this machine."""

    policy: Policy | None = None
    charges: tuple[Charge, ...] | None = None
    head: str = ""
    problem: CafeError | None = None  # why its ledger or its limit cannot be read
    told: Told | None = None  # of a site of another machine


def told(kit: SiteKit) -> Told | None:
    """What the site's last answer said; None for nothing, or for what no ledger can hold."""
    charges, mu_squared = kit.seen.get("charges"), kit.seen.get("mu_squared")
    if not isinstance(charges, int) or not isinstance(mu_squared, int | float) or not 0 <= mu_squared <= charges * _DEAREST:
        return None
    return Told(charges, float(mu_squared))


def of(charged: Iterable[Key]) -> dict[Key, Account]:
    """Of every site that this server charged, and of those that have charges which this server does not know."""
    root, joined = home("sites"), _joined()
    found = {key: _account(root / key[0] / key[1]) for key in charged}
    found |= {key: joined[key] for key, account in found.items() if account == Account() and key in joined}
    found |= {key: account for key, account in joined.items() if key not in found and account.told and account.told.charges}
    for folder in sorted(root.glob("*/*/ledger")):
        key = (folder.parent.parent.name, folder.parent.name)
        if key not in found and any(folder.glob("*.json")):
            found[key] = _account(folder.parent)
    return found


def _joined() -> dict[Key, Account]:
    """Of sites of other machines: the limit, as the newest request has it, and the last word of that kit."""
    kits, found = SiteKits(home() / "store.db"), {}
    try:
        for kit in kits.kits():
            limits = (kit.request or {}).get("limits")
            if limits and (kit.federation, kit.site) not in found:
                found[kit.federation, kit.site] = Account(
                    Policy.model_validate({"max_epsilon": limits.get("max_epsilon"), "delta": limits["delta"]}), told=told(kit)
                )
    finally:
        kits.close()
    return found


def _account(folder: Path) -> Account:
    try:
        policy = load_policy(folder / "policy.toml") if (folder / "policy.toml").is_file() else None
        if not (folder / "ledger").is_dir():
            return Account(policy)
        own = site_side.SiteLedger(folder / "ledger")
        return Account(policy, tuple(_in_our_form(charge) for charge in own.charges), own.head)
    except CafeError as error:
        return Account(problem=error)


def _in_our_form(charge: site_side.Charge) -> Charge:
    """A site's charge as the server writes one, so that one accountant counts both."""
    run, stage, attempt, number, site, kind = charge.release_id.split("/")
    mu2 = charge.cost if charge.mu_squared else None
    terms = {"clip_steps": charge.clip_steps, "sigma_steps": charge.sigma_steps}
    return Charge(charge.release_id, run, int(stage), int(attempt), int(number), kind, site, mu2, terms)
