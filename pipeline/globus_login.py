"""Signing in with Globus: by a code that a person pastes, or as this server's own application; tokens live in the vault and nowhere else.

Knows the steps of OAuth 2 (through globus-sdk) and who is signed in. Does not know what an operator may do (``operators.py``) nor groups.
Nothing here prompts, opens a browser or reads a terminal.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import globus_sdk
from cafe_kit.errors import CafeError
from globus_sdk.config import get_service_url
from globus_sdk.scopes import AuthScopes, GroupsScopes
from globus_sdk.transport import RequestsTransport, RetryConfig

from pipeline import globus_settings
from pipeline.globus_settings import application_secret
from pipeline.keys import vault_key
from pipeline.vault import Vault

SERVER = ""  # in place of an identity id: this server's own application
WHO_SCOPES = (AuthScopes.openid, AuthScopes.profile, AuthScopes.email, AuthScopes.view_identity_set)
_MANAGE_SCOPES = (*WHO_SCOPES, AuthScopes.view_identities, GroupsScopes.all)
_TIMEOUT_S = 10.0
_NOT_SET_UP = "`cafe globus setup` names the application; docs/operator.md tells how to register one."


@dataclass(frozen=True)
class Identity:
    """Somebody that Globus knows. ``linked``: his other identities, as id and username."""

    id: str
    username: str
    name: str = ""
    linked: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> set[str]:
        """His usernames, in small letters. Not his e-mail addresses: a provider may let people choose those."""
        return {self.username.lower(), *(username.lower() for _, username in self.linked)}

    @property
    def ids(self) -> set[str]:
        return {self.id, *(one for one, _ in self.linked)}


@dataclass(frozen=True)
class Flow:
    """A sign-in that has begun: where the person goes, and what names the flow when he comes back with a code."""

    id: str
    url: str


def service() -> str:
    """Where Globus Auth is."""
    return get_service_url("auth").rstrip("/")


def identity_of(claims: Mapping[str, Any]) -> Identity:
    """Out of the claims of an id token or of userinfo."""
    known = claims.get("identity_set") or ()
    linked = tuple((str(one["sub"]), str(one["username"])) for one in known if one.get("sub") != claims["sub"] and one.get("username"))
    return Identity(str(claims["sub"]), str(claims.get("preferred_username") or claims["sub"]), str(claims.get("name") or ""), linked)


def begin(home: Path, *, applications: bool = False) -> Flow:
    """Begin a sign-in by code. ``applications``: it shall also be allowed to register applications (``cafe globus client``).

    Raises:
        CafeError: CAFE-194 where no public application is set up.
    """
    flow = secrets.token_urlsafe(18) + ("-a" if applications else "-g")
    return Flow(flow, address(home, flow))


def address(home: Path, flow: str) -> str:
    """Where the person goes in a sign-in that has begun."""
    return _native(home, flow).oauth2_get_authorize_url()


def finish(home: Path, flow: str, code: str, *, of: str = "", admit: Callable[[Identity], object] | None = None) -> Identity:
    """The person came back with a code: his tokens go into the vault.

    Args:
        of: the identity that must be among his, where it is known who sits there.
        admit: raises CafeError for somebody who may not come in; nothing of him is kept then.

    Raises:
        CafeError: CAFE-193 for a code that Globus does not accept, or of somebody else; 196 when it cannot be reached; 194.
    """
    app = _native(home, flow)
    tokens = _exchanged(app, code)
    with told(), _auth(globus_sdk.AccessTokenAuthorizer(tokens[AuthScopes.resource_server]["access_token"])) as client:
        claims = client.userinfo().data
    identity = identity_of(claims)
    try:
        if of and of not in identity.ids:
            raise CafeError("CAFE-193", f"This code is of {identity.username}, who is not the one signed in here.", "Sign out first.")
        if admit:
            admit(identity)
    except CafeError:
        _revoke(home, tokens)
        raise
    kept = {key: claims.get(key) for key in ("sub", "preferred_username", "name", "identity_set")}
    Vault(home).put(_slot(of or identity.id), {"claims": kept, "tokens": tokens})
    return identity


def signed_in(home: Path, identity: str) -> Identity | None:
    """Who this is, where his tokens are here."""
    kept = Vault(home).get(_slot(identity)) if identity else None
    return identity_of(kept["claims"]) if kept else None


def sign_out(home: Path, identity: str) -> bool:
    """Drop his tokens here, and ask Globus to forget them. False: it could not be asked; here they are gone all the same."""
    vault = Vault(home)
    kept = vault.get(_slot(identity)) or {"tokens": {}}
    vault.drop(_slot(identity))
    if globus_settings.read(home).account == identity:
        globus_settings.remember_account(home, "")
    return _revoke(home, kept["tokens"])


def may(home: Path, identity: str, scope: Any) -> bool:
    """Whether his tokens here cover this scope; it asks nobody."""
    kept = Vault(home).get(_slot(identity)) if identity else None
    return any(str(scope) in str(token.get("scope", "")).split() for token in (kept or {}).get("tokens", {}).values())


@contextmanager
def auth(home: Path, who: str) -> Iterator[globus_sdk.AuthClient]:
    """Globus Auth in the name of ``who``: an identity id, or SERVER. Raises CafeError CAFE-194, 195, 196, also for what is done within."""
    with told(), _auth(_authorizer(home, who, AuthScopes.resource_server, AuthScopes.view_identities)) as client:
        yield client


@contextmanager
def groups(home: Path, who: str) -> Iterator[globus_sdk.GroupsClient]:
    """Globus Groups in the name of ``who``. Raises as ``auth`` does."""
    with (
        told(),
        globus_sdk.GroupsClient(authorizer=_authorizer(home, who, GroupsScopes.resource_server, GroupsScopes.all), **_patience()) as client,
    ):
        yield client


def check_secret(application: str, secret: str) -> None:
    """Whether the secret is the application's. Raises CafeError CAFE-199 when Globus says no, 196 when it cannot be asked."""
    try:
        with told(), globus_sdk.ConfidentialAppAuthClient(application, secret, **_patience()) as app:
            app.oauth2_client_credentials_tokens(requested_scopes=[AuthScopes.view_identities])
    except CafeError as error:
        if error.code == "CAFE-195":
            raise CafeError(
                "CAFE-199", "Globus does not accept this secret for this application.", "Copy id and secret again; a secret is shown once."
            ) from None
        raise


@contextmanager
def told() -> Iterator[None]:
    """What Globus or the network refuses, in our words: codes and statuses, never a token, an address or a body."""
    try:
        yield
    except globus_sdk.NetworkError as error:
        raise _away(type(error).__name__) from None
    except (KeyError, TypeError, ValueError):  # a login page of a network in between, say
        raise _away("the answer is not one of Globus") from None
    except globus_sdk.GlobusAPIError as error:
        if error.http_status >= 500 or error.http_status == 429:
            raise _away(f"HTTP {error.http_status}") from None
        raise CafeError(
            "CAFE-195",
            f"Globus says no (HTTP {error.http_status}, {_word(error.code)}).",
            "Sign in again; if it stays so, the account lacks the right (it is no manager of the group, say).",
        ) from None


def _away(why: str) -> CafeError:
    return CafeError(
        "CAFE-196", f"Globus cannot be reached or cannot answer ({why}).", "Look at the network and status.globus.org; try again."
    )


def _word(code: object) -> str:
    """An error's code as the service gives it, if it is a word."""
    text = str(code or "")
    return text if text.replace("_", "").replace(".", "").isalnum() and len(text) < 60 else "no code"


def _native(home: Path, flow: str) -> globus_sdk.NativeAppAuthClient:
    """The public application, its flow begun. The PKCE verifier follows from the flow's name and this home's key: nothing is kept."""
    public = globus_settings.read(home).public
    if not public:
        raise CafeError("CAFE-194", "No Globus application is set up to sign in with by code.", _NOT_SET_UP)
    app = globus_sdk.NativeAppAuthClient(public, **_patience())
    if flow:
        proof = hmac.digest(vault_key(home), b"globus sign-in " + flow.encode(), "sha256")
        scopes = (*_MANAGE_SCOPES, AuthScopes.manage_projects) if flow.endswith("-a") else _MANAGE_SCOPES
        app.oauth2_start_flow(
            list(scopes),
            verifier=base64.urlsafe_b64encode(proof).decode().rstrip("="),
            refresh_tokens=True,
            prefill_named_grant=f"Café au Lait on {socket.gethostname()}",
        )
    return app


def _exchanged(app: globus_sdk.NativeAppAuthClient, code: str) -> dict[str, dict[str, Any]]:
    """The tokens for a code, by service."""
    try:
        with told():
            answer = app.oauth2_exchange_code_for_tokens(code.strip())
    except CafeError as error:
        if error.code != "CAFE-195":
            raise
        raise CafeError(
            "CAFE-193", "Globus does not accept this code.", "Begin the sign-in again: a code works once, and for ten minutes."
        ) from None
    return {name: dict(token) for name, token in answer.by_resource_server.items()}


def _revoke(home: Path, tokens: Mapping[str, Mapping[str, Any]]) -> bool:
    """Ask Globus to forget tokens; False at the first that it does not answer for."""
    words = [word for token in tokens.values() for word in (token.get("refresh_token"), token.get("access_token")) if word]
    try:
        for word in words:
            with told(), _native(home, "") as app:
                app.oauth2_revoke_token(word)
    except CafeError:
        return False
    return True


def _auth(authorizer: globus_sdk.authorizers.GlobusAuthorizer) -> globus_sdk.AuthClient:
    return globus_sdk.AuthClient(authorizer=authorizer, **_patience())


def _authorizer(home: Path, who: str, service: str, scope: Any) -> globus_sdk.authorizers.GlobusAuthorizer:
    return _server_authorizer(home, scope) if who == SERVER else _person_authorizer(home, who, service)


def _server_authorizer(home: Path, scope: Any) -> globus_sdk.authorizers.GlobusAuthorizer:
    application = globus_settings.read(home).confidential
    kept = Vault(home).get(application_secret(application)) if application else None
    if kept is None:
        raise CafeError("CAFE-194", "This server has no Globus application with a secret.", _NOT_SET_UP)
    app = globus_sdk.ConfidentialAppAuthClient(application, kept["client_secret"], **_patience())
    return globus_sdk.ClientCredentialsAuthorizer(app, scopes=[scope])


def _person_authorizer(home: Path, who: str, service: str) -> globus_sdk.authorizers.GlobusAuthorizer:
    """Renews itself; what was renewed goes into the vault."""
    vault = Vault(home)
    kept = vault.get(_slot(who))
    if kept is None or service not in kept["tokens"]:
        raise CafeError(
            "CAFE-195", "Nobody is signed in with Globus for this.", "Sign in: `cafe globus login`, or *Settings* in the console."
        )
    token = kept["tokens"][service]

    def keep(answer: globus_sdk.OAuthTokenResponse) -> None:
        renewed = dict(answer.by_resource_server[service])
        with suppress(TypeError, KeyError):  # somebody signed out meanwhile: nothing is kept
            now = vault.get(_slot(who))
            now["tokens"][service] |= {key: value for key, value in renewed.items() if value}  # type: ignore[index]
            vault.put(_slot(who), now)  # type: ignore[arg-type]

    return globus_sdk.RefreshTokenAuthorizer(
        token["refresh_token"],
        _native(home, ""),
        access_token=token["access_token"],
        expires_at=int(token["expires_at_seconds"]),
        on_refresh=keep,
    )


def _slot(identity: str) -> str:
    return f"globus-user.{identity}"


def _patience() -> dict[str, Any]:
    """A page or a round waits for an answer: ten seconds, and one more attempt."""
    seconds = float(os.environ.get("GLOBUS_SDK_HTTP_TIMEOUT") or _TIMEOUT_S)
    return {"transport": RequestsTransport(http_timeout=min(seconds, _TIMEOUT_S)), "retry_config": RetryConfig(max_retries=1, max_sleep=2)}
