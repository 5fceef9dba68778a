"""The adapters that the operator sent: which run each is of, whether it is genuine, and a copy of it wherever the site wants one.

Knows ``adapters/`` of the site's folder, as the seat fills it (``results.py``). Trusts nothing there: signature and hash are checked at
every look. A copy is a PEFT folder, as transformers and vLLM load it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_folder
from cafe_kit.orders import MAX_BYTES, Order, ResultParams, parse, verify
from cafe_kit.site_folder import SiteSettings

_FOLDER = "adapters"
_NEEDED = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Adapter:
    """One that came. ``wrong``: why it must not be used, or None."""

    run: str
    sha256: str
    size: int
    folder: Path
    wrong: CafeError | None = None


def came(home: Path, settings: SiteSettings) -> list[Adapter]:
    """All that came, by run."""
    return [_look(path, home, settings) for path in sorted((home / _FOLDER).glob("*.json"))]


def one(home: Path, settings: SiteSettings, run: str | None) -> Adapter:
    """The adapter of a run, or the only one there is; genuine.

    Raises:
        CafeError: CAFE-119 when there is none, CAFE-120 when it is not as the operator signed it, CAFE-157 when it is not clear which.
    """
    found = [adapter for adapter in came(home, settings) if run in (None, adapter.run)]
    if not found:
        which = f" of run {run[:64]!r}" if run else ""
        raise CafeError("CAFE-119", f"No adapter{which} has come yet.", "It comes at the end of a run, while this site is at work.")
    if len(found) > 1:
        raise CafeError("CAFE-157", f"There are {len(found)} adapters.", f"Name one: --run {found[-1].run}")
    if found[0].wrong is not None:
        raise found[0].wrong
    return found[0]


def copy(adapter: Adapter, to: Path) -> Path:
    """Copy the PEFT folder to ``to``, which must not be there yet, and check the copy.

    Raises:
        CafeError: CAFE-160 when it cannot be written there, CAFE-120 when what was copied is not what was checked.
    """
    to = to.expanduser().absolute()
    if to.exists():
        raise CafeError("CAFE-160", "There is something at this place already.", "Name a folder that does not exist yet: --to FOLDER")
    try:
        to.mkdir(parents=True)
        for source in sorted(adapter.folder.iterdir()):
            if source.is_file() and not source.name.startswith("."):
                shutil.copyfile(source, to / source.name)
        if hash_folder(to).sha256 == adapter.sha256:
            return to
    except OSError as error:
        shutil.rmtree(to, ignore_errors=True)
        raise CafeError(
            "CAFE-160", f"The adapter cannot be written there ({error.strerror}).", "Name another folder: --to FOLDER"
        ) from None
    shutil.rmtree(to, ignore_errors=True)
    raise _other(adapter.run)


def _look(path: Path, home: Path, settings: SiteSettings) -> Adapter:
    run = path.stem
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(2 * MAX_BYTES))
        order = parse(Order, told["order"])
        verify(order, str(told["signature"]), Ed25519PublicKey.from_public_bytes(bytes.fromhex(settings.server.verify_key)))
        if not isinstance(order.params, ResultParams) or (order.run, order.site) != (run, settings.site):
            raise ValueError
        folder = home / _FOLDER / order.params.adapter
        blob = hash_folder(folder)
        if blob.sha256 != order.params.adapter or not all((folder / name).is_file() for name in _NEEDED):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CafeError):
        return Adapter(run, "", 0, path, _other(run))
    return Adapter(run, blob.sha256, blob.size, folder)


def _other(run: str) -> CafeError:
    return CafeError(
        "CAFE-120",
        f"What came as the adapter of run {run[:64]!r} is not what the operator signed, or was altered since.",
        "Ask the operator to hand it over again.",
    )
