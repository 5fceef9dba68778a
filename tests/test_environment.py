"""The set-up of .venv, on a small project of its own: a real venv, a real pip, an index on this disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose only requirement is a tiny wheel."""
    project = tmp_path / "project"
    for folder in ("pipeline", "client_kits", "index"):
        (project / folder).mkdir(parents=True)
    shutil.copy(ROOT / "pipeline" / "environment.py", project / "pipeline")
    for name in ("pipeline/__init__.py", "pyproject.toml", "client_kits/pyproject.toml"):
        (project / name).touch()
    (project / "requirements.txt").write_text("tiny-thing==1.0\n")
    with zipfile.ZipFile(project / "index" / "tiny_thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_thing.py", "")
        wheel.writestr("tiny_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        wheel.writestr("tiny_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_thing-1.0.dist-info/RECORD", "")
    return project


def set_up(project: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.environment"]
    return subprocess.run(command, cwd=project, env={**os.environ, **env}, capture_output=True, text=True, timeout=300, check=False)


def installed(project: Path) -> bool:
    python = project / ".venv" / "bin" / "python"
    return python.exists() and subprocess.run([python, "-c", "import tiny_thing"], capture_output=True, check=False).returncode == 0


@pytest.mark.heavy
def test_set_up_interrupted_set_up_and_nothing_to_do(project: Path) -> None:
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project / "index")}
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}

    done = set_up(project, **offline)
    assert done.returncode == 1 and done.stderr.startswith("CAFE-673 The package index cannot be reached.")
    assert len(done.stderr.strip().splitlines()) == 1

    (project / ".venv" / "half-written").touch()  # what an interrupted installation leaves is not built upon
    done = set_up(project, **index)
    assert done.returncode == 0 and "tiny_thing-1.0" in done.stdout and installed(project)
    assert not (project / ".venv" / "half-written").exists()

    assert set_up(project, **offline).stdout == ""  # all in place: pip is not even asked

    (project / "requirements.txt").write_text("tiny-thing==2.0\n")
    os.utime(project / "requirements.txt", (2**31, 2**31))
    done = set_up(project, **index)
    assert done.returncode == 1 and done.stderr.startswith("CAFE-677")
