"""*Generate*: plan, start and watch the run that makes synthetic text with the sites without a GPU.

Draws the draft of ``pipeline.federations`` and the newest run. Which: ``?federation=`` and ``?run=`` in the address.
"""

from __future__ import annotations

import time

import streamlit as st

from app import draft_view, forms, frame, privacy_form, run_view, start, widgets
from app.forms import Values
from pipeline import chronicle, federations, overview, sample
from pipeline.federations import Federation
from pipeline.overview import Overview
from pipeline.settings import GeneratorSettings, MachineSettings, RunSettings, Stage1Settings, TaskSettings
from server_store.desk import Desk
from server_store.rows import Run

_EXPLAINED = """In *stage 1* the server's language model proposes texts. Each site without a GPU compares them with its own records on
its own machine and votes for the nearest ones. The votes are clipped, summed and noised; the winners are kept and varied. No record
leaves a site.

The result is a synthetic set that stays on this server. In *stage 2* it stands in for the sites without a GPU."""
_BASIC = ("rounds", "candidates_per_label", "survivors_per_label", "synthetic_per_label")
_SAMPLES = 10


def main() -> None:
    widgets.heading("Generate", _EXPLAINED)
    start.told()
    federation, run = start.about()
    start.draw(run, _run, federation, _form)


def _form(federation: Federation) -> None:
    key = f"generate {federation.name}"
    edited = start.draft(federation)
    left, right = st.columns([3, 2], gap="large")
    with left:
        with st.container(border=True):
            _text(federation, edited, key)
        with st.container(border=True):
            _generator(edited, key)
            spot = st.container()
        with st.container(border=True):
            _sites(edited)
            st.subheader("Privacy of stage 1", anchor=False)
            edited["privacy"] = privacy_form.draw(edited.get("privacy"), 1, key)
        with st.container(border=True):
            _stage(edited, key)
        with spot:
            _sample(federation, edited, key)  # last, since it takes everything that was typed
    with right:
        start.panel(federation, edited, 1, key)
        draft_view.as_yaml(federation, edited, key)


def _text(federation: Federation, edited: Values, key: str) -> None:
    """What is learned; all of it public."""
    st.subheader("What text?", anchor=False)
    st.caption("Everything here is public. Invented examples only: no private text.")
    task = forms.section(TaskSettings, edited.get("task"), ["kind", "description"], f"{key}.task", columns=1)
    roles = ["text", "label"] if task.get("kind") == "classification" else ["instruction", "input", "output"]
    with st.expander("Columns, and their words in the prompt", icon=":material/view_column:"):
        task = forms.section(TaskSettings, task, [*roles, "text_name", "answer_name"], f"{key}.task")
    edited["task"] = task
    draft_view.public_files(federation, edited, key)


def _generator(edited: Values, key: str) -> None:
    st.subheader("Who writes?", anchor=False)
    stage1 = dict(edited.get("stage1") or {})
    stored = stage1.get("generator")
    other = st.segmented_control(
        "Generator",
        ["ours", "other"],
        default="other" if stored else "ours",
        required=True,
        format_func={"ours": "Our model server, with the base model", "other": "Another server (vLLM)"}.__getitem__,
        key=f"{key}.generator.{forms.mark(stored)}",
        persist_state="session",
    )
    if other == "other":
        stage1["generator"] = forms.section(GeneratorSettings, stored, GeneratorSettings.model_fields, f"{key}.generator")
    else:
        stage1.pop("generator", None)
    forms.place(edited, "stage1", stage1)


def _sample(federation: Federation, edited: Values, key: str) -> None:
    """Some texts before anybody is asked."""
    st.caption(
        "*Sample first* shows what the generator proposes by itself: no site is asked, no privacy is spent."
        " It saves the draft and takes about a minute."
    )
    with widgets.guard(f"{key} sample"):
        if st.button("Sample first", icon=":material/science:", key=f"{key} sample button"):
            if edited != federation.data:
                federations.save(federation.name, edited)
            sample.start(federation.name)
            st.rerun()
        last = sample.found(federation.name)
        if last:
            st.fragment(_sampled, run_every=frame.FAST_S if last.state == "running" else None)(federation.name, key, last.state)


def _sampled(name: str, key: str, before: str) -> None:
    """The last sample; while it is made, drawn again and again."""
    last = sample.found(name)
    if last is None:
        return
    if last.state != before:
        st.rerun()
    if last.state == "running":
        st.progress(0.0, text=f"The generator writes… since {widgets.span(time.time() - last.begun)}")
    elif last.error:
        widgets.failure_card(last.error, f"{key} sample failed")
    else:
        st.dataframe(
            [{"text": text, "label": answer} for text, answer in last.texts],
            hide_index=True,
            alt="Sample texts of the generator",
            column_config={"text": st.column_config.TextColumn(width="large")},
        )
        st.caption(
            f"Made {widgets.when(last.begun)}, by the generator alone."
            + (f" Dropped: {widgets.plain(last.dropped)}." if last.dropped else "")
        )


def _sites(edited: Values) -> None:
    st.subheader("Who helps?", anchor=False)
    sites = [site for site in edited.get("sites") or [] if isinstance(site, dict)]
    weak = [str(site.get("name", "")) for site in sites if site.get("kind") == "cpu"]
    if weak:
        st.markdown(f"{len(weak)} site{'s' if len(weak) > 1 else ''} without a GPU vote{'' if len(weak) > 1 else 's'}:")
        st.markdown(" ".join(f":gray-badge[{widgets.plain(name)}]" for name in weak))
    else:
        st.markdown("No site without a GPU yet: without one there is no stage 1, and only the sites with a GPU train.")
    st.page_link("views/sites.py", label="Change it on Sites", icon=":material/hub:")


def _stage(edited: Values, key: str) -> None:
    """How many votes and texts, and who reads the set before it is trained on."""
    st.subheader("How much?", anchor=False)
    stage1 = forms.section(Stage1Settings, edited.get("stage1"), _BASIC, f"{key}.stage1")
    stage1 = forms.section(Stage1Settings, stage1, ["approve"], f"{key}.stage1")
    waits = stage1.get("approve") == "operator"
    st.caption(
        "The run stops when the set is made and waits until you have read it on Datasets."
        if waits
        else "Nobody reads the set before it is trained on: stage 2 begins at once."
    )
    with st.expander("All settings of stage 1", icon=":material/tune:"):
        stage1 = forms.section(Stage1Settings, stage1, forms.others(Stage1Settings, (*_BASIC, "approve")), f"{key}.stage1")
        rest = forms.section(RunSettings, edited, ["embedder", "seed"], key)
    with st.expander("This machine: speed and memory only", icon=":material/memory:"):
        machine = forms.section(MachineSettings, edited.get("machine"), MachineSettings.model_fields, f"{key}.machine")
    for name in ("embedder", "seed"):
        forms.put(edited, name, rest.get(name), None, {name: ""})
    forms.place(edited, "stage1", stage1)
    forms.place(edited, "machine", machine)


def _run(run: Run) -> None:
    with widgets.guard("generate run"):
        with frame.desk() as store:
            seen = overview.look(store, run.id)
        if seen.awaits_approval:
            start.decide(run.id)
        run_view.watch(run.id, "generate", more=_votes)
        with st.container(horizontal=True):
            st.page_link("views/datasets.py", label="Its synthetic set", icon=":material/dataset:", query_params={"run": run.id})
            st.page_link("views/train.py", label="Its training", icon=":material/model_training:", query_params={"run": run.id})


def _votes(store: Desk, seen: Overview) -> None:
    """Every vote in numbers, and the newest texts that the generator wrote. All of it is public."""
    found = chronicle.votes(store, seen.run.id)
    if not found:
        return
    again = f", attempt {seen.attempt}" if seen.attempt > 1 else ""
    st.subheader(f"Votes{again}", anchor=False)
    rows = [
        {
            "vote": vote.number,
            "candidates": vote.candidates,
            "kept by the vote": "–" if vote.survivors is None else str(vote.survivors),
            "dropped before it": ", ".join(f"{number} {reason}" for reason, number in vote.dropped.items()) or "none",
            "sites answered": f"{vote.answers.answered} of {vote.answers.asked}" if vote.answers.asked else "not asked yet",
            "took": widgets.span(vote.answers.seconds),
        }
        for vote in found
    ]
    st.dataframe(rows, hide_index=True, alt="Candidates, survivors and answers of each vote")
    what, texts = chronicle.newest_texts(store, seen.run.id)
    if texts:
        st.subheader(f"Some of {what}", anchor=False)
        every = max(1, len(texts) // _SAMPLES)
        st.dataframe(
            [{"text": record.text, "label": record.answer} for record in texts[::every][:_SAMPLES]],
            hide_index=True,
            alt=f"Some of {what}: texts written by the generator",
            column_config={"text": st.column_config.TextColumn(width="large")},
        )
        st.caption(
            f"{_SAMPLES if len(texts) > _SAMPLES else len(texts)} of {len(texts)} texts, written by the generator; none is a site's record."
        )


main()
