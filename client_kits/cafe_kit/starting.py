"""``cafe-site start``: the site is at work until somebody ends it, by the way that the operator's answer names.

Knows the loop over the exchange folder, and when a start has to end: a signal, a site that left, an operator who took his yes back.
Does not know files (``mailbox.py``), answers (``answering.py``) or Globus Compute (``endpoint.py``).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from cafe_kit import asking, connection, host, instance, site_folder
from cafe_kit.answering import Answering, problem
from cafe_kit.connection import Connection, Folder
from cafe_kit.engine import Engine, from_environment
from cafe_kit.errors import CafeError
from cafe_kit.explain import WAITS
from cafe_kit.mailbox import Mailbox, Pulse
from cafe_kit.site_folder import SiteSettings
from cafe_kit.site_home import SiteHome
from cafe_kit.work import name_of

POLL_S = 0.5
_AGAIN_S = 5.0  # after the exchange folder could not be reached

Say = Callable[[str], None]


class Ended(BaseException):
    """Somebody ends this process; not an Exception, since no order's failure may catch it."""


def way(home: Path, settings: SiteSettings) -> Connection:
    """How orders reach this site, as the operator's answer says.

    Raises:
        CafeError: as ``site_folder.let_in`` and ``connection.unseal``; CAFE-128 when it does not say.
    """
    approval = site_folder.let_in(home, settings)
    if not approval.sealed:
        raise CafeError(
            "CAFE-128",
            "The operator's answer does not say how orders reach this site.",
            "Ask him to approve the site again, with a new kit.",
        )
    return connection.unseal(approval.sealed, SiteHome(home).seal_key, settings.serial)


def start(home: Path, settings: SiteSettings, kit: Path | None, say: Say, once: bool = False) -> int:
    """Answer orders until the end is asked for (SIGTERM, SIGINT); with ``once`` only those that wait.

    Returns:
        The exit status.

    Raises:
        CafeError: CAFE-115 to 118, 128, 134, 154, 155; as ``endpoint.run``.
    """
    host.no_core_dumps()
    site_folder.check_key(home, settings)
    settings = with_kit(home, settings, kit)
    with instance.alone(home):
        _hear_operator(home, settings)
        found = way(home, settings)
        if isinstance(found, Folder):
            with _until_a_signal(say):
                _by_folder(home, settings, from_environment(), say, once)
            return 0
        from cafe_kit import endpoint

        return endpoint.run(home, settings, found, Path(settings.kit) if settings.kit else None, say)


def with_kit(home: Path, settings: SiteSettings, kit: Path | None) -> SiteSettings:
    """The site's settings, which know where its kit lies now: it may have been moved, or replaced by a newer one."""
    if kit is None or str(kit) == settings.kit:
        return settings
    settings = settings.model_copy(update={"kit": str(kit)})
    site_folder.save(home, settings)
    return settings


def _by_folder(home: Path, settings: SiteSettings, engine: Engine, say: Say, once: bool) -> None:
    box, work = Mailbox(settings), Answering(home, settings, engine)
    box.open()
    say(f"{settings.site} is at work for {settings.federation}. Ctrl-C ends this; what is under way is done again at the next start.")
    waits: set[str] = set()
    with Pulse(box, home) as pulse:
        while not _has_left(home, settings):
            try:
                _hear_operator(home, settings)
                for order in box.waiting():
                    _answer(box, work, pulse, order, say, waits)
                box.tidy()
                if once:
                    return
                time.sleep(POLL_S)
            except OSError as error:
                if once:
                    raise CafeError("CAFE-118", f"The exchange folder cannot be used ({error.strerror}).", "Is it mounted?") from None
                say(f"The exchange folder cannot be reached just now ({error.strerror}); it is tried again.")
                time.sleep(_AGAIN_S)
                with suppress(CafeError):
                    box.open()
        say("The site has left the federation.")


def _answer(box: Mailbox, work: Answering, pulse: Pulse, order: Path, say: Say, waits: set[str]) -> None:
    """``waits``: orders whose answer waits for the admin; the server asks for it every few seconds, and the screen says so once."""
    try:
        message = box.read(order)
        pulse.begin(name_of(message.get("order")) if isinstance(message, dict) else "")
        told = work.answer(message, pulse.progress)
    except FileNotFoundError:
        return
    except CafeError as error:
        told = problem(error)
    finally:
        pulse.rest()
    box.put(order, told)
    reply = told.get("reply", {})
    if reply.get("code") == WAITS:
        if reply["order_hash"] in waits:
            return
        waits.add(reply["order_hash"])
    say(f"{time.strftime('%H:%M:%S')} {_in_words(message if 'reply' in told else None, told)}")


def _in_words(message: Any, told: dict[str, Any]) -> str:
    """One line for the screen. What the order says of itself is shown only once the seat has found it genuine."""
    if "problem" in told:
        return f"a message was not answered: {told['problem']['code']} {told['problem']['sentence']}"
    reply = told["reply"]
    if reply["status"] != "ok" and reply["code"] != WAITS:
        return f"{reply['status']} an order: {reply['code']} {reply['sentence']}"
    order = message["order"]
    what = {"hello": "a greeting", "result": "the finished adapter", "vote": "vote", "train": "training"}[order["params"]["kind"]]
    if reply["code"] == WAITS:
        return f"waits for your word: {what} {order['round']}, run {order['run']}. See it with: cafe-site outbox"
    number = f" {order['round']}" if reply["outputs"] else ""
    return f"answered: {what}{number}, run {order['run']}"


def _has_left(home: Path, settings: SiteSettings) -> bool:
    now = site_folder.load(home)
    return now is None or now.serial != settings.serial


def _hear_operator(home: Path, settings: SiteSettings) -> None:
    """What he says after his yes, in the exchange folder: a later day, another way, or a no. Raises as ``site_folder.let_in``."""
    if settings.exchange:
        with suppress(CafeError):  # what is not his, or not whole, changes nothing; the kept answer is judged below
            asking.receive(home, settings)
    site_folder.let_in(home, settings)


@contextmanager
def _until_a_signal(say: Say) -> Iterator[None]:
    """SIGTERM and SIGINT end what is inside, wherever it is: everything that counts is durable before it is told."""

    def ended(number: int, _: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)  # a second one ends the process at once
        raise Ended

    before = {each: signal.signal(each, ended) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Ended:
        say("Ended. Nothing is answered until the next start.")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
