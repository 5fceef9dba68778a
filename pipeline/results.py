"""What a run leaves for its operator: ``results.json``, the adapter, the synthetic set with its card, the ledger's export.

Knows the store's rows and where files go. Computes nothing that was not measured or released before. Metric names and
``schema_version`` are an interface (``docs/reference.md``): changed only with an entry in the CHANGELOG.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cafe_kit.task import Record

from pipeline import cards, catalogue, history, reproduction, tuning
from pipeline.context import RunContext
from server_store.blobs import write_whole
from server_store.ledger import Ledger
from server_store.rows import Step

SCHEMA_VERSION = 1


def write(ctx: RunContext, attempt: int, synthetic: Sequence[Record], adapter: Step, ledger: Ledger) -> dict[str, Any]:
    """Write everything into the run's folder, ``results.json`` last; returns what it holds."""
    statement = privacy_statement(ctx, ledger)
    set_file = save_synthetic(ctx, attempt, synthetic, statement) if synthetic else None
    done = catalogue.made(ctx.store, ctx.run)
    assert done is not None
    folder = tuning.save_adapter(ctx, adapter, "final", cards.adapter(done, done.adapter(), statement))
    write_whole(ctx.folder / "lock.json", reproduction.lock(done, ctx.store))
    write_whole(ctx.folder / "ledger.jsonl", _lines(ledger.export(ctx.run)))
    scores = [step.facts for step in ctx.store.steps(ctx.run, f"stage2/{attempt}/") if step.name.endswith("/score")]
    rounds = [_score(facts) | {"round": facts["round"]} for facts in scores if facts["phase"] == "round"]
    results = {
        "schema_version": SCHEMA_VERSION,
        "run": ctx.run,
        "name": ctx.settings.name,
        "zero_shot": _score(_facts(ctx, "zero_shot")),
        "synthetic_only": next((_score(facts) for facts in reversed(scores) if facts["phase"] == "synthetic_only"), None),
        "federated": {key: value for key, value in rounds[-1].items() if key != "round"},
        "rounds": rounds,
        "privacy": statement,
        "adapter": str(folder),
        "synthetic": str(set_file) if set_file else None,
        "seconds": seconds(ctx),
        "sites": _sites(ctx),
        "base_model": {"name": ctx.settings.base_model, "sha256": ctx.base_model.sha256},
    }
    write_whole(ctx.folder / "results.json", json.dumps(results, indent=2).encode() + b"\n")
    return results


def privacy_statement(ctx: RunContext, ledger: Ledger) -> dict[str, Any]:
    """Per stage what was spent, with unit, trust, adjacency and δ, or "off"; per site; and the maximum over sites."""
    return catalogue.promise(ctx.settings, ledger, ctx.run, catalogue.taken_over(ctx.step("stage1/1/synthetic")))


def seconds(ctx: RunContext) -> dict[str, float]:
    """Wall seconds by phase, over all workers that carried the run; ``total`` is their sum."""
    spent = {phase: round(value, 1) for phase, value in history.seconds(ctx.store, ctx.run).items()}
    return {**spent, "total": round(sum(spent.values()), 1)}


def save_synthetic(ctx: RunContext, attempt: int, synthetic: Sequence[Record], statement: dict[str, Any]) -> Path:
    """Parquet, JSONL and a dataset card with its privacy statement; returns the Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = ctx.folder / "synthetic" / f"attempt-{attempt}"
    folder.mkdir(parents=True, exist_ok=True)
    task = ctx.settings.task
    text, answer = (task.text, task.label) if task.kind == "classification" else (task.instruction, task.output)
    columns = {text: [record.text for record in synthetic], answer: [record.answer for record in synthetic]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_whole(folder / "train.parquet", sink.getvalue().to_pybytes())
    write_whole(folder / "train.jsonl", _lines([{text: record.text, answer: record.answer} for record in synthetic]))
    files = [folder / "train.parquet", folder / "train.jsonl"]
    write_whole(folder / "README.md", cards.dataset(ctx.settings, ctx.run, synthetic, files, statement).encode())
    return folder / "train.parquet"


def _facts(ctx: RunContext, name: str) -> dict[str, Any]:
    step = ctx.step(name)
    return step.facts if step else {}


def _score(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in ("accuracy", "loss", "n") if key in facts}


def _sites(ctx: RunContext) -> list[dict[str, Any]]:
    """Per site what was asked and what came: states of its orders, and seconds by phase as the site told them."""
    rows = ctx.store.orders(ctx.run)
    found = []
    for site in ctx.settings.sites:
        own = [row for row in rows if row.site == site.name]
        states = {state: sum(row.state == state for row in own) for state in ("answered", "refused", "failed", "late")}
        times = {
            key: round(sum(row.numbers.get(key, 0.0) for row in own), 2) for key in ("seconds_load", "seconds_work", "seconds_release")
        }
        found.append({"name": site.name, "kind": site.kind, **states, **times})
    return found


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
