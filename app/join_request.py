"""A site asks to join: what it tells of itself, the four words that its admin reads aloud, and the operator's yes or no.

Draws what ``pipeline.enrolling`` knows. The words are compared on the server; they are shown here only when the operator asks for them.
"""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st
from cafe_kit.enrolment import JoinRequest, answer_name
from cafe_kit.orders import MAX_BYTES

from app import dialogs, downloads, frame, kit_globus, widgets
from pipeline import accounting, enrolling
from pipeline.enrolling import Waiting
from server_store.site_kits import SiteKit

_ASKED = {"hello": "greet", "vote": "vote in stage 1", "train": "train in stage 2"}
_STATES = {"approved": "It has joined.", "refused": "It was refused.", "revoked": "Its kit was revoked.", "left": "It has left."}


@st.dialog("A site asks to join", width="medium", on_dismiss=dialogs.close)
def decide(serial: str) -> None:
    with widgets.guard("request"):
        found = enrolling.waiting(serial)
        st.subheader(f"{widgets.plain(found.kit.site)} of {widgets.plain(found.kit.federation)}", anchor=False)
        facts(found.request)
        if found.kit.state == "requested":
            _word(found)
        else:
            decided(found.kit)
            if found.kit.state in ("approved", "refused", "revoked"):
                answer(found.kit)
            if st.button("Close", key="request-close"):
                dialogs.done()


def facts(asked: JoinRequest) -> None:
    """What the site says of itself, in lines that a narrow screen holds. Texts come from the site and show as they were typed."""
    host, limits, consent = asked.host, asked.limits, asked.consent
    delta = accounting.shown(limits.delta)
    most = "no limit over all runs" if limits.max_epsilon is None else f"ε {limits.max_epsilon:g} at δ {delta} over all runs"
    per_run = f", ε {limits.max_epsilon_per_run:g} in one run" if limits.max_epsilon_per_run else ""
    without = "allows runs without noise" if limits.allow_without_noise else "refuses runs without noise"
    lines = {
        "Asked": widgets.when(asked.made),
        "Consent": ", ".join(part for part in (consent.name, consent.role, consent.reference) if part),
        "Machine": f"{host.system}, Python {host.python}, {host.cores} cores, {host.memory_gib:g} GiB, {host.gpu or 'no GPU'}",
        "Limits": f"{most}{per_run}; {without}",
        "Answers to": ", ".join(_ASKED[kind] for kind in limits.kinds),
        "Records": "not told" if asked.records is None else f"{asked.records:,}, as the site tells it",
    }
    st.markdown("\n".join(f"- **{name}**: {widgets.plain(text)}" for name, text in lines.items()))


def _word(found: Waiting) -> None:
    """Approve by the words that are heard, or refuse with a reason."""
    serial, site = found.kit.serial, widgets.plain(found.kit.site)
    ready = kit_globus.draw(found.kit)
    st.markdown(f"**Call the admin of {site}**, at a number that you knew before. He reads you four words; type what you hear.")
    said = st.text_input("Four words that the admin reads to you", key=f"words {serial}", live=True, autocomplete="off")
    heard = re.findall(r"[a-z]+", said.lower())
    with st.container(horizontal=True, vertical_alignment="center"):
        let_in = st.button("Let it in", type="primary", key="let-in", disabled=len(heard) != 4 or not ready, icon=":material/how_to_reg:")
        shown = st.toggle(
            "Show the words of this side", key=f"show {serial}", help="After he has read his: only then do they prove anything."
        )
    if let_in:
        with widgets.guard("let in"):
            enrolling.approve(serial, said, frame.operator())
            st.rerun()
    if shown:
        st.markdown(f"This server computes: **{' · '.join(found.words)}**")
    with st.expander("Refuse it", icon=":material/block:"):
        why = st.text_input("Reason, which the site reads", key=f"refuse {serial}", max_chars=300, placeholder="The words were others.")
        if st.button("Refuse", key="refuse", disabled=not why.strip()):
            with widgets.guard("refuse"):
                enrolling.refuse(serial, why.strip(), frame.operator())
                st.rerun()


def decided(kit: SiteKit) -> None:
    """What was decided, when and by whom."""
    by = f" by {widgets.plain(kit.decided_by)}" if kit.decided_by else ""
    reason = f" Reason: {widgets.plain(kit.reason)}" if kit.reason else ""
    st.markdown(f"**{_STATES.get(kit.state, kit.state)}** Decided {widgets.when(kit.decided)}{by}.{reason}")


def answer(kit: SiteKit) -> None:
    """How what was decided reaches the site."""
    via = kit.connection.get("via")
    if kit.exchange and (Path(kit.exchange) / answer_name(kit.serial)).is_file():
        st.caption("The answer lies in the exchange folder; the site finds it there.")
        return
    if kit.exchange:
        st.caption("The answer is not in the exchange folder: it could not be written there, or was removed.")
    elif via == "globus":
        st.caption("The answer lies in the object store; the site finds it there.")
    st.link_button("Download the answer", downloads.kit_url(kit.serial, "answer.json"), icon=":material/download:")
    st.caption("To be handed over by hand. The site takes it in with: ./cafe-site join --approval FILE")


@st.dialog("A request came as a file", on_dismiss=dialogs.close)
def upload() -> None:
    """A site without a way to us sends its request as a file."""
    st.markdown("The site's admin sends you the file that `./cafe-site join` named. It is signed; it holds no record and no secret.")
    given = st.file_uploader("Request file", ["json"], key="request-file", max_upload_size=1)
    if given is None:
        return
    with widgets.guard("upload"):
        found = enrolling.take(given.getvalue()[: MAX_BYTES + 1])
        dialogs.ask("request", found.kit.serial)
