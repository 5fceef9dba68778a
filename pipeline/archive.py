"""A finished run's results, settings, figures and log, kept in the object store.

Knows which files these are: a closed list, and nothing of it is un-noised. Bodies, inboxes, the logs and outboxes of sites, and blobs
are not in it and are never sent. Does not know S3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cafe_kit.errors import CafeError

from pipeline import launch, storage
from server_store.errors import StoreError
from server_store.store import Store

if TYPE_CHECKING:
    from server_store.object_store import ObjectStore

FILES = ("results.json", "config.yaml", "lock.json", "ledger.jsonl", "log/worker.log")


@dataclass(frozen=True)
class Kept:
    """One object."""

    key: str
    size: int
    sha256: str


def keep(run_id: str, store: ObjectStore) -> list[Kept]:
    """Put them under ``kept/<run>/``, in place of what was there; ``SHA256SUMS`` comes last.

    Raises:
        CafeError: CAFE-660 when the run has no results. StoreError: CAFE-655 no such run; the store's own.
    """
    rows = launch.store()
    run = rows.run(run_id)
    folder = Path(run.folder)
    if run.state != "Done" or not (folder / "results.json").is_file():
        raise CafeError("CAFE-660", f"Run {run_id} has no results yet ({run.shown_state}).", "Keep it when it is done.")
    found = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()} | _figures(rows, run_id)
    kept = [_put(store, run_id, name, data) for name, data in sorted(found.items())]
    sums = "".join(f"{one.sha256}  {one.key.removeprefix(f'kept/{run_id}/')}\n" for one in kept)
    return [*kept, _put(store, run_id, "SHA256SUMS", sums.encode())]


def keep_if_wished(run_id: str) -> str:
    """After a run: keep it where the setting says so. What became of it, in a sentence for the run's events; "" when nothing is wished.

    A run does not fail for this.
    """
    try:
        wished = storage.configured()
        if wished is None or not wished.keep_results:
            return ""
        keep(run_id, storage.object_store())
    except (CafeError, StoreError, OSError) as error:
        why = f"{error.code}: {error.message}" if isinstance(error, CafeError | StoreError) else str(error.strerror)
        return f"Results were not kept in the object store ({why}). `cafe storage keep {run_id}` tries again."
    return "Results, figures and log are kept in the object store."


def _put(store: ObjectStore, run_id: str, name: str, data: bytes) -> Kept:
    key = f"kept/{run_id}/{name}"
    store.put(key, data)
    return Kept(key, len(data), hashlib.sha256(data).hexdigest())


def _figures(rows: Store, run_id: str) -> dict[str, bytes]:
    events = ({"time": one.time, "level": one.level, "site": one.site, "text": one.text} for one in rows.public_events(run_id))
    return {"metrics.jsonl": _lines(asdict(one) for one in rows.metrics(run_id)), "events.jsonl": _lines(events)}


def _lines(found: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in found)
