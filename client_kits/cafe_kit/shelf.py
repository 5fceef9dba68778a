"""Folders of models and adapters on this machine, found by their hash, and new ones brought from an object store or out of a parcel.

Knows hashes, room on the disk, and that a folder stands under its hash only when it is whole. Does not know what is in it. A fetch of
many gigabytes that was cut goes on where it ended, also in another process and by another link.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cafe_kit import links, parcels
from cafe_kit.errors import CafeError
from cafe_kit.hashes import hash_folder, size_of
from cafe_kit.orders import Blob

_NOTES = ".hashes"
_FORGOTTEN_S = 7 * 24 * 3600.0  # what was begun and not gone on with for so long goes
_SPARE = 256 * 2**20  # bytes that are left to others


class Shelf:
    """The folders ``places``; what is new is kept in the last one."""

    def __init__(self, places: Sequence[Path]) -> None:
        self._places, self._last = [place for place in places if place.is_dir()], places[-1]

    def find(self, blob: Blob) -> Path | None:
        """A folder with this hash."""
        named = [place / blob.sha256 for place in self._places]
        others = (folder for place in self._places for folder in sorted(place.iterdir()) if not folder.name.startswith("."))
        for folder in [*named, *others]:
            with suppress(OSError):  # one that is being made, or that may not be read, is not the one
                if folder.is_dir() and size_of(folder) == blob.size and hash_folder(folder, self._last / _NOTES) == blob:
                    return folder
        return None

    def fetch(self, url: str, blob: Blob, longest_s: float) -> Path:
        """The folder that a link's parcel holds.

        Raises:
            CafeError: what ``links.receive`` and ``take`` raise; CAFE-164 where the disk has no room.
        """
        with self._alone(blob):
            if (found := self.find(blob)) is not None:  # another process was first
                return found
            part = self._last / f".{blob.sha256}.tar.part"
            self._ask_for_room(blob, part.stat().st_size if part.exists() else 0)
            self._receive(url, part, blob, longest_s)
            try:
                return self._unpacked(part, blob, mine=True)
            except CafeError:  # damaged on its way, or what was begun before was not a beginning of this: once more, from the beginning
                self._receive(url, part, blob, longest_s)
                return self._unpacked(part, blob, mine=True)

    def take(self, parcel: Path, blob: Blob) -> Path:
        """The folder that a parcel on this machine holds.

        Raises:
            CafeError: CAFE-165 (no parcel of ours), 107 (other files), 164 (no room). OSError.
        """
        with self._alone(blob):
            self._ask_for_room(blob, parcel.stat().st_size)
            return self.find(blob) or self._unpacked(parcel, blob, mine=False)

    def _receive(self, url: str, part: Path, blob: Blob, longest_s: float) -> None:
        with part.open("ab+") as file:
            links.receive(url, file, parcels.largest(blob.size), longest_s)
            file.flush()

    def _unpacked(self, parcel: Path, blob: Blob, *, mine: bool) -> Path:
        """Under its hash, when it has it. A parcel of ours then goes, as does one that is no good; a full disk leaves it for later."""
        target, beside = self._last / blob.sha256, self._last / f".{blob.sha256}.new"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            parcels.unpack(parcel, beside, blob.size)
            if hash_folder(beside) != blob:
                raise CafeError("CAFE-107", "A parcel holds other files than the order names.", "Ask the operator to send the order again.")
            shutil.rmtree(target, ignore_errors=True)  # one that stands there and was not found is damaged
            beside.rename(target)
        except CafeError:
            if mine:
                parcel.unlink()
            raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        if mine:
            parcel.unlink()
        return target

    def _ask_for_room(self, blob: Blob, there: int) -> None:
        free, need = shutil.disk_usage(self._last).free, 2 * blob.size - min(there, blob.size) + _SPARE
        if free < need:
            raise _no_room(f"{need / 1e9:.1f} GB are wanted, {free / 1e9:.1f} are free")

    @contextmanager
    def _alone(self, blob: Blob) -> Iterator[None]:
        """One process at a time brings this folder; the kernel lets go of the lock when it ends, however it ends."""
        self._last.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._last not in self._places:
            self._places.append(self._last)
        self._forget_what_was_given_up()
        with (self._last / f".{blob.sha256}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            except OSError as error:
                if error.errno in links.DISK:
                    raise _no_room(error.strerror or "the disk refused it") from None
                raise

    def _forget_what_was_given_up(self) -> None:
        for part in self._last.glob(".*.tar.part"):
            with suppress(OSError):
                if time.time() - part.stat().st_mtime > _FORGOTTEN_S:
                    part.unlink()


def _no_room(why: str) -> CafeError:
    return CafeError(
        "CAFE-164",
        f"What the order needs does not fit on the disk of the site's folder: {why}.",
        "Make room, or move the site's folder (CAFE_SITE_HOME) to a larger disk; then the order comes again.",
    )
