"""Charges for tests: a release in the server's ledger, an answer in a site's own, both under terms of a chosen epsilon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cafe_kit.ledger import SiteLedger
from cafe_kit.orders import Order, PrivacyTerms, order_hash
from cafe_kit.release import clip_steps, sigma_steps

from pipeline.accounting import calibrate, cost
from server_store.ledger import Ledger
from tests.fakes import TASK, VOTE

NO_NOISE = PrivacyTerms("none")
DELTA = 1e-5
RUN = "demo-20260102-030405-abcd"


def terms(epsilon: float | None, releases: int = 2) -> PrivacyTerms:
    return NO_NOISE if epsilon is None else calibrate(epsilon, DELTA, releases, 1.0, "server")


def server(home: Path, epsilon: float | None, rounds: tuple[int, ...] = (1, 2), *, run: str = RUN, stage: int = 1, seal: bool = True,
           sites: tuple[str, ...] = ("north", "south"), answered: tuple[str, ...] | None = None) -> Ledger:  # fmt: skip
    """Charge these rounds, each as one of two releases that cost ``epsilon`` together; None: without noise."""
    ledger, chosen, noised = Ledger(home / "ledger.db"), terms(epsilon), epsilon is not None
    statistic = "votes" if stage == 1 else "delta"
    described: dict[str, Any] = {
        "mechanism": chosen.mechanism, "trust": "server", "unit": "client", "grid": chosen.grid, "length": 80, "cap": None,
        "clip_steps": clip_steps(chosen) if noised else None, "sigma_steps": sigma_steps(chosen) if noised else None,
        "roster": sorted(sites),
    }  # fmt: skip
    for number in rounds:
        rid = f"{run}/{stage}/1/{number}/{statistic}"
        charges = dict.fromkeys(sites, cost(chosen) if noised else None)
        inputs = dict.fromkeys(sites if answered is None else answered, "0" * 64)
        ledger.reserve(rid, run, stage, 1, number, statistic, terms=described, inputs=inputs, charges=charges)
        if seal:
            ledger.seal(rid, "a" * 64, 9)
    return ledger


def site(home: Path, name: str, epsilon: float | None, rounds: tuple[int, ...] = (1, 2), *, run: str = RUN, limit: str = "") -> SiteLedger:
    """The same rounds in the ledger of site ``name`` of the federation "demo"; ``limit``: the text of its policy.toml."""
    folder = home / "sites" / "demo" / name
    folder.mkdir(parents=True, exist_ok=True)
    if limit:
        (folder / "policy.toml").write_text(limit)
    ledger = SiteLedger(folder / "ledger")
    for number in rounds:
        asked = Order(run=run, stage=1, attempt=1, round=number, site=name, task=TASK, privacy=terms(epsilon), inputs={}, params=VOTE)
        ledger.charge(asked, order_hash(asked), lambda order, spent: None)
    return ledger
