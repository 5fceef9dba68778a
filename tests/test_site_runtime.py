"""A site at work, in real processes: what is answered, what is refused, what a kill leaves, and what lies in the exchange for it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cafe_kit import answering, enrolment, site_folder
from cafe_kit.orders import Reply, order_hash, parse, verify
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.fakes import BY_SITE, TinyEngine
from tests.site_place import MARK, Place, make_place

_code_key = functools.cache(enrolment._code_key)


@pytest.fixture(autouse=True)
def _the_code_is_stretched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment, "_code_key", _code_key)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A site that was let in."""
    place = make_place(tmp_path)
    assert place.join().returncode == 3
    place.approve()
    assert place.join().returncode == 0
    return place


def bodies(place: Place) -> Path:
    return place.exchange / f"{place.info.serial}.site" / "bodies"


def message(place: Place, **changes: Any) -> dict[str, Any]:
    """An order as it travels, its body bound for the site's own folder."""
    order = place.server.order("north", "vote", BY_SITE, **changes)
    asked = place.server.ask(order)
    asked["transport"]["output"] = str(bodies(place) / order_hash(order))
    return asked


def reply(place: Place, told: dict[str, Any]) -> Reply:
    """What the site says, with its signature checked."""
    found = parse(Reply, told["reply"])
    verify(found, told["signature"], Ed25519PublicKey.from_public_bytes(bytes.fromhex(site_folder.joined(place.home).site_key)))
    return found


def answer(place: Place, asked: Any) -> dict[str, Any]:
    bodies(place).mkdir(parents=True, exist_ok=True)
    return answering.answer(place.home, site_folder.joined(place.home), asked, TinyEngine(), lambda *_: None)


def command(place: Place, data: bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``cafe-site answer`` in a process of its own."""
    known = place.environment(None) | {"CAFE_KIT_ENGINE": "tests.fakes:TinyEngine", "PYTHONPATH": str(Path(__file__).parent.parent)}
    line = [sys.executable, "-m", "cafe_kit.cli", "answer"]
    return subprocess.run(line, input=data, env=known | environment, cwd=place.folder, capture_output=True, timeout=60, check=False)


# One message, one answer


def test_the_command_answers_one_message_with_one_document(place: Place) -> None:
    asked = message(place)
    bodies(place).mkdir(parents=True)
    first = command(place, json.dumps(asked).encode())
    assert first.returncode == 0, first.stderr
    told = reply(place, json.loads(first.stdout))
    assert told.status == "ok" and (bodies(place) / told.order_hash).stat().st_size == told.outputs["body"].size
    assert command(place, json.dumps(asked).encode()).stdout == first.stdout  # delivered again: the same bytes
    assert place.json("status")["answers"] == 1


def test_where_to_put_the_body_may_come_later(place: Place) -> None:
    asked = message(place)
    later = asked["transport"]["output"]
    asked["transport"]["output"] = ""
    told = reply(place, answer(place, asked))
    assert told.status == "ok" and not list(bodies(place).iterdir())
    asked["transport"]["output"] = later
    assert reply(place, answer(place, asked)) == told and Path(later).stat().st_size == told.outputs["body"].size


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'"x"',
        b"\xff",
        b" " * (answering.MAX_MESSAGE + 1),
        b'{"order":1,"signature":"","transport":{}}',
    ],
)
def test_what_is_no_message_is_a_problem_that_is_named(place: Place, data: bytes) -> None:
    done = command(place, data)
    assert done.returncode == 0 and json.loads(done.stdout)["problem"]["code"] == "CAFE-101"


def test_a_library_that_prints_does_not_spoil_the_answer(place: Place, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import os\nfrom tests.fakes import TinyEngine\n\n\nclass Loud(TinyEngine):\n"
        "    def vote(self, *given):\n        print('hello')\n        os.write(1, b'hello')\n        return super().vote(*given)\n"
    )
    bodies(place).mkdir(parents=True)
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parent.parent)))
    done = command(place, json.dumps(message(place)).encode(), CAFE_KIT_ENGINE="loud:Loud", PYTHONPATH=path)
    assert reply(place, json.loads(done.stdout)).status == "ok" and b"hello" in done.stderr and b"hello" not in done.stdout


def test_only_a_site_that_was_let_in_answers(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    place.join()
    kept = place.home / "answer.json"

    def code(**changes: Any) -> str:
        if changes:
            place.approve(**changes).replace(kept)
        told = reply(place, answer(place, message(place)))
        assert told.status == "refused" or not told.code
        return told.code

    assert code() == "CAFE-155"  # the operator has not answered
    assert code(approved=False, reason=f"no \x1b[31m {MARK}") == "CAFE-154"
    assert code(expires=time.time() - 1) == "CAFE-115"
    assert code(expires=time.time() + 60) == ""
    assert place.json("status")["answers"] == 1
    whole = kept.read_bytes()
    kept.write_bytes(whole.replace(b'"approved": true', b'"approved": "a"'))
    assert code() == "CAFE-101"
    kept.write_bytes(whole.replace(place.info.site.encode(), b"south"))
    assert code() == "CAFE-102"


def test_a_policy_that_was_removed_is_not_replaced_by_looser_limits(place: Place) -> None:
    (place.home / "policy.toml").unlink()
    told = reply(place, answer(place, message(place)))
    assert (told.status, told.code) == ("refused", "CAFE-116") and not list(bodies(place).iterdir())
    for words in (("status",), ("limits",), ("log",)):
        assert "CAFE-116" in place.run(*words).stderr
    assert not (place.home / "policy.toml").exists()


@pytest.mark.parametrize(
    "where",
    ["{home}/site.toml", "{exchange}/other", "{bodies}/../other", "{bodies}/..", "{bodies}/other", "relative", "http://far.example/x"],
)
def test_a_body_goes_to_the_sites_own_place_alone(place: Place, where: str) -> None:
    asked = message(place)
    asked["transport"]["output"] = where.format(home=place.home, exchange=place.exchange, bodies=bodies(place))
    before = sorted(path.name for path in place.exchange.rglob("*"))
    assert reply(place, answer(place, asked)).code == "CAFE-131"
    assert sorted(path.name for path in place.exchange.rglob("*") if path != bodies(place) and path != bodies(place).parent) == before


def test_a_site_without_its_key_signs_nothing_and_makes_no_other(place: Place) -> None:
    settings, asked = site_folder.joined(place.home), message(place)
    (place.home / "site.key").rename(place.folder / "kept")
    told = answering.answer(place.home, settings, asked, TinyEngine(), lambda *_: None)
    assert told["problem"]["code"] == "CAFE-134" and not (place.home / "site.key").exists()


def test_a_refusal_of_the_seat_comes_through(place: Place) -> None:
    asked = message(place)
    assert reply(place, answer(place, asked | {"signature": "00" * 64})).code == "CAFE-102"
    place.run("pause")
    assert reply(place, answer(place, asked)).code == "CAFE-320"
    assert reply(place, answer(place, asked | {"transport": {}})).code == "CAFE-101"


def test_the_models_of_the_kit_are_on_the_shelf(place: Place) -> None:
    from cafe_kit.inputs import hash_folder

    blob = hash_folder(place.kit / "models" / "embedder")
    order = place.server.order("north", "vote", BY_SITE)
    order = replace(order, inputs=order.inputs | {"embedder": blob})
    asked = place.server.ask(order)
    asked["transport"] |= {"output": "", "inputs": asked["transport"]["inputs"] | {"embedder": "/nowhere"}}
    assert reply(place, answer(place, asked)).status == "ok"
