"""*Sites*: who takes part, on this machine and elsewhere, how a site comes in, and what each one did, sent and spent.

Draws what ``pipeline.federations``, ``pipeline.joined_sites`` and ``pipeline.site_history`` say. Which site: ``?site=`` in the address.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import streamlit as st

from app import dialogs, frame, join_request, joined_view, kit_form, local_view, people, site_form, widgets
from app.site_form import KINDS
from pipeline import (
    accounting,
    connection_check,
    enrolling,
    federations,
    joined_sites,
    ledger_comparison,
    overview,
    request_watch,
    site_history,
)
from pipeline.federations import Federation, SiteCheck
from pipeline.home import home
from pipeline.joined_sites import JoinedSite
from pipeline.ledger_comparison import Comparison
from pipeline.overview import SiteNow
from pipeline.site_history import History
from server_store.desk import Desk
from server_store.ledger import Ledger

WHAT = """
A *site* takes part with its own records, which stay in its own data file.

- **No GPU**: it votes in stage 1 for invented texts that are near to its records. The server trains on its behalf.
- **GPU**: it trains in stage 2 on its own records and sends what the training changed.

A site elsewhere joins with a *kit*: you hand over a zip, tell a code by telephone, and let the site in when its admin has read you
four words. It sets its own limits, and may refuse. A site can also be a process of this machine, with a data file that lies here.

What a site has spent of its privacy belongs to its data: it adds up over all runs, and removing a run gives nothing back.
"""
_WAITS_S = 5.0  # how often a page looks while kits are out
_DEMO = "joins when the demo starts"
_DID = {"vote": "voted", "train": "trained", "hello": "read its data", "result": "has the adapter"}


def main() -> None:
    widgets.heading("Sites", WHAT)
    federation = frame.federation()
    with widgets.guard("sites"), frame.desk() as store:
        if federation is None:
            st.write("There is no federation yet, so there are no sites.")
            st.page_link("views/home.py", label="Start at Home", icon=":material/home:")
            return
        _page(store, federation)
        _dialog(federation)


def _page(store: Desk, federation: Federation) -> None:
    with closing(enrolling.store()) as kits:
        joined = joined_sites.of(federation, kits)
    some = bool(federation.data.get("sites") or joined)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(widgets.plain(federation.name), anchor=False, width="content")
        if st.button("Add a site", icon=":material/add:", key="add-site", type="secondary" if some else "primary"):
            dialogs.ask("add", federation.name)
        if any(site.kit.state == "issued" and not site.kit.exchange for site in joined.values()) and st.button(
            "Take in a request file", icon=":material/upload_file:", key="upload", type="tertiary"
        ):
            dialogs.ask("upload")
        if federation.data.get("sites"):
            st.page_link("views/generate.py", label="Plan and start a run", icon=":material/auto_awesome:")
    every = _pace(store, joined)
    st.fragment(_live, run_every=every)(federation.name, every)
    with st.expander("People", key="people", icon=":material/groups:", on_change="rerun") as people_part:
        if people_part.open:
            people.draw(federation)


def _dialog(federation: Federation) -> None:
    """The dialog that a button has asked for."""
    name, about = dialogs.opened()
    if name in ("add", "made", "upload"):
        {"add": lambda: site_form.add(federation.name), "made": kit_form.made, "upload": join_request.upload}[name]()
    elif name in ("request", "revoke", "remove"):
        {"request": join_request.decide, "revoke": joined_view.revoke, "remove": local_view.remove}[name](about)


def _pace(store: Desk, joined: dict[str, JoinedSite]) -> float:
    """How often to look: often while a run is carried, now and then while a site may ask to join."""
    if any(site.joined and connection_check.since(site.kit) is not None for site in joined.values()):
        return frame.FAST_S
    waits = any(site.kit.state in ("issued", "requested") for site in joined.values())
    return min(frame.pace(store), _WAITS_S) if waits else frame.pace(store)


# -- the list ----------------------------------------------------------------------------------------------------------


def _live(name: str, every: float) -> None:
    with widgets.guard("sites list"), frame.desk() as store, closing(enrolling.store()) as kits:
        wrong = request_watch.look()
        federation = federations.get(name)
        joined = joined_sites.of(federation, kits)
        if _pace(store, joined) != every:
            st.rerun()  # a run began or ended, a site asks: look more or less often
        for number, error in enumerate(wrong):
            widgets.failure_card(error, f"request {number}")
        for number, site in enumerate(site for site in joined.values() if site.waits):
            joined_view.call(site, first=number == 0)
        here = {str(site["name"]): site for site in federation.data.get("sites") or []}
        shown = [*here, *(site for site in joined if site not in here and joined[site].open)]
        if shown:
            _listed(store, federation, here, joined, shown)
        else:
            st.write("No sites yet. Add the first one; it takes about ten minutes for the person at the site.")
        _ended([site for name, site in joined.items() if name not in shown])


def _listed(store: Desk, federation: Federation, here: dict[str, Any], joined: dict[str, JoinedSite], names: list[str]) -> None:
    far = {name: joined[name] for name in names if name in joined and not here.get(name, {}).get("data")}
    histories = site_history.of(store, federation, [name for name, site in far.items() if not site.served_here])
    now = _doing_now(store, federation)
    checks = {name: local_view.check(federation, here[name]) for name in names if name not in far}
    compared = _compared(store, far)
    rows = [
        _far_row(far[name], histories[name], now, compared.get(name))
        if name in far
        else _row(here[name], histories[name], now, checks[name], demo=federation.is_demo)
        for name in names
    ]
    if not far:
        rows = [{name: value for name, value in row.items() if name != "Kit"} for row in rows]

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
    st.caption("Select a row to see what that site did, sent and spent." + local_view.for_checks(checks))
    wanted = st.query_params.get("site")
    if wanted in far:
        joined_view.detail(far[wanted], histories[wanted], compared.get(wanted), drafted=wanted in here)
    elif wanted in here:
        local_view.detail(here[wanted], histories[wanted], checks[wanted], demo=federation.is_demo)
    elif wanted in joined:
        joined_view.detail(joined[wanted], site_history.of(store, federation, joined)[wanted], None, drafted=False)
    elif wanted:
        st.info(f"There is no site {widgets.plain(wanted)} in this federation.", icon=":material/info:")


def _row(site: dict[str, Any], history: History, now: dict[str, SiteNow], check: SiteCheck | None, *, demo: bool) -> dict[str, object]:
    name, never = str(site["name"]), "not asked yet" if site.get("data") else _DEMO if demo else "no kit yet"
    return {
        "Site": name,
        "Kind": KINDS.get(str(site.get("kind")), str(site.get("kind"))),
        "Where": "this machine" if site.get("data") else "elsewhere",
        "State": _did(now.get(name), history) or never,
        "Last answer": _last(history),
        "Records": local_view.records(check) if site.get("data") else "",
        "Privacy spent": history.spent,
        "Its own limit": _limit(history.limit),
        "Kit": "",
    }


def _compared(store: Desk, sites: dict[str, JoinedSite]) -> dict[str, Comparison]:
    """The two ledgers about each site that has joined, or had; a difference is said above the list while it takes part."""
    ledger = Ledger(home() / "ledger.db")
    found = {name: ledger_comparison.compare(site.kit, ledger, store) for name, site in sites.items() if site.joined or site.kit.seen}
    for name, comparison in found.items():
        if sites[name].joined and not comparison.agrees:
            st.warning(widgets.plain(comparison.sentence), icon=":material/difference:")
    return found


def _far_row(site: JoinedSite, history: History, now: dict[str, SiteNow], comparison: Comparison | None) -> dict[str, object]:
    did = "" if site.doing else _did(now.get(site.name), history)
    return {
        "Site": site.name,
        "Kind": KINDS[site.kit.kind],
        "Where": "elsewhere",
        "State": joined_view.state(site) + (f" · {did}" if did else ""),
        "Last answer": _last(history),
        "Records": _told(site),
        "Privacy spent": joined_view.spent(history, comparison),
        "Its own limit": _limit(site.limit) if site.kit.request else "",
        "Kit": site.version,
    }


def _told(site: JoinedSite) -> str:
    """How many records the site said that it has."""
    if not site.kit.request:
        return ""
    return "not told" if site.records is None else f"{site.records:,} told"


def _last(history: History) -> str:
    return widgets.when(history.last.ended or history.last.sent) if history.last else ""


def _limit(limit: tuple[float, float] | None) -> str:
    return f"ε {limit[0]:g} at δ {accounting.shown(limit[1])}" if limit else "none set"


def _did(now: SiteNow | None, history: History) -> str:
    """What it does now, else what it did last; "" where nothing was asked yet."""
    if now is not None and now.open:
        return f"{'was asked, has not begun' if now.doing == 'asked' else now.doing}" + (f", {now.done} of {now.of}" if now.of else "")
    last = history.last
    if last is None:
        return ""
    where = f"stage {last.stage}, {'vote' if last.stage == 1 else 'round'} {last.round}"
    did = _DID.get(last.kind, last.kind) if last.state == "answered" else f"{last.state} {last.code}".strip()
    return f"{did} ({where})"


def _doing_now(store: Desk, federation: Federation) -> dict[str, SiteNow]:
    run = store.active_run(federation.name)
    return {site.name: site for site in overview.look(store, run.id).sites if not site.by_server} if run else {}


def _ended(sites: list[JoinedSite]) -> None:
    """Kits of sites that take no part any more."""
    if not sites:
        return
    with st.expander(f"Kits that have ended: {len(sites)}", icon=":material/inventory_2:"):
        rows = [
            {
                "Site": site.name,
                "State": site.state,
                "When": widgets.when(site.kit.decided),
                "By": site.kit.decided_by,
                "Reason": site.kit.reason,
            }
            for site in sites
        ]
        st.dataframe(rows, hide_index=True, alt="Kits that were refused, revoked or given up")


main()
