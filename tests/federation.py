"""A tiny federation in a folder, real processes and all, with fakes in place of the models; and a hand that kills it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from server_store.ledger import Ledger
from server_store.store import Store
from tests.tiny_models import tiny_base, tiny_embedder

ROOT = Path(__file__).resolve().parents[1]
LABELS = ("billing", "records", "travel")


class Federation:
    """Weak and strong sites with a few records each; runs are started as worker processes and may be killed."""

    def __init__(self, folder: Path, *, weak: int = 3, strong: int = 2, instruction: bool = False, **settings: Any) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        self.environment = os.environ | {
            "CAFE_HOME": str(self.home), "CAFE_MODELS": "tests.tiny_models:TinyModels", "CAFE_KIT_ENGINE": "tests.fakes:TinyEngine",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self._instruction = instruction
        sites = [(f"weak{n}", "cpu") for n in range(weak)] + [(f"strong{n}", "gpu") for n in range(strong)]
        for name, _ in sites:
            self._records(f"{name}.jsonl", random.Random(name), 12)
        self._records("test.jsonl", random.Random("test"), 9)
        data = {
            "name": "tiny",
            "task": {"kind": "classification", "description": "where a message goes", "labels": list(LABELS)}
            if not instruction
            else {"kind": "instruction", "description": "questions and answers"},
            "base_model": str(tiny_base(folder / "base")),
            "embedder": str(tiny_embedder(folder / "embedder")),
            "sites": [{"name": name, "kind": kind, "data": f"{name}.jsonl"} for name, kind in sites],
            "test": "test.jsonl",
            "privacy": "off",
            "stage1": {"rounds": 3, "candidates_per_label": 4, "survivors_per_label": 2, "synthetic_per_label": 6},
            "stage2": {"rounds": 4, "lora_rank": 2, "steps": 2},
        }
        for key, value in settings.items():
            data[key] = {**data[key], **value} if isinstance(data.get(key), dict) and isinstance(value, dict) else value
        self.config = folder / "tiny.yaml"
        self.config.write_text(json.dumps(data))  # JSON is YAML

    def _records(self, name: str, rng: random.Random, number: int) -> None:
        rows = [{"text": f"{rng.choice(LABELS)} question {rng.random():.9f}", "label": LABELS[i % len(LABELS)]} for i in range(number)]
        if self._instruction:
            rows = [{"instruction": row["text"], "input": "", "output": row["label"]} for row in rows]
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def create(self) -> str:
        """A run that waits for its worker."""
        code = (
            "import sys; from pathlib import Path; from pipeline import launch, settings\n"
            "launch.spawn = lambda run: None\n"
            "print(launch.start(settings.load(Path(sys.argv[1]))).id)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.config)], env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def work(self, run: str, *, failpoint: str = "", kill_after_s: float | None = None, **environment: str) -> int:
        """One worker, until it ends or is killed; returns its exit code (negative: the signal)."""
        once = self.folder / f"once-{time.monotonic_ns()}"
        added = {"CAFE_FAILPOINT": failpoint, "CAFE_FAILPOINT_ONCE": str(once)} if failpoint else {}
        with (self.folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "pipeline.worker", run],
                env={**self.environment, **added, **environment},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            return worker.wait(timeout=kill_after_s if kill_after_s is not None else 300)
        except subprocess.TimeoutExpired:
            worker.send_signal(signal.SIGKILL)
            return worker.wait()

    @property
    def store(self) -> Store:
        return Store(self.home / "store.db")

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.home / "ledger.db")

    def results(self, run: str) -> dict[str, Any]:
        return json.loads((Path(self.store.run(run).folder) / "results.json").read_text())

    def adapter(self, run: str) -> bytes:
        return (Path(self.results(run)["adapter"]) / "adapter_model.safetensors").read_bytes()

    def bodies(self, run: str) -> set[tuple[str, str]]:
        """Every (release or order, SHA-256 of its body) that can be seen now: in the ledger, and in the sites' outboxes."""
        seen = {(row.rid, row.sha256) for row in self.ledger.releases(run) if row.sha256}
        for reply in self.home.glob("sites/*/*/outbox/*/reply.json"):
            kept = json.loads(reply.read_text())["reply"]
            seen |= {(kept["order_hash"] + kept["site"], blob["sha256"]) for blob in kept["outputs"].values()}
        return seen

    def processes(self) -> list[psutil.Process]:
        """Whatever still runs on behalf of this federation."""
        found = []
        for process in psutil.process_iter():
            try:
                if any(str(self.folder) in part for part in process.cmdline()) or process.environ().get("CAFE_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.pid != os.getpid()]

    def wait_for_no_processes(self, seconds: float = 10) -> bool:
        end = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True
