"""What a site says of its own spending: of this machine its own ledger and its limit, of another the limit that it consented to.

Knows the homes of sites, and the requests with which others joined. Reads only what is there: neither a limit nor a ledger comes into
being by looking.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cafe_kit import ledger as site_side
from cafe_kit.errors import CafeError
from cafe_kit.policy import Policy, load_policy

from pipeline.home import home
from server_store.ledger import Charge
from server_store.site_kits import SiteKits

Key = tuple[str, str]  # federation, site


@dataclass(frozen=True)
class Account:
    """One site's own word. ``charges`` in the server's form; None where no ledger of the site's own is on this machine."""

    policy: Policy | None = None
    charges: tuple[Charge, ...] | None = None
    head: str = ""
    problem: CafeError | None = None  # why its ledger or its limit cannot be read


def of(charged: Iterable[Key]) -> dict[Key, Account]:
    """Of every site that this server charged, and of those here that have charges which this server does not know."""
    root, joined = home("sites"), _joined()
    found = {key: _account(root / key[0] / key[1]) for key in charged}
    found |= {key: joined[key] for key, account in found.items() if account == Account() and key in joined}
    for folder in sorted(root.glob("*/*/ledger")):
        key = (folder.parent.parent.name, folder.parent.name)
        if key not in found and any(folder.glob("*.json")):
            found[key] = _account(folder.parent)
    return found


def _joined() -> dict[Key, Account]:
    """The limits of sites of other machines, as their newest request has them."""
    kits, found = SiteKits(home() / "store.db"), {}
    try:
        for kit in kits.kits():
            limits = (kit.request or {}).get("limits")
            if limits and (kit.federation, kit.site) not in found:
                found[kit.federation, kit.site] = Account(
                    Policy.model_validate({"max_epsilon": limits.get("max_epsilon"), "delta": limits["delta"]})
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
