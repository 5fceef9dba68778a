"""A site of this machine in full: its data file, how many of its records are usable, what it did; and taking a site out again.

Draws what ``pipeline.federations`` and ``pipeline.site_history`` say. Opens no data file itself.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st
from cafe_kit.errors import CafeError

from app import dialogs, frame, site_history_view, widgets
from app.site_form import EARLY, KINDS
from pipeline import federations, launch
from pipeline.federations import Federation, SiteCheck
from pipeline.site_history import History

_SMALL = 2**20  # bytes; larger files are read when asked for


def check(federation: Federation, site: dict[str, Any]) -> SiteCheck | None:
    """Small files are read at once, others when they were asked for; None: not looked at."""
    path = (federation.folder / Path(str(site.get("data", ""))).expanduser()).absolute()
    try:
        found = path.stat()
    except OSError:
        found = None
    asked = site["name"] in st.session_state.get("sites-asked", ())
    if not site.get("data") or (found is not None and found.st_size > _SMALL and not asked):
        return None
    return _checked(federation.name, json.dumps([site, federation.data.get("task")]), (found.st_size, found.st_mtime_ns) if found else ())


@lru_cache(maxsize=256)
def _checked(name: str, asked: str, fingerprint: tuple[int, ...]) -> SiteCheck:
    """Read once for each state of the file and of the settings."""
    return federations.check_site(federations.get(name), json.loads(asked)[0])


def records(check: SiteCheck | None) -> str:
    """The number, or in its place a code, as a table's cell has it."""
    if check is None or check.early:
        return "not counted"
    return f"{check.records:,}" if check.problem is None else check.problem.code


def for_checks(checks: dict[str, SiteCheck | None]) -> str:
    """What is to be said of the numbers; a button where some were not counted."""
    uncounted = [name for name, check in checks.items() if check is None]
    if uncounted and st.button(f"Count the records of {len(uncounted)} larger files", icon=":material/tag:", key="count"):
        st.session_state["sites-asked"] = list(checks)
        st.rerun()
    if any(check and check.early for check in checks.values()):
        return f" {EARLY}"
    problems = any(check and check.problem for check in checks.values())
    return " A code in place of a number: select the row to see why its data cannot be used." if problems else ""


def detail(site: dict[str, Any], history: History, check: SiteCheck | None, *, demo: bool) -> None:
    """``demo``: it joins by itself."""
    name = str(site["name"])
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(widgets.plain(name), anchor=False, width="content")
        st.badge(KINDS.get(str(site.get("kind")), "?"), icon=":material/memory:", color="gray")
        if st.button("Remove…", icon=":material/delete:", type="tertiary", key="remove-site"):
            dialogs.ask("remove", name)
    if check and check.problem and not check.early:
        widgets.failure_card(check.problem, f"data {name}", site=name)
    if site.get("data"):
        st.caption("Data file")
        st.code(str(site["data"]), language=None, wrap_lines=True)
    elif demo:
        st.info("This pretend clinic joins by itself, as every site does, when the demo starts.", icon=":material/science:")
    else:
        st.info("This site is of another machine, but it has no kit here. Make one, or remove the site.", icon=":material/inventory_2:")
    site_history_view.tabs(history)


@st.dialog("Remove a site", on_dismiss=dialogs.close)
def remove(site: str) -> None:
    """Out of the federation's settings, after its name was typed."""
    st.markdown("The site leaves the federation's settings. Its data file, its own ledger and what it has spent stay as they are.")
    st.code(site, language=None, wrap_lines=True)
    typed = st.text_input("Type its name to remove it", key="remove-name")
    if st.button("Remove", key="remove-yes", disabled=typed.strip() != site, icon=":material/delete:"):
        with widgets.guard("remove"):
            federation = frame.federation()
            run = launch.store().active_run(federation.name) if federation else None
            if run:
                raise CafeError("CAFE-658", f"Run {run.id} is {run.shown_state.lower()}.", "Stop it first, or wait for its end.")
            if federation:
                federations.remove_site(federation.name, site)
            st.query_params.pop("site", None)
            dialogs.done()
