"""A message for this site gets its answer: its shape and the site's standing are checked here, the seat does the rest.

Knows what a message and an answer look like, and that only a site that was let in answers. Does not know how they travel
(``mailbox.py``, ``endpoint.py``), nor what orders ask for (``seat.py``). What it does not answer as ordered is answered with a reason.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from cafe_kit import site_folder
from cafe_kit.engine import Engine
from cafe_kit.errors import CafeError
from cafe_kit.links import is_link
from cafe_kit.orders import MAX_BYTES, Reply, sign
from cafe_kit.seat import REFUSALS, Progress, Seat
from cafe_kit.site_folder import SiteSettings
from cafe_kit.site_home import SiteHome
from cafe_kit.terminal import unforeseen
from cafe_kit.work import name_of

MAX_MESSAGE = 4 * MAX_BYTES  # an order and its transport have MAX_BYTES each
_STANDING = REFUSALS | {"CAFE-115", "CAFE-116", "CAFE-131", "CAFE-154", "CAFE-155"}
_PARTS = {"order": dict, "signature": str, "transport": dict}


class Answering:
    """One site at work. Its seat is made at the first order and stays, with the records that it has read.

    ``engine``: what computes; it outlives the orders, too.
    """

    def __init__(self, home: Path, settings: SiteSettings, engine: Engine) -> None:
        self._home, self._settings, self._engine = home, settings, engine
        self._seat: Seat | None = None

    def answer(self, message: Any, progress: Progress) -> dict[str, Any]:
        """``{"reply", "signature"}``, also for a refusal; ``{"problem": {"code", "sentence"}}`` where the site cannot even sign."""
        try:
            order, signature, transport = _parts(message)
            site_folder.check_key(self._home, self._settings)
            try:
                site_folder.let_in(self._home, self._settings)
                self._check_output(order, transport.get("output"))
                seat = self._seat = self._seat or Seat(self._settings.seat_config(self._home))
            except Exception as error:
                return self._refusal(order, error)
            return _document(*seat.answer(order, signature, transport, self._engine, progress))
        except Exception as error:
            return problem(error)

    def _check_output(self, order: Any, output: Any) -> None:
        """A body goes to a link, or into this site's own folder of the exchange: the way there is unsigned and must not lead elsewhere."""
        if not isinstance(output, str) or not output or is_link(output):
            return
        settings = self._settings
        if not settings.exchange or Path(output) != mail_folder(settings) / "bodies" / name_of(order):
            raise CafeError(
                "CAFE-131", "The answer may not be put there: it is not this site's place.", "Check the server's exchange folder."
            )

    def _refusal(self, order: Any, error: Exception) -> dict[str, Any]:
        """Signed, though there is no seat that could have answered."""
        home = SiteHome(self._home)
        told = error if isinstance(error, CafeError) else unforeseen(error)
        home.log("refused", None if told is error else error, code=told.code)
        status: Literal["refused", "failed"] = "refused" if told.code in _STANDING else "failed"
        reply = Reply(name_of(order), self._settings.site, status, code=told.code, sentence=told.message[:500])
        return _document(reply, sign(reply, home.key))


def answer(home: Path, settings: SiteSettings, message: Any, engine: Engine, progress: Progress) -> dict[str, Any]:
    """The answer to one message; never raises. See ``Answering.answer``."""
    return Answering(home, settings, engine).answer(message, progress)


def mail_folder(settings: SiteSettings) -> Path:
    """The folder of the exchange that this site alone writes to."""
    return Path(settings.exchange) / f"{settings.serial}.site"


def read_message(data: bytes) -> Any:
    """JSON from outside.

    Raises:
        CafeError: CAFE-101 when it is too large, before it is looked at, or no JSON.
    """
    if len(data) > MAX_MESSAGE:
        raise CafeError("CAFE-101", f"The message is longer than {MAX_MESSAGE} bytes.", "Inputs go by reference.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise CafeError("CAFE-101", "The message is not plain JSON.", "Kit and server must be of the same version.") from None


def problem(error: Exception) -> dict[str, Any]:
    """What is answered unsigned, and only shown."""
    told = error if isinstance(error, CafeError) else unforeseen(error)
    return {"problem": {"code": told.code, "sentence": told.message[:500]}}


def _parts(message: Any) -> tuple[dict[str, Any], str, dict[str, Any]]:
    if not isinstance(message, dict) or message.keys() != _PARTS.keys():
        raise CafeError("CAFE-101", "The message is not an order with its signature and transport.", "Update the older of kit and server.")
    for name, kind in _PARTS.items():
        if not isinstance(message[name], kind):
            raise CafeError("CAFE-101", f"The message's '{name}' is not as agreed.", "Update the older of kit and server.")
    return message["order"], message["signature"], message["transport"]


def _document(reply: Reply, signature: str) -> dict[str, Any]:
    return {"reply": asdict(reply), "signature": signature}
