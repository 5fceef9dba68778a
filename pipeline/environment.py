"""Makes ``.venv`` from requirements.txt; every make target calls it first, and it ends at once when all is in place.

Standard library only, since it runs before anything is installed: ``python3 -m pipeline.environment [TORCH]``. Whole or not
at all: a set-up that was interrupted is noticed and begun anew, since pip cannot tell a half-written package from a whole one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
UNFINISHED = VENV / ".unfinished"  # stands while packages are written
INSTALLED = VENV / ".installed"
LOG = ROOT / ".venv" / "install.log"
SOURCES = tuple(ROOT / name for name in ("requirements.txt", "pyproject.toml", "client_kits/pyproject.toml"))
_ONE_MORE = ("Collecting", "Processing", "Obtaining")  # how pip begins to speak of a package
TORCH_INDEX = "https://download.pytorch.org/whl/"

# what pip's last words mean, and what to do; the first that fits is told
REASONS = (
    (("No space left",), "CAFE-672 The disk is full.", "Make room (4 GB)"),
    (
        ("connection broken", "Max retries", "NewConnectionError", "Temporary failure in name", "timed out", "IncompleteRead"),
        "CAFE-673 The package index cannot be reached.",
        "Connect the machine to the network, or point pip to a mirror (PIP_INDEX_URL)",
    ),
    (("",), "CAFE-677 pip could not install everything.", f"Read why in {LOG.relative_to(ROOT)}"),
)


def main(torch: str = "") -> int:
    """Set up ``.venv`` unless it is newer than what it is made from; returns 0, or 1 after one sentence.

    ``torch`` names one of PyTorch's own indexes ("cpu"); empty: the package index's build.
    """
    if sys.version_info < (3, 11):  # noqa: UP036 -- it may well be started by an older one
        version = ".".join(map(str, sys.version_info[:2]))
        return _told(f"CAFE-678 This is Python {version}; 3.11 or newer is needed. Name another, such as: make PYTHON=python3.12")
    with SOURCES[0].open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two commands at once: the second waits, then finds all in place
        if _in_place():
            return 0
        if UNFINISHED.exists():
            shutil.rmtree(VENV)
        VENV.mkdir(exist_ok=True)
        UNFINISHED.touch()
        if subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False).returncode:
            return _told("CAFE-679 Python could not make .venv. On Debian and Ubuntu: apt-get install python3-venv")
        if not all(_pip(lock.fileno(), *arguments) for arguments in _steps(torch)):
            return _told(_reason())
        UNFINISHED.unlink()
        INSTALLED.touch()
    return 0


def _in_place() -> bool:
    if UNFINISHED.exists() or not INSTALLED.exists():
        return False
    return all(INSTALLED.stat().st_mtime >= source.stat().st_mtime for source in SOURCES)


def _steps(torch: str) -> list[tuple[str, ...]]:
    pins = [line.strip() for line in SOURCES[0].read_text().splitlines()]
    own_torch = [("install", *(line for line in pins if line.startswith("torch==")), "--index-url", TORCH_INDEX + torch)]
    return [*(own_torch if torch else []), ("install", "-r", "requirements.txt"), ("check",)]


def _pip(lock: int, *arguments: str) -> bool:
    """Run pip with its words in the log, and one of them in a hundred on the screen. It holds the lock, should we be killed."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries=2", *arguments]
    begun, packages = time.monotonic(), 0
    pipe = subprocess.PIPE
    with (
        LOG.open("a") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True, pass_fds=(lock,)) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            log.write(line)
            log.flush()
            packages += line.startswith(_ONE_MORE)
            if line.startswith((*_ONE_MORE, "Installing collected")) or (line.lstrip().startswith("Downloading") and " MB)" in line):
                verb, what = line.lower().split()[:2]
                what = f"{packages} packages" if verb == "installing" else what.rpartition("/")[2]
                _say(f"setting up .venv, {time.monotonic() - begun:3.0f} s: {verb} {what}")
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    return pip.returncode == 0


def _say(text: str) -> None:
    """On a terminal one line that changes, in a log one line each."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\033[K{text[:width]}", end="", flush=True)
    else:
        print(text, flush=True)


def _reason() -> str:
    words = LOG.read_text(errors="replace")
    what, todo = next((what, todo) for signs, what, todo in REASONS if any(sign in words for sign in signs))
    return f"{what} {todo}, then run the same command again."


def _told(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        os._exit(130)
