"""Does the way to a joined site hold? Its links one after the other, up to a signed greeting that goes there and back.

Knows the order of the links of each way, and names the first that is broken, with what to do. Does not know how a message travels, nor
what an answer means beyond that it is genuine. It asks nothing of the site's records and spends nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_file
from cafe_kit.orders import PROTOCOL, Blob, HelloParams, Numbers, Order, PrivacyTerms, Transport, sign
from cafe_kit.work import KIT_VERSION

from pipeline import federations, members
from pipeline.connecting import HERE
from pipeline.globus_compute import GlobusMessenger, function_id
from pipeline.globus_service import account
from pipeline.keys import server_keys
from pipeline.messengers import place
from pipeline.remote_sites import RemoteSites, approved
from pipeline.sites import Answer, Envelope
from pipeline.ways import ways
from server_store.errors import StoreError
from server_store.site_kits import SiteKit, SiteKits

WAIT_S = 60.0
CLOCK_SLACK_S = 120.0
_ONLINE_S = 30.0  # a site in a folder shows life every few seconds
_MOST = 4096  # bytes of a sign of life

State = Literal["ok", "broken", "not tried"]
Look = Callable[[], Iterator[str]]  # what was found, in words; raises what is wrong


@dataclass(frozen=True)
class Link:
    """One link of the chain. ``hint``: what to do where it is broken."""

    name: str
    state: State
    detail: str
    hint: str = ""
    code: str = ""

    @property
    def ok(self) -> bool:
        return self.state == "ok"


def diagnose(kit: SiteKit, home: Path, wait_s: float = WAIT_S) -> list[Link]:
    """Every link between this server and the site; what comes after a broken one is not tried. Never raises.

    ``wait_s``: how long the greeting may take; a site whose work is done in jobs answers when its job runs.
    """
    found: list[Link] = []
    looks: list[tuple[str, Look]] = [("approval", lambda: _approval(kit, home)), *_way_there(kit, home)]
    if kit.connection.get("via") != HERE:
        looks.append(("round trip", lambda: _round_trip(kit, home, wait_s)))
    if kit.connection.get("via") == "globus":
        looks.append(("object store at the site", lambda: _fetched(kit, home, wait_s)))
    for name, look in looks:
        if found and not found[-1].ok:
            found.append(Link(name, "not tried", "comes after what is broken"))
            continue
        found += _looked(name, look)
    return found


def broken(links: list[Link]) -> Link | None:
    """The first that does not hold."""
    return next((link for link in links if link.state == "broken"), None)


def _looked(name: str, look: Look) -> list[Link]:
    """What a look found: one link for each thing that it says, "NAME: WORDS" under a name of its own. A look that breaks is a finding."""
    found: list[Link] = []
    try:
        for told in look():
            own, colon, words = told.partition(": ")
            found.append(Link(own, "ok", words) if colon else Link(name, "ok", told))
    except (CafeError, StoreError) as error:
        found.append(Link(name, "broken", error.message, error.hint, error.code))
    except Exception as error:
        found.append(Link(name, "broken", f"It could not be looked at ({type(error).__name__}).", "Report it with `cafe doctor`."))
    return found


def _approval(kit: SiteKit, home: Path) -> Iterator[str]:
    """Whether it may take part at all."""
    kits = SiteKits(home / "store.db")
    try:
        newest = approved(kits, kit.federation, kit.site)
    finally:
        kits.close()
    members.check(newest, f"doctor {time.time():.0f}")
    day = time.strftime("%d %B %Y", time.localtime(newest.decided or 0))
    yield f"approved on {day}, key {newest.site_key[:16]}…"


def _way_there(kit: SiteKit, home: Path) -> list[tuple[str, Look]]:
    via = kit.connection.get("via", "folder" if kit.exchange else "")
    if via == "globus":
        return [
            ("application", lambda: _signed_in(kit, home)),
            ("endpoint", lambda: _endpoint(kit, home)),
            ("function", lambda: _function(kit, home)),
            ("object store", _object_store),
        ]
    if via == "folder":
        return [("exchange folder", lambda: _folder(kit)), ("sign of life", lambda: _alive(kit))]
    return [("connection", lambda: _other_way(kit, home))]


def _other_way(kit: SiteKit, home: Path) -> Iterator[str]:
    if kit.connection.get("via") != HERE:
        ways(home, "doctor")(kit)  # raises: there is none
    yield "a run serves this site itself, on this machine"


# Through Globus Compute


def _signed_in(kit: SiteKit, home: Path) -> Iterator[str]:
    account(home, str(kit.connection.get("client_id", "")), str(kit.connection.get("service", ""))).sign_in()
    yield "Globus can be reached and knows it"


def _endpoint(kit: SiteKit, home: Path) -> Iterator[str]:
    """Found by its name, so that one that was made anew is found, too."""
    found = GlobusMessenger(home).endpoint(kit, anew=True)
    yield f"{kit.connection['endpoint_name']} is {found}"
    if not account(home, str(kit.connection["client_id"]), str(kit.connection.get("service", ""))).online(found):
        raise CafeError("CAFE-180", "The site's endpoint is not online.", "Its admin starts it: `./cafe-site start`.")
    yield "online: Globus has heard of it lately"


def _function(kit: SiteKit, home: Path) -> Iterator[str]:
    """The one that we send, the one that this server would register now, and the one that the endpoint runs."""
    client, service = str(kit.connection["client_id"]), str(kit.connection.get("service", ""))
    told, allowed = str(kit.connection["function_id"]), account(home, client, service).allowed(str(kit.connection["endpoint_id"]))
    if allowed is None or told not in allowed:
        runs = "runs any function" if allowed is None else "runs another function"
        raise CafeError("CAFE-181", f"The site's endpoint {runs}.", "It is not the one of its kit, or was approved anew: start it again.")
    current = function_id(home, client, service) == told
    yield f"{told} is the only one that the endpoint runs" + ("" if current else "; this server has a newer one: approve the site again")


def _object_store() -> Iterator[str]:
    """From here; from the site it is looked at last."""
    from pipeline import storage

    configured = storage.configured()
    if configured is None:
        raise CafeError("CAFE-189", "No object store is set up, and Globus Compute carries small messages alone.", "`cafe storage set`")
    storage.object_store().size("doctor")
    yield f"bucket {configured.bucket} can be read from here; `cafe storage check` looks closer"


# Through a folder


def _folder(kit: SiteKit) -> Iterator[str]:
    folder = Path(kit.exchange)
    if not folder.is_dir():
        raise CafeError("CAFE-169", f"The exchange folder of {kit.site!r} is not there.", "Mount it, or make a new kit with another one.")
    probe = folder / f".doctor.{kit.serial}"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise CafeError(
            "CAFE-169",
            f"The exchange folder of {kit.site!r} cannot be written ({error.strerror}).",
            "Give this account that right.",
        ) from None
    yield f"{folder} is there and can be written"


def _alive(kit: SiteKit) -> Iterator[str]:
    """The file that the site writes anew every few seconds: when, and by which clock."""
    path = place(kit, "site", "alive.json")
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(_MOST))
        seconds = time.time() - path.stat().st_mtime
        skew = abs(float(told["time"]) - path.stat().st_mtime)
        paused = bool(told.get("paused"))
    except FileNotFoundError:
        raise CafeError("CAFE-180", "The site has not been started.", "Its admin starts it: `./cafe-site start`.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CafeError("CAFE-180", "The site's sign of life cannot be read.", "Is the folder the one of its kit? Look there.") from None
    if seconds > _ONLINE_S:
        raise CafeError("CAFE-180", f"The site was last heard {seconds / 60:.0f} minutes ago.", "Its admin starts it: `./cafe-site start`.")
    if skew > CLOCK_SLACK_S:
        raise CafeError("CAFE-153", f"The site's clock differs from the folder's by {skew:.0f} seconds.", "Set the clocks (NTP).")
    yield f"heard {max(0.0, seconds):.0f} s ago" + (", paused by its admin" if paused else "")
    yield f"clock: within {CLOCK_SLACK_S:.0f} s of ours"


# There and back


def _round_trip(kit: SiteKit, home: Path, wait_s: float) -> Iterator[str]:
    """A signed greeting to the site's own program, and its signed answer."""
    began = time.monotonic()
    answer = _greeted(kit, home, wait_s)
    if answer.reply is None and answer.code == "CAFE-124":
        raise CafeError(
            "CAFE-124",
            f"No answer within {wait_s:.0f} seconds.",
            "Jobs may wait in their queue: --wait; else look at its log.",
        )
    if answer.reply is None or answer.reply.status != "ok":
        raise CafeError(
            answer.code or "CAFE-123", answer.sentence or "The site gave no answer.", f"`cafe explain {answer.code}` says more."
        )
    told = answer.reply.numbers
    yield f"the site's program answered in {time.monotonic() - began:.1f} s"
    yield "signature: of the key that was approved"
    yield from _versions(told)
    yield f"ledger: {_ledger(told)}"


def _fetched(kit: SiteKit, home: Path, wait_s: float) -> Iterator[str]:
    """A second greeting brings a few bytes, which the site has to fetch from the object store."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe")
        probe.write_bytes(os.urandom(1024))
        answer = _greeted(kit, home, wait_s, {"probe": probe})
    if answer.reply is None or answer.reply.status != "ok":
        raise CafeError(
            answer.code or "CAFE-162",
            f"The site answers, and cannot fetch from the object store: {answer.sentence}",
            "Its way there (firewall, proxy) is closed, or the store's address is not one that it can reach.",
        )
    yield "the site fetched what was put there"


def _greeted(kit: SiteKit, home: Path, wait_s: float, brings: dict[str, Path] | None = None) -> Answer:
    task, keys = federations.public_task(federations.get(kit.federation)), server_keys(home)
    inputs = {name: Blob(hash_file(path), path.stat().st_size) for name, path in (brings or {}).items()}
    order = Order("doctor", 1, 1, int(time.time()), kit.site, task, PrivacyTerms("none"), inputs, HelloParams())  # the time makes it new
    transport = Transport({name: str(path) for name, path in (brings or {}).items()}, "", wait_s)
    remote = RemoteSites(home / "store.db", kit.federation, way=ways(home, "doctor"), may_take_part=lambda *_: None, keys={})
    try:
        return next(iter(remote.ask([Envelope(order, sign(order, keys.signing), transport)])))
    finally:
        remote.close()


def _versions(told: Numbers) -> Iterator[str]:
    other = "" if told.kit == KIT_VERSION else f"; kits that this server makes are {KIT_VERSION}"
    yield f"version: kit {told.kit}, Python {told.python}, protocol {PROTOCOL}{other}"


def _ledger(told: Any) -> str:
    count = "an unknown number of" if told.charges is None else str(told.charges)
    return f"{count} charges, head {told.ledger_head[:16]}…" if told.ledger_head else "nothing was spent yet"
