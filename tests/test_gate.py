"""The gate before the console, over HTTP in this process: keys, cookies, what a stranger gets; and how a console may be served."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cafe_kit.errors import CafeError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect
from streamlit import config
from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

from app.gate import Gate, proxy_name
from pipeline import entrance, globus_login, globus_settings, operators, serving
from pipeline.entrance import Person
from pipeline.globus_login import Identity
from pipeline.globus_settings import GlobusSettings
from pipeline.keys import cookie_secret
from tests.globus_groups_stand_in import Globus, globus_at, own_application

BEHIND = "the console itself"


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """As shipped, and one name of a proxy."""
    before = config.get_option("server.allowedHosts")
    config.set_option("server.allowedHosts", ["localhost", "127.0.0.1", "cafe.example.org"])
    yield
    config.set_option("server.allowedHosts", before)


def browser(home: Path, base: str = "", header: str = "", host: str = "http://127.0.0.1:8501") -> TestClient:
    """A browser before a small console behind the gate: any path, and a socket."""

    async def page(request: Request) -> PlainTextResponse:
        answer = PlainTextResponse(f"{BEHIND}: {request.url.path}?{request.url.query}")
        if request.url.path.endswith("/oauth2callback"):
            answer.set_cookie("_streamlit_user", "who", max_age=99)
            answer.set_cookie("_streamlit_user_tokens", "an access token")
            answer.set_cookie("_streamlit_user_tokens_1", "more of it")
        return answer

    async def socket(opened: WebSocket) -> None:
        await opened.accept()
        await opened.send_text(BEHIND)
        await opened.close()

    routes = [WebSocketRoute(f"{base}/_stcore/stream", socket), Route("/{path:path}", page, methods=["GET", "POST", "PUT"])]
    app = Starlette(routes=routes, middleware=[Middleware(Gate, home=home, base=base, proxy_header=header)])
    return TestClient(app, base_url=host, follow_redirects=False)


def socket_opens(client: TestClient, path: str = "/_stcore/stream", **headers: str) -> bool:
    """With the browser's cookies: the test client would send none to a socket."""
    cookies = "; ".join(f"{one.name}={one.value}" for one in client.cookies.jar)
    try:
        with client.websocket_connect(path, headers={"host": client.base_url.host, "cookie": cookies, **headers}) as opened:
            return bool(opened.receive_text() == BEHIND)
    except WebSocketDisconnect:
        return False


def inside(client: TestClient, path: str = "/") -> bool:
    return BEHIND in client.get(path).text


# The one-time link


def test_a_stranger_gets_one_plain_page_wherever_he_goes(cafe_home: Path) -> None:
    client = browser(cafe_home)
    for path in (
        "/",
        "/runs",
        "/media/x.png",
        "/files/ledger.csv",
        "/static/js/a.js",
        "/_stcore/host-config",
        "/auth/login",
        "/oauth2callback",
    ):
        answer = client.get(path)
        assert answer.status_code == 401 and "cafe link" in answer.text and BEHIND not in answer.text, path
        assert answer.headers["cache-control"] == "no-store" and "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.put("/_stcore/upload_file/1/2", content=b"x").status_code == 401
    assert not socket_opens(client)
    assert client.get("/_stcore/health").text.startswith(BEHIND)
    assert "<script" not in client.get("/").text


def test_the_link_works_once_and_leads_on(cafe_home: Path) -> None:
    key, client, other = entrance.new_key(cafe_home), browser(cafe_home), browser(cafe_home)
    answer = client.get(f"/runs?run=r1&key={key}")
    assert answer.status_code == 303 and answer.headers["location"] == "/runs?run=r1"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Max-Age=2592000" in cookie and key not in cookie
    assert inside(client) and socket_opens(client)
    again = other.get(f"/?key={key}")
    assert again.status_code == 401 and "used already" in again.text and not inside(other)
    assert client.get(f"/sites?key={key}").headers["location"] == "/sites"  # who is inside is not stopped by an old link


def test_a_key_is_kept_as_its_hash_is_old_after_a_while_and_not_spent_by_a_browser_that_looks_ahead(cafe_home: Path) -> None:
    key, client = entrance.new_key(cafe_home), browser(cafe_home)
    assert not any(key.encode() in path.read_bytes() or key in path.name for path in cafe_home.rglob("*") if path.is_file())
    assert client.get(f"/?key={key}", headers={"sec-purpose": "prefetch;prerender"}).status_code == 503
    for wrong in ("", "nonsense", key[:-1], "../" + key, "a" * 5000):
        assert client.get("/", params={"key": wrong}).status_code == 401
    file = next((cafe_home / "console" / "keys").iterdir())
    os.utime(file, (time.time() - entrance.KEY_S - 5,) * 2)
    assert client.get(f"/?key={key}").status_code == 401
    entrance.new_key(cafe_home)
    assert len(list((cafe_home / "console" / "keys").iterdir())) == 1  # old ones are swept


def test_of_two_who_use_a_key_at_once_one_gets_in(cafe_home: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for _ in range(20):
        key = entrance.new_key(cafe_home)
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda key: entrance.use_key(cafe_home, key), [key] * 8)) == 1


def test_a_link_never_leads_to_another_host(cafe_home: Path) -> None:
    client = browser(cafe_home)
    answer = client.get(f"http://127.0.0.1:8501//evil.example/x?key={entrance.new_key(cafe_home)}")
    assert answer.status_code == 303 and answer.headers["location"] == "/evil.example/x"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example"])
def test_under_a_foreign_name_nothing_opens_not_even_with_a_good_key(cafe_home: Path, host: str) -> None:
    key, client = entrance.new_key(cafe_home), browser(cafe_home)
    assert client.get(f"/?key={key}", headers={"host": host}).status_code == 403
    client.get(f"/?key={key}")
    assert inside(client)
    assert client.get("/", headers={"host": host}).status_code == 403
    assert not socket_opens(client, host=host) and socket_opens(client, host="localhost:8501")


# The cookie


def test_a_cookie_stays_good_over_a_restart_and_for_this_home_alone(cafe_home: Path, tmp_path: Path) -> None:
    cookie = entrance.write_cookie(cafe_home, entrance.by_link())
    assert entrance.read_cookie(cafe_home, cookie) == Person(operators.account(), "link")
    other = tmp_path / "other"
    other.mkdir()
    assert entrance.read_cookie(other, cookie) is None and entrance.cookie_name(other) != entrance.cookie_name(cafe_home)
    for altered in (cookie[:-9] + ("A" if cookie[-9] != "A" else "B") + cookie[-8:], "", "x.y", cookie.partition(".")[0]):
        assert entrance.read_cookie(cafe_home, altered) is None


def test_a_cookie_ends_by_age_by_a_sign_out_and_with_its_operator(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = entrance.by_globus(cafe_home, Identity("1", "ada@uni.example"), claims=True)
    link, globus = entrance.write_cookie(cafe_home, entrance.by_link()), entrance.write_cookie(cafe_home, ada)
    assert entrance.read_cookie(cafe_home, globus) == ada == Person("ada@uni.example", "globus", "1")
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + entrance.GLOBUS_S + 5)
        assert entrance.read_cookie(cafe_home, globus) is None and entrance.read_cookie(cafe_home, link)
        later.setattr(time, "time", lambda: now + entrance.LINK_S + 5)
        assert entrance.read_cookie(cafe_home, link) is None
    operators.end_sessions(cafe_home, "")
    assert entrance.read_cookie(cafe_home, link) is None and entrance.read_cookie(cafe_home, globus)
    assert entrance.read_cookie(cafe_home, entrance.write_cookie(cafe_home, entrance.by_link()))  # a new one is good
    operators.remove(cafe_home, "ada@uni.example")
    assert entrance.read_cookie(cafe_home, globus) is None


def test_a_damaged_file_lets_nobody_in_and_is_said(cafe_home: Path) -> None:
    client = browser(cafe_home)
    client.get(f"/?key={entrance.new_key(cafe_home)}")
    (cafe_home / "operators.json").write_text("[")
    answer = client.get("/")
    assert answer.status_code == 500 and "CAFE-192" in answer.text and not socket_opens(client)


def test_below_a_base_path(cafe_home: Path) -> None:
    client = browser(cafe_home, base="/cafe")
    assert client.get("/cafe/_stcore/health").status_code == 200
    answer = client.get(f"/cafe/runs?key={entrance.new_key(cafe_home)}")
    assert answer.headers["location"] == "/cafe/runs" and "Path=/cafe" in answer.headers["set-cookie"]
    assert inside(client, "/cafe/") and socket_opens(client, "/cafe/_stcore/stream")


# Behind a proxy with a login


def test_a_proxy_names_the_person_and_without_a_name_the_gate_is_closed(cafe_home: Path) -> None:
    client = browser(cafe_home, header="X-Remote-User", host="https://cafe.example.org")
    assert client.get("/").status_code == 401
    named = {"X-Remote-User": "ada"}
    assert BEHIND in client.get("/", headers=named).text and socket_opens(client, **named)
    assert client.get("/", headers=[("X-Remote-User", "ada"), ("X-Remote-User", "eve")]).status_code == 401
    assert browser(cafe_home).get("/", headers=named).status_code == 401  # only where it was asked for
    assert [proxy_name([name]) for name in (" ada ", "", " ", "a\tb", "x" * 200)] == ["ada", "", "", "", ""]


# By code


@pytest.fixture
def globus(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    with globus_at(cafe_home, monkeypatch) as service:
        yield service


def pastes(client: TestClient, globus: Globus, username: str) -> Any:
    """A person opens the page, goes to Globus, comes back with a code."""
    page = client.get("/sign-in")
    person = globus.find(username) or globus.person(username)
    address = re.search(r'href="(http[^"]+authorize[^"]+)"', page.text)
    assert address, page.text
    return client.post("/sign-in/code", data={"code": globus.code_for(address[1].replace("&amp;", "&"), person)})


def test_an_operator_signs_in_by_code(globus: Globus, cafe_home: Path) -> None:
    operators.add(cafe_home, "ada@uni.example", "")
    client = browser(cafe_home)
    answer = pastes(client, globus, "ada@uni.example")
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert "Max-Age=43200" in answer.headers["set-cookie"]
    assert inside(client) and socket_opens(client)
    assert client.get("/sign-in").status_code == 303
    ada = globus.find("ada@uni.example")
    assert ada and globus_login.signed_in(cafe_home, ada.id)
    told = answer.text + str(answer.headers) + client.get("/").text
    assert not [word for word in (*globus.tokens, *globus.refresh) if word in told]


def test_a_stranger_with_a_globus_account_is_told_and_leaves_nothing(globus: Globus, cafe_home: Path) -> None:
    operators.add(cafe_home, "ada@uni.example", "")
    client = browser(cafe_home)
    answer = pastes(client, globus, "eve@lab.example")
    assert answer.status_code == 403 and "eve@lab.example" in answer.text and "CAFE-192" in answer.text
    assert not inside(client) and not globus.tokens and not globus.refresh
    eve = globus.find("eve@lab.example")
    assert eve and globus_login.signed_in(cafe_home, eve.id) is None


def test_where_nobody_may_operate_yet_the_link_claims_and_nothing_else(globus: Globus, cafe_home: Path) -> None:
    assert pastes(browser(cafe_home), globus, "eve@lab.example").status_code == 403
    assert operators.listed(cafe_home) == []


def test_a_code_from_another_page_is_refused(globus: Globus, cafe_home: Path) -> None:
    operators.add(cafe_home, "ada@uni.example", "")
    ada, flow = globus.person("ada@uni.example"), globus_login.begin(cafe_home)
    client = browser(cafe_home)
    answer = client.post("/sign-in/code", data={"code": globus.code_for(flow.url, ada)})  # no page was opened here
    assert answer.status_code == 400 and "Begin again" in answer.text
    flow_cookie = next(one for one in client.get("/sign-in").headers.get_list("set-cookie") if one.startswith("cafe_flow="))
    assert "SameSite=strict" in flow_cookie and "HttpOnly" in flow_cookie and "Path=/sign-in" in flow_cookie
    assert client.post("/sign-in/code", data={"code": "wrong"}).status_code == 400
    assert client.post("/sign-in/code", content=b"code=" + b"x" * 10_000).status_code == 400
    assert not inside(client)


def test_while_globus_is_away_it_is_said_and_the_link_works(globus: Globus, cafe_home: Path) -> None:
    client = browser(cafe_home)
    client.get("/sign-in")
    globus.stop()
    answer = client.post("/sign-in/code", data={"code": "x"})
    assert "CAFE-196" in answer.text and "cafe link" in answer.text
    client.get(f"/?key={entrance.new_key(cafe_home)}")
    assert inside(client)


# By redirect


REDIRECT = "https://cafe.example.org/oauth2callback"


def noted(home: Path, person: dict[str, Any]) -> str:
    """Streamlit's cookie after a sign-in."""
    value = json.dumps({"provider": "globus", "is_logged_in": True, "origin": "https://cafe.example.org", **person})
    return create_signed_value(cookie_secret(home), "_streamlit_user", value).decode()


@pytest.fixture
def outside(globus: Globus, cafe_home: Path) -> TestClient:
    own_application(globus, cafe_home, REDIRECT)
    return browser(cafe_home, host="https://cafe.example.org")


def test_a_stranger_is_led_to_globus_and_no_token_comes_back_to_his_browser(outside: TestClient, cafe_home: Path) -> None:
    page = outside.get("/")
    assert page.status_code == 401 and 'href="/sign-in/globus"' in page.text and not socket_opens(outside)
    back = outside.get("/oauth2callback?code=x&state=y")
    assert BEHIND in back.text
    assert [one.partition("=")[0] for one in back.headers.get_list("set-cookie")] == ["_streamlit_user"]
    assert all("; Secure" in one for one in back.headers.get_list("set-cookie"))


def test_what_streamlit_noted_becomes_a_session_once(outside: TestClient, cafe_home: Path) -> None:
    operators.add(cafe_home, "ada@uni.example", "")
    outside.cookies.set(
        "_streamlit_user", domain="cafe.example.org", value=noted(cafe_home, {"sub": "1", "preferred_username": "ada@uni.example"})
    )
    answer = outside.get("/runs")
    assert answer.status_code == 303 and answer.headers["location"] == "/runs"
    made = {one.partition("=")[0]: one for one in answer.headers.get_list("set-cookie")}
    assert "Max-Age=0" in made["_streamlit_user"]
    session = made[entrance.cookie_name(cafe_home)]
    assert "Secure" in session and "HttpOnly" in session and "Max-Age=43200" in session
    assert inside(outside) and [one.identity for one in operators.listed(cafe_home)] == ["1"]


@pytest.mark.parametrize(
    "person",
    [
        {"sub": "2", "preferred_username": "eve@lab.example"},
        {"sub": "2", "preferred_username": "eve@lab.example", "email": "ada@uni.example"},
        {"sub": "1", "preferred_username": "ada@uni.example", "provider": "other"},
        {"preferred_username": "ada@uni.example"},
    ],
)
def test_who_is_no_operator_does_not_get_in_by_any_claim(outside: TestClient, cafe_home: Path, person: dict[str, Any]) -> None:
    operators.add(cafe_home, "ada@uni.example", "")
    outside.cookies.set("_streamlit_user", domain="cafe.example.org", value=noted(cafe_home, person))
    assert not inside(outside)
    assert "_streamlit_user" not in outside.cookies
    assert outside.get("/").status_code == 401


def test_an_old_or_forged_note_of_a_sign_in_is_worth_nothing(outside: TestClient, cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operators.add(cafe_home, "ada@uni.example", "")
    now, good = time.time(), {"sub": "1", "preferred_username": "ada@uni.example"}
    with monkeypatch.context() as earlier:
        earlier.setattr(time, "time", lambda: now - 400)
        old = noted(cafe_home, good)
    forged = create_signed_value("0" * 64, "_streamlit_user", json.dumps({"provider": "globus", **good})).decode()
    for worth_nothing in (old, forged, "nonsense"):
        outside.cookies.set("_streamlit_user", worth_nothing, "cafe.example.org")
        assert not inside(outside)
        assert not inside(outside)  # the first answer may have been a redirect
        outside.cookies.clear()


def test_the_first_operator_claims_with_the_link(outside: TestClient, cafe_home: Path) -> None:
    note = noted(cafe_home, {"sub": "1", "preferred_username": "ada@uni.example"})
    outside.cookies.set("_streamlit_user", note, "cafe.example.org")
    assert not inside(outside) and operators.listed(cafe_home) == []
    outside.cookies.clear()
    outside.get(f"/?key={entrance.new_key(cafe_home)}")
    outside.cookies.set("_streamlit_user", note, "cafe.example.org")
    assert outside.get("/").status_code == 303
    assert [one.username for one in operators.listed(cafe_home)] == ["ada@uni.example"] and inside(outside)


def test_signing_out_clears_the_cookie(outside: TestClient, cafe_home: Path) -> None:
    cookies = outside.get("/auth/logout").headers.get_list("set-cookie")
    assert [one.partition(";")[0] for one in cookies] == [f"{entrance.cookie_name(cafe_home)}="] and "Max-Age=0" in cookies[0]


# How a console may be served


def test_an_address_that_others_reach_needs_a_sign_in(cafe_home: Path) -> None:
    for address in ("0.0.0.0", "::", "192.0.2.7", "every address"):
        with pytest.raises(CafeError, match="CAFE-194"):
            serving.check(address)
    for address in serving.LOOPBACK:
        serving.check(address)


def test_redirect_and_console_must_be_at_the_same_place(globus: Globus, cafe_home: Path) -> None:
    own_application(globus, cafe_home, "https://cafe.example.org/cafe/oauth2callback")
    serving.check("0.0.0.0", "/cafe/", ["cafe.example.org"])
    for base, hosts in (("", ["cafe.example.org"]), ("cafe", ["other.example.org"]), ("cafe", [])):
        with pytest.raises(CafeError, match="CAFE-194"):
            serving.check("127.0.0.1", base, hosts)
    (secrets := serving.secrets()) and secrets["auth"]["redirect_uri"] == "https://cafe.example.org/cafe/oauth2callback"
    assert secrets and secrets["auth"]["globus"]["client_secret"] == globus.applications[-1].secret
    globus_settings.write(cafe_home, GlobusSettings(confidential=globus.applications[0].id, redirect=REDIRECT))
    with pytest.raises(CafeError, match=r"CAFE-194.*not in the vault"):
        serving.check("127.0.0.1", "", ["cafe.example.org"])


@pytest.mark.parametrize(("header", "hosts"), [("X-Remote-User", []), ("X Remote User", ["cafe.example.org"])])
def test_a_proxys_header_needs_a_name_and_its_host(cafe_home: Path, header: str, hosts: list[str]) -> None:
    with pytest.raises(CafeError, match="CAFE-194"):
        serving.check("127.0.0.1", "", hosts, header)


def test_what_is_printed_at_the_start(cafe_home: Path) -> None:
    entrance.announce(cafe_home, "https://cafe.example.org/cafe/")
    told = serving.greeting({})
    key = re.search(r"https://cafe\.example\.org/cafe/\?key=(\S+)", told)
    assert key and entrance.use_key(cafe_home, key[1]) and "Globus" not in told


def test_a_browser_is_opened_where_it_was_asked_for(cafe_home: Path, tmp_path: Path) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o700)
    code = "from pipeline import serving; print(serving.greeting({serving.OPEN: '1'}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"BROWSER": f"{browser} %s"}, capture_output=True, text=True, check=True
    )
    assert opened.read_text().strip() in done.stdout and "key=" in opened.read_text()
