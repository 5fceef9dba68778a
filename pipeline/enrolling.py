"""How an operator lets a site of another machine in: make its kit, read its request, compare four words, answer.

Knows the order of the steps and where the files lie (``CAFE_HOME/kits``, or a folder that both sides reach). Does not know what is in a zip
(``client_kits/builder.py``), what a document looks like (``cafe_kit/enrolment.py``) or how rows are kept (``server_store/site_kits.py``).
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cafe_kit import enrolment, ssh_signature
from cafe_kit.enrolment import Approval, Embedder, JoinRequest, KitInfo, Limits, Server
from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_file
from cafe_kit.orders import MAX_BYTES
from pydantic import TypeAdapter, ValidationError

from client_kits import builder
from pipeline import connecting, federations, models
from pipeline.federations import Federation
from pipeline.home import home
from pipeline.keys import server_keys
from pipeline.messengers import write_for_both
from server_store.blobs import write_whole
from server_store.errors import StoreError
from server_store.site_kits import SiteKit, SiteKits

DAYS = 7.0
CLOCK_SLACK_S = 300.0
Kind = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Issued:
    """A new kit. ``code`` is shown once and kept nowhere; it goes to the site by another way than the zip."""

    zip: Path
    sha256: str
    code: str
    fingerprint: str
    serial: str
    expires: float


@dataclass(frozen=True)
class Waiting:
    """A genuine request and what the operator compares before he decides."""

    kit: SiteKit
    words: tuple[str, str, str, str]
    request: JoinRequest


def store() -> SiteKits:
    """The store of this home, with the kits."""
    return SiteKits(home() / "store.db")


def fingerprint() -> str:
    """Of the key that signs kits and answers, as ``ssh-keygen`` prints it."""
    return ssh_signature.fingerprint(server_keys(home()).verify_hex)


def issue(
    federation: str,
    site: str,
    kind: Kind,
    *,
    exchange: Path | None = None,
    via: connecting.Via | None = None,
    here: Path | None = None,
    stands_in: bool = False,
    wheels: bool = False,
    to: Path | None = None,
    days: float = DAYS,
    member: Mapping[str, str] | None = None,
) -> Issued:
    """Make a kit for one site of a federation. ``to``: a folder, or the zip's name; ``CAFE_HOME/kits/FEDERATION`` where it is left out.

    ``via``: how orders will reach the site; with an ``exchange`` folder through that, unless said otherwise. ``here``: the home of a site
    that a run serves itself on this machine (the demo's); its kit carries no embedder, as there is one. ``stands_in``: the operator's own
    cluster, which trains for the weak sites and has no records (``machine.proxies`` names it). ``member``: of the federation's Globus
    group, who answers for the site (``members.named``).

    Raises:
        CafeError: CAFE-607 (no such federation), CAFE-602 (the site's name), 137 (a folder), 138 (wheels), 189 (the way), 431 to 448
            (embedder).
        StoreError: CAFE-145 for a site that has a kit.
    """
    found, kits = federations.get(federation), store()
    kits.check_free(federation, site, _now())
    where = str(_checked_exchange(exchange)) if exchange else ""
    way = connecting.planned(via, exchange, federation, site, here) | ({"stands_in": True} if stands_in else {})
    embedder = models.embedder(str(found.data.get("embedder") or models.DEFAULT_EMBEDDER)) if kind == "cpu" and not here else None
    code = enrolment.new_code()
    serial = secrets.token_hex(16)
    sealed = enrolment.seal_address(connecting.address(serial, way.get("via"), where, days * 86400), code, serial)
    info = _info(found, site, kind, serial, sealed, days, embedder, stands_in)
    path = _target(to, federation, f"{builder.folder_name(info)}.zip")
    unconfirmed = path.with_name(f".{path.name}.{info.serial}")
    try:
        builder.build(info, unconfirmed, sign=_sign, embedder=embedder.path if embedder else None, wheels=wheels)
        sha256 = hash_file(unconfirmed)
        code_key = enrolment.proof_key(code, info.serial).hex()
        kits.issue(SiteKit(info.serial, federation, site, kind, info.issued, info.expires, "issued", code_key, where, sha256))
        kits.connect(info.serial, way | ({"member": dict(member)} if member else {}))
        unconfirmed.replace(path)
    except OSError as error:
        raise CafeError("CAFE-137", f"The kit cannot be written there ({error.strerror}).", "Name another folder, or make room.") from None
    finally:
        unconfirmed.unlink(missing_ok=True)
    return Issued(path, sha256, code, fingerprint(), info.serial, info.expires)


def receive(file: Path) -> Waiting:
    """Read a site's request from the file that it made, and check it; what was decided before stays decided.

    Raises:
        CafeError: CAFE-101 to 103 (the file), 137 (cannot be read), 140 (another join code), 153 (the site's clock).
        StoreError: CAFE-142, 143, 147, 149, 152.
    """
    return take(_bytes(file))


def take(data: bytes) -> Waiting:
    """As ``receive``, of the file's bytes."""
    request = enrolment.read_request(data)
    kits, now = store(), time.time()
    kit = kits.kit(request.serial)
    if (request.federation, request.site) != (kit.federation, kit.site):
        raise CafeError(
            "CAFE-148", "This request is for another federation or site than its kit.", "Ask the site to join with its own kit."
        )
    if kit.code_key and kit.state in ("issued", "requested"):
        enrolment.check_request(request, bytes.fromhex(kit.code_key))
    if kit.state == "issued" and not kit.issued - CLOCK_SLACK_S <= request.made <= now + CLOCK_SLACK_S:
        raise CafeError(
            "CAFE-153", "The site's clock is wrong: its request was made before its kit, or in the future.", "Set both clocks (NTP)."
        )
    return _waiting(kits.request(request.serial, request.site_key, asdict(request), now))


def received(federation: str | None = None) -> tuple[list[Waiting], list[CafeError | StoreError]]:
    """What lies in the exchange folders (and the object store) for kits that wait: the requests, and what is wrong with others."""
    found: list[Waiting] = []
    wrong: list[CafeError | StoreError] = []
    for kit in listed(federation):
        try:
            if kit.state == "approved" and (data := _lying_there(kit, enrolment.leaving_name(kit.serial))) is not None:
                take_leave(data)
            if kit.state in ("issued", "requested") and (data := _lying_there(kit, enrolment.request_name(kit.serial))) is not None:
                found.append(take(data))
        except (CafeError, StoreError) as error:
            error.message = f"What came for {kit.site!r} of {kit.federation!r} was not taken: {error.message}"
            wrong.append(error)
    return found, wrong


def take_leave(data: bytes) -> SiteKit:
    """A site says, signed, that it has left: it is asked nothing from now on.

    Raises:
        CafeError: CAFE-101 to 103 (no such document), CAFE-148 (of another site than its kit). StoreError: CAFE-147.
    """
    leaving = enrolment.read_leaving(data)
    kits = store()
    kit = kits.kit(leaving.serial)
    if (leaving.federation, leaving.site, leaving.site_key) != (kit.federation, kit.site, kit.site_key):
        raise CafeError("CAFE-148", "This farewell is of another site than its kit.", "Ask the site's admin whether it has left.")
    if kit.state != "approved":
        return kit
    federations.remove_joined_site(kit.federation, kit.site)
    connecting.forget(kit)
    return kits.leave(kit.serial, _now())


def receive_leave(file: Path) -> SiteKit | None:
    """As ``take_leave``, of a file that was handed over; None where it is another document."""
    data = _bytes(file)
    try:
        return take_leave(data)
    except CafeError as error:
        if error.code in ("CAFE-101", "CAFE-103"):
            return None
        raise


def waiting(serial: str) -> Waiting:
    """The request that was accepted for a kit. Raises StoreError CAFE-146, 147."""
    return _waiting(store().kit(serial))


def approve(serial: str, said: str, by: str = "") -> Path:
    """Let the site in, if ``said`` are the words that it sees; returns the file of the answer. Doing it twice gives the same file.

    Raises:
        CafeError: CAFE-144 for other words, and nothing is decided; 188 without what its connection needs; 602 when a site of this
            machine has its name.
        StoreError: CAFE-142, 143, 146, 147, 149.
    """
    found = waiting(serial)
    if tuple(re.findall(r"[a-z]+", said.lower())) != found.words:
        raise CafeError(
            "CAFE-144",
            f"These are not the words of {found.kit.site!r}; nothing was approved.",
            "Ask again on the telephone. If the site really sees other words, somebody stands between you: refuse it.",
        )
    kits = store()
    kits.settle(serial, connecting.sealed(found.kit))
    kit = kits.approve(serial, found.kit.site_key, by, _now())
    if not kit.connection.get("stands_in"):
        federations.add_joined_site(kit.federation, kit.site, kit.kind)
    return _answer(kit)


def refuse(serial: str, reason: str, by: str = "") -> Path:
    """Say no, with a reason that the site reads; returns the file of the answer. Raises StoreError CAFE-146, 147."""
    return _answer(store().refuse(serial, by, reason, _now()))


def revoke(serial: str, reason: str = "", by: str = "") -> Path | None:
    """Take a kit back. A site that waits for an answer gets one, and its file is returned. Raises StoreError CAFE-146, 147."""
    waits = store().kit(serial).state == "requested"
    kit = store().revoke(serial, by, reason or "The operator took the kit back.", _now())
    if kit.request is None:
        return None
    federations.remove_joined_site(kit.federation, kit.site)
    answer = _answer(kit)  # it finds a no where it looked for its yes
    connecting.forget(kit)
    return answer if waits else None


def listed(federation: str | None = None) -> list[SiteKit]:
    """All kits, or those of one federation, the newest first."""
    return store().kits(federation)


def find(site: str, federation: str | None = None) -> SiteKit:
    """The newest kit of a site, by the site's name or the kit's serial.

    Raises:
        StoreError: CAFE-147 for none; CAFE-146 when sites of several federations have this name.
    """
    found = [kit for kit in listed(federation) if site in (kit.site, kit.serial)]
    if not found:
        raise StoreError("CAFE-147", f"There is no kit for {site!r}.", "`cafe site list` shows them all.")
    if len({kit.federation for kit in found}) > 1:
        raise StoreError("CAFE-146", f"Several federations have a site {site!r}.", "Name the federation: --federation.")
    return found[0]


def _info(
    federation: Federation,
    site: str,
    kind: Kind,
    serial: str,
    sealed: str,
    days: float,
    embedder: models.ModelFolder | None,
    stands_in: bool,
) -> KitInfo:
    """What the kit says of itself; ``sealed``: what the join code opens."""
    keys, now = server_keys(home()), _now()
    try:
        return KitInfo(
            federation=federation.name,
            site=site,
            kind=kind,
            serial=serial,
            issued=now,
            expires=now + days * 86400,
            server=Server(keys.verify_hex, keys.seal_hex),
            task=federations.public_task(federation),
            sealed=sealed,
            limits=Limits(kinds=("hello", "train")) if stands_in else _proposed(federation, kind),
            stands_in=stands_in,
            embedder=Embedder(embedder.sha256, embedder.size) if embedder else None,
        )
    except ValidationError:
        raise CafeError("CAFE-602", "This name cannot be used for a site.", "Letters, digits, dot, dash, underscore; at most 64.") from None


def _sign(sums: bytes) -> str:
    return ssh_signature.sign(sums, server_keys(home()).signing)


def _now() -> float:
    """Whole seconds: they stand in documents that people read."""
    return float(int(time.time()))


def _waiting(kit: SiteKit) -> Waiting:
    if kit.request is None:
        raise StoreError("CAFE-146", f"{kit.site!r} has not asked yet: there is no request.", "Take it in: `cafe site receive FILE`.")
    words = enrolment.words(server_keys(home()).verify_hex, kit.site_key, kit.serial)
    return Waiting(kit, words, TypeAdapter(JoinRequest).validate_python(kit.request, strict=False))


def _answer(kit: SiteKit) -> Path:
    """Write what was decided, signed, for the site: the same bytes at each call."""
    decided = kit.decided or 0.0
    yes = kit.state == "approved"
    reason, sealed = ("", str(kit.connection.get("sealed", ""))) if yes else (kit.reason[:500], "")
    approval = Approval(kit.federation, kit.serial, kit.site, kit.site_key, yes, decided, reason=reason, sealed=sealed)
    data = enrolment.sign_approval(approval, server_keys(home()).signing)
    path = home("kits", kit.federation) / f"{kit.site}.answer.json"
    write_whole(path, data)
    if kit.exchange:
        write_for_both(_checked_exchange(Path(kit.exchange)) / enrolment.answer_name(kit.serial), data)
    else:
        connecting.post_answer(kit, data)
    return path


def _proposed(federation: Federation, kind: Kind) -> Limits:
    """What one run of this federation needs as it is set up, and no more; the site decides."""
    privacy = federation.data.get("privacy")
    stage = privacy.get("stage1" if kind == "cpu" else "stage2", privacy) if isinstance(privacy, dict) else None
    kinds: tuple[Literal["hello", "vote", "train"], ...] = ("hello", "vote") if kind == "cpu" else ("hello", "vote", "train")
    if not isinstance(stage, dict) or "epsilon" not in stage:
        return Limits(kinds=kinds)
    epsilon, delta = float(stage["epsilon"]), float(stage.get("delta", Limits.delta))
    return Limits(max_epsilon=epsilon, max_epsilon_per_run=epsilon, delta=delta, kinds=kinds, allow_without_noise=False)


def _checked_exchange(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise CafeError("CAFE-137", f"The exchange folder {folder} is not there.", "Make it where both sides can write, or leave it out.")
    return folder


def _target(to: Path | None, federation: str, name: str) -> Path:
    if to is None:
        return home("kits", federation) / name
    to = to.expanduser().absolute()
    path = to if to.suffix == ".zip" else to / name
    if not path.parent.is_dir():
        raise CafeError("CAFE-137", f"The folder {path.parent} is not there.", "Make it, or name another with --to.")
    return path


def _lying_there(kit: SiteKit, name: str) -> bytes | None:
    """What a site has left for us in its exchange folder, or in the object store."""
    file = Path(kit.exchange) / name
    if kit.exchange:
        return _bytes(file) if file.is_file() else None
    return connecting.fetch(kit, name)


def _bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as source:
            return source.read(MAX_BYTES + 1)
    except OSError as error:
        raise CafeError("CAFE-137", f"{file.name} cannot be read ({error.strerror}).", "Name the file that the site sent.") from None
