"""What one site did, sent and spent, in three tabs; the same for a site of this machine and of another.

Draws a ``pipeline.site_history.History``.
"""

from __future__ import annotations

import streamlit as st

from app import widgets
from pipeline.site_history import History

_ORDERS = 100


def tabs(history: History) -> None:
    counts(history)
    if error := history.last_error:
        st.caption(f"Last error, {widgets.when(error.ended or error.sent)}")
        widgets.failure_card({"code": error.code, "message": error.sentence, "hint": ""}, f"last {history.site}", site=history.site)
    did, sent, spent = st.tabs(["What it was asked", "What it sent", "What it spent"])
    with did:
        _orders(history)
    with sent:
        _sent(history)
    with spent:
        _charges(history)


def counts(history: History) -> None:
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
    told = "By the site's own outbox, which keeps every answer as it was sent." if history.outbox else "By what arrived on this server."
    st.caption(f"{told} No record is ever part of one.")


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
