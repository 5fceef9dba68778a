"""The console as a person meets it: the real server, a real Chromium, and an operator who reads and clicks.

``Console`` is the server's process, which may be killed and come back; ``Operator`` is one browser with its tabs, whose verbs
are those of a person. Everything waits for what can be seen, never for a length of time. Whatever a browser asks of another
host, and whatever its scripts complain about, is noted, and ``leaves`` fails on it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Download, Locator, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from pipeline import entrance

ROOT = Path(__file__).resolve().parent.parent
ADDRESSES = {
    "Home": "", "Sites": "sites", "Generate": "generate", "Datasets": "datasets", "Train": "train", "Adapters": "adapters",
    "Try it": "try", "Runs": "runs", "Privacy ledger": "privacy", "Settings": "settings",
}  # fmt: skip
PATIENCE_S = 60.0  # for one look, on a machine that does other things too
_LEFT_OUT = {"no_proxy", "http_proxy", "https_proxy", "all_proxy"}
_BASE_PATH_TRIED = re.compile(r"/\w+/_stcore/(health|host-config)$")  # Streamlit asks below a page's address first, and at the root then
_LOST_CONNECTION = re.compile(
    r"ERR_CONNECTION_|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE|WebSocket|ERR_FAILED|disconnected from server|not responding|No response received",
    re.I,
)


def chromium_path() -> str | None:
    """The machine's own Chromium; nothing is downloaded."""
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that can reach this host and no other; the test is skipped where there is none."""
    path = chromium_path()
    if path is None:
        pytest.skip("no chromium on this machine; `make system` installs it where it may")
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Console:
    """``cafe serve`` on a port of its own, in a process group of its own."""

    def __init__(self, environment: Mapping[str, str], port: int | None = None) -> None:
        self.environment = {key: value for key, value in environment.items() if key.lower() not in _LEFT_OUT}
        self.port = port or free_port()
        self.log = Path(self.environment["CAFE_HOME"]) / f"console-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Console:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> Console:
        """Until it answers that it is well."""
        words = [sys.executable, "-m", "pipeline.cli", "serve", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(words, cwd=ROOT, env=self.environment, start_new_session=True, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while not self.well():
            assert self._process.poll() is None, f"the console ended:\n{self.said()}"
            assert time.monotonic() < end, f"the console does not answer:\n{self.said()}"
            time.sleep(0.05)
        return self

    def well(self) -> bool:
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/_stcore/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def key(self) -> str:
        """A one-time key, as `cafe link` prints it: what lets a browser in."""
        return entrance.new_key(Path(self.environment["CAFE_HOME"]))

    def kill(self) -> None:
        """As the out-of-memory killer does it: at once, and no word."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Operator:
    """A person before a browser. ``with Operator(...) as ada`` ends with ``ada.leaves()``."""

    def __init__(self, browser: Browser, console: Console, *, width: int = 1440, height: int = 1000, dark: bool = False) -> None:
        self.console = console
        self.context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", accept_downloads=True, locale="en-GB"
        )
        self.context.set_default_timeout(PATIENCE_S * 1000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.popped_up: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("console", self._hear)
        self.context.on("weberror", lambda error: self.complaints.append(f"script error: {error.error}"))
        self.saved: list[Download] = []
        self._inside = False
        self.context.on("page", self._watch)
        self.page = self.new_tab()

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.leaves()
        else:
            self.context.close()

    # -- tabs and addresses ------------------------------------------------------------------------------------------

    def new_tab(self) -> Page:
        """One more tab of the same browser, looking at nothing yet; ``self.page`` stays the first one."""
        return self.context.new_page()

    def opens(self, page: str = "Home", tab: Page | None = None, **query: str) -> Operator:
        """By typing the address; the first time by a one-time link to it."""
        if not self._inside:
            query, self._inside = {**query, "key": self.console.key()}, True
        address = f"{self.console.url}/{ADDRESSES[page]}" + (f"?{urlencode(query)}" if query else "")
        (tab or self.page).goto(address)
        return self.waits(tab)

    def goes_to(self, page: str) -> Operator:
        """By the menu."""
        self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=page, exact=True).click()
        self.page.wait_for_url(re.compile(rf"{re.escape(self.console.url)}/{ADDRESSES[page]}(\?|$)"))
        return self.waits()

    def waits(self, tab: Page | None = None) -> Operator:
        """Until the page is drawn."""
        page = tab or self.page
        page.wait_for_timeout(150)  # what was done travels to the server first, as in Streamlit's own suite
        expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=PATIENCE_S * 1000)
        return self

    def reloads(self, tab: Page | None = None) -> Operator:
        (tab or self.page).reload()
        return self.waits(tab)

    # -- hands -------------------------------------------------------------------------------------------------------

    def button(self, name: str | re.Pattern[str], where: Locator | None = None) -> Locator:
        """The button, or the link that looks like one, with exactly this name."""
        scope: Any = where or self.page
        return scope.get_by_role("button", name=name, exact=True).or_(scope.get_by_role("link", name=name, exact=True)).first

    def clicks(self, name: str | re.Pattern[str], where: Locator | None = None) -> Operator:
        try:
            self.button(name, where).click()
        except PlaywrightError as error:
            raise AssertionError(f"{name!r} cannot be clicked ({error.message.splitlines()[0]}); the page says:\n{self.text()}") from None
        return self.waits()

    def fills(self, label: str | re.Pattern[str], text: str, where: Locator | None = None) -> Operator:
        """Types into the field and leaves it."""
        scope: Any = where or self.page
        field = scope.get_by_label(label, exact=True).first
        field.fill(text)
        field.blur()
        return self.waits()

    def chooses(self, label: str, option: str, where: Locator | None = None) -> Operator:
        """In a select box."""
        scope: Any = where or self.page
        scope.get_by_label(label).first.click()
        self.page.get_by_role("option", name=option).first.click()
        return self.waits()

    def picks(self, option: str, where: Locator | None = None) -> Operator:
        """One of a few round buttons."""
        scope: Any = where or self.page
        scope.get_by_test_id("stRadio").get_by_text(option, exact=True).first.click()
        return self.waits()

    def presses(self, key: str, times: int = 1) -> Operator:
        for _ in range(times):
            self.page.keyboard.press(key)
        return self

    def downloads(self, name: str | re.Pattern[str], to: Path) -> Path:
        """Clicks, and saves what comes under the name that the console gives it."""
        before = len(self.saved)
        self.button(name).click()
        self.until(lambda: len(self.saved) > before, "the download begins")
        target = to / self.saved[-1].suggested_filename
        self.saved[-1].save_as(target)
        return target

    @property
    def dialog(self) -> Locator:
        """The dialog that is open."""
        return self.page.get_by_role("dialog").last

    # -- eyes --------------------------------------------------------------------------------------------------------

    def sees(self, *texts: str | re.Pattern[str], tab: Page | None = None, within_s: float = PATIENCE_S) -> Operator:
        """Each text is visible on the page, or becomes so."""
        for text in texts:
            expect((tab or self.page).get_by_text(text).locator("visible=true").first).to_be_visible(timeout=within_s * 1000)
        return self

    def does_not_see(self, *texts: str | re.Pattern[str]) -> Operator:
        for text in texts:
            expect(self.page.get_by_text(text).locator("visible=true")).to_have_count(0, timeout=PATIENCE_S * 1000)
        return self

    def sees_state(self, state: str, tab: Page | None = None, within_s: float = PATIENCE_S) -> Operator:
        """A run's state as its badge, in the middle of the page."""
        badges = (tab or self.page).locator(".stMarkdownBadge").filter(has_text=re.compile(rf"(^|\s){re.escape(state)}$"))
        expect(badges.locator("visible=true").first).to_be_visible(timeout=within_s * 1000)
        return self

    def text(self, tab: Page | None = None) -> str:
        """All words of the page's body, the menu left out."""
        return (tab or self.page).get_by_test_id("stMain").inner_text()

    def until(self, true: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> Operator:
        """Watches something outside the browser, whose events go on meanwhile."""
        end = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < end, f"not within {within_s:.0f} s: {what}"
            self.page.wait_for_timeout(100)
        return self

    # -- the end -----------------------------------------------------------------------------------------------------

    def forgets_lost_connections(self) -> None:
        """What a browser says while the console is away is no defect of a page."""
        self.complaints = [one for one in self.complaints if not _LOST_CONNECTION.search(one)]

    def foreign(self) -> list[str]:
        """Addresses outside this host that were asked."""
        asked = [urlsplit(one) for one in self.requests]
        return [one.geturl() for one in asked if one.scheme not in ("data", "blob", "about") and one.hostname != "127.0.0.1"]

    def leaves(self) -> None:
        """Closes the browser; fails on what must never happen."""
        with suppress(PlaywrightError):
            self.context.close()
        assert not self.foreign(), f"requests that leave the host: {self.foreign()}"
        assert not self.popped_up, f"windows of a script: {self.popped_up}"
        assert not self.complaints, f"the browser complains: {self.complaints}"

    def _watch(self, page: Page) -> None:
        page.on("dialog", self._popup)
        page.on("websocket", lambda socket: self.requests.append(socket.url))
        page.on("download", lambda download: self.saved.append(download))

    def _hear(self, word: ConsoleMessage) -> None:
        where = str(word.location.get("url", ""))
        if word.type == "error" and not _BASE_PATH_TRIED.search(where):
            self.complaints.append(f"{word.text} ({where})")

    def _popup(self, dialog: Any) -> None:
        self.popped_up.append(dialog.message)
        dialog.dismiss()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
