"""The kit package stands alone: a fresh environment, the light extra, no server, no torch, and a vote is cast there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError

from pipeline.models import embedder

KIT = Path(__file__).resolve().parent.parent / "client_kits"
LIMIT_MB = 260  # installed, without the embedder and without what every environment has (pip, setuptools)
LIGHT = "errors,task,orders,records,embed,vote,release,policy,ledger,outbox,seat,host"  # what a weak site's process imports

LOOK = """
import importlib, importlib.util, json, sys
for name in sys.argv[1].split(","):
    importlib.import_module(f"cafe_kit.{name}")
loaded = [name for name in ("torch", "transformers", "peft") if name in sys.modules]
others = ["torch", "transformers", "pipeline", "server_store", "app", "streamlit"]
print(json.dumps([loaded, [name for name in others if importlib.util.find_spec(name)]]))
"""

VOTE = """
import json, sys
from pathlib import Path
from cafe_kit.embed import Embedder
from cafe_kit.orders import VoteParams
from cafe_kit.records import DataSource, read
from cafe_kit.task import Task
from cafe_kit.vote import candidates_from_bytes, vote
task = Task(kind="classification", description="messages to a clinic", labels=("visits", "bills"))
candidates = candidates_from_bytes(Path("candidates.jsonl").read_bytes())
counts = vote(VoteParams(), task, read(DataSource(Path("own.csv")), task), candidates, Embedder(Path(sys.argv[1]), threads=1))
print(json.dumps([counts.tolist(), "torch" in sys.modules]))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; its whole output in the failure where it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder far from the source tree, with an environment that holds the light kit alone."""
    folder = tmp_path_factory.mktemp("site with a space")
    source = folder / "source"  # a copy: building leaves files beside the source
    shutil.copytree(KIT, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    run(folder / "venv/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{source}[light]", cwd=folder)
    shutil.rmtree(source)
    yield folder
    shutil.rmtree(folder / "venv")


def test_a_weak_site_loads_no_torch_even_where_there_is_one(tmp_path: Path) -> None:
    loaded, installed = json.loads(run(sys.executable, "-c", LOOK, LIGHT, cwd=tmp_path))
    assert "torch" in installed and loaded == []


@pytest.mark.heavy
def test_it_brings_neither_torch_nor_the_server(site: Path) -> None:
    assert json.loads(run(site / "venv/bin/python", "-I", "-c", LOOK, LIGHT, cwd=site)) == [[], []]


@pytest.mark.heavy
def test_it_is_small(site: Path) -> None:
    (packages,) = (site / "venv/lib").glob("python3*/site-packages")
    ours = [entry for entry in packages.iterdir() if not entry.name.startswith(("pip", "setuptools", "pkg_resources", "_distutils"))]
    sizes = {entry.name: sum(f.stat().st_size for f in [entry, *entry.rglob("*")] if f.is_file()) / 1e6 for entry in ours}
    size = sum(sizes.values())
    largest = ", ".join(f"{name} {sizes[name]:.0f}" for name in sorted(sizes, key=lambda name: -sizes[name])[:6])
    print(f"\nthe light kit takes {size:.0f} MB ({largest})")
    assert size <= LIMIT_MB


@pytest.mark.heavy
def test_it_casts_a_vote(site: Path) -> None:
    try:
        model = embedder().path
    except CafeError as error:
        pytest.skip(f"the embedder is not here: {error}")
    (site / "own.csv").write_text(
        'text,label\n"can I come on another day, please",visits\nwrong sum on my invoice,bills\nI was charged twice,bills\n'
    )
    texts = [
        ("bills", "What are your opening hours?"),
        ("bills", "There is a mistake in the bill."),
        ("visits", "Please move my appointment."),
    ]
    (site / "candidates.jsonl").write_text("".join(f'{{"answer":"{label}","text":"{text}"}}\n' for label, text in texts))
    assert json.loads(run(site / "venv/bin/python", "-I", "-c", VOTE, model, cwd=site)) == [[0, 2, 1], False]
