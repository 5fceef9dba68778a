"""One synthetic set in five tabs: its rows, its use, its privacy, its card, its files. Only the open tab is computed.

Draws what ``pipeline.datasets`` says. The texts are a model's: they stand as plain text or in cells, never as Markdown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial

import altair as alt
import pandas as pd
import streamlit as st

from app import downloads, frame, widgets
from pipeline import accounting, approval, cards, catalogue, datasets
from pipeline.catalogue import Score
from pipeline.datasets import Dataset
from pipeline.duplicates import Group

_PAGE = 25
_SHOWN = 200  # rows of a table of repeats
_ALL, _IN, _OUT, _REPEATS, _PUBLIC = "All rows", "Kept", "Left out", "Repeats", "As a public example"


def tabs(dataset: Dataset) -> None:
    """The five tabs; which one is open stands in the address."""
    drawn = {"Look": _look, "Usefulness": _usefulness, "Privacy": _privacy, "Card": _card, "Files": _files}
    for tab, draw in zip(st.tabs(list(drawn), key="dataset_tab", bind="query-params", on_change="rerun"), drawn.values(), strict=True):
        if tab.open:
            with tab, widgets.guard(f"dataset {draw.__name__}"):
                draw(dataset)


def _look(dataset: Dataset) -> None:
    """Rows to read, a page at a time."""
    labels, waits = datasets.classes(dataset), dataset.state == datasets.WAITING
    key = f"{dataset.run} {dataset.attempt}"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        search = st.text_input("Search", type="search", key=f"search {key}", placeholder="words of a text", width=280) or ""
        label = st.selectbox("Label", labels, index=None, placeholder="every label", key=f"label {key}", width=220) if labels else None
        which = st.selectbox("Show", [_ALL, _IN, _OUT, _REPEATS, _PUBLIC], key=f"which {key}", width=220)
    found = datasets.matching(dataset, search, label, _chosen(dataset, which or _ALL))
    pages = max(1, math.ceil(len(found) / _PAGE))
    place = st.empty()
    page = st.pagination(pages, key=f"page {key} {search} {label} {which}") if pages > 1 else 1
    shown = found[(page - 1) * _PAGE : page * _PAGE]
    with place.container():
        _count(dataset, found, shown, page)
        if waits and found and which in (_REPEATS, _PUBLIC):
            _leave_all(dataset, found, which)
        for row in shown:
            _row(dataset, row, waits)


def _chosen(dataset: Dataset, which: str) -> Sequence[int]:
    if which == _REPEATS:
        return datasets.repeats(dataset).spare
    if which == _PUBLIC:
        return datasets.public(dataset) or ()
    if which == _ALL:
        return range(dataset.size)
    return dataset.kept if which == _IN else sorted(dataset.excluded)


def _count(dataset: Dataset, found: Sequence[int], shown: Sequence[int], page: int) -> None:
    if not found:
        st.info("No row is like that.", icon=":material/search_off:")
        return
    first = (page - 1) * _PAGE + 1
    of = f"{len(found)} rows" if len(found) == dataset.size else f"{len(found)} of {dataset.size} rows"
    out = f" · {len(dataset.excluded)} left out" if dataset.excluded else ""
    st.caption(f"{first} to {first + len(shown) - 1} of {of}{out}")


def _leave_all(dataset: Dataset, rows: Sequence[int], which: str) -> None:
    told = "each repeats an earlier row that stays" if which == _REPEATS else "their texts are public examples"
    if st.button(f"Leave out all {len(rows)} of these", icon=":material/playlist_remove:", help=told, key="leave all"):
        with frame.desk() as store:
            approval.leave_out(store, dataset.run, dataset.attempt, rows)
        st.rerun()


def _row(dataset: Dataset, row: int, waits: bool) -> None:
    """One text as it was written, and the box that leaves it out."""
    record, key = dataset.rows[row], f"out {dataset.run} {dataset.attempt} {row}"
    with st.container(border=True, key=f"row {row}", gap="xsmall"):
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            label = widgets.plain(record.answer) if dataset.made.settings.task.kind == "classification" else ""
            st.caption(f"Row {row + 1}" + (f" · {label}" if label else ""), width="content")
            if waits:
                st.session_state[key] = row in dataset.excluded  # what the store says, also when another tab ticked it
                st.checkbox("Leave out", key=key, on_change=partial(_tick, dataset.run, dataset.attempt, row, key), width="content")
            elif row in dataset.excluded:
                st.badge("left out", icon=":material/block:", color="gray")
        st.text(record.text)
        if not label:
            st.caption("Answer")
            st.text(record.answer)


def _tick(run: str, attempt: int, row: int, key: str) -> None:
    with widgets.guard("tick"), frame.desk() as store:
        approval.leave_out(store, run, attempt, [row], bool(st.session_state[key]))


def _usefulness(dataset: Dataset) -> None:
    _scores(dataset)
    kept = [dataset.rows[row] for row in dataset.kept]
    if not kept:
        st.info("Every row is left out.", icon=":material/block:")
        return
    left, right = st.columns(2)
    with left:
        labels = datasets.shares([record.answer for record in kept], datasets.classes(dataset))
        if labels:
            _labels(labels)
    with right:
        _lengths([record.text for record in kept])
    _repeats(dataset)


def _scores(dataset: Dataset) -> None:
    st.subheader("Training on it alone", anchor=False)
    told: list[tuple[str, Score | None]] = [("Base model", dataset.made.zero_shot), ("After training on the set", dataset.score)]
    told += [("After training on the kept rows", dataset.kept_score)] if dataset.kept_score else []
    with st.container(horizontal=True):
        for name, score in told:
            st.metric(name, score.shown if score else "–", border=True, width=250)
    known = dataset.score or dataset.made.zero_shot
    if known is None:
        st.caption("Not scored yet.")
        return
    what = "Share of right answers" if known.kind == "accuracy" else "Mean loss, lower is better,"
    st.caption(f"{what} on {known.n} public test records. With a small n, differences of a few per cent are chance.")
    if dataset.excluded and not dataset.kept_score and dataset.score:
        st.caption("Scored with all rows; after an approval it is trained and scored again without the rows that are left out.")


def _labels(labels: Sequence[datasets.Share]) -> None:
    st.subheader("Labels", anchor=False)
    rows = pd.DataFrame({"label": [one.label for one in labels], "rows": [one.rows for one in labels]})
    few, most = min(labels, key=lambda one: one.rows), max(labels, key=lambda one: one.rows)
    told = f"Rows per label: {few.rows} to {most.rows} over {len(labels)} labels."
    told = told if few.rows < most.rows else f"{few.rows} rows for each of {len(labels)} labels."
    bars = (
        alt.Chart(rows)
        .mark_bar()
        .encode(x=alt.X("rows:Q", title="rows", axis=alt.Axis(tickMinStep=1)), y=alt.Y("label:N", sort=None, title=None))
    )
    st.altair_chart(bars.properties(height=70 + 24 * len(labels)), alt=told)
    st.caption(f"{told} They come from the operator's quotas and from what the generator could write; they say nothing about the sites.")
    table = [{"Label": one.label, "Rows": one.rows, "Share": f"{one.share:.1%}".replace("%", " %")} for one in labels]
    with st.expander("As a table"):
        st.dataframe(table, hide_index=True, alt="Rows and share of every label")


def _lengths(texts: Sequence[str]) -> None:
    found = datasets.lengths(texts)
    if found is None:
        return
    st.subheader("Lengths", anchor=False)
    rows = pd.DataFrame([{"words": f"{low}" if low == high else f"{low}–{high}", "rows": rows} for low, high, rows in found.bins])
    told = f"Words per text: {found.shortest} to {found.longest}, half of the texts have {found.median:g} or fewer."
    told = told if found.shortest < found.longest else f"Every text has {found.shortest} words."
    bars = (
        alt.Chart(rows)
        .mark_bar()
        .encode(
            x=alt.X("words:N", sort=None, title="words", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("rows:Q", title="texts", axis=alt.Axis(tickMinStep=1)),
        )
    )
    st.altair_chart(bars.properties(height=240), alt=told)
    st.caption(told)


def _repeats(dataset: Dataset) -> None:
    st.subheader("Repeats", anchor=False)
    found, known = datasets.repeats(dataset), datasets.public(dataset)
    with st.container(horizontal=True):
        st.metric("Exact copies", found.exact_spare, border=True, width=190)
        st.metric("Near copies", found.near_spare, border=True, width=190)
        st.metric("As a public example", "not known" if known is None else len(known), border=True, width=190)
    st.caption(
        "Kept rows that repeat an earlier one. Exact: the same but for case, marks and spaces. Near: four fifths of the letter"
        " triples that either text has are in both. The public examples are part of the set by design."
    )
    groups = [("exact", group) for group in found.exact] + [("near", group) for group in found.near]
    rows = [_group(dataset, number, kind, row) for number, (kind, group) in enumerate(groups, start=1) for row in group]
    if rows:
        st.dataframe(
            rows[:_SHOWN], hide_index=True, alt="Rows that repeat each other, in groups", column_config={"Text": {"width": "large"}}
        )
        more = f" The first {_SHOWN} of {len(rows)} are shown." if len(rows) > _SHOWN else ""
        st.caption(f"{_mixed(dataset, [group for _, group in groups])}{more} Tab Look, *Show: {_REPEATS}* leaves them out.")


def _group(dataset: Dataset, number: int, kind: str, row: int) -> dict[str, object]:
    record = dataset.rows[row]
    return {"Group": number, "Kind": kind, "Row": row + 1, "Label": record.answer, "Text": record.text}


def _mixed(dataset: Dataset, groups: Sequence[Group]) -> str:
    """Texts that stand under two labels contradict each other."""
    mixed = sum(len({dataset.rows[row].answer for row in group}) > 1 for group in groups)
    return f"{mixed} {'group has' if mixed == 1 else 'groups have'} texts with different labels." if mixed else "No group mixes labels."


def _privacy(dataset: Dataset) -> None:
    settings = dataset.made.settings
    promise = catalogue.promised(dataset.made)
    stage = promise["stage1"]
    st.subheader("The formal statement", anchor=False)
    st.markdown(f"Stage 1, votes of {dataset.made.weak} sites for these texts: **{cards.told(promise, 'stage1')}**.")
    lines = []
    if isinstance(stage, dict):
        adder = {"server": "the server adds it once, to the sum", "local": "every site adds it to its own message"}
        lines = [
            f"**Unit**: {stage['unit']}, that is all records of one site.",
            f"**Adjacency**: {stage['adjacency']}; what is released changes little when one site's votes become zero.",
            f"**δ** = {accounting.shown(stage['delta'])}: the probability with which the bound may fail.",
            f"**Trust**: who adds the noise: {adder.get(stage['trust'], stage['trust'])}.",
            f"**Counted**: {stage['releases']} releases, all attempts at a set in that run together.",
        ]
    lines.append(
        "**Not covered**: what the generator has seen in its own training; the public label list and examples; who takes part;"
        " what the same sites spent in other runs."
    )
    st.markdown("\n".join(f"- {line}" for line in lines))
    found = datasets.spent(dataset)
    rows = [{"Site": site, "ε": accounting.NO_GUARANTEE if math.isinf(one) else f"{one:g}"} for site, one in found.items()]
    if rows:
        st.dataframe(rows, hide_index=True, width="content", alt="Privacy spent for this set by every site")
    if settings.synthetic:
        st.caption(f"Spent by run {widgets.plain(str(dataset.made.taken.get('charged_to')))}; nothing was charged again.")
    st.subheader("Compared with the sites' records", anchor=False)
    st.write("No site returned comparison figures; nothing private is compared on this server.")


def _card(dataset: Dataset) -> None:
    text = (dataset.made.dataset(dataset.attempt).folder / "README.md").read_text(encoding="utf-8")
    with st.container(border=True):
        st.markdown(re.sub(r"^(#+) ", r"###\1 ", text.split("\n---\n", 1)[-1], flags=re.MULTILINE))


def _files(dataset: Dataset) -> None:
    folder = dataset.made.dataset(dataset.attempt).folder
    files = [path for name in ("train.parquet", "train.jsonl", "README.md") if (path := folder / name).is_file()]
    rows = [{"File": path.name, "Size": widgets.size(path.stat().st_size), "sha256": catalogue.file_sha256(path)} for path in files]
    with st.container(horizontal=True):
        for what, told in (("dataset.zip", "All files"), ("dataset.parquet", "Parquet"), ("dataset.jsonl", "JSONL")):
            icon = ":material/download:"
            st.link_button(told, downloads.url(dataset.run, what, attempt=dataset.attempt), icon=icon)
    st.dataframe(rows, hide_index=True, alt="Files of the set with sizes and hashes")
    if dataset.excluded and dataset.made.run.state != "Done":
        st.caption("The files hold all rows until the run is done; then they are written again without the rows that were left out.")
    st.caption("They lie on this machine in:")
    st.code(str(folder), language=None, wrap_lines=True)
