"""The demo's sites join as every site does: a kit, its join code, the questions, four words, the operator's yes. Over a folder.

Plays both people, by the functions that ``cafe site`` and ``cafe-site`` call. Knows where the pretend clinics keep their records. Their
processes are started by the run, beside each other on this machine, and not by an admin (``via`` "here" of the kit's connection).
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cafe_kit import asking, enrolment, joining, kit_folder, site_folder
from cafe_kit.enrolment import KitInfo
from cafe_kit.joining import Talk
from cafe_kit.questions import Answers
from cafe_kit.seat_config import SeatConfig

from pipeline import enrolling, federations
from pipeline.connecting import HERE
from pipeline.federations import Federation
from pipeline.home import home
from server_store.site_kits import SiteKit

_CONSENT = {"name": "The demo", "role": "plays this clinic's admin", "agreed": True}


def join_all(federation: Federation, sites: Sequence[tuple[str, str]], told: Callable[[int, int], None]) -> None:
    """Let every one of these sites (name, kind) join that has not; ``told``: how many of how many have."""
    for number, (site, kind) in enumerate(sites, start=1):
        if not any(kit.state == "approved" for kit in enrolling.listed(federation.name) if kit.site == site):
            _join(federation, site, kind)
        told(number, len(sites))


def seat_config(kit: SiteKit) -> SeatConfig | None:
    """With what a process of this machine serves this site; None for a site that its own admin starts."""
    if kit.connection.get("via") != HERE:
        return None
    place = Path(str(kit.connection["home"]))
    return site_folder.joined(place).seat_config(place).model_copy(update={"reach": None})  # the run's own folder is the exchange


def _join(federation: Federation, site: str, kind: str) -> None:
    for before in enrolling.listed(federation.name):
        if before.site == site and before.state in ("issued", "requested"):
            enrolling.revoke(before.serial, "An earlier start of the demo was interrupted.")
    exchange, place = federation.folder / "exchange", home("sites", federation.name) / site
    exchange.mkdir(mode=0o700, exist_ok=True)
    issued = enrolling.issue(federation.name, site, "gpu" if kind == "gpu" else "cpu", exchange=exchange, here=place)
    kit = kit_folder.open_kit(_unzipped(issued.zip, federation.folder / "kits" / site))
    (place / "site.toml").unlink(missing_ok=True)  # of a joining that was interrupted; key and ledger stay
    talk = Talk(lambda _: None, lambda: issued.code, lambda info: _answers(info, federation.folder / f"{site}.jsonl", federation))
    with joining.alone(place):
        settings = joining.prepare(kit, place, talk)
        asking.deliver(place, settings)
        enrolling.receive(exchange / enrolment.request_name(settings.serial))
        enrolling.approve(issued.serial, joining.words(settings), "the demo")
        asking.receive(place, settings)
        site_folder.let_in(place, settings)


def _unzipped(kit: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(kit) as packed:
        packed.extractall(folder)
    return next(folder.iterdir())


def _answers(info: KitInfo, data: Path, federation: Federation) -> Answers:
    """What a generous admin answers: every kind of order, no limit of privacy, and runs without noise too. The ledger counts all."""
    columns = federations.guess_columns(federation, federations.columns(federation, data.name))
    kinds = ("hello", "vote", "train") if info.kind == "gpu" else ("hello", "vote")
    limits = {"kinds": kinds, "allow_without_noise": True, "share_rows": "exact"}
    shown = {role: column for role, column in columns.items() if column}
    return Answers.model_validate({"data": {"path": str(data), "columns": shown}, "limits": limits, "consent": _CONSENT})
