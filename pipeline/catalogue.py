"""What runs have made: their adapters, round by round, and their synthetic sets, with scores, sizes, hashes and lineage.

Knows the durable steps of a run and where its files lie; reads them anew at each call. Writes nothing, and does not know
how anything is described (``cards``), packed (``bundles``) or drawn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError

from pipeline import accounting
from pipeline.home import home
from pipeline.models import DEFAULT_BASE
from pipeline.settings import RunSettings
from server_store.ledger import Ledger
from server_store.rows import Run, Step
from server_store.store import Store

WEIGHTS = "adapter_model.safetensors"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Score:
    """One figure of the public test set. ``kind``: accuracy (0 to 1) or loss."""

    kind: str
    value: float
    n: int

    @property
    def shown(self) -> str:
        return f"{100 * self.value:.1f} %" if self.kind == "accuracy" else f"{self.value:.3f}"


@dataclass(frozen=True)
class Base:
    """The base model, in names that mean something elsewhere. ``name``: as the adapter's config has it; never a path."""

    name: str
    sha256: str
    hub_id: str | None = None
    licence: str | None = None
    remark: str = ""


@dataclass(frozen=True)
class Adapter:
    """One adapter of a run, in PEFT's folder ``folder``. Round 0 is the warm start: trained on the synthetic set alone."""

    round: int
    sha256: str  # of the weights' file, as the run kept it
    size: int
    folder: Path
    made: float
    score: Score

    @property
    def title(self) -> str:
        return f"round {self.round}" if self.round else "synthetic only"


@dataclass(frozen=True)
class Synthetic:
    """The synthetic set of one attempt."""

    attempt: int
    rows: int
    folder: Path

    @property
    def parquet(self) -> Path:
        return self.folder / "train.parquet"

    @property
    def sha256(self) -> str:
        """Of the Parquet file; empty when the file is gone."""
        return file_sha256(self.parquet) if self.parquet.is_file() else ""


@dataclass(frozen=True)
class Made:
    """Everything that one run has made so far. ``settings`` are those with which it ran."""

    run: Run
    settings: RunSettings
    base: Base
    zero_shot: Score | None
    synthetic: tuple[Synthetic, ...]  # one per attempt
    adapters: tuple[Adapter, ...]  # by round
    taken: dict[str, Any]  # of whom the synthetic set was taken over (``source``, ``charged_to``, ``delta``); empty if it was made here

    @property
    def weak(self) -> int:
        return len(self.settings.names("cpu"))

    @property
    def strong(self) -> int:
        return len(self.settings.names("gpu"))

    @property
    def newest(self) -> Adapter | None:
        """The adapter of the last finished federated round; None before the first."""
        return self.adapters[-1] if self.adapters and self.adapters[-1].round else None

    @property
    def final(self) -> bool:
        """Whether the newest adapter is what the run set out to make."""
        return self.newest is not None and self.newest.round == self.settings.stage2.rounds

    def adapter(self, round: int | None = None) -> Adapter:
        """The adapter of this round; left out, of the last finished one. Raises CafeError CAFE-660."""
        found = self.newest if round is None else next((one for one in self.adapters if one.round == round), None)
        if found is None:
            what = "no adapter yet" if round is None else f"no adapter of round {round}"
            raise CafeError("CAFE-660", f"Run {self.run.id} has {what}.", "An adapter is there after each finished round.")
        return found

    def dataset(self, attempt: int | None = None) -> Synthetic:
        """The synthetic set of this attempt; left out, of the last one. Raises CafeError CAFE-660."""
        found = [one for one in self.synthetic if attempt in (None, one.attempt)]
        if not found:
            what = "no synthetic set yet" if attempt is None else f"no synthetic set of attempt {attempt}"
            raise CafeError("CAFE-660", f"Run {self.run.id} has {what}.", "Stage 1 makes it, when there are sites without a GPU.")
        return found[-1]


def made(store: Store, run_id: str) -> Made | None:
    """What this run has made; None while it has not begun. Raises StoreError CAFE-655 for an unknown id."""
    run = store.run(run_id)
    begun = store.step(run_id, "frozen")
    if begun is None:
        return None
    settings = RunSettings.model_validate_json(begun.facts["settings"])
    zero = store.step(run_id, "zero_shot")
    return Made(
        run=run,
        settings=settings,
        base=_base(settings.base_model, begun.facts["base_model"]),
        zero_shot=_score(zero.facts) if zero else None,
        synthetic=_synthetic(run, store.steps(run_id, "stage1/")),
        adapters=_adapters(run, {step.name: step for step in store.steps(run_id, "stage2/")}),
        taken=taken_over(store.step(run_id, "stage1/1/synthetic")),
    )


def of(store: Store, run_id: str) -> Made:
    """The same for those who need it. Raises CafeError CAFE-660 while the run has not begun."""
    found = made(store, run_id)
    if found is None:
        raise CafeError("CAFE-660", f"Run {run_id} has no results yet ({store.run(run_id).shown_state}).", "Come back when it has.")
    return found


def with_adapters(store: Store) -> list[Made]:
    """Every run that has an adapter, the newest run first."""
    found = [made(store, run.id) for run in store.runs()]
    return [one for one in found if one is not None and one.newest]


def taken_over(synthetic: Step | None) -> dict[str, Any]:
    """Whose synthetic set a run uses again, and under which terms that was made; empty where the run made its own."""
    return {key: synthetic.facts[key] for key in ("source", "charged_to", "delta")} if synthetic and "source" in synthetic.facts else {}


def promise(settings: RunSettings, ledger: Ledger, run_id: str, taken: Mapping[str, Any]) -> dict[str, Any]:
    """Per stage what was spent, with unit, trust, adjacency and δ, or "off"; per site; and the maximum over sites.

    taken: as ``taken_over`` says; what the other run was charged for the set belongs to this promise.
    """
    asked = {1: settings.privacy.stage1, 2: settings.privacy.stage2}
    deltas = {stage: part.delta for stage, part in asked.items() if part} | ({1: taken["delta"]} if taken.get("delta") else {})
    found = accounting.run_statement(ledger, run_id, deltas, taken.get("charged_to"))
    stages = {f"stage{stage}": found["stages"].get(str(stage), {}) for stage in asked}
    shown = {stage: part if "epsilon" in part else "off" for stage, part in stages.items()}
    return {**shown, **{key: found[key] for key in ("maximum", "sites", "sites_without_guarantee")}}


def promised(made: Made) -> dict[str, Any]:
    """The promise of a run from this home's ledger, with the charges as they are now."""
    return promise(made.settings, Ledger(home() / "ledger.db"), made.run.id, made.taken)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file that may be large."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """SHA-256 of a text as it is written to a file."""
    return hashlib.sha256(text.encode()).hexdigest()


def _adapters(run: Run, steps: dict[str, Step]) -> tuple[Adapter, ...]:
    """Those that are scored: from then on their folder does not change any more."""
    found: dict[int, Adapter] = {}  # a later attempt, or a warm start without the rows that were left out, takes the place
    for name, score in steps.items():
        _, attempt, place, what = name.split("/") if name.count("/") == 3 else ("", "", "", "")
        kept = steps.get(f"stage2/{attempt}/{place.replace('0', 'warm', 1) if place.startswith('0') else place}/adapter")
        if what != "score" or kept is None or kept.sha256 is None:
            continue
        number = int(score.facts["round"])
        folder = Path(run.folder) / "adapters" / f"attempt-{attempt}" / f"round-{number}"
        if (weights := folder / WEIGHTS).is_file():
            found[number] = Adapter(number, kept.sha256, weights.stat().st_size, folder, kept.time, _score(score.facts))
    return tuple(found[number] for number in sorted(found))


def _synthetic(run: Run, steps: list[Step]) -> tuple[Synthetic, ...]:
    done = {int(step.name.split("/")[1]): step.facts["rows"] for step in steps if step.name.endswith("/synthetic")}
    folder = Path(run.folder) / "synthetic"
    return tuple(Synthetic(attempt, rows, folder / f"attempt-{attempt}") for attempt, rows in sorted(done.items()))


def _score(facts: dict[str, Any]) -> Score:
    kind = "accuracy" if "accuracy" in facts else "loss"
    return Score(kind, float(facts[kind]), int(facts["n"]))


def _base(name: str, sha256: str) -> Base:
    if name == DEFAULT_BASE:
        remark = "the 4-bit GGUF file of this model, converted to safetensors; with the hub's own weights scores differ a little"
        return Base(name, sha256, "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", remark)
    if Path(name).is_absolute():
        return Base(Path(name).name, sha256, None, _licence(Path(name) / "README.md"), "a folder of the operator's machine")
    hub_id, _, revision = name.partition("@")
    return Base(hub_id, sha256, hub_id, None, f"revision {revision}" if revision else "")


def _licence(card: Path) -> str | None:
    """What the card beside a local base model says, if it says it in the usual form."""
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    try:
        found = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (OSError, ValueError, YAMLError):
        return None
    return found if isinstance(found, str) and _LICENCE.fullmatch(found) else None
