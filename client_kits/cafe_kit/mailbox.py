"""The site's end of a folder that both sides reach: orders lie in the server's part, answers and a sign of life go into the site's own.

Knows files, their sizes and modes. Does not know what an order asks (``answering.py``) and trusts no file: it may be anybody's. Perhaps
two Unix users share the folder: what the site puts there is readable for all, since it is public, sealed or noised.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from cafe_kit import limits
from cafe_kit.answering import MAX_MESSAGE, mail_folder, read_message
from cafe_kit.errors import CafeError
from cafe_kit.site_folder import SiteSettings
from cafe_kit.work import KIT_VERSION

ALIVE_EVERY_S = 3.0
GRACE_S = 60.0  # a body is kept so long after its order is gone: the server may be copying it
_MESSAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,150}\.json")


class Mailbox:
    """``<serial>.server`` and ``<serial>.site`` in the exchange folder."""

    def __init__(self, settings: SiteSettings) -> None:
        self._own = mail_folder(settings)
        self._orders = self._own.with_name(f"{settings.serial}.server") / "orders"

    def open(self) -> None:
        """Make the site's own part.

        Raises:
            CafeError: CAFE-118 when the exchange folder is not there, or the site's part of it is somebody else's.
        """
        try:
            for folder in (self._own, self._own / "answers", self._own / "bodies"):
                with suppress(FileExistsError):
                    folder.mkdir()
                state = folder.lstat()
                if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
                    raise PermissionError(None, "somebody else made this site's part of it")
                folder.chmod(0o755)
        except OSError as error:
            raise CafeError(
                "CAFE-118",
                f"The exchange folder cannot be used ({error.strerror}).",
                "Is it mounted, and may this account write there? site.toml names it.",
            ) from None

    def waiting(self) -> list[Path]:
        """Orders without an answer, the oldest first.

        Raises:
            OSError: the folder cannot be read just now.
        """
        names = self._names(self._orders) - {path.name for path in (self._own / "answers").iterdir()}
        found = []
        for name in names:
            with suppress(FileNotFoundError):
                found.append(((self._orders / name).lstat().st_mtime_ns, name))
        return [self._orders / name for _, name in sorted(found)]

    def read(self, path: Path) -> Any:
        """The message in a file.

        Raises:
            CafeError: CAFE-101 when it is no plain file, too large or no JSON.
            FileNotFoundError: it was taken back.
        """
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)  # neither a link nor a pipe
            with os.fdopen(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise IsADirectoryError
                return read_message(file.read(MAX_MESSAGE + 1))
        except FileNotFoundError:
            raise
        except OSError:
            raise CafeError("CAFE-101", "The message is no file that the site can read.", "Look at the exchange folder.") from None

    def put(self, order: Path, told: dict[str, Any]) -> None:
        """The answer to the order in this file; the body that it names becomes readable before it. Raises OSError."""
        with suppress(FileNotFoundError):
            self._body(told).chmod(0o644)
        self._write(self._own / "answers" / order.name, told, durable=True)

    def tidy(self) -> None:
        """Remove answers whose order is gone, and, a little later, bodies that no answer names. Raises OSError."""
        orders, answers, bodies = self._names(self._orders), self._own / "answers", self._own / "bodies"
        kept = set()
        for path in answers.iterdir():
            body = self._body(_json(path))
            if path.name in orders:
                kept.add(body.name)
                continue
            with suppress(FileNotFoundError):
                os.utime(body)
            path.unlink(missing_ok=True)
        for path in bodies.iterdir():
            if path.name not in kept and time.time() - path.lstat().st_mtime > GRACE_S:
                path.unlink(missing_ok=True)

    def show(self, alive: dict[str, Any]) -> None:
        """A sign of life, over the one before. One that cannot be written stops nothing."""
        with suppress(OSError):
            self._write(self._own / "alive.json", alive, durable=False)

    def hide(self) -> None:
        """The site shows no life any more."""
        with suppress(OSError):
            (self._own / "alive.json").unlink(missing_ok=True)

    def _write(self, path: Path, document: dict[str, Any], durable: bool) -> None:
        """Whole or not at all, and readable for the other side."""
        beside = path.with_name(f".{path.name}")
        with beside.open("w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o644)
            json.dump(document, file, allow_nan=False)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        beside.replace(path)

    def _body(self, told: Any) -> Path:
        """Where the body of an answer lies, if it has one."""
        reply = told.get("reply") if isinstance(told, dict) else None
        named = str(reply.get("order_hash")) if isinstance(reply, dict) else ""
        return self._own / "bodies" / (named if re.fullmatch(r"[0-9a-f]{64}", named) else "none")

    def _names(self, folder: Path) -> set[str]:
        try:
            return {path.name for path in folder.iterdir() if _MESSAGE.fullmatch(path.name)}
        except FileNotFoundError:  # the server has not asked yet
            return set()


class Pulse:
    """A thread that shows life every few seconds, also while the site computes."""

    def __init__(self, box: Mailbox, home: Path) -> None:
        self._box, self._home = box, home
        self._doing: dict[str, Any] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._box.hide()

    def begin(self, order_hash: str) -> None:
        """An order is being answered from now on."""
        self._doing = {"order_hash": order_hash, "phase": "reads", "done": 0, "of": 0}

    def progress(self, site: str, phase: str, done: int, of: int) -> None:
        """How far it is."""
        if self._doing is not None:
            self._doing = {**self._doing, "phase": phase, "done": done, "of": of}

    def rest(self) -> None:
        """Nothing is being answered."""
        self._doing = None

    def _beat(self) -> None:
        while True:
            doing = self._doing
            alive = {"time": time.time(), "kit": KIT_VERSION, "paused": limits.is_paused(self._home)}
            self._box.show(alive | ({"doing": doing} if doing else {}))
            if self._ended.wait(ALIVE_EVERY_S):
                return


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
