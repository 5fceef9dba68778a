"""A folder of files (a model, an adapter) as one file that travels: a plain tar, the same bytes for the same files.

Knows names, sizes and the one shape of header that ``pack`` writes; any other (links, devices, owners, extensions) is refused, so a
parcel can bring nothing but files. Does not know what is in them: whoever unpacks one compares the folder's hash before using it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cafe_kit.errors import CafeError
from cafe_kit.hashes import files_below
from cafe_kit.orders import Blob

MAX_FILES = 10_000
_MOST_NAME = 100  # bytes, all that one header holds
_BLOCK, _RECORD, _CHUNK = 512, 10_240, 2**20
_PART = re.compile(r"[^\x00-\x1f\x7f\\:/]+")


def largest(size: int) -> int:
    """No parcel of a folder with ``size`` bytes has more than this."""
    return size + MAX_FILES * 2 * _BLOCK + 2 * _RECORD


def size_of(folder: Path) -> int:
    """How large the parcel of a folder is, without packing it. Raises OSError."""
    sizes = [path.stat().st_size for _, path in files_below(folder)]
    whole = sum(_BLOCK + size + -size % _BLOCK for size in sizes) + 2 * _BLOCK
    return whole + -whole % _RECORD


def pack(folder: Path, target: Path) -> Blob:
    """Write the files below ``folder`` (as ``files_below`` finds them) into ``target``; returns hash and size of the parcel.

    Raises:
        CafeError: CAFE-165 for a name that cannot travel, or too many files. OSError: a file cannot be read or written, or changes.
    """
    files, digest = files_below(folder), hashlib.sha256()
    if not 0 < len(files) <= MAX_FILES or not all(_is_plain(name) for name, _ in files):
        raise _refused("a name that is too long, hidden or not printable, too many files, or none")
    with target.open("wb") as parcel:

        def write(data: bytes) -> None:
            digest.update(data)
            parcel.write(data)

        for name, path in files:
            with path.open("rb") as file:
                size = file.seek(0, io.SEEK_END)
                file.seek(0)
                write(_header(name, size))
                for chunk in _chunks(file, size):
                    write(chunk)
                write(bytes(-size % _BLOCK))
        write(bytes(2 * _BLOCK))
        write(bytes(-parcel.tell() % _RECORD))
        return Blob(digest.hexdigest(), parcel.tell())


def unpack(parcel: Path, folder: Path, size: int) -> None:
    """Write the files of ``parcel``, ``size`` bytes in all, into the new folder ``folder``.

    Every name and size is looked at before the first byte is written.

    Raises:
        CafeError: CAFE-165 for anything that ``pack`` does not write. OSError: the disk does not take them.
    """
    with parcel.open("rb") as source:
        entries = _entries(source, size)
        folder.mkdir(mode=0o700)
        for name, at, length in entries:
            source.seek(at)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                for chunk in _chunks(source, length):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())


def _entries(source: BinaryIO, size: int) -> list[tuple[str, int, int]]:
    """Name, place and length of every file in the parcel, all as they should be."""
    end, found, names = source.seek(0, io.SEEK_END), list[tuple[str, int, int]](), set[str]()
    source.seek(0)
    while (header := source.read(_BLOCK)) != bytes(_BLOCK):
        name, length = _read(header)
        at = source.tell()
        if (found and name <= found[-1][0]) or not names.isdisjoint(str(above) for above in PurePosixPath(name).parents):
            raise _refused("names twice, out of order, or a file where a folder has to be")
        names.add(name)
        found.append((name, at, length))
        if len(found) > MAX_FILES or length > size or at + length > end:
            raise _refused("too many files, or one that is larger than all should be")
        source.seek(at + length + -length % _BLOCK)
    rest = source.read(_RECORD + 1)
    if sum(length for _, _, length in found) != size or len(rest) > _RECORD or rest.strip(b"\0") or not found:
        raise _refused("other sizes than were announced, or something after its end")
    return found


def _read(header: bytes) -> tuple[str, int]:
    """Name and size of one file: a header that is not byte for byte what we write is none."""
    try:
        told = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        if _is_plain(told.name) and told.size >= 0 and _header(told.name, told.size) == header:
            return told.name, told.size
    except (tarfile.HeaderError, ValueError):
        pass
    raise _refused("an entry that is no plain file with a plain name")


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)  # no owner, no time
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _chunks(source: BinaryIO, size: int) -> Iterator[bytes]:
    """Exactly ``size`` bytes from where ``source`` is, some at a time."""
    while size:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise OSError("a file became shorter while it was read")
        size -= len(chunk)
        yield chunk


def _is_plain(name: str) -> bool:
    """A relative name that stays below its folder, without a part that begins with a dot."""
    parts = name.split("/")
    return len(name.encode(errors="replace")) <= _MOST_NAME and all(_PART.fullmatch(part) and part[0] != "." for part in parts)


def _refused(what: str) -> CafeError:
    return CafeError("CAFE-165", f"A parcel of files is not as agreed: it has {what}.", "Tell the operator; nothing of it was kept.")
