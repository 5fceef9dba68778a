"""One ``cafe-site start`` for a site: the lock that it holds, and how somebody else ends it.

Knows a file with a lock and a process id. Does not know what the process does.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cafe_kit.errors import CafeError

LOCK = "start.lock"
_PATIENCE_S = 30.0


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Only one start works for the site.

    Raises:
        CafeError: CAFE-117 when another does.
    """
    with _opened(home) as handle:
        if not _locked(handle):
            raise CafeError("CAFE-117", "Another cafe-site start is at work for this site.", "End it first; cafe-site status shows it.")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield


def running(home: Path) -> int | None:
    """The process that is at work for the site; None for none."""
    if not (home / LOCK).is_file():
        return None
    with _opened(home) as handle:
        if _locked(handle):
            return None
        told = os.pread(handle, 20, 0).strip()
        return int(told) if told.isdigit() else 0


def end(home: Path) -> bool:
    """End the start that is at work; False when there is none.

    Raises:
        CafeError: CAFE-117 when it does not end.
    """
    process, stop = running(home), time.monotonic() + _PATIENCE_S
    if process is None:
        return False
    if process:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGTERM)  # it holds the lock, so the number is still its own
    while running(home) is not None:
        if time.monotonic() > stop:
            raise CafeError("CAFE-117", "The cafe-site start of this site does not end.", "End its process, then do this again.")
        time.sleep(0.2)
    return True


@contextmanager
def _opened(home: Path) -> Iterator[int]:
    handle = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Whether the lock could be had; it goes with the handle."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
