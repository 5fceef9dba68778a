"""A folder of files (a model, an adapter) as one file that travels: an uncompressed tar, the same bytes for the same files.

Knows names, sizes and the shape of a tar. Does not know what is in the files; whoever unpacks one compares the folder's hash
(``inputs.hash_folder``) before anything is used.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from cafe_kit.errors import CafeError
from cafe_kit.orders import Blob

MAX_FILES = 10_000
_NAME = re.compile(r"[^\x00-\x1f\x7f\\:]{1,200}")


def pack(folder: Path, target: Path) -> Blob:
    """Write the regular files below ``folder`` (no name that begins with a dot) into ``target``: sorted, one owner, one time.

    Raises:
        OSError: a file cannot be read or written.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as parcel:
        for name in names:
            if not any(part.startswith(".") for part in PurePosixPath(name).parts):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = (folder / name).stat().st_size, 0o644
                with (folder / name).open("rb") as file:
                    parcel.addfile(entry, file)
    with target.open("rb") as file:
        return Blob(hashlib.file_digest(file, "sha256").hexdigest(), target.stat().st_size)


def unpack(parcel: Path, folder: Path, most: int) -> None:
    """Write the files of ``parcel``, at most ``most`` bytes in all, into the new folder ``folder``.

    Every name and size is looked at before the first byte is written.

    Raises:
        CafeError: CAFE-107 for anything but plain files with plain names that fit.
        OSError: the disk does not take them.
    """
    try:
        with tarfile.open(parcel, "r:") as source:
            entries = []
            for entry in source:
                entries.append(entry)
                if len(entries) > MAX_FILES:
                    raise _refused()
            _check(entries, most)
            folder.mkdir(mode=0o700)
            for entry in entries:
                target = folder / entry.name
                target.parent.mkdir(parents=True, exist_ok=True)
                inside = source.extractfile(entry)
                assert inside is not None
                with target.open("xb") as file:
                    shutil.copyfileobj(inside, file)
                    file.flush()
                    os.fsync(file.fileno())
    except (tarfile.TarError, EOFError, ValueError):
        raise _refused() from None


def _check(entries: list[tarfile.TarInfo], most: int) -> None:
    names = [entry.name for entry in entries]
    plain = all(entry.isreg() and not entry.issparse() and _is_plain(entry.name) for entry in entries)
    if not entries or not plain or len(set(names)) != len(names) or sum(entry.size for entry in entries) > most:
        raise _refused()


def _is_plain(name: str) -> bool:
    """A relative name of letters that stays below its folder, without a part that begins with a dot."""
    parts = name.split("/")
    return all(_NAME.fullmatch(part) and not part.startswith(".") for part in parts)


def _refused() -> CafeError:
    return CafeError("CAFE-107", "A parcel of files is not as agreed: other names, kinds or sizes.", "The order is sent again.")
