"""*Check the connection*, for pages: ``cafe site doctor`` in a process of its own, what it found kept beside the kit.

Knows that a check may take a minute, that two tabs may ask for it at once, and that the console may end meanwhile: the process goes on,
and what it wrote is read at the next look. What is looked at is decided in ``pipeline/site_doctor.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline.home import home
from pipeline.site_doctor import Link
from server_store.site_kits import SiteKit

ROOT = Path(__file__).resolve().parents[1]
_LONGEST_S = 300.0
_MOST = 64 * 1024
_LINKS = TypeAdapter(list[Link])


@dataclass(frozen=True)
class Checked:
    """What the last check found, and when it ended."""

    links: list[Link]
    time: float

    @property
    def ok(self) -> bool:
        return bool(self.links) and all(link.ok for link in self.links)

    @property
    def broken(self) -> Link | None:
        return next((link for link in self.links if link.state == "broken"), None)


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    began: float


_lock = threading.Lock()
_running: dict[Path, _Running] = {}


def begin(kit: SiteKit) -> None:
    """Start a check of this kit's site, unless one is at work."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    with _lock:
        if _settled(kit):
            return
        with _file(kit, "part").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "site", "doctor", kit.serial, "--format", "json"],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        _running[_file(kit, "json")] = _Running(process, time.time())


def since(kit: SiteKit) -> float | None:
    """When the check that is at work began; None where none is."""
    with _lock:
        found = _settled(kit)
    return found.began if found else None


def last(kit: SiteKit) -> Checked | None:
    """What the last check found."""
    file = _file(kit, "json")
    try:
        with file.open("rb") as found:
            return Checked(_LINKS.validate_json(found.read(_MOST)), file.stat().st_mtime)
    except (OSError, ValidationError):
        return None


def _settled(kit: SiteKit) -> _Running | None:
    """The check at work; one that has ended has left its findings by now."""
    file, part = _file(kit, "json"), _file(kit, "part")
    found = _running.get(file)
    if found is not None:
        if found.process.poll() is None and time.time() - found.began < _LONGEST_S:
            return found
        found.process.kill()
        found.process.wait()
        del _running[file]
        if not _whole(part):
            silent = Link("check", "broken", "The check gave no answer.", "Run `cafe site doctor` in a terminal; it says more.", "CAFE-697")
            part.write_bytes(_LINKS.dump_json([silent]))
        part.replace(file)
    elif _whole(part):  # of a console that has ended meanwhile
        part.replace(file)
    return None


def _whole(part: Path) -> bool:
    try:
        return isinstance(json.loads(part.read_bytes()), list)
    except (OSError, ValueError):
        return False


def _file(kit: SiteKit, suffix: str) -> Path:
    return home("kits", kit.federation) / f"{kit.serial}.check.{suffix}"
