"""The Globus application of a site: the confidential client under which the site's endpoint runs, and orders are sent to it.

Made at Globus Auth in the operator's name, or pasted. Its secret lies in the vault; the kit names its id alone. Does not know endpoints.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError
from globus_sdk import AuthClient
from globus_sdk.scopes import AuthScopes

from pipeline import globus_login
from pipeline.globus_settings import application_secret
from pipeline.vault import Vault
from server_store.site_kits import SiteKit, SiteKits

PROJECT = "Café au Lait"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def make(home: Path, kit: SiteKit, person: str) -> str:
    """Register an application for this site in ``person``'s project at Globus, with a secret; returns its id.

    Raises:
        CafeError: CAFE-195 for a sign-in that does not cover it, 196; CAFE-199 for a site that has one.
    """
    _check_free(kit)
    if not globus_login.may(home, person, AuthScopes.manage_projects):
        raise CafeError(
            "CAFE-195",
            "The sign-in does not allow to register applications at Globus.",
            "Sign in for it: `cafe globus login --applications`; or register one yourself and paste it: --client-id.",
        )
    with globus_login.auth(home, person) as client:
        made = client.create_client(
            f"{PROJECT}: {kit.federation} {kit.site}", _project(client), client_type="client_identity", visibility="private"
        )["client"]
        secret = client.create_client_credential(made["id"], "made by the server")["credential"]["secret"]
    return _keep(home, kit, str(made["id"]), str(secret))


def take(home: Path, kit: SiteKit, application: str, secret: str) -> str:
    """Use an application that somebody registered for this site; Globus is asked whether the secret is right.

    Raises:
        CafeError: CAFE-196, 199.
    """
    _check_free(kit)
    application, secret = application.strip().lower(), secret.strip()
    if not _UUID.fullmatch(application) or not 0 < len(secret) <= 200:
        raise CafeError("CAFE-199", "An application has an id and a secret.", "app.globus.org shows both, the secret once.")
    globus_login.check_secret(application, secret)
    return _keep(home, kit, application, secret)


def drop(home: Path, kit: SiteKit) -> None:
    """Forget the application and its secret; at Globus nothing changes. Raises CafeError CAFE-199 once the site was told of it."""
    if "sealed" in kit.connection:
        raise CafeError(
            "CAFE-199", f"{kit.site!r} was approved with its Globus application.", f"Revoke the kit instead: `cafe site revoke {kit.site}`."
        )
    if found := kit.connection.get("client_id"):
        Vault(home).drop(application_secret(found))
        _connect(home, kit, {key: value for key, value in kit.connection.items() if key != "client_id"})


def _check_free(kit: SiteKit) -> None:
    if kit.connection.get("client_id"):
        raise CafeError("CAFE-199", f"{kit.site!r} has a Globus application already.", "`cafe globus client SITE --drop` forgets it.")


def _project(client: AuthClient) -> str:
    """The operator's project of this name, made where he has none."""
    found = next((one for one in client.get_projects()["projects"] if one.get("display_name") == PROJECT), None)
    if found is None:
        who: Any = client.userinfo()
        found = client.create_project(PROJECT, who.get("email") or who["preferred_username"], admin_ids=[who["sub"]])["project"]
    return str(found["id"])


def _keep(home: Path, kit: SiteKit, application: str, secret: str) -> str:
    Vault(home).put(application_secret(application), {"client_secret": secret})
    _connect(home, kit, {**kit.connection, "client_id": application})
    return application


def _connect(home: Path, kit: SiteKit, connection: dict[str, Any]) -> None:
    kits = SiteKits(home / "store.db")
    try:
        kits.connect(kit.serial, connection)
    finally:
        kits.close()
