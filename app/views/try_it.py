"""*Try it*: one question, answered by the base model and the run's adapters side by side.

Draws and asks; the models live in a process of their own (``pipeline.chat``), and what was said in the store.
"""

from __future__ import annotations

import time
from typing import Any

import streamlit as st

from app import frame, talk_view, widgets
from pipeline import chat, conversation
from pipeline.answers import Answers, Column
from pipeline.chat import Chat
from pipeline.chat_service import idle_minutes
from server_store.desk import Desk
from server_store.rows import Run

WHAT = """
The same question goes to up to three models at once, in the same words and with the same seed:

- **Base**: the base model as it came.
- **Synthetic only**: with the adapter that was trained on the synthetic set alone.
- **Federated**: with the adapter that the sites trained together.

The digits under each name are the SHA-256 of the files that answer. For a classification task the table below the answers
says how probable each model finds each label. A *blind* question hides the names until you have voted.
"""
ABOUT_S = 40  # what a start takes on a small machine


def main() -> None:
    widgets.heading("Try it", WHAT)
    with widgets.guard("try"), frame.desk() as desk:
        if run := _choose(desk):
            _talk(desk, Chat(run.id))


def _talk(desk: Desk, talk: Chat) -> None:
    _notice(desk, talk.run)
    asked: dict[str, Any] | None = None
    if _service(desk, talk):
        with widgets.guard("columns"):
            asked = _asking(talk)
    with st.container():  # in its place on the page, so that the newest answers stand right below it
        prompt = st.chat_input("Ask all models", key="try-prompt", submit_mode="stop", max_chars=8000, disabled=asked is None)
    example, talk_view.tab().example = talk_view.tab().example, None
    place = st.container()
    if asked and asked["blind"]:
        talk_view.tally(desk, talk.run)
    talk_view.history(desk, talk.run)
    if asked and (prompt or example):
        text, expected = (str(prompt), "") if prompt else (example or ("", ""))
        with place, widgets.guard("ask"):
            _ask(desk, talk, text, expected, asked)


def _choose(desk: Desk) -> Run | None:
    """The run of the address, else the newest that has an adapter."""
    runs = chat.with_adapters(desk.runs())
    wanted = st.query_params.get("run")
    if wanted and wanted not in [run.id for run in runs]:
        run = desk.run(wanted)  # CAFE-655 for an unknown id
        st.info(f"Run {widgets.plain(run.id)} has no adapter yet ({run.shown_state}). Its first one comes with stage 2.")
        st.page_link("views/runs.py", label="Open the run", icon=":material/open_in_new:", query_params={"run": run.id})
        return None
    if not runs:
        st.info("There is nothing to try yet: no run has an adapter. The first run that reaches stage 2 brings one.")
        st.page_link("views/home.py", label="Go to Home", icon=":material/home:")
        return None
    ids = [run.id for run in runs]
    chosen = st.selectbox("Run", ids, index=ids.index(wanted) if wanted else 0, width=440)
    if chosen != (wanted or ids[0]):
        st.query_params["run"] = chosen
        st.rerun()
    return next(run for run in runs if run.id == chosen)


def _notice(desk: Desk, run: Run) -> None:
    """What must not be typed, and what becomes of what is typed."""
    stored = desk.preference("store_prompts", "yes") != "no"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            ":material/warning: **Do not type patient data.** "
            + ("Prompts are stored on this server." if stored else "Prompts are not stored; they go with this tab.")
        )
        if st.button("Turn off storing" if stored else "Turn on storing", key="try-store", type="tertiary", icon=":material/database:"):
            desk.set_preference("store_prompts", "no" if stored else "yes")
            st.rerun()
        with st.popover("Delete prompts", icon=":material/delete:", type="tertiary", key="try-delete"):
            st.markdown("All stored prompts, answers and votes about this run are deleted. This cannot be undone.")
            if st.button("Delete all of this run", key="try-forget"):
                desk.forget_chats(run.id)
                talk_view.tab().unstored.clear()
                st.rerun()


# -- the service -------------------------------------------------------------------------------------------------------


def _service(desk: Desk, talk: Chat) -> bool:
    """The model's state with what can be done about it; whether it may be asked."""
    service = talk.service
    if service.state == "starting":
        st.fragment(_starting, run_every=1.0)(talk.run_id)
    elif service.state == "failed":
        widgets.failure_card(service.error or {}, "chat", run=talk.run)
        _start_button(talk, "Try again")
    elif service.state == "stopped":
        with st.container(border=True):
            st.markdown(
                f":gray-badge[:material/pause_circle: Model stopped] Starting it takes about {ABOUT_S} s and as much memory as the base "
                f"model; it ends by itself when nobody has asked for {idle_minutes(desk):g} minutes."
            )
            _start_button(talk, "Start the chat")
    else:
        _ready(talk)
    if busy := next((run for run in desk.runs() if run.shown_state in ("Running", "Stopping")), None):
        st.info(
            f"This machine is busy with run {widgets.plain(busy.id)}. Answers are slow until it is done.", icon=":material/hourglass_top:"
        )
    return service.state == "ready"


def _starting(run_id: str) -> None:
    """Looks each second, in its own tab, until the model is there."""
    service = chat.state(run_id)
    if service.state != "starting":
        st.rerun()
    since = max(0.0, time.time() - service.since)
    with st.container(border=True):
        st.markdown(f":blue-badge[:material/hourglass_top: Starting model] About {ABOUT_S} s on a small machine.")
        st.progress(min(0.95, since / ABOUT_S), text=f"{widgets.plain(service.doing)} · {widgets.span(since)}")
        if st.button("Cancel", key="try-cancel"):
            chat.close(run_id)
            st.rerun()


def _start_button(talk: Chat, label: str) -> None:
    if st.button(label, key="try-start", type="primary", icon=":material/play_arrow:"):
        chat.open(talk.run_id)
        st.rerun()


def _ready(talk: Chat) -> None:
    other = talk.service.other
    where = f"the operator's server {widgets.plain(other)}" if other else "the built-in server, on this machine"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f":green-badge[:material/check_circle: Model ready] Answered by {where}.")
        if st.button("Stop the model", key="try-stop-model", type="tertiary", icon=":material/stop_circle:"):
            chat.close(talk.run_id)
            st.rerun()


# -- a question --------------------------------------------------------------------------------------------------------


def _asking(talk: Chat) -> dict[str, Any]:
    """How the next question is asked, and who answers it, with the proof."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = {False: "Task", True: "Free chat"}
        free = st.segmented_control(
            "Prompt", list(words), format_func=words.__getitem__, default=False, required=True, key="try-free",
            help="Task: the words in which the model was trained. Free chat: the base model's own chat template.",
        )  # fmt: skip
        with st.popover("Sampling", icon=":material/tune:", key="try-sampling"):
            how = _sampling(talk, bool(free))
        blind = st.toggle("Blind", key="try-blind", help="Names are hidden and shuffled until you have voted.")
        if st.button("Example from the public test set", key="try-example-button", icon=":material/casino:"):
            example = talk.example()
            talk_view.tab().example = (example.text, example.answer)
    names = [name for name in talk.names() if name in ("base", "synthetic-only")] + [how.pop("federated")]
    columns = talk.columns([name for name in names if name])
    _heads(columns)
    return {**how, "columns": columns, "free": bool(free), "blind": blind}


def _sampling(talk: Chat, free: bool) -> dict[str, Any]:
    short = bool(talk.task.labels) and not free
    mode = "free" if free else "task"
    seed = st.number_input("Seed", 0, 2**31 - 1, 0, key="try-seed", help="The same seed and question give the same answers again.")
    temperature = st.slider(
        "Temperature", 0.0, 2.0, 0.0 if short else 0.7, 0.1, key=f"try-temperature-{mode}", help="0: always the likeliest."
    )
    tokens = st.number_input("Tokens, at most", 1, 2048, 16 if short else 200, key=f"try-tokens-{mode}")
    adapters = [name for name in talk.names() if name not in ("base", "synthetic-only")]
    chosen = st.selectbox("Federated adapter", adapters, format_func=chat.title, key="try-adapter") if adapters else ""
    return {"seed": int(seed), "temperature": temperature, "max_tokens": int(tokens), "federated": chosen}


def _heads(columns: list[Column]) -> None:
    """Which weights answer, in words and by hash."""
    for place, column in zip(st.columns(len(columns)), columns, strict=True):
        with place, st.container(border=True, height="stretch", gap="xsmall"):
            st.markdown(f"**{widgets.plain(column.title)}** = {widgets.plain(column.words)}")
            label = f"base {talk_view.short(column.base_sha256)}"
            if column.adapter_sha256:
                st.caption(label)
                label = f"adapter {talk_view.short(column.adapter_sha256)}"
            with st.popover(label, icon=":material/fingerprint:", type="tertiary", key=f"proof {column.name}", help="The whole hashes"):
                st.markdown("SHA-256 of what was loaded. Base: over all files of the model's folder.")
                st.code(column.base_sha256 or "not proven: another server holds it", language=None, wrap_lines=True)
                if column.adapter_sha256:
                    st.markdown("Adapter: of `adapter_model.safetensors`, taken before and after it was loaded.")
                    st.code(column.adapter_sha256, language=None, wrap_lines=True)


def _ask(desk: Desk, talk: Chat, prompt: str, expected: str, asked: dict[str, Any]) -> None:
    """Stream all answers; whatever ends this, what has arrived is kept."""
    columns = conversation.shuffled(asked["columns"]) if asked["blind"] else asked["columns"]
    how = {key: asked[key] for key in ("seed", "temperature", "max_tokens")}
    talk_view.prompt(prompt, expected)
    if expected:  # the input has a stop of its own
        st.button("Stop", key="try-stop", icon=":material/stop:")  # any click ends this drawing, and with it the answers
    tab = talk_view.tab()
    tab.cut = False
    st.fragment(_cut_short, run_every=1.0)()
    places = [place.empty() for place in st.columns(len(columns))]
    answers = talk.ask(prompt, columns, free=asked["free"], **how)
    template = talk.template(asked["free"])
    try:
        with answers:
            _draw(answers, places, asked["blind"])
    finally:
        kept = conversation.question(answers, template=template, blind=asked["blind"], expected=expected, **how)
        number = talk_view.keep(desk, tab, talk.run_id, prompt, kept)
        tab.cut = True
    if talk.task.labels and not asked["free"] and not talk.service.other:
        table = talk.label_scores(prompt, columns)
        talk_view.change(desk, tab, number, conversation.with_labels(kept, talk.task.labels, table.tolist()))
    st.rerun()


def _cut_short() -> None:
    """The input's stop ends the drawing where it is: this draws the page once more, from what was kept."""
    if talk_view.tab().cut:
        st.rerun()


def _draw(answers: Answers, places: list[Any], blind: bool) -> None:
    for _ in answers.updates():
        for number, (place, stream) in enumerate(zip(places, answers.streams, strict=True)):
            title = conversation.letter(number) if blind else stream.column.title
            with place.container(border=True):
                talk_view.answer(title, stream.as_json())


main()
