"""What a kit needs of Globus before its site is let in, on its request: an application of its own, a member of the federation's group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cafe_kit import enrolment
from streamlit.testing.v1 import AppTest

from app import widgets
from pipeline import enrolling, federations, globus_login, groups, request_watch, storage
from pipeline.home import home
from pipeline.vault import Vault
from tests.federation import ROOT
from tests.globus_groups_stand_in import Globus, globus_at, signs_in
from tests.test_enrolling import Site


@pytest.fixture
def globus(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    monkeypatch.setattr(request_watch, "EVERY_S", 0.0)
    monkeypatch.setattr(request_watch, "_PATIENCE_S", 10.0)
    with globus_at(cafe_home, monkeypatch) as service:
        yield service
    request_watch._watches.clear()


@pytest.fixture
def site(globus: Globus, tmp_path: Path) -> Site:
    """A site whose orders will go through Globus Compute; it joins through a folder, as no store answers here."""
    made = federations.create("clinic", "classification", "messages to a clinic")
    federations.save("clinic", {**made.data, "task": {**made.data["task"], "labels": ["billing", "records"]}})
    storage.set_up({"bucket": "cafe", "endpoint_url": "https://s3.example.org"}, ("key", "secret"))
    (tmp_path / "shared").mkdir()
    site = Site(enrolling.issue("clinic", "hpc", "gpu", exchange=tmp_path / "shared", via="globus"))
    site.ask(tmp_path / "shared" / enrolment.request_name(site.info.serial))
    enrolling.received()
    return site


def _request(site: Site) -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "pages.py"), default_timeout=30).run()
    page.switch_page("views/sites.py").run()
    page.button(key=f"request {site.info.serial}").click().run()
    page.text_input(key=f"words {site.info.serial}").set_value(site.words)
    return _fine(page.run())


def _fine(page: AppTest) -> AppTest:
    assert not page.exception, page.exception
    return page


def _told(page: AppTest) -> str:
    return "\n".join(str(one.value) for kind in ("markdown", "caption", "info", "code") for one in page.get(kind))


def _typed(page: AppTest, button: str, **fields: str) -> AppTest:
    """A form's fields by the beginning of their labels, and its button."""
    for label, text in fields.items():
        next(one for one in page.text_input if one.label.startswith(label.replace("_", " "))).set_value(text)
    return _fine(next(one for one in page.button if one.label == button).click().run())


def test_without_its_application_a_site_cannot_be_let_in_and_a_pasted_one_is_kept_in_the_vault(site: Site, globus: Globus) -> None:
    page = _request(site)
    assert page.button(key="let-in").disabled and "needs a Globus application" in _told(page)
    app = globus.application("hpc", confidential=True)
    page = _typed(page, "Take it", Its_id=app.id, Its_secret="wrong")
    assert "CAFE-19" in _told(page) and "client_id" not in enrolling.find("hpc").connection
    page = _typed(page, "Take it", Its_id=app.id, Its_secret=app.secret)
    kit = enrolling.find("hpc")
    assert kit.connection["client_id"] == app.id and Vault(home()).get(f"globus.{app.id}") == {"client_secret": app.secret}
    assert not page.button(key="let-in").disabled and app.secret not in _told(page)
    assert app.secret not in str(page.session_state) and app.secret.encode() not in (home() / "store.db").read_bytes()
    page = _fine(page.button(key="application-drop").click().run())
    assert "client_id" not in enrolling.find("hpc").connection and page.button(key="let-in").disabled


def test_who_may_register_applications_makes_one_by_a_click(site: Site, globus: Globus) -> None:
    ada = signs_in(globus, home(), "ada@uni.example")
    page = _fine(_request(site).button(key="application-make").click().run())
    assert "CAFE-195" in _told(page)  # the sign-in did not ask for that
    flow = globus_login.begin(home(), applications=True)
    globus_login.finish(home(), flow.id, globus.code_for(flow.url, ada))
    page = _fine(_request(site).button(key="application-make").click().run())
    assert enrolling.find("hpc").connection["client_id"] in _told(page) and not page.button(key="let-in").disabled


def test_where_the_federation_has_a_group_the_site_is_issued_to_a_member(site: Site, globus: Globus) -> None:
    ada = signs_in(globus, home(), "ada@uni.example")
    groups.create(home(), "clinic", ada.id)
    page = _request(site)
    assert "issued to nobody" in _told(page)
    page = _typed(page, "Issue it to this member", E="bob@hospital.example")
    assert "CAFE-198" in _told(page)
    groups.invite(home(), "clinic", "bob@hospital.example")
    page = _typed(page, "Issue it to this member", E="bob@hospital.example")
    assert f"Issued to **{widgets.plain('bob@hospital.example')}**" in _told(page)
    assert enrolling.find("hpc").connection["member"]["email"] == "bob@hospital.example"
