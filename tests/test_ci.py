"""CI has a strict eye on what is left out: the session of a small project with our conftest, in every colour."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTS = {
    "left_out": "import pytest\n@pytest.mark.skip(reason='no browser')\ndef test_a(): pass\ndef test_b(): pass\n",
    "whole_file": "import pytest\npytest.skip('no browser', allow_module_level=True)\n",
    "gpu": "import pytest\n@pytest.mark.skipif(True, reason='GPU needed')\ndef test_a(): pass\ndef test_b(): pass\n",
    "traced": "import pytest\npytest.skip('ptrace is forbidden here: strace', allow_module_level=True)\n",
    "soak": "import pytest\n@pytest.mark.soak\n@pytest.mark.skip(reason='long')\ndef test_a(): pass\ndef test_b(): pass\n",
    "expected": "import pytest\n@pytest.mark.xfail\ndef test_a(): assert False\n",
}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "ci", "workers", "code"),
    [
        ("left_out", "1", "0", 1),
        ("left_out", "1", "2", 1),
        ("left_out", "", "0", 0),
        ("whole_file", "1", "0", 1),
        ("gpu", "1", "0", 0),
        ("traced", "1", "0", 0),
        ("soak", "1", "0", 0),
        ("expected", "1", "0", 0),
    ],
)
def test_what_is_left_out_in_ci_is_red(tmp_path: Path, name: str, ci: str, workers: str, code: int) -> None:
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['soak: long']\n")
    (tmp_path / "test_it.py").write_text(TESTS[name] + "\n")
    (tmp_path / "test_other.py").write_text("def test_c(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "CAFE_CI": ci, "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("no browser" in done.stdout.partition("left out although CAFE_CI=1")[2]) == bool(code)
