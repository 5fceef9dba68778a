"""A run as a person sees it in a terminal: what happened, what happens now, how long it may take.

Knows the store's rows and how to draw them. Changes nothing, except that an interrupt asks the run to stop.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline import accounting
from server_store.rows import Event, Run
from server_store.store import Store

_STYLE = {"info": "", "warning": "yellow", "error": "bold red"}


def follow(store: Store, run_id: str, console: Console, *, stops: bool = True) -> Run:
    """Print events as they come and a bar for the current phase, until the run has ended.

    ``stops``: Ctrl-C stops the run, for whoever has started it here; else it ends the looking on alone.
    """
    seen, asked = 0, False
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("starting", total=None)
        phase = ""
        while True:
            try:
                run = store.run(run_id)
                for event in store.events(run_id, seen):
                    seen = event.id
                    bars.console.print(_line(event), style=_STYLE[event.level], highlight=False, markup=False, soft_wrap=True)
                now = store.progress(run_id)
                if now and now.phase != phase:
                    phase = now.phase
                    bars.reset(bar, description=phase, total=now.of or None)
                if now:
                    bars.update(bar, completed=now.done, total=now.of or None)
                if not run.active or (run.shown_state == "Lost contact" and _silent(run)):
                    return run
                time.sleep(0.3)
            except KeyboardInterrupt:
                if asked or not stops:
                    return store.run(run_id)
                asked = True
                store.command(run_id, "stop now")
                bars.console.print("Stopping; `cafe resume` goes on later. Press Ctrl-C again to leave it to itself.")


def results_table(results: Mapping[str, Any]) -> Table:
    """The scores, as one looks at them at the end."""
    table = Table(title=f"{results['name']}: scores on the public test set")
    kind = "accuracy" if "accuracy" in results["zero_shot"] else "loss"
    table.add_column("adapter")
    table.add_column(kind, justify="right")
    table.add_column("n", justify="right")
    rows = [("base model, zero-shot", results["zero_shot"]), ("synthetic only", results["synthetic_only"])]
    rows += [(f"federated, round {score['round']}", score) for score in results["rounds"]]
    for name, score in rows:
        if score:
            value = score[kind]
            table.add_row(name, f"{value:.1%}" if kind == "accuracy" else f"{value:.3f}", str(score["n"]))
    return table


def closing(results: Mapping[str, Any], console: Console) -> None:
    """The table, the guarantee, the time, the folders."""
    console.print(results_table(results))
    for stage, title in (("stage1", "stage 1, synthetic text"), ("stage2", "stage 2, training")):
        part = results["privacy"].get(stage, "off")
        if isinstance(part, dict):
            spent = f"ε = {accounting.shown(part['epsilon'])} at δ = {accounting.shown(part['delta'])}"
            console.print(f"{title}: {spent} per {part['unit']}, trust: {part['trust']}", highlight=False)
        else:
            console.print(f"{title}: no formal guarantee", highlight=False)
    split = ", ".join(f"{phase} {value:.0f} s" for phase, value in results["seconds"].items() if phase != "total")
    console.print(f"time: {results['seconds']['total']:.0f} s ({split})", highlight=False, soft_wrap=True)
    console.print(f"adapter: {results['adapter']}", highlight=False, soft_wrap=True)
    if results["synthetic"]:
        console.print(f"synthetic set: {results['synthetic']}", highlight=False, soft_wrap=True)


def runs_table(runs: list[Run]) -> Table:
    """All runs, the newest first; with their folders where one lies elsewhere than all do (``cafe run --out``)."""
    named = any(Path(run.folder).name != run.id for run in runs)
    table = Table(box=None)
    for name in ("run", "state", "started", "took", *(("folder",) if named else ())):
        table.add_column(name, overflow="fold", no_wrap=name != "folder")
    for run in runs:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)) if run.started else "-"
        took = f"{(run.finished or time.time()) - run.started:.0f} s" if run.started else "-"
        table.add_row(run.id, run.shown_state, begun, took, *((run.folder,) if named else ()))
    return table


def as_json(run: Run) -> dict[str, Any]:
    """A run for machines."""
    return {
        "run": run.id,
        "name": run.name,
        "state": run.shown_state,
        "folder": run.folder,
        "created": run.created,
        "started": run.started,
        "finished": run.finished,
        "error": run.error,
    }


def _line(event: Event) -> str:
    where = f" [{event.site}]" if event.site else ""
    return f"{time.strftime('%H:%M:%S', time.localtime(event.time))}{where} {event.text}"


def _silent(run: Run) -> bool:
    return run.pid is not None
