"""What somebody else needs to make a run again: ``lock.json`` with what it ran on, and ``REPRODUCE.md`` with what to do.

Knows versions, commit, seed, hashes and hardware. Written by the run's own worker at its end. Nothing here is private:
no path, no host name.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from pipeline.catalogue import Made
from pipeline.markdown import code, fenced
from server_store.store import Store

_ROOT = Path(__file__).resolve().parents[1]


def lock(made: Made, store: Store) -> bytes:
    """Versions of everything installed, the source's commit, seed, hashes of the models, hardware: as of now."""
    begun, chosen = store.step(made.run.id, "frozen"), store.step(made.run.id, "machine")
    facts: dict[str, Any] = begun.facts if begun else {}
    content = {
        "run": made.run.id,
        "python": platform.python_version(),
        "packages": _packages(),
        "commit": _commit(),
        "seed": made.settings.seed,
        "protocol": facts.get("protocol"),
        "base_model": {"name": made.base.name, "sha256": made.base.sha256},
        "embedder": {"name": Path(made.settings.embedder).name, "sha256": facts["embedder"]} if facts.get("embedder") else None,
        "machine": chosen.facts if chosen else None,
        "hardware": _hardware(),
    }
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def instructions(made: Made) -> str:
    """REPRODUCE.md: what is in the export and how to run it again."""
    noisy = [f"stage {n}" for n, part in ((1, made.settings.privacy.stage1), (2, made.settings.privacy.stage2)) if part]
    noise = (
        f"Privacy noise comes from the operating system and is never seeded: with {' and '.join(noisy)} private, a new run gives"
        " other numbers of the same quality, and it is charged to the sites anew."
        if noisy
        else "No stage had noise: with the same versions on the same kind of processor a new run gives the same adapter."
    )
    steps = """sha256sum -c SHA256SUMS            # is everything as it left?
cat lock.json                      # versions, commit, seed, hardware: install the same ones
cafe run config.yaml --check       # mend the paths in it first: they are those of the first machine
cafe run config.yaml"""
    return f"""# To make {code(made.settings.name)} again

Run `{made.run.id}`, exported by Café au Lait.

{fenced(steps, "bash")}

{noise}

The sites' records are not here and never were on the server; a new run needs the sites. Base model {code(made.base.name)}, sha256
`{made.base.sha256}`.

| file | what it is |
| --- | --- |
| `config.yaml` | every setting as run; holds paths of the machine where it ran |
| `lock.json` | versions, commit, seed, hashes, hardware |
| `results.json` | scores, privacy, seconds, sites |
| `metrics.jsonl` | every figure with phase, round and n |
| `events.jsonl` | what happened, line by line |
| `ledger.jsonl` | every privacy charge of this run, chained by hashes |
| `synthetic/` | the synthetic set with its card |
| `adapters/final/` | the adapter with its card, for PEFT |
| `SHA256SUMS` | of all files |
"""


def _packages() -> dict[str, str]:
    found = {str(one.metadata["Name"]): one.version for one in metadata.distributions() if one.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def _commit() -> str | None:
    """Of the source tree, when this runs from one; ``+changed`` when files differ from it."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+changed" if changed else head


def _hardware() -> dict[str, Any]:
    cards = [path.read_text(encoding="utf-8", errors="replace") for path in Path("/proc/driver/nvidia/gpus").glob("*/information")]
    try:
        processor = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        processor = None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor[1] if processor else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [found[1].strip() for text in cards if (found := re.search(r"^Model:\s*(.+)$", text, re.MULTILINE))],
    }
