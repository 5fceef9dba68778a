"""*Sites*, how a site of another machine comes in: the kit and its code once, the request, the words, yes and no, and the end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest
from cafe_kit import enrolment
from cafe_kit.enrolment import Consent
from cafe_kit.site_folder import to_toml
from streamlit.testing.v1 import AppTest

from pipeline import connection_check, enrolling, federations, launch, messengers, request_watch
from pipeline.federations import Federation
from server_store.ledger import Ledger
from server_store.rows import OrderRow
from server_store.site_kits import SiteKit
from tests.browser import Console, Operator, chromium
from tests.federation import ROOT
from tests.test_enrolling import Site

CODE = re.compile(r"\b(?:[A-Z0-9]{4}-){3}[A-Z0-9]{4}\b")
HEARD = "Four words that the admin reads to you"
HOSTILE = "<script>alert(1)</script>**x** :red[y] $z$ [a](http://b)"


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(request_watch, "EVERY_S", 0.0)
    monkeypatch.setattr(request_watch, "_PATIENCE_S", 10.0)
    yield
    request_watch._watches.clear()


@pytest.fixture
def clinics(cafe_home: Path) -> Federation:
    made = federations.create("clinics", "classification", "messages to a clinic")
    return federations.save("clinics", {**made.data, "task": {**made.data["task"], "labels": ["billing", "records"]}})


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture
def site(clinics: Federation, shared: Path) -> Site:
    return Site(enrolling.issue("clinics", "hpc", "gpu", exchange=shared))


def _page(**query: str) -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "pages.py"), default_timeout=30).run()
    page.switch_page("views/sites.py")
    for key, value in query.items():
        page.query_params[key] = value
    page.run()
    return _fine(page)


def _fine(page: AppTest) -> AppTest:
    assert not page.exception, page.exception
    return page


def _told(page: AppTest) -> str:
    kinds = ("markdown", "caption", "subheader", "info", "warning", "code")
    return "\n".join(str(one.value) for kind in kinds for one in page.get(kind))


def _states(page: AppTest) -> dict[str, str]:
    table = page.dataframe[0].value
    return dict(zip(table["Site"], table["State"], strict=True))


def _click(page: AppTest, key: str) -> AppTest:
    return _fine(page.button(key=key).click().run())


def _ask(site: Site, shared: Path, **changes: object) -> None:
    site.ask(shared / enrolment.request_name(site.info.serial), **changes)


def _filled(page: AppTest, name: str, exchange: Path | str) -> AppTest:
    _click(page, "add-site")
    page.text_input(key="site-name").set_value(name)
    page.radio(key="site-kind").set_value("gpu")
    page.text_input(key="kit-exchange").set_value(str(exchange))
    return _fine(page.run())


def _code(page: AppTest) -> str:
    """The join code that the page shows."""
    (found,) = [str(one.value) for one in page.code if CODE.fullmatch(str(one.value))]
    return found


# -- the kit -----------------------------------------------------------------------------------------------------------


def test_a_kit_is_made_and_its_code_is_shown_once(clinics: Federation, shared: Path) -> None:
    page = _click(_filled(_page(), "hpc", shared), "kit-make")
    (kit,) = enrolling.listed()
    told, code = _told(page), _code(page)
    assert (kit.site, kit.kind, kit.exchange, kit.connection["via"]) == ("hpc", "gpu", str(shared), "folder")
    assert enrolment.proof_key(code, kit.serial).hex() == kit.code_key
    assert kit.zip_sha256 in told and enrolling.fingerprint() in told and "./cafe-site join" in told
    assert [one.proto.url for one in page.get("link_button")] == [f"files/kits/{kit.serial}/kit.zip"]
    page = _click(page, "kit-noted")
    assert code not in _told(page) and code not in str(page.session_state) and _states(page) == {"hpc": "Not joined yet"}
    again = _told(_page(site="hpc"))
    assert code not in again and kit.zip_sha256 in again and "was shown when the kit was made" in again


def test_a_click_too_many_makes_no_second_kit_and_loses_no_code(clinics: Federation, shared: Path) -> None:
    page = _click(_filled(_page(), "hpc", shared), "kit-make")
    code = _code(page)
    again = _click(_page(), "add-site")
    again.session_state["kit made"] = page.session_state["kit made"]
    assert _code(_fine(again.run())) == code and len(enrolling.listed()) == 1


def test_another_operator_who_was_quicker_is_told_in_a_card(clinics: Federation, shared: Path) -> None:
    page = _filled(_page(), "hpc", shared)
    enrolling.issue("clinics", "HPC", "gpu")
    assert "CAFE-145" in _told(_click(page, "kit-make")) and len(enrolling.listed()) == 1


@pytest.mark.parametrize(
    ("name", "exchange", "code"), [("ward 3", "", "CAFE-602"), ("hpc", "/nowhere", "CAFE-137"), ("here", "", "CAFE-602")]
)
def test_what_cannot_be_a_kit_is_a_card(clinics: Federation, shared: Path, name: str, exchange: str, code: str) -> None:
    (shared / "a.csv").write_text("text,label\na,billing\n")
    federations.add_site("clinics", {"name": "Here", "kind": "cpu", "data": str(shared / "a.csv")})
    page = _click(_filled(_page(), name, exchange or shared), "kit-make")
    assert code in _told(page) and enrolling.listed() == []


def test_without_an_object_store_globus_compute_is_refused_in_words(clinics: Federation) -> None:
    page = _filled(_page(), "hpc", "")
    page.radio(key="kit-via").set_value("globus").run()
    assert "CAFE-189" in _told(_click(page, "kit-make")) and not page.text_input(key="site-name").disabled


def test_without_a_name_or_a_folder_there_is_no_kit(clinics: Federation, shared: Path) -> None:
    page = _click(_page(), "add-site")
    assert page.button(key="kit-make").disabled
    assert (
        _filled(_page(), "hpc", "").button(key="kit-make").disabled and not _filled(_page(), "hpc", shared).button(key="kit-make").disabled
    )


# -- the request -------------------------------------------------------------------------------------------------------


def test_a_request_that_comes_is_shown_with_what_the_site_says(site: Site, shared: Path) -> None:
    assert "asks to join" not in _told(_page())
    _ask(site, shared, consent=Consent(HOSTILE, "head of ward", "IRB 7"))
    page = _page()
    assert _states(page) == {"hpc": "Waits for you"} and "asks to join" in _told(page)
    assert [one.label for one in page.button if one.proto.type == "primary"] == ["Look at its request"]
    told = _told(_click(page, f"request {site.info.serial}"))
    assert "8 cores, 15\\.5 GiB" in told and "ε 3" in told and "2,000" in told and "IRB 7" in told and "<script>" not in told
    assert not any(word in told for word in site.words.split())


def test_the_words_that_are_heard_let_the_site_in(site: Site, shared: Path) -> None:
    _ask(site, shared)
    page = _click(_page(), f"request {site.info.serial}")
    assert page.button(key="let-in").disabled
    _fine(page.text_input(key=f"words {site.info.serial}").set_value("acorn acorn acorn acorn").run())
    assert "CAFE-144" in _told(_click(page, "let-in")) and enrolling.listed()[0].state == "requested"
    _fine(page.text_input(key=f"words {site.info.serial}").set_value(f" {site.words.upper().replace(' ', ', ')}").run())
    page = _click(page, "let-in")
    assert "It has joined" in _told(page) and "lies in the exchange folder" in _told(page)
    assert site.read(shared / enrolment.answer_name(site.info.serial)).approved
    page = _click(page, "request-close")
    assert _states(page) == {"hpc": "Joined"} and "asks to join" not in _told(page)
    assert federations.get("clinics").data["sites"] == [{"name": "hpc", "kind": "gpu"}] and enrolling.listed()[0].decided_by


def test_the_words_of_this_side_come_only_when_asked_for(site: Site, shared: Path) -> None:
    _ask(site, shared)
    page = _click(_page(), f"request {site.info.serial}")
    _fine(page.toggle(key=f"show {site.info.serial}").set_value(True).run())
    assert site.words.replace(" ", " · ") in _told(page)


def test_a_refusal_needs_a_reason_and_reaches_the_site(site: Site, shared: Path) -> None:
    _ask(site, shared)
    page = _click(_page(), f"request {site.info.serial}")
    assert page.button(key="refuse").disabled
    _fine(page.text_input(key=f"refuse {site.info.serial}").set_value("Other words.").run())
    assert "It was refused" in _told(_click(page, "refuse"))
    assert site.read(shared / enrolment.answer_name(site.info.serial)).reason == "Other words."
    page = _page()
    assert "No sites yet" in _told(page) and list(page.dataframe[0].value["State"]) == ["Refused"]


def test_what_another_tab_decided_is_shown_and_not_decided_again(site: Site, shared: Path) -> None:
    _ask(site, shared)
    page = _click(_page(), f"request {site.info.serial}")
    _fine(page.text_input(key=f"refuse {site.info.serial}").set_value("Other words.").run())
    enrolling.approve(site.info.serial, site.words, "ben")
    page = _click(page, "refuse")
    assert "CAFE-146" in _told(page) or "by ben" in _told(page)
    assert enrolling.listed()[0].state == "approved" and "by ben" in _told(_page(site="hpc"))


def test_a_request_by_hand_comes_as_a_file_and_its_answer_goes_as_one(clinics: Federation, tmp_path: Path) -> None:
    site = Site(enrolling.issue("clinics", "hpc", "gpu"))
    page = _click(_page(site="hpc"), "upload-request")
    page.file_uploader(key="request-file").upload("request.json", site.ask(tmp_path / "r").read_bytes(), "application/json")
    assert "Call the admin" in _told(_fine(page.run())) and enrolling.listed()[0].state == "requested"
    _fine(page.text_input(key=f"words {site.info.serial}").set_value(site.words).run())
    page = _click(page, "let-in")
    assert f"files/kits/{site.info.serial}/answer.json" in [one.proto.url for one in page.get("link_button")]


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 70_000, b"[" * 60_000])
def test_a_file_that_is_no_request_is_a_card(clinics: Federation, content: bytes) -> None:
    enrolling.issue("clinics", "hpc", "gpu")
    page = _click(_page(), "upload")
    page.file_uploader(key="request-file").upload("request.json", content or b" ", "application/json")
    assert "CAFE-101" in _told(_fine(page.run())) and enrolling.listed()[0].state == "issued"


def test_a_request_with_another_code_is_told_and_changes_nothing(site: Site, shared: Path) -> None:
    site.ask(shared / enrolment.request_name(site.info.serial), code="ABCD-EFGH-JKMN-PQRS")
    page = _page()
    assert "CAFE-140" in _told(page) and "hpc" in _told(page) and _states(page) == {"hpc": "Not joined yet"}


# -- a site that has joined --------------------------------------------------------------------------------------------


def _joined(site: Site, shared: Path) -> None:
    _ask(site, shared)
    enrolling.received()
    enrolling.approve(site.info.serial, site.words, "ada")


def test_a_joined_site_says_that_it_is_there_and_what_it_does(site: Site, shared: Path) -> None:
    _joined(site, shared)
    folder = messengers.place(enrolling.find("hpc"), "site")
    folder.mkdir()
    (folder / "alive.json").write_text(json.dumps({"paused": False, "doing": {"phase": "train", "done": 3, "of": 9}}))
    enrolling.store().saw(site.info.serial, {"time": 1.0, "kit": "0.4.2", "python": "3.12.1"})
    page = _page(site="hpc")
    row = page.dataframe[0].value.iloc[0]
    assert (row["Where"], row["State"], row["Records"]) == ("elsewhere", "Online · train, 3 of 9", "2,000 told")
    assert row["Its own limit"] == "ε 3 at δ 1e-5"
    told = _told(page)
    assert "by ada" in told and "0\\.4\\.2" in told and str(shared) in told and "exchange folder" in told


def test_what_a_joined_site_did_and_sent_is_by_what_arrived(site: Site, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _joined(site, shared)
    monkeypatch.setattr(launch, "spawn", lambda run: None)
    demo = federations.create_demo()
    run, store = launch.start(demo.settings().model_copy(update={"name": "clinics"})), launch.store()
    epoch = store.claim(run.id, 1)
    store.order_sent(run.id, epoch, OrderRow("h1", "hpc", 2, 1, 1, "train", "sent", None, "", "", {}, 0.0, None))
    store.order_ended(run.id, epoch, "h1", "answered", body="0" * 64, numbers={"seconds_work": 2.0, "bytes": 5000})
    federations.remove("demo")
    page = _page(site="hpc")
    assert {one.label: one.value for one in page.metric}["Sent"] == "5.0 kB" and "By what arrived on this server" in _told(page)


def test_revoking_needs_the_name_and_ends_the_sites_part(site: Site, shared: Path) -> None:
    _joined(site, shared)
    page = _click(_page(site="hpc"), "revoke-site")
    assert page.button(key="revoke-yes").disabled
    page.text_input(key="revoke-why").set_value("A mistake.")
    _fine(page.text_input(key="revoke-name").set_value("hpc").run())
    page = _click(page, "revoke-yes")
    kit = enrolling.find("hpc")
    assert (kit.state, kit.reason) == ("revoked", "A mistake.") and federations.get("clinics").data["sites"] == []
    assert "No sites yet" in _told(page) and list(page.dataframe[0].value["Reason"]) == ["A mistake."]


def test_a_site_that_left_can_be_taken_out(site: Site, shared: Path) -> None:
    _joined(site, shared)
    enrolling.store().leave(site.info.serial, 2.0e9)
    page = _page(site="hpc")
    assert _states(page) == {"hpc": "Left"} and "It has left" in _told(page)
    page = _click(page, "remove-site")
    _fine(page.text_input(key="remove-name").set_value("hpc").run())
    _click(page, "remove-yes")
    assert federations.get("clinics").data["sites"] == []


def test_a_joined_site_that_the_settings_lost_is_told_and_named_again(site: Site, shared: Path) -> None:
    _joined(site, shared)
    federations.save("clinics", {**federations.get("clinics").data, "sites": []})
    page = _page(site="hpc")
    assert "do not name it" in page.warning[0].value
    page = _click(page, "name-site")
    assert not page.warning and federations.get("clinics").data["sites"] == [{"name": "hpc", "kind": "gpu"}]


def test_an_answer_that_did_not_reach_the_folder_can_be_handed_over(site: Site, shared: Path) -> None:
    _joined(site, shared)
    (shared / enrolment.answer_name(site.info.serial)).unlink()
    page = _page(site="hpc")
    assert "not in the exchange folder" in _told(page)
    assert f"files/kits/{site.info.serial}/answer.json" in [one.proto.url for one in page.get("link_button")]


def test_a_joined_site_without_a_kit_here_is_told(clinics: Federation) -> None:
    federations.add_joined_site("clinics", "hpc", "gpu")
    page = _page(site="hpc")
    assert "it has no kit here" in _told(page) and _states(page) == {"hpc": "no kit yet"}


def test_before_the_demo_starts_its_clinics_say_that_they_will_join(cafe_home: Path) -> None:
    demo = federations.create_demo()
    federations.save("demo", {**demo.data, "sites": [{"name": "oakdale", "kind": "cpu"}]})
    page = _page(site="oakdale")
    assert _states(page) == {"oakdale": "joins when the demo starts"} and "as every site does" in _told(page)


# -- the way to it, and the two ledgers --------------------------------------------------------------------------------


def _until_checked(kit: SiteKit) -> None:
    end = time.monotonic() + 60
    while connection_check.since(kit) is not None:
        assert time.monotonic() < end, "the check does not end"
        time.sleep(0.1)


def test_a_broken_link_is_named_with_what_to_do(site: Site, shared: Path) -> None:
    _joined(site, shared)
    page = _click(_page(site="hpc"), "check-site")
    assert page.button(key="check-site").disabled or "is broken" in _told(page)
    _until_checked(enrolling.find("hpc"))
    page = _page(site="hpc")
    told, links = _told(page), page.dataframe[-1].value.set_index("Link")
    assert "The way is broken" in told and "CAFE-180" in told and "./cafe-site start" in told.replace("\\", "")
    assert links.loc["exchange folder", "State"] == "ok" and links.loc["sign of life", "State"] == "broken"
    assert links.loc["round trip", "State"] == "not tried" and not page.button(key="check-site").disabled


def test_two_tabs_start_one_check(site: Site, shared: Path) -> None:
    _joined(site, shared)
    kit = enrolling.find("hpc")
    connection_check.begin(kit)
    first = connection_check.since(kit)
    connection_check.begin(kit)
    assert first is not None and connection_check.since(kit) == first
    _until_checked(kit)


def test_a_check_that_says_nothing_is_a_finding(site: Site, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _joined(site, shared)
    monkeypatch.setattr(connection_check.sys, "executable", "/bin/false")
    connection_check.begin(enrolling.find("hpc"))
    _until_checked(enrolling.find("hpc"))
    assert "CAFE-697" in _told(_page(site="hpc"))


def test_what_a_check_found_after_the_console_was_killed_is_not_lost(site: Site, shared: Path, cafe_home: Path) -> None:
    _joined(site, shared)
    part = cafe_home / "kits" / "clinics" / f"{site.info.serial}.check.part"
    part.write_text('[{"name": "round trip", "state": "ok", "detail": "answered in 1.2 s", "hint": "", "code": ""')
    assert connection_check.since(enrolling.find("hpc")) is None and connection_check.last(enrolling.find("hpc")) is None
    part.write_text(part.read_text() + "}]")
    told = _told(_page(site="hpc"))
    assert "The way holds" in told and not part.exists()


def test_two_ledgers_that_differ_are_said_and_the_larger_figure_counts(site: Site, shared: Path) -> None:
    _joined(site, shared)
    enrolling.store().saw(site.info.serial, {"time": 1.0, "charges": 2, "mu_squared": 1.0})
    page = _page(site="hpc")
    assert "hpc and this server differ" in page.warning[0].value.replace("\\", "")
    assert re.fullmatch(r"ε [\d.]+ at δ 1e-5 · ledgers differ", page.dataframe[0].value["Privacy spent"][0])


def test_two_ledgers_that_agree_are_one_figure(site: Site, shared: Path, cafe_home: Path) -> None:
    _joined(site, shared)
    terms = {"clip_steps": 1, "sigma_steps": 2, "unit": "client", "trust": "server"}
    run = "clinics-20260101-000000-abcd"
    Ledger(cafe_home / "ledger.db").reserve("r1", run, 2, 1, 1, "train", terms=terms, inputs={}, charges={"hpc": Fraction(1, 4)})
    enrolling.store().saw(site.info.serial, {"time": 1.0, "charges": 1, "mu_squared": 0.25})
    page = _page(site="hpc")
    assert not page.warning and "hpc and this server agree" in _told(page).replace("\\", "")
    assert re.fullmatch(r"ε [\d.]+ at δ 1e-5", page.dataframe[0].value["Privacy spent"][0])


# -- by hand -----------------------------------------------------------------------------------------------------------


class Admin:
    """The person at the site, who unzips what he was handed and runs the real command."""

    def __init__(self, zipped: Path, folder: Path, code: str) -> None:
        self._folder = folder
        zipfile.ZipFile(zipped).extractall(folder / "kit")
        (folder / "own.csv").write_text("text,label\n" + "".join(f"message {n} about a bill,billing\n" for n in range(30)))
        consent = {"name": "Dr. Jane Roe", "role": "head of ward", "reference": "IRB-7", "agreed": True}
        answers = {"data": {"path": str(folder / "own.csv")}, "limits": {"max_epsilon": 4.0, "share_rows": "rounded"}, "consent": consent}
        (folder / "answers.toml").write_text(to_toml(answers))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CAFE_")}
        own = {"CAFE_SITE_HOME": str(folder / "site"), "CAFE_KIT_FOLDER": str(next((folder / "kit").iterdir())), "HOME": str(folder)}
        self._environment = kept | own | {"CAFE_JOIN_CODE": code, "CAFE_KIT_ENGINE": "tests.fakes:TinyEngine", "PYTHONPATH": str(ROOT)}

    def says(self, *words: str) -> str:
        done = subprocess.run(self._command(*words), env=self._environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode in (0, 3), done.stdout + done.stderr
        return done.stdout

    def asks(self) -> str:
        """Joins as far as he can alone; the four words that he reads aloud."""
        self.says("join", "--answers", str(self._folder / "answers.toml"), "--yes", "--wait", "0")
        return str(json.loads(self.says("status", "--format", "json"))["words"])

    @contextmanager
    def at_work(self) -> Iterator[subprocess.Popen[bytes]]:
        """``cafe-site start``, for the time of a ``with`` block."""
        with (self._folder / "start.log").open("ab") as log:
            process = subprocess.Popen(self._command("start"), env=self._environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cafe_kit.cli", *words]


@pytest.mark.system
def test_a_kit_goes_out_a_site_comes_in_by_its_words_is_online_and_is_revoked(clinics: Federation, shared: Path, tmp_path: Path) -> None:
    with Console(os.environ) as console, chromium() as browser, Operator(browser, console) as ada:
        ada.opens("Sites").sees("No sites yet").clicks("Add a site").fills("Name", "hpc", ada.dialog).picks("GPU", ada.dialog)
        ada.fills("Exchange folder", str(shared), ada.dialog).clicks("Make the kit", ada.dialog).sees("The kit is made")
        ada.until(lambda: CODE.search(ada.dialog.inner_text()) is not None, "the join code is shown")
        told = ada.dialog.inner_text()
        (code,) = CODE.findall(told)
        zipped = ada.downloads(re.compile("^Download the kit"), tmp_path)
        assert hashlib.sha256(zipped.read_bytes()).hexdigest() in told and enrolling.fingerprint() in told
        ada.clicks("I have noted the code", ada.dialog).does_not_see(code).opens("Sites", site="hpc").sees("was fetched once")
        assert code not in ada.text()
        jane = Admin(zipped, tmp_path, code)
        words = jane.asks()
        ada.sees("asks to join").clicks("Look at its request").sees("Call the admin", "Dr. Jane Roe, head of ward, IRB-7")
        assert not any(word in ada.dialog.inner_text() for word in words.split("-"))
        ada.fills(HEARD, "acorn agent album amber", ada.dialog).clicks("Let it in", ada.dialog).sees("CAFE-144")
        ada.fills(HEARD, words, ada.dialog).clicks("Let it in", ada.dialog).sees("It has joined.").clicks("Close", ada.dialog)
        ada.opens("Home").sees("The sites are there.")
        jane.says("join", "--wait", "20")
        with jane.at_work():
            ada.opens("Sites", site="hpc").sees_state("Online", within_s=60)
            ada.clicks("Check the connection").sees("The way holds", within_s=90)
            ada.clicks("Revoke…").fills("Type its name to revoke it", "hpc", ada.dialog).clicks("Revoke", ada.dialog)
            ada.sees("Kits that have ended: 1", "No sites yet")
    kit = enrolling.find("hpc")
    assert (kit.state, kit.downloads, federations.get("clinics").data["sites"]) == ("revoked", 1, [])


@pytest.mark.system
def test_of_two_operators_who_decide_at_once_the_first_is_heard_and_the_other_told(site: Site, shared: Path) -> None:
    _ask(site, shared)
    with Console(os.environ) as console, chromium() as browser, Operator(browser, console) as ada, Operator(browser, console) as ben:
        for one in (ada, ben):
            one.opens("Sites").sees("asks to join").clicks("Look at its request").sees("Call the admin")
        ada.fills(HEARD, site.words, ada.dialog)
        ben.page.get_by_text("Refuse it").click()
        ben.fills("Reason, which the site reads", "Nobody answered.", ben.dialog)
        ada.clicks("Let it in", ada.dialog).sees("It has joined.")
        ben.clicks("Refuse", ben.dialog).sees(re.compile("CAFE-146|It has joined"))
    assert enrolling.listed()[0].state == "approved" and site.read(shared / enrolment.answer_name(site.info.serial)).approved
