"""*Home* in its states: empty, draft, running, waiting, failed, lost, done, hostile names; and the click on the demo."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pipeline import enrolling, federations, journey, launch, overview
from pipeline.enrolling import Issued
from pipeline.settings import SiteSettings
from server_store.desk import Desk
from server_store.rows import Run
from tests.browser import Console, Operator, chromium
from tests.federation import ROOT, Federation
from tests.test_enrolling import Site

HOSTILE = "<script>alert(1)</script>**x** :red[y] $z$ [a](http://b)"


class Workers:
    """In place of worker processes: notes which runs were to be carried."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def __call__(self, run: Run) -> None:
        self.started.append(run.id)


@pytest.fixture
def workers(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers()
    monkeypatch.setattr(launch, "spawn", found)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = Federation(tmp_path_factory.mktemp("home") / "f", stage2={"rounds": 2})
    assert federation.work(federation.create()) == 0
    return federation


@pytest.fixture
def done(finished: Federation, cafe_home: Path) -> Run:
    """A copy of the finished run in this test's own home."""
    shutil.copytree(finished.home, cafe_home, dirs_exist_ok=True)
    folder = cafe_home / Path(finished.store.runs()[0].folder).relative_to(finished.home)
    with sqlite3.connect(cafe_home / "store.db") as rows:
        rows.execute("UPDATE runs SET folder=?", (str(folder),))
    return launch.store().runs()[0]


def _home() -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "pages.py"), default_timeout=30).run()
    assert not page.exception, page.exception
    return page


def _told(page: AppTest) -> str:
    return "\n".join(str(one.value) for kind in ("markdown", "caption", "subheader", "info", "code") for one in page.get(kind))


def _primary(page: AppTest) -> list[str]:
    return [one.label for one in page.button if one.proto.type == "primary"]


def _carried(settings_of: str = "demo") -> tuple[Desk, Run, int]:
    """A run whose worker is this very process."""
    run = launch.start(federations.get(settings_of).settings(), operator="ada")
    desk = launch.desk()
    return desk, run, desk.claim(run.id, os.getpid())


# -- empty and draft ---------------------------------------------------------------------------------------------------


def test_empty_offers_one_thing_first(cafe_home: Path) -> None:
    page = _home()
    assert _primary(page) == ["Try the demo federation"]
    told = _told(page)
    assert "nothing leaves this machine" in told and "about ten minutes on two cores" in told and "180 MB" in told
    assert [one.label for one in page.button][:2] == ["Try the demo federation", "Set up a real federation"] and not page.warning


def test_the_click_starts_one_run_and_lands_on_it(workers: Workers) -> None:
    page = _home()
    page.button(key="try-demo").click().run()
    assert not page.exception
    (run,) = launch.store().runs()
    assert workers.started == [run.id] and run.name == "demo" and run.operator
    told = _told(page)
    assert "Queued" in told and "The worker starts" in told and "**0 of 8**" in told and _primary(page) == []


def test_clicks_at_once_and_a_terminal_give_one_run(workers: Workers) -> None:
    runs: list[str] = []
    clicks = [threading.Thread(target=lambda: runs.append(launch.start_demo("ada").id)) for _ in range(4)]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    assert len(set(runs)) == 1 and len(runs) == 4 and len(workers.started) == 1


def test_a_second_tab_that_was_empty_lands_on_the_run(workers: Workers) -> None:
    tab = _home()
    run = launch.start_demo("ada")
    tab.button(key="try-demo").click().run()
    assert not tab.exception and workers.started == [run.id] and "**0 of 8**" in _told(tab)


def test_a_draft_leads_to_its_sites_and_then_to_the_form(cafe_home: Path, tmp_path: Path) -> None:
    federations.create("library", "instruction", "help desk")
    page = _home()
    assert _primary(page) == ["Add a site"] and "Draft" in _told(page)
    federations.add_site("library", {"name": "north", "kind": "gpu", "data": str(tmp_path / "north.jsonl")})
    page = _home()
    assert _primary(page) == ["Plan and start"] and "**1 site**" in _told(page)


# -- a run in motion ---------------------------------------------------------------------------------------------------


def test_running_says_what_happens_in_words(workers: Workers) -> None:
    federations.create_demo()
    desk, run, epoch = _carried()
    desk.set_state(run.id, epoch, "Running")
    desk.save_step(run.id, epoch, "stage1/1/1/candidates", None, {})
    desk.set_progress(run.id, "stage 1: vote 1 of 2", 3, 6)
    desk.set_site_progress(run.id, "oakdale", "vote", 5, 10)
    page = _home()
    told = _told(page)
    assert "Now the sites without a GPU vote" in told and "noise hides what any one site said" in told
    assert "oakdale" in told and "Waiting for" in told and "Running" in told and _primary(page) == []
    assert [one.value for one in page.metric if one.label == "Sites"] == ["8"]


def test_the_figures_of_a_run_are_of_its_own_sites(workers: Workers) -> None:
    made = federations.create_demo()
    _carried()
    federations.save("demo", {**made.data, "sites": made.data["sites"][:3]})  # five were taken away since
    assert [one.value for one in _home().metric if one.label == "Sites"] == ["8"]


def test_every_phase_has_its_sentence(workers: Workers) -> None:
    federations.create_demo()
    desk, run, _ = _carried()
    for phase, words in (
        ("starting", "You may close this page"),
        ("smollm2-135m-instruct: fetching", "models are set up"),
        ("sites", "Every site is asked"),
        ("evaluate: zero shot", "untouched base model"),
        ("stage 1: propose", "No site has been asked"),
        ("stage 1: expand", "costs no privacy"),
        ("stage 2: warm start on the synthetic set", "synthetic texts alone"),
        ("stage 2: round 3 of 5", "Now the sites with a GPU train"),
        ("evaluate: round", "public test"),
    ):
        desk.set_progress(run.id, phase, 0, 0)
        assert words in journey.guide(overview.look(desk, run.id)), phase


def test_what_waits_for_approval_is_the_one_primary_button(done: Run) -> None:
    config = Path(done.folder) / "config.yaml"
    config.write_text(config.read_text().replace("approve: automatic", "approve: operator"))
    with sqlite3.connect(launch.home() / "store.db") as rows:
        rows.execute("DELETE FROM steps WHERE name LIKE 'stage2/%' OR name LIKE '%/approval'")
        rows.execute("UPDATE runs SET state='Stopped'")
    page = _home()
    assert _primary(page) == ["Approve or reject"] and "Needs you (1)" in _told(page)


def test_failed_is_a_card_with_the_way_to_the_run(workers: Workers) -> None:
    federations.create_demo()
    desk, run, epoch = _carried()
    desk.finish(
        run.id, epoch, "Failed", {"code": "CAFE-201", "message": f"The data file '{HOSTILE}' was not found.", "hint": "Check the path."}
    )
    page = _home()
    told = _told(page)
    assert "CAFE-201" in told and "What to do: Check the path" in told and "Failed" in told
    assert {"Open run", "Resume"} <= {one.label for one in page.button} and "<script>" not in told.replace(HOSTILE, "")
    next(one for one in page.button if one.label == "Resume").click().run()
    assert not page.exception and workers.started == [run.id, run.id] and launch.store().run(run.id).state == "Queued"


def test_lost_contact_is_never_shown_as_running(workers: Workers) -> None:
    federations.create_demo()
    run = launch.start(federations.get("demo").settings())
    launch.store().claim(run.id, 2**22 + 1)  # no such process
    page = _home()
    told = _told(page)
    assert "Lost contact" in told and "play_circle: Running" not in told and "Needs you (1)" in told
    assert "Resume" in [one.label for one in page.button]


def test_a_stopped_run_is_gone_on_with_by_the_one_primary_button(workers: Workers) -> None:
    federations.create_demo()
    desk, run, epoch = _carried()
    desk.finish(run.id, epoch, "Stopped")
    page = _home()
    assert _primary(page) == ["Resume"] and "can be resumed from where it stood" in _told(page)
    page.button(key="home resume").click().run()
    assert not page.exception and workers.started == [run.id, run.id] and launch.store().run(run.id).state == "Queued"


# -- sites elsewhere ---------------------------------------------------------------------------------------------------


def _clinics() -> Issued:
    made = federations.create("clinics", "classification", "messages to a clinic")
    federations.save("clinics", {**made.data, "task": {**made.data["task"], "labels": ["billing", "records"]}})
    return enrolling.issue("clinics", "hpc", "gpu")


def test_a_site_that_asks_is_what_comes_first(cafe_home: Path, tmp_path: Path) -> None:
    site = Site(_clinics())
    page = _home()
    assert "Kits are out that were not used yet: hpc" in _told(page) and _primary(page) == ["Add a site"]
    enrolling.receive(site.ask(tmp_path / "request"))
    page = _home()
    assert "Needs you (1)" in _told(page) and "asks to join clinics" in _told(page) and _primary(page) == ["Look at its request"]
    page.button(key=f"request {site.info.serial}").click().run()
    page.switch_page("views/sites.py").run()
    assert not page.exception and "Call the admin of hpc" in _told(page)


def test_a_run_that_waits_names_the_sites_that_are_not_there(workers: Workers, tmp_path: Path) -> None:
    site = Site(_clinics())
    enrolling.receive(site.ask(tmp_path / "request"))
    enrolling.approve(site.info.serial, site.words)
    settings = federations.create_demo().settings()
    joined = settings.model_copy(update={"name": "clinics", "sites": (*settings.sites, SiteSettings(name="hpc", kind="gpu"))})
    run, desk = launch.start(joined), launch.desk()
    epoch = desk.claim(run.id, os.getpid())
    desk.set_state(run.id, epoch, "Waiting for sites")
    for name in ("hpc", "oakdale"):
        desk.set_site_progress(run.id, name, "asked", 0, 0)
    desk.set_preference("federation", "clinics")
    told = _told(_home())
    assert "**hpc** is not there: it has joined and was not heard of yet" in told and "oakdale \\(was asked" in told
    assert "Waiting for sites" in told and "**oakdale** is not there" not in told


# -- the end -----------------------------------------------------------------------------------------------------------


def test_done_offers_to_try_and_to_download(done: Run) -> None:
    page = _home()
    told = _told(page)
    assert "is ready" in told and "public test records" in told and _primary(page) == ["Try it"]
    assert f"files/runs/{done.id}/adapter.zip?round=2" in [one.proto.url for one in page.get("link_button")]
    assert told.count("check_circle: Done") >= 5 and "no formal guarantee" in told
    assert page.dataframe[0].value["Run"][0] == f"runs?run={done.id}"


def test_tried_ends_the_journey(done: Run) -> None:
    desk = launch.desk()
    desk.remember_chat(done.id, "question", {})
    assert journey.look(desk, None).next is None and _primary(_home()) == []


def test_hostile_names_show_as_typed(cafe_home: Path, done: Run) -> None:
    with sqlite3.connect(cafe_home / "store.db") as rows:
        rows.execute("UPDATE runs SET name=?", (HOSTILE,))
    desk = launch.desk()
    desk.event(done.id, HOSTILE, site=HOSTILE)
    page = _home()
    assert HOSTILE in page.dataframe[0].value["What"][0]  # a cell draws text, never Markdown
    assert "<script>" not in _told(page) and ":red[y]" not in _told(page)


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.system
def test_an_operator_sets_up_a_federation_with_a_site_and_takes_the_site_out_again(cafe_home: Path, tmp_path: Path) -> None:
    data = tmp_path / "north.csv"
    data.write_text("message,reply\nhow do I renew,at the desk\nwhen do you open,at nine\n")
    with Console(os.environ) as console, chromium() as browser, Operator(browser, console) as ada:
        ada.opens("Home").clicks("Set up a real federation")
        ada.fills("Name", "library", ada.dialog).fills("What the texts are, in one phrase", "questions to a help desk", ada.dialog)
        ada.dialog.get_by_text("Instruction to answer").click()
        ada.waits().clicks("Set it up", ada.dialog).sees("No sites yet")
        ada.clicks("Add a site").picks("On this machine, with a data file", ada.dialog)
        ada.fills("Name", "north", ada.dialog).fills("Data file on this machine", str(data), ada.dialog)
        ada.sees("Column with the instruction").clicks("Check the data", ada.dialog).sees("2 records are usable.")
        ada.clicks("Add the site", ada.dialog).sees("Select a row")
        assert federations.get("library").data["sites"][0]["columns"] == {"instruction": "message", "output": "reply"}
        ada.opens("Sites", site="north").clicks("Remove…").sees("Type its name")
        ada.fills("Type its name to remove it", "north", ada.dialog).clicks("Remove", ada.dialog).sees("No sites yet")
    assert federations.get("library").data["sites"] == []
