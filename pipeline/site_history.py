"""What one site of a federation did, sent and spent, over all its runs.

Knows the orders that the store keeps, the ledger's charges and what the site's own folder says of itself: its outbox and
its limit. Opens no data file; counts and sizes are all that is read of what was sent.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import accounting
from pipeline.federations import Federation
from pipeline.home import home
from server_store.ledger import Charge, Ledger
from server_store.rows import OrderRow, Run
from server_store.store import Store

_DELTA = 1e-5  # where a federation has no privacy terms of its own
_PARTS = ("seconds_load", "seconds_work", "seconds_release")


@dataclass(frozen=True)
class History:
    """One site. ``orders`` with their runs, the newest first. ``limit``: (epsilon, delta) as the site's own policy has it.

    ``sizes``: order hash → bytes of the answer: as the site's own outbox has it, also for runs that were deleted here; where the
    outbox is on another machine (``outbox`` is False), as it arrived.
    """

    site: str
    orders: tuple[tuple[str, OrderRow], ...]
    charges: tuple[Charge, ...]
    delta: float
    limit: tuple[float, float] | None
    sizes: dict[str, int]
    outbox: bool = True

    @property
    def states(self) -> Counter[str]:
        """answered | refused | failed | late | sent → how many orders."""
        return Counter(order.state for _, order in self.orders)

    @property
    def last(self) -> OrderRow | None:
        return self.orders[0][1] if self.orders else None

    @property
    def last_error(self) -> OrderRow | None:
        return next((order for _, order in self.orders if order.code), None)

    @property
    def seconds(self) -> float:
        """Of loading, work and release at the site, over all orders."""
        return sum(float(order.numbers.get(part, 0.0)) for _, order in self.orders for part in _PARTS)

    @property
    def spent(self) -> str:
        """In words: ε of all charges together at the delta in force, or that there is no guarantee."""
        if not self.charges:
            return "nothing"
        if any(charge.mu2 is None for charge in self.charges):
            return accounting.NO_GUARANTEE
        return f"ε {accounting.epsilon_spent(self.charges, self.delta):g} at δ {accounting.shown(self.delta)}"


def of(store: Store, federation: Federation, joined: Collection[str] = ()) -> dict[str, History]:
    """The history of every site of this federation, by its name; ``joined``: of those of other machines, also where they have left."""
    runs = [run for run in store.runs() if run.name == federation.name]
    orders = [(run.id, order) for run in runs for order in reversed(store.orders(run.id))]
    charges = _charges(federation.name, runs)
    delta = delta_in_force(federation.data)
    found = {}
    names = [str(one.get("name", "")) for one in federation.data.get("sites") or []]
    for name in dict.fromkeys([*names, *joined]):
        folder = home("sites") / federation.name / name
        own = tuple((run, order) for run, order in orders if order.site == name)
        paid = tuple(charge for charge in charges if charge.site == name)
        far = name in joined
        sizes = {order.order_hash: int(order.numbers["bytes"]) for _, order in own if "bytes" in order.numbers}
        sizes = sizes if far else _sizes(folder / "outbox")
        found[name] = History(name, own, paid, delta, None if far else _limit(folder / "policy.toml"), sizes, not far)
    return found


def delta_in_force(data: Mapping[str, Any]) -> float:
    """The largest delta that the federation's settings name."""
    terms = data.get("privacy")
    terms = terms if isinstance(terms, Mapping) else {}
    named = [terms.get("delta"), *(part.get("delta") for part in terms.values() if isinstance(part, Mapping))]
    return max((float(one) for one in named if isinstance(one, int | float) and one > 0), default=_DELTA)


def _charges(name: str, runs: list[Run]) -> list[Charge]:
    """What the ledger holds of this federation, also of runs that were deleted: they are known by their id's shape."""
    ids = {run.id for run in runs}
    shape = re.compile(rf"{re.escape(name)}-\d{{8}}-\d{{6}}-[0-9a-f]{{4}}")
    return [charge for charge in Ledger(home() / "ledger.db").charges() if charge.run in ids or shape.fullmatch(charge.run)]


def _limit(policy: Path) -> tuple[float, float] | None:
    """The site's own limit, if its policy sets one. A policy that cannot be read is the site's to mend; it refuses by itself."""
    try:
        found = tomllib.loads(policy.read_text(encoding="utf-8"))
        return (float(found["max_epsilon"]), float(found.get("delta", _DELTA))) if "max_epsilon" in found else None
    except (OSError, ValueError, TypeError):
        return None


def _sizes(outbox: Path) -> dict[str, int]:
    """Order hash → bytes that answered it."""
    found = {}
    for path in outbox.glob("*/reply.json"):
        try:
            outputs = json.loads(path.read_bytes())["reply"]["outputs"]
            found[path.parent.name] = sum(int(blob["size"]) for blob in outputs.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found
