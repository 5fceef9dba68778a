"""What a site's admin does beside answering: joining through an object store, taking the adapter, letting answers out, leaving."""

from __future__ import annotations

import functools
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cafe_kit import answering, connection, enrolment, service, site_folder
from cafe_kit.connection import Folder, GlobusCompute
from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_folder
from cafe_kit.orders import ResultParams, sign
from cafe_kit.policy import load_policy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.browser import chromium_path
from tests.fakes import BY_SITE, TinyEngine
from tests.seaweedfs import S3Server
from tests.site_place import CODE, SERIAL, Place, make_place

ROOT = Path(__file__).resolve().parent.parent
_code_key = functools.cache(enrolment._code_key)


@pytest.fixture(autouse=True)
def _the_code_is_stretched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment, "_code_key", _code_key)


Make = Callable[..., Place]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return functools.partial(make_place, tmp_path)


@pytest.fixture
def place(make: Make) -> Place:
    """A site that was let in."""
    place = make()
    assert place.join().returncode == 3
    place.approve()
    assert place.join().returncode == 0
    return place


def answer(place: Place, order: Any, **transport: Any) -> Any:
    asked = place.server.ask(order)
    asked["transport"] |= {"output": "", **transport}
    return answering.answer(place.home, site_folder.joined(place.home), asked, TinyEngine(), lambda *_: None)


def start(place: Place, *words: str, **environment: str) -> subprocess.Popen[str]:
    known = place.environment(None) | {"CAFE_KIT_ENGINE": "tests.fakes:TinyEngine", "PYTHONPATH": str(ROOT)} | environment
    line = [sys.executable, "-m", "cafe_kit.cli", "start", *words]
    return subprocess.Popen(line, env=known, cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(true: Callable[[], Any], seconds: float = 20.0) -> None:
    stop = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < stop, "it did not come"
        time.sleep(0.05)


# Joining through an object store


def texts(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


@pytest.mark.system
def test_joining_through_an_object_store(make: Make, s3_server: S3Server) -> None:
    from tests.test_object_store import store_at

    store = store_at(s3_server)
    asked, answered = f"joining/{enrolment.request_name(SERIAL)}", f"joining/{enrolment.answer_name(SERIAL)}"
    address = {"request_url": store.url_put(asked, None, 600), "answer_url": store.url_get(answered, 600)}
    place = make(sealed=enrolment.seal_address(address, CODE, SERIAL))
    assert "X-Amz-Signature=" not in texts(place.kit)  # before the code opens it, it is nowhere to be read
    first = place.join()
    assert first.returncode == 3 and "CAFE-155" in first.stderr and "four words" in first.stdout
    request = store.read(asked, 64_000)
    store.delete(asked)  # the operator has read it
    assert place.run("join", "--wait", "0").returncode == 3 and store.size(asked) is None  # and is not asked a second time
    (place.exchange / enrolment.request_name(SERIAL)).write_bytes(request)
    store.put(answered, place.approve(way=Folder()).read_bytes())
    done = place.run("join", "--wait", "20")
    assert done.returncode == 0, done.stderr
    assert place.json("status")["state"] == "joined"
    said = first.stdout + first.stderr + done.stdout + done.stderr
    assert "X-Amz" not in texts(place.home) + said and "Signature" not in texts(place.home) + said
    assert site_folder.joined(place.home).exchange == ""


def test_an_object_store_that_is_away(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cafe_kit.links.PATIENCE_S", 0.2)
    nowhere = "http://127.0.0.1:9/joining?X-Amz-Signature=abc"
    place = make(sealed=enrolment.seal_address({"request_url": nowhere, "answer_url": nowhere}, CODE, SERIAL))
    done = place.join()
    assert done.returncode == 1 and "CAFE-159" in done.stderr and "abc" not in done.stdout + done.stderr
    (place.exchange / enrolment.request_name(SERIAL)).write_bytes((place.home / "request.json").read_bytes())
    assert place.run("join", "--approval", str(place.approve())).returncode == 0  # by hand it goes on


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://far.example/x", "ftp://far.example/x"])
def test_an_address_that_is_no_link_over_tls(make: Make, url: str) -> None:
    place = make(sealed=enrolment.seal_address({"request_url": url, "answer_url": url}, CODE, SERIAL))
    done = place.join()
    assert done.returncode == 1 and "CAFE-161" in done.stderr
    assert not (place.home / "site.toml").exists()


# After the approval


def test_join_goes_on_to_be_at_work(make: Make) -> None:
    place = make()
    assert place.join().returncode == 3
    place.approve()
    known = place.environment(None) | {"CAFE_KIT_ENGINE": "tests.fakes:TinyEngine", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "cafe_kit.cli", "join", "--start"]
    process = subprocess.Popen(line, env=known, cwd=place.folder, stdout=subprocess.PIPE, text=True)
    try:
        wait_for((place.exchange / f"{SERIAL}.site" / "alive.json").exists)
        told = place.json("status")
        assert told["running"] and told["process"] == process.pid and told["connection"] == f"folder {place.exchange}"
    finally:
        process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 0 and "has joined" in said
    assert not place.json("status")["running"] and "no; begin with: cafe-site start" in place.run("status").stdout


def test_a_person_at_a_terminal_is_asked_whether_to_start(make: Make) -> None:
    place = make()
    place.join()
    place.approve()
    leader, follower = pty.openpty()
    line = [sys.executable, "-m", "cafe_kit.cli", "join"]
    process = subprocess.Popen(line, env=place.environment(None), stdin=follower, stdout=subprocess.PIPE, text=True)
    os.close(follower)
    os.write(leader, b"n\n")
    said = process.communicate(timeout=60)[0]
    os.close(leader)
    assert process.returncode == 0 and "Start now?" in said and "./cafe-site start" in said


def test_an_approval_that_is_over_can_be_renewed_by_a_file(place: Place) -> None:
    place.approve(expires=time.time() - 1, made=time.time() + 1)
    for words in (("join",), ("start", "--once")):
        done = place.run(*words)
        assert done.returncode == 4 and "CAFE-115" in done.stderr
    assert place.json("status")["state"] == "expired"
    later = place.approve(expires=time.time() + 60, made=time.time() + 2).rename(place.folder / "later.json")
    assert place.run("join", "--approval", str(later)).returncode == 0
    assert place.json("status")["state"] == "joined" and place.run("start", "--once").returncode == 0


def test_what_the_operator_sealed_for_another_site(place: Place) -> None:
    place.approve(sealed=connection.seal(Folder(), "aa" * 32, SERIAL), made=time.time() + 1)
    done = place.run("start", "--once")
    assert done.returncode == 4 and "CAFE-459" in done.stderr


def test_a_connection_through_globus_is_handed_to_the_endpoint(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = "00000000-0000-4000-8000-00000000000{}"
    way = GlobusCompute(uuid.format(1), "a very secret word", uuid.format(2), "cafe-clinic-north")
    place.approve(way=way, made=time.time() + 1)
    given: list[Any] = []
    monkeypatch.setattr("cafe_kit.endpoint.run", lambda *arguments: given.append(arguments) or 0)
    assert place.run("start").returncode == 0
    assert given[0][2] == way and given[0][3] == place.kit
    assert place.json("status")["connection"] == "Globus Compute, endpoint cafe-clinic-north"
    assert "very secret" not in texts(place.home) + place.run("status").stdout


def test_limits_that_were_consented_to_come_back(place: Place) -> None:
    assert place.run("limits", "restore").returncode == 2  # there is one
    before = load_policy(place.home / "policy.toml")
    place.run("limits", "set", "max_epsilon=2", "min_rows=30")
    (place.home / "policy.toml").unlink()
    for words in (("status",), ("limits",), ("outbox",), ("log",)):
        assert "CAFE-116" in place.run(*words).stderr and not (place.home / "policy.toml").exists()
    done = place.run("limits", "restore")
    assert done.returncode == 0 and "lowered again" in done.stdout
    assert load_policy(place.home / "policy.toml") == before
    (place.home / "policy.toml").unlink()
    request = place.home / "request.json"
    request.write_bytes(request.read_bytes().replace(b'"max_epsilon": 4.0', b'"max_epsilon": 9.0'))
    assert "CAFE-102" in place.run("limits", "restore").stderr and not (place.home / "policy.toml").exists()
    own = enrolment.read_request((place.exchange / enrolment.request_name(SERIAL)).read_bytes())
    other = Ed25519PrivateKey.generate()
    request.write_bytes(enrolment.sign_request(replace(own, site_key=other.public_key().public_bytes_raw().hex()), other))
    assert "CAFE-102" in place.run("limits", "restore").stderr and not (place.home / "policy.toml").exists()


@pytest.mark.parametrize("mode", ["auto", "review", "dry-run"])
def test_limits_that_come_back_let_answers_out_no_more_freely(place: Place, mode: str) -> None:
    place.run("limits", "set", f"outbox={mode}")
    (place.home / "policy.toml").unlink()
    done = place.run("limits", "restore")
    assert done.returncode == 0 and f"not loosened: outbox = {mode}" in done.stdout
    assert load_policy(place.home / "policy.toml").outbox == mode == place.json("limits")["outbox"]


def test_a_mode_that_was_written_by_hand_counts_once_it_was_read(place: Place) -> None:
    policy = place.home / "policy.toml"
    policy.write_text(policy.read_text().replace('outbox = "auto"', 'outbox = "review"'))
    assert place.json("status")["outbox"] == "review"
    policy.write_text("outbox = 7")
    assert "CAFE-316" in place.run("status").stderr
    policy.unlink()
    assert place.run("limits", "restore").returncode == 0 and load_policy(policy).outbox == "review"


def test_a_mode_that_does_not_exist_is_answered_with_those_that_do(place: Place) -> None:
    told = place.run("limits", "set", "outbox=rewiev").stderr
    assert "CAFE-157" in told and "'auto', 'review' or 'dry-run'" in told


def test_a_raise_that_nobody_confirmed_is_not_the_mode_that_comes_back(place: Place) -> None:
    place.run("limits", "set", "outbox=review")
    assert "CAFE-341" in place.run("limits", "set", "outbox=auto").stderr  # nobody at a terminal
    (place.home / "policy.toml").unlink()
    place.run("limits", "restore")
    assert load_policy(place.home / "policy.toml").outbox == "review"


@pytest.mark.parametrize("note", [None, b"", b"always", b"\xff"])
def test_where_nobody_knows_the_mode_each_answer_waits(place: Place, note: bytes | None) -> None:
    known = place.home / "outbox" / "mode"
    assert place.run("status").returncode == 0 and known.read_bytes() == b"auto"
    known.unlink()
    if note is not None:
        known.write_bytes(note)
    (place.home / "policy.toml").unlink()
    assert "outbox = review, each answer waits for your word" in place.run("limits", "restore").stdout
    assert load_policy(place.home / "policy.toml").outbox == "review"


def test_joining_again_without_the_old_policy_does_not_loosen_the_outbox(make: Make, place: Place) -> None:
    place.run("limits", "set", "outbox=review")
    (place.home / "ledger").mkdir(exist_ok=True)
    assert place.run("leave", "--yes").returncode == 0
    (place.home / "policy.toml").unlink()
    (place.exchange / enrolment.answer_name(SERIAL)).unlink()
    again = place.join()
    assert again.returncode == 3, again.stderr
    assert load_policy(place.home / "policy.toml").outbox == "review"


# The adapter


def sent(place: Place, run: str = "run") -> Path:
    """The operator sends the adapter of a run; its folder."""
    folder = place.exchange / "cafe-inputs" / run
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(run.encode() * 1000)
    blob = hash_folder(folder)
    inputs = {"adapter_folder": blob}
    order = place.server.order("north", "hello", run=run, inputs=inputs, params=ResultParams(blob.sha256))
    told = answer(place, order, inputs={"adapter_folder": str(folder)})
    assert told["reply"]["status"] == "ok", told
    return folder


def test_the_adapter_is_listed_checked_and_copied(place: Place) -> None:
    assert "No adapter has come yet." in place.run("adapter").stdout and place.json("adapter") == []
    assert "CAFE-119" in place.run("adapter", "--to", "out").stderr
    folder = sent(place)
    (one,) = place.json("adapter")
    assert one["run"] == "run" and one["sha256"] == hash_folder(folder).sha256 and one["wrong"] is None
    to = place.folder / "mein Adapter ü"
    assert place.run("adapter", "--to", str(to)).returncode == 0
    assert hash_folder(to) == hash_folder(folder)
    assert "CAFE-160" in place.run("adapter", "--to", str(to)).stderr
    sent(place, "second")
    assert place.run("adapter", "--to", str(place.folder / "which")).returncode == 2
    assert place.run("adapter", "--run", "second", "--to", str(place.folder / "second")).returncode == 0
    assert "CAFE-119" in place.run("adapter", "--run", "third").stderr


def _altered(place: Place) -> None:
    (file,) = place.home.glob("adapters/*/adapter_model.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def _other_order(place: Place) -> None:
    path = place.home / "adapters" / "run.json"
    path.write_text(path.read_text().replace('"attempt": 1', '"attempt": 2'))


def _other_kind(place: Place) -> None:
    order = place.server.order("north", "vote", BY_SITE)
    told = {"order": asdict(order), "signature": sign(order, place.server.signing)}
    (place.home / "adapters" / "run.json").write_text(json.dumps(told))


def _no_json(place: Place) -> None:
    (place.home / "adapters" / "run.json").write_text("[" * 50_000)


def _renamed(place: Place) -> None:
    (place.home / "adapters" / "run.json").rename(place.home / "adapters" / "other.json")


@pytest.mark.parametrize("harm", [_altered, _other_order, _other_kind, _no_json, _renamed])
def test_an_adapter_that_is_not_as_it_was_signed(place: Place, harm: Callable[[Place], None]) -> None:
    sent(place)
    harm(place)
    done = place.run("adapter", "--to", str(place.folder / "out"))
    assert done.returncode == 4 and "CAFE-120" in done.stderr and not (place.folder / "out").exists()
    assert place.json("adapter")[0]["wrong"]["code"] == "CAFE-120"


# The site's word


def test_an_answer_waits_for_the_admins_word(place: Place) -> None:
    assert place.run("limits", "set", "outbox=review").returncode == 0
    orders = [place.server.order("north", "vote", BY_SITE, run=run) for run in ("one", "two", "three")]
    place.run("limits", "set", "max_epsilon_per_run=3")
    assert [answer(place, order)["reply"]["code"] for order in orders] == ["CAFE-328"] * 3
    status = place.json("status")
    assert (status["outbox"], status["waiting"]) == ("review", 3) and "3 wait" in place.run("status").stdout
    assert "wait for your word" in place.run("outbox").stdout
    assert place.json("outbox", "approve", "1") == [1] and answer(place, orders[0])["reply"]["status"] == "ok"
    assert place.json("outbox", "refuse", "2") == [2] and answer(place, orders[1])["reply"]["code"] == "CAFE-342"
    assert answer(place, orders[2])["reply"]["code"] == "CAFE-328"
    for words in (
        ("approve",),
        ("refuse", "--all"),
        ("show", "1", "--all"),
        ("approve", "1", "--all"),
        ("approve", "9"),
        ("refuse",),
        ("x",),
    ):
        assert place.run("outbox", *words).returncode == 2, words
    assert place.json("outbox", "approve", "--all") == [3] and answer(place, orders[2])["reply"]["status"] == "ok"
    assert place.json("outbox", "approve", "--all") == []
    assert "CAFE-347" in place.run("outbox", "refuse", "3").stderr  # what may leave cannot be called back


def test_status_tells_the_last_order(place: Place) -> None:
    assert place.json("status")["last_order"] is None and "last order: none yet" in place.run("status").stdout
    answer(place, place.server.order("north", "vote", BY_SITE))
    assert "Sent 6 noised counts" in place.json("status")["last_order"]["text"]
    time.sleep(1.1)  # the log has seconds
    answer(place, place.server.order("north", "train", BY_SITE))
    assert "CAFE-310" in place.json("status")["last_order"]["text"]


# A service


def test_a_unit_is_written_and_nothing_is_enabled(place: Place) -> None:
    told = place.json("start", "--service")
    unit = Path(told["unit"])
    assert unit == place.folder / ".config" / "systemd" / "user" / "cafe-site-clinic-north.service"
    assert unit.stat().st_mode & 0o777 == 0o600
    text = unit.read_text()
    assert f'ExecStart="{place.kit}/cafe-site" "start"' in text and f'Environment="CAFE_SITE_HOME={place.home}"' in text
    assert "Restart=on-failure" in text and "enable --now cafe-site-clinic-north.service" in " ".join(told["enable"])
    assert not (unit.parent / "default.target.wants").exists()
    assert told["undo"][1] == f"rm {shlex.quote(str(unit))}"
    assert place.json("status")["service"] == str(unit)
    assert "Nothing was started." in place.run("start", "--service").stdout
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "--user", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)
        assert unit.name not in done.stderr, done.stderr


def test_a_site_that_was_not_let_in_gets_no_unit(make: Make) -> None:
    place = make()
    place.join()
    assert "CAFE-155" in place.run("start", "--service").stderr and not (place.folder / ".config").exists()


def test_a_unit_quotes_what_systemd_would_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = place.folder / 'a "b" $HOME 100% \\n'
    settings = site_folder.joined(place.home).model_copy(update={"kit": str(odd)})
    odd.mkdir()
    (odd / "cafe-site").touch()
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy.example:3128")
    text = service.unit(odd, settings)
    assert 'a \\"b\\" $$HOME 100%% \\\\n/cafe-site" "start"' in text
    assert "CAFE_SITE_HOME=" in text and '$HOME 100%% \\\\n"' in text and 'Environment="https_proxy=http://proxy.example:3128"' in text
    assert "secret" not in text


# The doctor of a site that has joined


def findings(place: Place, status: int = 0) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["state"], check["code"]) for check in place.json("doctor", status=status)["checks"]}


def test_the_doctor_looks_at_the_way_to_the_site_and_whether_it_is_at_work(place: Place) -> None:
    found = findings(place)
    assert (found["connection"], found["at work"]) == (("ok", ""), ("warn", "")) and "service" not in found
    place.run("start", "--service")
    process = start(place)
    try:
        wait_for((place.exchange / f"{SERIAL}.site" / "alive.json").exists)
        found = findings(place)
        assert found["at work"] == ("ok", "") and found["service"] == ("ok", "")
    finally:
        process.kill()
        process.wait()
    place.exchange.rename(place.folder / "away")
    assert findings(place, 1)["connection"] == ("fail", "CAFE-118")


def test_the_doctor_of_a_site_behind_globus_tries_the_way_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = "00000000-0000-4000-8000-00000000000{}"
    place.approve(way=GlobusCompute(uuid.format(1), "secret", uuid.format(2), "cafe-clinic-north"), made=time.time() + 1)
    place.run("join")
    monkeypatch.setattr("cafe_kit.doctor.GLOBUS", "http://127.0.0.1:9/v2/version")
    assert findings(place, 1)["connection"] == ("fail", "CAFE-162")
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # it answers 501, which is an answer
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("cafe_kit.doctor.GLOBUS", f"http://127.0.0.1:{server.server_port}/")
        assert findings(place)["connection"] == ("ok", "")
        server.shutdown()


@pytest.mark.parametrize(("wrong", "meant"), [("max_epsilom", "max_epsilon"), ("share_row", "share_rows")])
def test_a_mistyped_setting_is_named_with_what_was_meant(make: Make, wrong: str, meant: str) -> None:
    place = make()
    path = place.answers()
    path.write_text(
        path.read_text().replace("max_epsilon_per_run", "left_alone").replace(meant, wrong).replace("left_alone", "max_epsilon_per_run")
    )
    done = place.run("join", "--answers", str(path), "--yes")
    assert done.returncode == 2 and f"'limits.{wrong}'. Did you mean '{meant}'?" in done.stderr


def test_a_mistyped_setting_of_the_site(place: Place) -> None:
    path = place.home / "site.toml"
    path.write_text(path.read_text().replace("exchange =", "exchang ="))
    assert "'exchang'. Did you mean 'exchange'?" in place.run("status").stderr


# Leaving


def test_leaving_tells_the_operator_and_ends_what_runs(place: Place) -> None:
    answer(place, place.server.order("north", "vote", BY_SITE))
    sent(place)
    place.run("start", "--service")
    process, own = start(place), place.exchange / f"{SERIAL}.site"
    wait_for((own / "alive.json").exists)
    key = site_folder.joined(place.home).site_key
    told = place.json("leave", "--yes")
    assert process.wait(20) == 0 and "Ended." in process.communicate()[0]
    assert told["told"] and told["remains"] == ["adapters", "leave.json", "ledger", "log", "outbox", "paused", "policy.toml"]
    assert any("disable --now" in line for line in told["undo"]) and not own.exists()
    leaving_ = enrolment.read_leaving((place.exchange / enrolment.leaving_name(SERIAL)).read_bytes())
    assert (leaving_.site, leaving_.site_key, leaving_.serial) == ("north", key, SERIAL)
    assert abs(leaving_.made - time.time()) < 60 and (place.exchange / enrolment.leaving_name(SERIAL)).stat().st_mode & 0o777 == 0o644
    for words in (("start",), ("status",), ("adapter",)):
        assert "CAFE-156" in place.run(*words).stderr
    assert not (place.home / "site.key").exists()


def test_an_answer_that_is_still_computed_does_not_leave_after_the_site_has_left(place: Place) -> None:
    settings, asked = site_folder.joined(place.home), place.server.ask(place.server.order("north", "vote", BY_SITE))
    asked["transport"]["output"] = ""

    class Slow(TinyEngine):
        def vote(self, *given: Any) -> Any:
            assert place.run("leave", "--yes").returncode == 0
            return super().vote(*given)

    told = answering.answer(place.home, settings, asked, Slow(), lambda *_: None)
    assert told["reply"]["code"] == "CAFE-320" and not list((place.home / "ledger").glob("*.json"))
    again = answering.answer(place.home, settings, asked, TinyEngine(), lambda *_: None)
    assert again["problem"]["code"] == "CAFE-134"


def test_a_site_that_has_left_is_told_so(place: Place) -> None:
    place.json("leave", "--yes")
    told = place.run("status")
    assert told.returncode == 1 and "CAFE-156 This site has left its federation." in told.stderr


def test_a_site_can_leave_without_its_key_and_come_back(place: Place) -> None:
    (place.home / "site.key").unlink()
    told = place.json("leave", "--yes")
    assert not told["told"] and not list(place.exchange.glob("*.leave.json"))
    (place.exchange / enrolment.answer_name(SERIAL)).unlink()
    assert place.join().returncode == 3
    place.approve()
    assert place.join().returncode == 0 and not place.json("status")["paused"]
    assert answer(place, place.server.order("north", "vote", BY_SITE))["reply"]["status"] == "ok"


def test_where_nobody_can_be_told_the_file_is_named(make: Make) -> None:
    place = make(sealed=enrolment.seal_address({"exchange": ""}, CODE, SERIAL))
    place.json("join", "--answers", str(place.answers()), "--yes", status=3)
    done = place.run("leave", "--yes")
    assert done.returncode == 0 and f"hand him {place.home / 'leave.json'}" in done.stdout
    assert enrolment.read_leaving((place.home / "leave.json").read_bytes()).serial == SERIAL


def test_a_leaving_that_somebody_else_wrote(place: Place) -> None:
    place.run("leave", "--yes")
    data = (place.exchange / enrolment.leaving_name(SERIAL)).read_bytes()
    with pytest.raises(CafeError, match="CAFE-102"):
        enrolment.read_leaving(data.replace(b'"north"', b'"south"'))


# What the admin and his security office read


@pytest.mark.system
@pytest.mark.parametrize("name", ["README.html", "SECURITY.html"])
def test_each_page_of_the_kit_prints_on_one_sheet(make: Make, name: str) -> None:
    program = chromium_path()
    if program is None:
        pytest.skip("no chromium on this machine")
    place = make()
    paper = place.folder / "page.pdf"
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--print-to-pdf={paper}", f"--user-data-dir={place.folder}/browser"]
    subprocess.run([*command, str(place.kit / name)], capture_output=True, check=True, timeout=120)
    streams = re.findall(rb"stream\r?\n(.*?)endstream", paper.read_bytes(), re.DOTALL)
    counts = [int(count) for text in [paper.read_bytes(), *map(_plain, streams)] for count in re.findall(rb"/Count (\d+)", text)]
    assert max(counts) == 1


def _plain(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""
