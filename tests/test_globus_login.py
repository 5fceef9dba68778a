"""Signing in with Globus by code, acting in a person's or the server's name, signing out; and that tokens lie in the vault alone."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError
from globus_sdk.scopes import AuthScopes

from pipeline import globus_login, globus_settings, operators, site_applications
from pipeline.globus_login import SERVER, Identity
from pipeline.globus_settings import GlobusSettings
from pipeline.vault import Vault
from server_store.site_kits import SiteKit, SiteKits
from tests.globus_auth_stand_in import Person
from tests.globus_groups_stand_in import Globus, globus_at, own_application
from tests.http_stand_in import Fault

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def globus(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    """The service, with both applications of this home registered."""
    with globus_at(cafe_home, monkeypatch) as service:
        own_application(service, cafe_home)
        yield service


def signed_in(globus: Globus, home: Path, person: Person, *, applications: bool = False) -> Identity:
    flow = globus_login.begin(home, applications=applications)
    return globus_login.finish(home, flow.id, globus.code_for(flow.url, person))


def secret_words(globus: Globus) -> set[str]:
    """Every token and secret that the service has ever given out."""
    return {*globus.tokens, *globus.refresh, *globus.revoked, *(one.secret for one in globus.applications if one.secret)}


def readable(home: Path, words: set[str]) -> list[str]:
    """Files of the home in which one of the words can be read."""
    files = [path for path in home.rglob("*") if path.is_file()]
    return [path.name for path in files if any(word.encode() in path.read_bytes() for word in words)]


# By code


def test_a_person_signs_in_by_code_and_is_known(globus: Globus, cafe_home: Path) -> None:
    linked = Person("ada@orcid.example")
    ada = globus.person("ada@uni.example", name="Ada", linked=[linked])
    identity = signed_in(globus, cafe_home, ada)
    assert identity == Identity(ada.id, "ada@uni.example", "Ada", ((linked.id, "ada@orcid.example"),))
    assert globus_login.signed_in(cafe_home, ada.id) == identity
    assert globus_login.may(cafe_home, ada.id, AuthScopes.view_identities)
    assert not globus_login.may(cafe_home, ada.id, AuthScopes.manage_projects)
    with globus_login.auth(cafe_home, ada.id) as client:
        assert client.userinfo()["sub"] == ada.id


def test_tokens_are_found_nowhere_in_the_home_and_in_no_log(globus: Globus, cafe_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ada = globus.person("ada@uni.example")
    flow = globus_login.begin(cafe_home)
    code = globus.code_for(flow.url, ada)
    globus_login.finish(cafe_home, flow.id, code)
    globus.expire()
    with globus_login.groups(cafe_home, ada.id) as client:
        client.get_my_groups()
    words = secret_words(globus) | {code}
    assert len(words) >= 7
    assert readable(cafe_home, words) == []
    assert not [word for word in words if word in caplog.text]
    assert Vault(cafe_home).get(f"globus-user.{ada.id}") is not None
    (cafe_home / "planted").write_text(next(iter(globus.tokens)))  # the search finds what is there
    assert readable(cafe_home, words) == ["planted"]


@pytest.mark.parametrize("wrong", ["twice", "of another flow", "nonsense", "of another home"])
def test_a_wrong_code_is_refused_and_nothing_is_kept(globus: Globus, cafe_home: Path, tmp_path: Path, wrong: str) -> None:
    ada = globus.person("ada@uni.example")
    flow = globus_login.begin(cafe_home)
    code, named, home = globus.code_for(flow.url, ada), flow.id, cafe_home
    if wrong == "twice":
        globus_login.finish(cafe_home, flow.id, code)
        globus_login.sign_out(cafe_home, ada.id)
    elif wrong == "of another flow":
        named = globus_login.begin(cafe_home).id
    elif wrong == "nonsense":
        code = "nonsense"
    else:
        home = tmp_path / "other"
        home.mkdir()
        globus_settings.write(home, globus_settings.read(cafe_home))
    with pytest.raises(CafeError, match="CAFE-193"):
        globus_login.finish(home, named, code)
    assert globus_login.signed_in(home, ada.id) is None


def test_the_code_of_somebody_else_or_of_nobody_who_may_come_in_leaves_nothing(globus: Globus, cafe_home: Path) -> None:
    ada, eve = globus.person("ada@uni.example"), globus.person("eve@uni.example")
    flow = globus_login.begin(cafe_home)
    with pytest.raises(CafeError, match=r"CAFE-193.*eve@uni\.example"):
        globus_login.finish(cafe_home, flow.id, globus.code_for(flow.url, eve), of=ada.id)

    def nobody(identity: Identity) -> None:
        raise CafeError("CAFE-192", identity.username, "")

    with pytest.raises(CafeError, match="CAFE-192"):
        globus_login.finish(cafe_home, flow.id, globus.code_for(flow.url, eve), admit=nobody)
    assert globus_login.signed_in(cafe_home, eve.id) is None
    assert len(globus.revoked) == 8 and not globus.tokens and not globus.refresh


def test_without_an_application_it_says_what_to_do(cafe_home: Path) -> None:
    with pytest.raises(CafeError, match="CAFE-194") as refused:
        globus_login.begin(cafe_home)
    assert "cafe globus setup" in refused.value.hint
    with pytest.raises(CafeError, match="CAFE-195"), globus_login.auth(cafe_home, "nobody"):
        pass
    with pytest.raises(CafeError, match="CAFE-194"), globus_login.auth(cafe_home, SERVER):
        pass


# Tokens live on, and end


def test_an_old_token_is_renewed_and_the_new_one_kept(globus: Globus, cafe_home: Path) -> None:
    ada = globus.person("ada@uni.example")
    signed_in(globus, cafe_home, ada)
    before = Vault(cafe_home).get(f"globus-user.{ada.id}")
    globus.expire()
    with globus_login.groups(cafe_home, ada.id) as client:
        assert list(client.get_my_groups()) == []
    after = Vault(cafe_home).get(f"globus-user.{ada.id}")
    assert before and after
    groups_before, groups_after = before["tokens"]["groups.api.globus.org"], after["tokens"]["groups.api.globus.org"]
    assert groups_after["access_token"] != groups_before["access_token"]
    assert groups_after["refresh_token"] == groups_before["refresh_token"]
    assert after["tokens"]["auth.globus.org"] == before["tokens"]["auth.globus.org"]


def test_signing_out_revokes_and_drops(globus: Globus, cafe_home: Path) -> None:
    ada = globus.person("ada@uni.example")
    signed_in(globus, cafe_home, ada)
    globus_settings.remember_account(cafe_home, ada.id)
    assert globus_login.sign_out(cafe_home, ada.id)
    assert not globus.tokens and not globus.refresh and len(globus.revoked) == 4
    assert globus_login.signed_in(cafe_home, ada.id) is None
    assert globus_settings.read(cafe_home).account == ""
    assert globus_login.sign_out(cafe_home, ada.id)  # nothing to do


def test_signing_out_works_here_also_while_globus_is_away(globus: Globus, cafe_home: Path) -> None:
    ada = globus.person("ada@uni.example")
    signed_in(globus, cafe_home, ada)
    globus.stop()
    assert not globus_login.sign_out(cafe_home, ada.id)
    assert globus_login.signed_in(cafe_home, ada.id) is None


@pytest.mark.parametrize(("fault", "code"), [(500, "CAFE-196"), (503, "CAFE-196"), (429, "CAFE-196"), (403, "CAFE-195")])
def test_what_globus_refuses_is_told_in_our_words(globus: Globus, cafe_home: Path, fault: int, code: str) -> None:
    ada = globus.person("ada@uni.example")
    signed_in(globus, cafe_home, ada)
    globus.faults.append(Fault("/v2/groups", fault, times=5))
    with pytest.raises(CafeError) as refused, globus_login.groups(cafe_home, ada.id) as client:
        client.get_my_groups()
    assert refused.value.code == code and "http://" not in str(refused.value)


def test_an_answer_of_something_in_between_is_told(globus: Globus, cafe_home: Path) -> None:
    flow = globus_login.begin(cafe_home)
    code = globus.code_for(flow.url, globus.person("ada@uni.example"))
    globus.faults.append(Fault("/v2/oauth2/token", 200))
    with pytest.raises(CafeError, match=r"CAFE-196.*not one of Globus"):
        globus_login.finish(cafe_home, flow.id, code)


def test_a_passing_fault_is_waited_out(globus: Globus, cafe_home: Path) -> None:
    ada = globus.person("ada@uni.example")
    signed_in(globus, cafe_home, ada)
    globus.faults.append(Fault("/v2/groups", 502))
    with globus_login.groups(cafe_home, ada.id) as client:
        assert list(client.get_my_groups()) == []


def test_the_server_acts_as_itself(globus: Globus, cafe_home: Path) -> None:
    with globus_login.groups(cafe_home, SERVER) as client:
        assert list(client.get_my_groups()) == []
    application = globus_settings.read(cafe_home).confidential
    globus_login.check_secret(application, Vault(cafe_home).get(f"globus.{application}")["client_secret"])  # type: ignore[index]
    with pytest.raises(CafeError, match="CAFE-199"):
        globus_login.check_secret(application, "wrong")


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"public": "not an id"},
        {"redirect": "http://cafe.example.org/oauth2callback"},
        {"redirect": "https://cafe.example.org/elsewhere"},
        {"redirect": "https:///oauth2callback"},
        {"redirect": "https://cafe.example.org/oauth2callback?x=1"},
    ],
)
def test_settings_that_cannot_be_right_are_refused(cafe_home: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(CafeError, match="CAFE-194"):
        globus_settings.write(cafe_home, replace(GlobusSettings(), **wrong))
    assert globus_settings.read(cafe_home) == GlobusSettings()


def test_a_damaged_file_of_settings_is_said(cafe_home: Path) -> None:
    (cafe_home / "globus.json").write_text("[]")
    with pytest.raises(CafeError, match="CAFE-194"):
        globus_settings.read(cafe_home)


def test_host_and_path_of_the_redirect() -> None:
    one = GlobusSettings(confidential="x", redirect="https://cafe.example.org/a/cafe/oauth2callback")
    assert (one.by_redirect, one.host, one.base_path) == (True, "cafe.example.org", "a/cafe")
    assert not GlobusSettings(redirect=one.redirect).by_redirect


# Operators


def test_operators_are_pinned_to_their_identity_at_the_first_sign_in(cafe_home: Path) -> None:
    operators.add(cafe_home, " Ada@Uni.example ", "bob")
    operators.add(cafe_home, "ada@uni.example", "bob")
    assert [one.username for one in operators.listed(cafe_home)] == ["ada@uni.example"]
    assert operators.admit(cafe_home, Identity("1", "eve@uni.example", linked=(("2", "eve@home.example"),))) is None
    found = operators.admit(cafe_home, Identity("3", "ada@home.example", linked=(("4", "ADA@uni.example"),)))
    assert found and found.identity == "3"
    assert operators.by_identity(cafe_home, "3") and not operators.by_identity(cafe_home, "") and not operators.by_identity(cafe_home, "4")
    assert operators.admit(cafe_home, Identity("9", "ada@uni.example")) is None  # the name was given to somebody else
    assert operators.admit(cafe_home, Identity("8", "ada@new.example", linked=(("3", "x@y.example"),)))
    assert operators.remove(cafe_home, "ada@uni.example") and not operators.remove(cafe_home, "ada@uni.example")
    assert operators.admit(cafe_home, Identity("3", "ada@uni.example")) is None


def test_only_the_first_may_claim_the_server_and_only_with_the_link(cafe_home: Path) -> None:
    ada, eve = Identity("1", "ada@uni.example"), Identity("2", "eve@uni.example")
    assert operators.admit(cafe_home, eve) is None
    assert operators.admit(cafe_home, ada, claims=True)
    assert operators.admit(cafe_home, eve, claims=True) is None
    assert [one.by for one in operators.listed(cafe_home)] == ["the one-time link"]


def test_what_is_no_username_is_refused(cafe_home: Path) -> None:
    for name in ("", "ada", "a b@c.example", "<x>@y.example", "a@b@c"):
        with pytest.raises(CafeError, match="CAFE-192"):
            operators.add(cafe_home, name, "")
    (cafe_home / "operators.json").write_text("{}")
    with pytest.raises(CafeError, match="CAFE-192"):
        operators.listed(cafe_home)


# A site's application


def a_kit(home: Path, site: str = "north") -> SiteKit:
    kits = SiteKits(home / "store.db")
    kits.issue(SiteKit(f"{site}-serial", "clinic", site, "gpu", 1.0, 9e9, "issued", "00", "", ""))
    kit = kits.connect(f"{site}-serial", {"via": "globus", "endpoint_name": f"cafe-clinic-{site}"})
    kits.close()
    return kit


def kept(home: Path, kit: SiteKit) -> SiteKit:
    kits = SiteKits(home / "store.db")
    try:
        return kits.kit(kit.serial)
    finally:
        kits.close()


def test_a_sites_application_is_made_in_the_operators_project(globus: Globus, cafe_home: Path) -> None:
    ada, kit = globus.person("ada@uni.example"), a_kit(cafe_home)
    signed_in(globus, cafe_home, ada)
    with pytest.raises(CafeError, match=r"CAFE-195.*--applications"):
        site_applications.make(cafe_home, kit, ada.id)
    signed_in(globus, cafe_home, ada, applications=True)
    made = site_applications.make(cafe_home, kit, ada.id)
    assert kept(cafe_home, kit).connection == {"via": "globus", "endpoint_name": "cafe-clinic-north", "client_id": made}
    secret = Vault(cafe_home).get(f"globus.{made}")
    assert secret == {"client_secret": globus.applications[-1].secret}
    globus_login.check_secret(made, secret["client_secret"])
    other = site_applications.make(cafe_home, a_kit(cafe_home, "south"), ada.id)
    assert other != made and len(globus.projects) == 1 and globus.projects[0]["admin_ids"] == [ada.id]
    with pytest.raises(CafeError, match="CAFE-199"):
        site_applications.make(cafe_home, kept(cafe_home, kit), ada.id)
    site_applications.drop(cafe_home, kept(cafe_home, kit))
    assert "client_id" not in kept(cafe_home, kit).connection and Vault(cafe_home).get(f"globus.{made}") is None
    assert readable(cafe_home, secret_words(globus)) == []


def test_a_pasted_application_is_tried_before_it_is_taken(globus: Globus, cafe_home: Path) -> None:
    kit, app = a_kit(cafe_home), globus.application("of the site", confidential=True)
    for application, secret in (("nonsense", app.secret), (app.id, ""), (app.id, "wrong")):
        with pytest.raises(CafeError, match="CAFE-199"):
            site_applications.take(cafe_home, kit, application, secret)
    assert "client_id" not in kept(cafe_home, kit).connection and Vault(cafe_home).get(f"globus.{app.id}") is None
    assert site_applications.take(cafe_home, kit, f" {app.id.upper()} ", f"{app.secret}\n") == app.id
    sealed = kept(cafe_home, kit)
    with pytest.raises(CafeError, match="CAFE-199"):
        site_applications.drop(cafe_home, replace(sealed, connection={**sealed.connection, "sealed": "00"}))


# At a terminal


def cafe(*words: str, typed: str = "", **more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words], cwd=ROOT, capture_output=True, text=True, check=False, input=typed,
        env=os.environ | more,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_commands_of_a_sign_in(globus: Globus, cafe_home: Path) -> None:
    ada, app = globus.person("ada@uni.example"), globus.application("other", confidential=True)
    code, told = cafe("globus", "setup", "--confidential", app.id, CAFE_GLOBUS_SECRET="wrong")
    assert code == 2 and "CAFE-199" in told
    code, told = cafe("globus", "setup", "--confidential", app.id, CAFE_GLOBUS_SECRET=app.secret)
    assert code == 0 and app.id in told and app.secret not in told
    assert cafe("globus", "whoami")[0] == 1

    asking = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "globus", "login"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}, start_new_session=True,
    )  # fmt: skip
    assert isinstance(asking.stdout, io.TextIOBase) and asking.stdin
    address = next(line.strip() for line in asking.stdout if line.startswith(globus.url))
    told, _ = asking.communicate(globus.code_for(address, ada) + "\n", timeout=60)
    assert asking.returncode == 0 and "Signed in as ada@uni.example" in told and "first operator" in told

    code, told = cafe("globus", "whoami", "--format", "json")
    assert code == 0 and ada.id in told
    assert cafe("operators", "add", "bob@lab.example")[0] == 0
    code, told = cafe("operators", "list", "--format", "json")
    assert code == 0 and '"by": "ada@uni.example"' in told and "bob@lab.example" in told
    assert cafe("operators", "remove", "bob@lab.example")[0] == 0 and cafe("operators", "remove", "bob@lab.example")[0] == 2
    code, told = cafe("globus", "logout")
    assert code == 0 and "Signed out." in told and not globus.refresh
    assert readable(cafe_home, secret_words(globus)) == []
