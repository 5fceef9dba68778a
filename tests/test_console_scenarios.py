"""What operators do with the console, and what they see: a real server, real workers and sites, a real Chromium.

Tiny fakes stand in for the models where the model is not the point (``tests.scenes``); the last scenario has the real one.
Ada and Ben are operators. Every browser's farewell checks that no request left the host and that no script complained.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests import scenes
from tests.browser import ADDRESSES, Console, Operator, chromium
from tests.scenes import NAME, Scene

pytestmark = pytest.mark.system
SOON_S = 6.0  # "within two seconds" with the time that a busy machine takes to draw


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with chromium() as found:
        yield found


class Stage:
    """One scenario's scenes, consoles and operators; all of them end with it."""

    def __init__(self, folder: Path, browser: Browser, ends: ExitStack) -> None:
        self._folder, self._browser, self._ends = folder, browser, ends

    def scene(self, make: Callable[..., Scene], **settings: Any) -> Scene:
        made = make(self._folder / make.__name__, **settings)
        self._ends.callback(made.ends)
        return made

    def console(self, scene: Scene, **environment: str) -> Console:
        return self._ends.enter_context(Console({**scene.environment, **environment}))

    def operator(self, console: Console, **looks: Any) -> Operator:
        return self._ends.enter_context(Operator(self._browser, console, **looks))


@pytest.fixture
def stage(tmp_path: Path, chrome: Browser) -> Iterator[Stage]:
    with ExitStack() as ends:
        yield Stage(tmp_path, chrome, ends)


# -- the console holds no truth ----------------------------------------------------------------------------------------


def test_a_refresh_in_the_middle_shows_the_same_and_goes_on(stage: Stage) -> None:
    scene = stage.scene(scenes.running)
    ada = stage.operator(stage.console(scene))
    ada.opens("Runs", run=scene.run).sees_state("Running").sees("Stage 2 · round")
    ada.reloads().sees_state("Running").sees("Stage 2 · round", "Stop after this round")
    before = _round(ada)
    ada.until(lambda: _round(ada) > before, "the page gets on by itself")
    assert f"run={scene.run}" in ada.page.url


def test_back_and_deep_links_lead_to_the_same_run(stage: Stage) -> None:
    scene = stage.scene(scenes.done)
    ada = stage.operator(stage.console(scene))
    ada.opens("Runs", run=scene.run).sees_state("Done")
    ada.goes_to("Adapters").sees("Share of right answers")
    ada.page.go_back()
    ada.waits().sees_state("Done")
    assert f"run={scene.run}" in ada.page.url
    ada.opens("Adapters", run=scene.run).sees("Share of right answers")


def test_an_unknown_run_in_the_address_is_told_in_words_on_every_page(stage: Stage) -> None:
    scene = stage.scene(scenes.done)
    ada = stage.operator(stage.console(scene))
    ada.opens("Runs", run="no-such-run").sees("No run with this id").clicks("See all runs").sees(NAME)
    for page in ("Generate", "Datasets", "Train", "Adapters", "Try it", "Privacy ledger"):
        ada.opens(page, run="no-such-run")
        assert "unforeseen" not in ada.text() and "Traceback" not in ada.text(), page


def test_a_second_tab_sees_the_same_at_once(stage: Stage) -> None:
    scene = stage.scene(scenes.running)
    ada = stage.operator(stage.console(scene))
    ada.opens("Runs", run=scene.run).sees_state("Running")
    second = ada.new_tab()
    ada.opens("Home", tab=second).sees_state("Running", tab=second)
    ada.clicks("Stop after this round")
    ada.sees_state("Stopping", tab=second, within_s=SOON_S)
    ada.sees_state("Stopped", within_s=60).sees_state("Stopped", tab=second, within_s=SOON_S)


def test_a_run_goes_on_when_the_browser_is_closed(stage: Stage) -> None:
    scene = stage.scene(scenes.running, seconds="0.1", stage2={"rounds": 10, "steps": 4})
    console = stage.console(scene)
    with Operator(stage._browser, console) as ada:
        ada.opens("Home").sees_state("Running")
    assert scene.worker and scene.worker.wait(timeout=120) == 0
    stage.operator(console).opens("Home").sees_state("Done").sees("is ready")


def test_a_killed_console_comes_back_and_its_open_page_is_true_again(stage: Stage) -> None:
    scene = stage.scene(scenes.running)
    console = stage.console(scene)
    ada = stage.operator(console)
    ada.opens("Runs", run=scene.run).sees_state("Running")
    before = _round(ada)
    console.kill()
    assert scene.worker and scene.federation
    ada.until(lambda: scene.rounds_scored() > before, "the run goes on without a console")
    console.start()
    ada.until(lambda: _round(ada) > before, "the open page is true again", within_s=60)
    ada.sees_state("Running")
    assert scene.worker.poll() is None
    ada.forgets_lost_connections()


def test_a_killed_worker_is_lost_contact_and_is_resumed_by_a_click(stage: Stage) -> None:
    scene = stage.scene(scenes.running, stage2={"rounds": 4, "steps": 4})
    ada = stage.operator(stage.console(scene))
    ada.opens("Runs", run=scene.run).sees_state("Running")
    assert scene.worker
    scene.worker.send_signal(signal.SIGKILL)
    scene.worker.wait()
    ada.sees_state("Lost contact", within_s=SOON_S)
    ada.reloads().sees_state("Lost contact")
    assert not re.search(r"\bRunning\b", ada.text())
    ada.opens("Home").sees_state("Lost contact").sees("Needs you")
    ada.opens("Runs", run=scene.run).clicks("Resume")
    ada.sees_state("Done", within_s=120)
    assert scene.rounds_scored() == 4


def test_two_operators_who_press_start_at_once_get_one_run(stage: Stage) -> None:
    scene = stage.scene(scenes.draft)
    console = stage.console(scene, CAFE_TINY_SECONDS="0.2")
    ada, ben = stage.operator(console), stage.operator(console)
    for one in (ada, ben):
        one.opens("Generate").clicks("Start and spend privacy…")
        one.fills(re.compile("^Type .* to confirm$"), NAME, one.dialog)
    buttons = [one.button("Start", one.dialog) for one in (ada, ben)]
    for button in buttons:
        expect(button).to_be_enabled()
    for button in buttons:
        button.click(no_wait_after=True)
    for one in (ada, ben):
        one.waits().opens("Home").sees_state("Running")
    assert len(scene.all_runs()) == 1


# -- the operator's word -----------------------------------------------------------------------------------------------


def test_a_set_is_rejected_and_the_second_attempt_approved_without_one_row(stage: Stage) -> None:
    scene = stage.scene(scenes.waiting)
    ada = stage.operator(stage.console(scene))
    ada.opens("Home").sees("Needs you").clicks("Approve or reject").sees("Your word on it")
    ada.clicks("Reject…").fills("Why is it rejected?", "nonsense words", ada.dialog)
    ada.fills("Type the name of the federation to confirm", NAME, ada.dialog)
    ada.clicks("Reject and make another", ada.dialog)
    ada.until(lambda: "stage1/2/synthetic" in scene.step_names(), "a second set is made", within_s=60)
    ada.opens("Datasets", run=scene.run).sees("attempt 2", "Your word on it")
    ada.clicks("Approve")
    ada.until(lambda: scene.row.state == "Done", "the run goes on to its end", within_s=60)
    ada.opens("Datasets", run=scene.run, attempt="1").sees("nonsense words")
    assert {step["approved"] for step in scene.words()} == {False, True}


# -- people, not machines ----------------------------------------------------------------------------------------------


def test_what_people_write_is_shown_as_typed_on_every_page(stage: Stage) -> None:
    scene = stage.scene(scenes.hostile)
    ada = stage.operator(stage.console(scene))
    for page in ADDRESSES:
        ada.opens(page)
        _nothing_was_obeyed(ada)
    for page in ("Runs", "Datasets", "Adapters", "Try it", "Train", "Generate", "Privacy ledger"):
        ada.opens(page, run=scene.run)
        _nothing_was_obeyed(ada)


def test_no_page_scrolls_sideways_on_a_telephone(stage: Stage) -> None:
    scene = stage.scene(scenes.hostile)
    ada = stage.operator(stage.console(scene), width=390, height=844)
    for page in ADDRESSES:
        ada.opens(page)
        wide = ada.page.evaluate("""() => [document.documentElement, document.querySelector('[data-testid="stMain"]')]
            .map(one => one.scrollWidth - one.clientWidth)""")
        assert max(wide) <= 0, f"{page} is {max(wide)} px too wide"


def test_the_dark_theme_follows_the_browser(stage: Stage) -> None:
    scene = stage.scene(scenes.done)
    console = stage.console(scene)
    grounds = []
    for dark in (False, True):
        one = stage.operator(console, dark=dark).opens("Home")
        grounds.append(one.page.get_by_test_id("stApp").evaluate("one => getComputedStyle(one).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 17, 16)"]


def test_home_is_painted_as_soon_as_the_server_is_well(stage: Stage) -> None:
    scene = stage.scene(scenes.empty)
    ada = stage.operator(stage.console(scene)).opens("Home")
    ada.sees("Nothing is set up yet.", "nothing leaves this machine")
    primary = ada.page.get_by_test_id("stMain").locator('[data-testid="stBaseButton-primary"]')
    expect(primary).to_have_count(1)
    expect(primary).to_have_text(re.compile("Try the demo federation$"))


def _round(ada: Operator) -> int:
    found = re.search(r"round (\d+) of \d+", ada.text())
    return int(found[1]) if found else 0


def _nothing_was_obeyed(ada: Operator) -> None:
    """No script ran, no link or picture was made out of a text, nothing was coloured."""
    main = ada.page.get_by_test_id("stMain")
    expect(main.locator('a[href*="evil.example"], img[src*="evil.example"], script, .katex')).to_have_count(0)
    expect(main.get_by_text("y", exact=True).and_(main.locator(".stMarkdownColoredText"))).to_have_count(0)
    assert "unforeseen" not in ada.text()
