"""A tiny federation whose sites joined with kits: real kits, real joining, a process of its own for each site, fakes for the models."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cafe_kit.site_folder import to_toml

from pipeline import enrolling, federations
from pipeline.enrolling import Issued
from tests.federation import ROOT, Federation
from tests.site_place import tiny_embedder

KINDS = {"north": "cpu", "south": "cpu", "lab": "gpu"}


@dataclass
class Site:
    """One site's kit, its home, its data, and the process that answers for it."""

    name: str
    kit: Path
    home: Path
    data: Path
    code: str
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """One ``cafe-site`` verb, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "cafe_kit.cli", *words], env=self.environment | environment, capture_output=True, text=True, timeout=120
        )

    def json(self, *words: str) -> Any:
        done = self.command(*words, "--format", "json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def start(self, **environment: str) -> None:
        with (self.home.parent / "start.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cafe_kit.cli", "start"], env=self.environment | environment, stdout=log, stderr=log
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(how)
        return self.process.wait(timeout=30)


class Joined(Federation):
    """The federation with its exchange folder; ``sites`` have joined when it is made, and answer after ``start``."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, *, limits: dict[str, Any] | None = None, **settings: Any) -> None:
        far = [{"name": name, "kind": kind} for name, kind in KINDS.items()]
        folder.mkdir(exist_ok=True)
        if "embedder" not in settings:
            settings["embedder"] = str(tiny_embedder(folder / "a real embedder"))
        super().__init__(folder, weak=0, strong=0, sites=far, **settings)
        patch.setenv("CAFE_HOME", str(self.home))
        self.exchange = folder / "exchange"
        self.exchange.mkdir()
        (self.home / "federations" / "tiny").mkdir(parents=True)
        federations.save("tiny", json.loads(self.config.read_text()) | {"sites": [], "test": str(folder / "test.jsonl")})
        self.sites = {name: self._join(name, kind, limits or {}) for name, kind in KINDS.items()}

    def start(self, *names: str) -> None:
        for name in names or KINDS:
            self.sites[name].start()

    def stop(self) -> None:
        for site in self.sites.values():
            site.stop()

    def stand_in(self, name: str) -> None:
        """The operator's own cluster, which trains for the weak sites; its data are the kit's sample."""
        self.sites[name] = self._join(name, "gpu", {"kinds": ["hello", "train"]}, stands_in=True)

    def issue(self, name: str, kind: str, **how: Any) -> Issued:
        return enrolling.issue("tiny", name, kind, exchange=self.exchange, **how)  # type: ignore[arg-type]

    def surroundings(self, place: Path) -> dict[str, str]:
        """What the site's own processes find in their environment besides."""
        return {}

    def connect(self, site: Site) -> None:
        """What the operator prepares before he approves."""

    def ask(self, name: str, kind: str, limits: dict[str, Any], **how: Any) -> Site:
        """A site with its kit, whose request waits for the operator."""
        issued = self.issue(name, kind, **how)
        place = self.folder / f"Klinik {name} ü"
        zipfile.ZipFile(issued.zip).extractall(place)
        data = place / "own.jsonl"
        self._records(str(data.relative_to(self.folder)), random.Random(name), 12)
        site = Site(name, next(path for path in place.iterdir() if path.is_dir()), place / "home", data, issued.code)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("CAFE_")}
        site.environment = kept | {
            "CAFE_SITE_HOME": str(site.home), "CAFE_KIT_FOLDER": str(site.kit), "HOME": str(place), "PYTHONPATH": str(ROOT),
            "CAFE_KIT_ENGINE": "tests.fakes:TinyEngine", "CAFE_JOIN_CODE": issued.code, "OMP_NUM_THREADS": "1",
        } | self.surroundings(place)  # fmt: skip
        answers = place / "answers.toml"
        consent = {"name": "Dr. Ärmel", "role": "head of IT", "reference": "IRB-7", "agreed": True}
        own = {"max_epsilon": 200.0, "share_rows": "no", "allow_without_noise": True} | limits
        answers.write_text(
            to_toml({"data": {"path": str(data), "columns": {"text": "text", "label": "label"}}, "limits": own, "consent": consent})
        )
        asked = site.command("join", "--answers", str(answers), "--yes", "--wait", "0")
        assert asked.returncode in (0, 3), asked.stdout + asked.stderr
        found, wrong = enrolling.received("tiny")
        assert not wrong and [one.kit.site for one in found if one.kit.state == "requested"] == [name]
        return site

    def _join(self, name: str, kind: str, limits: dict[str, Any], **how: Any) -> Site:
        site = self.ask(name, kind, limits, **how)
        self.connect(site)
        enrolling.approve(enrolling.find(name, "tiny").serial, site.json("status")["words"], "the test")
        done = site.command("join", "--wait", "10")
        assert done.returncode == 0, done.stdout + done.stderr
        return site


def wait_until(true: Any, seconds: float = 30.0) -> bool:
    """Whether it became true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
