"""Where the stories of the documentation happen: an operator and the admins of three sites, each with a home, a shell and data.

The names are those of the pages: the federation ``clinic``, its sites ``north``, ``south`` and ``lab``, the exchange folder ``/srv/cafe``.
Commands are the real ones, in processes of their own; small fakes stand for the models.
"""

from __future__ import annotations

import json
import random
import re
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline import enrolling
from tests.doc_pages import ROOT
from tests.shell import Shell
from tests.site_place import tiny_embedder
from tests.tiny_models import tiny_base

FEDERATION = "clinic"
LABELS = ("billing", "records", "travel")
FAKES = {
    "CAFE_MODELS": "tests.tiny_models:TinyModels",
    "CAFE_KIT_ENGINE": "tests.fakes:TinyEngine",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}
_BORROWED = """#!/bin/sh
# An environment that is there already, in place of one that takes minutes to make; and one that finds the tests' stand-ins.
[ "$1" = -I ] && shift
exec "{python}" "$@"
"""


class Operator:
    """The server: its home is the person's ``~/.cafe``, as nobody set CAFE_HOME. The public files of the task lie ready."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, around: Mapping[str, str] | None = None) -> None:
        self.folder, self.home, self.exchange = folder / "operator", folder / "operator" / ".cafe", folder / "srv-cafe"
        self.folder.mkdir()
        patch.setenv("CAFE_HOME", str(self.home))
        (self.folder / ".venv" / "bin").mkdir(parents=True)
        (self.folder / ".venv" / "bin" / "cafe").symlink_to(Path(sys.executable).with_name("cafe"))
        found = {"PATH": f"{self.folder}/.venv/bin:/usr/bin:/bin", **(around or {})}
        self.shell = Shell(self.folder, folder / "operator's notes", FAKES | found)
        self.admins: dict[str, Admin] = {}
        (self.folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
        write_records(self.folder / "test.jsonl", "test", 9)

    def sets_up(self, privacy: str = "off") -> None:
        """The federation without sites, by hand; small."""
        self.exchange.mkdir()
        folder = self.home / "federations" / FEDERATION
        folder.mkdir(parents=True)
        task = "{kind: classification, description: which desk a patient's message goes to, labels: labels.txt}"
        (folder / "federation.yaml").write_text(f"name: {FEDERATION}\ntask: {task}\ntest: test.jsonl\nsites: []\nprivacy: {privacy}\n")
        for name in ("labels.txt", "test.jsonl"):
            (folder / name).write_text((self.folder / name).read_text())
        self.makes_it_small()

    def makes_it_small(self, file: Path | None = None) -> None:
        """The models of the federation are replaced by stand-ins, and its rounds are few."""
        file = file or self.home / "federations" / FEDERATION / "federation.yaml"
        models = f"base_model: {tiny_base(self.folder / 'base')}\nembedder: {tiny_embedder(self.folder / 'embedder')}\n"
        stage1 = "stage1: {rounds: 2, candidates_per_label: 4, survivors_per_label: 2, synthetic_per_label: 6}\n"
        kept = re.sub(r"^(base_model|embedder|stage1|stage2):.*\n", "", file.read_text(), flags=re.MULTILINE)
        file.write_text(f"{kept}{models}{stage1}stage2: {{rounds: 2, lora_rank: 2, steps: 2}}\n")

    def hands_over(self, site: str, code: str) -> Admin:
        """Zip and code, by two ways."""
        self.admins[site] = Admin(self.folder.parent, site, self.home / "kits" / FEDERATION / f"cafe-site-{FEDERATION}-{site}.zip", code)
        return self.admins[site]

    def lets_in(self, site: str, said: str) -> None:
        """The words on the site's screen were read to him by telephone."""
        enrolling.received(FEDERATION)
        enrolling.approve(enrolling.find(site).serial, words(said), "the operator")

    def ends(self, seconds: float = 20) -> list[str]:
        """End what is still at work; what runs on all the same."""
        for person in (self, *self.admins.values()):
            person.shell.close()
        until = time.monotonic() + seconds
        while (left := self._processes()) and time.monotonic() < until:
            time.sleep(0.2)
        return left

    def _processes(self) -> list[str]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("HOME", "").startswith(str(self.folder.parent)):
                    found.append(" ".join(process.cmdline()))
        return found


def words(said: str) -> str:
    """The four words on a site's screen."""
    return re.findall(r"four words: (\S+)", said)[-1]


class Admin:
    """A site: the kit's zip came by mail and lies in the home, beside the data; the code by telephone."""

    def __init__(self, folder: Path, site: str, zip: Path, code: str) -> None:
        self.site, self.code, self.kit = site, code, zip.stem
        self.folder = folder / f"Klinik {site} ü"
        self.folder.mkdir()
        (self.folder / zip.name).write_bytes(zip.read_bytes())
        write_records(self.folder / "notes.csv", site, 12)
        self.home = self.folder / ".cafe-site" / FEDERATION
        self.shell = Shell(self.folder, folder / f"{site}'s notes", FAKES | {"PATH": "/usr/bin:/bin"})

    def borrows_an_environment(self) -> None:
        """What the launcher would set up at its first command: here the tests' own, marked as the kit's."""
        (launcher,) = self.folder.glob("cafe-site-*/cafe-site")
        mark = re.search(r'\)" = "([0-9a-f]{64})"', launcher.read_text())
        assert mark
        venv = self.home / "venv"
        (venv / "bin").mkdir(parents=True)
        for made in (self.home.parent, self.home):
            made.chmod(0o700)
        python = venv / "bin" / "python"
        python.write_text(_BORROWED.format(python=sys.executable))
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        (venv / ".cafe-kit").write_text(mark[1] + "\n")

    def unzips(self) -> None:
        self.shell.run(f"unzip -q {self.kit}.zip && cd {self.kit}")
        self.borrows_an_environment()


def write_records(path: Path, seed: str, number: int, label: str = "label") -> None:
    """Invented records with the columns that the pages name: ``message`` and ``department`` in a CSV, the roles in JSON lines."""
    rng = random.Random(seed)
    rows = [(f"{rng.choice(LABELS)} question {rng.random():.9f}", LABELS[i % len(LABELS)]) for i in range(number)]
    if path.suffix == ".csv":
        path.write_text("message,department\n" + "".join(f"{text},{answer}\n" for text, answer in rows))
    else:
        path.write_text("".join(json.dumps({"text": text, label: answer}) + "\n" for text, answer in rows))
