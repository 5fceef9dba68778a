"""The tables, as numbered steps that are applied once each, in one transaction with the record that they were.

To extend: add a function at the end; never change one that was released.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable


def _m1(db: sqlite3.Connection) -> None:
    db.execute("""CREATE TABLE runs (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, folder TEXT NOT NULL UNIQUE,
        created REAL NOT NULL, started REAL, finished REAL, epoch INTEGER NOT NULL DEFAULT 0,
        heartbeat REAL, pid INTEGER, command TEXT, error TEXT) STRICT""")
    # Two operators press Start: the second insert of an active run of the same name fails.
    db.execute("""CREATE UNIQUE INDEX one_active_run ON runs(name)
        WHERE state IN ('Queued', 'Waiting for sites', 'Running', 'Stopping')""")
    db.execute("""CREATE TABLE steps (
        run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, name TEXT NOT NULL, sha256 TEXT, facts TEXT NOT NULL,
        time REAL NOT NULL, PRIMARY KEY (run, name)) STRICT""")
    db.execute("""CREATE TABLE orders (
        run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, order_hash TEXT NOT NULL, site TEXT NOT NULL,
        stage INTEGER NOT NULL, attempt INTEGER NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL,
        state TEXT NOT NULL, body TEXT, code TEXT NOT NULL DEFAULT '', sentence TEXT NOT NULL DEFAULT '',
        numbers TEXT NOT NULL DEFAULT '{}', sent REAL NOT NULL, ended REAL,
        PRIMARY KEY (run, order_hash), UNIQUE (run, stage, attempt, round, site, kind)) STRICT""")
    db.execute("""CREATE TABLE events (
        id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, time REAL NOT NULL,
        level TEXT NOT NULL, site TEXT, text TEXT NOT NULL) STRICT""")
    db.execute("CREATE INDEX events_of_run ON events(run, id)")
    db.execute("""CREATE TABLE metrics (
        run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, name TEXT NOT NULL, phase TEXT NOT NULL,
        round INTEGER NOT NULL, value REAL NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (run, name, phase, round)) STRICT""")
    db.execute("""CREATE TABLE progress (
        run TEXT PRIMARY KEY REFERENCES runs(id) ON DELETE CASCADE, phase TEXT NOT NULL, done INTEGER NOT NULL,
        "of" INTEGER NOT NULL, started REAL NOT NULL, updated REAL NOT NULL) STRICT""")


def _m2(db: sqlite3.Connection) -> None:
    """What the console needs: who started a run, what every site does now, and the operators' own notes."""
    db.execute("ALTER TABLE runs ADD COLUMN operator TEXT NOT NULL DEFAULT ''")
    db.execute("""CREATE TABLE site_progress (
        run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, site TEXT NOT NULL, phase TEXT NOT NULL, done INTEGER NOT NULL,
        "of" INTEGER NOT NULL, since REAL NOT NULL, updated REAL NOT NULL, PRIMARY KEY (run, site)) STRICT""")
    db.execute("""CREATE TABLE excluded (
        run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, attempt INTEGER NOT NULL, row INTEGER NOT NULL,
        PRIMARY KEY (run, attempt, row)) STRICT""")
    db.execute("""CREATE TABLE chats (
        id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, time REAL NOT NULL,
        prompt TEXT NOT NULL, answers TEXT NOT NULL) STRICT""")
    db.execute("CREATE INDEX chats_of_run ON chats(run, id)")
    db.execute("CREATE TABLE preferences (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT")


def _m3(db: sqlite3.Connection) -> None:
    """Kits for sites of other machines, and how far each has come in joining."""
    db.execute("""CREATE TABLE site_kits (
        serial TEXT PRIMARY KEY, federation TEXT NOT NULL, site TEXT NOT NULL, kind TEXT NOT NULL,
        issued REAL NOT NULL, expires REAL NOT NULL, state TEXT NOT NULL, code_key TEXT NOT NULL, exchange TEXT NOT NULL,
        zip_sha256 TEXT NOT NULL, request TEXT, site_key TEXT NOT NULL DEFAULT '', decided REAL,
        decided_by TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', downloads INTEGER NOT NULL DEFAULT 0) STRICT""")
    # Two operators make a kit for one site: the second insert fails.
    db.execute("""CREATE UNIQUE INDEX one_kit_of_a_site ON site_kits(federation, site COLLATE NOCASE)
        WHERE state IN ('issued', 'requested', 'approved')""")


def _m4(db: sqlite3.Connection) -> None:
    """How orders reach a site of another machine (never a secret), and what its last answer said of its ledger."""
    db.execute("ALTER TABLE site_kits ADD COLUMN connection TEXT NOT NULL DEFAULT '{}'")
    db.execute("ALTER TABLE site_kits ADD COLUMN seen TEXT NOT NULL DEFAULT '{}'")


def _m5(db: sqlite3.Connection) -> None:
    """Events for the operator alone, which no export holds."""
    db.execute("ALTER TABLE events ADD COLUMN confidential INTEGER NOT NULL DEFAULT 0")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_m1, _m2, _m3, _m4, _m5)


def migrate(db: sqlite3.Connection) -> None:
    """Bring the tables up to date; safe when several processes start at once."""
    db.execute("BEGIN IMMEDIATE")
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
            step(db)
            db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
