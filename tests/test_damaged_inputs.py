"""An input that was damaged where it lies is put there anew when a site says so: some times, and for all sites at once."""

from __future__ import annotations

import os
import queue
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cafe_kit.orders import Order, Reply, Transport, order_hash, parse, sign
from cafe_kit.seat import Seat
from cafe_kit.seat_config import SeatConfig

from pipeline import remote_sites
from pipeline.depots import Depot, FolderDepot
from pipeline.messengers import Doing
from pipeline.object_depot import ObjectDepot
from pipeline.remote_sites import RemoteSites, Way
from pipeline.sites import Answer, Envelope
from server_store.object_store import Keys, ObjectStore, Place
from server_store.site_kits import SiteKit, SiteKits
from tests.fakes import BY_SERVER, TinyEngine, TinyServer
from tests.seaweedfs import S3Server

SITES = ("north", "south")


@dataclass
class Seats:
    """A messenger behind which real seats answer. ``before``: what somebody does to the bytes before a site fetches them."""

    seats: dict[str, Seat]
    before: Callable[[dict[str, Any]], None] = lambda message: None
    sent: dict[str, dict[str, Any]] = field(default_factory=dict)

    def send(self, kit: SiteKit, message: dict[str, Any]) -> str:
        ticket = f"{kit.site}-{len(self.sent)}"
        self.sent[ticket] = message
        return ticket

    def collect(self, tickets: Collection[str]) -> dict[str, Any]:
        return {ticket: self.answer(self.sent[ticket]) for ticket in tickets}

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        self.before(message)
        seat = self.seats[message["order"]["site"]]
        reply, signature = seat.answer(message["order"], message["signature"], message["transport"], TinyEngine(), lambda *_: None)
        return {"reply": asdict(reply), "signature": signature}

    def forget(self, ticket: str) -> None: ...

    def heard(self, kit: SiteKit) -> float | None:
        return None

    def doing(self, kit: SiteKit) -> Doing | None:
        return None


class Rig:
    """Two joined sites with real seats; they and the server share nothing but what the depot holds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server = folder, TinyServer(folder / "server")
        (self.server.folder / "base_model" / "model.safetensors").write_bytes(os.urandom(100_000))
        self.exchange = folder / "exchange"
        self.exchange.mkdir()
        self.mail = Seats({site: self._seat(site) for site in SITES})
        kits = SiteKits(folder / "kits.db")
        for site, seat in self.mail.seats.items():
            (self.exchange / f"{site}-serial.site" / "bodies").mkdir(parents=True)
            kits.issue(SiteKit(f"{site}-serial", "tiny", site, "gpu", 0.0, time.time() + 1000, "issued", "", str(self.exchange), ""))
            kits.request(f"{site}-serial", seat.verify_key, {}, time.time())
            kits.approve(f"{site}-serial", seat.verify_key, "the test", time.time())
        kits.close()

    def _seat(self, site: str) -> Seat:
        own = {"home": str(self.folder / site / "home"), "shelf": [str(self.folder / site / "models")]}
        return Seat(SeatConfig.model_validate(self.server.seat_config(site) | own))

    def ask(self, depot: Depot, *sites: str) -> dict[str, Answer]:
        """One training order for each; what came of it."""
        remote = RemoteSites(
            self.folder / "kits.db", "tiny", way=lambda kit: Way(self.mail, depot), may_take_part=lambda *_: None, keys={}, poll_s=0.01
        )
        answers: queue.Queue[Any] = queue.Queue()
        remote.hand_out([self._envelope(self.server.order(site, "train", privacy=BY_SERVER)) for site in sites], answers)
        found: dict[str, Answer] = {}
        while len(found) < len(sites):
            told = answers.get(timeout=60)
            if isinstance(told, Answer):
                found[told.order.site] = told
        remote.close()
        return found

    def _envelope(self, order: Order) -> Envelope:
        local = Transport({name: str(self.server.folder / name) for name in order.inputs}, str(self.server.output(order)), 60.0)
        return Envelope(order, sign(order, self.server.signing), local)

    def asked(self, site: str) -> int:
        """How often."""
        return sum(message["order"]["site"] == site for message in self.mail.sent.values())


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cafe_home: Path) -> Rig:
    return Rig(tmp_path)


def spoilt(path: Path) -> None:
    """As many other bytes."""
    path.write_bytes(bytes(path.stat().st_size))


def delivered(rig: Rig, answer: Answer) -> bool:
    reply = answer.reply
    return isinstance(reply, Reply) and reply.status == "ok" and bool(rig.server.open(answer.order))


@pytest.mark.parametrize("name", ["adapter", "base_model"])
def test_in_a_folder_a_damaged_input_is_put_anew_for_all_sites_at_once(rig: Rig, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    depot, puts = FolderDepot(), list[bool]()
    blob = rig.server.blob(name)
    lies = rig.exchange / "cafe-inputs" / (blob.sha256 + (".tar" if name == "base_model" else ""))
    offer = depot.offer
    monkeypatch.setattr(depot, "offer", lambda *given: (puts.append(given[4] and given[1] == blob), offer(*given))[1])
    depot.offer(SiteKit("", "", "", "gpu", 0.0, 0.0, "", "", str(rig.exchange), ""), blob, rig.server.folder / name, True, False)
    spoilt(lies)
    found = rig.ask(depot, *SITES)
    assert all(delivered(rig, answer) for answer in found.values()), found
    assert [rig.asked(site) for site in SITES] == [2, 2] and sum(puts) == 1


def test_a_site_to_which_it_never_comes_whole_is_out_of_the_round_with_the_reason(rig: Rig) -> None:
    """Whatever is put there, it is damaged again before this site has it; the other one goes on."""
    adapter = rig.server.blob("adapter")
    lies = rig.exchange / "cafe-inputs" / adapter.sha256
    whole = (rig.server.folder / "adapter").read_bytes()
    rig.mail.before = lambda message: spoilt(lies) if message["order"]["site"] == "north" else lies.write_bytes(whole) and None
    found = rig.ask(FolderDepot(), *SITES)
    assert delivered(rig, found["south"]) and rig.asked("south") == 1
    north = found["north"]
    assert (north.code, north.reply and north.reply.status) == ("CAFE-107", "failed") and "hash or size differ" in north.sentence
    assert rig.asked("north") == 1 + remote_sites._ANEW


@pytest.mark.system
@pytest.mark.parametrize("name", ["adapter", "base_model"])
def test_in_an_object_store_that_vouches_for_other_bytes_the_input_is_put_anew(rig: Rig, name: str, s3_server: S3Server) -> None:
    """Size and noted hash are right, so nothing but the site can tell."""
    store = ObjectStore(Place(s3_server.bucket, f"x-{uuid.uuid4().hex[:8]}", endpoint_url=s3_server.endpoint), Keys(*s3_server.key))
    depot, blob = ObjectDepot(store, "tiny-20261120-120000-abcd"), rig.server.blob(name)
    depot.offer(SiteKit("", "", "", "gpu", 0.0, 0.0, "", "", "", ""), blob, rig.server.folder / name, True)
    (key,) = [one.key for one in store.list()]
    (rig.folder / "other").write_bytes(bytes(store.size(key) or 0))
    store.put_file(key, rig.folder / "other", blob.sha256)
    found = rig.ask(depot, "north")
    assert delivered(rig, found["north"]), found
    reasons = [parse(Order, message["order"]) for message in rig.mail.sent.values()]
    assert {order_hash(order) for order in reasons} == {order_hash(found["north"].order)}, "the same order, as often as it takes"
