"""*Train*: plan, start and watch the federated rounds.

Draws the draft of ``pipeline.federations`` and the newest run. Which: ``?federation=`` and ``?run=`` in the address.
"""

from __future__ import annotations

import streamlit as st

from app import downloads, draft_view, forms, frame, privacy_form, run_view, start, widgets
from app.forms import Values
from pipeline import chronicle, history, overview
from pipeline.federations import Federation
from pipeline.forecast import Forecast
from pipeline.overview import Overview
from pipeline.settings import RunSettings, Stage2Settings
from server_store.desk import Desk
from server_store.rows import Run

_EXPLAINED = """In *stage 2* an adapter is trained in rounds. Sites with a GPU train on their own records and send only adapter
weights. For each site without a GPU the server trains in its place, on a share of the synthetic set. After each round the updates
are averaged and the new adapter is scored on the public test set."""
_BASIC = ("rounds", "steps", "learning_rate", "proxy_weight")
_RANKS = {"S": 4, "M": 8, "L": 16}


def main() -> None:
    widgets.heading("Train", _EXPLAINED)
    start.told()
    federation, run = start.about()
    start.draw(run, _run, federation, _form)


def _form(federation: Federation) -> None:
    key = f"train {federation.name}"
    edited = start.draft(federation)
    left, right = st.columns([3, 2], gap="large")
    with left:
        with st.container(border=True):
            _roles(edited)
            _dataset(federation, edited, key)
        with st.container(border=True):
            _model(edited, key)
        with st.container(border=True):
            st.subheader("Privacy of stage 2", anchor=False)
            edited["privacy"] = privacy_form.draw(edited.get("privacy"), 2, key)
    with right:
        start.panel(federation, edited, 2, key, more=_estimate)
        draft_view.as_yaml(federation, edited, key)


def _roles(edited: Values) -> None:
    """Who trains on what."""
    st.subheader("Who trains?", anchor=False)
    kinds = [site.get("kind") for site in edited.get("sites") or [] if isinstance(site, dict)]
    weak, strong = kinds.count("cpu"), kinds.count("gpu")
    if weak:
        st.markdown(f"The server trains for {_sites(weak)} without a GPU, on synthetic data.")
    if strong:
        own = "train on their own data and send" if strong > 1 else "trains on its own data and sends"
        st.markdown(f"{_sites(strong)} with a GPU {own} only adapter weights.")
    if not kinds:
        st.markdown("No site yet.")
    st.page_link("views/sites.py", label="Change it on Sites", icon=":material/hub:")


def _sites(number: int) -> str:
    return f"{number} site{'' if number == 1 else 's'}"


def _dataset(federation: Federation, edited: Values, key: str) -> None:
    """A new synthetic set, or the approved one of an earlier run."""
    stored = edited.get("synthetic")
    with frame.desk() as store:
        earlier = [run.id for run in chronicle.approved(store, federation.name)]
    options = list(dict.fromkeys(["", *earlier, *([str(stored)] if stored else [])]))
    chosen = st.selectbox(
        "Synthetic set",
        options,
        index=options.index(str(stored or "")),
        format_func=lambda run: f"the approved set of {run}" if run else "a new one (stage 1 runs first)",
        key=f"{key}.synthetic.{forms.mark(stored)}",
        persist_state="session",
    )
    forms.put(edited, "synthetic", chosen or None, None, {"synthetic": stored} if stored else {})
    if chosen:
        st.caption(
            "Stage 1 does not run again, and nothing is charged for this set again: what it cost then is part of this run's statement."
        )


def _model(edited: Values, key: str) -> None:
    """The base model, the rounds, the adapter's size."""
    st.subheader("What is trained, and how long?", anchor=False)
    named = forms.section(RunSettings, edited, ["base_model"], key, columns=1)
    forms.put(edited, "base_model", named.get("base_model"), None, {"base_model": ""})
    stage2 = forms.section(Stage2Settings, edited.get("stage2"), _BASIC, f"{key}.stage2")
    stage2 = _rank(stage2, key)
    with st.expander("All settings of stage 2", icon=":material/tune:"):
        stage2 = forms.section(Stage2Settings, stage2, forms.others(Stage2Settings, (*_BASIC, "lora_rank")), f"{key}.stage2")
    forms.place(edited, "stage2", stage2)


def _rank(stage2: Values, key: str) -> Values:
    """Three sizes of adapter, and the exact number."""
    stored = stage2.get("lora_rank")
    number = f"{key}.stage2.lora_rank.{forms.mark(stored)}"
    preset = f"{key}.preset.{forms.mark(stored)}"
    now = st.session_state.get(number, stored if isinstance(stored, int) else _default_rank())
    st.session_state[preset] = next((name for name, rank in _RANKS.items() if rank == now), None)

    def pick() -> None:
        if st.session_state[preset]:
            st.session_state[number] = _RANKS[st.session_state[preset]]

    left, right = st.columns(2)
    with left:
        st.segmented_control(
            "Size of the adapter", list(_RANKS), format_func=lambda name: f"{name} · {_RANKS[name]}", key=preset, on_change=pick
        )
    with right:
        return forms.section(Stage2Settings, stage2, ["lora_rank"], f"{key}.stage2", columns=1)


def _default_rank() -> int:
    return int(Stage2Settings.model_fields["lora_rank"].default)


def _estimate(settings: RunSettings, looked: Forecast) -> None:
    """How large, how long: from the model's shapes, and from the newest finished run's own seconds."""
    left, right = st.columns(2)
    left.metric("Trained numbers", f"{looked.trained:,}".replace(",", " ") if looked.trained else "–")
    right.metric("Sent per site and round", widgets.size(looked.upload) if looked.upload else "–")
    if looked.trained is None:
        st.caption("Both are known once the base model is on this disk.")
    with frame.desk() as store:
        took = chronicle.seconds_per_round(store, settings.name)
    if took is None:
        st.caption("How long a round takes is not known: no run of this federation has finished yet.")
        return
    run, seconds = took
    before = overview.settings_of(run)
    steps = f" ({before.stage2.steps} steps a site)" if before else ""
    planned = f"{settings.stage2.rounds} rounds of {settings.stage2.steps} steps are planned"
    st.caption(f"A round took {widgets.span(seconds)} in the newest finished run{steps}; {planned}.")


def _run(run: Run) -> None:
    with widgets.guard("train run"):
        with frame.desk() as store:
            seen = overview.look(store, run.id)
        if seen.awaits_approval:
            start.decide(run.id)
        if seen.state == "Done":
            _done(seen)
        run_view.watch(run.id, "train", more=_rounds)
        _compare(run)


def _done(seen: Overview) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown("**The adapter is ready.**")
        if st.button("Try it", type="primary", icon=":material/forum:"):
            st.switch_page("views/try_it.py", query_params={"run": seen.run.id})
        st.link_button("Download", downloads.url(seen.run.id, "adapter.zip"), icon=":material/download:")
        st.page_link("views/adapters.py", label="Its card and files", icon=":material/extension:", query_params={"run": seen.run.id})


def _rounds(store: Desk, seen: Overview) -> None:
    """Every finished round: score, seconds, who answered."""
    found = chronicle.rounds(store, seen.run.id)
    if not found:
        return
    st.subheader("Rounds", anchor=False)
    best = seen.best.round if seen.best else None
    rows = [
        {
            "round": "0 · synthetic only" if not one.number else f"{one.number}{' · best' if one.number == best else ''}",
            one.metric: widgets.score(one.score, one.metric),
            "took": widgets.span(one.seconds),
            "sites answered": f"{one.answers.answered} of {one.answers.asked}" if one.answers.asked else "–",
            "late": one.answers.late,
            "failed": one.answers.failed,
            "trained by the server": one.answers.proxies,
        }
        for one in found
    ]
    st.dataframe(rows, hide_index=True, alt="Score, seconds and answers of each round")
    if seen.best:
        better = "highest accuracy" if seen.metric == "accuracy" else "lowest loss"
        last = seen.settings.stage2.rounds if seen.settings else None
        kept = (
            ""
            if seen.best.round == last
            else f" The run's result is the adapter of its last round; round {seen.best.round} can be downloaded on Adapters."
        )
        st.caption(f"Best: round {seen.best.round}, with the {better} on the {seen.best.n} public test records.{kept}")


def _compare(run: Run) -> None:
    """Which settings differ from another run's; what is equal is left out."""
    with frame.desk() as store:
        others = [one.id for one in store.runs() if one.id != run.id]
        runs = {one.id: one for one in store.runs()}
    if not others:
        return
    with st.expander("Compare with another run", icon=":material/compare_arrows:"):
        other = st.selectbox("Run", others, key=f"compare {run.id}")
        differ = history.differences(run, runs[other])
        if not differ:
            st.caption("Their settings are the same.")
            return
        st.dataframe(
            [{"setting": name, "this run": one, "the other": two} for name, one, two in differ],
            hide_index=True,
            alt="Settings that differ between the two runs",
        )


main()
