"""A stand-in of Globus Auth on loopback, written for these tests: sign-in with PKCE, tokens, identities, applications, and knobs to fail.

Real HTTP, real RS256 signatures. Knows people and applications that a test names. Does not know groups
(``tests/globus_groups_stand_in.py`` adds them) nor what our code makes of an answer.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import secrets
import time
import urllib.request
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.http_stand_in import Answer, HttpStandIn, Refused, Request

HOUR_S = 3600
_AUTH = "auth.globus.org"
_PLAIN_SCOPES = {"openid", "profile", "email"}


@dataclass
class Person:
    """One identity; ``linked`` are the other identities of the same human."""

    username: str
    name: str = ""
    email: str = ""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "used"
    linked: list[Person] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        return {"id": self.id, "username": self.username, "status": self.status, "name": self.name, "email": self.email}


@dataclass
class Application:
    """A registered application; one with a secret is confidential, and an identity of its own."""

    name: str
    secret: str = ""
    redirects: tuple[str, ...] = ()
    project: str = ""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass
class Grant:
    """What a code or a token stands for. ``owner`` is the id of a person or an application."""

    owner: str
    application: str
    scope: str
    expires: float
    resource: str = _AUTH
    redirect: str = ""
    challenge: str = ""
    nonce: str = ""
    offline: bool = False


class GlobusAuth(HttpStandIn):
    """``with GlobusAuth() as globus``: the service on a free port. ``automatic``: who consents without being asked; None shows a form."""

    def __init__(self) -> None:
        super().__init__()
        self.people: list[Person] = []
        self.applications: list[Application] = []
        self.projects: list[dict[str, Any]] = []
        self.codes: dict[str, Grant] = {}
        self.tokens: dict[str, Grant] = {}  # access tokens
        self.refresh: dict[str, Grant] = {}
        self.revoked: list[str] = []
        self.automatic: Person | None = None
        self.lifetime_s = 48 * HOUR_S
        self.forge: dict[str, Any] = {}  # claims of the next id tokens that are wrong on purpose
        self.foreign_signature = False
        self._key = rsa.generate_private_key(65537, 2048)
        self.calls = [
            ("GET", "/favicon.ico", lambda _: ""),
            ("GET", "/.well-known/openid-configuration", self._discovery),
            ("GET", "/jwk.json", self._keys),
            ("GET", "/v2/oauth2/authorize", self._authorize),
            ("POST", "/v2/oauth2/authorize", self._authorize),
            ("GET", "/v2/web/auth-code", self._show_code),
            ("POST", "/v2/oauth2/token/revoke", self._revoke),
            ("POST", "/v2/oauth2/token", self._token),
            ("GET", "/v2/oauth2/userinfo", self._userinfo),
            ("GET", "/v2/api/identities", self._identities),
            ("GET", "/v2/api/projects", lambda asked: {"projects": self._mine(asked)}),
            ("POST", "/v2/api/projects", self._new_project),
            ("POST", "/v2/api/clients", self._new_application),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """What sends globus-sdk here instead of to the real service."""
        return {"GLOBUS_SDK_SERVICE_URL_AUTH": self.url, "GLOBUS_SDK_SERVICE_URL_GROUPS": self.url, "GLOBUS_SDK_HTTP_TIMEOUT": "5"}

    # -- who is who --------------------------------------------------------------------------------------------------

    def person(self, username: str, **facts: Any) -> Person:
        """Somebody who can sign in."""
        found = Person(username, **{"name": username.partition("@")[0].title(), "email": username, **facts})
        self.people.append(found)
        return found

    def application(self, name: str, *, confidential: bool = False, redirects: tuple[str, ...] = ()) -> Application:
        found = Application(name, secrets.token_urlsafe(24) if confidential else "", redirects)
        self.applications.append(found)
        return found

    def find(self, identity: str) -> Person | None:
        """By id or username, linked identities included."""
        known = [one for person in self.people for one in (person, *person.linked)]
        return next((one for one in known if identity in (one.id, one.username)), None)

    def caller(self, asked: Request, scope: str = "") -> Grant:
        """Whose token this is. Raises Refused 401 for none, 403 for one without ``scope``."""
        grant = self.tokens.get(asked.authorization.removeprefix("Bearer "))
        if grant is None or grant.expires < time.time():
            raise Refused(401, "UNAUTHORIZED", "the token is not active")
        if scope and scope not in grant.scope.split():
            raise Refused(403, "FORBIDDEN", "the token lacks a scope")
        return grant

    def code_for(self, address: str, person: Person) -> str:
        """What a person copies from the page to which this address leads him, when he has signed in and consented."""
        before, self.automatic = self.automatic, person
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=10) as page:
                found = re.search(r"id='auth-code'>([^<]+)<", page.read().decode())
        finally:
            self.automatic = before
        assert found, "no code was shown"
        return found[1]

    def expire(self) -> None:
        """All access tokens are old now; refresh tokens are not."""
        for grant in self.tokens.values():
            grant.expires = 0.0

    # -- sign-in -----------------------------------------------------------------------------------------------------

    def _discovery(self, _: Request) -> Answer:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/v2/oauth2/authorize",
            "token_endpoint": f"{self.url}/v2/oauth2/token",
            "userinfo_endpoint": f"{self.url}/v2/oauth2/userinfo",
            "revocation_endpoint": f"{self.url}/v2/oauth2/token/revoke",
            "jwks_uri": f"{self.url}/jwk.json",
            "response_types_supported": ["code", "token", "token id_token", "id_token"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "scopes_supported": sorted(_PLAIN_SCOPES),
            "code_challenge_methods_supported": ["S256"],
            "subject_types_supported": ["public"],
        }

    def _keys(self, _: Request) -> Answer:
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [{**public, "kid": "one", "use": "sig", "alg": "RS256"}]}

    def _authorize(self, asked: Request) -> Answer:
        wish = asked.query if asked.method == "GET" else asked.form
        app = next((one for one in self.applications if one.id == wish.get("client_id")), None)
        page, redirect = f"{self.url}/v2/web/auth-code", wish.get("redirect_uri", "")
        if app is None or wish.get("response_type") != "code" or redirect not in (*app.redirects, *(() if app.secret else (page,))):
            raise Refused(400, "INVALID_REQUEST", "application or redirect is not registered")
        if not app.secret and wish.get("code_challenge_method") != "S256":
            raise Refused(400, "INVALID_REQUEST", "PKCE is required")
        person = self.automatic or (self.find(wish["person"]) if asked.method == "POST" and wish.get("person") else None)
        if person is None:
            return _form(app, wish, self.people)
        if wish.get("answer") == "deny":
            return f"location:{redirect}?{urlencode({'error': 'access_denied', 'state': wish.get('state', '')})}"
        code = secrets.token_urlsafe(20)
        self.codes[code] = Grant(
            person.id, app.id, wish["scope"], time.time() + 600, redirect=redirect, challenge=wish.get("code_challenge", ""),
            nonce=wish.get("nonce", ""), offline=wish.get("access_type") == "offline",
        )  # fmt: skip
        return f"location:{redirect}?{urlencode({'code': code, 'state': wish.get('state', '')})}"

    def _show_code(self, asked: Request) -> Answer:
        return f"<title>Code</title><p>Your code:</p><pre id='auth-code'>{html.escape(asked.query.get('code', ''))}</pre>"

    def _token(self, asked: Request) -> Answer:
        wish, app = asked.form, self._application(asked)
        kind = wish.get("grant_type")
        if kind == "client_credentials" and app.secret:
            return self._tokens(Grant(app.id, app.id, wish.get("scope", ""), 0.0))
        if kind == "refresh_token":
            kept = self.refresh.get(wish.get("refresh_token", ""))
            if kept is None or kept.application != app.id:
                raise Refused(400, "invalid_grant", "the refresh token is not active")
            return {**self._one(kept), "refresh_token": wish["refresh_token"], "other_tokens": []}
        if kind != "authorization_code":
            raise Refused(400, "unsupported_grant_type")
        grant = self.codes.pop(wish.get("code", ""), None)  # a code works once
        if grant is None or grant.application != app.id or grant.redirect != wish.get("redirect_uri") or grant.expires < time.time():
            raise Refused(400, "invalid_grant", "the code is not valid")
        proof = base64.urlsafe_b64encode(hashlib.sha256(wish.get("code_verifier", "").encode()).digest()).decode().rstrip("=")
        if grant.challenge and proof != grant.challenge:
            raise Refused(400, "invalid_grant", "the verifier is wrong")
        return self._tokens(grant)

    def _application(self, asked: Request) -> Application:
        """Who asks for tokens: a confidential application proves itself, a public one only says its name."""
        name, secret = asked.form.get("client_id", ""), asked.form.get("client_secret", "")
        if asked.authorization.startswith("Basic "):
            name, _, secret = base64.b64decode(asked.authorization[6:]).decode().partition(":")
        app = next((one for one in self.applications if one.id == name), None)
        if app is None or not secrets.compare_digest(app.secret, secret):
            raise Refused(401, "invalid_client")
        return app

    def _tokens(self, grant: Grant) -> dict[str, Any]:
        """One token for each service that the scopes name, and who signed in."""
        services: dict[str, list[str]] = {}
        for scope in grant.scope.split():
            service = _AUTH if scope in _PLAIN_SCOPES else scope.split(":")[4] if scope.startswith("urn:") else scope
            services.setdefault(service, []).append(scope)
        made = [self._one(Grant(**{**vars(grant), "scope": " ".join(names), "resource": name})) for name, names in services.items()]
        first, *others = made
        answer = {**first, "other_tokens": others, "state": "x"}
        if "openid" in grant.scope.split():
            answer["id_token"] = self._id_token(grant)
        return answer

    def _one(self, grant: Grant) -> dict[str, Any]:
        access = secrets.token_urlsafe(40)
        self.tokens[access] = Grant(**{**vars(grant), "expires": time.time() + self.lifetime_s})
        answer = {
            "access_token": access, "expires_in": self.lifetime_s, "resource_server": grant.resource, "scope": grant.scope,
            "token_type": "Bearer",
        }  # fmt: skip
        if grant.offline:
            answer["refresh_token"] = secrets.token_urlsafe(40)
            self.refresh[answer["refresh_token"]] = grant
        return answer

    def _id_token(self, grant: Grant) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": grant.application,
            "iat": now,
            "exp": now + 600,
            "nonce": grant.nonce,
            **self._claims(grant.owner),
        }
        key = rsa.generate_private_key(65537, 2048) if self.foreign_signature else self._key
        return jwt.encode({**claims, **self.forge}, key, "RS256", headers={"kid": "one"})

    def _claims(self, owner: str) -> dict[str, Any]:
        person = self.find(owner)
        if person is None:
            return {"sub": owner, "preferred_username": f"{owner}@clients.auth.globus.org", "name": "an application"}
        known = [{"sub": one.id, "username": one.username, "name": one.name, "email": one.email} for one in (person, *person.linked)]
        facts = {"preferred_username": person.username, "name": person.name, "email": person.email}
        return {"sub": person.id, **facts, "identity_set": known}

    def _userinfo(self, asked: Request) -> Answer:
        return self._claims(self.caller(asked).owner)

    def _revoke(self, asked: Request) -> Answer:
        token = asked.form.get("token", "")
        self.revoked.append(token)
        return {"active": bool(self.tokens.pop(token, None) or self.refresh.pop(token, None))}

    # -- identities and applications ---------------------------------------------------------------------------------

    def _identities(self, asked: Request) -> Answer:
        self.caller(asked, f"urn:globus:auth:scope:{_AUTH}:view_identities")
        wanted = (asked.query.get("usernames") or asked.query.get("ids") or "").split(",")
        found = [self.find(one) for one in wanted]
        if asked.query.get("provision", "").lower() == "true":
            found = [one or self.person(name, name="", status="unused") for one, name in zip(found, wanted, strict=True)]
        return {"identities": [one.document() for one in found if one]}

    def _mine(self, asked: Request) -> list[dict[str, Any]]:
        owner = self.caller(asked, f"urn:globus:auth:scope:{_AUTH}:manage_projects").owner
        return [one for one in self.projects if owner in one["admin_ids"]]

    def _new_project(self, asked: Request) -> Answer:
        self._mine(asked)
        project = {**asked.json["project"], "id": str(uuid.uuid4())}
        self.projects.append(project)
        return {"project": project}

    def _new_application(self, asked: Request) -> Answer:
        mine = {one["id"] for one in self._mine(asked)}
        wish = asked.json["client"]
        if wish.get("project") not in mine:
            raise Refused(403, "FORBIDDEN", "no such project")
        app = Application(wish["name"], secrets.token_urlsafe(24), project=wish["project"])
        self.applications.append(app)
        self.calls.append(("POST", f"/v2/api/clients/{app.id}/credentials", lambda _: {"credential": self._credential(app)}))
        return {"client": {"id": app.id, "name": app.name, "project": app.project, "client_type": wish.get("client_type")}}

    def _credential(self, app: Application) -> dict[str, Any]:
        return {"id": str(uuid.uuid4()), "client": app.id, "secret": app.secret, "name": "one"}


def _form(app: Application, wish: dict[str, str], people: list[Person]) -> str:
    hidden = "".join(f'<input type="hidden" name="{html.escape(k)}" value="{html.escape(v)}">' for k, v in wish.items())
    names = "".join(f"<label><input type=radio name=person value={one.id}>{html.escape(one.username)}</label>" for one in people)
    return (
        f"<title>Sign in</title><h1>{html.escape(app.name)} would like to know who you are</h1>"
        f"<form method=post action=/v2/oauth2/authorize>{hidden}{names}"
        "<button name=answer value=allow>Allow</button><button name=answer value=deny>Deny</button></form>"
    )
