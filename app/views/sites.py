"""*Sites*: who takes part, with which data file, and what each site did, sent and spent.

Draws what ``pipeline.federations`` and ``pipeline.site_history`` say. Which site: ``?site=`` in the address.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st
from cafe_kit.errors import CafeError

from app import frame, widgets
from pipeline import accounting, federations, launch, overview, site_history
from pipeline.federations import Federation, SiteCheck
from pipeline.overview import SiteNow
from pipeline.site_history import History
from server_store.desk import Desk

WHAT = """
A *site* takes part with its own records, which stay in its own data file.

- **No GPU**: it votes in stage 1 for invented texts that are near to its records. The server trains on its behalf.
- **GPU**: it trains in stage 2 on its own records and sends what the training changed.

What a site has spent of its privacy belongs to its data: it adds up over all runs, and removing a run gives nothing back.
"""
ELSEWHERE = (
    "Sites elsewhere join with a kit; that comes with a later release. Until then every site is a process of this machine, "
    "with a data file that this machine can read."
)
EARLY = "Records are counted as soon as the task is described: its labels belong on Generate."
KINDS = {"cpu": "no GPU", "gpu": "GPU"}
_SMALL = 2**20  # bytes; larger files are read when asked for
_ORDERS = 100
_DID = {"vote": "voted", "train": "trained", "hello": "read its data"}


def main() -> None:
    widgets.heading("Sites", WHAT)
    federation = frame.federation()
    with widgets.guard("sites"), frame.desk() as store:
        if federation is None:
            st.write("There is no federation yet, so there are no sites.")
            st.page_link("views/home.py", label="Start at Home", icon=":material/home:")
            return
        _page(store, federation)


def _page(store: Desk, federation: Federation) -> None:
    sites = list(federation.data.get("sites") or [])
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(widgets.plain(federation.name), anchor=False, width="content")
        if st.button("Add a site", icon=":material/add:", key="add-site", type="secondary" if sites else "primary"):
            _add(federation.name)
        if sites:
            st.page_link("views/generate.py", label="Plan and start a run", icon=":material/auto_awesome:")
    if not sites:
        st.write("No sites yet. Add the first one: a name, whether it has a GPU, and its data file.")
    else:
        every = frame.pace(store)
        st.fragment(_live, run_every=every)(federation.name, every)
    st.caption(ELSEWHERE)


def _live(name: str, every: float) -> None:
    with widgets.guard("sites list"), frame.desk() as store:
        if frame.pace(store) != every:
            st.rerun()  # a run began or ended: look more or less often
        federation = federations.get(name)
        if sites := list(federation.data.get("sites") or []):
            _listed(store, federation, sites)


def _listed(store: Desk, federation: Federation, sites: list[dict[str, Any]]) -> None:
    histories, now = site_history.of(store, federation), _doing_now(store, federation)
    checks = {str(site["name"]): _check(federation, site) for site in sites}
    rows = [_row(federation, site, histories[str(site["name"])], now, checks[str(site["name"])]) for site in sites]
    names = [str(site["name"]) for site in sites]

    def choose() -> None:
        picked = st.session_state["sites-list"]["selection"]["rows"]
        if picked:
            st.query_params["site"] = names[picked[0]]
        else:
            st.query_params.pop("site", None)

    st.dataframe(
        rows,
        hide_index=True,
        key="sites-list",
        on_select=choose,
        selection_mode="single-row",
        alt="The sites of the federation",
    )
    st.caption("Select a row to see what that site did, sent and spent." + _for_checks(federation, checks))
    wanted = st.query_params.get("site")
    if wanted and wanted not in names:
        st.info(f"There is no site {widgets.plain(wanted)} in this federation.", icon=":material/info:")
    elif wanted:
        _detail(store, federation, sites[names.index(wanted)], histories[wanted], checks[wanted])


def _row(
    federation: Federation, site: dict[str, Any], history: History, now: dict[str, SiteNow], check: SiteCheck | None
) -> dict[str, object]:
    name = str(site["name"])
    limit = history.limit
    return {
        "Site": name,
        "Kind": KINDS.get(str(site.get("kind")), str(site.get("kind"))),
        "State": _state(now.get(name), history),
        "Last answer": widgets.when(history.last.ended or history.last.sent) if history.last else "",
        "Records usable": _records(check),
        "Privacy spent": history.spent,
        "Its own limit": f"ε {limit[0]:g} at δ {accounting.shown(limit[1])}" if limit else "none set",
        "Data file": Path(str(site.get("data", ""))).name,
    }


def _state(now: SiteNow | None, history: History) -> str:
    """What it does now, else what it did last."""
    if now is not None and now.open:
        return f"{'waits for its turn' if now.doing == 'asked' else now.doing}" + (f", {now.done} of {now.of}" if now.of else "")
    last = history.last
    if last is None:
        return "not asked yet"
    where = f"stage {last.stage}, {'vote' if last.stage == 1 else 'round'} {last.round}"
    did = _DID.get(last.kind, last.kind) if last.state == "answered" else f"{last.state} {last.code}".strip()
    return f"{did} ({where})"


def _doing_now(store: Desk, federation: Federation) -> dict[str, SiteNow]:
    run = store.active_run(federation.name)
    return {site.name: site for site in overview.look(store, run.id).sites if not site.by_server} if run else {}


# -- usable records ----------------------------------------------------------------------------------------------------


def _check(federation: Federation, site: dict[str, Any]) -> SiteCheck | None:
    """Small files are read at once, others when they were asked for; None: not looked at."""
    path = (federation.folder / Path(str(site.get("data", ""))).expanduser()).absolute()
    try:
        found = path.stat()
    except OSError:
        found = None
    asked = site["name"] in st.session_state.get("sites-asked", ())
    if found is not None and found.st_size > _SMALL and not asked:
        return None
    return _checked(federation.name, json.dumps([site, federation.data.get("task")]), (found.st_size, found.st_mtime_ns) if found else ())


@lru_cache(maxsize=256)
def _checked(name: str, asked: str, fingerprint: tuple[int, ...]) -> SiteCheck:
    """Read once for each state of the file and of the settings."""
    return federations.check_site(federations.get(name), json.loads(asked)[0])


def _records(check: SiteCheck | None) -> str:
    if check is None or check.early:
        return "not counted"
    return f"{check.records:,}" if check.problem is None else check.problem.code


def _for_checks(federation: Federation, checks: dict[str, SiteCheck | None]) -> str:
    uncounted = [name for name, check in checks.items() if check is None]
    if uncounted and st.button(f"Count the records of {len(uncounted)} larger files", icon=":material/tag:", key="count"):
        st.session_state["sites-asked"] = list(checks)
        st.rerun()
    if any(check and check.early for check in checks.values()):
        return f" {EARLY}"
    problems = any(check and check.problem for check in checks.values())
    return " A code in place of a number: select the row to see why its data cannot be used." if problems else ""


# -- one site ----------------------------------------------------------------------------------------------------------


def _detail(store: Desk, federation: Federation, site: dict[str, Any], history: History, check: SiteCheck | None) -> None:
    name = str(site["name"])
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(widgets.plain(name), anchor=False, width="content")
        st.badge(KINDS.get(str(site.get("kind")), "?"), icon=":material/memory:", color="gray")
        if st.button("Remove…", icon=":material/delete:", type="tertiary", key="remove-site"):
            _remove(federation.name, name)
    if check and check.problem and not check.early:
        widgets.failure_card(check.problem, f"data {name}", site=name)
    st.caption("Data file")
    st.code(str(site.get("data", "")), language=None, wrap_lines=True)
    _counts(history)
    if error := history.last_error:
        st.caption(f"Last error, {widgets.when(error.ended or error.sent)}")
        widgets.failure_card({"code": error.code, "message": error.sentence, "hint": ""}, f"last {name}", site=name)
    did, sent, spent = st.tabs(["What it was asked", "What it sent", "What it spent"])
    with did:
        _orders(history)
    with sent:
        _sent(history)
    with spent:
        _charges(history)


def _counts(history: History) -> None:
    states = history.states
    with st.container(horizontal=True):
        for label, state in (("Answered", "answered"), ("Refused", "refused"), ("Failed", "failed"), ("Late", "late")):
            st.metric(label, states[state], border=True, width=120)
        st.metric("Time at work", widgets.span(history.seconds), border=True, width=180)
        st.metric("Sent", widgets.size(sum(history.sizes.values())), border=True, width=150)


def _orders(history: History) -> None:
    if not history.orders:
        st.caption("It was not asked for anything yet.")
        return
    rows = [
        {
            "When": widgets.when(order.sent),
            "Run": run,
            "Asked to": order.kind,
            "Round": order.round,
            "Attempt": order.attempt,
            "State": order.state,
            "Took": widgets.span(order.ended - order.sent) if order.ended else "",
            "Why": f"{order.code} {order.sentence}".strip(),
        }
        for run, order in history.orders[:_ORDERS]
    ]
    st.dataframe(rows, hide_index=True, alt="Orders to this site, the newest first")


def _sent(history: History) -> None:
    if not history.sizes:
        st.caption("It has sent nothing yet.")
        return
    kinds = {order.order_hash: order.kind for _, order in history.orders}
    rows = []
    for kind in sorted({kinds.get(hash, "of deleted runs") for hash in history.sizes}):
        own = [size for hash, size in history.sizes.items() if kinds.get(hash, "of deleted runs") == kind]
        rows.append({"Answers": {"vote": "counted votes", "train": "updates of the adapter"}.get(kind, kind), "Number": len(own),
                     "Bytes": widgets.size(sum(own))})  # fmt: skip
    st.dataframe(rows, hide_index=True, alt="What this site has sent, by kind")
    st.caption("By the site's own outbox, which keeps every answer as it was sent. No record is ever part of one.")


def _charges(history: History) -> None:
    st.markdown(f"**{history.spent}**" + (" over all runs of this federation." if history.charges else " so far."))
    if not history.charges:
        return
    rows = [
        {
            "Run": charge.run,
            "Stage": charge.stage,
            "Round": charge.round,
            "Attempt": charge.attempt,
            "For": charge.statistic,
            "Noise": "none: no formal guarantee" if charge.mu2 is None else f"{float(charge.mu2) ** -0.5:.3g} × clip",
        }
        for charge in reversed(history.charges)
    ]
    st.dataframe(rows, hide_index=True, alt="Charges of this site in the privacy ledger, the newest first")
    st.page_link("views/privacy.py", label="Privacy ledger", icon=":material/shield:")


# -- add and remove ----------------------------------------------------------------------------------------------------


@st.dialog("Add a site", width="large")
def _add(name: str) -> None:
    federation = federations.get(name)
    site: dict[str, Any] = {
        "name": st.text_input("Name", key="site-name", max_chars=64, help="Letters, digits, dot, dash and underscore.").strip(),
        "kind": st.radio("Kind", list(KINDS), format_func=KINDS.__getitem__, horizontal=True, key="site-kind",
                         help="Whether the site can train. One without a GPU votes for texts instead."),
        "data": st.text_input("Data file on this machine", key="site-data", placeholder="/data/clinic/messages.csv",
                              help="JSON lines, CSV or Parquet, or a loader (.py). It is read where it lies; nothing is copied.").strip(),
    }  # fmt: skip
    if site["data"]:
        with widgets.guard("columns"):
            site["columns"] = _columns(federation, str(site["data"]))
    whole = bool(site["name"] and site["data"])
    check, add = st.columns(2)
    if check.button("Check the data", key="site-check", disabled=not whole, icon=":material/fact_check:", width="stretch"):
        _tell(federations.check_site(federation, site))
    anyway = st.checkbox("Add it even if its data cannot be used yet", key="site-anyway")
    if add.button("Add the site", type="primary", key="site-add", disabled=not whole, icon=":material/add:", width="stretch"):
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
        st.rerun()


@st.dialog("Remove a site")
def _remove(federation: str, site: str) -> None:
    st.markdown("The site leaves the federation's settings. Its data file, its own ledger and what it has spent stay as they are.")
    st.code(site, language=None, wrap_lines=True)
    typed = st.text_input("Type its name to remove it", key="remove-name")
    if st.button("Remove", key="remove-yes", disabled=typed.strip() != site, icon=":material/delete:"):
        with widgets.guard("remove"):
            run = launch.store().active_run(federation)
            if run:
                raise CafeError("CAFE-658", f"Run {run.id} is {run.shown_state.lower()}.", "Stop it first, or wait for its end.")
            federations.remove_site(federation, site)
            st.query_params.pop("site", None)
            st.rerun()


main()
