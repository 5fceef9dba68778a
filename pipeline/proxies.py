"""Who trains on behalf of the weak sites: one proxy for each, on its own shard of the synthetic set.

On this machine a proxy is a seat like any other, in few resident processes. Where a joined site stands in (``machine.proxies``, such as
the operator's own cluster), its orders carry the shard as an input, which is public. Knows shards. Does not know training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cafe_kit.inputs import hash_file
from cafe_kit.orders import Blob
from cafe_kit.task import Record
from cafe_kit.vote import candidates_to_bytes

from pipeline.context import RunContext
from pipeline.settings import PROXY
from pipeline.sites import Host
from server_store.blobs import write_whole

Own = Mapping[str, Mapping[str, tuple[Blob, Path]]]  # site → input name → what only its orders carry


@dataclass(frozen=True)
class Proxies:
    """``names``: one for each weak site, none without a synthetic set. ``own``: their records, where another machine trains."""

    names: tuple[str, ...] = ()
    own: Own = field(default_factory=dict)


def seat(ctx: RunContext, attempt: int, synthetic: Sequence[Record], hosts: int, everything: str) -> Proxies:
    """Deal the set and seat the proxies, here in ``hosts`` resident processes. A seat called ``everything`` holds the whole set."""
    weak = ctx.settings.names("cpu")
    if not synthetic or not weak:
        return Proxies()
    names = tuple(f"{PROXY}{site}" for site in weak)
    shards = dict(zip(names, deal(synthetic, len(names), ctx), strict=True)) | {everything: list(synthetic)}
    files = {name: _written(ctx, attempt, name, records) for name, records in shards.items()}
    if ctx.settings.machine.proxies:
        return Proxies(names, {name: {"records": (Blob(hash_file(file), file.stat().st_size), file)} for name, file in files.items()})
    seats = [_seat(ctx, attempt, name, file) for name, file in files.items()]
    for number in range(min(hosts, len(names))):
        ctx.sites.add(Host(f"proxies-{attempt}-{number + 1}", tuple(seats[number :: min(hosts, len(names))])))
    return Proxies(names)


def deal(synthetic: Sequence[Record], hands: int, ctx: RunContext) -> list[list[Record]]:
    """Equal shards with equal shares of every class: the server knows nothing about how the sites differ."""
    rng = random.Random(f"{ctx.settings.seed}/shards")
    shards: list[list[Record]] = [[] for _ in range(hands)]
    at = 0
    for label in ctx.plan.task.classes:
        own = [record for record in synthetic if ctx.plan.task.class_of(record) == label]
        rng.shuffle(own)
        for record in own:
            shards[at % hands].append(record)
            at += 1
    return shards


def _written(ctx: RunContext, attempt: int, name: str, records: Sequence[Record]) -> Path:
    folder = ctx.folder / "proxies"
    folder.mkdir(exist_ok=True, mode=0o700)
    file = folder / f"{attempt}.{name}.jsonl"
    write_whole(file, candidates_to_bytes(records))
    return file


def _seat(ctx: RunContext, attempt: int, name: str, file: Path) -> dict[str, Any]:
    # ``candidates_to_bytes`` names the columns
    columns = {"text": "text", "label": "answer"} if ctx.plan.task.labels else {"instruction": "text", "output": "answer"}
    return {
        "site": name,
        "kind": "gpu",
        "home": str(ctx.folder / "proxies" / f"{attempt}.{name}"),
        "data": {"path": str(file), "format": "jsonl", "columns": columns},
        "server": {"verify_key": ctx.keys.verify_hex, "seal_key": ctx.keys.seal_hex},
    }
