"""What operators do with the console, and what they see: a real server, real workers and sites, a real Chromium.

Tiny fakes stand in for the models where the model is not the point (``tests.scenes``); the last scenario has the real one.
Ada and Ben are operators. Every browser's farewell checks that no request left the host and that no script complained.
"""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, expect

from tests import scenes
from tests.browser import ADDRESSES, Console, Operator, chromium
from tests.conftest import RealModels
from tests.scenes import HOSTILE, NAME, Scene

pytestmark = pytest.mark.system
DEMO = "Try the demo federation"
SOON_S = 15.0  # "within two seconds" with the time that a busy machine takes to draw


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
    scene = stage.scene(scenes.running, held=True)  # a round that ends between two looks would show no "Stopping"
    ada = stage.operator(stage.console(scene))
    ada.opens("Runs", run=scene.run).sees_state("Running")
    second = ada.new_tab()
    ada.opens("Home", tab=second).sees_state("Running", tab=second)
    ada.clicks("Stop after this round")
    ada.until(lambda: scene.row.command == "stop", "the wish is in the store")
    ada.sees_state("Stopping", tab=second, within_s=SOON_S)
    scene.lets_go()
    ada.sees_state("Stopped", within_s=120).sees_state("Stopped", tab=second, within_s=SOON_S)


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
    ada.sees("Time left", "Privacy statement")  # a page of which a part was not loaded yet would need a refresh
    expect(ada.page.get_by_test_id("stVegaLiteChart").locator("canvas, svg").first).to_be_visible()
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
    ada.until(lambda: "stage1/2/synthetic" in scene.step_names(), "a second set is made", within_s=180)
    ada.opens("Datasets", run=scene.run).sees("attempt 2", "Your word on it")
    ada.clicks("Approve")
    ada.until(lambda: scene.row.state == "Done", "the run goes on to its end", within_s=180)
    ada.opens("Datasets", run=scene.run, attempt="1").sees("nonsense words")
    assert {step["approved"] for step in scene.words()} == {False, True}


def test_a_row_that_is_left_out_is_not_trained_on(stage: Stage) -> None:
    scene = stage.scene(scenes.waiting)
    ada = stage.operator(stage.console(scene))
    ada.opens("Datasets", run=scene.run).sees("Row 1")
    row = ada.page.locator(".st-key-row-0")
    text = row.get_by_test_id("stText").inner_text()
    row.get_by_text("Leave out").click()
    ada.waits().sees("1 left out").reloads().sees("1 left out")
    ada.clicks("Approve")
    ada.until(lambda: scene.row.state == "Done", "the run goes on to its end", within_s=180)
    kept = pq.read_table(scene.results()["synthetic"]).to_pylist()
    assert text not in [one["text"] for one in kept]


# -- people, not machines ----------------------------------------------------------------------------------------------


def test_what_people_wrote_is_shown_as_typed_on_every_page(stage: Stage) -> None:
    scene = stage.scene(scenes.hostile)
    ada = stage.operator(stage.console(scene))
    for page in ADDRESSES:
        ada.opens(page)
        _nothing_was_obeyed(ada, page)
    for page in ("Runs", "Datasets", "Adapters", "Train", "Generate"):
        ada.opens(page, run=scene.run)
        _nothing_was_obeyed(ada, page)


def test_a_hostile_text_in_every_field_is_refused_in_words_or_kept_as_typed(stage: Stage) -> None:
    scene = stage.scene(scenes.waiting)
    ada = stage.operator(stage.console(scene))
    for page in ADDRESSES:
        ada.opens(page)
        fields = ada.page.get_by_test_id("stMain").locator('input[type="text"], input[type="search"], textarea')
        for number in range(fields.count()):
            field = fields.nth(number)
            if field.is_visible() and field.is_editable() and not field.get_attribute("aria-haspopup"):
                field.fill(HOSTILE)
                field.blur()
                ada.waits()
        _nothing_was_obeyed(ada, page)
    ada.opens("Home").clicks("Set up a real federation")
    ada.fills("Name", HOSTILE[:60], ada.dialog).fills("What the texts are, in one phrase", HOSTILE, ada.dialog)
    ada.clicks("Set it up", ada.dialog).sees("This name cannot be used.")
    ada.fills("Name", "letters", ada.dialog).clicks("Set it up", ada.dialog)
    ada.page.wait_for_url(re.compile("/sites"))
    ada.waits().clicks("Add a site").picks("On this machine, with a data file", ada.dialog)
    ada.fills("Name", HOSTILE[:60], ada.dialog).fills("Data file on this machine", HOSTILE, ada.dialog)
    _nothing_was_obeyed(ada, "Sites")
    ada.opens("Generate", federation="letters")
    _nothing_was_obeyed(ada, "Generate")


def test_the_demo_is_started_with_the_keyboard_alone(stage: Stage, real_models: RealModels) -> None:
    scene = stage.scene(scenes.empty)
    (scene.home / "models").symlink_to(real_models.base.path.parent)
    ada = stage.operator(stage.console(scene, CAFE_TINY_SECONDS="0.5"))
    ada.opens("Home").sees("Nothing is set up yet.")
    for _ in range(40):
        ada.presses("Tab")
        if ada.page.evaluate(_FOCUSED).endswith(DEMO):
            break
    ada.presses("Enter").waits()
    ada.sees("demo: all data is invented").until(lambda: len(scene.all_runs()) == 1, "one run is there")
    ada.sees_state("Running", within_s=60)


def test_every_control_has_a_name_and_every_page_one_title(stage: Stage) -> None:
    scene = stage.scene(scenes.done)
    ada = stage.operator(stage.console(scene))
    for page in ADDRESSES:
        ada.opens(page)
        assert ada.page.evaluate(_NAMELESS) == [], page
        titles = ada.page.get_by_test_id("stMain").get_by_role("heading", level=1)
        expect(titles).to_have_count(1)


def test_no_page_scrolls_sideways_on_a_telephone(stage: Stage) -> None:
    scene = stage.scene(scenes.hostile)
    ada = stage.operator(stage.console(scene), width=390, height=844)
    for page in ADDRESSES:
        ada.opens(page)
        wide = ada.page.evaluate("""() => [document.documentElement, document.querySelector('[data-testid="stMain"]')]
            .map(one => one.scrollWidth - one.clientWidth)""")
        assert max(wide) <= 0, f"{page} is {max(wide)} px too wide"


def test_the_dark_theme_follows_the_browser(stage: Stage) -> None:
    scene = stage.scene(scenes.empty)
    console = stage.console(scene)
    grounds = []
    for dark in (False, True):
        one = stage.operator(console, dark=dark).opens("Home").sees("Nothing is set up yet.")
        grounds.append(one.page.get_by_test_id("stApp").evaluate("one => getComputedStyle(one).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 17, 16)"]


def test_home_is_the_first_thing_painted_with_one_thing_to_do(stage: Stage) -> None:
    """The order of things, not their length: the server is well, the browser asks, Home is drawn; nothing else is waited for."""
    scene = stage.scene(scenes.empty)
    console = stage.console(scene)
    well = time.time()
    ada = stage.operator(console).opens("Home")
    ada.sees("Nothing is set up yet.", "nothing leaves this machine")
    drawn = time.time()
    painted = ada.page.evaluate(
        "() => (performance.timeOrigin + performance.getEntriesByName('first-contentful-paint')[0].startTime) / 1000"
    )
    assert well < painted < drawn
    primary = ada.page.get_by_test_id("stMain").get_by_test_id("stBaseButton-primary")
    expect(primary).to_have_count(1)
    expect(primary).to_have_text(re.compile(f"{DEMO}$"))
    assert scene.all_runs() == [] and not (scene.home / "models").exists()


# -- the whole way, with the real model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, chrome: Browser, real_models: RealModels) -> Iterator[tuple[Operator, Scene]]:
    """The demo federation, shortened (few texts, one vote, one round of few steps), from one click on Home to Done."""
    scene = scenes.short_demo(tmp_path_factory.mktemp("demo") / "home", real_models.base.path.parent)
    with ExitStack() as ends:
        ends.callback(scene.ends)
        ada = ends.enter_context(Operator(chrome, ends.enter_context(Console(scene.environment))))
        ada.opens("Home").clicks(DEMO).sees_state("Running", within_s=60)
        ada.sees("is ready.", within_s=420)
        scene.run = scene.all_runs()[0].id
        yield ada, scene


@pytest.mark.heavy
def test_the_demo_by_clicks_to_the_chat(demo: tuple[Operator, Scene]) -> None:
    ada, scene = demo
    ada.opens("Home").clicks("Try it", ada.page.locator(".st-key-done"))
    ada.page.wait_for_url(re.compile("/try"))
    ada.waits().clicks("Start the chat").sees("Model ready", within_s=180)
    ada.sees("Base", "Synthetic only", "Federated")
    for adapter in scene.adapters():
        ada.sees(f"adapter {adapter[:12]}")
    box = ada.page.get_by_test_id("stChatInputTextArea")
    box.fill("My tablets have run out, can I have more of them before Friday?")
    box.press("Enter")
    ada.sees("Label scores", within_s=180).sees(re.compile("^Likeliest by Base: .*, Synthetic only: .*, Federated"))
    expect(ada.page.get_by_text(re.compile(r"^\d+ tokens? · [\d.]+ s · done"))).to_have_count(3)
    ada.reloads().sees("My tablets have run out, can I have more of them before Friday?")


@pytest.mark.heavy
def test_the_adapter_is_downloaded_by_a_click_and_loaded_with_peft(demo: tuple[Operator, Scene], tmp_path: Path) -> None:
    ada, scene = demo
    file = ada.opens("Home").downloads("Download", tmp_path)
    with zipfile.ZipFile(file) as bundle:
        bundle.extractall(tmp_path)
    folder = next(one.parent for one in tmp_path.rglob("adapter_config.json"))
    weights = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert weights == scene.adapters()[-1]
    code = (
        "import sys; from peft import PeftModel; from transformers import AutoModelForCausalLM as Model\n"
        "model = PeftModel.from_pretrained(Model.from_pretrained(sys.argv[1]), sys.argv[2])\n"
        "print(sum(p.abs().sum().item() for n, p in model.named_parameters() if 'lora_B' in n) > 0)"
    )
    base = str(scene.home / "models" / "smollm2-135m-instruct")
    done = subprocess.run([sys.executable, "-c", code, base, str(folder)], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.strip() == "True", done.stderr


_FOCUSED = "() => document.activeElement.matches('button') ? document.activeElement.innerText.trim() : ''"

# every button, link and field with no words of its own: neither text, label, title nor alternative text
_NAMELESS = """() => [...document.querySelectorAll('[data-testid="stMain"] :is(button, a[href], input, textarea, [role="img"], img)')]
    .filter(one => one.offsetParent && one.type !== 'hidden' && !one.closest('[aria-hidden="true"]'))
    .filter(one => !(one.innerText || '').trim() && !one.ariaLabel && !one.title && !one.alt && !one.labels?.length
        && !one.getAttribute('aria-labelledby') && !one.placeholder)
    .map(one => one.outerHTML.slice(0, 160))"""


def _round(ada: Operator) -> int:
    found = re.search(r"round (\d+) of \d+", ada.text())
    return int(found[1]) if found else 0


def _nothing_was_obeyed(ada: Operator, page: str) -> None:
    """No script ran, no link, picture or formula was made out of a text, nothing was coloured, and the page did not fall."""
    main = ada.page.get_by_test_id("stMain")
    made = main.locator('a[href*="evil.example"], img[src*="evil.example"], script, .katex').evaluate_all(
        "all => all.map(one => one.parentElement.outerHTML.slice(0, 300))"
    )
    assert made == [], f"{page}: {made}"
    assert "y" not in main.locator(".stMarkdownColoredText").all_inner_texts(), page
    assert "unforeseen" not in ada.text(), f"{page}:\n{ada.text()}\n{ada.console.said()[-3000:]}"
