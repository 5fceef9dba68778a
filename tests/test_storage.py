"""The object store of a home: what is set, where its key comes from, what is found when it is tried, and what is kept there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cafe_kit.errors import CafeError
from typer.testing import CliRunner

from pipeline import archive, launch, storage
from pipeline.cli import app
from pipeline.vault import Vault
from server_store import object_conformance
from server_store.errors import StoreError
from server_store.object_bench import Bench
from server_store.object_store import Keys, ObjectStore, Place
from server_store.rows import Metric
from tests.fault_proxy import fault_proxy
from tests.federation import Federation
from tests.seaweedfs import S3Server, serve

ROOT = Path(__file__).resolve().parents[1]


def cafe(*words: str, given: str | None = None) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, ["storage", *words], input=given, catch_exceptions=False)
    assert done.exit_code in (0, 1), done.output
    return done.output


# The setting


def test_a_setting_is_kept_and_changed_a_piece_at_a_time(cafe_home: Path) -> None:
    assert storage.configured() is None and "No object store" in cafe("show")
    cafe("set", "--bucket", "ward-7", "--endpoint", "https://s3.example.org/")
    told = cafe("set", "--prefix", "studies/cafe", "--keep-results")
    found = storage.configured()
    assert found == storage.Storage(bucket="ward-7", endpoint_url="https://s3.example.org", prefix="studies/cafe", keep_results=True)
    assert "ward-7/studies/cafe" in told and "of finished runs are kept" in told
    cafe("set", "--prefix", "", "--no-keep-results", "--endpoint", "")
    assert storage.configured() == storage.Storage(bucket="ward-7", prefix="")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bucket", "x"), ("bucket", "Upper"), ("bucket", "a/b"), ("endpoint_url", "http://s3.example.org"),
        ("endpoint_url", "s3.example.org"),
        ("endpoint_url", "https://key:secret@s3.example.org"), ("endpoint_url", "https://s3.example.org/?a=b"), ("prefix", "../up"),
        ("prefix", "/abs"), ("prefix", "a//b"), ("prefix", ".hidden"), ("region", "eu west"), ("keep_results", "yes"), ("secret", "x"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_setting_is_named(cafe_home: Path, field: str, value: str) -> None:
    with pytest.raises(CafeError, match=field) as caught:
        storage.set_up({"bucket": "ward-7"} | {field: value})
    assert caught.value.code == "CAFE-693" and "key:secret" not in str(caught.value) and storage.configured() is None


def test_a_setting_that_was_edited_by_hand_is_named(cafe_home: Path) -> None:
    for text in ("", "{", "[]", '{"bucket": 7}', '{"bucket": "ward-7", "more": 1}'):
        (cafe_home / storage.FILE).write_text(text)
        with pytest.raises(CafeError, match="CAFE-693"):
            storage.configured()


DAMAGED = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(b'{"bucket": "war'),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\x00" * 9),
    "nested deeply": lambda file: file.write_bytes(b"[" * 100_000),
    "another shape": lambda file: file.write_bytes(b'{"bucket": "ward-7", "more": 1}'),
    "a folder": lambda file: file.mkdir(),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_setting_is_refused_with_what_to_do_and_set_anew(cafe_home: Path, how: str) -> None:
    file = cafe_home / storage.FILE
    DAMAGED[how](file)
    for act in (storage.configured, lambda: storage.set_up({"region": "eu-west-1"}), lambda: storage.set_up({}, ("AKIAWARD", "word"))):
        with pytest.raises(CafeError, match="CAFE-693") as caught:
            act()
        assert "`cafe storage set --bucket" in caught.value.hint and "`cafe storage forget`" in caught.value.hint
    assert Vault(cafe_home).get(storage.SECRET) is None, "nothing was kept of what was refused"
    for words in (["show"], ["set", "--region", "eu-west-1"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "storage", *words], env=os.environ | {"CAFE_HOME": str(cafe_home)}, cwd=ROOT,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2 and "CAFE-693" in done.stderr and "cafe storage forget" in done.stderr, done
        assert "Traceback" not in done.stderr + done.stdout
        if how != "empty":
            break  # the same words, one process is enough
    if how == "a folder":
        for replace in (lambda: storage.set_up({"bucket": "ward-7"}), storage.forget):
            with pytest.raises((CafeError, StoreError), match="CAFE-652"):
                replace()
        return
    assert "ward-8" in cafe("set", "--bucket", "ward-8") and storage.configured() == storage.Storage(bucket="ward-8")
    file.write_bytes(b"{")
    cafe("forget", "--yes")
    assert storage.configured() is None


def test_a_secret_lies_in_the_vault_alone(cafe_home: Path) -> None:
    cafe("set", "--bucket", "ward-7")
    told = cafe("set", "--access-key", "AKIAWARD", given="very-secret-word\n")
    assert "kept in this home" in told and "very-secret-word" not in told
    assert Vault(cafe_home).get("storage") == {"access_key": "AKIAWARD", "secret_key": "very-secret-word"}
    everything = [path for path in cafe_home.rglob("*") if path.is_file()]
    assert not [path for path in everything if b"very-secret-word" in path.read_bytes()]
    assert storage.object_store().keys().secret_key == "very-secret-word"
    assert "profile lab" in cafe("set", "--profile", "lab") and Vault(cafe_home).get("storage") is None
    cafe("set", "--access-key", "AKIAWARD", given="another\n")
    assert storage.configured().profile == ""  # type: ignore[union-attr]
    cafe("forget", "--yes")
    assert storage.configured() is None and Vault(cafe_home).get("storage") is None


def test_no_secret_is_no_key(cafe_home: Path) -> None:
    cafe("set", "--bucket", "ward-7")
    with pytest.raises(CafeError, match="CAFE-694"):
        cafe("set", "--access-key", "AKIAWARD", given="\n")
    with pytest.raises(CafeError, match="CAFE-694"):
        storage.set_up({"profile": "nobody-has-this"}) and storage.object_store()
    storage.forget()
    with pytest.raises(CafeError, match="CAFE-693"):
        storage.object_store()


def test_a_key_that_the_library_prints_is_not_in_any_log(cafe_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "very-secret" not in repr(Keys("AKIAWARD", "very-secret"))
    caplog.set_level(logging.INFO)
    storage.set_up({"bucket": "ward-7", "endpoint_url": "http://127.0.0.1:1"}, ("AKIAWARD", "very-secret"))
    url = storage.object_store(patience_s=0).url_get("a", 60)
    with pytest.raises(StoreError, match="CAFE-683") as caught:
        storage.object_store(patience_s=0).put("a", b"")
    assert "X-Amz-Signature" in url and "X-Amz-Signature" not in caplog.text + str(caught.value) and "very-secret" not in caplog.text


# What is found when a store is tried


@pytest.fixture
def configured(cafe_home: Path, s3_server: S3Server) -> S3Server:
    prefix = f"h-{cafe_home.parent.name[-40:].strip('_.-')}"
    storage.set_up({"bucket": s3_server.bucket, "endpoint_url": s3_server.endpoint, "prefix": prefix}, s3_server.key)
    return s3_server


@pytest.mark.system
def test_a_sound_store_passes_and_is_left_as_it_was(configured: S3Server) -> None:
    store = storage.object_store()
    store.put("mine", b"stays")
    found = storage.check(store)
    assert len(found) >= 32 and len({one.name for one in found}) == len(found)
    assert {one.name: one.state for one in found if one.state != "ok"} == {"reach": "warn"}  # without encryption: this very machine
    assert all(one.sentence.endswith(".") and bool(one.meaning) == (one.state != "ok") for one in found)
    assert [one.key for one in store.list()] == ["mine"]


@pytest.mark.system
def test_the_command_says_so_in_sentences(configured: S3Server) -> None:
    told = cafe("check")
    assert "ok     What is put comes back as it was." in told and "fit for runs, with a warning" in told
    assert {one["state"] for one in json.loads(cafe("check", "--format", "json"))} == {"ok", "warn"}
    storage.set_up({"bucket": "no-such-bucket"}, configured.admin)
    told = cafe("check")
    assert "FAILED The object store has no bucket 'no-such-bucket'." in told and "cannot use this store yet" in told


@pytest.mark.system
def test_a_store_that_lets_everybody_in_fails(tmp_path: Path) -> None:
    with serve(tmp_path, careless=True) as server:
        store = ObjectStore(Place(server.bucket, "c", endpoint_url=server.endpoint), Keys(*server.key))
        found = {one.name: one for one in storage.check(store)}
    failed = {name for name, one in found.items() if one.state == "failed"}
    assert failed >= {"strangers reading", "strangers writing", "wrong secret", "unknown key", "link, altered", "link, late"}
    assert failed >= {"link, other object", "link, other act", "link, prolonged"} and "object" not in failed
    assert all(one.meaning for one in found.values() if one.state != "ok")


@pytest.mark.system
def test_a_bucket_that_keeps_old_versions_is_told_of(s3_server: S3Server) -> None:
    admin = ObjectStore(Place("versioned-bucket", endpoint_url=s3_server.endpoint), Keys(*s3_server.admin))
    admin.client.create_bucket(Bucket="versioned-bucket")
    admin.client.put_bucket_versioning(Bucket="versioned-bucket", VersioningConfiguration={"Status": "Enabled"})
    found = {one.name: one for one in storage.check(admin)}
    assert found["delete"].state == "warn" and "versioning" in found["delete"].meaning


@pytest.mark.system
def test_a_store_that_damages_or_breaks_is_told_of(s3_server: S3Server) -> None:
    """The probes of one store through a line that goes down in the middle: findings, no exception."""
    with fault_proxy(s3_server.port) as proxy:
        store = ObjectStore(Place(s3_server.bucket, "p", endpoint_url=proxy.endpoint), Keys(*s3_server.key), patience_s=0.2, timeout_s=1.0)
        found = []
        for one in object_conformance.examine(store):
            found.append(one)
            if one.name == "list":
                proxy.fail("refuse", 100_000)
        assert {one.state for one in found[: [one.name for one in found].index("list") + 1]} <= {"ok", "warn"}
        assert found[-1].state == "failed" and "cannot be reached" in found[-1].sentence


@pytest.mark.system
@pytest.mark.parametrize("probe", object_conformance.PROBES, ids=lambda probe: probe.name)
def test_every_probe_can_fail(probe: Any, s3_server: S3Server) -> None:
    """On a store that refuses whatever it is asked, no probe says that all is well, except that a refusal is what some want to see."""
    store = ObjectStore(Place(s3_server.bucket, "q", endpoint_url=s3_server.endpoint), Keys(*s3_server.powerless), patience_s=0.2)
    found = object_conformance._tried(probe, Bench(store))
    wants_refusal = probe.name.startswith(("link,", "strangers", "wrong", "unknown", "link to put", "old", "parts given up"))
    assert found.state == probe.worse or (wants_refusal and found.state == "ok"), found


SKEWED = "from pipeline import storage; print([(one.name, one.state, one.sentence) for one in storage.check(storage.object_store(2.0))])"


@pytest.mark.system
@pytest.mark.parametrize(("shift", "state", "words"), [("-3m", "warn", "3 minutes behind"), ("+21m", "failed", "21 minutes ahead of")])
def test_a_clock_that_is_wrong_is_told_of(configured: S3Server, shift: str, state: str, words: str) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("no faketime on this machine; `make system` installs it where it may")
    command = ["faketime", "-f", shift, sys.executable, "-c", SKEWED]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=True)
    assert words in done.stdout and f"'{state}'" in done.stdout, done.stdout


# What is kept of a finished run


PUBLIC = ("results.json", "config.yaml", "lock.json", "ledger.jsonl", "log/worker.log")


@pytest.fixture
def finished(cafe_home: Path) -> str:
    """A run that is done, with everything in its folder that may leave, and much that may not."""
    folder = cafe_home / "runs" / "tiny-1"
    rows = launch.store()
    rows.create_run("tiny-1", "tiny", folder)
    epoch = rows.claim("tiny-1", os.getpid())
    rows.event("tiny-1", "Round 1 is closed.")
    rows.metric("tiny-1", epoch, Metric("accuracy", "round", 1, 0.5, 9))
    rows.finish("tiny-1", epoch, "Done")
    secret = b"un-noised vote of the ward"
    for name in ("inbox/f00", "blobs/0a1b", "proxies/1.proxy/outbox/x/body.1", "log/ward.log", "log/ward.seats.json", "worker.lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(secret)
    for name in PUBLIC:
        (folder / name).write_text(f"public: {name}")
    return "tiny-1"


@pytest.mark.system
def test_results_figures_and_log_are_kept_and_nothing_else(configured: S3Server, finished: str) -> None:
    store = storage.object_store()
    assert "kept/tiny-1/results.json" in cafe("keep", finished)
    found = {one.key: store.read(one.key, 10_000) for one in store.list()}
    assert {key.removeprefix("kept/tiny-1/") for key in found} == {*PUBLIC, "metrics.jsonl", "events.jsonl", "SHA256SUMS"}
    assert not [key for key, data in found.items() if b"un-noised" in data]  # type: ignore[operator]
    assert json.loads(found["kept/tiny-1/metrics.jsonl"])["value"] == 0.5  # type: ignore[arg-type]
    sums = found["kept/tiny-1/SHA256SUMS"].decode().splitlines()  # type: ignore[union-attr]
    assert len(sums) == len(found) - 1
    for line in sums:
        digest, name = line.split("  ")
        assert hashlib.sha256(found[f"kept/tiny-1/{name}"]).hexdigest() == digest  # type: ignore[arg-type]
    store.put("runs/tiny-1/inputs/00", b"left behind")
    store.put("models/00.tar", b"handed out")
    assert "1 objects" in cafe("sweep", finished) and "1 objects" in cafe("sweep", "--models") and "Name a run" in cafe("sweep")
    assert {one.key for one in store.list()} == set(found)


@pytest.mark.system
def test_a_run_is_kept_by_itself_where_that_is_wished(configured: S3Server, finished: str) -> None:
    store = storage.object_store()
    assert archive.keep_if_wished(finished) == "" and not list(store.list())
    storage.set_up({"keep_results": True})
    assert "are kept" in archive.keep_if_wished(finished) and list(store.list("kept/"))
    storage.set_up({}, ("NOBODY", "nothing"))
    told = archive.keep_if_wished(finished)
    assert "CAFE-684" in told and "cafe storage keep tiny-1" in told


def test_a_run_without_results_is_not_kept(cafe_home: Path) -> None:
    storage.set_up({"bucket": "ward-7"}, ("AKIAWARD", "secret"))
    launch.store().create_run("tiny-2", "tiny", cafe_home / "runs" / "tiny-2")
    with pytest.raises(CafeError, match="CAFE-660"):
        archive.keep("tiny-2", storage.object_store())
    with pytest.raises(CafeError, match="CAFE-658"):
        cafe("sweep", "tiny-2")


@pytest.mark.system
@pytest.mark.runs
def test_the_worker_of_a_run_keeps_its_results(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, weak=2, strong=1)
    monkeypatch.setenv("CAFE_HOME", str(federation.home))
    where = {"bucket": s3_server.bucket, "endpoint_url": s3_server.endpoint, "prefix": "a-run", "keep_results": True}
    storage.set_up(where, s3_server.key)
    run = federation.create()
    assert federation.work(run) == 0
    results, store = federation.results(run), storage.object_store()
    assert json.loads(store.read(f"kept/{run}/results.json", 10**6) or b"")["adapter"] == results["adapter"]
    assert any("kept in the object store" in event.text for event in launch.store().events(run))
    records = [line for path in federation.folder.glob("*[0-9].jsonl") for line in path.read_text().splitlines()]
    sent = b"".join(store.read(one.key, 10**7) or b"" for one in store.list())
    assert len(records) > 20 and not [line for line in records if json.loads(line)["text"].encode() in sent]
