"""What the machine is: system, cores, memory, GPU. Told to the operator with the join request, and judged by the doctor.

Knows where to look without any package. Does not know what is enough.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

from cafe_kit.enrolment import Host


def host() -> Host:
    """The facts of this machine."""
    return Host(
        system=f"{platform.system()} {platform.release()}"[:200],
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(memory() / 2**30, 1),
        gpu=gpu()[:200],
    )


def memory() -> int:
    """Bytes of memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0


def gpu() -> str:
    """Name and memory of the NVIDIA GPUs, as their driver tells; "" for none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    asked = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
