"""Is this machine fit for a run? A list of checks, each with what was found and what to do about it.

Knows what to look at and the version floors below which known holes are open. Changes nothing of a run, fetches
nothing, draws nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from importlib import metadata
from pathlib import Path

import psutil

from pipeline.landing import is_whole
from pipeline.models import DEFAULT_BASE, DEFAULT_EMBEDDER

NEED_DISK_GB = 4.0
NEED_MEMORY_GB = 8.0
PORT = 8501

# name, first sound version, why (reliability notes §7: the advisories behind it)
FLOORS = (
    ("torch", "2.10", "CVE-2025-32434, CVE-2026-24747: loading weights could run code"),
    ("transformers", "5.3.0", "CVE-2026-1839, CVE-2026-4372: a model's config could run code"),
    ("vllm", "0.20", "CVE-2025-47277, CVE-2026-22807, CVE-2026-27893, CVE-2026-9540"),
    ("streamlit", "1.54", "server-side request forgery and session mix-ups mended"),
    ("starlette", "1.1.0", "CVE-2026-48818: Host header"),
    ("pyarrow", "14.0.1", "CVE-2023-47248: a file could run code"),
)


@dataclass(frozen=True)
class Check:
    """One finding. ``hint`` says what to do when it is not ok (and may stay empty when it is)."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def checks(home: Path) -> list[Check]:
    """Every check of this machine and of the home folder ``home``, in the order in which a person would mend things.

    A check that breaks is a finding itself; none raises.
    """
    looks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("python", _python),
        ("disk", lambda: _disk(home)),
        ("memory", _memory),
        ("processor", _processor),
        ("versions", _versions),
        ("home", lambda: _home(home)),
        ("models", lambda: _models(home)),
        ("store", lambda: _store(home)),
        ("ledger", lambda: _ledger(home)),
        ("port", _port),
    )
    found: list[Check] = []
    for name, look in looks:
        try:
            found += look()
        except Exception as error:
            code = getattr(error, "code", "")
            found.append(Check(name, False, str(error) if code else f"could not be checked ({type(error).__name__})", ""))
    return found


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", sys.version_info >= (3, 11), f"{version} on {sys.platform}", "Use Python 3.11 or newer.")
    if not sys.platform.startswith("linux"):
        yield Check("system", False, f"{sys.platform} is best effort: runs are tried on Linux.", "Expect rough edges.")


def _disk(home: Path) -> Iterator[Check]:
    there = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    yield Check("disk", free >= NEED_DISK_GB, f"{free:.1f} GB free at {there}", f"Make room: {NEED_DISK_GB:.0f} GB are wanted.")


def _memory() -> Iterator[Check]:
    memory = psutil.virtual_memory()
    detail = f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB of it free"
    yield Check("memory", memory.total / 1e9 >= NEED_MEMORY_GB * 0.95, detail, f"{NEED_MEMORY_GB:.0f} GB are wanted for the demo.")


def _processor() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(re.findall(r"\b(?:avx2|avx512f|avx512_bf16|amx_bf16)\b", cpuinfo.read_text() if cpuinfo.exists() else ""))
    speed = "bfloat16 in hardware" if flags & {"avx512_bf16", "amx_bf16"} else "no bfloat16 in hardware: float32 is used"
    gpu = "; an NVIDIA GPU" if Path("/dev/nvidiactl").exists() else "; no GPU"
    yield Check("processor", True, f"{cores} cores ({', '.join(sorted(flags)) or 'no vector flags known'}), {speed}{gpu}")


def _versions() -> Iterator[Check]:
    low = False
    for package, floor, why in FLOORS:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if _numbers(version) < _numbers(floor):
            low = True
            yield Check(f"version of {package}", False, f"{version} is below {floor} ({why}).", f"pip install '{package}>={floor}'")
    if not low:
        yield Check("versions", True, "no installed package is below its safe version")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", version)[0].split("."))  # type: ignore[index]


def _home(home: Path) -> Iterator[Check]:
    if not home.is_dir():
        yield Check(
            "home", os.access(home.parent, os.W_OK), f"{home} is not there yet", "It is made at the first run; CAFE_HOME names another."
        )
        return
    mode = stat.S_IMODE(home.stat().st_mode)
    yield Check("home", os.access(home, os.W_OK | os.X_OK), f"{home}", "It may not be written: mend its rights, or set CAFE_HOME.")
    yield Check("privacy of home", mode & 0o077 == 0, f"mode {mode:04o}", f"Others of this machine may look inside: chmod 700 {home}")


def _models(home: Path) -> Iterator[Check]:
    for name in (DEFAULT_BASE, DEFAULT_EMBEDDER):
        folder = home / "models" / name
        whole, there = is_whole(folder), folder.exists()
        detail = "here and undamaged" if whole else "damaged or half set up" if there else "not here; fetched when first needed"
        yield Check(f"model {name}", whole or not there, detail, "Set it up again: .venv/bin/python -m pipeline.models")


def _store(home: Path) -> Iterator[Check]:
    if not (home / "store.db").exists():
        yield Check("store", True, "none yet: it is made by the first run")
        return
    from server_store.store import Store

    store = Store(home / "store.db")
    try:
        runs = store.runs()
    finally:
        store.close()
    lost = [run.id for run in runs if run.shown_state == "Lost contact"]
    yield Check("store", not lost, f"{len(runs)} runs" + (f"; lost contact with {', '.join(lost)}" if lost else ""),
                f"cafe resume {lost[0]}" if lost else "")  # fmt: skip


def _ledger(home: Path) -> Iterator[Check]:
    if not (home / "ledger.db").exists():
        yield Check("ledger", True, "none yet: it is made by the first run")
        return
    from server_store.ledger import Ledger

    ledger = Ledger(home / "ledger.db")
    ledger.verify()
    yield Check("ledger", True, f"{len(ledger.releases())} releases charged; the chain of hashes is unbroken")


def _port() -> Iterator[Check]:
    with socket.socket() as probe:
        probe.settimeout(2)
        if probe.connect_ex(("127.0.0.1", PORT)) != 0:
            yield Check(f"port {PORT}", True, "free")
            return
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/_stcore/health", timeout=2) as answer:
            console = answer.read(16) == b"ok"
    except (OSError, HTTPException):
        console = False
    detail = "a console is open there" if console else "taken by another program"
    yield Check(f"port {PORT}", console, detail, "Open the console elsewhere: .venv/bin/cafe serve --port 8502")
