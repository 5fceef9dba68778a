"""What a start would spend, and the start itself: the cost panel beside a form, the typed confirmation, the saved draft.

Knows a federation's draft as it stands in the form. What is asked and refused is decided in ``pipeline``; here the
operator reads it, and what he confirmed is checked again when he presses.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import streamlit as st
from cafe_kit.errors import CafeError

from app import frame, widgets
from app.forms import Values
from pipeline import federations, launch
from pipeline.accounting import ADJACENCY, NO_GUARANTEE
from pipeline.federations import Federation
from pipeline.forecast import Forecast, SiteSpend, forecast, spend_words, spends
from pipeline.home import home
from pipeline.settings import RunSettings, build
from server_store.errors import StoreError
from server_store.ledger import Ledger
from server_store.rows import Run

_OPEN, _ERROR, _TOLD = "start.open", "start.error", "start.told"


def draft(federation: Federation) -> Values:
    """The federation's settings to fill in. Whoever starts by clicks reads the synthetic set first, unless he says otherwise."""
    data: Values = copy.deepcopy(federation.data)
    stage1 = data.get("stage1") or {}
    if isinstance(stage1, dict) and "approve" not in stage1 and not federation.is_demo:
        data["stage1"] = {**stage1, "approve": "operator"}
    return data


def about() -> tuple[Federation | None, Run | None]:
    """Which federation and run the page is about: the address's, else the newest run of the federation opened last."""
    federation, run = frame.federation(), None
    with widgets.guard("about"), frame.desk() as store:
        run = frame.run_of_page(store, federation.name if federation else None)
    if run and (federation is None or federation.name != run.name):
        federation = next((one for one in federations.listed() if one.name == run.name), None)
    return federation, run


def nothing() -> None:
    """There is no federation to plan for."""
    st.markdown("Nothing is set up yet. *Home* opens the demo federation, or sets up your own.")
    if st.button("Go to Home", type="primary", icon=":material/home:"):
        st.switch_page("views/home.py")


def draw(run: Run | None, watch: Callable[[Run], None], federation: Federation | None, form: Callable[[Federation], None]) -> None:
    """The run to watch and the form for the next one, each on a leaf of its own; a new run opens the first leaf again."""
    if run is None and federation is None:
        nothing()
    elif run is None and federation is not None:
        form(federation)
    elif run is not None and federation is None:
        watch(run)
    elif run is not None and federation is not None:
        first, second = st.tabs(["Run", "Plan the next run"], key=f"leaves {run.id}")
        with first:
            st.caption(
                f"Run {widgets.plain(run.id)}, started {widgets.when(run.created)}"
                + (f" by {widgets.plain(run.operator)}" if run.operator else "")
            )
            watch(run)
        with second:
            form(federation)


def told() -> None:
    """What came of the last press, at the head of the page."""
    if words := st.session_state.pop(_TOLD, ""):
        st.info(widgets.plain(words), icon=":material/info:")


def decide(run_id: str) -> None:
    """A set waits for the operator: the way to it."""
    with st.container(border=True):
        st.markdown("**The synthetic set is made and waits for you.** Read it, leave out what is wrong, approve or reject it.")
        if st.button("Read and decide", type="primary", icon=":material/fact_check:"):
            st.switch_page("views/datasets.py", query_params={"run": run_id})


def panel(
    federation: Federation, edited: Values, stage: int, key: str, more: Callable[[RunSettings, Forecast], None] | None = None
) -> RunSettings | None:
    """What a start would cost, what it may hope for, and the buttons. Returns the settings where they are complete."""
    settings = looked = None
    with st.container(border=True):
        st.subheader("What a start costs", anchor=False)
        with widgets.guard(f"{key} settings"):
            settings = build(edited, federation.folder)
            looked = forecast(settings, Ledger(home() / "ledger.db"))
        if settings is None:
            st.caption("The form is kept as you typed it. Mend or complete it; the numbers appear then.")
        if settings and looked:
            _cost(settings, looked, stage)
            _refused(looked, edited, key)
            if more:
                more(settings, looked)
    _buttons(federation, edited, settings, looked, key)
    return settings


def _cost(settings: RunSettings, looked: Forecast, stage: int) -> None:
    """Privacy per site, the two signal-to-noise ratios, and what the numbers mean."""
    kind = "cpu" if stage == 1 else "gpu"
    sites = [site for site in looked.sites if site.kind == kind]
    if any(site.asked is not None or site.spent for site in sites):
        st.dataframe(
            [_spend(site) for site in sites],
            hide_index=True,
            alt=f"Privacy spent by every site of stage {stage}: so far, by this run, and after it",
        )
        st.caption("ε per site; what several sites spend is never added up." + _unguarded(sites))
    elif sites:
        st.badge(NO_GUARANTEE, icon=":material/info:", color="gray")
        st.caption(f"Stage {stage} adds no noise, so there is no ε to count." + _unguarded(sites))
    left, right = st.columns(2)
    left.metric("Vote signal : noise", _ratio(looked.vote_snr), help="Stage 1. Below 1 the sites' votes drown in the noise.")
    unknown = looked.trained is None and settings.privacy.stage2 is not None
    right.metric(
        "Norm signal : noise", "–" if unknown else _ratio(looked.norm_snr), help="Stage 2. Below 1 the updates drown in the noise."
    )
    if unknown:
        st.caption("The ratio of stage 2 is known once the base model is on this disk.")
    st.markdown("\n".join(f"- {widgets.plain(words)}" for words in spend_words(settings)))
    if spends(settings):
        noise = "the server adds it once to the sum" if settings.privacy.trust == "server" else "every site adds it to its own message"
        st.caption(
            f"Unit: client, all records of one site. Adjacency: {ADJACENCY}. Noise: {noise}. ε is a worst-case bound per site;"
            " numbers of different units of protection cannot be compared."
        )


def _spend(site: SiteSpend) -> dict[str, str]:
    asked = NO_GUARANTEE if site.asked is None else f"{site.asked:.4g}"
    return {"site": site.site, "spent so far": f"{site.spent:.4g}", "this run": asked, "after": f"{site.after:.4g}"}


def _unguarded(sites: list[SiteSpend]) -> str:
    most = max(site.unguarded for site in sites)
    return f" Earlier releases without a formal guarantee, in no ε: {most}." if most else ""


def _ratio(snr: float | None) -> str:
    return "no noise" if snr is None else f"{snr:.2f}" if snr >= 0.1 else f"{snr:.3f}"


def _refused(looked: Forecast, edited: Values, key: str) -> None:
    """Why a stage would drown in its noise, and the tick that starts anyway."""
    for number, refusal in enumerate(looked.refusals):
        widgets.failure_card(refusal, f"{key} refusal {number}")
    if not looked.refusals:
        return
    privacy = edited["privacy"] if isinstance(edited.get("privacy"), dict) else {}
    anyway = st.checkbox(
        "Start although the signal is expected to drown in the noise",
        bool(privacy.get("accept_noise")),
        key=f"{key} anyway",
    )
    if anyway != bool(privacy.get("accept_noise")):
        edited["privacy"] = {**privacy, "accept_noise": anyway}


def _buttons(federation: Federation, edited: Values, settings: RunSettings | None, looked: Forecast | None, key: str) -> None:
    with frame.desk() as store:
        newest = launch.newest_of(store, federation.name)
    accepted = isinstance(edited.get("privacy"), dict) and edited["privacy"].get("accept_noise")
    if newest and newest.active:
        why = "A run of this federation goes on; there is one at a time."
    elif settings is None or looked is None:
        why = "The settings are not complete yet, or not right."
    elif looked.refusals and not accepted:
        why = "The signal would drown in the noise."
    else:
        why = ""
    spending = settings is not None and spends(settings)
    with st.container(horizontal=True):
        label = "Start and spend privacy…" if spending else "Start…"
        if st.button(label, type="primary", icon=":material/rocket_launch:", disabled=bool(why), key=f"{key} start"):
            st.session_state[_OPEN] = {"name": federation.name, "data": edited, "newest": newest.id if newest else None}
            st.session_state.pop(_ERROR, None)
        changed = edited != federation.data
        if st.button("Save", icon=":material/save:", key=f"{key} save"):
            federations.save(federation.name, edited)
            st.toast("Saved.")
            st.rerun()
    if why or changed:
        st.caption(why or "Not saved yet; a start saves it.")
    failed = st.session_state.get(_ERROR)
    if failed and failed[0] == edited:
        widgets.failure_card(failed[1], f"{key} start")
    if (opened := st.session_state.get(_OPEN)) and opened["name"] == federation.name:
        _confirm(opened)


def _close() -> None:
    st.session_state.pop(_OPEN, None)


@st.dialog("Start this run?", on_dismiss=_close)
def _confirm(opened: dict[str, Any]) -> None:
    """Who is asked for what, in words; where privacy is spent, the federation's name is typed."""
    settings = build(opened["data"], federations.get(opened["name"]).folder)
    st.markdown("\n".join(f"- {widgets.plain(words)}" for words in spend_words(settings)))
    typed, name = "", opened["name"]
    spending = spends(settings)
    if spending:
        st.markdown(
            "**Spent privacy cannot be given back**, even if the run fails or you stop it. A synthetic set that you reject"
            f" is made anew and charged anew. Sites can still refuse. To start, type **{widgets.plain(name)}**."
        )
        typed = st.text_input(
            "Type the name of the federation to confirm", placeholder=name, key="start.typed", live=True, autocomplete="off"
        )
    else:
        st.markdown("Nothing is charged under a guarantee: this run makes no promise about what its results tell of a site.")
    if st.button("Start", type="primary", icon=":material/rocket_launch:", disabled=spending and typed != name, key="start.now"):
        _begin(opened, typed)
        _close()
        st.rerun()


def _begin(opened: dict[str, Any], typed: str) -> None:
    """Check again what was confirmed, keep the draft, start; or say why not."""
    name, data = opened["name"], opened["data"]
    try:
        federation = federations.get(name)
        settings = build(data, federation.folder)
        if spends(settings) and typed != name:
            st.session_state[_TOLD] = "Not started: the name was not typed."
            return
        if data != federation.data:
            federations.save(name, data)
        launch.check_at_hand(settings)
        run, ours = launch.start_once(settings, opened["newest"], frame.operator())
    except (CafeError, StoreError) as error:
        st.session_state[_ERROR] = (data, error)
        return
    by = f" by {run.operator}" if run.operator else ""
    st.session_state[_TOLD] = "" if ours else f"Already started {widgets.span(time.time() - run.created)} ago{by}. This is that run."
    st.query_params["run"] = run.id
