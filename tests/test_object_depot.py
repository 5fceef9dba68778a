"""An order's whole way by links: a real seat, a real S3 server, and between them a network that fails at each step in turn."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cafe_kit import http_request, links
from cafe_kit.errors import CafeError
from cafe_kit.hashes import hash_file
from cafe_kit.orders import Blob, Order, Reply, Transport, order_hash, sign
from cafe_kit.release import Box
from cafe_kit.seat import Seat
from cafe_kit.seat_config import SeatConfig

from pipeline import object_depot
from pipeline.depots import Depot
from pipeline.object_depot import ObjectDepot
from server_store.object_store import Keys, ObjectStore, Place
from server_store.site_kits import SiteKit
from tests.fakes import BY_SERVER, TinyEngine, TinyServer
from tests.fault_proxy import FaultProxy, Kind, fault_proxy
from tests.seaweedfs import S3Server

pytestmark = pytest.mark.system
RUN = "tiny-20261120-120000-abcd"
KIT = SiteKit("serial", "tiny", "north", "cpu", 0.0, 9e9, "approved", "", "", "")


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch, cafe_home: Path) -> None:
    monkeypatch.setattr(links, "PATIENCE_S", 10.0)
    monkeypatch.setattr(http_request, "SILENCE_S", 1.0)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.port) as running:
        yield running


@pytest.fixture
def store(proxy: FaultProxy, s3_server: S3Server) -> ObjectStore:
    place = Place(s3_server.bucket, f"d-{uuid.uuid4().hex[:8]}", endpoint_url=proxy.endpoint)
    return ObjectStore(place, Keys(*s3_server.key), patience_s=20.0, timeout_s=1.0)


class Counting(TinyEngine):
    """Counts what is computed: a delivery that comes again must compute nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.computed = 0

    def vote(self, *args: Any) -> Any:
        self.computed += 1
        return super().vote(*args)

    def train(self, *args: Any) -> Any:
        self.computed += 1
        return super().train(*args)


class Journey:
    """A server and a site that share nothing but links."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self.folder, self.store, self.depot = folder, store, ObjectDepot(store, RUN)
        self.server, self.engine = TinyServer(folder / "server"), Counting()
        (self.server.folder / "embedder" / "model.onnx").write_bytes(os.urandom(300_000))
        (self.server.folder / "base_model" / "model.safetensors").write_bytes(os.urandom(300_000))
        self.shelf = folder / "site" / "models"
        config = self.server.seat_config("north") | {"home": str(folder / "site" / "home"), "shelf": [str(self.shelf)]}
        self.seat = Seat(SeatConfig.model_validate(config))

    def offered(self, order: Order) -> dict[str, str]:
        return {name: self.depot.offer(KIT, blob, self.server.folder / name) for name, blob in order.inputs.items()}

    def asked(self, order: Order, inputs: dict[str, str], output: str) -> Reply:
        transport = Transport(inputs, output, 60.0)
        told = self.seat.answer(asdict(order), sign(order, self.server.signing), asdict(transport), self.engine, lambda *_: None)
        return told[0]

    def sealed(self, order: Order, inputs: dict[str, str]) -> Blob:
        """The first delivery: the site computes, seals, and tells what it would send."""
        reply = self.asked(order, inputs, "")
        assert reply.status == "ok", (reply.code, reply.sentence)
        return reply.outputs["body"]

    def delivered(self, order: Order, inputs: dict[str, str], body: Blob) -> Reply:
        """The second: now it knows where to."""
        return self.asked(order, inputs, self.depot.place(KIT, order_hash(order), body))

    def fetched(self, order: Order, body: Blob) -> bytes:
        target = self.folder / "server" / "inbox" / order_hash(order)
        self.depot.collect(KIT, order_hash(order), body, target)
        return target.read_bytes()

    def left(self) -> list[str]:
        return [one.key for one in self.store.list()]


@pytest.fixture
def journey(tmp_path: Path, store: ObjectStore) -> Journey:
    return Journey(tmp_path, store)


def refusal(act: Callable[[], object]) -> CafeError:
    with pytest.raises(CafeError) as caught:
        act()
    assert "X-Amz" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", ["vote", "train"])
def test_an_order_goes_its_way(journey: Journey, kind: str) -> None:
    depot: Depot = journey.depot
    order = journey.server.order("north", kind, privacy=BY_SERVER)
    assert depot.place(KIT, order_hash(order), None) == ""
    inputs = journey.offered(order)
    body = journey.sealed(order, inputs)
    assert journey.left() and not [key for key in journey.left() if order_hash(order) in key]  # nothing has left yet
    assert journey.delivered(order, inputs, body).outputs["body"] == body
    data = journey.fetched(order, body)
    assert hashlib.sha256(data).hexdigest() == body.sha256 and journey.engine.computed == 1
    assert Box.open(data, journey.server.sealing, order_hash(order).encode())
    depot.clear(KIT, order_hash(order))
    for name, blob in order.inputs.items():
        if (journey.server.folder / name).is_file():
            depot.withdraw(KIT, blob)
    assert [key for key in journey.left() if not key.endswith(".tar")] == []
    assert journey.depot.sweep() == 1 and journey.left() == []
    assert sorted(path.name for path in journey.shelf.iterdir() if not path.name.startswith(".")) == [
        next(blob.sha256 for name, blob in order.inputs.items() if (journey.server.folder / name).is_dir())
    ]


FAULTS: list[tuple[Kind, int, float]] = [
    ("refuse", 2, 0), ("status", 2, 503), ("status", 2, 500), ("black hole", 1, 0), ("slow", 1, 0.05), ("cut up", 2, 600),
    ("cut down", 2, 60), ("cut down", 2, 400), ("flip up", 1, 3000), ("flip down", 1, 3000),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "times", "after"), FAULTS)
def test_a_fault_at_any_step_costs_time_and_nothing_else(journey: Journey, proxy: FaultProxy, kind: Kind, times: int, after: float) -> None:
    order = journey.server.order("north", "train", privacy=BY_SERVER)

    def step(act: Callable[[], Any]) -> Any:
        """What a run does: the same again, after what passes."""
        proxy.fail(kind, times, after)
        for _ in range(3):
            try:
                found = act()
            except CafeError as error:
                assert error.code in ("CAFE-461", "CAFE-462", "CAFE-683", "CAFE-107"), error
                continue
            if not isinstance(found, Reply) or found.status == "ok":
                proxy.heal()
                return found
        raise AssertionError("it never went through")

    inputs = step(lambda: journey.offered(order))
    body = step(lambda: journey.sealed(order, inputs))
    assert step(lambda: journey.delivered(order, inputs, body)).outputs["body"] == body
    assert hashlib.sha256(step(lambda: journey.fetched(order, body))).hexdigest() == body.sha256
    step(lambda: journey.depot.clear(KIT, order_hash(order)))
    step(lambda: journey.depot.sweep())
    assert journey.left() == [] and journey.engine.computed == 1
    assert proxy.seen[kind] >= 3, proxy.seen


def test_a_link_that_expired_is_renewed_and_the_same_bytes_come(journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    order = journey.server.order("north", "vote", privacy=BY_SERVER)
    monkeypatch.setattr(object_depot, "LINK_S", 1)
    inputs = journey.offered(order)
    time.sleep(2.2)
    late = journey.asked(order, inputs, "")
    assert (late.status, late.code) == ("failed", "CAFE-161") and journey.engine.computed == 0
    monkeypatch.setattr(object_depot, "LINK_S", 60)
    inputs = journey.offered(order)
    body = journey.sealed(order, inputs)
    monkeypatch.setattr(object_depot, "LINK_S", 1)
    output = journey.depot.place(KIT, order_hash(order), body)
    time.sleep(2.2)
    late = journey.asked(order, inputs, output)
    assert (late.status, late.code) == ("failed", "CAFE-161") and "expired" in late.sentence
    monkeypatch.setattr(object_depot, "LINK_S", 60)
    assert journey.delivered(order, inputs, body).outputs["body"] == body
    assert hashlib.sha256(journey.fetched(order, body)).hexdigest() == body.sha256
    assert journey.engine.computed == 1  # upload only, the second and the third time


def test_a_body_that_was_replaced_or_deleted_in_the_store_is_sent_again(journey: Journey) -> None:
    order = journey.server.order("north", "vote", privacy=BY_SERVER)
    inputs = journey.offered(order)
    body = journey.sealed(order, inputs)
    assert refusal(lambda: journey.fetched(order, body)).code == "CAFE-461"
    journey.delivered(order, inputs, body)
    key = next(key for key in journey.left() if order_hash(order) in key)
    for other in (b"x" * body.size, b"short"):
        journey.store.put(key, other)
        assert refusal(lambda: journey.fetched(order, body)).code == "CAFE-462"
    assert not (journey.folder / "server" / "inbox" / order_hash(order)).exists()
    journey.delivered(order, inputs, body)
    assert hashlib.sha256(journey.fetched(order, body)).hexdigest() == body.sha256 and journey.engine.computed == 1


def test_an_input_that_was_replaced_or_deleted_is_offered_anew(journey: Journey) -> None:
    order = journey.server.order("north", "train", privacy=BY_SERVER)
    inputs = journey.offered(order)
    for key in journey.left():
        size = journey.store.size(key)
        journey.store.put(key, b"x" * (size or 0))
    assert journey.asked(order, inputs, "").code in ("CAFE-107", "CAFE-165")
    inputs = journey.offered(order)
    assert links.fetch(inputs["adapter"], order.inputs["adapter"])
    for key in journey.left():
        journey.store.delete(key)
    assert journey.asked(order, inputs, "").code == "CAFE-161"
    assert journey.sealed(order, journey.offered(order)) and journey.engine.computed == 1


def test_an_input_goes_up_once_however_many_fetch_it(journey: Journey, proxy: FaultProxy, tmp_path: Path) -> None:
    order = journey.server.order("north", "train", privacy=BY_SERVER)
    journey.offered(order)
    before = {one.key: one.modified for one in journey.store.list()}
    time.sleep(1.1)
    other = ObjectDepot(journey.store, RUN)  # another worker
    for depot in (journey.depot, other):
        for name, blob in order.inputs.items():
            assert depot.offer(KIT, blob, journey.server.folder / name)
    assert {one.key: one.modified for one in journey.store.list()} == before
    assert not list((Path(os.environ["CAFE_HOME"]) / "parcels").iterdir())


def test_a_model_stays_for_the_next_run(journey: Journey) -> None:
    blob, folder = journey.server.blob("base_model"), journey.server.folder / "base_model"
    url = journey.depot.offer(KIT, blob, folder, shared=True)
    assert links.read(url, 10) and journey.depot.sweep() == 0
    assert journey.left() == [f"models/{blob.sha256}.tar"]
    assert object_depot.sweep_models(journey.store) == 1 and journey.left() == []


def test_a_site_cannot_put_more_than_it_said_nor_anything_else(journey: Journey, tmp_path: Path) -> None:
    body = Blob(64 * "a", 1000)
    url = journey.depot.place(KIT, 64 * "b", body)
    for size in (999, 1001, 50_000_000):
        (tmp_path / "big").write_bytes(bytes(size))
        assert refusal(lambda: links.upload(tmp_path / "big", url)).code == "CAFE-161"
    assert journey.left() == []
    (tmp_path / "big").write_bytes(bytes(1000))
    links.upload(tmp_path / "big", url)  # of the right size, but other bytes
    assert refusal(lambda: journey.depot.collect(KIT, 64 * "b", body, tmp_path / "got")).code == "CAFE-462"


def test_one_run_sees_and_sweeps_nothing_of_another(journey: Journey, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"12345")
    blob = Blob(hash_file(tmp_path / "input"), 5)
    other = ObjectDepot(journey.store, RUN + "-2")
    journey.depot.offer(KIT, blob, tmp_path / "input")
    other.offer(KIT, blob, tmp_path / "input")
    assert journey.depot.sweep() == 1
    assert journey.left() == [f"runs/{RUN}-2/inputs/{blob.sha256}"] and other.sweep() == 1


def test_what_lies_in_the_bucket_is_sealed_and_no_link_is_written_down(
    journey: Journey, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    order = journey.server.order("north", "train", privacy=BY_SERVER)
    inputs = journey.offered(order)
    body = journey.sealed(order, inputs)
    journey.delivered(order, inputs, body)
    journey.asked(replace(order, round=2), inputs | {"adapter": inputs["adapter"] + "0"}, "")  # and one that fails
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = journey.store.read(next(key for key in journey.left() if order_hash(order) in key), 10**6)
    with pytest.raises(SafetensorError):
        load(data or b"")
    written = [path for path in journey.folder.rglob("*") if path.is_file()]
    assert len(written) > 10 and not [path for path in written if b"X-Amz-Signature" in path.read_bytes()]
    assert "X-Amz-Signature" not in caplog.text + "".join(capfd.readouterr())


def test_a_store_that_is_down_is_a_refusal_that_may_pass(journey: Journey, proxy: FaultProxy, s3_server: S3Server, tmp_path: Path) -> None:
    store = ObjectStore(journey.store.place, Keys(*s3_server.key), patience_s=0.2, timeout_s=1.0)
    depot = ObjectDepot(store, RUN)
    (tmp_path / "input").write_bytes(b"12345")
    proxy.fail("refuse", 10_000)
    for act in (
        lambda: depot.offer(KIT, Blob(hash_file(tmp_path / "input"), 5), tmp_path / "input"),
        lambda: depot.collect(KIT, 64 * "b", Blob(64 * "a", 5), tmp_path / "got"),
        lambda: depot.clear(KIT, 64 * "b"),
        depot.sweep,
    ):
        assert refusal(act).code == "CAFE-683"
    proxy.heal()
    shutil.rmtree(journey.server.folder / "embedder")
    gone = journey.server.folder / "embedder"
    assert refusal(lambda: depot.offer(KIT, Blob(64 * "a", 5), gone)).code == "CAFE-652"
