"""The console's gate: whatever a browser asks for, a page, a file or the socket, passes here and only with a session.

Knows HTTP: keys, cookies, the sign-in pages. Who may enter is decided in ``pipeline/entrance.py`` and ``pipeline/operators.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from cafe_kit.errors import CafeError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.auth_util import get_cookie_with_chunks
from streamlit.user_info import generate_login_redirect_url
from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value
from streamlit.web.server.starlette.starlette_server_config import TOKENS_COOKIE_NAME, USER_COOKIE_NAME
from streamlit.web.server.starlette.starlette_websocket import is_host_allowed

from app import gate_page
from pipeline import entrance, globus_login, globus_settings
from pipeline.entrance import Person
from pipeline.keys import cookie_secret

PROVIDER = "globus"
SIGN_IN, BY_REDIRECT, BY_CODE = "/sign-in", "/sign-in/globus", "/sign-in/code"
_HEALTH, _LOGIN, _CALLBACK, _LOGOUT = "/_stcore/health", "/auth/login", "/oauth2callback", "/auth/logout"
_FLOW = "cafe_flow"
_FRESH_S = 300.0  # Streamlit's cookie of a sign-in is taken within this time, and only once
_MOST = 4096  # bytes of a form
_FAILED = "The sign-in with Globus did not come to its end (CAFE-193). The console's log says more."
_NOT_OURS = "This address is not one of the console's own; set server.allowedHosts (`cafe serve --hosts`) to allow it."


class Gate:
    """ASGI middleware. ``base``: the console's base path. ``proxy_header``: in which a reverse proxy names whom it let in; "" for none."""

    def __init__(self, app: ASGIApp, home: Path, base: str = "", proxy_header: str = "") -> None:
        self._app, self._home, self._header = app, home, proxy_header
        self._base = f"/{base.strip('/')}" if base.strip("/") else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(self._base)
        if scope["type"] == "websocket":
            inside = is_host_allowed(HTTPConnection(scope).headers.get("host")) and self._try_person(scope)
            await (self._app(scope, receive, send) if inside else _closed(receive, send))
        elif path == _HEALTH:
            await self._app(scope, receive, send)
        else:
            answer = await self._answer(Request(scope, receive), path)
            await (answer or self._app)(scope, receive, self._watched(scope, path, send))

    async def _answer(self, asked: Request, path: str) -> Response | None:
        """What the gate itself says to this; None: the console answers."""
        if not is_host_allowed(asked.headers.get("host")):
            return PlainTextResponse(_NOT_OURS + "\n", 403, headers=gate_page.HEADERS)
        try:
            return await self._decided(asked, path, self._person(asked))
        except CafeError as error:  # a file of the home is damaged: nobody gets in
            return gate_page.page(told=str(error), status=500)

    async def _decided(self, asked: Request, path: str, person: Person | None) -> Response | None:
        key = asked.query_params.get("key")
        if key is not None and asked.method == "GET":
            return self._opened(asked, key, person)
        if path == BY_CODE and asked.method == "POST":
            return await self._by_code(asked, person)
        settings = globus_settings.read(self._home)
        if settings.by_redirect:
            if path == BY_REDIRECT:
                return RedirectResponse(generate_login_redirect_url(PROVIDER), 303, headers=gate_page.HEADERS)
            if USER_COOKIE_NAME in asked.cookies and path not in (_LOGIN, _CALLBACK, _LOGOUT):
                return self._by_redirect(asked, person)
            if path in (_LOGIN, _CALLBACK):
                return None
        if path == SIGN_IN and person:
            return RedirectResponse(f"{self._base}/", 303)
        failed = path == SIGN_IN and "failed" in asked.query_params
        return None if person or path == _LOGOUT else self._sign_in(asked, _FAILED if failed else "")

    # -- the ways in -------------------------------------------------------------------------------------------------

    def _person(self, asked: HTTPConnection) -> Person | None:
        if self._header and (name := proxy_name(asked.headers.getlist(self._header))):
            return Person(name, "proxy")
        cookie = asked.cookies.get(entrance.cookie_name(self._home))
        return entrance.read_cookie(self._home, cookie) if cookie else None

    def _try_person(self, scope: Scope) -> Person | None:
        try:
            return self._person(HTTPConnection(scope))
        except CafeError:
            return None

    def _opened(self, asked: Request, key: str, person: Person | None) -> Response:
        """By the one-time link: once, and not because a browser looked ahead."""
        left = [(name, value) for name, value in asked.query_params.multi_items() if name != "key"]
        on = RedirectResponse(_here(asked) + (f"?{urlencode(left)}" if left else ""), 303, headers=gate_page.HEADERS)
        if asked.headers.get("sec-purpose", "").startswith("prefetch"):
            return PlainTextResponse("Not ahead of time.\n", 503, headers=gate_page.HEADERS)
        if entrance.use_key(self._home, key):
            return self._let_in(asked, on, entrance.by_link())
        return on if person else self._sign_in(asked, "This link was used already, or it is too old.")

    async def _by_code(self, asked: Request, person: Person | None) -> Response:
        """By a code from Globus. The flow's name is in a cookie that no other site can make a browser send."""
        flow, form = asked.cookies.get(_FLOW), dict(parse_qsl((await _body(asked)).decode("ascii", "replace")))
        if not flow or not form.get("code"):
            return self._sign_in(asked, "Begin again: the sign-in was left for too long, or came from another page.", 400)
        entered: list[Person] = []
        claims = person is not None and person.way == "link"
        try:
            await run_in_threadpool(
                globus_login.finish,
                self._home,
                flow,
                form["code"],
                admit=lambda identity: entered.append(entrance.by_globus(self._home, identity, claims=claims)),
            )
        except CafeError as error:
            return self._sign_in(asked, str(error), 403 if error.code == "CAFE-192" else 400)
        return self._let_in(asked, RedirectResponse(f"{self._base}/", 303), entered[0])

    def _by_redirect(self, asked: Request, person: Person | None) -> Response:
        """Back from Globus: what Streamlit noted of it is taken once, and becomes a session like any other."""
        secret, cookies = cookie_secret(self._home), asked.cookies

        def one(name: str) -> bytes | None:
            return decode_signed_value(secret, name, cookies.get(name, ""), _FRESH_S / 86400)

        noted = get_cookie_with_chunks(one, USER_COOKIE_NAME)
        claims = json.loads(noted) if noted else {}
        answer: Response = RedirectResponse(_here(asked), 303)
        if claims.get("provider") == PROVIDER and claims.get("sub"):
            try:
                entered = entrance.by_globus(
                    self._home, globus_login.identity_of(claims), claims=person is not None and person.way == "link"
                )
                answer = self._let_in(asked, answer, entered)
            except CafeError as error:
                answer = self._sign_in(asked, str(error), 403)
        for name in cookies:
            if name.startswith(USER_COOKIE_NAME):
                answer.delete_cookie(name, path=self._base or "/")
        return answer

    def _let_in(self, asked: Request, answer: Response, person: Person) -> Response:
        answer.set_cookie(
            entrance.cookie_name(self._home),
            entrance.write_cookie(self._home, person),
            max_age=entrance.GLOBUS_S if person.way == "globus" else entrance.LINK_S,
            path=self._base or "/",
            httponly=True,
            samesite="lax",  # the way back from Globus begins at another site
        )
        return answer

    # -- what a stranger sees ----------------------------------------------------------------------------------------

    def _sign_in(self, asked: Request, told: str = "", status: int = 401) -> Response:
        if asked.method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("Sign in first.\n", 401, headers=gate_page.HEADERS)
        settings = globus_settings.read(self._home)
        if settings.by_redirect:
            return gate_page.page(gate_page.by_redirect(self._base + BY_REDIRECT), gate_page.otherwise(), told=told, status=status)
        if not settings.public:
            return gate_page.page(gate_page.LINK, told=told, status=status)
        flow = globus_login.begin(self._home)
        answer = gate_page.page(gate_page.by_code(flow.url, self._base + BY_CODE), gate_page.otherwise(), told=told, status=status)
        answer.set_cookie(_FLOW, flow.id, max_age=900, path=self._base + SIGN_IN, httponly=True, samesite="strict")
        return answer

    def _watched(self, scope: Scope, path: str, send: Send) -> Send:
        """Cookies on their way out: tokens never go to a browser, a sign-out ends the session, https cookies stay on https."""
        https = scope["scheme"] == "https" or self._public(scope)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                cookies = [one for one in headers.getlist("set-cookie") if not one.startswith(f"{TOKENS_COOKIE_NAME}")]
                if path == _LOGOUT:
                    cookies.append(f"{entrance.cookie_name(self._home)}=; Max-Age=0; Path={self._base or '/'}; HttpOnly; SameSite=lax")
                if path == _CALLBACK and not any(one.startswith(f"{USER_COOKIE_NAME}=") and "Max-Age=0" not in one for one in cookies):
                    headers["location"] = f"{self._base}{SIGN_IN}?failed=yes"
                if cookies or "set-cookie" in headers:
                    del headers["set-cookie"]
                    for one in cookies:
                        headers.append("set-cookie", one + ("; Secure" if https and "secure" not in one.lower().split("; ") else ""))
                message = {**message, "headers": headers.raw}
            await send(message)

        return watched

    def _public(self, scope: Scope) -> bool:
        try:
            settings = globus_settings.read(self._home)
        except CafeError:
            return False
        host = HTTPConnection(scope).headers.get("host", "").partition(":")[0]
        return settings.redirect.startswith("https:") and host == settings.host


def proxy_name(values: list[str]) -> str:
    """The name in a proxy's header; "" unless there is exactly one, and it is printable."""
    name = values[0].strip() if len(values) == 1 else ""
    return name if name.isprintable() and 0 < len(name) <= 128 else ""


def _here(asked: Request) -> str:
    """The path that was asked for, as one of this host."""
    return "/" + asked.url.path.lstrip("/\\")


async def _body(asked: Request) -> bytes:
    """A form, if it is a small one."""
    data = b""
    async for part in asked.stream():
        data += part
        if len(data) > _MOST:
            return b""
    return data


async def _closed(receive: Receive, send: Send) -> None:
    """Refuse the socket before it opens: the browser sees 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1008})
