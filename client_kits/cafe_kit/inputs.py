"""What an order refers to: files and folders, known by hash and size before a byte of them is used.

Knows where they may come from: a path, or a link to an object store. Does not know what is inside. What ``fetch`` and ``fetch_folder``
return was checked, whatever the way.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cafe_kit import links
from cafe_kit.errors import CafeError
from cafe_kit.hashes import hash_file, hash_folder, size_of
from cafe_kit.orders import Blob
from cafe_kit.shelf import Shelf

__all__ = ["fetch", "fetch_folder", "hash_file", "hash_folder"]


def fetch(name: str, where: str, blob: Blob, longest_s: float = links.LONGEST_S) -> bytes:
    """The bytes of input ``name``, read once and checked against ``blob``; what comes by a link is in memory alone.

    Raises:
        CafeError: CAFE-106 when it cannot be read, CAFE-107 when hash or size differ; of a link, CAFE-161 to 163.
    """
    if links.is_link(where):
        return links.fetch(where, blob, longest_s)
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


def fetch_folder(name: str, where: str, blob: Blob, shelf: Sequence[Path] = (), longest_s: float = links.LONGEST_S) -> Path:
    """The folder of input ``name`` (a model), checked against ``blob``; one on the ``shelf`` serves as well as the one meant.

    ``where``: the folder itself, a parcel of it (``parcels``), or a link to one; what comes in a parcel is kept in the shelf's last place.

    Raises:
        CafeError: CAFE-106 when it cannot be read, 107 when hash or size differ, 164 without room, 165; of a link, CAFE-161 to 163.
    """
    kept = Shelf(shelf) if shelf else None
    if kept and (found := kept.find(blob)) is not None:
        return found
    try:
        if kept and links.is_link(where):
            return kept.fetch(where, blob, longest_s)
        if kept and Path(where).is_file():
            return kept.take(Path(where), blob)
        folder = Path(where)
        if not folder.is_absolute():
            raise _missing(name)
        same = size_of(folder) == blob.size and hash_folder(folder) == blob  # the size first: a path may lead to a whole disk
    except (OSError, ValueError):
        raise _missing(name) from None
    if not same:
        raise _different(name)
    return folder


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
