"""Zips that are handed over: an adapter, a synthetic set, a run's export for reproduction.

Knows what goes in, and writes it piece by piece to disk, never whole into memory. The bytes depend on the content alone
(sorted names, fixed times). A finished zip waits in the run's ``downloads`` folder and is made anew when a source
changed. Does not know who downloads.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from cafe_kit.errors import CafeError

from pipeline import cards, catalogue, reproduction
from pipeline.catalogue import WEIGHTS, Adapter, Made
from server_store.errors import StoreError
from server_store.store import Store

Entries = dict[str, Path | bytes]  # name in the zip -> where it lies, or what it is

_DONE = ("results.json", "config.yaml", "ledger.jsonl", "synthetic", "adapters/final")
_PACKED = {".safetensors", ".parquet", ".zip"}  # dense already: stored as they are
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20


def adapter(store: Store, run_id: str, round: int | None = None) -> Path:
    """The zip of one adapter, in a folder of its own: weights, config and a full card. Left out: of the last finished round.

    Raises:
        CafeError: CAFE-660 there is none; CAFE-687 it may not leave as it is. StoreError: CAFE-652 disk, CAFE-655 no such run.
    """
    made = catalogue.of(store, run_id)
    which = made.adapter(round)
    card = card_of(made, which)
    problems = refusals(made, which, card)
    if problems:
        raise CafeError("CAFE-687", f"The adapter of run {run_id} is not handed over. {' '.join(problems)}", "Mend it, or run again.")
    top = adapter_name(made, which)
    entries: Entries = {f"{top}/{name}": which.folder / name for name in ("adapter_config.json", WEIGHTS)}
    return _kept(made, f"{top}.zip", entries | {f"{top}/README.md": card.encode()})


def dataset(store: Store, run_id: str, attempt: int | None = None) -> Path:
    """The zip of a synthetic set: Parquet, JSONL, card. Left out: of the last attempt. Raises as ``adapter``."""
    made = catalogue.of(store, run_id)
    which = made.dataset(attempt)
    top = f"{run_id}-synthetic-{which.attempt}"
    return _kept(made, f"{top}.zip", {f"{top}/{name}": path for name, path in _below(which.folder).items()})


def export(store: Store, run_id: str, to: Path | None = None) -> Path:
    """The zip of everything that a run leaves, for reproduction; kept with the run, or written to ``to``. Raises as ``adapter``."""
    run = store.run(run_id)
    folder = Path(run.folder)
    if not (folder / "results.json").exists():
        raise CafeError("CAFE-660", f"Run {run_id} has no results yet ({run.shown_state}).", "Export it when it is done.")
    made = catalogue.of(store, run_id)
    entries: Entries = {}
    for name in _DONE:
        path = folder / name
        entries |= {f"{name}/{below}": file for below, file in _below(path).items()} if path.is_dir() else {name: path}
    entries = {name: path for name, path in entries.items() if isinstance(path, bytes) or path.is_file()}
    kept = folder / "lock.json"
    entries["lock.json"] = kept if kept.is_file() else reproduction.lock(made, store)
    entries["REPRODUCE.md"] = reproduction.instructions(made).encode()
    entries["metrics.jsonl"] = _lines(asdict(metric) for metric in store.metrics(run_id))
    entries["events.jsonl"] = _lines(
        {"time": e.time, "level": e.level, "site": e.site, "text": e.text} for e in store.public_events(run_id)
    )
    if to is None:
        return _kept(made, f"{run_id}-export.zip", entries, sums=True)
    write(to, entries, sums=True)
    return to


def adapter_name(made: Made, which: Adapter) -> str:
    """How an adapter is called wherever it goes: ``<run>-r<round>``; never two for one name."""
    return f"{made.run.id}-{f'r{which.round}' if which.round else 'synthetic-only'}"


def card_of(made: Made, which: Adapter) -> str:
    """The card that goes with this adapter, with the run's charges as they are now."""
    return cards.adapter(made, which, catalogue.promised(made))


def refusals(made: Made, which: Adapter, card: str) -> list[str]:
    """Why this adapter may not be handed over, in sentences; empty when it may."""
    found = cards.check(which.folder, card)
    if not found and catalogue.file_sha256(which.folder / WEIGHTS) != which.sha256:
        found = ["The weights are not those that the run wrote (their hash differs)."]
    return found


def write(target: Path, entries: Entries, *, sums: bool = False) -> None:
    """One zip, whole or not at all; with ``sums`` SHA256SUMS of all entries comes last. Raises StoreError CAFE-652 (disk)."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(beside, "w") as archive:
            hashes = {name: _add(archive, name, entries[name]) for name in sorted(entries)}
            if sums:
                _add(archive, "SHA256SUMS", "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items()).encode())
        beside.replace(target)
    except OSError as error:
        todo = "Make room on the disk, then ask again." if target.parent.is_dir() else f"Make the folder {target.parent} first."
        raise StoreError("CAFE-652", f"The disk refused a file ({error.strerror or type(error).__name__}).", todo) from error
    finally:
        beside.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, source: Path | bytes) -> str:
    """One entry, a megabyte at a time; returns its SHA-256."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_STORED if Path(name).suffix in _PACKED else zipfile.ZIP_DEFLATED
    info.create_system, info.external_attr = 3, 0o644 << 16
    info.file_size = len(source) if isinstance(source, bytes) else source.stat().st_size  # tells whether it needs zip64
    digest = hashlib.sha256()
    with archive.open(info, "w") as entry:
        for chunk in _chunks(source):
            digest.update(chunk)
            entry.write(chunk)
    return digest.hexdigest()


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _kept(made: Made, name: str, entries: Entries, *, sums: bool = False) -> Path:
    """The zip in the run's downloads: the one that is there, if its sources are what they were, or a new one."""
    folder = Path(made.run.folder) / "downloads"
    folder.mkdir(mode=0o700, exist_ok=True)
    target, note = folder / name, folder / f".{name}.sources"
    wanted = _fingerprint(entries)
    with _lock(folder / ".lock"):
        if not target.is_file() or not note.is_file() or note.read_text(encoding="utf-8") != wanted:
            note.unlink(missing_ok=True)
            write(target, entries, sums=sums)
            note.write_text(wanted, encoding="utf-8")
    return target


def _fingerprint(entries: Entries) -> str:
    """Of names, sizes and times of files, and of the bytes themselves where there is no file."""
    seen: list[Any] = [1]  # the form of these zips; goes up when it changes
    for name, source in sorted(entries.items()):
        if isinstance(source, bytes):
            seen.append((name, hashlib.sha256(source).hexdigest()))
        else:
            seen.append((name, source.stat().st_size, source.stat().st_mtime_ns))
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[BinaryIO]:
    """One builder at a time, among threads and processes."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _below(folder: Path) -> dict[str, Path]:
    """Name -> file, of everything below a folder but hidden files."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path for name, path in named.items() if not any(part.startswith(".") for part in name.split("/"))}


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
