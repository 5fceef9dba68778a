"""The console's server: the pages, and the files that are downloaded from beside them, all behind the gate. ``cafe serve`` runs it.

Knows how an unforeseen error is told and what is printed at the start. Holds no truth and never loads torch: it may be killed at any time.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import streamlit as st
from cafe_kit.errors import CafeError
from starlette.middleware import Middleware

from app import downloads, widgets
from app.gate import Gate
from pipeline import serving
from pipeline.home import home
from server_store.errors import StoreError


def tell(error: Exception) -> bool:
    """A card instead of a traceback; the log of the console has the rest. True: Streamlit shows nothing more."""
    known = error if isinstance(error, CafeError | StoreError) else _unforeseen(error)
    widgets.failure_card(known, f"unforeseen {known.code}")
    return True


def _unforeseen(error: Exception) -> CafeError:
    logging.getLogger(__name__).error("a page ended", exc_info=error)
    return CafeError(
        "CAFE-690",
        f"This page met something unforeseen ({type(error).__name__}). Runs are not touched by it.",
        "Reload the page; if it stays so, look into the console's log.",
    )


_WARM_S = 5.0  # after the start, when the first page is drawn


def _warm() -> None:
    """Load what the first look at a privacy figure would wait for."""
    timer = threading.Timer(_WARM_S, importlib.import_module, ["dp_accounting"])
    timer.daemon = True
    timer.start()


@asynccontextmanager
async def _up(_: st.App) -> AsyncIterator[dict[str, Any] | None]:
    """The port is open when this is printed: what comes waits for a moment."""
    print(serving.greeting(), flush=True)
    yield None


def _gate() -> Middleware:
    """Also where somebody starts Streamlit without ``cafe serve``: then, too, nothing is offered to others without a sign-in."""
    address, base = str(st.get_option("server.address") or "every address"), str(st.get_option("server.baseUrlPath") or "")
    try:
        serving.check(address, base, _hosts())
    except CafeError as error:
        raise SystemExit(str(error)) from None
    return Middleware(Gate, home=home(), base=base, proxy_header=os.environ.get(serving.PROXY_HEADER, ""))


def _hosts() -> list[str]:
    return [str(name) for name in st.get_option("server.allowedHosts") or []]


_warm()
app = st.App("pages.py", routes=downloads.routes(), middleware=[_gate()], secrets=serving.secrets(), lifespan=_up, on_script_error=tell)
