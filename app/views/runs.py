"""*Runs*: every run that was, as a table; one of them in full, or two side by side.

Draws what ``pipeline.history`` says. Which run, and which other it is compared with: ``?run=`` and ``?with=`` in the address;
``?tab=`` which side of it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd
import streamlit as st
from cafe_kit.errors import CafeError

from app import downloads, frame, run_view, widgets
from pipeline import history, launch, overview
from pipeline.history import Line
from server_store.desk import Desk
from server_store.errors import StoreError
from server_store.rows import Run

_EXPLAINED = """A *run* is one journey from the sites' votes to an adapter: stage 1 makes a synthetic set, stage 2 trains in rounds.

Select one run to see all of it, or two to compare them. **ε** is the highest that a site spent in the run; a stage without noise has
*no formal guarantee*. A run can be deleted; what it spent stays in the privacy ledger."""
_TABS = ("Overview", "Charts", "Sites", "Log", "Config as run", "Files")
_LEVELS = ("info", "warning", "error")


def main() -> None:
    widgets.heading("Runs", _EXPLAINED)
    wanted, other = st.query_params.get("run"), st.query_params.get("with")
    with frame.desk() as store:
        known = [run.id for run in store.runs()]
        every = frame.pace(store)
        if not known and not wanted:
            _nothing()
            return
        if known:
            st.fragment(_table, run_every=every)()
        if any(one and one not in known for one in (wanted, other)):
            _unknown()
        elif wanted and other and wanted != other:
            with widgets.guard("compare"):
                _compare(store, wanted, other)
        elif wanted:
            _one(store, store.run(wanted))


# --- the list --------------------------------------------------------------------------------------------------------


def _table() -> None:
    """Drawn again while a run goes on; a choice is written into the address, and the page follows."""
    if st.session_state.pop("runs-chosen", False):
        st.rerun()
    with widgets.guard("runs"), frame.desk() as store:
        lines = history.lines(store)
        ids = [line.run.id for line in lines]
        key = f"runs-table {len(ids)} {ids[0]} {_follow_address()}"
        shown = [ids.index(one) for one in (st.query_params.get("run"), st.query_params.get("with")) if one in ids]
        st.dataframe(
            pd.DataFrame([_row(line) for line in lines]),
            hide_index=True,
            key=key,
            on_select=lambda: _choose(key, ids),
            selection_mode="multi-row",
            selection_default={"selection": {"rows": shown, "columns": [], "cells": []}},
            column_config={
                "What it does": st.column_config.TextColumn(width="medium"),
                "Took": st.column_config.TextColumn(width=90),
                "Privacy spent": st.column_config.TextColumn(width=235, help="The highest of a site, at the run's own δ"),
            },
            alt="All runs, the newest first",
        )
    st.caption("Select a run to see all of it; select two to compare them.")


def _row(line: Line) -> dict[str, str]:
    return {
        "State": line.state,
        "Federation": line.run.name,
        "What it does": line.sentence,
        "Started": widgets.when(line.run.started or line.run.created),
        "Took": widgets.span(line.took),
        "Privacy spent": line.spent,
        "Last score": f"{widgets.score(line.score.value, line.metric)} (n = {line.score.n})" if line.score else "–",
        "Started by": line.run.operator or "–",
        "Run": line.run.id,
    }


def _follow_address() -> int:
    """A number that goes up when the address was changed elsewhere (a closed comparison, the browser's back): marks are set anew then."""
    now = (st.query_params.get("run"), st.query_params.get("with"))
    if st.session_state.get("runs-picked", now) != now:
        st.session_state["runs-version"] = st.session_state.get("runs-version", 0) + 1
    st.session_state["runs-picked"] = now
    return int(st.session_state.get("runs-version", 0))


def _choose(key: str, ids: Sequence[str]) -> None:
    rows = [ids[row] for row in st.session_state[key]["selection"]["rows"] if row < len(ids)]
    picked = (rows[0] if rows else None, rows[1] if len(rows) > 1 else None)
    for name, value in zip(("run", "with"), picked, strict=True):
        if value is None:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = value
    st.session_state["runs-picked"] = picked if len(rows) <= 2 else ()  # of three marks two stay
    st.session_state["runs-chosen"] = True


def _nothing() -> None:
    st.write("No run yet. A run makes synthetic text with the sites that have no GPU, then trains with all of them, in rounds.")
    st.page_link("views/home.py", label="Start at Home", icon=":material/home:")


def _unknown() -> None:
    with st.container(border=True):
        st.markdown("**No run with this id.** It was deleted, or the address is not complete.")
        if st.button("See all runs", icon=":material/history:", type="primary"):
            st.query_params.pop("run", None)
            st.query_params.pop("with", None)
            st.rerun()


# --- one run ---------------------------------------------------------------------------------------------------------


def _one(store: Desk, run: Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(widgets.plain(run.name), anchor=False, width="content")
        widgets.state_badge(run.shown_state)
        st.caption(widgets.plain(run.id))
    for tab, draw in zip(st.tabs(_TABS, key="tab", bind="query-params"), (_overview, _charts, _sites, _log, _config, _files), strict=True):
        if tab.open:
            with tab, widgets.guard(f"{run.id} {draw.__name__}"):
                draw(store, run)


def _overview(store: Desk, run: Run) -> None:
    run_view.watch(run.id, "runs", details=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link("views/privacy.py", label="What it spent", icon=":material/shield:", query_params={"run": run.id})
        st.link_button("Privacy statement", downloads.url(run.id, "statement.html"), icon=":material/description:")
        ended = not run.active or run.shown_state == "Lost contact"
        if ended and st.button("Delete run…", icon=":material/delete:"):
            _delete(run)


def _charts(store: Desk, run: Run) -> None:
    seen = overview.look(store, run.id)
    spent = history.seconds(store, run.id)
    run_view.curve(seen)
    if spent:
        st.subheader("Where the time went", anchor=False)
        table = pd.DataFrame([{"phase": phase, "seconds": round(value, 1)} for phase, value in spent.items()])
        told = ", ".join(f"{phase} {widgets.span(value)}" for phase, value in spent.items())
        x = alt.X("seconds:Q", title="seconds, over all workers of the run")
        bars = alt.Chart(table).mark_bar().encode(x, alt.Y("phase:N", sort="-x", title=None), tooltip=["phase", "seconds"])
        st.altair_chart(bars.properties(height=34 * len(table) + 40), alt=f"Seconds by phase: {told}")
        st.caption(f"{told}. Together {widgets.span(sum(spent.values()))}.")
    if not seen.scores and not spent:
        st.caption("Nothing was measured yet.")


def _sites(store: Desk, run: Run) -> None:
    found = history.site_orders(store, run.id)
    if not found:
        st.caption("No site was asked yet.")
        return
    rows = [
        {
            "Site": "all sites without a GPU" if one.by_server and one.site == "all" else one.site,
            "Who worked": "the server, on synthetic text" if one.by_server else "the site, on its own records",
            "Asked": one.asked,
            "Answered": one.answered,
            "Refused": one.refused,
            "Failed": one.failed,
            "Late": one.late,
            "Loading (s)": one.load,
            "Work (s)": one.work,
            "Clip, noise, seal (s)": one.release,
            "Last error": one.last_error or "–",
        }
        for one in found
    ]
    seconds = {name: st.column_config.NumberColumn(format="%.2f") for name in rows[0] if name.endswith("(s)")}
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=seconds, alt="What was asked of each site, and what became of it")
    st.caption("Seconds are those that the sites told with their answers. A late answer was deleted unread.")


def _log(store: Desk, run: Run) -> None:
    _events(store, run)
    st.subheader("Logs", anchor=False)
    found = history.logs(run)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox("Process", list(found), format_func=lambda one: "the run's worker" if one == "worker" else one, width=260)
        if name == "worker":
            st.link_button("Download the whole log", downloads.url(run.id, "log"), icon=":material/download:")
    st.code(run_view.tail(found[name]) or "This log is empty.", language=None, wrap_lines=True)
    st.caption("The end of the log. It holds codes, phases and what the libraries say; no records.")


def _events(store: Desk, run: Run) -> None:
    found = store.events(run.id)[::-1]
    levels = st.pills("Events", _LEVELS, selection_mode="multi", default=_LEVELS, key=f"levels {run.id}")
    rows = [
        {"Time": widgets.when(event.time), "Level": event.level, "Site": event.site or "–", "What": event.text}
        for event in found
        if event.level in levels
    ]
    if rows:
        config = {"What": st.column_config.TextColumn(width="large")}
        st.dataframe(
            pd.DataFrame(rows), hide_index=True, height=min(320, 38 + 35 * len(rows)), column_config=config, alt="Events of the run"
        )
    else:
        st.caption("No event of these levels." if found else "Nothing has happened yet.")


def _config(store: Desk, run: Run) -> None:
    st.code(history.config(run), language="yaml")
    st.caption("The settings with which this run was started, from its own file. `cafe run` reads them again.")


def _files(store: Desk, run: Run) -> None:
    found = history.files(store, run)
    if not found:
        st.caption("This run has left no file yet.")
        return
    rows = [{"File": one.name, "What": one.what, "Size": widgets.size(one.size), "sha256": one.sha256} for one in found]
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Files of the run with sizes and hashes")
    names, whats = {one.name for one in found}, " ".join(one.what for one in found)
    with st.container(horizontal=True, vertical_alignment="center"):
        if "results.json" in names:
            st.link_button("Export for reproduction", downloads.url(run.id, "export.zip"), type="primary", icon=":material/inventory_2:")
        if "adapter, round" in whats:
            st.page_link("views/adapters.py", label="Its adapters", icon=":material/extension:", query_params={"run": run.id})
        if "synthetic set" in whats:
            st.link_button("Synthetic set", downloads.url(run.id, "dataset.zip"), icon=":material/dataset:")
    st.caption("They lie on this machine in:")
    st.code(run.folder, language=None, wrap_lines=True)


@st.dialog("Delete this run?")
def _delete(run: Run) -> None:
    st.markdown(
        f"The folder of run {widgets.plain(run.id)} goes: its synthetic set, its adapters, its logs. "
        "**Its charges stay in the privacy ledger: privacy that was spent is not given back.**"
    )
    typed = st.text_input("Type the run's id to delete it", key=f"delete {run.id}", autocomplete="off")
    st.caption("The id, to copy:")
    st.code(run.id, language=None)
    if st.button("Delete", type="primary", icon=":material/delete:", disabled=typed.strip() != run.id):
        try:
            launch.clean(run.id)
        except (CafeError, StoreError) as error:
            widgets.failure_card(error, "delete", run=run)
            return
        st.query_params.pop("run", None)
        st.rerun()


# --- two runs --------------------------------------------------------------------------------------------------------


def _compare(store: Desk, first: str, second: str) -> None:
    one, other = store.run(first), store.run(second)
    st.subheader("Compare", anchor=False)
    left, right = one.id, other.id
    seen = [overview.look(store, run.id) for run in (one, other)]
    found = history.scores(seen[0].scores, seen[1].scores)
    if found:
        st.markdown("**Scores** on each run's own public test set")
        rows = [
            {
                "": place,
                **{
                    name: f"{widgets.score(score.value, about.metric)} (n = {score.n})" if score else "–"
                    for name, score, about in zip((left, right), pair, seen, strict=True)
                },
            }
            for place, *pair in found
        ]
        st.dataframe(pd.DataFrame(rows), hide_index=True, width="content", alt="Scores of both runs side by side")
    st.markdown("**Settings** in which they differ")
    changed = history.differences(one, other)
    if changed:
        rows = [{"Setting": key, left: a or "–", right: b or "–"} for key, a, b in changed]
        st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Settings in which the two runs differ")
    else:
        st.caption("None: both ran with the same settings.")
    if one.name != other.name:
        st.caption("These are runs of two federations: their scores are of different test sets and cannot be compared.")
    if st.button("Close the comparison", icon=":material/close:"):
        st.query_params.pop("with", None)
        st.rerun()


main()
