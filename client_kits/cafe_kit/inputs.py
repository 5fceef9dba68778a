"""What an order refers to: files and folders, known by hash and size before a byte of them is used.

Knows: names, sizes, SHA-256. Does not know what is inside. To extend: other ways to fetch (URLs) come in ``fetch``;
what it returns was checked, whatever the way.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from cafe_kit.errors import CafeError
from cafe_kit.orders import Blob
from cafe_kit.parcels import unpack

_Marks = tuple[tuple[str, int, int], ...]
_known: dict[tuple[str, _Marks], Blob] = {}


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path) -> Blob:
    """One hash for a folder of files, as for a model: the same on every machine that holds the same files.

    SHA-256 over ``name NUL size NUL sha256 LF`` of every regular file below ``folder``, sorted by name (POSIX, relative,
    UTF-8); names with a part that begins with a dot are left out. ``size`` is the sum of sizes in bytes. The answer is
    kept in this process for as long as names, sizes and times of change stay as they are.

    Raises:
        OSError: a file cannot be read, or ``folder`` is none.
    """
    files = _files(folder)
    marks = tuple((name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files)
    key = (str(folder.resolve()), marks)
    if key not in _known:
        digest = hashlib.sha256()
        for (name, path), (_, size, _) in zip(files, marks, strict=True):
            digest.update(f"{name}\0{size}\0{hash_file(path)}\n".encode())
        _known[key] = Blob(sha256=digest.hexdigest(), size=sum(size for _, size, _ in marks))
    return _known[key]


def _files(folder: Path) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise NotADirectoryError(str(folder))
    found = ((path.relative_to(folder), path) for path in folder.rglob("*") if path.is_file())
    return sorted((name.as_posix(), path) for name, path in found if not any(part.startswith(".") for part in name.parts))


def fetch(name: str, where: str, blob: Blob) -> bytes:
    """The bytes of input ``name``, read once and checked against ``blob``.

    Raises:
        CafeError: CAFE-106 when it cannot be read, CAFE-107 when hash or size differ.
    """
    try:
        descriptor = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hang the site
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise _missing(name)
            if state.st_size != blob.size:
                raise _different(name)
            data = file.read(blob.size + 1)
    except (OSError, ValueError):
        raise _missing(name) from None
    if len(data) != blob.size or hashlib.sha256(data).hexdigest() != blob.sha256:
        raise _different(name)
    return data


def fetch_folder(name: str, where: str, blob: Blob, shelf: Sequence[Path] = ()) -> Path:
    """The folder of input ``name`` (a model), checked against ``blob``; one on the ``shelf`` serves as well as the one meant.

    Raises:
        CafeError: CAFE-106 when it cannot be read, CAFE-107 when hash or size differ.
    """
    for folder in (folder for place in shelf if place.is_dir() for folder in sorted(place.iterdir()) if folder.is_dir()):
        if hash_folder(folder) == blob:
            return folder
    try:
        folder = _unpacked(Path(where), blob, shelf[-1]) if shelf and Path(where).is_file() else Path(where)
        found = hash_folder(folder)
    except (OSError, ValueError):
        raise _missing(name) from None
    if found != blob:
        raise _different(name)
    return folder


def _unpacked(parcel: Path, blob: Blob, shelf: Path) -> Path:
    """The parcel's folder on the shelf, under the hash that it must have; another gets no name."""
    target = shelf / blob.sha256
    beside = shelf / f".{blob.sha256}.{os.getpid()}.part"
    try:
        shelf.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        unpack(parcel, beside, blob.size)
        if hash_folder(beside) == blob and not target.exists():
            beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _missing(name: str) -> CafeError:
    return CafeError(
        "CAFE-106",
        f"The input '{name}' is not where the order's transport says, or cannot be read.",
        "Ask the operator to send the order again.",
    )


def _different(name: str) -> CafeError:
    return CafeError(
        "CAFE-107",
        f"The input '{name}' is not the one that the order names: hash or size differ.",
        "It was damaged on the way or is another version; fetch it again.",
    )
