"""Several orders at once: what trains the same adapter the same way is trained in one call of the engine.

Knows which orders go together and what the engine wants. Does not know whether an order may be answered or what leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cafe_kit.engine import Engine
from cafe_kit.errors import CafeError
from cafe_kit.work import Work

Progress = Callable[[str, str, int, int], None]  # site, phase, done, of


def groups(works: Mapping[int, Work]) -> list[list[int]]:
    """Indices of orders that are computed together: equal training of different sites."""
    found: dict[str, list[int]] = {}
    for index, work in works.items():
        order = work.order
        shared = repr((order.params, order.task, order.round, sorted(order.inputs.items())))
        taken = [works[other].order.site for other in found.get(shared, [])]
        found.setdefault(shared if order.kind == "train" and order.site not in taken else f"{index}", []).append(index)
    return list(found.values())


def compute(works: Sequence[Work], engine: Engine, progress: Progress) -> dict[str, Mapping[str, np.ndarray]]:
    """Site to arrays: trained deltas, or the votes as ``counts``.

    Raises:
        CafeError: CAFE-108 when the time is over; what the engine raises.
    """
    order, given = works[0].order, works[0].given
    stop = min(work.began + work.transport.deadline_s for work in works)

    def step(site: str, done: int, of: int) -> None:
        if time.monotonic() > stop:
            raise CafeError("CAFE-108", "The time for this order is over.", "Give the round a longer deadline or fewer steps.")
        progress(site, order.kind, done, of)

    if order.kind == "vote":
        step(order.site, 0, 1)
        counts = engine.vote(order.params, order.task, works[0].records, given["candidates"], given["embedder"])  # type: ignore[arg-type]
        step(order.site, 1, 1)
        return {order.site: {"counts": counts}}
    shards = {work.order.site: work.records for work in works}
    deltas = engine.train(order.params, order.task, given["base_model"], given["adapter"], shards, order.round, step)  # type: ignore[arg-type]
    return {site: deltas[site] for site in shards}
