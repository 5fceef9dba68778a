"""What operators note down beside the runs: rows that they leave out of a synthetic set, chats, their preferences.

Knows rows of the store's file. Nothing here decides how a run goes on, but for the rows that were left out, which the
worker reads once, when the set is approved.
"""

from __future__ import annotations

import json
import time
from typing import Any

from server_store.rows import Chat
from server_store.store import Store


class Desk(Store):
    """The store, with the operators' notes. One instance per thread."""

    # -- rows left out of a synthetic set ---------------------------------------------------------------------------

    def exclude(self, run: str, attempt: int, row: int, excluded: bool = True) -> None:
        """Leave row ``row`` (counted from 0) of an attempt out of the set, or take it back in."""
        with self._transaction():
            if excluded:
                self._db.execute("INSERT OR IGNORE INTO excluded VALUES (?,?,?)", (run, attempt, row))
            else:
                self._db.execute("DELETE FROM excluded WHERE run=? AND attempt=? AND row=?", (run, attempt, row))

    def excluded(self, run: str, attempt: int) -> set[int]:
        return {row[0] for row in self._db.execute("SELECT row FROM excluded WHERE run=? AND attempt=?", (run, attempt))}

    # -- chats ------------------------------------------------------------------------------------------------------

    def remember_chat(self, run: str, prompt: str, answers: dict[str, Any]) -> int:
        """Keep a prompt with its answers; returns its number."""
        with self._transaction():
            done = self._db.execute(
                "INSERT INTO chats (run, time, prompt, answers) VALUES (?,?,?,?)", (run, time.time(), prompt, json.dumps(answers))
            )
        return int(done.lastrowid or 0)

    def update_chat(self, number: int, answers: dict[str, Any]) -> None:
        """Keep what was added to the answers of a chat, such as a vote."""
        with self._transaction():
            self._db.execute("UPDATE chats SET answers=? WHERE id=?", (json.dumps(answers), number))

    def chats(self, run: str, limit: int = 50) -> list[Chat]:
        """The last chats about a run, the oldest of them first."""
        rows = self._db.execute("SELECT id, run, time, prompt, answers FROM chats WHERE run=? ORDER BY id DESC LIMIT ?", (run, limit))
        return [Chat(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows][::-1]

    def forget_chats(self, run: str) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM chats WHERE run=?", (run,))

    # -- preferences ------------------------------------------------------------------------------------------------

    def preference(self, key: str, default: str = "") -> str:
        row = self._db.execute("SELECT value FROM preferences WHERE key=?", (key,)).fetchone()
        return str(row[0]) if row else default

    def set_preference(self, key: str, value: str) -> None:
        with self._transaction():
            self._db.execute("INSERT INTO preferences VALUES (?,?) ON CONFLICT(key) DO UPDATE SET value=excluded.value", (key, value))
