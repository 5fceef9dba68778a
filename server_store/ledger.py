"""The server's privacy ledger: what was charged to which site, before anything was released. Its own database file.

Knows rows: a release is reserved (and thereby charged), then sealed or lost. It stores events, never epsilons, and does
not know what a clip or a noise is. Nothing is ever changed or deleted: triggers refuse it, and a chain of hashes over all
entries shows it where somebody went around the triggers. A charge is therefore never refunded.
To extend: add a numbered migration; what a hash covers never changes for rows that exist.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from server_store.chain import (
    ENTRY,
    GENESIS,
    MIGRATIONS,
    Json,
    State,
    append,
    as_fraction,
    as_pair,
    as_text,
    canonical,
    describe,
    entry_hash,
    head_of,
    state_of,
)
from server_store.errors import StoreError

# EXTRA: with less, a power cut may bring the journal back after its deletion, and take a commit back.
PRAGMAS = ("busy_timeout = 30000", "journal_mode = DELETE", "synchronous = EXTRA", "foreign_keys = ON", "mmap_size = 0")


class LedgerError(StoreError):
    """A refusal of the ledger, CAFE-661 to CAFE-669. Nothing was charged and nothing changed."""


@dataclass(frozen=True)
class LedgerRelease:
    """One release: its public terms, its frozen inputs and where it stands. ``seq`` orders the ledger.

    ``inputs``: site -> SHA-256 of the sealed body that went in. ``terms``: as the caller described them, JSON.
    ``hash``: of the entry that charged it, chained to all entries before.
    """

    seq: int
    rid: str
    run: str
    stage: int
    attempt: int
    round: int
    statistic: str
    terms: Json
    inputs: dict[str, str]
    state: State
    sha256: str | None
    size: int | None
    time: str
    hash: str = field(repr=False)


@dataclass(frozen=True)
class Charge:
    """What one release costs one site: ``mu2`` is mu**2 of Gaussian DP, exact; None means no formal guarantee."""

    rid: str
    run: str
    stage: int
    attempt: int
    round: int
    statistic: str
    site: str
    mu2: Fraction | None
    terms: Json = field(hash=False)


class Ledger:
    """The ledger in the file ``path`` (made, mode 0600, where there is none). May be used from any thread or process.

    Args:
        path: on a local disk; its folder must exist.

    Raises:
        LedgerError: CAFE-661 where the file cannot be opened as a ledger of this version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            with self._transaction() as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version > len(MIGRATIONS):
                    raise LedgerError("CAFE-661", f"The ledger {path.name} was written by a newer version.", "Update this installation.")
                for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
                    migration(db)
                    db.execute(f"PRAGMA user_version = {number}")
        except (OSError, sqlite3.DatabaseError) as error:
            raise LedgerError(
                "CAFE-661",
                f"The ledger {path.name} cannot be opened: {error}.",
                "Restore it from a backup; without it nothing can be released.",
            ) from error

    # --- the three verbs that write ---

    def reserve(
        self,
        rid: str,
        run: str,
        stage: int,
        attempt: int,
        round: int,
        statistic: str,
        *,
        terms: Json,
        inputs: Mapping[str, str],
        charges: Mapping[str, Fraction | None],
    ) -> LedgerRelease:
        """Charge every site in ``charges`` for release ``rid``, durably, and freeze its inputs. Repeating it is free.

        Raises:
            LedgerError: CAFE-662 if ``rid`` was reserved under other terms or for other sites, CAFE-663 if with other inputs.
        """
        description = {
            "rid": rid,
            "run": run,
            "stage": stage,
            "attempt": attempt,
            "round": round,
            "statistic": statistic,
            "terms": terms,
            "inputs": dict(inputs),
            "charges": {site: as_text(mu2) for site, mu2 in charges.items()},
        }
        with self._transaction() as db:
            if (known := describe(db, rid)) is not None:
                _same(known, json.loads(canonical(description)))
            else:
                db.execute(
                    "INSERT INTO releases VALUES (?,?,?,?,?,?,?,?)",
                    (rid, run, stage, attempt, round, statistic, canonical(terms), canonical(dict(inputs))),
                )
                db.executemany(
                    "INSERT INTO charges VALUES (?,?,?,?)", [(rid, site, *as_pair(mu2)) for site, mu2 in sorted(charges.items())]
                )
                append(db, rid, "reserved", None, None)
        return self.get(rid)

    def seal(self, rid: str, sha256: str, size: int) -> LedgerRelease:
        """Record the one body of ``rid``. Repeating it with the same body is free.

        Raises:
            LedgerError: CAFE-664 if ``rid`` is not reserved, is lost, or has another body already.
        """
        with self._transaction() as db:
            state = state_of(db, rid)
            if state != ("sealed", sha256, size):
                if state is None or state[0] != "reserved":
                    raise LedgerError(
                        "CAFE-664",
                        f"Release {rid} cannot take this body: it is {state[0] if state else 'not reserved'}.",
                        "There is one body for one release; read the one that was sealed.",
                    )
                append(db, rid, "sealed", sha256, size)
        return self.get(rid)

    def lose(self, rid: str) -> LedgerRelease:
        """Record that the body of ``rid`` is gone. The charge stays. Repeating it is free."""
        with self._transaction() as db:
            state = state_of(db, rid)
            if state is None:
                raise LedgerError("CAFE-665", f"The ledger knows no release {rid}.", "Check the name.")
            if state[0] != "lost":
                append(db, rid, "lost", None, None)
        return self.get(rid)

    # --- what may be asked ---

    def find(self, rid: str) -> LedgerRelease | None:
        """The release, or None."""
        return next(iter(self._releases("WHERE r.rid = ?", rid)), None)

    def get(self, rid: str) -> LedgerRelease:
        """The release. Raises LedgerError CAFE-665 for an unknown one."""
        release = self.find(rid)
        if release is None:
            raise LedgerError("CAFE-665", f"The ledger knows no release {rid}.", "Check the name.")
        return release

    def releases(self, run: str | None = None) -> list[LedgerRelease]:
        """All releases (of one run), in the order in which they were charged."""
        return self._releases("WHERE r.run = ?", run) if run is not None else self._releases("")

    def charges(self, site: str | None = None, run: str | None = None, stage: int | None = None) -> list[Charge]:
        """All charges, also of releases that were lost or never finished, in the order of the ledger."""
        wanted = {"c.site": site, "r.run": run, "r.stage": stage}
        chosen = {column: value for column, value in wanted.items() if value is not None}
        where = "WHERE " + " AND ".join(f"{column} = ?" for column in chosen) if chosen else ""
        with self._reading() as db:
            rows = db.execute(
                f"""SELECT r.rid, r.run, r.stage, r.attempt, r.round, r.statistic, c.site, c.mu2_numerator, c.mu2_denominator,
                r.terms FROM charges c JOIN releases r USING (rid) JOIN entries e ON e.rid = r.rid AND e.state = 'reserved'
                {where} ORDER BY e.seq, c.site""",
                tuple(chosen.values()),
            ).fetchall()
        return [
            Charge(rid, run_, stage_, attempt, round_, statistic, site_, as_fraction(numerator, denominator), json.loads(terms))
            for rid, run_, stage_, attempt, round_, statistic, site_, numerator, denominator, terms in rows
        ]

    def head(self) -> str:
        """The hash of the last entry. Kept elsewhere, it shows a ledger that was replaced by an older copy."""
        with self._reading() as db:
            return head_of(db)

    def verify(self, head: str | None = None) -> None:
        """Recompute the chain over all entries; with ``head``, also that an entry of that hash is (still) among them.

        Raises:
            LedgerError: CAFE-666 naming the first entry or row that does not fit.
        """
        with self._reading() as db:
            previous = GENESIS
            seen = {GENESIS}
            reserved = []
            for seq, rid, state, sha256, size, time, prev, hash_ in db.execute("SELECT * FROM entries ORDER BY seq").fetchall():
                description = describe(db, rid) if state == "reserved" else None
                if prev != previous or hash_ != entry_hash(previous, seq, rid, state, sha256, size, time, description):
                    raise LedgerError(
                        "CAFE-666",
                        f"Entry {seq} of the ledger ({state}, {rid}) was altered, or one before it was removed.",
                        "Stop all runs, keep this file as evidence and restore a backup.",
                    )
                previous = hash_
                seen.add(hash_)
                reserved += [rid] if state == "reserved" else []
            stray = {row[0] for row in db.execute("SELECT rid FROM releases UNION SELECT rid FROM charges")} - set(reserved)
        if stray:
            raise LedgerError(
                "CAFE-666",
                f"The ledger holds rows of {sorted(stray)[0]}, which no entry charged.",
                "Stop all runs, keep this file as evidence and restore a backup.",
            )
        if head is not None and head not in seen:
            raise LedgerError(
                "CAFE-667",
                "The ledger is not the one that was seen before, or an older copy of it.",
                "Restore the newest copy; what was spent stays spent.",
            )

    def export(self, run: str) -> list[Json]:
        """Every entry of one run as plain JSON, with charges and hashes: enough to recompute each epsilon elsewhere."""
        with self._reading() as db:
            rows = db.execute("SELECT e.* FROM entries e JOIN releases r USING (rid) WHERE r.run = ? ORDER BY e.seq", (run,)).fetchall()
            return [
                dict(zip(ENTRY, row, strict=True)) | ({"release": describe(db, row[1])} if row[2] == "reserved" else {}) for row in rows
            ]

    # --- the file ---

    def _releases(self, where: str, *values: str) -> list[LedgerRelease]:
        with self._reading() as db:
            rows = db.execute(
                f"""SELECT e.seq, r.*, COALESCE(l.state, s.state, e.state), s.sha256, s.size, e.time, e.hash FROM releases r
                JOIN entries e ON e.rid = r.rid AND e.state = 'reserved' LEFT JOIN entries s ON s.rid = r.rid AND s.state = 'sealed'
                LEFT JOIN entries l ON l.rid = r.rid AND l.state = 'lost' {where} ORDER BY e.seq""",
                values,
            ).fetchall()
        return [_release(row) for row in rows]

    @contextmanager
    def _connection(self, begin: str) -> Iterator[sqlite3.Connection]:
        """A connection of its own for every verb: nothing to share between threads, nothing to inherit by a fork."""
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            for pragma in PRAGMAS:
                db.execute(f"PRAGMA {pragma}")
            db.execute(begin)
            yield db
        except sqlite3.OperationalError as error:
            raise LedgerError(
                "CAFE-668",
                f"The ledger {self.path.name} could not be used: {error}.",
                "Free disk space, or wait for the other process, then resume; nothing was released.",
            ) from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise  # a refusal of the tables, not a damaged file
            raise LedgerError(
                "CAFE-661",
                f"The ledger {self.path.name} is damaged: {error}.",
                "Restore it from a backup; without it nothing can be released.",
            ) from error
        finally:
            db.close()  # without a COMMIT this takes everything back

    def _reading(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._connection("BEGIN")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One writer at a time; committed and on the disk when the block ends, or not at all."""
        with self._connection("BEGIN IMMEDIATE") as db:
            yield db
            db.execute("COMMIT")


def _same(known: Json, asked: Json) -> None:
    """One release has one description; what differs is told apart, because what to do differs."""
    if {**known, "inputs": None} != {**asked, "inputs": None}:
        raise LedgerError(
            "CAFE-662",
            f"Release {known['rid']} was charged under other terms or for other sites.",
            "Start a new attempt; it is charged anew.",
        )
    if known["inputs"] != asked["inputs"]:
        raise LedgerError(
            "CAFE-663",
            f"The inputs of release {known['rid']} were frozen when it was charged, and these are others.",
            "Repeat the release with the bodies that were frozen, or start a new attempt, which is charged anew.",
        )


def _release(row: tuple[Any, ...]) -> LedgerRelease:
    *public, terms, inputs, state, sha256, size, time, hash_ = row
    return LedgerRelease(*public, json.loads(terms), json.loads(inputs), state, sha256, size, time, hash_)  # type: ignore[call-arg]
