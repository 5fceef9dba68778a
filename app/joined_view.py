"""A site of another machine in full: how far it has come, what it said when it asked, how its orders travel, what it did.

Draws what ``pipeline.joined_sites`` and ``pipeline.site_history`` say; the dialogs that decide about it are opened by name.
"""

from __future__ import annotations

import time
from typing import Literal

import streamlit as st

from app import dialogs, frame, join_request, kit_form, site_history_view, widgets
from app.site_form import KINDS
from pipeline import connection_check, enrolling, federations, joined_sites
from pipeline.joined_sites import JoinedSite
from pipeline.ledger_comparison import Comparison
from pipeline.site_history import History

# state → (icon, colour of the badge)
_BADGES = {
    joined_sites.NOT_JOINED: ("inventory_2", "gray"),
    joined_sites.EXPIRED: ("timer_off", "gray"),
    joined_sites.WAITS: ("front_hand", "orange"),
    joined_sites.ONLINE: ("sensors", "green"),
    joined_sites.PAUSED: ("pause_circle", "orange"),
    joined_sites.SILENT: ("sensors_off", "gray"),
    joined_sites.JOINED: ("how_to_reg", "blue"),
    joined_sites.REFUSED: ("block", "red"),
    joined_sites.REVOKED: ("block", "red"),
    joined_sites.LEFT: ("logout", "gray"),
}


def state(site: JoinedSite) -> str:
    """The state in words, as a table's cell has it."""
    if site.state == joined_sites.SILENT:
        return f"{site.state} {widgets.when(site.heard)}"
    return f"{site.state} · {site.doing}" if site.doing else site.state


def absence(site: JoinedSite) -> str:
    """Why a run waits for it."""
    return {
        joined_sites.JOINED: "it has joined and was not heard of yet",
        joined_sites.SILENT: f"last heard {widgets.when(site.heard)}",
    }.get(site.state, site.state.lower())


def badge(site: JoinedSite) -> None:
    icon, colour = _BADGES[site.state]
    st.badge(state(site), icon=f":material/{icon}:", color=colour)  # type: ignore[arg-type]


def who_asks(site: JoinedSite, of: str = "") -> None:
    """A request that waits, in one line."""
    consent = (site.kit.request or {}).get("consent") or {}
    who = ", ".join(str(consent[part]) for part in ("name", "role") if consent.get(part))
    where = f" {widgets.plain(of)}" if of else ""
    mark = f":orange-badge[:material/front_hand: {site.state}]"
    st.markdown(f"{mark} **{widgets.plain(site.name)}** asks to join{where} · {widgets.plain(who)}")


def call(site: JoinedSite, *, first: bool) -> None:
    """The same, with the way to decide; ``first``: of several, what is to be done next."""
    with st.container(border=True, key=f"asks {site.kit.serial}"):
        who_asks(site)
        kind: Literal["primary", "secondary"] = "primary" if first else "secondary"
        if st.button("Look at its request", type=kind, key=f"request {site.kit.serial}", icon=":material/badge:"):
            dialogs.ask("request", site.kit.serial)


def spent(history: History, comparison: Comparison | None) -> str:
    """By the figure that counts of the two ledgers; where they differ, that they do."""
    if comparison is None or comparison.site is None or comparison.site.charges + comparison.server.charges == 0:
        return history.spent
    return comparison.spent if comparison.agrees else f"{comparison.spent} · ledgers differ"


def detail(site: JoinedSite, history: History, comparison: Comparison | None, *, drafted: bool) -> None:
    """``drafted``: whether the site is in the federation's settings."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(widgets.plain(site.name), anchor=False, width="content")
        st.badge(KINDS.get(site.kit.kind, "?"), icon=":material/memory:", color="gray")
        badge(site)
        if site.open and st.button("Revoke…", icon=":material/block:", type="tertiary", key="revoke-site"):
            dialogs.ask("revoke", site.kit.serial)
        if drafted and not site.open and st.button("Remove…", icon=":material/delete:", type="tertiary", key="remove-site"):
            dialogs.ask("remove", site.name)
    if site.kit.state == "issued":
        _kit(site)
        return
    if not site.waits:  # its request stands above the list
        join_request.decided(site.kit)
        if site.kit.request and (site.state in (joined_sites.JOINED, joined_sites.REFUSED)) and not site.served_here:
            join_request.answer(site.kit)  # it may not have come yet
    _facts(site)
    if site.joined and not drafted:
        st.warning("It has joined, but the federation's settings do not name it: no run asks it.", icon=":material/person_off:")
        if st.button("Name it in the settings", key="name-site", icon=":material/add:"):
            federations.add_joined_site(site.kit.federation, site.name, site.kit.kind)
            st.rerun()
    if site.joined:
        _check(site)
    if comparison and comparison.agrees:
        st.caption(f":material/balance: {widgets.plain(comparison.sentence)}")
    if history.orders or history.charges or site.joined:
        site_history_view.tabs(history)


def _kit(site: JoinedSite) -> None:
    """A kit that was not used yet: once more what can be handed over, all but the code."""
    kit = site.kit
    fetched = "was not fetched from this console yet" if not kit.downloads else f"was fetched {kit.downloads} times from this console"
    if site.state == joined_sites.EXPIRED:
        st.info("Its join code is no longer good. A new kit takes its place.", icon=":material/timer_off:")
    else:
        st.markdown(f"The kit {fetched.replace('1 times', 'once')}. The site may join until {widgets.when(kit.expires)}.")
    kit_form.download(kit.serial)
    st.caption("Fingerprint of the key that signed the kit")
    st.code(enrolling.fingerprint(), language=None, wrap_lines=True)
    kit_form.words(kit.serial)
    st.caption("The join code was shown when the kit was made. If it is lost, revoke this kit and make a new one.")
    if not kit.exchange:
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button("Take in its request file", icon=":material/upload_file:", key="upload-request"):
                dialogs.ask("upload")
            st.caption("What the site's admin sends you after `./cafe-site join`.")


def _facts(site: JoinedSite) -> None:
    """The request, as it was decided on; the connection; what the last answer said."""
    if site.kit.request is not None:
        with st.expander("Its request", icon=":material/badge:"):
            join_request.facts(enrolling.waiting(site.kit.serial).request)
    if site.joined:
        seen = f" · kit {widgets.plain(site.version)}, Python {widgets.plain(str(site.kit.seen.get('python', '')))}" if site.version else ""
        heard = f" · last heard {widgets.when(site.heard)}" if site.heard else " · not heard yet"
        way = (
            f"Orders travel {widgets.plain(site.connection)}"
            if site.connection
            else ":material/warning: No way leads to it: make a new kit"
        )
        st.markdown(f"{way}{heard}{seen}")
        if site.kit.exchange and not site.served_here:
            st.code(site.kit.exchange, language=None, wrap_lines=True)


def _check(site: JoinedSite) -> None:
    """The way to the site, link by link: the button, the check that is at work, what the last one found."""
    since, found = connection_check.since(site.kit), connection_check.last(site.kit)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Check the connection", icon=":material/cable:", key="check-site", disabled=since is not None):
            connection_check.begin(site.kit)
            st.rerun()
        if since is not None:
            st.caption(f":material/hourglass_top: A greeting is sent there and back … {widgets.span(time.time() - since)}")
        elif found and found.ok:
            st.markdown(f":green-badge[:material/check_circle: The way holds] {widgets.when(found.time)}")
        elif found:
            st.markdown(f":red-badge[:material/link_off: The way is broken] {widgets.when(found.time)}")
    if since is None and found and (broken := found.broken):
        told = {"code": broken.code, "message": f"{broken.name}: {broken.detail}", "hint": broken.hint}
        widgets.failure_card(told, f"check {site.name}", site=site.name)
    if since is None and found:
        with st.expander("Every link", expanded=not found.ok, icon=":material/cable:"):
            rows = [{"Link": link.name, "State": link.state, "Found": link.detail, "What to do": link.hint} for link in found.links]
            st.dataframe(rows, hide_index=True, height="content", alt="The links of the way to this site")


@st.dialog("Revoke this kit?", on_dismiss=dialogs.close)
def revoke(serial: str) -> None:
    """Take a kit back, after its site's name was typed."""
    with widgets.guard("revoke"):
        kit = enrolling.find(serial)
        st.markdown(
            "The site is asked nothing any more, from its next order on, and takes no part in further runs. What it has sent and spent "
            "stays as it is. **It cannot be undone:** to come back it needs a new kit."
        )
        st.code(kit.site, language=None, wrap_lines=True)
        why = st.text_input("Reason (may be empty)", key="revoke-why", max_chars=300)
        typed = st.text_input("Type its name to revoke it", key="revoke-name", live=True, autocomplete="off")
        if st.button("Revoke", key="revoke-yes", disabled=typed.strip() != kit.site, icon=":material/block:"):
            enrolling.revoke(serial, why.strip(), frame.operator())
            dialogs.done()
