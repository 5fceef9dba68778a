"""Coming in, acting and going out, as a person meets it: the link, the code, the way to Globus and back, the people of a federation.

A real console, a real Chromium, our stand-in of Globus; what needs no browser is drawn by the page itself. At the end of every sign-in the
tokens that were given out are searched for: in pages, cookies, storage, logs, session state and every file of the home.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from streamlit.testing.v1 import AppTest

from pipeline import entrance, federations, globus_login, globus_settings, groups, members, operators
from pipeline.globus_settings import GlobusSettings
from pipeline.vault import Vault
from server_store.site_kits import SiteKit, SiteKits
from tests.browser import Console, Operator, chromium, free_port
from tests.globus_groups_stand_in import Globus, globus_at, own_application, signs_in


@pytest.fixture
def globus(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    with globus_at(cafe_home, monkeypatch) as service:
        yield service


def given_out(globus: Globus) -> set[str]:
    """Every token, code's leftover and secret that the service has given to anybody."""
    return {*globus.tokens, *globus.refresh, *globus.revoked, *(one.secret for one in globus.applications if one.secret)}


def found_in_home(home: Path, words: set[str]) -> list[str]:
    return [path.name for path in home.rglob("*") if path.is_file() and any(word.encode() in path.read_bytes() for word in words)]


def what_a_browser_has(ada: Operator, page: Page) -> str:
    """Its page, its cookies and its storage."""
    storage = page.evaluate("() => JSON.stringify([{...localStorage}, {...sessionStorage}])")
    return page.content() + storage + str(ada.context.cookies()) + " ".join(ada.requests)


def turned_away(ada: Operator) -> None:
    """A browser notes that it was refused; that is no defect of a page."""
    ada.complaints = [one for one in ada.complaints if not re.search(r"\b40[13]\b", one)]


def goes_through_globus(page: Page, username: str) -> None:
    """On the service's own page."""
    page.get_by_label(username).check()
    page.get_by_role("button", name="Allow").click()


# The one-time link


@pytest.mark.system
def test_the_printed_link_opens_the_console_once_and_the_browser_stays_in(cafe_home: Path) -> None:
    with Console(os.environ) as console, chromium() as browser, Operator(browser, console) as ada, Operator(browser, console) as eve:
        link = re.search(r"http://127\.0\.0\.1:\S+key=\S+", console.said())
        assert link
        ada.page.goto(link[0])
        ada.waits().sees("Nothing is set up yet").sees(f"Operator: {operators.account()}")
        assert ada.page.url == f"{console.url}/" and "key=" not in ada.page.evaluate("() => document.referrer")

        eve.page.goto(link[0])
        eve.sees("used already", "cafe link")
        assert eve.page.get_by_test_id("stApp").count() == 0
        turned_away(eve)

        console.kill()
        console.start()
        ada.forgets_lost_connections()
        ada.reloads().sees("Nothing is set up yet")

        other = ada.new_tab()
        ada.opens("Settings", tab=other)
        ada.goes_to("Runs")
        ada.page.get_by_test_id("stSidebar").get_by_text("Operator:").click()
        ada.button("Sign out").click()
        ada.sees("Open it with a one-time link")
        ada.sees("This session has ended", tab=other)
        ada.page.goto(f"{console.url}/runs")
        ada.sees("Open it with a one-time link")
        turned_away(ada)
        ada.forgets_lost_connections()


# By code


@pytest.mark.system
def test_an_operator_signs_in_by_code_and_no_token_is_found_anywhere(globus: Globus, cafe_home: Path) -> None:
    operators.add(cafe_home, "ada@uni.example", "")
    person = globus.person("ada@uni.example")
    with Console(os.environ) as console, chromium() as browser, Operator(browser, console) as ada:
        ada.page.goto(f"{console.url}/runs")
        ada.sees("Operators sign in with Globus")
        with ada.context.expect_page() as opened:
            ada.page.get_by_role("link", name="Open Globus").click()
        globus_tab = opened.value
        goes_through_globus(globus_tab, "ada@uni.example")
        code = globus_tab.locator("#auth-code").inner_text()
        globus_tab.close()
        ada.page.get_by_label("Paste the code here").fill(code)
        ada.page.get_by_role("button", name="Sign in").click()
        ada.waits().sees("Nothing is set up yet", re.compile(r"Operator: ada.?@uni\.example"))
        words = given_out(globus)
        assert len(words) >= 4
        assert not [word for word in words if word in what_a_browser_has(ada, ada.page) + console.said()]
        assert found_in_home(cafe_home, words | {code}) == []

        ada.page.get_by_test_id("stSidebar").get_by_text("Operator:").click()
        ada.sees("Signed in with Globus as")
        ada.button("Sign out").click()
        ada.sees("Operators sign in with Globus")
        assert globus_login.signed_in(cafe_home, person.id) is None and not globus.tokens and not globus.refresh
        turned_away(ada)
        ada.forgets_lost_connections()


# By redirect


@pytest.mark.system
def test_the_way_to_globus_and_back(globus: Globus, cafe_home: Path) -> None:
    port = free_port()
    own_application(globus, cafe_home, f"http://127.0.0.1:{port}/oauth2callback")
    globus.person("ada@uni.example")
    globus.person("eve@lab.example")
    with Console(os.environ, port) as console, chromium() as browser, Operator(browser, console) as ada, Operator(browser, console) as eve:
        assert "is the first operator" in console.said()
        eve.page.goto(console.url)
        eve.page.get_by_role("link", name="Sign in with Globus").click()
        goes_through_globus(eve.page, "eve@lab.example")
        eve.sees("eve@lab.example is signed in with Globus, but is no operator")

        ada.opens("Home").goes_to("Sites")  # by the one-time link: may claim
        ada.page.goto(f"{console.url}/sign-in/globus")
        goes_through_globus(ada.page, "ada@uni.example")
        ada.waits().sees("Nothing is set up yet", re.compile(r"Operator: ada.?@uni\.example"))
        assert [one.username for one in operators.listed(cafe_home)] == ["ada@uni.example"]

        operators.add(cafe_home, "eve@lab.example", "ada@uni.example")
        eve.page.get_by_role("link", name="Sign in with Globus").click()
        goes_through_globus(eve.page, "eve@lab.example")
        eve.waits().sees(re.compile(r"Operator: eve.?@lab\.example"))

        names = {str(one["name"]) for one in ada.context.cookies()}
        assert entrance.cookie_name(cafe_home) in names and not [name for name in names if name.startswith("_streamlit_user")]
        words = given_out(globus)
        assert len(words) >= 3
        assert not [word for word in words if word in what_a_browser_has(ada, ada.page) + console.said()]
        assert found_in_home(cafe_home, words) == []

        operators.remove(cafe_home, "eve@lab.example")
        eve.sees("This session has ended")
        eve.page.goto(console.url)
        eve.sees("Sign in with Globus")
        for one in (ada, eve):
            turned_away(one)
            one.forgets_lost_connections()


@pytest.mark.system
def test_a_sign_in_that_is_not_sound_lets_nobody_in(globus: Globus, cafe_home: Path) -> None:
    port = free_port()
    own_application(globus, cafe_home, f"http://127.0.0.1:{port}/oauth2callback")
    operators.add(cafe_home, "ada@uni.example", "")
    globus.person("ada@uni.example")
    with Console(os.environ, port) as console, chromium() as browser, Operator(browser, console) as ada:
        for wrong in ("signature", "nonce", "audience", "denied", "nothing"):
            globus.foreign_signature = wrong == "signature"
            globus.forge = {"nonce": {"nonce": "other"}, "audience": {"aud": "another application"}}.get(wrong, {})
            ada.page.goto(console.url)
            ada.page.get_by_role("link", name="Sign in with Globus").click()
            ada.page.get_by_label("ada@uni.example").check()
            ada.page.get_by_role("button", name="Deny" if wrong == "denied" else "Allow").click()
            ada.sees("Nothing is set up yet" if wrong == "nothing" else "did not come to its end")
            assert (ada.page.get_by_test_id("stApp").count() == 1) is (wrong == "nothing"), wrong
        assert not [word for word in given_out(globus) if word in console.said()]
        turned_away(ada)


# Within the console


def _connect() -> None:
    from app import sign_in

    sign_in.connect(sign_in.person())


def _people() -> None:
    from app import people
    from pipeline import federations

    people.draw(federations.get("clinic"))


def _operators() -> None:
    from app import people

    people.draw_operators()


def words_of(page: AppTest) -> str:
    parts: list[Any] = [*page.markdown, *page.caption, *page.warning, *page.subheader, *page.button, *page.toast]
    return "\n".join(str(getattr(one, "value", "") or getattr(one, "label", "")) for one in parts)


def link_of(page: AppTest) -> str:
    (link,) = [one.proto.url for one in page.get("link_button") if "authorize" in one.proto.url]
    return str(link)


def test_a_person_of_the_link_connects_to_globus_and_the_session_holds_no_token(globus: Globus, cafe_home: Path) -> None:
    ada = globus.person("ada@uni.example")
    page = AppTest.from_function(_connect).run()
    page.button(key="globus-begin").click().run()
    code = globus.code_for(link_of(page), ada)
    page.text_input(key="globus-code").input("wrong")
    page.button[0].click().run()
    assert "CAFE-193" in words_of(page)
    page.text_input(key="globus-code").input(code)
    page.button[0].click().run()
    assert not page.exception
    assert globus_settings.read(cafe_home).account == ada.id and operators.at_terminal(cafe_home) == "ada@uni.example"
    assert [one.username for one in operators.listed(cafe_home)] == ["ada@uni.example"]
    held = repr(page.session_state._state._state)  # all of it, widgets' values included
    assert "globus-begin" in held
    assert not [word for word in given_out(globus) | {code} if word in held + words_of(page)]
    assert found_in_home(cafe_home, given_out(globus) | {code}) == []


def test_without_an_application_the_page_says_what_to_do(cafe_home: Path) -> None:
    assert "cafe globus setup" in words_of(AppTest.from_function(_connect).run())


@pytest.fixture
def clinic(globus: Globus, cafe_home: Path) -> str:
    """A federation with one kit, and an operator who is signed in; returns the kit's serial."""
    federations.create("clinic", "classification", "what a patient wants")
    signs_in(globus, cafe_home, "ada@uni.example")
    kits = SiteKits(cafe_home / "store.db")
    kits.issue(SiteKit("a-serial", "clinic", "north", "cpu", 1.0, 9e9, "issued", "00", "", ""))
    kits.close()
    return "a-serial"


def test_people_are_invited_tied_to_a_site_and_removed_on_the_page(globus: Globus, cafe_home: Path, clinic: str) -> None:
    page = AppTest.from_function(_people).run()
    assert "no Globus group" in words_of(page)
    page.button(key="group-make").click().run()
    assert "Globus group" in words_of(page) and groups.of(cafe_home, "clinic")
    page.text_input(key="people-email").input("bob@hospital.example")
    next(one for one in page.button if one.label == "Invite").click().run()
    assert page.dataframe[0].value[["Person", "Status"]].values.tolist() == [
        ["ada@uni.example", "Active"],
        ["bob@hospital.example", "Invited, has not accepted yet"],
    ]
    globus.accepts(globus.groups[0].id, "bob@hospital.example")
    page.button(key="people-again").click().run()
    page.selectbox(key="tie-person").select("bob@hospital.example")
    page.button(key="tie-yes").click().run()
    assert page.dataframe[0].value["Sites"].tolist() == ["", "north"] and members.untied("clinic") == {}
    page.selectbox(key="remove-person").select("bob@hospital.example").run()
    assert "north: no further round" in words_of(page)
    page.button(key="remove-yes").click().run()
    assert page.dataframe[0].value["Status"].tolist() == ["Active", "Removed"]
    assert not page.exception


def test_a_refused_invitation_and_a_silent_service_are_told_on_the_page(globus: Globus, cafe_home: Path, clinic: str) -> None:
    groups.create(cafe_home, "clinic", globus_settings.read(cafe_home).account)
    globus.no_invitations.add(globus.person("bob@hospital.example").id)
    page = AppTest.from_function(_people).run()
    page.text_input(key="people-email").input("bob@hospital.example")
    next(one for one in page.button if one.label == "Invite").click().run()
    assert "CAFE-198" in words_of(page)
    globus.stop()
    page.button(key="people-again").click().run()
    assert "CAFE-196" in words_of(page)
    asked = len(globus.requests)
    globus.start()
    page.run()  # not asked again within the minute
    assert len(globus.requests) == asked and "CAFE-196" in words_of(page)
    page.button(key="people-again").click().run()
    assert page.dataframe[0].value["Status"].tolist() == ["Active"]


def test_a_group_that_exists_is_chosen_on_the_page(globus: Globus, cafe_home: Path, clinic: str) -> None:
    made = groups.create(cafe_home, "other", globus_settings.read(cafe_home).account)
    page = AppTest.from_function(_people).run()
    page.toggle(key="group-mine").set_value(True).run()
    page.selectbox(key="group-name").select(made.name).run()
    page.button(key="group-chosen").click().run()
    found = groups.of(cafe_home, "clinic")
    assert found and found.id == made.id


def test_operators_are_added_and_removed_on_the_page(globus: Globus, cafe_home: Path) -> None:
    page = AppTest.from_function(_operators).run()
    assert "Nobody may sign in" in words_of(page)
    page.text_input(key="operator-name").input("nonsense").run()
    page.button(key="operator-add-yes").click().run()
    assert "CAFE-192" in words_of(page)
    page.text_input(key="operator-name").input("ada@uni.example").run()
    page.button(key="operator-add-yes").click().run()
    assert page.dataframe[0].value["Operator"].tolist() == ["ada@uni.example"]
    page.selectbox(key="operator-gone").select("ada@uni.example").run()
    page.button(key="operator-remove-yes").click().run()
    assert operators.listed(cafe_home) == []


def test_the_name_of_who_acts_is_kept_with_what_he_does(globus: Globus, cafe_home: Path) -> None:
    def _who() -> None:
        import streamlit as st

        from app import frame

        st.write(f"acts: {frame.operator()}")

    assert f"acts: {operators.account()}" in words_of(AppTest.from_function(_who).run())
    signs_in(globus, cafe_home, "ada@uni.example")
    assert "acts: ada@uni.example" in words_of(AppTest.from_function(_who).run())


def test_the_secret_of_the_servers_application_is_in_the_vault_alone(globus: Globus, cafe_home: Path) -> None:
    own = own_application(globus, cafe_home)
    assert Vault(cafe_home).get(f"globus.{own.id}") == {"client_secret": own.secret}
    assert found_in_home(cafe_home, {own.secret}) == []
    assert globus_settings.read(cafe_home) == GlobusSettings(globus.applications[0].id, own.id)
