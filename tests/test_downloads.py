"""Downloads: what each address gives, who may ask, and that a large file passes through a real server without filling it."""

from __future__ import annotations

import io
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app import downloads
from pipeline import catalogue
from tests.federation import ROOT, Federation

pytestmark = pytest.mark.runs

LARGE = 300 * 2**20
MOST_GROWTH = 50 * 2**20


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = Federation(tmp_path_factory.mktemp("downloads") / "f", stage2={"rounds": 1})
    run = federation.create()
    assert federation.work(run) == 0
    log = Path(federation.store.run(run).folder) / "log" / "worker.log"
    log.write_text("what the worker said\n")
    return federation


@pytest.fixture
def run(done: Federation, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CAFE_HOME", str(done.home))
    return done.store.runs()[0].id


@pytest.fixture
def client(run: str) -> TestClient:
    return TestClient(Starlette(routes=downloads.routes("")), base_url="http://127.0.0.1:8501")


@pytest.mark.parametrize(
    ("what", "name", "media"),
    [
        ("adapter.zip", "{run}-r1.zip", "application/zip"),
        ("adapter.zip?round=0", "{run}-synthetic-only.zip", "application/zip"),
        ("dataset.zip", "{run}-synthetic-1.zip", "application/zip"),
        ("dataset.parquet?attempt=1", "{run}-synthetic-1.parquet", "application/vnd.apache.parquet"),
        ("dataset.jsonl", "{run}-synthetic-1.jsonl", "application/jsonl"),
        ("export.zip", "{run}-export.zip", "application/zip"),
        ("log", "{run}.log", "text/plain; charset=utf-8"),
    ],
)
def test_every_address_gives_its_file_under_a_name_for_people(client: TestClient, run: str, what: str, name: str, media: str) -> None:
    answer = client.get(f"/files/runs/{run}/{what}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == f'attachment; filename="{name.format(run=run)}"'
    assert answer.headers["content-type"] == media and answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers and answer.headers["x-content-type-options"] == "nosniff"
    assert int(answer.headers["content-length"]) == len(answer.content) > 0
    if name.endswith(".zip"):
        assert zipfile.ZipFile(io.BytesIO(answer.content)).testzip() is None


@pytest.mark.parametrize(
    "what", ["adapter.zip?round=9", "adapter.zip?round=../1", "adapter.zip?round=", "adapter.zip?round=-1", "dataset.zip?attempt=2"]
)
def test_what_is_not_there_is_said_in_a_sentence(client: TestClient, run: str, what: str) -> None:
    answer = client.get(f"/files/runs/{run}/{what}")
    assert answer.status_code == 404 and answer.text.startswith("CAFE-660 ") and answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("name", ["nobody", "..", "%2e%2e%2f%2e%2e%2fetc", "<script>alert(1)</script>", "x' OR '1'='1"])
def test_no_address_becomes_a_path(client: TestClient, name: str) -> None:
    answer = client.get(f"/files/runs/{name}/log")
    assert answer.status_code == 404
    assert answer.text == "Not Found" or (answer.text.startswith("CAFE-655 ") and answer.headers["content-type"].startswith("text/plain"))


def test_a_refused_adapter_is_not_sent(client: TestClient, done: Federation, run: str) -> None:
    weights = catalogue.of(done.store, run).adapter(1).folder / catalogue.WEIGHTS
    kept = weights.read_bytes()
    weights.write_bytes(kept + b" ")
    try:
        answer = client.get(f"/files/runs/{run}/adapter.zip")
    finally:
        weights.write_bytes(kept)
    assert answer.status_code == 409 and "hash differs" in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8501"}, 200),
        ({"host": "localhost:8501"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "evil.example@127.0.0.1:x"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),
        ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "navigate"}, 200),
    ],
)
def test_only_the_consoles_own_names_and_pages(client: TestClient, run: str, headers: dict[str, str], status: int) -> None:
    assert client.get(f"/files/runs/{run}/log", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("allowed", "answers"),
    [
        (
            ["cafe.example.org", "*.lab.example"],
            {"cafe.example.org": 200, "gpu.lab.example:443": 200, "lab.example.evil": 403, "127.0.0.1": 403},
        ),
        ([], {"127.0.0.1:1": 200, "[::1]:8501": 200, "LOCALHOST": 200, "cafe.example.org": 403, "": 403}),
    ],
)
def test_the_operators_list_of_hosts_is_heard(client: TestClient, run: str, allowed: list[str], answers: dict[str, int]) -> None:
    before = st.get_option("server.allowedHosts")
    st.config.set_option("server.allowedHosts", allowed)
    try:
        asked = {host: client.get(f"/files/runs/{run}/log", headers={"host": host}).status_code for host in answers}
    finally:
        st.config.set_option("server.allowedHosts", before)
    assert asked == answers


def test_addresses_hold_under_a_base_path(run: str) -> None:
    client = TestClient(Starlette(routes=downloads.routes("/cafe/")), base_url="http://127.0.0.1/cafe/adapters")
    address = downloads.url(run, "adapter.zip", round=1, attempt=None)
    assert address == f"files/runs/{run}/adapter.zip?round=1"
    assert client.get(f"http://127.0.0.1/cafe/{address}").status_code == 200
    assert client.get(f"http://127.0.0.1/{address}").status_code == 404


@pytest.fixture
def server(run: str, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """``streamlit run`` of an app with our routes; its address and process."""
    (tmp_path / "page.py").write_text("import streamlit as st\nst.write('here')\n")
    script = tmp_path / "console.py"
    script.write_text("import streamlit as st\nfrom app import downloads\napp = st.App('page.py', routes=downloads.routes())\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--server.port", str(port), "--server.headless", "true", "--server.address", "127.0.0.1", "--server.baseUrlPath", "cafe"]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(script), *options],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}/cafe"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield address, process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _peak(pid: int) -> int:
    """The most memory that the process ever held, in bytes."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_large_adapter_does_not_fill_the_server(done: Federation, run: str, server: tuple[str, int]) -> None:
    address, pid = server
    made = catalogue.of(done.store, run)
    urllib.request.urlopen(f"{address}/files/runs/{run}/adapter.zip?round=1").read()  # all that is loaded once is loaded
    weights = made.adapter(0).folder / catalogue.WEIGHTS
    with weights.open("wb") as file:
        for _ in range(LARGE // 2**20):
            file.write(os.urandom(2**20))
    with sqlite3.connect(done.home / "store.db") as rows:
        rows.execute("UPDATE steps SET sha256=? WHERE name='stage2/1/warm/adapter'", (catalogue.file_sha256(weights),))
    before, got = _peak(pid), 0
    with urllib.request.urlopen(f"{address}/files/runs/{run}/adapter.zip?round=0") as answer:
        assert int(answer.headers["content-length"]) > LARGE
        while chunk := answer.read(1 << 20):
            got += len(chunk)
    assert got == int(answer.headers["content-length"])
    assert _peak(pid) - before < MOST_GROWTH, f"{(_peak(pid) - before) / 2**20:.0f} MB more"
