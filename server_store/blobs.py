"""Whole files or nothing, named by their content. Knows bytes; not what they mean.

A blob is written beside, flushed to the disk, then renamed: it exists before any row may name it. The same few verbs
fit an object store.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from server_store.errors import StoreError


class Blobs:
    """Content-addressed files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, sha256: str) -> Path:
        """Where the blob of this hash lies (or would lie)."""
        return self.folder / sha256

    def put(self, data: bytes) -> str:
        """Keep the bytes for good; returns their SHA-256. Raises StoreError CAFE-652 when the disk is full."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        if not path.exists():
            write_whole(path, data)
        for folder in (self.folder, self.folder.parent):  # also what an earlier put was killed over
            _sync(folder)
        return sha256

    def get(self, sha256: str) -> bytes:
        """The bytes, checked against their name. Raises StoreError CAFE-653 when missing or altered."""
        try:
            data = self.path(sha256).read_bytes()
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(
                "CAFE-653",
                f"A stored file of this run is missing or altered ({sha256[:12]}…).",
                "Restore the run's folder from a backup, or start the run anew.",
            )
        return data


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, fsync, rename, fsync the folder: after a power cut the file is whole or absent."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # of two writers at once each has its own
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise _refused(error) from error
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise _refused(error) from error


def _refused(error: OSError) -> StoreError:
    return StoreError(
        "CAFE-652",
        f"The disk refused a file ({error.strerror or type(error).__name__}).",
        "Make room on the disk, then resume the run; nothing was lost.",
    )
