"""Synthetic sets as an operator judges them: what they look like, what they are worth, what was promised,
and what was decided.

Knows the set itself and what is public or released; nothing private is ever compared here. Reads the store anew at each
call and decides nothing: that is ``approval``'s.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

from cafe_kit.errors import CafeError
from cafe_kit.task import Record
from cafe_kit.vote import candidates_from_bytes

from pipeline import accounting, catalogue, overview
from pipeline.catalogue import Made, Score
from pipeline.duplicates import Duplicates, duplicates, normalised
from pipeline.home import home
from pipeline.overview import Overview
from server_store.blobs import Blobs
from server_store.desk import Desk
from server_store.ledger import Charge, Ledger
from server_store.rows import Step

WAITING, APPROVED, REJECTED, AGAIN, OPEN = "Waiting for approval", "Approved", "Rejected", "Used again", "Not decided yet"
_BINS = 20


@dataclass(frozen=True)
class Dataset:
    """One synthetic set. ``excluded``: rows (from 0) left out; ``score``: of training on all of it, ``kept_score``: on the rest."""

    made: Made
    attempt: int
    size: int
    sha256: str  # of its texts, as the run keeps them
    time: float
    excluded: frozenset[int]
    state: str  # WAITING, APPROVED, REJECTED, AGAIN or OPEN
    told: str  # how it came to this state, a sentence
    score: Score | None
    kept_score: Score | None
    used_in: tuple[str, ...]  # runs that train on it

    @property
    def run(self) -> str:
        return self.made.run.id

    @property
    def title(self) -> str:
        return self.made.settings.name + (f", attempt {self.attempt}" if self.attempt > 1 else "")

    @property
    def rows(self) -> tuple[Record, ...]:
        """All of it, the rows that are left out among them. Raises StoreError CAFE-653 when the run's folder was damaged."""
        return _rows(Path(self.made.run.folder) / "blobs", self.sha256)

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(row for row in range(self.size) if row not in self.excluded)


@dataclass(frozen=True)
class Share:
    """How much of the set one label has."""

    label: str
    rows: int
    share: float


@dataclass(frozen=True)
class Lengths:
    """Words per text. ``bins``: (shortest, longest, rows) of each bar, without gaps."""

    shortest: int
    median: float
    longest: int
    bins: tuple[tuple[int, int, int], ...]


# --- which sets there are ----------------------------------------------------------------------------------------------


def listed(store: Desk) -> list[Dataset]:
    """All sets of all runs, the newest first."""
    runs = [found for run in store.runs() if (found := catalogue.made(store, run.id))]
    lent: dict[str, list[str]] = {}
    for made in runs:
        if made.taken:
            lent.setdefault(made.taken["source"], []).append(made.run.id)
    sets = [one for made in runs for one in _of(store, made, lent.get(made.run.id, []))]
    return sorted(sets, key=lambda one: one.time, reverse=True)


def making(store: Desk) -> list[Overview]:
    """Runs that are at work on a set, or on an attempt after a rejected one."""
    found = []
    for run in store.runs():
        seen = overview.look(store, run.id) if run.active else None
        own = seen is not None and seen.settings is not None and seen.settings.names("cpu") and not seen.settings.synthetic
        if seen is not None and own and not store.step(run.id, f"stage1/{seen.attempt}/synthetic"):
            found.append(seen)
    return found


def _of(store: Desk, made: Made, lent: Sequence[str]) -> list[Dataset]:
    run = made.run
    steps = {step.name: step for stage in ("stage1/", "stage2/") for step in store.steps(run.id, stage)}
    found = []
    for one in made.synthetic:
        kept, word = steps[f"stage1/{one.attempt}/synthetic"], steps.get(f"stage1/{one.attempt}/approval")
        state, told = _state(made, one.attempt, steps, word)
        trained = (run.id,) if f"stage2/{one.attempt}/1/score" in steps else ()
        out = word.facts.get("excluded", ()) if word else store.excluded(run.id, one.attempt)
        found.append(
            Dataset(
                made=made,
                attempt=one.attempt,
                size=one.rows,
                sha256=kept.sha256 or "",
                time=kept.time,
                excluded=frozenset(out),
                state=state,
                told=told,
                score=_score(steps.get(f"stage2/{one.attempt}/0/score")),
                kept_score=_score(steps.get(f"stage2/{one.attempt}/0 kept/score")),
                used_in=(*trained, *(lent if state in (APPROVED, AGAIN) else ())),
            )
        )
    return found


def _state(made: Made, attempt: int, steps: dict[str, Step], word: Step | None) -> tuple[str, str]:
    """The state of one attempt's set, and how it came to it."""
    if made.taken:
        return AGAIN, f"The approved set of run {made.taken['source']}; nothing was charged for it again."
    if word is not None:
        state = APPROVED if word.facts["approved"] else REJECTED
        return state, f"{state} {decided(word)}"
    if made.run.active:
        return OPEN, "Training on it alone is scored now; the decision comes after that."
    if overview.waits_for_approval(steps, attempt, made.settings):
        return WAITING, "The run has stopped and waits for your word on it."
    return OPEN, "The run stopped before the set was scored. Resume the run."


def decided(word: Step) -> str:
    """How, by whom, when and why a set was decided on."""
    reason, who = str(word.facts.get("reason", "")), str(word.facts.get("operator", ""))
    at = time.strftime("%d %b %Y %H:%M:%S", time.localtime(word.time))
    if reason == "automatic" and not who:
        return f"automatically (stage1.approve) on {at}."
    return f"by {who or 'the operator'} on {at}" + (f": {reason}" if reason else ".")


# --- what a set looks like ---------------------------------------------------------------------------------------------


def shares(labels: Sequence[str], classes: Iterable[str]) -> list[Share]:
    """Rows of every label, in the order of ``classes``; a label without a row is there, too."""
    counts = Counter(labels)
    return [Share(label, counts[label], counts[label] / len(labels) if labels else 0.0) for label in classes]


def classes(dataset: Dataset) -> tuple[str, ...]:
    """The public labels; those that occur where the label list cannot be read any more; none for instruction data."""
    if dataset.made.settings.task.kind != "classification":
        return ()
    try:
        return dataset.made.settings.public_task().classes
    except CafeError:
        return tuple(dict.fromkeys(record.answer for record in dataset.rows))


def lengths(texts: Sequence[str]) -> Lengths | None:
    """Words per text (parts between white space) in at most 20 bars of equal width; None without a text."""
    words = [len(text.split()) for text in texts]
    if not words:
        return None
    low, high = min(words), max(words)
    width = max(1, math.ceil((high - low + 1) / _BINS))
    counts = Counter((number - low) // width for number in words)
    bins = tuple((low + place * width, low + (place + 1) * width - 1, counts[place]) for place in range((high - low) // width + 1))
    return Lengths(low, float(median(words)), high, bins)


def repeats(dataset: Dataset) -> Duplicates:
    """Copies and near copies among the rows that are kept."""
    return _repeats(Path(dataset.made.run.folder) / "blobs", dataset.sha256).without(dataset.excluded)


def public(dataset: Dataset) -> tuple[int, ...] | None:
    """Kept rows whose normalised text is that of a public example; None where the examples cannot be read any more."""
    try:
        known = {normalised(record.text) for record in dataset.made.settings.examples()}
    except CafeError:
        return None
    return tuple(row for row in dataset.kept if normalised(dataset.rows[row].text) in known)


def matching(dataset: Dataset, search: str, label: str | None, rows: Iterable[int]) -> list[int]:
    """Those of ``rows`` with this label whose text or answer holds ``search``; upper and lower case are the same."""
    wanted = search.strip().casefold()
    found = ((row, dataset.rows[row]) for row in rows)
    return [
        row
        for row, record in found
        if (label is None or record.answer == label) and (wanted in record.text.casefold() or wanted in record.answer.casefold())
    ]


# --- what was promised -------------------------------------------------------------------------------------------------


def charges(dataset: Dataset) -> dict[str, list[Charge]]:
    """Site → its charges for the votes behind this set: of the run that made it, over all attempts."""
    found: dict[str, list[Charge]] = {}
    for charge in Ledger(home() / "ledger.db").charges(run=dataset.made.taken.get("charged_to", dataset.run), stage=1):
        found.setdefault(charge.site, []).append(charge)
    return found


def spent(dataset: Dataset) -> dict[str, float]:
    """Site → ε that it has spent for the votes of this run (or of the run that the set is from), over all attempts; infinite: no noise."""
    return {site: accounting.epsilon_spent(own, delta(dataset)) for site, own in charges(dataset).items()}


def delta(dataset: Dataset) -> float:
    """δ of stage 1; 1e-5 stands where the stage has none."""
    asked = dataset.made.settings.privacy.stage1
    return float(dataset.made.taken.get("delta") or (asked.delta if asked else 1e-5))


def promised(dataset: Dataset) -> str:
    """ε and δ per site in words, or that there is no formal guarantee."""
    found = spent(dataset)
    if not found or math.inf in found.values():
        return accounting.NO_GUARANTEE
    low, high = min(found.values()), max(found.values())
    return f"ε {high:g}" + ("" if low == high else f" (least: {low:g})") + f" per site, δ = {accounting.shown(delta(dataset))}"


@lru_cache(maxsize=4)
def _rows(blobs: Path, sha256: str) -> tuple[Record, ...]:
    return tuple(candidates_from_bytes(Blobs(blobs).get(sha256)))


@lru_cache(maxsize=8)
def _repeats(blobs: Path, sha256: str) -> Duplicates:
    return duplicates([record.text for record in _rows(blobs, sha256)])


def _score(step: Step | None) -> Score | None:
    if step is None:
        return None
    kind = "accuracy" if "accuracy" in step.facts else "loss"
    return Score(kind, float(step.facts[kind]), int(step.facts["n"]))
