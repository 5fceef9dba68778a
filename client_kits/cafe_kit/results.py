"""The finished adapter of a run, kept at the site: its folder under its hash, and the operator's signed order that names it.

Knows files and hashes. Does not know where they came from; whoever calls has checked the order's signature.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path

from cafe_kit.documents import write_whole
from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_folder
from cafe_kit.orders import Order, ResultParams

FOLDER = "adapters"
_NEEDED = {"adapter_config.json", "adapter_model.safetensors"}
_ALLOWED = {*_NEEDED, "README.md"}


def shelf(home: Path) -> Path:
    """Where adapters lie, made if it is not there.

    Raises:
        CafeError: CAFE-135.
    """
    place = home / FOLDER
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _disk(error) from None
    return place


def keep(home: Path, order: Order, signature: str, folder: Path) -> None:
    """Put the adapter into ``adapters/<hash>`` and the order into ``adapters/<run>.json``, each whole or not at all.

    Raises:
        CafeError: CAFE-348 when the folder is not the adapter that the order names, or holds what no adapter has; CAFE-135.
    """
    assert isinstance(order.params, ResultParams)
    place = shelf(home) / order.params.adapter
    beside = place.with_name(f".{uuid.uuid4().hex}.part")
    try:
        if not (place.is_dir() and _is_adapter(place, order.params.adapter)):
            _copy(folder, beside)
            shutil.rmtree(place, ignore_errors=True)  # also what was fetched to there and is no adapter
            if not _is_adapter(beside, order.params.adapter):
                raise _other()
            beside.rename(place)
        told = {"order": asdict(order), "signature": signature}
        write_whole(shelf(home) / f"{order.run}.json", json.dumps(told, ensure_ascii=False).encode())
    except OSError as error:
        raise _disk(error) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _copy(folder: Path, to: Path) -> None:
    """Regular files of the agreed names alone; a link is not followed."""
    names = {path.name for path in folder.iterdir()}
    if not _NEEDED <= names <= _ALLOWED or any(not path.is_file() or path.is_symlink() for path in folder.iterdir()):
        raise _other()
    to.mkdir(mode=0o700)
    for name in sorted(names):
        with (folder / name).open("rb") as source, (to / name).open("wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())


def _is_adapter(folder: Path, sha256: str) -> bool:
    names = {path.name for path in folder.iterdir()}
    return _NEEDED <= names <= _ALLOWED and hash_folder(folder).sha256 == sha256


def _other() -> CafeError:
    return CafeError(
        "CAFE-348", "What came is not the adapter that the order names, or holds other files.", "Ask the operator to send it again."
    )


def _disk(error: OSError) -> CafeError:
    return CafeError("CAFE-135", f"The site's disk did not take the adapter ({error.strerror}).", "Free disk space, then ask again.")
