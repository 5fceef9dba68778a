"""How orders will reach a site of another machine: decided with its kit, told to it with the approval, sealed to its own key.

Knows exchange folders, the places in an object store where joining leaves its two small files, and what Globus Compute needs. Does not
know kits' zips, words or decisions (``enrolling``), nor how a message travels later (``ways``).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cafe_kit import connection
from cafe_kit.connection import Connection, Folder, GlobusCompute
from cafe_kit.enrolment import answer_name, leaving_name, request_name
from cafe_kit.errors import CafeError
from cafe_kit.orders import MAX_BYTES

from pipeline.home import home
from pipeline.vault import Vault
from server_store.errors import StoreError
from server_store.site_kits import SiteKit

if TYPE_CHECKING:
    from server_store.object_store import ObjectStore

Via = Literal["folder", "globus"]
HERE = "here"  # a run serves the site itself, by a process of this machine, as for the demo


def planned(via: Via | None, exchange: Path | None, federation: str, site: str, here: Path | None = None) -> dict[str, Any]:
    """What is known of the connection when the kit is made; empty where orders cannot travel yet.

    Raises:
        CafeError: CAFE-189 for a way that lacks what it needs.
    """
    if here:
        return {"via": HERE, "home": str(here)}
    via = via or ("folder" if exchange else None)
    if via == "folder" and exchange is None:
        raise CafeError("CAFE-189", "Orders cannot travel through a folder that is not named.", "Name it: --exchange FOLDER.")
    if via == "globus" and _object_store() is None:
        raise CafeError(
            "CAFE-189",
            "A site that is reached through Globus Compute needs an object store for what is large, and none is set up.",
            "Set it up once: `cafe storage set`, then `cafe storage check`.",
        )
    if via == "globus":
        return {"via": via, "endpoint_name": f"cafe-{federation}-{site}"[:128]}
    return {"via": via} if via else {}


def address(serial: str, via: str | None, exchange: str, seconds: float) -> dict[str, str]:
    """Where the site leaves its request and finds the answer: what the join code opens. Links are good for a week at most."""
    if exchange:
        return {"exchange": exchange}
    if via != "globus":
        return {}  # two small files are handed over
    store = _object_store()
    assert store is not None
    return {
        "request_url": store.url_put(_key(request_name(serial)), None, seconds),
        "answer_url": store.url_get(_key(answer_name(serial)), seconds),
        "leave_url": store.url_put(_key(leaving_name(serial)), None, seconds),
    }


def fetch(kit: SiteKit, name: str) -> bytes | None:
    """What a site has left in the object store under this name, a little more than may be at most; None while there is nothing."""
    store = _object_store() if kit.connection.get("via") == "globus" and not kit.exchange else None
    if store is None:
        return None
    key = _key(name)
    size = store.size(key)
    return None if size is None else store.read(key, min(size, MAX_BYTES + 1))


def post_answer(kit: SiteKit, data: bytes) -> None:
    """Leave the answer where a site without an exchange folder looks for it."""
    store = _object_store() if kit.connection.get("via") == "globus" and not kit.exchange else None
    if store is not None:
        store.put(_key(answer_name(kit.serial)), data)
        with suppress(StoreError):  # it is read no more
            store.delete(_key(request_name(kit.serial)))


def forget(kit: SiteKit) -> None:
    """The site takes part no longer: its service account's secret is not kept."""
    if client := kit.connection.get("client_id"):
        Vault(home()).drop(f"globus.{client}")


def sealed(kit: SiteKit) -> dict[str, Any]:
    """The kit's connection with what the approval holds of it, sealed to the site's key; the same text at every call.

    Raises:
        CafeError: CAFE-188 when the site's confidential client is not there yet.
    """
    if "sealed" in kit.connection or not kit.connection.get("via"):
        return kit.connection
    assert kit.request is not None
    told, facts = _connection(kit)
    return {**kit.connection, **facts, "sealed": connection.seal(told, str(kit.request["seal_key"]), kit.serial)}


def _connection(kit: SiteKit) -> tuple[Connection, dict[str, Any]]:
    """What the site is told, and what of it may stand in the store: never the secret."""
    if kit.connection["via"] in ("folder", HERE):
        return Folder(), {}
    from pipeline import globus_compute

    client = str(kit.connection.get("client_id", ""))
    secret = Vault(home()).get(f"globus.{client}") if client else None
    if secret is None:
        raise CafeError(
            "CAFE-188",
            f"{kit.site!r} has no confidential client of Globus yet, so it cannot be let in.",
            f"Make one or paste one: `cafe globus client {kit.site}`; then approve.",
        )
    service: Literal["", "local"] = "local" if kit.connection.get("service") else ""
    function = globus_compute.function_id(home(), client, service)
    told = GlobusCompute(client, str(secret["client_secret"]), function, str(kit.connection["endpoint_name"]), service=service)
    return told, {"function_id": function}


def _object_store() -> ObjectStore | None:
    """The home's object store, where one is set up; its library is loaded only for that."""
    from pipeline import storage

    return storage.object_store() if storage.configured() else None


def _key(name: str) -> str:
    return f"joining/{name}"
