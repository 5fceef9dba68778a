"""Files and folders by their SHA-256: what they are called everywhere.

Knows names, sizes and hashes. Does not know what is inside. The hash of a large folder is kept, in this process and, where somebody
gives a place for notes, over processes, for as long as names, sizes and times of change stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from cafe_kit.orders import Blob

_Marks = tuple[tuple[str, int, int, int], ...]
_known: dict[tuple[str, _Marks], Blob] = {}


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> list[tuple[str, Path]]:
    """The regular files below ``folder`` by name (POSIX, relative), sorted; names with a part that begins with a dot are left out.

    Raises:
        OSError: ``folder`` is none.
    """
    if not folder.is_dir():
        raise NotADirectoryError(str(folder))
    found = ((path.relative_to(folder), path) for path in folder.rglob("*") if path.is_file())
    return sorted((name.as_posix(), path) for name, path in found if not any(part.startswith(".") for part in name.parts))


def hash_folder(folder: Path, notes: Path | None = None) -> Blob:
    """One hash for a folder of files, as for a model: the same on every machine that holds the same files.

    SHA-256 over ``name NUL size NUL sha256 LF`` (UTF-8) of every file of ``files_below``. ``size`` is the sum of sizes in bytes.

    Args:
        notes: a folder in which the answer may be noted for other processes; whoever can write there can also write the models.

    Raises:
        OSError: a file cannot be read, or ``folder`` is none.
    """
    files = files_below(folder)
    marks = _marks(files)
    key = (str(folder.resolve()), marks)
    if key not in _known:
        noted = _noted(notes, key) if notes else None
        _known[key] = noted or _computed(files, marks)
        if notes and noted is None:
            _note(notes, key)
    return _known[key]


def size_of(folder: Path) -> int:
    """The sum of sizes that ``hash_folder`` would tell, without reading a file. Raises OSError."""
    return sum(path.stat().st_size for _, path in files_below(folder))


def _marks(files: list[tuple[str, Path]]) -> _Marks:
    states = ((name, path.stat()) for name, path in files)
    return tuple((name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states)


def _computed(files: list[tuple[str, Path]], marks: _Marks) -> Blob:
    digest = hashlib.sha256()
    for (name, path), (_, size, *_) in zip(files, marks, strict=True):
        digest.update(f"{name}\0{size}\0{hash_file(path)}\n".encode())
    return Blob(sha256=digest.hexdigest(), size=sum(size for _, size, *_ in marks))


def _noted(notes: Path, key: tuple[str, _Marks]) -> Blob | None:
    try:
        told = json.loads(_place(notes, key).read_bytes())
        same = told["marks"] == [list(mark) for mark in key[1]]
        return Blob(sha256=told["sha256"], size=told["size"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):  # a note is a convenience
        return None


def _note(notes: Path, key: tuple[str, _Marks]) -> None:
    blob, target = _known[key], _place(notes, key)
    beside = target.with_name(f".{os.getpid()}.part")
    with suppress(OSError):  # as where the shelf may only be read
        notes.mkdir(mode=0o700, exist_ok=True)
        beside.write_text(json.dumps({"marks": key[1], "sha256": blob.sha256, "size": blob.size}), encoding="utf-8")
        beside.replace(target)


def _place(notes: Path, key: tuple[str, _Marks]) -> Path:
    return notes / f"{hashlib.sha256(key[0].encode()).hexdigest()[:32]}.json"
