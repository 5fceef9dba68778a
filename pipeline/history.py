"""What is known of runs that were: a line for each, what was asked of every site, logs, files with their hashes, differences.

Knows the store's rows and the files of a run's folder. Reads a run's settings from its own file, never from a form.
Writes nothing and draws nothing.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import catalogue, ledger_book, overview
from pipeline.home import home
from pipeline.overview import Score
from server_store.errors import StoreError
from server_store.ledger import Charge, Ledger
from server_store.rows import Run
from server_store.store import Store

_PHASES = ("seconds_load", "seconds_work", "seconds_release")


@dataclass(frozen=True)
class Line:
    """One run in a list. ``spent``: the highest epsilon of a site, or that there is no formal guarantee."""

    run: Run
    state: str
    sentence: str
    took: float | None
    spent: str
    metric: str
    score: Score | None


@dataclass(frozen=True)
class SiteOrders:
    """What was asked of one site (or of the server in its place), what became of it, and the seconds that the site told."""

    site: str
    by_server: bool
    asked: int
    answered: int
    refused: int
    failed: int
    late: int
    load: float
    work: float
    release: float
    last_error: str


@dataclass(frozen=True)
class File:
    """One file that a run left."""

    name: str
    what: str
    size: int
    sha256: str


def lines(store: Store) -> list[Line]:
    """All runs, the newest first."""
    spent = _charges()
    return [_line(store, run, spent) for run in store.runs()]


def site_orders(store: Store, run_id: str) -> list[SiteOrders]:
    """Per site, in the order in which they were asked first."""
    rows: dict[str, list[Any]] = defaultdict(list)
    for row in store.orders(run_id):
        rows[row.site].append(row)
    found = []
    for site, own in rows.items():
        states = {state: sum(row.state == state for row in own) for state in ("answered", "refused", "failed", "late")}
        times = {phase.removeprefix("seconds_"): sum(row.numbers.get(phase, 0.0) for row in own) for phase in _PHASES}
        wrong = next((row for row in reversed(own) if row.code), None)
        error = f"{wrong.code} {wrong.sentence} (stage {wrong.stage}, round {wrong.round})" if wrong else ""
        name, by_server = overview.behind(site)
        found.append(SiteOrders(name, by_server, len(own), **states, **times, last_error=error))
    return found


def seconds(store: Store, run_id: str) -> dict[str, float]:
    """Wall seconds by phase, over all workers that carried the run."""
    spent: dict[str, float] = defaultdict(float)
    for metric in store.metrics(run_id):
        if metric.name == "seconds":
            spent[metric.phase] += metric.value
    return dict(spent)


def config(run: Run) -> str:
    """The settings as the run has them, text of its own file. Raises CafeError CAFE-603 where it is gone."""
    try:
        return (Path(run.folder) / "config.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CafeError(
            "CAFE-603", f"The settings file of run {run.id} cannot be read ({type(error).__name__}).", "Its folder was moved or removed."
        ) from None


def differences(one: Run, other: Run) -> list[tuple[str, str, str]]:
    """The settings in which two runs differ: name, of the one, of the other."""
    left, right = _flat(_parsed(one)), _flat(_parsed(other))
    return [(key, a, b) for key in [*left, *(k for k in right if k not in left)] if (a := left.get(key, "")) != (b := right.get(key, ""))]


def logs(run: Run) -> dict[str, Path]:
    """Name -> file: the worker's log first, then the kit processes'. Library chatter only, no records."""
    found = {path.stem: path for path in sorted((Path(run.folder) / "log").glob("*.log"))}
    return {"worker": found.pop("worker", Path(run.folder) / "log" / "worker.log"), **found}


def files(store: Store, run: Run) -> list[File]:
    """What the run left in its folder, with hashes."""
    made = catalogue.made(store, run.id)
    known = {one.folder / catalogue.WEIGHTS: (f"adapter, {one.title}", one.sha256) for one in made.adapters} if made else {}
    sets = {one.parquet: (f"synthetic set, attempt {one.attempt}", "") for one in made.synthetic} if made else {}
    told = {
        "results.json": "scores, privacy, lineage",
        "config.yaml": "settings as run",
        "ledger.jsonl": "its charges, exported",
        "lock.json": "versions",
    }
    plain = {Path(run.folder) / name: (what, "") for name, what in told.items()}
    return [_file(run, path, what, sha256) for path, (what, sha256) in {**plain, **sets, **known}.items() if path.is_file()]


def scores(one: Sequence[Score], other: Sequence[Score]) -> list[tuple[str, Score | None, Score | None]]:
    """The scores of two runs side by side: where on the curve, of the one, of the other."""
    by_place = [{score.round: score for score in own} for own in (one, other)]
    places = sorted({place for own in by_place for place in own}, key=lambda place: -1 if place is None else place)
    names = {None: "base model", 0: "synthetic only"}
    return [(names.get(place, f"round {place}"), by_place[0].get(place), by_place[1].get(place)) for place in places]


def _line(store: Store, run: Run, spent: dict[str, list[Charge]]) -> Line:
    seen = overview.look(store, run.id)
    taken = catalogue.taken_over(store.step(run.id, "stage1/1/synthetic")).get("charged_to")
    charges = [one for one in spent.get(taken or "", []) if one.stage == 1] + spent.get(run.id, [])
    failed = f"{run.error.get('code', '')} {run.error.get('message', '')}".strip() if seen.state == "Failed" and run.error else ""
    return Line(
        run=run,
        state=seen.state,
        sentence=failed or seen.sentence,
        took=None if run.started is None else (time.time() if run.active else run.finished or run.started) - run.started,
        spent=ledger_book.highest(charges, ledger_book.deltas_of(store, run.id)),
        metric=seen.metric,
        score=seen.last,
    )


def _charges() -> dict[str, list[Charge]]:
    """Run -> its charges. A ledger that cannot be read is told on its own page; runs are listed all the same."""
    found: dict[str, list[Charge]] = defaultdict(list)
    path = home() / "ledger.db"
    try:
        for charge in Ledger(path).charges() if path.exists() else []:
            found[charge.run].append(charge)
    except StoreError:
        return {}
    return found


def _file(run: Run, path: Path, what: str, sha256: str) -> File:
    name = path.relative_to(run.folder).as_posix() if path.is_relative_to(run.folder) else path.name
    return File(name, what, path.stat().st_size, sha256 or catalogue.file_sha256(path))


def _parsed(run: Run) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(config(run))
    except YAMLError:
        raise CafeError("CAFE-604", f"The settings file of run {run.id} is not YAML.", "It was changed since the run began.") from None


def _flat(value: Any, at: str = "") -> dict[str, str]:
    """Dotted name -> value as text; a list of plain values is one value, sites go by their names."""
    if isinstance(value, dict):
        return {key: text for name, part in value.items() for key, text in _flat(part, f"{at}.{name}" if at else str(name)).items()}
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return {key: text for part in value for key, text in _flat(part, f"{at}[{_called(part)}]").items()}
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return {at: re.sub(r"\s+", " ", shown)}


def _called(part: Any) -> str:
    return str(part.get("name", "")) if isinstance(part, dict) else str(part)
