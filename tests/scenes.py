"""Homes in every state that a console can meet, made by tiny runs with real processes; for scenarios and for screenshots.

Each scene is a home folder, the environment to open it in, the run that it is about, and an end: whatever still runs on
its behalf is killed. Nothing is written into the store by hand; what a page shows here is what a run left.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import enrolling, federations
from server_store.rows import Run
from tests.fakes import TinyEngine
from tests.federation import LABELS, ROOT, Federation
from tests.joined import Joined
from tests.tiny_models import TinyModels

HOSTILE = "<script>alert(1)</script>**x** :red[y] $z$ [a](http://evil.example)"
NAME = "clinic-letters"
PRIVATE = {"stage1": {"epsilon": 8, "delta": 1e-5}, "stage2": "off", "accept_noise": True}
STAGE1 = {"rounds": 2, "drop_off_label": False}
STAGE2 = {"rounds": 4, "steps": 4, "warm_start_steps": 2}
SHORT = {"rounds": 1, "steps": 2, "warm_start_steps": 3}
LONG = {"rounds": 20, "steps": 4}
SLOW_S = "0.3"  # what each vote and each step takes where a scene must last


class HostileModels(TinyModels):
    """A generator that writes what a page must not obey; ``CAFE_MODELS=tests.scenes:HostileModels``."""

    def complete(self, prompts: Any, *, seed: int, progress: Any = None, **more: Any) -> list[str]:
        return [f"{text} {HOSTILE.replace('1', '2')}" for text in super().complete(prompts, seed=seed, progress=progress, **more)]


class PatientEngine(TinyEngine):
    """Hurries through all that comes before the second federated round, and takes ``CAFE_TINY_SECONDS`` a step from there on.

    While the file ``CAFE_TINY_HELD`` exists, that round does not end: what is true only in the middle of one stays true.
    """

    def vote(self, *asked: Any) -> Any:
        self._pause = 0.0
        return super().vote(*asked)

    def train(self, params: Any, task: Any, base_model: Any, adapter: Any, shards: Any, round: int, progress: Any) -> Any:
        self._pause = float(os.environ.get("CAFE_TINY_SECONDS", "0")) if round > 1 else 0.0
        while round > 1 and Path(os.environ.get("CAFE_TINY_HELD", "/nowhere")).exists():
            time.sleep(0.05)
        return super().train(params, task, base_model, adapter, shards, round, progress)


@dataclass
class Scene:
    """A home in some state. ``run``: the run that it is about, empty where there is none."""

    name: str
    home: Path
    environment: dict[str, str]
    federation: Federation
    run: str = ""
    worker: subprocess.Popen[bytes] | None = None

    @property
    def row(self) -> Run:
        return self.federation.store.run(self.run)

    def all_runs(self) -> list[Run]:
        return self.federation.store.runs()

    def step_names(self) -> set[str]:
        return {step.name for step in self.federation.store.steps(self.run)}

    def words(self) -> list[dict[str, Any]]:
        """What the operator said on each attempt at a synthetic set."""
        return [step.facts for step in self.federation.store.steps(self.run) if step.name.endswith("/approval")]

    def rounds_scored(self) -> int:
        """Federated rounds that are over; round 0 is the warm start."""
        return sum(bool(re.fullmatch(r"stage2/\d+/[1-9]\d*/score", name)) for name in self.step_names())

    def results(self) -> dict[str, Any]:
        return self.federation.results(self.run)

    def adapters(self) -> list[str]:
        """SHA-256 of the weights that the chat may load: of the synthetic set alone, and of the last round."""
        last = Path(self.results()["adapter"])
        folders = [last.parent / "attempt-1" / "round-0", last]
        return [hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest() for folder in folders]

    def lets_go(self) -> None:
        """The round that is held may end."""
        (self.home / "held").unlink()

    def ends(self) -> None:
        """Kills what still runs on behalf of this home."""
        if isinstance(self.federation, Joined):
            self.federation.stop()
        ours = self.federation.processes()
        for process in ours:
            process.kill()
        psutil.wait_procs(ours, timeout=10)


def empty(folder: Path) -> Scene:
    """The first look: nothing is set up."""
    tiny = Federation(folder)
    return Scene("empty", tiny.home, tiny.environment, tiny)


def draft(folder: Path, **settings: Any) -> Scene:
    """A federation is set up, and nothing was started."""
    stages = {"stage1": {**STAGE1, **settings.pop("stage1", {})}, "stage2": {**STAGE2, **settings.pop("stage2", {})}}
    tiny = Federation(folder, **{"name": NAME, "privacy": PRIVATE, **stages, **settings})
    _set_up(tiny)
    return Scene("draft", tiny.home, tiny.environment, tiny)


def running(folder: Path, *, seconds: str = SLOW_S, held: bool = False, **settings: Any) -> Scene:
    """In the second stage, a score is there already, and sites are at work. ``held``: until ``lets_go``, on the second round."""
    scene = draft(folder, **{"stage2": LONG, **settings})
    scene.environment |= {"CAFE_KIT_ENGINE": "tests.scenes:PatientEngine", "CAFE_TINY_HELD": str(scene.home / "held")}
    if held:
        (scene.home / "held").touch()
    return _work(scene, "running", lambda: scene.rounds_scored() >= 1, CAFE_TINY_SECONDS=seconds)


def waiting(folder: Path, **settings: Any) -> Scene:
    """The synthetic set is made and waits for the operator's word."""
    scene = draft(folder, **{"stage1": {"approve": "operator"}, **settings})
    return _carried(scene, "waiting", "Stopped")


def failed(folder: Path) -> Scene:
    """A site's data file went away between the start and the first order, and the others are too few."""
    scene = draft(folder, stage1={"quorum": 3})
    (scene.federation.folder / "weak1.jsonl").unlink()
    (scene.home / "federations" / NAME / "weak1.jsonl").unlink()
    return _carried(scene, "failed", "Failed")


def lost(folder: Path) -> Scene:
    """The worker was killed in the middle."""
    scene = running(folder)
    scene.ends()
    scene.name = "lost"
    return scene


def stopped(folder: Path) -> Scene:
    """Stopped by the operator after a round."""
    scene = running(folder, seconds="0.1")
    assert scene.worker
    scene.federation.store.command(scene.run, "stop")
    assert scene.worker.wait(timeout=120) == 0 and scene.row.state == "Stopped"
    scene.name = "stopped"
    return scene


def done(folder: Path, **settings: Any) -> Scene:
    """A run that came to its end."""
    return _carried(draft(folder, **settings), "done", "Done")


def short_demo(folder: Path, models: Path) -> Scene:
    """The demo federation with the real models and less of everything: few texts, one vote, one round of few steps."""
    tiny = Federation(folder)
    environment = {key: value for key, value in tiny.environment.items() if key not in ("CAFE_MODELS", "CAFE_KIT_ENGINE")}
    (tiny.home / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAFE_HOME", str(tiny.home))
        made = federations.create_demo()
        stage1 = {"rounds": 1, "candidates_per_label": 3, "survivors_per_label": 2, "synthetic_per_label": 4}
        federations.save("demo", {**made.data, "stage1": stage1, "stage2": {**made.data["stage2"], **SHORT}})
    test = made.folder / "test.jsonl"
    test.write_text("".join(line + "\n" for line in test.read_text().splitlines()[:30]))
    return Scene("short demo", tiny.home, environment, tiny)


def hostile(folder: Path) -> Scene:
    """Every text that a person or a model may write holds what a page must not obey."""
    labels = [f"{HOSTILE} {label}" for label in LABELS]
    examples = [{"text": f"{HOSTILE} example {n}", "label": label} for n, label in enumerate(labels)]
    task = {"description": HOSTILE, "labels": labels, "examples": "examples.jsonl"} | {
        "text_name": f"Text {HOSTILE}",
        "answer_name": f"Label {HOSTILE}",
    }
    tiny = Federation(folder, name=NAME, privacy=PRIVATE, task=task, stage1=STAGE1, stage2=STAGE2)
    for file in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        _write(file, [{"text": f"{HOSTILE} {row['text']}", "label": f"{HOSTILE} {row['label']}"} for row in rows])
    _write(folder / "examples.jsonl", examples)
    tiny.environment |= {"CAFE_MODELS": "tests.scenes:HostileModels"}
    _set_up(tiny)
    return _carried(Scene("draft", tiny.home, tiny.environment, tiny), "hostile", "Done")


def joining(folder: Path) -> Scene:
    """Sites of other machines in every state, after a run that three of them took part in."""
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        tiny = Joined(folder, patch, privacy=PRIVATE, stage1=STAGE1, stage2=SHORT)
        scene = Scene("joining", tiny.home, tiny.environment, tiny)
        tiny.start()
        _carried(scene, "joining", "Done")
        tiny.sites["south"].command("pause")
        tiny.sites["lab"].stop()
        enrolling.issue("tiny", "ward-7", "gpu", exchange=tiny.exchange)
        enrolling.issue("tiny", "by-hand", "gpu")
        enrolling.revoke(enrolling.issue("tiny", "annex", "gpu", exchange=tiny.exchange).serial, "The zip went to another house.", "ada")
        tiny.ask("harbour", "gpu", {"share_rows": "rounded"})
    return scene


SCENES: dict[str, Callable[..., Scene]] = {
    "empty": empty, "draft": draft, "running": running, "waiting": waiting, "failed": failed, "lost": lost, "stopped": stopped,
    "done": done, "hostile": hostile, "joining": joining,
}  # fmt: skip


def _set_up(tiny: Federation) -> None:
    """The federation's own folder in the home, as the console's *Set up* leaves it."""
    folder = tiny.home / "federations" / str(json.loads(tiny.config.read_text())["name"])
    folder.mkdir(parents=True, mode=0o700)
    for file in tiny.folder.glob("*.jsonl"):
        shutil.copy(file, folder)
    shutil.copy(tiny.config, folder / federations.FILE)


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _carried(scene: Scene, name: str, state: str) -> Scene:
    scene.run, scene.name = scene.federation.create(), name
    scene.federation.work(scene.run)
    assert scene.row.state == state, (scene.row.state, scene.row.error)
    return scene


def _work(scene: Scene, name: str, until: Callable[[], bool], **environment: str) -> Scene:
    """A run that is being carried; comes back when it is as far as ``until``."""
    scene.run, scene.name = scene.federation.create(), name
    with (scene.federation.folder / "worker.log").open("ab") as log:
        scene.worker = subprocess.Popen(
            [sys.executable, "-m", "pipeline.worker", scene.run],
            env={**scene.environment, **environment},
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    end = time.monotonic() + 120
    while not until():
        assert scene.worker.poll() is None, scene.row.error
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.05)
    return scene
