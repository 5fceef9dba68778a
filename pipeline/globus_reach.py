"""Can this server reach Globus, and does Globus know who acts here? A short list for *Settings*; it changes nothing.

Knows which services are asked, and which of the home's applications and people act towards them. Shows no token and no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import globus_sdk
from cafe_kit.errors import CafeError
from globus_sdk.transport import RequestsTransport, RetryConfig

from pipeline import globus_login, globus_settings
from pipeline.globus_settings import application_secret
from pipeline.vault import Vault

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Reached:
    """One thing that was tried."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def look(home: Path, person: str = "") -> Iterator[Reached]:
    """Each service, the server's own application, and ``person`` (an identity id) where somebody has signed in. Never raises."""
    yield _tried("Globus Auth", _auth)
    yield _tried("Globus Compute", _compute)
    own = globus_settings.read(home).confidential
    if own:
        yield _tried("This server's application", lambda: _own(home, own))
    if person:
        yield _tried("Signed in", lambda: _person(home, person))


def _tried(name: str, act: Callable[[], str]) -> Reached:
    try:
        with globus_login.told():
            return Reached(name, True, act())
    except CafeError as error:
        return Reached(name, False, f"{error.code} {error.message}", error.hint)


def _auth() -> str:
    with globus_sdk.AuthClient(**_plain()) as client:
        client.get_openid_configuration()
    return "answers"


def _compute() -> str:
    with globus_sdk.ComputeClientV2(**_plain()) as client:
        client.get_version()
    return "answers"


def _own(home: Path, application: str) -> str:
    secret = Vault(home).get(application_secret(application)) or {}
    globus_login.check_secret(application, str(secret.get("client_secret", "")))
    return "its secret is accepted"


def _person(home: Path, person: str) -> str:
    with globus_login.auth(home, person) as client:
        found = client.userinfo()
    return f"as {found['preferred_username']}"


def _plain() -> dict[str, Any]:
    return {"transport": RequestsTransport(http_timeout=_TIMEOUT_S), "retry_config": RetryConfig(max_retries=1, max_sleep=2)}
