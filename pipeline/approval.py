"""The operator's word on a synthetic set: what it sets going, what a second attempt costs the sites, and the word itself.

Knows one ``Dataset`` and the ledger. The word is kept by ``launch.decide``, once; of two operators the first is heard.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cafe_kit.errors import CafeError

from pipeline import accounting, datasets, launch
from pipeline.datasets import Dataset
from server_store.desk import Desk


@dataclass(frozen=True)
class Cost:
    """What a site has spent in stage 1 of a run, and would have after one more attempt: the most over the sites, at ``delta``."""

    sites: int
    now: float
    after: float
    delta: float

    @property
    def private(self) -> bool:
        return not math.isinf(self.now)

    @property
    def told(self) -> str:
        if not self.private:
            return (
                "A new attempt takes as long again. The votes have no formal guarantee in this run, so there is no ε to add up;"
                f" the {self.sites} sites show the server votes once more."
            )
        return (
            f"A new attempt asks every one of the {self.sites} sites to spend again: ε {self.now:g} → about {self.after:.3g}"
            f" at δ = {accounting.shown(self.delta)} in all for stage 1. Spent privacy is not given back."
        )


def cost_of_reject(dataset: Dataset) -> Cost:
    """From the ledger's charges: of the site that has spent most, and with as many charges more as an attempt has votes."""
    charges, at = datasets.charges(dataset), datasets.delta(dataset)
    votes = dataset.made.settings.stage1.rounds
    now = max((accounting.epsilon_spent(own, at) for own in charges.values()), default=math.inf)
    after = max((accounting.epsilon_spent([*own, *[own[-1]] * votes], at) for own in charges.values()), default=math.inf)
    return Cost(dataset.made.weak, now, after, at)


def goes_on(dataset: Dataset) -> str:
    """What an approval sets going, and what that will cost."""
    settings, out = dataset.made.settings, len(dataset.excluded)
    rows = f"{dataset.size - out} of {dataset.size} rows go on ({out} left out)" if out else f"All {dataset.size} rows go on"
    strong, rounds = dataset.made.strong, settings.stage2.rounds
    text = f"{rows} and stage 2 starts: {rounds} {'round' if rounds == 1 else 'rounds'}, {strong} sites train on their own records,"
    text += f" the server trains for {dataset.made.weak} on this set."
    asked = settings.privacy.stage2
    if not strong:
        return text
    if asked is None:
        return f"{text} Stage 2 has no formal guarantee."
    spend = f"up to ε = {asked.epsilon:g} at δ = {accounting.shown(asked.delta)}"
    return f"{text} It asks each of the sites that train to spend {spend}; spent privacy is not given back."


def leave_out(store: Desk, run: str, attempt: int, rows: Iterable[int], out: bool = True) -> None:
    """Leave rows out of a set that nobody has decided on, or take them back. Raises CafeError CAFE-659 after the decision."""
    if word := store.step(run, f"stage1/{attempt}/approval"):
        what = "approved" if word.facts["approved"] else "rejected"
        raise CafeError("CAFE-659", f"This set was {what} already, {datasets.decided(word)}", "Its rows do not change any more.")
    for row in rows:
        store.exclude(run, attempt, row, out)


def decide(dataset: Dataset, approved: bool, reason: str, operator: str = "") -> str:
    """Approve or reject a set that waits, and let its run go on; returns what became of it, a sentence.

    Raises:
        CafeError: CAFE-612 without a reason to reject, or without a row that is kept; CAFE-659 when no such set waits.
    """
    if approved and not dataset.kept:
        raise CafeError("CAFE-612", "Every row of this set is left out.", "Take rows back, or reject the set.")
    if not approved and not reason.strip():
        raise CafeError("CAFE-612", "A rejection needs a reason.", "Write what is wrong with the set; it stays with the run.")
    word, ours = launch.decide(dataset.run, approved, " ".join(reason.split()), dataset.attempt, operator)
    what = "approved" if word.facts["approved"] else "rejected"
    if not ours:
        return f"Your word came second: this set was {what} {datasets.decided(word)}"
    try:
        launch.take_up(dataset.run)
    except CafeError as error:
        return f"The set is {what}. The run does not go on by itself: {error.message}"
    return "Approved. Stage 2 starts." if approved else f"Rejected. Attempt {dataset.attempt + 1} starts."
