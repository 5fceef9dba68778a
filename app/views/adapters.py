"""*Adapters*: what runs have made, to look at, to take home and to try.

Draws what ``pipeline.catalogue`` and ``pipeline.cards`` say. Which adapter: ``?run=`` and ``?round=`` in the address.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import streamlit as st

from app import downloads, frame, widgets
from pipeline import bundles, cards, catalogue
from pipeline.catalogue import Adapter, Made
from server_store.rows import Run

_EXPLAINED = """An *adapter* is a small file that changes what a language model answers. A run makes one after every federated
round; the last one is its result. It works with the base model that it was trained with and no other.

Before it is offered for download, its card must be complete, its files must hold no path of this machine, and its weights must
be the ones that the run wrote."""


def main() -> None:
    widgets.heading("Adapters", _EXPLAINED)
    with frame.desk() as store:
        listed, wanted = catalogue.with_adapters(store), st.query_params.get("run")
        active = next((run for run in store.runs() if run.active), None)
        if listed:
            _list(listed, wanted or listed[0].run.id)
        with widgets.guard("adapters"):
            shown = catalogue.made(store, wanted) if wanted else next(iter(listed), None)
            if shown and shown.newest:
                _detail(shown)
            elif wanted:
                _none_yet(store.run(wanted))
            elif not listed:
                _nothing(active)
        if active:
            st.fragment(_watch, run_every=frame.FAST_S)(active.id, _seen(catalogue.made(store, active.id), active))


def _list(listed: Sequence[Made], shown: str) -> None:
    rows = [
        {
            **({"Shown": "▸" if one.run.id == shown else ""} if len(listed) > 1 else {}),
            "Federation": one.settings.name,
            "Round": f"{newest.round} of {one.settings.stage2.rounds}",
            "Score": newest.score.shown,
            "n": newest.score.n,
            "Base model": one.base.name,
            "Size": widgets.size(newest.size),
            "Made": widgets.when(newest.made),
            "Run": one.run.id,
            "State": one.run.shown_state,
        }
        for one in listed
        if (newest := one.newest)
    ]
    ids = [one.run.id for one in listed]

    def choose() -> None:
        picked = st.session_state["adapters-list"]["selection"]["rows"]
        if picked:
            _open(ids[picked[0]])

    st.dataframe(
        rows,
        hide_index=True,
        width="stretch",
        key="adapters-list",
        on_select=choose,
        selection_mode="single-row",
        alt="Adapters, the newest run first",
    )
    if len(listed) > 1:
        st.caption("Select a row to see that adapter. Scores are on each run's own public test set: compare within a federation only.")


def _open(run: str, round: str | None = None) -> None:
    """Write the choice into the address."""
    st.query_params["run"] = run
    st.query_params.pop("round", None)
    if round is not None:
        st.query_params["round"] = round


def _detail(made: Made) -> None:
    title, choice = st.columns([3, 1], vertical_alignment="bottom")
    with choice:
        which = _round(made)
    with title, st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(f"{widgets.plain(made.settings.name)}, {which.title}", width="content")
        widgets.state_badge(made.run.shown_state)
    card = bundles.card_of(made, which)
    problems = bundles.refusals(made, which, card)
    if not made.final:
        st.info(_so_far(made), icon=":material/pending:")
    _figures(made, which)
    if problems:
        refused = {"code": "CAFE-687", "message": " ".join(problems), "hint": "It is not offered for download. Mend it, or run again."}
        widgets.failure_card(refused, "refused", run=made.run)
    _actions(made, which, bool(problems))
    load, scores, lineage, privacy, text, files = st.tabs(["Load it", "Scores", "Lineage", "Privacy", "Card", "Files"])
    with load:
        _load(made, which)
    with scores:
        _scores(made, which)
    with lineage:
        _lineage(made, which)
    with privacy:
        st.markdown(cards.privacy(catalogue.promised(made), made.settings))
    with text, st.container(border=True):
        st.markdown(re.sub(r"^(#+) ", r"###\1 ", card.split("\n---\n", 1)[1], flags=re.MULTILINE))
    with files:
        _files(made, which, card)


def _round(made: Made) -> Adapter:
    """The adapter of the address, else the newest; chosen anew in a box when there are several."""
    titles = {str(one.round): one.title for one in reversed(made.adapters)}
    wanted = st.query_params.get("round", "")
    now = wanted if wanted in titles else str(made.adapter().round)
    if len(titles) > 1:
        key = f"round {made.run.id} {now}"

        def choose() -> None:
            _open(made.run.id, st.session_state[key])

        st.selectbox(
            "Adapter after",
            list(titles),
            index=list(titles).index(now),
            format_func=titles.__getitem__,
            key=key,
            on_change=choose,
            width=260,
        )
    return made.adapter(int(now))


def _so_far(made: Made) -> str:
    done, of = made.adapters[-1].round, made.settings.stage2.rounds
    going = (
        "The run goes on; this" if made.run.active and made.run.shown_state != "Lost contact" else "The run has not come to its end; this"
    )
    return f"{going} is its adapter so far, after round {done} of {of}."


def _figures(made: Made, which: Adapter) -> None:
    others = [("Base model", made.zero_shot)] + [("Synthetic only", one.score) for one in made.adapters if one.round == 0 != which.round]
    with st.container(horizontal=True):
        for name, score in [("This adapter", which.score), *others]:
            if score:
                st.metric(name, score.shown, border=True, width=158)
        st.metric("Size", widgets.size(which.size), border=True, width=158)
    measured = "Share of right answers" if which.score.kind == "accuracy" else "Mean loss (lower is better)"
    st.caption(f"{measured} on {which.score.n} public test records. Made {widgets.when(which.made)}.")


def _actions(made: Made, which: Adapter, refused: bool) -> None:
    run = made.run.id
    with st.container(horizontal=True, vertical_alignment="center"):
        if not refused:
            address = downloads.url(run, "adapter.zip", round=which.round)
            st.link_button(f"Download ({widgets.size(which.size)})", address, type="primary", icon=":material/download:")
        st.page_link("views/try_it.py", label="Try it", icon=":material/forum:", query_params={"run": run})
        if made.run.shown_state == "Done":
            st.link_button("Export for reproduction", downloads.url(run, "export.zip"), icon=":material/inventory_2:")
            st.link_button("Statement", downloads.url(run, "statement.html"), icon=":material/shield:")


def _load(made: Made, which: Adapter) -> None:
    folder, base = bundles.adapter_name(made, which), made.base.hub_id or made.base.name
    if made.base.remark:
        st.caption(f"The base model here was {widgets.plain(made.base.remark)}.")
    st.markdown("**Unpack**")
    st.code(f"unzip {folder}.zip", language="bash")
    st.markdown("**PEFT**")
    st.code(cards.peft_lines(base, folder), language="python", wrap_lines=True)
    st.markdown("**vLLM**, which then serves it beside the base model")
    st.code(cards.vllm_line(base, made.settings.name, folder, made.settings.stage2.lora_rank), language="bash", wrap_lines=True)


def _scores(made: Made, which: Adapter) -> None:
    scored = ([("base model", made.zero_shot)] if made.zero_shot else []) + [(one.title, one.score) for one in made.adapters]
    rows = [{"Model": name, which.score.kind.capitalize(): score.shown, "n": score.n} for name, score in scored]
    st.dataframe(rows, hide_index=True, width="content", alt="Scores of the base model and after each round")
    st.caption("On the operator's public test set, after each round. With a small n, differences of a few per cent are chance.")


def _lineage(made: Made, which: Adapter) -> None:
    """From the base model down to this adapter; a hash is shown in full when it is pointed at."""
    for number, (what, detail, sha256) in enumerate(cards.lineage(made, which)):
        if number:
            st.markdown(":gray[↓]")
        st.markdown(f"**{what}** · {detail}" + (f" · `{sha256[:12]}…`" if sha256 else ""), help=f"sha256 `{sha256}`" if sha256 else None)


def _files(made: Made, which: Adapter, card: str) -> None:
    config = which.folder / "adapter_config.json"
    rows = [
        {"File": catalogue.WEIGHTS, "Size": widgets.size(which.size), "sha256": which.sha256},
        {"File": config.name, "Size": widgets.size(config.stat().st_size), "sha256": catalogue.file_sha256(config)},
        {"File": "README.md", "Size": widgets.size(len(card.encode())), "sha256": catalogue.text_sha256(card)},
    ]
    st.dataframe(rows, hide_index=True, width="stretch", alt="Files of the adapter with sizes and hashes")
    st.caption("The weights lie on this machine in:")
    st.code(str(which.folder), language=None, wrap_lines=True)


def _none_yet(run: Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(widgets.plain(run.name), width="content")
        widgets.state_badge(run.shown_state)
    st.write("This run has no adapter yet. The first one comes after the first federated round.")
    st.page_link("views/train.py", label="See how far it is", icon=":material/model_training:", query_params={"run": run.id})


def _nothing(active: Run | None) -> None:
    if active:
        _none_yet(active)
        return
    st.write("No adapter yet. A run makes one: sites without a GPU help to write synthetic text, then all sites train together, in rounds.")
    st.page_link("views/home.py", label="Start at Home", icon=":material/home:")


def _seen(made: Made | None, run: Run) -> tuple[str, int]:
    return run.shown_state, len(made.adapters) if made else 0


def _watch(run_id: str, before: tuple[str, int]) -> None:
    """Draw the page anew when the run has got on, and only then."""
    with frame.desk() as store:
        if _seen(catalogue.made(store, run_id), store.run(run_id)) != before:
            st.rerun()


main()
