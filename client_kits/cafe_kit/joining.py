"""Joining: the kit is checked, the questions are answered, the request is made, the operator's answer is waited for.

Knows the order of these acts and how to continue where they stopped. Does not know how questions are put (``questions.py``) or what
the documents prove (``enrolment.py``). Every act leaves its file before the next begins; each can be repeated.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cafe_kit import data_look, doctor, kit_folder, limits, machine, site_folder
from cafe_kit import enrolment as documents
from cafe_kit.enrolment import Approval, JoinRequest, KitInfo
from cafe_kit.errors import CafeError
from cafe_kit.kit_folder import Kit
from cafe_kit.policy import TEMPLATE, load_policy
from cafe_kit.questions import Answers
from cafe_kit.release import seal_file
from cafe_kit.seat_config import ServerKeys
from cafe_kit.site_folder import SiteSettings, one_line
from cafe_kit.site_home import SiteHome

POLL_S = 2.0
_PATIENCE = 5  # looks at an answer that is not whole: somebody may be copying it
REQUEST, ANSWER = "request.json", "answer.json"


@dataclass(frozen=True)
class Talk:
    """How the person is spoken to. ``code`` and ``answers`` are asked for only when they are needed."""

    say: Callable[[str], None]
    code: Callable[[], str]
    answers: Callable[[KitInfo], Answers]
    tries: int = 1  # at the code


def prepare(kit: Kit, home: Path, talk: Talk) -> SiteSettings:
    """A site with its key, policy and request; continues with what an earlier call has left.

    Raises:
        CafeError: of the kit, the code, the data; CAFE-158 when the folder is another kit's.
    """
    settings = site_folder.load(home)
    if settings is not None:
        if settings.serial != kit.info.serial:
            raise CafeError(
                "CAFE-158",
                "The site's folder belongs to another kit.",
                "Leave first (cafe-site leave keeps the ledger), or set CAFE_SITE_HOME.",
            )
        site_folder.check_key(home, settings)
        if not (home / REQUEST).is_file():
            raise CafeError("CAFE-158", "The request in the site's folder is missing.", "Leave first (cafe-site leave), then join again.")
        return settings
    kit_folder.check_time(kit.info)
    code, exchange = _opened(kit.info, talk)
    answers = talk.answers(kit.info)
    return _apply(kit, home, talk, code, exchange, answers)


def _opened(info: KitInfo, talk: Talk) -> tuple[str, str]:
    """The code, and the exchange folder that it opens. A person may mistype it."""
    for left in reversed(range(talk.tries)):
        code = talk.code()
        try:
            return code, documents.open_address(info.sealed, code, info.serial).get("exchange", "")
        except CafeError as error:
            if not left:
                raise
            talk.say(f"   {error}")
    raise ValueError("at least one try")


def _apply(kit: Kit, home: Path, talk: Talk, code: str, exchange: str, answers: Answers) -> SiteSettings:
    info = kit.info
    source_checks = doctor.data_checks(answers.source(), info.task)
    for line in doctor.lines(source_checks):
        talk.say(line)
    doctor.must_be_fit(source_checks)
    site = SiteHome(home)
    settings = SiteSettings(
        federation=info.federation,
        site=info.site,
        kind=info.kind,
        serial=info.serial,
        site_key=site.verify_key,
        share_rows=answers.limits.share_rows,
        exchange=exchange,
        kit=str(kit.folder),
        data=answers.data,
        server=ServerKeys(verify_key=info.server.verify_key, seal_key=info.server.seal_key),
        consent=answers.consent,
        task=info.task,
    )
    (home / ANSWER).unlink(missing_ok=True)
    _write_policy(home, answers)
    seal_file(home / REQUEST, _request(settings, home, site, documents.proof_key(code, info.serial)))
    site_folder.save(home, settings)  # last: with it the joining continues instead of beginning
    site.log("asked", site=info.site)
    return settings


def _write_policy(home: Path, answers: Answers) -> None:
    """The limits that were consented to. A policy that is there already (of an earlier joining) keeps its other lines."""
    path = home / "policy.toml"
    before = path.read_text(encoding="utf-8") if path.is_file() else TEMPLATE
    asked = answers.limits.model_dump(mode="json")
    del asked["share_rows"]
    seal_file(path, limits.edited(before, asked).encode())
    load_policy(path)


def _request(settings: SiteSettings, home: Path, site: SiteHome, code_key: bytes) -> bytes:
    consent = settings.consent
    request = JoinRequest(
        federation=settings.federation,
        serial=settings.serial,
        site=settings.site,
        site_key=site.verify_key,
        made=float(int(time.time())),
        host=machine.host(),
        limits=limits.told(load_policy(home / "policy.toml")),
        consent=documents.Consent(
            name=one_line(consent.name),
            role=one_line(consent.role),
            reference=one_line(consent.reference),
        ),
        seal_key=site.seal_key.public_key().public_bytes_raw().hex(),
        records=_shared_rows(settings),
    )
    return documents.sign_request(documents.prove(request, code_key), site.key)


def _shared_rows(settings: SiteSettings) -> int | None:
    """As many as the site shares: none, to one digit (at least ten), or exactly."""
    if settings.share_rows == "no":
        return None
    rows = data_look.look(settings.source(), settings.task)[0].rows
    digit = 10 ** max(1, len(str(rows)) - 1)
    return rows if settings.share_rows == "exact" else max(10, rows // digit * digit)


def words(settings: SiteSettings) -> str:
    """What both sides read aloud."""
    return "-".join(documents.words(settings.server.verify_key, settings.site_key, settings.serial))


def deliver(home: Path, settings: SiteSettings) -> bool:
    """Put the request where the operator looks for it; False where there is no such folder and it has to be handed over."""
    folder = Path(settings.exchange) if settings.exchange else None
    if folder is None or not folder.is_absolute() or not folder.is_dir():
        return False
    target = folder / documents.request_name(settings.serial)
    data = (home / REQUEST).read_bytes()
    with suppress(OSError):
        if target.read_bytes() == data:
            return True
    try:
        seal_file(target, data)
        target.chmod(0o644)  # the operator reads it with another account; it holds nothing secret
    except (CafeError, OSError):
        raise CafeError(
            "CAFE-159", "The request could not be put into the exchange folder.", f"Hand the file over instead: {home / REQUEST}"
        ) from None
    return True


def receive(home: Path, settings: SiteSettings, given: Path | None) -> Approval | None:
    """The operator's answer if it is there, as a file given by hand or in the exchange folder. It is checked, then kept.

    Raises:
        CafeError: CAFE-101, 102, 103, 148 (not this server's answer to this site), 159 (a given file cannot be read).
    """
    data = _found(settings, given)
    if not data:
        return None
    approval = documents.check_approval(data, settings.server.verify_key, settings.serial, settings.site_key)
    seal_file(home / ANSWER, data)
    SiteHome(home).log("joined" if approval.approved else "not let in")
    return approval


def renew(home: Path, settings: SiteSettings) -> None:
    """Take what the operator says after his yes, from the exchange folder: of two answers the later one counts.

    Raises:
        CafeError: what lies there is not this server's answer to this site.
    """
    data = _found(settings, None)
    if not data or data == (home / ANSWER).read_bytes():
        return
    later = documents.check_approval(data, settings.server.verify_key, settings.serial, settings.site_key)
    kept = site_folder.answer(home, settings)
    if kept is None or later.made > kept.made:
        seal_file(home / ANSWER, data)
        SiteHome(home).log("joined" if later.approved else "not let in")


def _found(settings: SiteSettings, given: Path | None) -> bytes:
    place = given or (Path(settings.exchange) / documents.answer_name(settings.serial) if settings.exchange else None)
    if place is None:
        return b""
    try:
        with place.open("rb") as file:
            return file.read(documents.MAX_BYTES + 1)
    except OSError:
        if given is not None:
            raise CafeError("CAFE-159", "The file with the answer cannot be read.", "Check its path.") from None
        return b""


def wait(home: Path, settings: SiteSettings, given: Path | None, seconds: float | None) -> Approval:
    """The answer, waited for.

    Raises:
        CafeError: CAFE-155 when it did not come in time; else as ``receive``.
    """
    stop, odd = None if seconds is None else time.monotonic() + seconds, 0
    while True:
        try:
            if (approval := receive(home, settings, given)) is not None:
                return approval
        except CafeError as error:
            odd += 1
            if error.code != "CAFE-101" or given is not None or odd >= _PATIENCE:
                raise
        if stop is not None and time.monotonic() >= stop:
            raise CafeError("CAFE-155", "The operator has not answered yet.", "Run cafe-site join again: it continues here.")
        time.sleep(POLL_S if stop is None else max(0.0, min(POLL_S, stop - time.monotonic())))


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Only one joining works in the site's folder.

    Raises:
        CafeError: CAFE-133 (the folder), CAFE-158 when another is at work.
    """
    SiteHome(home)
    with (home / doctor.LOCK).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CafeError("CAFE-158", "Another cafe-site is at work in the site's folder.", "Wait until it has ended.") from None
        yield
