"""The first commands at a site, for real: the kit's launcher makes an environment of its own out of the package index. Minutes.

The other stories hand the launcher an environment that is there already.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import enrolling
from tests.doc_pages import Story, missing
from tests.doc_places import FEDERATION, Operator
from tests.shell import Shell

NO_GPU = "docs/site-no-gpu.md"


@pytest.mark.system
def test_the_first_commands_of_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Operator(tmp_path, monkeypatch)
    operator.sets_up()
    issued = enrolling.issue(FEDERATION, "north", "cpu", exchange=operator.exchange)
    home = tmp_path / "Klinik ü"
    home.mkdir()
    (home / issued.zip.name).write_bytes(issued.zip.read_bytes())
    shell = Shell(home, tmp_path / "notes", {"PATH": "/usr/bin:/bin", "CAFE_PYTHON": sys.executable})
    shell.run(Story(NO_GPU, "Unzip the kit and see whether it is genuine").next("unzip -q").text)
    block = Story(NO_GPU, "Is this machine fit?").next("./cafe-site doctor")
    said = shell.run(block.text, seconds=900)
    assert "Setting up in" in said and missing(block.prints, said) == [], said
    packages = next((home / ".cafe-site" / FEDERATION / "venv" / "lib").glob("python3*/site-packages"))
    assert not (packages / "torch").exists() and not (packages / "pipeline").exists()
    assert "Setting up" not in shell.run("./cafe-site status", status=1)  # once; and it has not joined
