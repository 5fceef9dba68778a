"""Looks whether sites have asked to join: in their exchange folders and in the object store, for pages that look often.

Knows how seldom is enough, and that an object store may be slow or away: the look happens in a thread of its own, and a page waits
for it for a moment only. What was found is in the store (``enrolling.received`` takes it in); here only what is wrong is kept.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from cafe_kit.errors import CafeError

from pipeline import enrolling
from pipeline.home import home
from server_store.errors import StoreError

EVERY_S = 4.0
_PATIENCE_S = 0.5  # a folder is looked through in less


class _Watch:
    """The looks of one home."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._looked = 0.0
        self.wrong: list[CafeError | StoreError] = []

    def look(self) -> None:
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
            if not running and time.monotonic() - self._looked >= EVERY_S:
                self._looked = time.monotonic()
                self._thread = threading.Thread(target=self._look, daemon=True, name="requests")
                self._thread.start()
            thread, left = self._thread, self._looked + _PATIENCE_S - time.monotonic()
        if thread is not None and left > 0:
            thread.join(left)

    def _look(self) -> None:
        try:
            _, self.wrong = enrolling.received()
        except (CafeError, StoreError) as error:
            self.wrong = [error]


_watches: dict[Path, _Watch] = {}


def look() -> list[CafeError | StoreError]:
    """Take in what came since the last look, and say what could not be taken."""
    watch = _watches.setdefault(home(), _Watch())
    watch.look()
    return list(watch.wrong)
