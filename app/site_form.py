"""*Add a site*: a kit for a site of another machine, or a process of this one with a data file.

Draws the choice and the second form; the first is ``kit_form``. What is checked and kept is decided in ``pipeline``.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import dialogs, kit_form, widgets
from pipeline import federations
from pipeline.federations import Federation, SiteCheck

KINDS = {"cpu": "no GPU", "gpu": "GPU"}
EARLY = "Records are counted as soon as the task is described: its labels belong on Generate."
_ELSEWHERE, _HERE = "On another machine, with a kit", "On this machine, with a data file"


@st.dialog("Add a site", width="medium", on_dismiss=dialogs.close)
def add(name: str) -> None:
    with widgets.guard("site form"):
        federation = federations.get(name)
        where = st.radio("Where is it?", [_ELSEWHERE, _HERE], horizontal=True, key="site-where")
        site = {
            "name": st.text_input("Name", key="site-name", max_chars=64, help="Letters, digits, dot, dash and underscore.").strip(),
            "kind": st.radio(
                "Kind", list(KINDS), format_func=KINDS.__getitem__, horizontal=True, key="site-kind",
                help="Whether the site can train. One without a GPU votes for texts instead.",
            ),
        }  # fmt: skip
        if where == _HERE:
            _of_this_machine(federation, site)
        else:
            kit_form.draw(federation, site["name"], "gpu" if site["kind"] == "gpu" else "cpu")


def _of_this_machine(federation: Federation, site: dict[str, Any]) -> None:
    site["data"] = st.text_input(
        "Data file on this machine", key="site-data", placeholder="/data/clinic/messages.csv",
        help="JSON lines, CSV or Parquet, or a loader (.py). It is read where it lies; nothing is copied.",
    ).strip()  # fmt: skip
    if site["data"]:
        with widgets.guard("columns"):
            site["columns"] = _columns(federation, str(site["data"]))
    whole = bool(site["name"] and site["data"])
    check, add_it = st.columns(2)
    if check.button("Check the data", key="site-check", disabled=not whole, icon=":material/fact_check:", width="stretch"):
        _tell(federations.check_site(federation, site))
    anyway = st.checkbox("Add it even if its data cannot be used yet", key="site-anyway")
    if add_it.button("Add the site", type="primary", key="site-add", disabled=not whole, icon=":material/add:", width="stretch"):
        _try_to_add(federation, site, anyway)


def _columns(federation: Federation, data: str) -> dict[str, str]:
    """Role → column where it is not the task's own name for it. Names alone are read of the file."""
    found = federations.columns(federation, data)
    task, chosen = federation.data.get("task") or {}, {}
    for role, guess in federations.guess_columns(federation, found).items():
        if found:
            options = ["", *found] if federations.is_optional(role) else found
            at = options.index(guess) if guess in options else (0 if federations.is_optional(role) else None)
            column = st.selectbox(f"Column with the {role}", options, index=at, key=f"site-column-{role}", placeholder="Choose a column")
        else:
            column = st.text_input(f"Column with the {role}", str(task.get(role) or role), key=f"site-typed-{role}")
        if column and column != (task.get(role) or role):
            chosen[role] = column
    return chosen


def _tell(check: SiteCheck) -> None:
    if check.early:
        st.info(EARLY, icon=":material/info:")
    elif check.problem:
        widgets.failure_card(check.problem, "site check")
    else:
        st.success(f"{check.records:,} records are usable.", icon=":material/check_circle:")


def _try_to_add(federation: Federation, site: dict[str, Any], anyway: bool) -> None:
    with widgets.guard("add"):
        check = federations.check_site(federation, site)
        if check.problem and not check.early and not anyway:
            _tell(check)
            return
        federations.add_site(federation.name, {key: value for key, value in site.items() if value})
        dialogs.done()
