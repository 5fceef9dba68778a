"""How a model's folder comes to stand on this disk: whole or not at all, and made by one process at a time.

Knows the order that makes this so: built beside, synced, renamed, noted last. Does not know what is built.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_folder

Progress = Callable[[str, float | None], None]  # what is being done; share done in [0, 1], None where nobody can tell


def land(target: Path, need_bytes: int, build: Callable[[Path, int], Path], say: Progress) -> None:
    """Make the folder ``target`` unless it is here and undamaged.

    ``build(work, lock)`` makes the result somewhere inside ``work`` and returns its path; ``lock`` is handed to child
    processes, so that after a kill nobody starts again before the last child has gone. The note ``<target>.json`` is
    written last: its existence means that the folder is whole, its hash that it still is.
    """
    with _one_at_a_time(target, say) as lock:
        if is_whole(target):
            return
        work = target.with_name(target.name + ".partial")
        for old in (work, target):
            shutil.rmtree(old, ignore_errors=True)
        note(target).unlink(missing_ok=True)
        ask_for_room(target.parent, need_bytes)
        work.mkdir(mode=0o700)
        try:
            built = build(work, lock)
            _sync(built)
            built.rename(target)
            blob = hash_folder(target)
            _write_synced(note(target), json.dumps({"sha256": blob.sha256, "size": blob.size}) + "\n")
        except OSError as error:
            raise CafeError(
                "CAFE-672",
                f"{target.name} could not be set up: {error.strerror or error}.",
                "Make room or mend the disk, then run the same command again.",
            ) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)


def note(target: Path) -> Path:
    """Where the note of a landed folder lies."""
    return target.with_name(target.name + ".json")


def is_whole(target: Path) -> bool:
    """Whether the folder landed and has kept its hash."""
    try:
        noted = json.loads(note(target).read_text())
        return bool(target.is_dir() and hash_folder(target).sha256 == noted["sha256"])
    except (OSError, ValueError, KeyError):
        return False


def ask_for_room(folder: Path, need_bytes: int) -> None:
    """Refuse with CAFE-672 what the disk cannot hold, before it is begun."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise CafeError(
            "CAFE-672",
            f"The disk of {folder} has {free / 1e9:.1f} GB free; {need_bytes / 1e9:.1f} GB are needed.",
            "Make room, or set CAFE_HOME to a folder on a larger disk.",
        )


@contextmanager
def _one_at_a_time(target: Path, say: Progress) -> Iterator[int]:
    """Hold the lock of ``target``; the kernel lets go of it when this process and its children are gone."""
    with target.with_name(target.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of the same model", None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_path(path)


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    _sync_path(path.parent)
