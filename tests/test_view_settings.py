"""*Settings*: what this machine holds, choices that stay, facts of safety, the doctor, and the removal of the demo."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError
from streamlit.testing.v1 import AppTest

from pipeline import federations, launch, premises
from server_store.ledger import Ledger
from tests.browser import Console, Operator, chromium
from tests.federation import ROOT


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "spawn", lambda run: None)


def _page() -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "pages.py"), default_timeout=60).run()
    page.switch_page("views/settings.py").run()
    assert not page.exception, page.exception
    return page


def _told(page: AppTest) -> str:
    return "\n".join(str(one.value) for kind in ("markdown", "caption", "subheader", "info", "code") for one in page.get(kind))


def test_an_empty_home_says_where_it_is_and_what_is_fetched_later(cafe_home: Path) -> None:
    page = _page()
    models = page.dataframe[0].value
    assert str(cafe_home) in [one.value for one in page.code] and "free on its disk" in _told(page)
    assert set(models["State"]) == {"fetched when first needed"} and set(models["Use"]) == {"base model", "embedder"}
    assert "Remove demo" not in _told(page) and "remove-demo" not in [one.key for one in page.button]


def test_models_on_disk_have_a_size(cafe_home: Path) -> None:
    folder = cafe_home / "models" / "org--name@main"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}" + " " * 998)
    (found,) = [one for one in premises.models() if one.size]
    assert (found.name, found.use, found.size, found.whole) == ("org/name@main", "base model", 1000, True)


def test_secrets_are_named_and_never_shown(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFE_OPENAI_API_KEY", "very secret words")
    monkeypatch.setenv("CAFE_OPENAI_BASE_URL", "http://127.0.0.1:9000/v1")
    page = _page()
    secrets = page.dataframe[1].value.set_index("Variable")
    assert secrets.loc["CAFE_OPENAI_API_KEY", "State"] == "set" and secrets.loc["CAFE_GENERATOR_KEY", "State"] == "not set"
    assert "very secret words" not in str(page) and "http://127.0.0.1:9000/v1" in [one.value for one in page.code]


def test_choices_are_kept_and_hold_on_every_page(cafe_home: Path) -> None:
    page = _page()
    next(one for one in page.toggle if one.label == "Show explanations open").set_value(True).run()
    next(one for one in page.toggle if one.label.startswith("Keep questions")).set_value(False).run()
    page.number_input[0].set_value(25).run()
    assert not page.exception
    with closing(launch.desk()) as desk:
        assert desk.preference("explanations") == "yes" and desk.preference("store_prompts") == "no"
        assert float(desk.preference("chat_idle_minutes")) == 25
    again = _page()
    assert next(one for one in again.toggle if one.label == "Show explanations open").value is True
    assert not [one for one in again.get("popover")] and "What this console stands on" in _told(again)


def test_facts_of_safety_are_read_from_the_server(cafe_home: Path) -> None:
    facts = _page().dataframe[2].value.set_index("What")
    assert facts.loc["Usage statistics", "Is"] == "off" and facts.loc["Forged requests refused (XSRF)", "Is"] == "on"
    assert facts.loc["Listens on", "Means"] == "this machine only" and set(facts["State"]) == {"as shipped"}


def test_versions_and_licences_are_named(cafe_home: Path) -> None:
    found = _page().dataframe[3].value.set_index("Library")
    assert found.loc["cafe-au-lait", "Licence"] == "Apache-2.0" and "streamlit" in found.index and "python" in found.index


def test_the_doctor_looks_from_a_process_of_its_own(cafe_home: Path) -> None:
    page = _page()
    page.button(key="doctor").click().run()
    assert not page.exception
    found = page.dataframe[2].value
    assert {"python", "disk", "store", "ledger"} <= set(found["Check"]) and "Found" in found.columns


def test_a_doctor_without_an_answer_is_a_card(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(premises.sys, "executable", "/bin/false")
    with pytest.raises(CafeError, match="CAFE-690"):
        premises.examine()


def test_removing_the_demo_keeps_its_charges_and_what_is_not_demo(cafe_home: Path) -> None:
    run = launch.start(federations.create_demo().settings())
    federations.create("library", "instruction", "help desk")
    Ledger(cafe_home / "ledger.db").reserve("r1", run.id, 1, 1, 1, "votes", terms={}, inputs={}, charges={"oakdale": None})
    launch.store().claim(run.id, os.getpid())
    with pytest.raises(CafeError, match="CAFE-658"):
        premises.remove_demo()  # it is carried
    assert [one.name for one in federations.listed() if one.is_demo] == ["demo"]
    launch.store().abandon(run.id)
    assert premises.has_demo() and premises.remove_demo() == 1 and not premises.has_demo()
    assert launch.store().runs() == [] and not Path(run.folder).exists() and [one.name for one in federations.listed()] == ["library"]
    assert len(Ledger(cafe_home / "ledger.db").charges()) == 1


@pytest.mark.system
def test_an_operator_removes_the_demo_by_typing_it_and_reads_the_manual(cafe_home: Path) -> None:
    launch.store().abandon(launch.start(federations.create_demo().settings()).id)
    with Console(os.environ) as console, chromium() as browser, Operator(browser, console) as ada:
        ada.opens("Settings").page.get_by_role("tab", name="Preferences").click()
        ada.clicks("Remove demo…").sees("Charges stay in the privacy ledger.")
        ada.fills("Type “remove demo” to go on", "remove demo", ada.dialog).clicks("Remove", ada.dialog).does_not_see("Remove demo…")
        ada.page.get_by_role("tab", name="Versions and documents").click()
        ada.clicks("For the operator").sees("How to start the console")
    assert federations.listed() == [] and launch.store().runs() == []
