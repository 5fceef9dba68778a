"""What leaves is first written for people to read; with review it waits for the admin's word, in a dry run it stays."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cafe_kit import explain, outbox, results
from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_folder
from cafe_kit.orders import Order, Reply, ResultParams, order_hash
from cafe_kit.policy import Policy, load_policy
from cafe_kit.release import body_from_bytes, clip_steps
from cafe_kit.seat import Seat
from cafe_kit.seat_config import SeatConfig
from safetensors.numpy import load_file

from tests.fakes import BY_SERVER, BY_SITE, NO_NOISE, TinyServer
from tests.test_seat import VOTES, ask, bodies, charges, killed_at

TERMS = [NO_NOISE, BY_SERVER, BY_SITE]


@pytest.fixture
def server(tmp_path: Path) -> TinyServer:
    return TinyServer(tmp_path)


@pytest.fixture
def config(server: TinyServer) -> SeatConfig:
    return SeatConfig.model_validate(server.seat_config("north"))


def policy(config: SeatConfig, text: str) -> None:
    home = Path(config.home)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "policy.toml").write_text(text)


def folder(config: SeatConfig, order: Order) -> Path:
    return Path(config.home) / "outbox" / order_hash(order)


# --- what is written for people --------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", TERMS, ids=["none", "server", "local"])
def test_the_votes_that_leave_are_listed_one_by_one(server, config, terms):
    order = server.order("north", "vote", terms)
    ask(Seat(config), server, order)
    told = json.loads((folder(config, order) / "contents.json").read_text(encoding="utf-8"))
    name = "counts" if terms is NO_NOISE else "q"
    left = body_from_bytes(server.open(order), {name: VOTES})[name]
    key = "votes" if terms is NO_NOISE else "steps"
    assert [line[key] for line in told["votes"]] == left.tolist()
    assert [line["text"] for line in told["votes"]] == [f"{label} {n}" for label in ("billing", "card") for n in range(3)]
    if terms is not NO_NOISE:
        assert [line["votes"] for line in told["votes"]] == pytest.approx((left / terms.grid).tolist())
    body = server.output(order).read_bytes()
    assert told["body"].startswith(hashlib.sha256(body).hexdigest()) and told["order"] == order_hash(order)
    sealed_to = server.sealing.public_key().public_bytes_raw().hex()
    assert (sealed_to in told["readable by"]) == (terms is not BY_SITE)


@pytest.mark.parametrize("terms", TERMS, ids=["none", "server", "local"])
def test_an_update_is_described_and_its_numbers_lie_beside(server, config, terms):
    tight = replace(terms, clip_norm=0.125)
    order = server.order("north", "train", tight)
    ask(Seat(config), server, order)
    text = (folder(config, order) / "contents.txt").read_text()
    assert "layer.1.lora_A.weight  2 x 3  float32" in text and "4 tensors" in text
    assert hashlib.sha256(server.output(order).read_bytes()).hexdigest() in text
    plain = folder(config, order) / "contents.safetensors"
    assert plain.exists() == (terms is not BY_SITE)
    if terms is BY_SITE:  # the body itself can be read
        assert "noise added by this site (2 x clip)" in text
        return
    assert plain.read_bytes() == server.open(order)
    if terms is BY_SERVER:
        q = load_file(plain)["q"].astype(float)
        after = float(text.partition("norm after the clip")[2].split()[0])
        before = float(text.partition("norm before the clip")[2].split()[0])
        assert after == pytest.approx(np.linalg.norm(q) / tight.grid, rel=1e-4) and after <= 0.125 < before
        assert np.linalg.norm(q) <= clip_steps(tight)


def test_words_of_the_server_are_one_harmless_line(server, config):
    lines = [{"answer": "billing", "text": "bill\u202e\x1b[31m\nred <b>"}, {"answer": "card", "text": "x" * 5000}]
    text = "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines)
    (server.folder / "candidates").write_text(text, encoding="utf-8")
    order = server.order("north", "vote", BY_SERVER)
    assert ask(Seat(config), server, order).status == "ok"
    written = (folder(config, order) / "contents.json").read_text(encoding="utf-8")
    assert not {"\u202e", "\x1b"} & set(written) and "\\u202e" not in written
    shown = [line["text"] for line in json.loads(written)["votes"]]
    assert shown[0] == "bill[31m red <b>" and len(shown[1]) == 200


@pytest.mark.parametrize("point", ["site.after_charge", "seal.before_write", "seal.after_rename", "site.after_seal", "site.before_publish"])
def test_nothing_is_out_that_was_not_written_first(server, config, point):
    """Killed anywhere: what tells of the body is there before the body leaves, and tells of the body that left."""
    order = server.order("north", "vote", BY_SITE)
    killed_at(point, lambda: ask(Seat(config), server, order))
    assert not server.output(order).exists()
    assert ask(Seat(config), server, order).status == "ok"
    told = json.loads((folder(config, order) / "contents.json").read_text(encoding="utf-8"))
    assert [line["steps"] for line in told["votes"]] == body_from_bytes(server.open(order), {"q": VOTES})["q"].tolist()
    kept = sorted(path.name.split(".")[0] for path in folder(config, order).iterdir())
    assert kept == ["body", "contents", "draft", "reply"]


def test_numbers_go_with_their_body_and_words_stay(server, config):
    orders = [server.order("north", "train", NO_NOISE, round=n) for n in range(1, 5)]
    seat = Seat(config)
    for order in orders:
        ask(seat, server, order)
    assert [(folder(config, order) / "contents.safetensors").exists() for order in orders] == [False, False, True, True]
    assert all((folder(config, order) / "contents.txt").exists() for order in orders)


# --- review ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", TERMS, ids=["none", "server", "local"])
def test_a_reviewed_answer_waits_and_then_leaves_as_it_was(server, config, terms):
    policy(config, 'outbox = "review"')
    order = server.order("north", "train", terms)
    for _ in range(3):
        reply = ask(Seat(config), server, order)
        assert (reply.status, reply.code, reply.outputs) == ("failed", "CAFE-328", {})
        assert not server.output(order).exists() and charges(config) == 1
    (kept,) = bodies(config)
    (one,) = outbox.waiting(Path(config.home))
    assert (one.order_hash, one.release_id) == (order_hash(order), order.release_id)
    assert {path.name for path in one.contents} >= {"contents.txt"}
    assert explain.sentence(explain.sent(Path(config.home), 1e-5)[0], Policy()).startswith("Waits for your word: ")
    outbox.approve(Path(config.home), order_hash(order))
    reply = ask(Seat(config), server, order)
    assert reply.status == "ok" and kept == f"body.{reply.outputs['body'].sha256}"
    assert hashlib.sha256(server.output(order).read_bytes()).hexdigest() == reply.outputs["body"].sha256
    assert outbox.waiting(Path(config.home)) == [] and charges(config) == 1


def test_a_refused_answer_never_leaves_and_its_charge_stays(server, config):
    policy(config, 'outbox = "review"')
    order = server.order("north", "vote", BY_SITE)
    ask(Seat(config), server, order)
    outbox.refuse(Path(config.home), order_hash(order))
    policy(config, 'outbox = "auto"')  # a decision is for good
    reply = ask(Seat(config), server, order)
    assert (reply.status, reply.code) == ("refused", "CAFE-342") and charges(config) == 1 and not server.output(order).exists()
    with pytest.raises(CafeError, match="CAFE-347"):
        outbox.approve(Path(config.home), order_hash(order))
    assert explain.sentence(explain.sent(Path(config.home), 1e-5)[0], Policy()).startswith("Kept in by you: ")
    assert "You kept the answer" in json.dumps(explain.history(Path(config.home), Policy(), explained=True))


def test_what_was_made_for_review_waits_whatever_the_mode_becomes(server, config):
    policy(config, 'outbox = "review"')
    order = server.order("north", "vote", BY_SERVER)
    ask(Seat(config), server, order)
    policy(config, 'outbox = "auto"')
    assert ask(Seat(config), server, order).code == "CAFE-328"
    assert ask(Seat(config), server, server.order("north", "vote", BY_SERVER, round=2)).status == "ok"


def test_a_kill_between_body_and_reply_does_not_free_what_waits(server, config):
    policy(config, 'outbox = "review"')
    order = server.order("north", "vote", BY_SITE)
    killed_at("seal.after_rename", lambda: ask(Seat(config), server, order))
    policy(config, 'outbox = "auto"')
    assert ask(Seat(config), server, order).code == "CAFE-328" and not server.output(order).exists()
    assert len(outbox.waiting(Path(config.home))) == 1


@pytest.mark.parametrize("name", ["", "..", "../ledger", "a" * 64])
def test_a_word_about_nothing(server, config, name):
    ask(Seat(config), server, server.order("north", "vote", BY_SERVER))
    for act in (outbox.approve, outbox.refuse):
        with pytest.raises(CafeError, match="CAFE-347"):
            act(Path(config.home), name)


# --- dry run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vote", "train"])
@pytest.mark.parametrize("terms", TERMS, ids=["none", "server", "local"])
def test_a_dry_run_writes_charges_nothing_and_sends_nothing(server, config, kind, terms):
    policy(config, 'outbox = "dry-run"')
    order = server.order("north", kind, terms)
    for _ in range(2):
        reply = ask(Seat(config), server, order)
        assert (reply.status, reply.code, reply.outputs) == ("refused", "CAFE-330", {})
    assert charges(config) == 0 and bodies(config) == [] and not list((server.folder / "inbox").iterdir())
    written = Path(config.home) / "outbox" / "dry-run" / order_hash(order)
    assert any(written.glob("contents.*"))
    policy(config, 'outbox = "auto"')
    assert ask(Seat(config), server, order).status == "ok" and charges(config) == 1


def test_in_a_dry_run_nothing_leaves_that_was_ready_before(server, config):
    order = server.order("north", "vote", BY_SITE)
    ask(Seat(config), server, order)
    server.output(order).unlink()
    policy(config, 'outbox = "dry-run"')
    assert ask(Seat(config), server, order).code == "CAFE-330" and not server.output(order).exists()


def test_a_dry_run_still_says_what_the_site_does_not_allow(server, config):
    policy(config, 'outbox = "dry-run"\nallow_without_noise = false')
    assert ask(Seat(config), server, server.order("north", "vote", NO_NOISE)).code == "CAFE-311"


def test_a_dry_run_keeps_the_numbers_of_two_rounds_only(server, config):
    policy(config, 'outbox = "dry-run"')
    orders = [server.order("north", "train", NO_NOISE, round=n) for n in range(1, 5)]
    for order in orders:
        ask(Seat(config), server, order)
    folders = [Path(config.home) / "outbox" / "dry-run" / order_hash(order) for order in orders]
    assert [(place / "contents.safetensors").exists() for place in folders] == [False, False, True, True]
    assert all((place / "contents.txt").exists() for place in folders)


# --- whose noise -------------------------------------------------------------------------------------------------------


def test_a_site_may_want_its_own_noise(server, config):
    policy(config, 'trust = ["local"]')
    assert ask(Seat(config), server, server.order("north", "vote", BY_SERVER)).code == "CAFE-346"
    assert ask(Seat(config), server, server.order("north", "vote", BY_SITE)).status == "ok"


@pytest.mark.parametrize("text", ['outbox = "none"', "outbox = true", 'trust = ["nobody"]', 'trust = "local"'])
def test_modes_that_do_not_exist(tmp_path, text):
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(CafeError, match="CAFE-316"):
        load_policy(tmp_path / "policy.toml")


# --- the finished adapter ----------------------------------------------------------------------------------------------


def adapter(server: TinyServer, name: str = "final", **files: bytes) -> Path:
    made = server.folder / name
    made.mkdir(exist_ok=True)
    plain = {"adapter_config.json": b"{}", "adapter_model.safetensors": (server.folder / "adapter").read_bytes(), "README.md": b"# A card"}
    for file, data in {**plain, **files}.items():
        (made / file).write_bytes(data)
    return made


def result(server: TinyServer, made: Path, **changes: Any) -> tuple[Order, dict[str, Any]]:
    blob = hash_folder(made)
    plain: dict[str, Any] = {"stage": 1, "round": 0, "inputs": {"adapter_folder": blob}, "params": ResultParams(blob.sha256)}
    order = server.order("north", "hello", **plain | changes)
    asked = server.ask(order)
    asked["transport"] |= {"inputs": {"adapter_folder": str(made)}, "output": ""}
    return order, asked


def keep(server: TinyServer, config: SeatConfig, made: Path, **changes: Any) -> Reply:
    order, asked = result(server, made, **changes)
    return ask(Seat(config), server, order, transport=asked["transport"])


def shelved(config: SeatConfig) -> list[str]:
    return sorted(path.name for path in (Path(config.home) / results.FOLDER).iterdir() if not path.name.startswith("."))


def test_a_result_is_kept_with_the_order_that_names_it(server, config):
    made = adapter(server)
    for _ in range(2):
        reply = keep(server, config, made)
        assert (reply.status, reply.outputs) == ("ok", {})
    shelf = Path(config.home) / results.FOLDER
    assert hash_folder(shelf / hash_folder(made).sha256) == hash_folder(made)
    order, asked = result(server, made)
    assert json.loads((shelf / "run.json").read_text()) == json.loads(json.dumps({"order": asdict(order), "signature": asked["signature"]}))
    assert charges(config) == 0 and shelved(config) == sorted([hash_folder(made).sha256, "run.json"])


def test_a_result_on_the_shelf_is_not_fetched_again(server, config):
    made = adapter(server)
    order, asked = result(server, made)
    keep(server, config, made)
    asked["transport"]["inputs"] = {"adapter_folder": "/nowhere"}
    assert ask(Seat(config), server, order, transport=asked["transport"]).status == "ok"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "run.py"])
def test_a_result_with_other_files_is_refused_and_the_old_one_stays(server, config, name):
    keep(server, config, adapter(server))
    before = shelved(config)
    assert keep(server, config, adapter(server, "evil", **{name: b"x"})).code == "CAFE-348"
    assert shelved(config) == before


def test_a_result_that_is_another_one(server, config):
    made = adapter(server)
    assert keep(server, config, made, params=ResultParams("ab" * 32)).code == "CAFE-348"
    assert keep(server, config, adapter(server, "hidden", **{".hidden": b"left out of the hash"})).code == "CAFE-348"
    order, asked = result(server, made)
    (made / "README.md").write_text("changed")
    assert ask(Seat(config), server, order, transport=asked["transport"]).code == "CAFE-107"
    (made / "README.md").unlink()
    (made / "README.md").symlink_to(Path(config.data.path))
    assert keep(server, config, made).code == "CAFE-348"
    assert not (Path(config.home) / results.FOLDER / "run.json").exists()
