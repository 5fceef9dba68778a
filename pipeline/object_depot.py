"""Where an order's inputs wait for a site of another machine, and where its body waits for us: in an object store, reached by links.

Knows keys, links and how long they live. Does not know orders, and opens no body. Everything of a run lies below ``runs/<run>/``: inputs
under their content's hash, put there once however many sites fetch them, and each body under its order and its own hash. Models lie below
``models/``, for all runs.
"""

from __future__ import annotations

import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cafe_kit import parcels
from cafe_kit.errors import CafeError
from cafe_kit.orders import Blob

from pipeline.home import home
from server_store.errors import StoreError
from server_store.site_kits import SiteKit

if TYPE_CHECKING:
    from server_store.object_store import ObjectStore

LINK_S = 15 * 60  # long enough to begin, short for whoever finds one in a log
MODELS = "models/"
_GONE, _OTHER = "CAFE-691", "CAFE-692"


class ObjectDepot:
    """The depot of one run. One instance serves all its sites, from several threads.

    Raises:
        CafeError: of every method, with the codes of the object store (CAFE-683 to 695).
    """

    def __init__(self, store: ObjectStore, run: str) -> None:
        self._store, self._run = store, run
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._tidied = False

    def offer(self, kit: SiteKit, blob: Blob, path: Path, shared: bool = False, anew: bool = False) -> str:
        """A link by which this site fetches the input; what is not in the store is put there first. A folder goes as a parcel.

        ``anew``: put in any case. What a store says of an object was noted with it, and is no proof of its bytes.
        """
        folder = path.is_dir()
        key = f"{MODELS}{blob.sha256}.tar" if folder and shared else self._input(blob, folder=folder)
        with _told(), self._locks[key]:
            size = parcels.size_of(path) if folder else blob.size
            if anew or not self._store.holds(key, blob.sha256, size):
                self._tidy()
                if folder:
                    self._put_folder(key, blob, path)
                else:
                    self._store.put_file(key, path, blob.sha256)
            return self._store.url_get(key, LINK_S)

    def withdraw(self, kit: SiteKit, blob: Blob) -> None:
        """Delete the input; whoever needs it again is offered it anew."""
        with _told():
            self._store.delete(self._input(blob, folder=False))

    def place(self, kit: SiteKit, order_hash: str, body: Blob | None) -> str:
        """A link by which the site puts exactly this body; "" until its size is known, since the size is part of what is signed."""
        if body is None:
            return ""
        with _told():
            return self._store.url_put(self._body(order_hash, body), body.size, LINK_S)

    def collect(self, kit: SiteKit, order_hash: str, body: Blob, target: Path) -> None:
        """Bring the body to ``target``, which exists only when size and SHA-256 are right. Raises CAFE-461, 462."""
        try:
            self._store.get(self._body(order_hash, body), target, body.sha256, body.size)
        except StoreError as error:
            if error.code == _GONE:
                raise CafeError("CAFE-461", "The body is not in the object store.", "The order is sent again.") from None
            if error.code == _OTHER:
                raise CafeError("CAFE-462", "The body is not the one that the reply names (hash or size differ).", error.hint) from None
            raise CafeError(error.code, error.message, error.hint) from None

    def clear(self, kit: SiteKit, order_hash: str) -> None:
        """Delete every body of this order."""
        with _told():
            for one in list(self._store.list(f"runs/{self._run}/{order_hash}/")):
                self._store.delete(one.key)

    def sweep(self) -> int:
        """Delete whatever this run has left in the store, uploads that never ended too; returns how many objects."""
        return _swept(self._store, f"runs/{self._run}/")

    def _input(self, blob: Blob, *, folder: bool) -> str:
        return f"runs/{self._run}/inputs/{blob.sha256}{'.tar' if folder else ''}"

    def _body(self, order_hash: str, body: Blob) -> str:
        return f"runs/{self._run}/{order_hash}/{body.sha256}"

    def _put_folder(self, key: str, blob: Blob, folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=home("parcels")) as work:  # beside the models: it is as large as they are
            parcels.pack(folder, Path(work, "parcel.tar"))
            self._store.put_file(key, Path(work, "parcel.tar"), blob.sha256)

    def _tidy(self) -> None:
        """Once: parts of uploads that a killed worker left, of any run."""
        if not self._tidied:
            self._tidied = True
            with suppress(StoreError):  # not every server can; ``cafe storage check`` says so
                self._store.abort_stale_uploads()


def sweep_models(store: ObjectStore) -> int:
    """Delete the models that were handed out; the next run that needs one puts it there again. Returns how many."""
    return _swept(store, MODELS)


def _swept(store: ObjectStore, prefix: str) -> int:
    with _told():
        found = [one.key for one in store.list(prefix)]
        for key in found:
            store.delete(key)
        store.abort_stale_uploads(timedelta(0), prefix)
    return len(found)


@contextmanager
def _told() -> Iterator[None]:
    """The store's refusals, and the disk's, in the form in which everybody here hears them."""
    try:
        yield
    except StoreError as error:
        raise CafeError(error.code, error.message, error.hint) from None
    except OSError as error:
        raise CafeError(
            "CAFE-652", f"A file of this run cannot be read or packed ({error.strerror}).", "Look at disk and folder."
        ) from None
