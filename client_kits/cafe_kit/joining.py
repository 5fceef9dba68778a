"""Joining: the kit is checked, the questions are answered, the limits and the request are written.

Knows the order of these acts and how to continue where they stopped. Does not know how questions are put (``questions.py``), how the
request travels (``asking.py``) or what the documents prove (``enrolment.py``). Every act leaves its file before the next begins.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cafe_kit import asking, data_look, doctor, kit_folder, limits, machine, site_folder
from cafe_kit import enrolment as documents
from cafe_kit.asking import ANSWER, REQUEST
from cafe_kit.enrolment import JoinRequest, KitInfo
from cafe_kit.errors import CafeError
from cafe_kit.kit_folder import Kit
from cafe_kit.policy import TEMPLATE, Policy, last_outbox, load_policy
from cafe_kit.questions import Answers
from cafe_kit.release import seal_file
from cafe_kit.seat_config import ServerKeys
from cafe_kit.site_folder import SiteSettings, one_line
from cafe_kit.site_home import SiteHome, make_private


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
            raise _no_request()
        return settings
    kit_folder.check_time(kit.info)
    code, address = _opened(kit.info, talk)
    answers = talk.answers(kit.info)
    return _apply(kit, home, talk, code, address, answers)


def _opened(info: KitInfo, talk: Talk) -> tuple[str, dict[str, str]]:
    """The code, and the places that it opens. A person may mistype it."""
    for left in reversed(range(talk.tries)):
        code = talk.code()
        try:
            return code, documents.open_address(info.sealed, code, info.serial)
        except CafeError as error:
            if not left:
                raise
            talk.say(f"   {error}")
    raise ValueError("at least one try")


def _apply(kit: Kit, home: Path, talk: Talk, code: str, address: dict[str, str], answers: Answers) -> SiteSettings:
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
        exchange=address.get("exchange", ""),
        links=asking.sealed_links(address, site, info.serial),
        kit=str(kit.folder),
        data=answers.data,
        server=ServerKeys(verify_key=info.server.verify_key, seal_key=info.server.seal_key),
        consent=answers.consent,
        stands_in=info.stands_in,
        task=info.task,
    )
    for name in (ANSWER, asking.SENT, site_folder.LEAVE):
        (home / name).unlink(missing_ok=True)
    _write_policy(home, answers)
    seal_file(home / REQUEST, _request(settings, home, site, documents.proof_key(code, info.serial)))
    site_folder.save(home, settings)  # last: with it the joining continues instead of beginning
    limits.resume(home)  # a site that has left before was paused by that
    site.log("asked", site=info.site)
    return settings


def _write_policy(home: Path, answers: Answers) -> None:
    """The limits that were consented to. A policy that is there already (of an earlier joining) keeps its other lines."""
    path = home / "policy.toml"
    before = path.read_text(encoding="utf-8") if path.is_file() else _anew(home)
    asked = answers.limits.model_dump(mode="json")
    del asked["share_rows"]
    seal_file(path, limits.edited(before, asked).encode())
    load_policy(path)


def _anew(home: Path) -> str:
    """A policy for a site without one; where it was at work before, its answers leave no more freely than they did then."""
    return limits.edited(TEMPLATE, {"outbox": last_outbox(home)}) if (home / "ledger").exists() else TEMPLATE


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


def restore_limits(home: Path, settings: SiteSettings) -> Policy:
    """Write the policy anew as it was consented to on joining; for one that is gone. What was changed since is not in it, but for the
    outbox's mode: no command but ``limits set`` lets answers out more freely than the admin did.

    Raises:
        CafeError: CAFE-157 when there is one, CAFE-158 when the request that tells is missing, CAFE-101, 102 when it was altered.
    """
    path = home / "policy.toml"
    if path.exists():
        raise CafeError("CAFE-157", "policy.toml is there; nothing was changed.", "Take it away first, or: cafe-site limits set NAME=VALUE")
    try:
        request = documents.read_request((home / REQUEST).read_bytes())
    except OSError:
        raise _no_request() from None
    if request.site_key != settings.site_key:
        raise CafeError("CAFE-102", "The request in the site's folder is another site's.", "Restore policy.toml from a backup.")
    agreed = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(request.limits).items()}
    seal_file(path, limits.edited(limits.edited(TEMPLATE, {"outbox": last_outbox(home)}), agreed).encode())
    SiteHome(home).log("limits", settings="as consented to on joining")
    return load_policy(path)


def _no_request() -> CafeError:
    return CafeError("CAFE-158", "The request in the site's folder is missing.", "Leave first (cafe-site leave), then join again.")


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Only one joining works in the site's folder.

    Raises:
        CafeError: CAFE-133 (the folder), CAFE-158 when another is at work.
    """
    make_private(home)
    with (home / doctor.LOCK).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CafeError("CAFE-158", "Another cafe-site is at work in the site's folder.", "Wait until it has ended.") from None
        yield
