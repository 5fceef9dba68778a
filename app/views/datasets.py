"""*Datasets*: the synthetic sets of all runs, to read, to judge, to approve or to reject.

Which set: ``?run=`` and ``?attempt=`` in the address. Draws what ``pipeline.datasets`` says; the word goes to ``pipeline.approval``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st
from cafe_kit.errors import CafeError

from app import dataset_view, frame, widgets
from pipeline import approval, datasets, overview
from pipeline.datasets import Dataset
from pipeline.overview import Overview
from server_store.desk import Desk
from server_store.errors import StoreError

_EXPLAINED = """A *synthetic set* is what stage 1 makes: texts that this server's language model wrote, and that the sites without a GPU
chose by their votes. No record of a site is in it. In stage 2 the server trains on it, on behalf of those sites.

Where a run asks for it (`stage1.approve: operator`), nothing goes on before somebody has read the set and approved it. A rejected
set stays readable; the run makes another one, and every site that votes spends privacy again."""

_BADGES = {
    datasets.WAITING: ("front_hand", "orange"),
    datasets.APPROVED: ("check_circle", "green"),
    datasets.REJECTED: ("block", "red"),
    datasets.AGAIN: ("recycling", "blue"),
    datasets.OPEN: ("hourglass_top", "gray"),
}
_TOLD_S = 30.0
_TOLD, _REJECT = "datasets told", "datasets reject"


def main() -> None:
    widgets.heading("Datasets", _EXPLAINED)
    _told()
    with frame.desk() as store:
        found, busy = datasets.listed(store), datasets.making(store)
        for seen in busy:
            st.fragment(_making, run_every=frame.FAST_S)(seen.run.id)
        with widgets.guard("datasets"):
            shown = _shown(store, found)
            if found:
                with st.spinner("The ledger's charges are added up…"):
                    _list(found, shown)
            elif not busy:
                _nothing()
            if shown:
                _detail(shown)
        watched = [run.id for run in store.runs() if run.active]
        if watched:
            st.fragment(_watch, run_every=frame.FAST_S)(_seen(store))


def _told() -> None:
    """What became of the operator's word, for a while; the page is drawn again meanwhile."""
    text, until, fresh = st.session_state.get(_TOLD, ("", 0.0, False))
    if time.time() < until:
        st.info(widgets.plain(text), icon=":material/info:")
    if fresh:
        st.toast(widgets.plain(text))  # for who has scrolled down
        st.session_state[_TOLD] = (text, until, False)


def _shown(store: Desk, found: Sequence[Dataset]) -> Dataset | None:
    """The set of the address; without one a set that waits, else the newest."""
    run, attempt = st.query_params.get("run"), st.query_params.get("attempt")
    if run is None:
        return next((one for one in found if one.state == datasets.WAITING), found[0] if found else None)
    own = sorted((one for one in found if one.run == run), key=lambda one: one.attempt)
    if attempt is None:
        if not own:
            _none_yet(overview.look(store, run))
        return own[-1] if own else None
    chosen = next((one for one in own if str(one.attempt) == attempt), None)
    if chosen is None:
        store.run(run)
        raise CafeError("CAFE-660", f"Run {run} has no synthetic set of attempt {attempt[:20]}.", "Choose one in the list.")
    return chosen


def _list(found: Sequence[Dataset], shown: Dataset | None) -> None:
    rows = [
        {
            **({"Shown": "▸" if shown and (one.run, one.attempt) == (shown.run, shown.attempt) else ""} if len(found) > 1 else {}),
            "Set": one.title,
            "State": one.state,
            "Rows": f"{len(one.kept)} of {one.size}" if one.excluded else str(one.size),
            "Trained on it": one.score.shown if one.score else "–",
            "Privacy spent": datasets.promised(one),
            "Made": widgets.when(one.time),
            "From run": one.run,
            "Used in": ", ".join(one.used_in) or "–",
        }
        for one in found
    ]

    def choose() -> None:
        picked = st.session_state["datasets-list"]["selection"]["rows"]
        if picked:
            st.query_params["run"], st.query_params["attempt"] = found[picked[0]].run, str(found[picked[0]].attempt)

    alt = "Synthetic sets, the newest first"
    st.dataframe(rows, hide_index=True, key="datasets-list", on_select=choose, selection_mode="single-row", alt=alt)
    if len(found) > 1:
        st.caption("Select a row to see that set. Scores are on each run's own public test set: compare within a federation only.")


def _detail(dataset: Dataset) -> None:
    icon, colour = _BADGES[dataset.state]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(widgets.plain(dataset.title), width="content", anchor=False)
        st.badge(dataset.state, icon=f":material/{icon}:", color=colour)  # type: ignore[arg-type]
    st.text(dataset.told)
    if dataset.state == datasets.WAITING:
        _decision(dataset)
    elif dataset.state != datasets.REJECTED:
        st.page_link("views/train.py", label="See the training", icon=":material/model_training:", query_params={"run": dataset.run})
    if dataset.state in (datasets.APPROVED, datasets.REJECTED, datasets.OPEN) and dataset.made.run.shown_state in (
        "Stopped",
        "Failed",
        "Lost contact",
    ):
        st.page_link(
            "views/runs.py",
            label=f"The run is {dataset.made.run.shown_state}. Open it to resume.",
            icon=":material/history:",
            query_params={"run": dataset.run},
        )
    dataset_view.tabs(dataset)


def _decision(dataset: Dataset) -> None:
    """Approve or reject, with what either sets going."""
    bare = [
        one.label for one in datasets.shares([dataset.rows[row].answer for row in dataset.kept], datasets.classes(dataset)) if not one.rows
    ]
    with st.container(border=True, key="decision"):
        st.markdown("**Your word on it**")
        st.markdown(widgets.plain(approval.goes_on(dataset)))
        if bare:
            st.warning(f"No row is left for: {widgets.plain(', '.join(bare))}", icon=":material/warning:")
        with st.container(horizontal=True):
            icon, none = ":material/check_circle:", not dataset.kept
            st.button("Approve", type="primary", icon=icon, disabled=none, key="approve", on_click=_say, args=(dataset, True))
            if st.button("Reject…", icon=":material/block:", key="reject"):
                st.session_state[_REJECT] = (dataset.run, dataset.attempt)
    if st.session_state.get(_REJECT) == (dataset.run, dataset.attempt):
        _reject(dataset)


def _forget() -> None:
    st.session_state.pop(_REJECT, None)


@st.dialog("Reject this set?", on_dismiss=_forget)
def _reject(dataset: Dataset) -> None:
    cost, name = approval.cost_of_reject(dataset), dataset.made.settings.name
    st.markdown(widgets.plain(cost.told))
    st.caption("The run makes another set. This one stays readable, with your reason.")
    reason = st.text_area("Why is it rejected?", max_chars=500, key="reject reason")
    typed = st.text_input("Type the name of the federation to confirm", placeholder=name, key="reject name") if cost.private else name
    ready = bool((reason or "").strip()) and typed == name
    if st.button("Reject and make another", type="primary", icon=":material/block:", disabled=not ready, key="reject now"):
        _say(dataset, approved=False)
        st.rerun()  # a dialog is drawn by itself; the page around it is another one now
    if not ready:
        st.caption("A reason" + (" and the name" if cost.private else "") + " must be there first.")


def _say(dataset: Dataset, approved: bool) -> None:
    """Give the operator's word. What a browser checked is checked again: the dialog's fields are read here."""
    reason = "" if approved else str(st.session_state.get("reject reason", ""))
    if not approved and approval.cost_of_reject(dataset).private and st.session_state.get("reject name") != dataset.made.settings.name:
        return
    try:
        told = approval.decide(dataset, approved, reason, frame.operator())
    except (CafeError, StoreError) as error:
        told = str(error)
    st.session_state[_TOLD] = (told, time.time() + _TOLD_S, True)
    _forget()
    st.query_params["run"] = dataset.run
    st.query_params.pop("attempt", None)  # the next attempt is shown as soon as it is there


def _making(run_id: str) -> None:
    """A set that is being made: which vote, and who is waited for."""
    with frame.desk() as store:
        seen = overview.look(store, run_id)
    with st.container(border=True, key=f"making {seen.run.id}"):
        again = f", attempt {seen.attempt}" if seen.attempt > 1 else ""
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{widgets.plain(seen.run.name)}**{again}: a set is being made", width="content")
            widgets.state_badge(seen.state)
        vote = f"Vote {min(max(seen.round, 1), seen.rounds)} of {seen.rounds} · " if seen.rounds and seen.stage == 1 else ""
        st.progress(seen.share or 0.0, text=widgets.plain(vote + seen.sentence))
        if seen.waiting_for:
            st.caption(f"Waiting for: {widgets.plain(seen.waiting_for)}")
        st.page_link("views/generate.py", label="Watch it", icon=":material/auto_awesome:", query_params={"run": seen.run.id})


def _none_yet(seen: Overview) -> None:
    if seen.run.active:
        return  # it is shown above as being made, or works on another stage
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(widgets.plain(seen.run.name), width="content", anchor=False)
        widgets.state_badge(seen.state)
    st.write("This run has no synthetic set yet.")
    st.page_link("views/runs.py", label="Open the run", icon=":material/history:", query_params={"run": seen.run.id})


def _nothing() -> None:
    st.write("No synthetic set yet. A run makes one: the server's language model writes texts, and sites without a GPU vote for the best.")
    st.page_link("views/generate.py", label="Generate", icon=":material/auto_awesome:")


def _seen(store: Desk) -> list[tuple[str, object]]:
    """What changes this page while runs are carried: an attempt that has begun or has its set, and the states."""
    made = [(seen.run.id, seen.attempt) for seen in datasets.making(store)]
    return [*made, *((run.id, run.shown_state) for run in store.runs() if run.active)]


def _watch(before: list[tuple[str, object]]) -> None:
    with frame.desk() as store:
        if _seen(store) != before:
            st.rerun()


main()
