"""The console's first page: in a browser as a person sees it, and its states without one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from server_store.store import Store

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "app" / "console.py"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def drawn() -> AppTest:
    page = AppTest.from_file(PAGE, default_timeout=30).run()
    assert not page.exception
    return page


def test_empty(cafe_home: Path) -> None:
    page = drawn()
    assert page.title[0].value == "Café au Lait"
    assert "No runs yet" in page.info[0].value
    assert "make demo" in page.code[0].value


def test_runs_are_listed_with_their_true_state(cafe_home: Path) -> None:
    store = Store(cafe_home / "store.db")
    store.create_run("clinic-1", "clinic", cafe_home / "runs" / "clinic-1")
    epoch = store.claim("clinic-1", 2**22 + 1)  # a worker that is not alive
    store.set_progress("clinic-1", "vote", 1, 2)
    assert epoch == 1
    table = drawn().dataframe[0].value
    assert list(table["run"]) == ["clinic-1"]
    assert list(table["state"]) == ["? Lost contact"]
    assert list(table["now"]) == ["vote 1/2"]


def test_a_store_that_cannot_be_read_is_one_sentence(cafe_home: Path) -> None:
    (cafe_home / "store.db").write_bytes(b"this is no database, but it is long enough to be taken for one" * 40)
    page = drawn()
    assert page.error[0].value.startswith("CAFE-651")


@pytest.fixture
def console(cafe_home: Path) -> Iterator[str]:
    """``cafe serve`` on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "the console ended"
                time.sleep(0.1)
        yield url
    finally:
        os.killpg(server.pid, 9)
        server.wait()


@pytest.mark.system
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; make test installs it where it may")
def test_in_a_browser_and_no_request_leaves_the_host(console: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"])
        for width, height in ((1440, 900), (390, 844)):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.on("request", lambda request: asked.append(request.url))
            page.goto(console)
            expect(page.get_by_role("heading", name="Café au Lait")).to_be_visible()
            expect(page.get_by_text("No runs yet")).to_be_visible()
            expect(page.get_by_text("make demo").first).to_be_visible()
            page.screenshot(path=os.environ.get("CAFE_SCREENSHOTS", str(tmp_path)) + f"/console-{width}.png", full_page=True)
        browser.close()
    assert asked and all(url.startswith((console, console.replace("http", "ws"), "data:", "blob:")) for url in asked)
