"""What the store gives out: frozen rows. Knows no SQL and computes nothing but a run's true state."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACTIVE = ("Queued", "Waiting for sites", "Running", "Stopping")
LOST_AFTER_S = 60.0


@dataclass(frozen=True)
class Run:
    """One run. ``state`` is what was last written; ``shown_state`` is what is true. ``heartbeat``: also of being queued."""

    id: str
    name: str
    state: str  # Draft · Queued · Waiting for sites · Running · Stopping · Stopped · Failed · Done
    folder: str
    created: float  # seconds since 1970, UTC
    started: float | None
    finished: float | None
    epoch: int  # fence: only the worker that holds the newest epoch may write
    heartbeat: float | None
    pid: int | None
    command: str | None  # "stop" after the round, "stop now"
    error: dict[str, str] | None  # code, message, hint
    operator: str = ""  # who started it, as the console or the shell knows him

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def shown_state(self) -> str:
        """*Lost contact* when an active run's worker is gone, or silent for a minute. Never shown as Running then."""
        if not self.active:
            return self.state
        silent = time.time() - (self.heartbeat or self.created)
        starting = self.state == "Queued" and self.pid is None
        return "Lost contact" if silent > LOST_AFTER_S or not (starting or _alive(self.pid)) else self.state


@dataclass(frozen=True)
class Step:
    """A durable result of a run: its blob exists, or there is none and ``facts`` say all."""

    name: str  # such as "stage2/1/3/adapter"
    sha256: str | None
    facts: dict[str, Any]
    time: float


@dataclass(frozen=True)
class Event:
    """One line of a run's story: names of sites, phases, codes; never a record.

    ``confidential``: for the operator alone, as it may depend on what a site sent before noise was added; it is in no export.
    """

    id: int
    time: float
    level: str  # info | warning | error
    site: str | None
    text: str
    confidential: bool = False


@dataclass(frozen=True)
class Metric:
    """One figure, with where it was measured and on how many examples."""

    name: str  # accuracy | loss
    phase: str  # zero_shot | synthetic_only | round
    round: int
    value: float
    n: int


@dataclass(frozen=True)
class OrderRow:
    """What was asked of a site, and what became of it."""

    order_hash: str
    site: str
    stage: int
    attempt: int
    round: int
    kind: str
    state: str  # sent | answered | refused | failed | late
    body: str | None  # SHA-256 of the sealed body in the inbox
    code: str
    sentence: str
    numbers: dict[str, Any]
    sent: float
    ended: float | None


@dataclass(frozen=True)
class Progress:
    """How far the current phase is. ``of`` 0: not known."""

    phase: str
    done: int
    of: int
    started: float
    updated: float


@dataclass(frozen=True)
class SiteProgress:
    """What one site does now, as it told last. ``since``: begin of this phase. ``of`` 0: not known."""

    site: str
    phase: str  # asked | load | vote | train | release | sent | refused | failed | late
    done: int
    of: int
    since: float
    updated: float


@dataclass(frozen=True)
class Chat:
    """One prompt and what the models answered to it. ``answers`` is as the page kept it, JSON."""

    id: int
    run: str
    time: float
    prompt: str
    answers: dict[str, Any]


def _alive(pid: int | None) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
        # Whoever started the worker and follows it has not heard of its end yet: the dead keep their number until then.
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] not in ("Z", "X")
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return True
