"""How much of this machine a run uses: chosen once per run from the settings, the cores and the memory. Changes only the speed."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.settings import RunSettings

_TRAINING_BYTES = 2 * 2**30  # what one training process of the default model may take, with reserve


@dataclass(frozen=True)
class Machine:
    """``slots`` kit processes compute at once with ``threads`` each; ``resident`` stay in memory; ``dtype`` of the frozen base."""

    slots: int
    threads: int
    resident: int
    dtype: str

    @property
    def all_threads(self) -> int:
        return self.slots * self.threads

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def choose(settings: RunSettings) -> Machine:
    """What the settings say; where they leave the choice, a slot per core on small machines and a quarter of the cores on large
    ones, as far as half of the memory holds that many training processes."""
    asked, cores = settings.machine, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    room = max(1, psutil.virtual_memory().total // 2 // _TRAINING_BYTES)
    slots = asked.compute_slots or max(1, min(cores if cores <= 4 else cores // 4, room))
    threads = asked.threads or max(1, cores // slots)
    resident = asked.resident or max(slots, min(room, len(settings.sites) + slots))
    dtype = asked.dtype if asked.dtype != "auto" else ("bfloat16" if _native_bfloat16() else "float32")
    return Machine(slots, threads, resident, dtype)


def _native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself (emulated, it is slower than float32) or a GPU is there that does."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or Path("/dev/nvidiactl").exists()
