"""The operator's page on who may open the console, sign-in with Globus and a federation's people: its commands, word for word."""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import federations, globus_login, globus_settings, groups, operators
from server_store.site_kits import SiteKit, SiteKits
from tests.browser import free_port
from tests.doc_pages import Block, Story, missing
from tests.globus_auth_stand_in import Person
from tests.globus_groups_stand_in import Globus, globus_at, own_application, signs_in
from tests.shell import Shell

OPERATOR = "docs/operator.md"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "operator" / ".cafe"
    home.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("CAFE_HOME", str(home))
    return home


@pytest.fixture
def globus(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    with globus_at(home, monkeypatch) as service:
        yield service


@pytest.fixture
def shell(home: Path, globus: Globus, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(home.parent, tmp_path / "notes", {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **globus.environment})
    yield shell
    shell.close()


def says(block: Block, said: str) -> str:
    assert missing(block.prints, said) == [], f"{block.page}, line {block.line}. It was:\n{said}"
    return said


def log_in(shell: Shell, text: str, globus: Globus, person: Person) -> str:
    """The person goes to the address on the screen, and copies the code from Globus's page."""

    def pastes(said: str) -> str:
        return globus.code_for(re.findall(r"^http\S+authorize\S+$", said, re.MULTILINE)[-1], person)

    return shell.run(text, [("Code: ", pastes)])


def gets(port: int, path: str, **headers: str) -> tuple[int, str]:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=20) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def served(shell: Shell, block: Block, look: Callable[[int], None]) -> str:
    """The console of this command, on a free port, until somebody has looked."""
    port = free_port()
    running = shell.start(block.text.replace("cafe serve", f"cafe serve --port {port}"))
    running.says("open it with this link")
    look(port)
    return running.end()


def test_who_may_open_the_console(shell: Shell) -> None:
    page = Story(OPERATOR, "Who may open the console")
    block = page.next("cafe link")
    says(block, shell.run(block.text))
    page.ends()


def test_sign_in_with_globus(shell: Shell, globus: Globus, home: Path) -> None:
    page = Story(OPERATOR, "Sign-in with Globus")
    public, own = globus.application("by code"), globus.application("portal", confidential=True)
    ada = globus.person("ada@uni.example")
    block = page.next("cafe globus setup --public")
    says(block, log_in(shell, block.filled({"PUBLIC_ID": public.id}), globus, ada))
    assert shell.run(page.next("cafe operators add").text).count("bob@hospital.example") == 3
    assert [one.username for one in operators.listed(home)] == ["ada@uni.example"]
    block = page.next("cafe globus setup --confidential")
    shell.run(block.filled({"APPLICATION_ID": own.id}), [("Secret: ", own.secret)])

    def look(port: int) -> None:
        status, page = gets(port, "/cafe/", Host="cafe.example.org")
        assert status == 401 and "/cafe/sign-in/globus" in page
        assert gets(port, "/cafe/", Host="evil.example")[0] == 403

    assert "https://cafe.example.org/cafe/?key=" in served(shell, page.next("cafe serve"), look)
    block = page.next("cafe globus whoami")
    assert ada.id in says(block, shell.run(block.text))
    assert globus_login.signed_in(home, ada.id) is None
    page.ends()


def test_the_people_of_a_federation(shell: Shell, globus: Globus, home: Path) -> None:
    page = Story(OPERATOR, "The people of a federation")
    ada = signs_in(globus, home, "ada@uni.example")
    federations.create("clinic", "classification", "which desk a patient's message goes to")
    kits = SiteKits(home / "store.db")
    for site in ("north", "lab"):
        kits.issue(SiteKit(f"{site}-serial", "clinic", site, "gpu", 1.0, 9e9, "issued", "00", "", ""))
    block = page.next("cafe members group")
    says(block, shell.run(block.text))
    globus.accepts(globus.groups[0].id, "bob@hospital.example")
    block = page.next("cafe members list")
    says(block, shell.run(block.text))
    shell.run(page.next("cafe members remove").text)
    assert [one.status for one in groups.members(home, "clinic")] == ["active", "removed"]
    block = page.next("cafe globus login --applications")
    says(block, log_in(shell, block.text, globus, ada))
    assert kits.kit("lab-serial").connection == {"client_id": globus.applications[-1].id}
    kits.close()
    page.ends()


def test_a_reverse_proxy_with_a_login(shell: Shell, home: Path) -> None:
    page = Story(OPERATOR, "For several people: a reverse proxy")

    def look(port: int) -> None:
        assert gets(port, "/cafe/", Host="cafe.example.org")[0] == 401
        status, drawn = gets(port, "/cafe/", Host="cafe.example.org", **{"X-Remote-User": "ada"})
        assert status == 200 and "<script" in drawn

    served(shell, page.next("cafe serve"), look)
    page.ends()


def test_the_secret_is_asked_for_without_being_shown(shell: Shell, globus: Globus, home: Path) -> None:
    own = own_application(globus, home)
    said = shell.run(f"cafe globus setup --confidential {own.id}", [("Secret: ", own.secret)])
    assert own.secret not in said and globus_settings.read(home).confidential == own.id
