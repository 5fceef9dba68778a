"""A site at work, in real processes: what is answered, what is refused, what a kill leaves, and what lies in the exchange for it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cafe_kit import answering, enrolment, site_folder
from cafe_kit.inputs import hash_file
from cafe_kit.orders import Reply, order_hash, parse, verify
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.fakes import BY_SITE, NO_NOISE, TinyEngine
from tests.site_place import MARK, Place, make_place

ROOT = Path(__file__).resolve().parent.parent
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
    known = place.environment(None) | {"CAFE_KIT_ENGINE": "tests.fakes:TinyEngine", "PYTHONPATH": str(ROOT)}
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


def test_a_message_is_measured_before_it_is_parsed(place: Place) -> None:
    bodies(place).mkdir(parents=True)
    whole = json.dumps(message(place)).encode()
    assert reply(place, json.loads(command(place, whole + b" " * (answering.MAX_MESSAGE - len(whole))).stdout)).status == "ok"
    assert json.loads(command(place, whole + b" " * answering.MAX_MESSAGE).stdout)["problem"]["code"] == "CAFE-101"


def test_a_library_that_prints_does_not_spoil_the_answer(place: Place, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import os\nfrom tests.fakes import TinyEngine\n\n\nclass Loud(TinyEngine):\n"
        "    def vote(self, *given):\n        print('hello')\n        os.write(1, b'hello')\n        return super().vote(*given)\n"
    )
    bodies(place).mkdir(parents=True)
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
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


def test_what_left_without_noise_is_not_told_as_costing_nothing(place: Place) -> None:
    policy = place.home / "policy.toml"
    policy.write_text(policy.read_text().replace("allow_without_noise = false", "allow_without_noise = true"))
    bodies(place).mkdir(parents=True)
    order = place.server.order("north", "vote", NO_NOISE)
    asked = place.server.ask(order)
    asked["transport"]["output"] = str(bodies(place) / order_hash(order))
    assert reply(place, answer(place, asked)).status == "ok"
    assert "in 1 answer; 1 of them without noise, hence with no formal guarantee" in place.run("status").stdout
    assert place.json("status")["without_guarantee"] == 1
    shown = place.run("outbox", "show", "1").stdout
    assert "body sha256: " in shown and "{" not in shown and "prev:" not in shown


def test_the_models_of_the_kit_are_on_the_shelf(place: Place) -> None:
    from cafe_kit.inputs import hash_folder

    blob = hash_folder(place.kit / "models" / "embedder")
    order = place.server.order("north", "vote", BY_SITE)
    order = replace(order, inputs=order.inputs | {"embedder": blob})
    asked = place.server.ask(order)
    asked["transport"] |= {"output": "", "inputs": asked["transport"]["inputs"] | {"embedder": str(place.exchange / "nowhere")}}
    assert reply(place, answer(place, asked)).status == "ok"


# At work: cafe-site start over an exchange folder


@dataclass
class Exchange:
    """The server's end of the folder, and starts of the site in processes of their own."""

    place: Place
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def orders(self) -> Path:
        return self.place.exchange / f"{self.place.info.serial}.server" / "orders"

    @property
    def own(self) -> Path:
        return self.place.exchange / f"{self.place.info.serial}.site"

    def send(self, told: Any, name: str = "") -> str:
        """Put a message there, whole; its name."""
        self.orders.mkdir(parents=True, exist_ok=True)
        name = name or f"{time.time_ns():020d}.vote.json"
        beside = self.orders / f".{name}.part"
        beside.write_bytes(told if isinstance(told, bytes) else json.dumps(told).encode())
        beside.replace(self.orders / name)
        return name

    def answer_to(self, name: str, seconds: float = 20.0) -> dict[str, Any]:
        path = self.own / "answers" / name
        wait_for(path.exists, seconds)
        told: dict[str, Any] = json.loads(path.read_text())
        return told

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        known = self.place.environment(None) | {"CAFE_KIT_ENGINE": "tests.fakes:TinyEngine", "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-m", "cafe_kit.cli", "start", *words]
        pipe = subprocess.PIPE
        process = subprocess.Popen(line, env=known | environment, cwd=self.place.folder, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        self.started.append(process)
        return process

    def once(self, **environment: str) -> str:
        process = self.start("--once", **environment)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        return said


def wait_for(true: Callable[[], Any], seconds: float = 20.0) -> None:
    stop = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < stop, "it did not come"
        time.sleep(0.05)


@pytest.fixture
def exchange(place: Place) -> Iterator[Exchange]:
    exchange = Exchange(place)
    yield exchange
    for process in exchange.started:
        process.kill()
        process.wait()


def alive(exchange: Exchange) -> Any:
    return json.loads((exchange.own / "alive.json").read_text())


def test_orders_are_answered_in_their_order_until_a_signal(exchange: Exchange) -> None:
    names = [exchange.send(message(exchange.place, round=number)) for number in (2, 1)]
    process = exchange.start()
    told = [reply(exchange.place, exchange.answer_to(name)) for name in names]
    assert {one.status for one in told} == {"ok"}
    ledger = [json.loads(path.read_text())["order_hash"] for path in sorted((exchange.place.home / "ledger").glob("*.json"))]
    assert ledger == [one.order_hash for one in told]
    late = exchange.send(message(exchange.place, run="other"))
    assert reply(exchange.place, exchange.answer_to(late)).status == "ok"
    assert alive(exchange).keys() == {"time", "kit", "paused"} and not alive(exchange)["paused"]
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and "answered: vote 1, run run" in said and "Ended." in said
    assert not (exchange.own / "alive.json").exists() and MARK not in said


def test_an_answer_that_waits_for_the_admin_is_told_once(exchange: Exchange) -> None:
    """The server asks for it every few seconds, for as long as he takes."""
    place = exchange.place
    assert place.run("limits", "set", "outbox=review").returncode == 0
    asked, process = message(place), exchange.start()
    for _ in range(3):
        assert reply(place, exchange.answer_to(exchange.send(asked))).code == "CAFE-328"
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert said.count("waits for your word: vote 1, run run") == 1 and "failed an order" not in said and "refused" not in said
    explained = place.run("log", "--explain").stdout
    assert explained.count("Waits for your word") == 1 and "CAFE-328" not in explained
    assert "Waits for your word" in place.run("status").stdout


def test_what_the_site_puts_there_is_readable_for_the_other_side(exchange: Exchange) -> None:
    exchange.send(message(exchange.place))
    exchange.once()
    for path in exchange.own.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    assert all(path.stat().st_mode & 0o077 == 0 for path in exchange.place.home.rglob("*") if not path.is_symlink())


@pytest.mark.runs
def test_it_shows_life_and_progress_while_it_computes(exchange: Exchange) -> None:
    name = exchange.send(message(exchange.place))
    process = exchange.start(CAFE_TINY_SECONDS="8")
    wait_for((exchange.own / "alive.json").exists)
    beats, doing = set(), set()
    while not (exchange.own / "answers" / name).exists():
        shown = alive(exchange)
        beats.add(shown["time"])
        if "doing" in shown and shown["doing"]["phase"] != "reads":
            doing.add(json.dumps(shown["doing"], sort_keys=True))
        time.sleep(0.1)
    told = reply(exchange.place, exchange.answer_to(name))
    begun, done = (json.dumps({"done": n, "of": 1, "order_hash": told.order_hash, "phase": "vote"}) for n in (0, 1))
    assert begun in doing and doing <= {begun, done}
    gaps = [later - earlier for earlier, later in pairwise(sorted(beats))]
    assert len(gaps) >= 2 and max(gaps) < 5
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


@pytest.mark.runs
def test_a_signal_in_the_middle_leaves_nothing_half_done(exchange: Exchange) -> None:
    name = exchange.send(message(exchange.place))
    process = exchange.start(CAFE_TINY_SECONDS="60")
    wait_for(lambda: (exchange.own / "alive.json").exists() and alive(exchange).get("doing", {}).get("phase") == "vote")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not list((exchange.own / "answers").iterdir()) and not list((exchange.place.home / "ledger").glob("*.json"))
    exchange.once()
    assert reply(exchange.place, exchange.answer_to(name)).status == "ok"


@pytest.mark.runs
@pytest.mark.parametrize(
    "failpoint",
    ["site.before_charge", "site.after_charge", "seal.half_written", "site.after_seal", "site.before_publish", "site.after_publish"],
)
def test_a_kill_in_the_middle_of_an_answer(exchange: Exchange, failpoint: str) -> None:
    name = exchange.send(message(exchange.place))
    process = exchange.start(CAFE_FAILPOINT=failpoint)
    assert process.wait(30) == -signal.SIGKILL
    assert not (exchange.own / "answers" / name).exists()
    sealed = {path.name for path in exchange.place.home.glob("outbox/*/body.*") if not path.name.endswith(("tmp", "new"))}
    exchange.once()
    told = reply(exchange.place, exchange.answer_to(name))
    blob = told.outputs["body"]
    assert told.status == "ok" and (not sealed or sealed == {f"body.{blob.sha256}"})
    assert hash_file(exchange.own / "bodies" / told.order_hash) == blob.sha256
    assert exchange.place.json("status")["answers"] == 1


HOSTILE: list[bytes | str] = [
    b"",
    b"{",
    b"[" * 50_000,
    b"\xff\xfe",
    b"null",
    b"{}",
    b" " * (answering.MAX_MESSAGE + 1),
    json.dumps({"order": {}, "signature": "", "transport": {}}).encode(),
    json.dumps({"order": {"params": []}, "signature": "x", "transport": {"output": ["x"]}}).encode(),
    "link",
    "pipe",
    "folder",
]


def test_whatever_lies_in_the_exchange_the_site_goes_on(exchange: Exchange) -> None:
    names = []
    for number, content in enumerate(HOSTILE):
        name = f"hostile-{number}.json"
        if isinstance(content, bytes):
            exchange.send(content, name)
        elif content == "link":
            (exchange.place.folder / "elsewhere.json").write_text(json.dumps(message(exchange.place, run="linked")))
            (exchange.orders / name).symlink_to(exchange.place.folder / "elsewhere.json")
        elif content == "pipe":
            os.mkfifo(exchange.orders / name)
        else:
            (exchange.orders / name).mkdir()
        names.append(name)
    for odd in ("no-message", ".hidden.json", "ein Gruß.json", "a" * 200 + ".json", "neu\nzeile.json"):
        (exchange.orders / odd).write_text("{}")
    with (exchange.orders / "huge.json").open("wb") as file:
        file.truncate(10 * 2**30)
    order = message(exchange.place)
    names.append(
        exchange.send(
            order | {"order": order["order"] | {"site": "south"}, "transport": order["transport"] | {"output": ""}}, "for-another.json"
        )
    )
    names.append(
        exchange.send(order | {"transport": order["transport"] | {"output": str(exchange.place.home / "site.toml")}}, "elsewhere.json")
    )
    good = exchange.send(order)
    said = exchange.once()
    told = {path.name: json.loads(path.read_text()) for path in (exchange.own / "answers").iterdir()}
    assert told.keys() == {*names, "huge.json", good}
    assert reply(exchange.place, told.pop(good)).status == "ok"
    codes = {name: one["problem"]["code"] if "problem" in one else reply(exchange.place, one).code for name, one in told.items()}
    assert codes.pop("elsewhere.json") == "CAFE-131" and codes.pop("for-another.json") == "CAFE-102"
    assert set(codes.values()) == {"CAFE-101"}, codes
    assert MARK not in said + json.dumps(told)


def test_an_answer_goes_when_its_order_is_gone_and_its_body_a_little_later(exchange: Exchange) -> None:
    first, second = exchange.send(message(exchange.place)), exchange.send(message(exchange.place, round=2))
    exchange.once()
    kept = reply(exchange.place, exchange.answer_to(second))
    (exchange.orders / first).unlink()
    exchange.once()
    assert [path.name for path in (exchange.own / "answers").iterdir()] == [second]
    assert len(list(bodies(exchange.place).iterdir())) == 2  # the server may be copying it
    for path in bodies(exchange.place).iterdir():
        os.utime(path, (0, 0))
    exchange.once()
    assert [path.name for path in bodies(exchange.place).iterdir()] == [kept.order_hash]


def test_one_start_at_a_time(exchange: Exchange) -> None:
    first = exchange.start()
    wait_for((exchange.own / "alive.json").exists)
    second = exchange.start()
    said, _ = second.communicate(timeout=30)
    assert second.returncode == 1 and "CAFE-117" in said
    first.kill()
    first.wait()
    exchange.once()  # a killed one does not stand in the way


@pytest.mark.runs
def test_an_operator_who_takes_his_yes_back_ends_the_start(exchange: Exchange) -> None:
    process, path = exchange.start(), exchange.place.exchange / enrolment.answer_name(exchange.place.info.serial)
    wait_for((exchange.own / "alive.json").exists)
    yes = path.read_bytes()
    path.write_bytes(b"{")  # somebody else's, or not whole
    time.sleep(1.2)
    assert process.poll() is None
    exchange.place.approve(approved=False, reason="the study is over", made=time.time() + 5)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 4 and "CAFE-154" in said and "the study is over" in said
    path.write_bytes(yes)  # the older word does not come back
    again = exchange.start()
    assert "CAFE-154" in again.communicate(timeout=30)[0] and again.returncode == 4


def test_an_exchange_that_cannot_be_used(exchange: Exchange) -> None:
    exchange.own.symlink_to(exchange.place.folder)
    process = exchange.start()
    assert "CAFE-118" in process.communicate(timeout=30)[0] and process.returncode == 1
    exchange.own.unlink()
    exchange.place.exchange.rename(exchange.place.folder / "away")
    process = exchange.start()
    assert "CAFE-118" in process.communicate(timeout=30)[0] and process.returncode == 1


@pytest.mark.runs
def test_an_exchange_that_goes_away_and_comes_back(exchange: Exchange) -> None:
    process = exchange.start()
    wait_for((exchange.own / "alive.json").exists)
    away = exchange.place.exchange.rename(exchange.place.folder / "away")
    time.sleep(1.5)
    away.rename(exchange.place.exchange)
    name = exchange.send(message(exchange.place))
    assert reply(exchange.place, exchange.answer_to(name, 30)).status == "ok" and process.poll() is None


def test_two_unix_users_share_the_folder(place: Place) -> None:
    """The site is who runs this, the server is nobody (where that needs no more rights than there are): each reads the other's part."""
    other: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}

    def by_server(command: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["sh", "-c", f"umask 077; {command}"], input=data, cwd="/", capture_output=True, check=False, **other)

    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o1777)
        settings = site_folder.joined(place.home).model_copy(update={"exchange": shared})
        site_folder.save(place.home, settings)
        exchange = Exchange(replace(place, exchange=Path(shared), server=replace(place.server, folder=Path(shared, "inputs"))))
        message_ = json.dumps(message(exchange.place)).encode()
        orders, name = exchange.orders, "1.vote.json"
        made = by_server(f"mkdir -p '{orders}' && chmod 755 '{orders}' '{orders.parent}' && cat >'{orders}/{name}'", message_)
        assert made.returncode == 0, made.stderr
        assert by_server(f"chmod 644 '{orders}/{name}'").returncode == 0
        exchange.once()
        told = json.loads(by_server(f"cat '{exchange.own}/answers/{name}'").stdout)
        body = by_server(f"cat '{exchange.own}/bodies/{told['reply']['order_hash']}'").stdout
        assert hashlib.sha256(body).hexdigest() == told["reply"]["outputs"]["body"]["sha256"]
        assert by_server(f"rm '{orders}/{name}'").returncode == 0
        if other:
            assert by_server(f"cat '{place.home}/site.key'").returncode != 0
            assert by_server(f"echo x >'{exchange.own}/answers/{name}'").returncode != 0
            assert by_server(f"rm -r '{exchange.own}'").returncode != 0
            shutil.rmtree(exchange.own)
            by_server(f"mkdir '{exchange.own}'")  # somebody else would hold what this site writes
            said, _ = exchange.start("--once").communicate(timeout=30)
            assert "CAFE-118" in said


def test_a_site_that_is_not_let_in_does_not_start(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    assert "CAFE-156" in place.run("start").stderr
    place.join()
    assert "CAFE-155" in place.run("start").stderr
    place.approve(sealed="")
    place.join()
    assert "CAFE-128" in place.run("start", "--once").stderr


def test_a_site_at_work_leaves_no_memory_behind_when_it_crashes(exchange: Exchange) -> None:
    process = exchange.start()
    wait_for((exchange.own / "alive.json").exists)
    assert "Max core file size        0                    0" in Path(f"/proc/{process.pid}/limits").read_text()
    look = "import ctypes; from cafe_kit.host import no_core_dumps as no; no(); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"  # PR_GET_DUMPABLE: no debugger and no collector of crashes of the same user either
