"""A server that releases while its power is cut: what it does, what must hold of what is left, and planted bugs.

``python -m tests.power_cut_server FOLDER [BUG]`` is the server at work, as a run's worker carries it: store, ledger and door in ``disk``;
what anybody else sees of its releases goes to ``outside``. Each round is carried twice: first by a process that is killed just before
one of its fsyncs, then by another that resumes the run and comes through. (With a planted bug nothing is killed, unless it shows only so.)
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from cafe_kit import release as kit_release
from cafe_kit.orders import PrivacyTerms

from pipeline import launch, privacy, settings
from pipeline.accounting import cost
from pipeline.privacy import PrivacyDoor, Release, Released
from server_store import ledger as ledger_room
from server_store.blobs import Blobs
from server_store.ledger import Ledger
from server_store.store import Store
from tests.federation import Federation
from tests.power_cut_site import in_a_process

ROUNDS = 3
FSYNCS = 6  # that one round needs beside SQLite's own
LENGTH = 40
SITES = ("north", "south", "west")
NOISED = PrivacyTerms("gaussian", trust="server", clip_norm=4.0, noise_multiplier=4.0, grid=1024)


def releases(run: str) -> list[Release]:
    """Of both stages, with noise by the server, by the sites and by nobody."""
    kinds = [(1, "votes", NOISED), (2, "delta", replace(NOISED, trust="local")), (3, "delta", PrivacyTerms("none"))]
    return [Release(run, stage, 1, number, of, terms, SITES, LENGTH) for number in range(1, ROUNDS + 1) for stage, of, terms in kinds]  # type: ignore[arg-type]


def contributions(release: Release) -> dict[str, np.ndarray]:
    kind = np.int64 if release.terms.mechanism == "gaussian" else np.float64
    return {site: np.arange(LENGTH).astype(kind) + place + release.round for place, site in enumerate(release.roster)}


# --- the server at work ------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """A run in the hands of one process: the same acts, in the same order, as ``pipeline.worker`` and ``pipeline.rounds``."""

    home: Path

    def __post_init__(self) -> None:
        self.store = Store(self.home / "store.db")
        self.run = self.store.runs()[0].id
        self.folder = self.home / "runs" / self.run
        settings.load(self.folder / "config.yaml")
        self.epoch = self.store.claim(self.run, os.getpid())
        self.door = PrivacyDoor(Ledger(self.home / "ledger.db"), self.folder / "releases")
        self.door.recover(self.run)
        self.blobs = Blobs(self.folder / "blobs")

    def carry(self, release: Release, publish: Callable[[Release, Released], None]) -> Released:
        """One round, from the bodies that came in to what everybody sees. Bodies that come anew are others."""
        inputs = {site: sha256(os.urandom(8)).hexdigest() for site in release.roster}
        closed = self.store.save_step(self.run, self.epoch, f"{release.rid}/closed", None, {"hashes": inputs})
        released = self.door.release(release, contributions(release), closed.facts["hashes"])
        publish(release, released)
        self.store.save_step(self.run, self.epoch, f"{release.rid}/kept", self.blobs.put(released.values.tobytes()), {})
        return released


def work(folder: Path, *, kills: bool = True) -> None:
    home = folder / "disk" / "home"

    def publish(release: Release, released: Released) -> None:
        told = {
            "rid": release.rid,
            "sha256": released.sha256,
            "values": released.values.tolist(),
            "head": Ledger(home / "ledger.db").head(),
        }
        (folder / "outside" / _name(release)).write_text(json.dumps(told))

    launch.spawn = lambda run: None  # type: ignore[assignment]
    in_a_process(list, lambda _: launch.start(settings.load(folder / "inputs" / "tiny.yaml")))
    run = Store(home / "store.db").runs()[0].id
    for number in range(1, 4) if kills else ():
        in_a_process(list, lambda _: Worker(home), killed_before=number)
    for number, release in enumerate(releases(run)):
        carry = partial(carried, release, publish)
        if kills:
            in_a_process(partial(Worker, home), carry, killed_before=1 + number % FSYNCS)
        in_a_process(partial(Worker, home), carry)


def carried(release: Release, publish: Callable[[Release, Released], None], worker: Worker) -> None:
    worker.carry(release, publish)


def _name(release: Release) -> str:
    return release.rid.replace("/", "_")


# --- what must hold ----------------------------------------------------------------------------------------------------


class Examiner:
    """Opens what a cut has left of the server and carries the run on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def look(self, disk: Path, seen: dict[str, bytes]) -> None:
        """Raises AssertionError, or what the server's own code raises, when a promise is broken."""
        told = {one["rid"]: one for one in (json.loads(data) for data in seen.values() if data.endswith(b"}"))}
        home = disk / "home"
        if not (home / "store.db").exists() or not Store(home / "store.db").runs():
            assert not told, "published, and the run is unknown"
            return
        ledger = Ledger(home / "ledger.db")
        for one in told.values():
            ledger.verify(one["head"])
        for rid, one in told.items():
            row = ledger.get(rid)
            assert (row.state, row.sha256) == ("sealed", one["sha256"]), f"published, and {row.state} in the ledger"
        worker = Worker(home)
        every = releases(worker.run)
        known = [row.rid for row in ledger.releases()]
        for release in every[: len(known) + 1]:
            released = worker.carry(release, lambda *_: None)
            if one := told.get(release.rid):
                assert (released.sha256, released.values.tolist()) == (one["sha256"], one["values"]), "a second body"
        ledger.verify()
        charged = sorted((charge.rid, charge.site, charge.mu2) for charge in ledger.charges())
        due = {release.rid: cost(release.terms) if release.terms.mechanism == "gaussian" else None for release in every[: len(known) + 1]}
        assert charged == sorted((rid, site, mu2) for rid, mu2 in due.items() for site in SITES), "not charged as published"


# --- planted bugs ------------------------------------------------------------------------------------------------------


def _never(*_: Any) -> None:
    pass


def _pragma(old: str, new: str) -> None:
    ledger_room.PRAGMAS = tuple(pragma.replace(old, new) for pragma in ledger_room.PRAGMAS)


def ledger_synchronous_full() -> None:
    """SQLite's default: after a commit the journal's deletion is not durable, and the power cut takes the commit back."""
    _pragma("EXTRA", "FULL")


def ledger_synchronous_normal() -> None:
    _pragma("EXTRA", "NORMAL")


def ledger_synchronous_off() -> None:
    _pragma("EXTRA", "OFF")


def ledger_wal_normal() -> None:
    """The fast setting that is recommended everywhere: durable at a checkpoint only, and none comes while somebody reads."""
    _pragma("EXTRA", "NORMAL")
    _pragma("DELETE", "WAL")
    make, readers = Ledger.__init__, []

    def read(self: Ledger, path: Path) -> None:
        make(self, path)
        readers.append(sqlite3.connect(path))
        readers[-1].execute("SELECT COUNT(*) FROM entries").fetchone()

    Ledger.__init__ = read  # type: ignore[method-assign]


def body_not_named() -> None:
    """The sealed body's name is not made durable."""
    kit_release.sync_folder = _never


def adopted_not_named() -> None:
    """A body that a killed process has left is taken over without making its name durable."""
    privacy.sync_folder = _never  # type: ignore[attr-defined]


def body_not_written() -> None:
    """The sealed body's bytes are not made durable."""
    fsync, seal = os.fsync, kit_release.seal_file

    def folders_alone(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir():
            fsync(handle)

    def sloppy(path: Path, data: bytes) -> None:
        os.fsync = folders_alone  # type: ignore[assignment]
        try:
            seal(path, data)
        finally:
            os.fsync = fsync

    privacy.seal_file = sloppy  # type: ignore[attr-defined]


def _published_when_drawn() -> None:
    draw = privacy._draw

    def hasty(release: Release, total: Any) -> bytes:
        body = draw(release, total)
        values = kit_release.body_from_bytes(body, {"steps": ((LENGTH,), "int64")})["steps"] / release.terms.grid
        told = {"rid": release.rid, "sha256": sha256(body).hexdigest(), "values": values.tolist(), "head": "0" * 64}
        (Path(sys.argv[1]) / "outside" / _name(release)).write_text(json.dumps(told))
        return body

    privacy._draw = lambda release, total: (hasty if release.terms.mechanism == "gaussian" else draw)(release, total)


def publish_before_seal() -> None:
    """What was drawn is told at once, and kept afterwards."""
    _published_when_drawn()


def publish_before_charge() -> None:
    """What was drawn is told and kept, and charged afterwards."""
    _published_when_drawn()
    reserve, mark, waiting = PrivacyDoor._reserve, PrivacyDoor._mark, []
    PrivacyDoor._reserve = lambda *given: waiting.append(given)  # type: ignore[method-assign, assignment, return-value]

    def late(self: PrivacyDoor, *given: Any) -> Any:
        if waiting:
            reserve(*waiting.pop())
        return mark(self, *given)

    PrivacyDoor._mark = late  # type: ignore[method-assign]


BUGS = {
    bug.__name__: bug
    for bug in (
        ledger_synchronous_full, ledger_synchronous_normal, ledger_synchronous_off, ledger_wal_normal, body_not_named, adopted_not_named,
        body_not_written, publish_before_seal, publish_before_charge,
    )
}  # fmt: skip
AFTER_KILLS = ("adopted_not_named",)


def prepare(folder: Path) -> None:
    """What the run refers to, outside of the disk."""
    Federation(folder / "inputs")


if __name__ == "__main__":
    os.environ["CAFE_HOME"] = str(Path(sys.argv[1]) / "disk" / "home")
    planted = sys.argv[2:]
    for name in planted:
        BUGS[name]()
    work(Path(sys.argv[1]), kills=all(name in AFTER_KILLS for name in planted))
