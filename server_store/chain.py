"""The rows of the privacy ledger and the chain of hashes over them, on an open connection inside a transaction.

Knows: the tables, what a hash covers, the exact fraction of a charge. Does not know when a release may change its state.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal

State = Literal["reserved", "sealed", "lost"]
Json = dict[str, Any]

GENESIS = "0" * 64
ENTRY = ("seq", "rid", "state", "sha256", "size", "time", "prev", "hash")


def append(db: sqlite3.Connection, rid: str, state: State, sha256: str | None, size: int | None) -> None:
    previous = head_of(db)
    seq = db.execute("SELECT COALESCE(MAX(seq), 0) + 1 FROM entries").fetchone()[0]
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    description = describe(db, rid) if state == "reserved" else None
    hash_ = entry_hash(previous, seq, rid, state, sha256, size, time, description)
    db.execute("INSERT INTO entries VALUES (?,?,?,?,?,?,?,?)", (seq, rid, state, sha256, size, time, previous, hash_))


def entry_hash(prev: str, seq: int, rid: str, state: str, sha256: str | None, size: int | None, time: str, description: Json | None) -> str:
    """SHA-256 over the entry, the entry before it and, where it charges, everything that was agreed and charged."""
    return hashlib.sha256(canonical([prev, seq, rid, state, sha256, size, time, description]).encode()).hexdigest()


def head_of(db: sqlite3.Connection) -> str:
    row = db.execute("SELECT hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
    return row[0] if row else GENESIS


def state_of(db: sqlite3.Connection, rid: str) -> tuple[str, str | None, int | None] | None:
    return db.execute("SELECT state, sha256, size FROM entries WHERE rid = ? ORDER BY seq DESC LIMIT 1", (rid,)).fetchone()


def describe(db: sqlite3.Connection, rid: str) -> Json | None:
    """A release as it was agreed, rebuilt from its rows."""
    row = db.execute("SELECT rid, run, stage, attempt, round, statistic, terms, inputs FROM releases WHERE rid = ?", (rid,)).fetchone()
    if row is None:
        return None
    charges = db.execute("SELECT site, mu2_numerator, mu2_denominator FROM charges WHERE rid = ? ORDER BY site", (rid,)).fetchall()
    names = ("rid", "run", "stage", "attempt", "round", "statistic")
    return dict(zip(names, row[:6], strict=True)) | {
        "terms": json.loads(row[6]),
        "inputs": json.loads(row[7]),
        "charges": {site: as_text(as_fraction(*mu2)) for site, *mu2 in charges},
    }


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def as_text(mu2: Fraction | None) -> str | None:
    return None if mu2 is None else f"{mu2.numerator}/{mu2.denominator}"


def as_pair(mu2: Fraction | None) -> tuple[int | None, int | None]:
    return (None, None) if mu2 is None else (mu2.numerator, mu2.denominator)


def as_fraction(numerator: int | None, denominator: int | None) -> Fraction | None:
    return None if numerator is None or denominator is None else Fraction(numerator, denominator)


# --- migrations: numbered, each applied once, never edited after it was released ------------------------------------


def _migration_1(db: sqlite3.Connection) -> None:
    db.execute("""CREATE TABLE releases (rid TEXT PRIMARY KEY, run TEXT NOT NULL, stage INTEGER NOT NULL, attempt INTEGER NOT NULL,
        round INTEGER NOT NULL, statistic TEXT NOT NULL, terms TEXT NOT NULL, inputs TEXT NOT NULL) STRICT""")
    db.execute("""CREATE TABLE charges (rid TEXT NOT NULL REFERENCES releases, site TEXT NOT NULL, mu2_numerator INTEGER,
        mu2_denominator INTEGER, PRIMARY KEY (rid, site), CHECK ((mu2_numerator IS NULL) = (mu2_denominator IS NULL)),
        CHECK (mu2_numerator > 0 AND mu2_denominator > 0)) STRICT""")
    db.execute("""CREATE TABLE entries (seq INTEGER PRIMARY KEY, rid TEXT NOT NULL REFERENCES releases,
        state TEXT NOT NULL CHECK (state IN ('reserved', 'sealed', 'lost')), sha256 TEXT, size INTEGER, time TEXT NOT NULL,
        prev TEXT NOT NULL UNIQUE, hash TEXT NOT NULL UNIQUE, UNIQUE (rid, state),
        CHECK ((state = 'sealed') = (sha256 IS NOT NULL AND size IS NOT NULL))) STRICT""")
    for table in ("releases", "charges", "entries"):
        for verb in ("UPDATE", "DELETE"):
            db.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
            )


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_migration_1,)
