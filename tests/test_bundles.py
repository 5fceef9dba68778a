"""Bundles: what is in them, equal bytes for equal content, made anew when a source changed, and by one builder at a time."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zipfile
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError

from pipeline import bundles, catalogue, launch
from server_store.errors import StoreError
from server_store.store import Store
from tests.federation import Federation

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = Federation(tmp_path_factory.mktemp("bundles") / "f", stage2={"rounds": 2})
    assert federation.work(federation.create()) == 0
    return federation


@pytest.fixture
def run(done: Federation, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CAFE_HOME", str(done.home))
    return done.store.runs()[0].id


@pytest.fixture
def store(done: Federation) -> Store:
    return done.store


def test_an_adapters_zip_is_one_folder_that_is_fit_to_leave(store: Store, run: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundles.adapter(store, run)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
        assert {info.compress_type for info in archive.infolist() if info.filename.endswith(".safetensors")} == {zipfile.ZIP_STORED}
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"{run}-r2"
    assert {path.name for path in folder.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert (folder / "adapter_model.safetensors").read_bytes() == (
        Path(store.run(run).folder) / "adapters/final" / catalogue.WEIGHTS
    ).read_bytes()


def test_the_same_content_gives_the_same_bytes(store: Store, run: str) -> None:
    first = bundles.adapter(store, run, 1)
    before, bytes_before = first.stat().st_mtime_ns, first.read_bytes()
    assert bundles.adapter(store, run, 1).stat().st_mtime_ns == before  # the one that is there
    os.utime(catalogue.of(store, run).adapter(1).folder / catalogue.WEIGHTS)
    again = bundles.adapter(store, run, 1)
    assert again.stat().st_mtime_ns > before and again.read_bytes() == bytes_before


def test_a_bundle_follows_its_source(store: Store, run: str) -> None:
    note = catalogue.of(store, run).dataset().folder / "PRIVACY.md"
    before = set(zipfile.ZipFile(bundles.dataset(store, run)).namelist())
    note.write_text("new")
    after = set(zipfile.ZipFile(bundles.dataset(store, run)).namelist())
    note.unlink()
    assert after - before == {f"{run}-synthetic-1/PRIVACY.md"}
    assert {f"{run}-synthetic-1/{name}" for name in ("README.md", "train.parquet", "train.jsonl")} == before


def test_many_at_once_make_one(store: Store, run: str) -> None:
    found: list[bytes] = []

    def ask() -> None:
        found.append(bundles.export(launch.store(), run).read_bytes())

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len(set(found)) == 1
    assert not [path for path in (Path(store.run(run).folder) / "downloads").iterdir() if path.name.endswith(".partial")]


def test_the_export_is_complete_and_its_sums_hold(store: Store, run: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(launch.export(run, tmp_path)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert (tmp_path / f"{run}.zip").exists()
    sums = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "SHA256SUMS"} == sums
    assert {"config.yaml", "lock.json", "REPRODUCE.md", "results.json", "metrics.jsonl", "events.jsonl", "ledger.jsonl"} <= set(files)
    lock = json.loads(files["lock.json"])
    assert lock["packages"]["numpy"] and lock["python"] and lock["seed"] == 0 and lock["base_model"]["name"] == "base"
    assert store.run(run).folder not in files["lock.json"].decode() and "cafe run config.yaml" in files["REPRODUCE.md"].decode()
    assert files["config.yaml"] == (Path(store.run(run).folder) / "config.yaml").read_bytes()
    assert {json.loads(line)["name"] for line in files["metrics.jsonl"].splitlines()} >= {"accuracy", "seconds"}


def test_what_is_not_there(store: Store, run: str) -> None:
    for ask in (lambda: bundles.adapter(store, run, 7), lambda: bundles.dataset(store, run, 7)):
        with pytest.raises(CafeError, match="CAFE-660"):
            ask()
    with pytest.raises(StoreError, match="CAFE-655"):
        bundles.adapter(store, "../" + run)


def test_a_spoilt_adapter_is_not_handed_over(store: Store, run: str) -> None:
    config = catalogue.of(store, run).adapter(0).folder / "adapter_config.json"
    kept = config.read_text()
    config.write_text(kept.replace('"base"', '"/opt/base"'))
    try:
        with pytest.raises(CafeError, match=r"CAFE-687.*path of this machine"):
            bundles.adapter(store, run, 0)
    finally:
        config.write_text(kept)


def test_a_full_disk_is_told_and_leaves_nothing(run: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(StoreError, match="CAFE-652"):
        bundles.write(tmp_path / "there", {"a": b"1"})  # a folder stands where the zip should
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
