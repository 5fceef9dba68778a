"""The real functions behind a seat: models are loaded once, and training together changes no byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cafe_kit.engine import RealEngine
from cafe_kit.orders import Order, Reply
from cafe_kit.release import body_from_bytes, body_to_bytes
from cafe_kit.seat import Request, Seat, answer_many
from cafe_kit.seat_config import SeatConfig

from pipeline import adapters
from tests.fakes import NO_NOISE, TRAIN, TinyServer
from tests.tiny_llama import write_model

FLOAT = replace(TRAIN, dtype="float32", threads=1, max_tokens=48)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> TinyServer:
    """A server with a real, tiny base model and an adapter that fits it."""
    server = TinyServer(tmp_path_factory.mktemp("server"))
    write_model(server.folder / "base_model")
    shapes = adapters.schema(server.folder / "base_model", FLOAT.target_modules, FLOAT.lora_rank)
    (server.folder / "adapter").write_bytes(body_to_bytes(adapters.first_adapter(shapes, False, 1)))
    return server


def answers(server: TinyServer, orders: list[Order], engine: RealEngine) -> list[Reply]:
    requests = [Request(Seat(SeatConfig.model_validate(server.seat_config(order.site))), **server.ask(order)) for order in orders]
    return [reply for reply, _ in answer_many(requests, engine, lambda *_: None)]


def test_trained_together_or_alone_the_bytes_are_the_same_and_the_model_is_loaded_once(server):
    engine = RealEngine(threads=1)
    orders = [server.order(site, "train", NO_NOISE, params=FLOAT) for site in ("a", "b")]
    assert [reply.status for reply in answers(server, orders, engine)] == ["ok", "ok"]
    loaded = engine._base_model
    again = [replace(order, run="again") for order in orders]
    for order in again:
        assert answers(server, [order], engine)[0].status == "ok"
    assert engine._base_model is loaded
    assert [server.open(order) for order in orders] == [server.open(order) for order in again]
    assert server.open(orders[0]) != server.open(orders[1])


def test_another_number_format_is_another_model(server):
    engine = RealEngine(threads=1)
    assert answers(server, [server.order("a", "train", params=FLOAT, run="first")], engine)[0].status == "ok"
    loaded = engine._base_model
    assert answers(server, [server.order("a", "train", params=replace(FLOAT, dtype="bfloat16"), run="second")], engine)[0].status == "ok"
    assert engine._base_model is not loaded


def test_an_adapter_that_does_not_fit_is_a_code_and_not_a_charge(server):
    order = server.order("c", "train", params=replace(FLOAT, lora_rank=3))
    reply = answers(server, [order], RealEngine(threads=1))[0]
    assert (reply.status, reply.code) == ("failed", "CAFE-404") and not server.output(order).exists()


@pytest.mark.heavy
def test_votes_with_the_real_embedder(real_models, tmp_path: Path):
    server = TinyServer(tmp_path)
    (tmp_path / "embedder" / "config.json").unlink()
    (tmp_path / "embedder").rmdir()
    (tmp_path / "embedder").symlink_to(real_models.embedder.path)
    texts = {"billing": ["my invoice is wrong", "when is the bill due"], "card": ["my card was stolen", "I forgot the PIN of my card"]}
    lines = [json.dumps({"answer": label, "text": text}, separators=(",", ":")) for label in texts for text in texts[label]]
    (tmp_path / "candidates").write_text("\n".join(lines) + "\n")
    config = server.seat_config("a")
    rows = [("there is a mistake on the invoice", "billing"), ("somebody took my card", "card"), ("what is my PIN", "card")]
    Path(config["data"]["path"]).write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    order = server.order("a", "vote", NO_NOISE)
    request = Request(Seat(SeatConfig.model_validate(config)), **server.ask(order))
    assert answer_many([request], RealEngine(threads=1), lambda *_: None)[0][0].status == "ok"
    counts = body_from_bytes(server.open(order), {"counts": ((4,), "int64")})["counts"]
    assert np.array_equal(counts, [1, 0, 1, 1])
