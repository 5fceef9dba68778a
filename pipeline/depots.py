"""Where an order's inputs wait for a site of another machine, and where its body waits for us: here, in a folder that both reach.

Knows blobs and places. Does not know orders, and opens no body. In an object store it is ``object_depot.ObjectDepot``.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Protocol

from cafe_kit import parcels
from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_file
from cafe_kit.orders import Blob

from pipeline.messengers import open_to_both, place
from server_store.site_kits import SiteKit

_INPUTS = "cafe-inputs"


class Depot(Protocol):
    """Bytes by reference, both ways."""

    def offer(self, kit: SiteKit, blob: Blob, path: Path, shared: bool = False, anew: bool = False) -> str:
        """Where this site fetches an input, a path or a URL. A folder travels as a parcel (``cafe_kit.parcels``); ``shared``: a model,
        which other runs want as well and which stays. ``anew``: what lies there is damaged and is replaced."""
        ...

    def withdraw(self, kit: SiteKit, blob: Blob) -> None:
        """The input is no longer needed by any site."""
        ...

    def place(self, kit: SiteKit, order_hash: str, body: Blob | None) -> str:
        """Where the site puts its body; "" where a URL has to wait until the body is known."""
        ...

    def collect(self, kit: SiteKit, order_hash: str, body: Blob, target: Path) -> None:
        """Bring the body to ``target``. Raises CafeError CAFE-461 (not there), CAFE-462 (other bytes)."""
        ...

    def clear(self, kit: SiteKit, order_hash: str) -> None:
        """Nothing of this body stays."""
        ...

    def sweep(self) -> int:
        """The run is over: delete what it has left on the way; how much that was."""
        ...


class FolderDepot:
    """Inputs in ``cafe-inputs/<sha256>`` of the exchange folder, bodies in the site's ``<serial>.site/bodies/<order hash>``."""

    def offer(self, kit: SiteKit, blob: Blob, path: Path, shared: bool = False, anew: bool = False) -> str:
        target = self._input(kit, blob, folder=path.is_dir())
        try:
            if anew or not target.exists():
                open_to_both(target.parent)
                beside = target.with_name(f".{target.name}.{os.getpid()}.part")
                if path.is_dir():
                    parcels.pack(path, beside)
                else:
                    shutil.copyfile(path, beside)
                beside.chmod(0o644)
                beside.replace(target)
        except OSError as error:
            raise CafeError(
                "CAFE-169",
                f"The exchange folder of {kit.site!r} cannot be written ({error.strerror}).",
                "Is it mounted, and has it room?",
            ) from None
        return str(target)

    def withdraw(self, kit: SiteKit, blob: Blob) -> None:
        self._input(kit, blob, folder=False).unlink(missing_ok=True)

    def place(self, kit: SiteKit, order_hash: str, body: Blob | None) -> str:
        return str(place(kit, "site", "bodies", order_hash))

    def collect(self, kit: SiteKit, order_hash: str, body: Blob, target: Path) -> None:
        source = place(kit, "site", "bodies", order_hash)
        beside = target.with_name(f".{target.name}.part")
        try:
            descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file, beside.open("wb") as out:
                state = os.fstat(descriptor)
                if not stat.S_ISREG(state.st_mode) or state.st_size != body.size:
                    raise _other()
                out.write(file.read(body.size))  # a file that grows meanwhile is not followed
            if hash_file(beside) != body.sha256:
                raise _other()
            beside.replace(target)
        except OSError:
            raise CafeError("CAFE-461", "The body is not in the exchange folder.", "The order is sent again.") from None
        finally:
            beside.unlink(missing_ok=True)

    def clear(self, kit: SiteKit, order_hash: str) -> None:
        # What lies in the site's own folder the site removes, as soon as the order is gone.
        return None

    def sweep(self) -> int:
        # Inputs are withdrawn after each round; an adapter stays for a site that is away.
        return 0

    def _input(self, kit: SiteKit, blob: Blob, *, folder: bool) -> Path:
        return Path(kit.exchange, _INPUTS, blob.sha256 + (".tar" if folder else ""))


def _other() -> CafeError:
    return CafeError("CAFE-462", "The body is not the one that the reply names (hash or size differ).", "The order is sent again.")
