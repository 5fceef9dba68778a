"""Processes of this site's endpoint that nobody looks after any more, and how they are ended.

Knows a mark in the environment, which every process below the endpoint inherits, and ``/proc`` (Linux; elsewhere nothing is found).
Does not know what they do: everything that counts is durable before it is told, so ending one loses nothing but time.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_PATIENCE_S = 5.0
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID")  # a job of a batch system inherits the mark, and is looked after by the batch system


def marked(mark: str) -> dict[int, int]:
    """Processes of this user whose environment holds the line ``mark`` (NAME=value), with their parents; not those of other jobs."""
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):  # it ended just now, or is somebody else's
            lines = (folder / "environ").read_bytes().split(b"\0")
            if mark.encode() in lines and not _of_another_job(lines):
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def _of_another_job(lines: list[bytes]) -> bool:
    jobs = {line.decode(errors="replace") for line in lines if line.startswith(tuple(f"{name}=".encode() for name in _JOBS))}
    return not jobs <= {f"{name}={os.environ.get(name)}" for name in _JOBS}


def orphans(mark: str) -> list[int]:
    """Those whose parent has died: a parent that bears the mark, or this very process, still looks after its children."""
    found = marked(mark)
    return [process for process, parent in found.items() if parent not in found and parent != os.getpid()]


def end(processes: list[int], patience_s: float = _PATIENCE_S) -> None:
    """Ask them to end, and after a while make them. A stopped job script cancels what it has started, where it is asked."""
    for how, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 1.0)):
        for process in processes:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, how)
        until = time.monotonic() + wait_s
        while processes and time.monotonic() < until:
            processes = [process for process in processes if _lives(process)]
            time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
