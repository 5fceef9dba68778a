"""What the browser may fetch: bundles, data files, statement and log of a run, a site's kit, each streamed from disk; and the ledger.

Knows addresses, names for people, and who may ask. A run's id, a kit's serial, a round and an attempt are looked up in the store;
nothing of an address ever becomes a path. To extend: write a function (store, id, query) -> Served and name it in ``_TABLE`` (of a
run), ``_KITS`` (of a kit), or in ``_HOUSE`` where it is of neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import streamlit as st
from cafe_kit.errors import CafeError
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipeline import bundles, catalogue, enrolling, handover, ledger_book, ledger_export, statement
from server_store.errors import StoreError
from server_store.site_kits import SiteKits
from server_store.store import Store

Query = Mapping[str, str]

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_PAGE_POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"}
_STATUS = {"CAFE-147": 404, "CAFE-655": 404, "CAFE-660": 404, "CAFE-687": 409, "CAFE-696": 409, "CAFE-652": 507}
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d{1,5})?")
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Served:
    """One answer: a file or a text that is saved under ``name``, or a page that is shown. ``after``: called when a file was sent whole."""

    name: str
    path: Path | None = None
    page: str = ""
    text: str = ""
    media_type: str = "application/octet-stream"
    after: Callable[[], None] | None = None


def url(run_id: str, what: str, **query: int | None) -> str:
    """The address of a download, relative to any page of the console, so that it holds under a base path too."""
    asked = urlencode({key: value for key, value in query.items() if value is not None})
    return f"files/runs/{quote(run_id, safe='')}/{what}" + (f"?{asked}" if asked else "")


def kit_url(serial: str, what: str) -> str:
    """The address of a kit's zip, or of the answer to its site."""
    return f"files/kits/{quote(serial, safe='')}/{what}"


def house_url(what: str, **query: str | None) -> str:
    """The address of what is of no single run: the ledger's export, a site's statement."""
    asked = urlencode({key: value for key, value in query.items() if value})
    return f"files/{what}" + (f"?{asked}" if asked else "")


def routes(base_path: str | None = None) -> list[Route]:
    """For ``st.App(routes=...)``; ``base_path`` is the server's own (``server.baseUrlPath``) when left out."""
    base = (st.get_option("server.baseUrlPath") if base_path is None else base_path) or ""
    before = f"/{base.strip('/')}" if base.strip("/") else ""
    served = {f"runs/{{id}}/{what}": serve for what, serve in _TABLE.items()}
    served |= {f"kits/{{id}}/{what}": serve for what, serve in _KITS.items()} | _HOUSE
    return [Route(f"{before}/files/{what}", _endpoint(serve), methods=["GET"]) for what, serve in served.items()]


def _adapter(store: Store, run: str, query: Query) -> Served:
    path = bundles.adapter(store, run, _number(query, "round"))
    return Served(path.name, path, media_type="application/zip")


def _dataset(store: Store, run: str, query: Query) -> Served:
    path = bundles.dataset(store, run, _number(query, "attempt"))
    return Served(path.name, path, media_type="application/zip")


def _parquet(store: Store, run: str, query: Query) -> Served:
    return _table(store, run, query, "parquet", "application/vnd.apache.parquet")


def _jsonl(store: Store, run: str, query: Query) -> Served:
    return _table(store, run, query, "jsonl", "application/jsonl")


def _table(store: Store, run: str, query: Query, suffix: str, media_type: str) -> Served:
    found = catalogue.of(store, run).dataset(_number(query, "attempt"))
    return Served(f"{run}-synthetic-{found.attempt}.{suffix}", found.folder / f"train.{suffix}", media_type=media_type)


def _export(store: Store, run: str, query: Query) -> Served:
    path = bundles.export(store, run)
    return Served(path.name, path, media_type="application/zip")


def _statement(store: Store, run: str, query: Query) -> Served:
    store.run(run)
    return Served(f"{run}-statement.html", page=statement.html(run))


def _log(store: Store, run: str, query: Query) -> Served:
    return Served(f"{run}.log", Path(store.run(run).folder) / "log" / "worker.log", media_type="text/plain; charset=utf-8")


def _site_statement(store: Store, run: str, query: Query) -> Served:
    site = query.get("site", "")
    return Served(f"{site}-statement.html", page=statement.site_html(query.get("federation", ""), site))


def _ledger_csv(store: Store, run: str, query: Query) -> Served:
    text = ledger_export.to_csv(ledger_book.read(store), run=query.get("run"), site=query.get("site"))
    return Served("ledger.csv", text=text, media_type="text/csv; charset=utf-8")


def _ledger_json(store: Store, run: str, query: Query) -> Served:
    text = ledger_export.to_json(ledger_book.read(store), run=query.get("run"))
    return Served("ledger.json", text=text, media_type="application/json")


def _kit(store: SiteKits, serial: str, query: Query) -> Served:
    path = handover.zip_of(store.kit(serial))
    return Served(path.name, path, media_type="application/zip", after=lambda: _count(serial))


def _count(serial: str) -> None:
    with closing(enrolling.store()) as store:
        store.count_download(serial)


def _answer(store: SiteKits, serial: str, query: Query) -> Served:
    path = handover.answer_of(store.kit(serial))
    return Served(path.name, path, media_type="application/json")


Serve = Callable[[SiteKits, str, Query], Served]
_TABLE: dict[str, Serve] = {
    "adapter.zip": _adapter,
    "dataset.zip": _dataset,
    "dataset.parquet": _parquet,
    "dataset.jsonl": _jsonl,
    "export.zip": _export,
    "statement.html": _statement,
    "log": _log,
}
_KITS: dict[str, Serve] = {"kit.zip": _kit, "answer.json": _answer}
_HOUSE: dict[str, Serve] = {
    "site-statement.html": _site_statement,
    "ledger.csv": _ledger_csv,
    "ledger.json": _ledger_json,
}


def _endpoint(serve: Serve) -> Callable[[Request], Response]:
    """A handler that Starlette calls in a thread of its own: what takes long does not stop the pages."""

    def handler(request: Request) -> Response:
        if not _welcome(request):
            return _plainly("This address is not one of the console's own; set server.allowedHosts to allow it.", 403)
        try:
            with closing(enrolling.store()) as store:
                return _response(serve(store, request.path_params.get("id", ""), request.query_params), request.method)
        except (CafeError, StoreError) as error:
            return _plainly(str(error), _STATUS.get(error.code, 500))

    return handler


def _response(served: Served, method: str) -> Response:
    if served.text:
        return Response(served.text, media_type=served.media_type, headers=_HEADERS | _saved_as(served.name))
    if served.path is None:
        return HTMLResponse(served.page, headers=_HEADERS | _PAGE_POLICY)
    if not served.path.is_file():
        raise CafeError("CAFE-660", f"There is no file {served.name} (yet).", "It may come later, or was removed by hand.")
    after = BackgroundTask(served.after) if served.after and method == "GET" else None
    return FileResponse(served.path, filename=served.name, media_type=served.media_type, headers=_HEADERS, background=after)


def _saved_as(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _plainly(sentence: str, status: int) -> Response:
    return PlainTextResponse(sentence + "\n", status, headers=_HEADERS)


def _number(query: Query, key: str) -> int | None:
    """A whole number of the address; None when it is not there."""
    text = query.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise CafeError("CAFE-660", f"There is no {key} called {text[:40]!r}.", f"{key.capitalize()}s are whole numbers.")
    return int(text)


def _welcome(request: Request) -> bool:
    """Only under the console's own names (a rebound DNS name is none), and not as a part of a foreign page."""
    foreign = request.headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
    if foreign and request.headers.get("sec-fetch-mode") != "navigate":
        return False
    host = _host_name(request.headers.get("host", ""))
    configured = {name.lower().rstrip(".") for name in st.get_option("server.allowedHosts") or []}
    if configured:
        return "*" in configured or host in configured or any(one.startswith("*.") and host.endswith(one[1:]) for one in configured)
    own = {st.get_option("server.address"), st.get_option("browser.serverAddress")} - {None, "", "0.0.0.0", "::"}
    return host in _LOOPBACK | {str(one).lower() for one in own}


def _host_name(header: str) -> str:
    """The name in a Host header, without its port; empty when it is not one."""
    found = _HOST.fullmatch(header.strip().lower())
    return found["name"].strip("[]").rstrip(".") if found else ""
