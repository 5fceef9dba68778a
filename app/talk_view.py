"""What was asked about a run and what was answered, as *Try it* draws it: the history, label scores, blind votes.

Knows how to draw and where a question is kept (``Desk``; in this tab alone where the operator stores no prompts). Asks no model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import streamlit as st

from app import widgets
from pipeline import conversation
from pipeline.conversation import Question
from server_store.desk import Desk
from server_store.rows import Run

SHOWN = 20  # questions of the history


@dataclass
class Tab:
    """What one browser tab holds between two drawings. A stopped drawing may still write into it, but no longer into Streamlit."""

    unstored: list[tuple[str, str, Question]] = field(default_factory=list)  # run, prompt, what was answered
    example: tuple[str, str] | None = None  # to be asked next: text and its public answer
    cut: bool = False  # an answer came to its end, or was stopped, and is not drawn yet


def tab() -> Tab:
    """This tab's."""
    return cast(Tab, st.session_state.setdefault("try-tab", Tab()))


def keep(desk: Desk, here: Tab, run_id: str, prompt: str, kept: Question) -> int:
    """In the store, or in this tab alone where the operator stores no prompts: those have negative numbers."""
    if desk.preference("store_prompts", "yes") != "no":
        return desk.remember_chat(run_id, prompt, kept)
    here.unstored.append((run_id, prompt, kept))
    return -len(here.unstored)


def change(desk: Desk, here: Tab, number: int, kept: Question) -> None:
    """Add a vote or scores to what is kept."""
    if number > 0:
        desk.update_chat(number, kept)
    else:
        here.unstored[-number - 1] = (*here.unstored[-number - 1][:2], kept)


def history(desk: Desk, run: Run) -> None:
    """The last questions, the newest first."""
    stored = [(one.id, one.prompt, one.answers) for one in desk.chats(run.id, SHOWN) if not one.answers.get("ballot")]
    here = enumerate(tab().unstored, start=1)
    items = stored + [(-number, text, kept) for number, (of, text, kept) in here if of == run.id]
    for number, text, kept in reversed(items):
        _said(desk, run.id, number, text, kept, newest=number == items[-1][0])


def _said(desk: Desk, run_id: str, number: int, text: str, kept: Question, newest: bool) -> None:
    prompt(text, kept["expected"])
    hidden = conversation.hidden(kept)
    for place, title, said in zip(st.columns(len(kept["answers"])), conversation.titles(kept), kept["answers"], strict=True):
        with place, st.container(border=True, height="stretch"):
            hashes = "no adapter" if not said["adapter_sha256"] else f"adapter {short(said['adapter_sha256'])}"
            answer(title, said, "" if hidden else hashes)
    st.caption(
        f"The same for all: {widgets.plain(kept['template'])} · seed {kept['seed']} · temperature {kept['temperature']:g} · "
        f"at most {kept['max_tokens']} tokens"
    )
    if hidden:
        _vote(desk, run_id, number, kept)
    if kept.get("labels"):
        with st.expander("Label scores", expanded=newest, icon=":material/bar_chart:"):
            _labels(kept)


def prompt(text: str, expected: str) -> None:
    """The question; of an example also what the public test set says."""
    with st.chat_message("user", avatar=":material/person:"):
        st.text(text)
        if expected:
            st.caption(f"An example from the public test set; its answer there: {widgets.plain(expected)}")


def answer(title: str, said: dict[str, Any], more: str = "") -> None:
    """One column's answer, whole or so far, as the models wrote it: never as Markdown."""
    st.markdown(f"**{widgets.plain(title)}**")
    if said["text"].strip():
        st.text(said["text"].strip())
    else:
        st.caption({"running": "…", "done": "It ended its answer without a word."}.get(said["state"], "Nothing had come."))
    if said["error"]:
        st.markdown(f":red-badge[:material/error: Failed] {widgets.plain(said['error'])}")
    spent = [f"{said['tokens']} token{'s' * (said['tokens'] != 1)}", f"{said['seconds']:.1f} s"]
    spent += [said["state"]] if said["state"] != "running" else []
    st.caption(" · ".join([*spent, more] if more else spent))


def _labels(kept: Question) -> None:
    """Label × column, as bars with figures, the likeliest over all columns first."""
    titles = conversation.titles(kept)
    rows = sorted(zip(kept["labels"], kept["scores"], strict=True), key=lambda row: -sum(row[1]))
    table = [{"Label": label, **{title: 100 * score for title, score in zip(titles, scores, strict=True)}} for label, scores in rows]
    bars = {title: st.column_config.ProgressColumn(title, format="%.1f %%", min_value=0, max_value=100) for title in titles}
    likeliest = ", ".join(f"{title}: {max(rows, key=lambda row: row[1][i])[0]}" for i, title in enumerate(titles))
    st.dataframe(
        table,
        hide_index=True,
        column_config={"Label": st.column_config.TextColumn(pinned=True), **bars},
        alt=f"Probability of each label by each model. Likeliest by {likeliest}.",
    )
    st.caption(
        f"Likeliest by {widgets.plain(likeliest)}. Each label's total log-probability after the task's prompt, as shares of the label list."
    )


def _vote(desk: Desk, run_id: str, number: int, kept: Question) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("Which answer is best? The names come after your vote.")
        for value, words in conversation.choices(kept).items():
            if st.button(words, key=f"vote {number} {value}"):
                voted = kept | {"vote": value}
                change(desk, tab(), number, voted)
                if number < 0:
                    desk.remember_chat(run_id, "", conversation.ballot(voted))
                st.rerun()


def tally(desk: Desk, run: Run) -> None:
    lines = conversation.tally([one.answers for one in desk.chats(run.id, 10_000)])
    if lines:
        with st.expander(f"Blind votes so far: {lines[0].n}", icon=":material/how_to_vote:"):
            for line in lines:
                st.markdown(
                    f"**{widgets.plain(line.title)}** was best in {line.wins} of {line.n} votes "
                    f"(95 % interval {line.low:.0%} to {line.high:.0%})"
                )


def short(sha256: str) -> str:
    """The first digits of a hash, for people."""
    return sha256[:12] or "not proven"
