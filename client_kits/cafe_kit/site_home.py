"""The folder that a site keeps for itself: its key and its own log.

Knows: where things lie and that nobody else may read them. Does not know orders, records or budgets. The log holds
what happened and where in the code, never an exception's text: that text may quote a record.
"""

from __future__ import annotations

import json
import os
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cafe_kit.errors import CafeError
from cafe_kit.release import make_folder, sync_folder

LOG_BYTES = 5_000_000  # then the log moves to site.log.1, which is overwritten


def make_private(folder: Path) -> None:
    """The folder, mode 0700, made when it is not there. Raises CAFE-133 when it cannot be, or others can read it."""
    try:
        make_folder(folder)
        state = folder.stat()
    except OSError as error:
        raise CafeError(
            "CAFE-133",
            f"The site's folder cannot be made or opened ({error.strerror}).",
            "Choose a folder that this user can write to.",
        ) from None
    if state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise CafeError(
            "CAFE-133",
            "The site's folder belongs to somebody else or can be read by others.",
            "Make it the user's own and private: chmod 700.",
        )


class SiteHome:
    """A site's own folder, mode 0700, made when it is not there; so is its key, but never another one for a site that has joined.

    Raises:
        CafeError: CAFE-133 when the folder cannot be made or others can read it; CAFE-134 when its key cannot be read or made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_private(folder)
        self.key = self._own_key()

    @property
    def verify_key(self) -> str:
        """The public half of the site's key, raw hexadecimal: what the server knows the site by."""
        return self.key.public_key().public_bytes_raw().hex()

    @property
    def seal_key(self) -> X25519PrivateKey:
        """What is meant for this site alone is sealed to its public half; made from the site's key, so that there is one secret."""
        seed = HKDF(hashes.SHA256(), 32, salt=None, info=b"cafe-kit seal key").derive(self.key.private_bytes_raw())
        return X25519PrivateKey.from_private_bytes(seed)

    def _own_key(self) -> Ed25519PrivateKey:
        path = self.folder / "site.key"
        try:
            if not path.exists():
                if (self.folder / "site.toml").exists():
                    raise CafeError("CAFE-134", "The site's key is gone.", "Restore site.key, or leave and join again.")
                self._make_key(path)
            return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
        except (OSError, ValueError):
            raise CafeError(
                "CAFE-134",
                "The site's key file cannot be read or made.",
                "Check the folder's rights and space; if the key was damaged, restore site.key from a backup.",
            ) from None

    def _make_key(self, path: Path) -> None:
        beside = path.with_name(f".site.key.{os.getpid()}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(Ed25519PrivateKey.generate().private_bytes_raw().hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(beside, path)  # the first process wins; a second one reads the first one's key
        except FileExistsError:
            pass
        finally:
            beside.unlink()
        sync_folder(self.folder)

    def log(self, event: str, error: BaseException | None = None, **facts: str | int | float) -> None:
        """One line of JSON in ``log/site.log``. Facts are public words and numbers; of an error only class and places are kept.

        A log that cannot be written stops nothing.
        """
        line: dict[str, object] = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts}
        if error is not None:
            frames = traceback.extract_tb(error.__traceback__)
            line["error"] = type(error).__name__
            line["at"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        path = self.folder / "log" / "site.log"
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            if path.exists() and path.stat().st_size > LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=True) + "\n")
