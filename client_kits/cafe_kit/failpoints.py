"""Named places where a test may kill this process, as a power cut would.

``CAFE_FAILPOINT=name:k`` kills at the k-th passage of ``name`` (SIGKILL: no handler, no flush). Costs a dictionary
look-up otherwise. ``CAFE_FAILPOINT_ONCE=FILE`` makes it fire once only over several processes: FILE is made first.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_seen: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Die here if a test asked for it."""
    wanted = os.environ.get("CAFE_FAILPOINT")
    if not wanted:
        return
    target, _, count = wanted.partition(":")
    if target != name:
        return
    _seen[name] = _seen.get(name, 0) + 1
    if _seen[name] != int(count or 1):
        return
    once = os.environ.get("CAFE_FAILPOINT_ONCE")
    if once:
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
