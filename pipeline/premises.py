"""What this home holds beside runs: models and their sizes, room on the disk, the demo; and how the machine is.

Knows folders and package metadata. Loads no model; the doctor looks in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError

from pipeline import chat, federations, launch
from pipeline.home import home
from pipeline.models import DEFAULT_BASE, DEFAULT_EMBEDDER

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    "cafe-au-lait", "cafe-kit", "streamlit", "torch", "transformers", "peft", "safetensors", "onnxruntime", "tokenizers", "numpy",
    "pyarrow", "dp-accounting", "cryptography", "pydantic", "starlette", "altair", "vllm",
)  # fmt: skip
_DOCTOR_S = 120


@dataclass(frozen=True)
class Model:
    """One model's folder on this disk. ``use``: base model or embedder; ``whole``: what makes it one is there."""

    name: str
    use: str
    size: int
    whole: bool


@dataclass(frozen=True)
class Package:
    """A library that is installed here; ``licence`` as its maker states it."""

    name: str
    version: str
    licence: str


def models() -> list[Model]:
    """Every model in the home's folder, and the two shipped ones where they are not there yet (size 0)."""
    folders = {path.name: path for path in sorted(home("models").iterdir()) if path.is_dir() and not path.name.startswith(".")}
    shipped = [name for name in (DEFAULT_BASE, DEFAULT_EMBEDDER) if name not in folders]
    return [_model(path) for path in folders.values()] + [Model(name, _use(name, None), 0, False) for name in shipped]


def free_bytes() -> int:
    """Room that is left on the disk of the home."""
    return shutil.disk_usage(home()).free


def demo_runs() -> list[str]:
    """The demo's runs in this home, the newest first."""
    return [run.id for run in launch.store().runs() if run.name == "demo"]


def has_demo() -> bool:
    return bool(demo_runs()) or any(one.is_demo for one in federations.listed())


def remove_demo() -> int:
    """Delete the demo's runs and its federation; returns how many runs. Charges stay in the ledger, and so do the sites' own.

    Raises:
        CafeError: CAFE-658 while one of its runs goes on; then nothing was deleted.
    """
    runs = demo_runs()
    under_way = launch.store().active_run("demo")
    if under_way and under_way.shown_state != "Lost contact":
        raise CafeError("CAFE-658", f"Run {under_way.id} is {under_way.shown_state.lower()}.", "Stop it first, or wait for its end.")
    for run in runs:
        chat.close(run)
        launch.clean(run)
    for one in federations.listed():
        if one.is_demo:
            federations.remove(one.name)
    return len(runs)


def examine() -> list[dict[str, Any]]:
    """What ``cafe doctor`` finds: name, ok, detail, hint. Takes seconds; runs in a process of its own.

    Raises:
        CafeError: CAFE-690 when it gives no answer.
    """
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "doctor", "--format", "json"],
            env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=_DOCTOR_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        found = json.loads(done.stdout)
        return [{key: one[key] for key in ("name", "ok", "detail", "hint")} for one in found]
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError):
        raise CafeError("CAFE-690", "The doctor gave no answer.", "Run `cafe doctor` in a terminal; it says more.") from None


def packages() -> list[Package]:
    """The libraries that do the work, as they are installed here."""
    found = []
    for name in _PACKAGES:
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(Package(name, about["Version"], _licence(about)))
    return found


def _licence(about: Any) -> str:
    """One line: the expression, else a short text, else the classifier."""
    stated = about.get("License-Expression") or about.get("License") or ""
    if stated and "\n" not in stated and len(stated) <= 100:
        return str(stated)
    named = [line.rsplit("::", 1)[1].strip() for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    return ", ".join(named) or "see its package"


def _model(path: Path) -> Model:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Model(path.name.replace("--", "/"), _use(path.name, path), size, _is_there(path))


def _use(name: str, path: Path | None) -> str:
    return "embedder" if name == DEFAULT_EMBEDDER or (path and (path / "embedder.json").is_file()) else "base model"


def _is_there(path: Path) -> bool:
    return any((path / file).is_file() for file in ("config.json", "embedder.json"))
