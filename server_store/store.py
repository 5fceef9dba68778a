"""The only SQL about runs: the one hallway in which console, command line and worker meet.

Knows rows; not what a round means. Writers of a run carry an ``epoch``: a worker that was overtaken (paused, then
woken) changes nothing any more. The privacy ledger is another file with another class (``ledger.py``).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server_store.errors import StoreError
from server_store.migrations import migrate
from server_store.rows import ACTIVE, Event, Metric, OrderRow, Progress, Run, SiteProgress, Step

_RUN = "id, name, state, folder, created, started, finished, epoch, heartbeat, pid, command, error, operator"
_EVENT = "id, time, level, site, text, confidential"
_ORDER = "order_hash, site, stage, attempt, round, kind, state, body, code, sentence, numbers, sent, ended"


class Store:
    """Runs, their steps, orders, events, metrics and progress, in one SQLite file. One instance per thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            for pragma in ("journal_mode=DELETE", "synchronous=EXTRA", "busy_timeout=30000", "foreign_keys=ON", "mmap_size=0"):
                self._db.execute(f"PRAGMA {pragma}")
            migrate(self._db)
        except sqlite3.DatabaseError as error:
            raise StoreError(
                "CAFE-651",
                f"The store {path.name} cannot be opened ({error}).",
                "Restore it from a backup, or set CAFE_HOME to another folder.",
            ) from None

    def close(self) -> None:
        self._db.close()

    # -- the life of a run ------------------------------------------------------------------------------------------

    def create_run(self, run: str, name: str, folder: Path, operator: str = "") -> Run:
        """A new run in state Queued. Raises StoreError CAFE-654 when one of this name is active already."""
        now = time.time()
        try:
            with self._transaction():
                # A folder that was emptied and named again: the ended run that lived there is gone with its files.
                marks = ",".join("?" * len(ACTIVE))
                self._db.execute(f"DELETE FROM runs WHERE folder=? AND state NOT IN ({marks})", (str(folder), *ACTIVE))
                self._db.execute(
                    f"INSERT INTO runs ({_RUN}) VALUES (?,?,?,?,?,NULL,NULL,0,?,NULL,NULL,NULL,?)",
                    (run, name, "Queued", str(folder), now, now, operator),
                )
        except sqlite3.IntegrityError:
            other = self.active_run(name) or next((r for r in self.runs() if r.folder == str(folder)), None)
            raise StoreError(
                "CAFE-654",
                f"Run {other.id if other else '?'} of {name!r} is already there ({other.shown_state if other else ''}).",
                f"See `cafe status`; `cafe stop {other.id if other else 'RUN'}` ends it, `cafe resume` goes on with it.",
            ) from None
        return self.run(run)

    def run(self, run: str) -> Run:
        """Raises StoreError CAFE-655 for an unknown id."""
        rows = self._db.execute(f"SELECT {_RUN} FROM runs WHERE id = ?", (run,)).fetchall()
        if not rows:
            raise StoreError("CAFE-655", f"There is no run {run!r}.", "`cafe status` lists the runs.")
        return _run(rows[0])

    def runs(self) -> list[Run]:
        """All runs, the newest first."""
        return [_run(row) for row in self._db.execute(f"SELECT {_RUN} FROM runs ORDER BY created DESC, rowid DESC")]

    def active_run(self, name: str) -> Run | None:
        marks = ",".join("?" * len(ACTIVE))
        row = self._db.execute(f"SELECT {_RUN} FROM runs WHERE name = ? AND state IN ({marks})", (name, *ACTIVE)).fetchone()
        return _run(row) if row else None

    def queue(self, run: str) -> None:
        """Ask for an ended or lost run to be carried on."""
        try:
            with self._transaction():
                self._db.execute(
                    "UPDATE runs SET state='Queued', command=NULL, error=NULL, finished=NULL, pid=NULL, heartbeat=? WHERE id=?",
                    (time.time(), run),
                )
        except sqlite3.IntegrityError:
            raise StoreError(
                "CAFE-654", f"Another run of {self.run(run).name!r} is active.", "`cafe status` shows it; stop it first."
            ) from None

    def claim(self, run: str, pid: int) -> int:
        """Become the worker of a run; returns the new epoch, which fences off every earlier worker."""
        with self._transaction():
            now = time.time()
            self._db.execute(
                "UPDATE runs SET epoch=epoch+1, pid=?, heartbeat=?, state='Running', command=NULL, error=NULL, finished=NULL,"
                " started=COALESCE(started, ?) WHERE id=?",
                (pid, now, now, run),
            )
            return int(self._db.execute("SELECT epoch FROM runs WHERE id=?", (run,)).fetchone()[0])

    def heartbeat(self, run: str, epoch: int) -> str | None:
        """Say that the worker lives; returns the operator's command, if any."""
        with self._transaction():
            self._fenced("UPDATE runs SET heartbeat=? WHERE id=? AND epoch=?", (time.time(), run, epoch))
            return self._db.execute("SELECT command FROM runs WHERE id=?", (run,)).fetchone()[0]

    def set_state(self, run: str, epoch: int, state: str) -> None:
        with self._transaction():
            self._fenced("UPDATE runs SET state=? WHERE id=? AND epoch=?", (state, run, epoch))

    def finish(self, run: str, epoch: int, state: str, error: dict[str, str] | None = None) -> None:
        """Done, Stopped or Failed."""
        with self._transaction():
            self._fenced(
                "UPDATE runs SET state=?, error=?, finished=?, pid=NULL WHERE id=? AND epoch=?",
                (state, json.dumps(error) if error else None, time.time(), run, epoch),
            )

    def command(self, run: str, command: str) -> None:
        """The operator's wish: "stop" (after the round) or "stop now"."""
        with self._transaction():
            self._db.execute("UPDATE runs SET command=? WHERE id=?", (command, run))

    def abandon(self, run: str) -> None:
        """Mark a run whose worker is gone as Stopped."""
        with self._transaction():
            self._db.execute("UPDATE runs SET state='Stopped', epoch=epoch+1, pid=NULL, finished=? WHERE id=?", (time.time(), run))

    def delete(self, run: str) -> None:
        """Forget a run. Its charges stay in the ledger, which is another file."""
        with self._transaction():
            self._db.execute("DELETE FROM runs WHERE id=?", (run,))

    # -- results that a restart goes on from ------------------------------------------------------------------------

    def step(self, run: str, name: str) -> Step | None:
        row = self._db.execute("SELECT name, sha256, facts, time FROM steps WHERE run=? AND name=?", (run, name)).fetchone()
        return Step(row[0], row[1], json.loads(row[2]), row[3]) if row else None

    def steps(self, run: str, prefix: str = "") -> list[Step]:
        rows = self._db.execute(
            "SELECT name, sha256, facts, time FROM steps WHERE run=? AND substr(name,1,?)=? ORDER BY rowid", (run, len(prefix), prefix)
        )
        return [Step(row[0], row[1], json.loads(row[2]), row[3]) for row in rows]

    def save_step(self, run: str, epoch: int, name: str, sha256: str | None, facts: dict[str, Any]) -> Step:
        """Keep a result once; a second save of the same name changes nothing and returns what is there."""
        with self._transaction():
            self._own(run, epoch)
            self._db.execute(
                "INSERT OR IGNORE INTO steps VALUES (?,?,?,?,?)", (run, name, sha256, json.dumps(facts, sort_keys=True), time.time())
            )
        step = self.step(run, name)
        assert step is not None
        return step

    # -- orders -----------------------------------------------------------------------------------------------------

    def order_sent(self, run: str, epoch: int, row: OrderRow) -> None:
        """Note an order; sending it again changes nothing."""
        with self._transaction():
            self._own(run, epoch)
            self._db.execute(
                f"INSERT OR IGNORE INTO orders (run, {_ORDER}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (run, row.order_hash, row.site, row.stage, row.attempt, row.round, row.kind, "sent", None, "", "", "{}", time.time(), None),
            )

    def order_ended(
        self,
        run: str,
        epoch: int,
        order_hash: str,
        state: str,
        *,
        body: str | None = None,
        code: str = "",
        sentence: str = "",
        numbers: dict[str, Any] | None = None,
    ) -> bool:
        """Note an answer. The first body wins: False when another one was noted before."""
        with self._transaction():
            self._own(run, epoch)
            old = self._db.execute("SELECT state, body FROM orders WHERE run=? AND order_hash=?", (run, order_hash)).fetchone()
            if old and old[0] == "answered":
                return bool(old[1] == body)
            self._db.execute(
                "UPDATE orders SET state=?, body=?, code=?, sentence=?, numbers=?, ended=? WHERE run=? AND order_hash=?",
                (state, body, code, sentence, json.dumps(numbers or {}), time.time(), run, order_hash),
            )
            return True

    def orders(self, run: str, stage: int | None = None, attempt: int | None = None, round: int | None = None) -> list[OrderRow]:
        where = {"stage": stage, "attempt": attempt, "round": round}
        asked = {key: value for key, value in where.items() if value is not None}
        sql = f"SELECT {_ORDER} FROM orders WHERE run=?" + "".join(f" AND {key}=?" for key in asked) + " ORDER BY rowid"
        return [_order(row) for row in self._db.execute(sql, (run, *asked.values()))]

    # -- what a person looks at -------------------------------------------------------------------------------------

    def event(self, run: str, text: str, *, level: str = "info", site: str | None = None, confidential: bool = False) -> None:
        """Tell a line of the run's story; ``confidential`` ones to the operator alone."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO events (run, time, level, site, text, confidential) VALUES (?,?,?,?,?,?)",
                (run, time.time(), level, site, text, confidential),
            )

    def events(self, run: str, after: int = 0) -> list[Event]:
        return [_event(row) for row in self._db.execute(f"SELECT {_EVENT} FROM events WHERE run=? AND id>? ORDER BY id", (run, after))]

    def public_events(self, run: str) -> list[Event]:
        """What an export may hold."""
        return [event for event in self.events(run) if not event.confidential]

    def newest_events(self, limit: int) -> list[tuple[str, Event]]:
        """The last events of all runs as (run, event), the newest first."""
        rows = self._db.execute(f"SELECT run, {_EVENT} FROM events ORDER BY id DESC LIMIT ?", (limit,))
        return [(row[0], _event(row[1:])) for row in rows]

    def metric(self, run: str, epoch: int, metric: Metric) -> None:
        with self._transaction():
            self._own(run, epoch)
            self._db.execute(
                "INSERT OR REPLACE INTO metrics VALUES (?,?,?,?,?,?)",
                (run, metric.name, metric.phase, metric.round, metric.value, metric.n),
            )

    def metrics(self, run: str) -> list[Metric]:
        return [
            Metric(*row) for row in self._db.execute("SELECT name, phase, round, value, n FROM metrics WHERE run=? ORDER BY rowid", (run,))
        ]

    def set_progress(self, run: str, phase: str, done: int, of: int) -> None:
        now = time.time()
        with self._transaction():
            self._db.execute(
                """INSERT INTO progress VALUES (?,?,?,?,?,?) ON CONFLICT(run) DO UPDATE SET done=excluded.done, "of"=excluded."of",
                   updated=excluded.updated, started=CASE WHEN phase=excluded.phase THEN started ELSE excluded.started END,
                   phase=excluded.phase""",
                (run, phase, done, of, now, now),
            )

    def progress(self, run: str) -> Progress | None:
        row = self._db.execute('SELECT phase, done, "of", started, updated FROM progress WHERE run=?', (run,)).fetchone()
        return Progress(*row) if row else None

    def set_site_progress(self, run: str, site: str, phase: str, done: int, of: int) -> None:
        now = time.time()
        with self._transaction():
            self._db.execute(
                """INSERT INTO site_progress VALUES (?,?,?,?,?,?,?) ON CONFLICT(run, site) DO UPDATE SET done=excluded.done,
                   "of"=excluded."of", updated=excluded.updated,
                   since=CASE WHEN phase=excluded.phase THEN since ELSE excluded.since END, phase=excluded.phase""",
                (run, site, phase, done, of, now, now),
            )

    def site_progress(self, run: str) -> list[SiteProgress]:
        rows = self._db.execute('SELECT site, phase, done, "of", since, updated FROM site_progress WHERE run=? ORDER BY site', (run,))
        return [SiteProgress(*row) for row in rows]

    # -- within -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise _no_write(error) from error
            raise

    def _own(self, run: str, epoch: int) -> None:
        row = self._db.execute("SELECT epoch FROM runs WHERE id=?", (run,)).fetchone()
        if row is None or row[0] != epoch:
            raise StoreError("CAFE-656", f"Another worker has taken over run {run}.", "Nothing to do; this one ends.")

    def _fenced(self, sql: str, values: tuple[Any, ...]) -> None:
        if self._db.execute(sql, values).rowcount != 1:
            raise StoreError("CAFE-656", "Another worker has taken over this run.", "Nothing to do; this one ends.")


def _no_write(error: sqlite3.OperationalError) -> StoreError:
    if "locked" in str(error):
        return StoreError(
            "CAFE-650", "The store was in use for half a minute.", "Try again; if it stays so, look for a process that hangs."
        )
    return StoreError(
        "CAFE-652", f"The store cannot be written ({error}).", "Make room on the disk, then resume the run; nothing was lost."
    )


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(_RUN.split(", "), row, strict=True))
    return Run(**{**values, "error": json.loads(values["error"]) if values["error"] else None})


def _event(row: tuple[Any, ...]) -> Event:
    values = dict(zip(_EVENT.split(", "), row, strict=True))
    return Event(**{**values, "confidential": bool(values["confidential"])})


def _order(row: tuple[Any, ...]) -> OrderRow:
    values = dict(zip(_ORDER.split(", "), row, strict=True))
    return OrderRow(**{**values, "numbers": json.loads(values["numbers"])})
