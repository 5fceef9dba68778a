"""*Privacy ledger*: what every site has spent, every charge, and how to check and hand it over.

Draws what ``pipeline.ledger_book`` says. ``?run=`` and ``?site=`` in the address narrow the list of charges.
"""

from __future__ import annotations

from contextlib import closing

import pandas as pd
import streamlit as st

from app import downloads, frame, widgets
from pipeline import accounting, enrolling, ledger_book, ledger_comparison
from pipeline.connecting import HERE
from pipeline.home import home
from pipeline.ledger_book import Book, Entry, SiteTotal
from server_store.desk import Desk
from server_store.errors import StoreError
from server_store.ledger import Ledger

_EXPLAINED = """**What ε means**

1. A release is a noisy sum over many sites; it is made so that it looks nearly the same with the data of any one site or without them.
2. ε says how nearly: at ε 0 a release tells nothing about one site; each further step of ε lets anybody become more certain of it.
3. δ is a small chance with which that bound may fail; an ε is told *at* its δ, and two figures at different δ cannot be compared.
4. What several releases spend adds up for a site, over all runs, and is never given back; deleting a run does not change it.
5. The unit here is *all records of one site*: a figure for one record or one person is another thing and cannot be compared with it.

A release without noise has **no formal guarantee**, whatever else was spent."""
_MOST_CARDS = 12
_ALL = "all"
_STATES = {"reserved": "charged, not yet sealed", "sealed": "sealed", "lost": "body lost; the charge stays"}


def main() -> None:
    widgets.heading("Privacy ledger", _EXPLAINED)
    with widgets.guard("ledger"), frame.desk() as store:
        wanted = st.query_params.get("run")
        with st.spinner("Counting what was spent, two ways…"):
            book = ledger_book.read(store, run=wanted, delta=st.session_state.get("privacy-delta"))
        st.fragment(_watch, run_every=frame.pace(store))(book.head)
        if wanted and wanted not in book.runs:
            _no_charges(store, wanted)
        if not book.entries and not book.sites:
            _nothing()
            return
        _chain(book)
        for total in book.sites:
            _doubts(total)
        _joined_doubts(store, book)
        _gauges(book)
        _charges(book)
        _export(book)


def _watch(head: str) -> None:
    """Draw the page anew when something was charged, and only then."""
    with widgets.guard("watch"):
        if ledger_book.head() != head:
            st.rerun()


def _nothing() -> None:
    st.write("Nothing was spent yet. Every release of a run is charged here before anybody can see it, site by site.")
    st.page_link("views/home.py", label="Start at Home", icon=":material/home:")


def _no_charges(store: Desk, run_id: str) -> None:
    try:
        run = store.run(run_id)
        st.info(f"Run {widgets.plain(run.id)} ({run.shown_state}) has charged nothing so far.", icon=":material/info:")
    except StoreError as error:
        widgets.failure_card(error, "run")
    if st.button("Show the whole ledger", icon=":material/shield:"):
        st.query_params.pop("run", None)
        st.rerun()


def _chain(book: Book) -> None:
    """Whether the ledger is whole."""
    if book.problem:
        widgets.failure_card(book.problem, "chain")
        st.caption("No total is computed from a ledger that was altered. Its entries are shown as they stand.")
        return
    number = len(book.entries)
    releases = "1 release" if number == 1 else f"{number} releases"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge("Whole", icon=":material/link:", color="gray")
        st.markdown(f"The chain of hashes over {releases} is unbroken.", width="content")
        with st.popover("Last entry", icon=":material/tag:", type="tertiary"):
            st.markdown("Keep this hash elsewhere: a ledger that no longer holds it was replaced by an older copy.")
            st.code(book.head, language=None, wrap_lines=True)


def _doubts(total: SiteTotal) -> None:
    """Where a site and this server do not agree, or where the site's own ledger cannot be read."""
    if total.difference:
        st.warning(widgets.plain(total.difference), icon=":material/difference:")
    if total.problem:
        widgets.failure_card(total.problem, f"site {total.federation} {total.site}", site=total.site)


def _joined_doubts(store: Desk, book: Book) -> None:
    """The same of sites of other machines, by what their last answers said."""
    charged = {(total.federation, total.site) for total in book.sites}
    with closing(enrolling.store()) as kits:
        joined = [kit for kit in kits.kits() if kit.state == "approved" and kit.connection.get("via") != HERE]
    for kit in joined:
        told = ledger_comparison.compare(kit, Ledger(home() / "ledger.db"), store)
        if not told.agrees and ((kit.federation, kit.site) in charged or told.site):
            st.warning(widgets.plain(told.sentence), icon=":material/difference:")


# --- per site --------------------------------------------------------------------------------------------------------


def _gauges(book: Book) -> None:
    if not book.sites:
        return
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    left.subheader("Spent per site", anchor=False)
    with right:
        _choose_delta(book)
    wanted = st.query_params.get("site")
    shown = [total for total in book.sites if wanted in (None, total.site)]
    if len(shown) > _MOST_CARDS:
        _site_table(shown)
    else:
        several = len({total.federation for total in book.sites}) > 1
        for row in range(0, len(shown), 3):
            for column, total in zip(st.columns(3), shown[row : row + 3], strict=False):
                with column, st.container(border=True, height="stretch"):
                    _gauge(total, several)
    st.caption(
        f"Over all runs, at δ {accounting.shown(book.delta)}: the largest that a run here asked for, unless you choose another. "
        "What several sites spent is never added up; each figure is of one site alone."
    )


def _choose_delta(book: Book) -> None:
    if len(book.deltas) > 1:
        st.selectbox(
            "δ", book.deltas, index=book.deltas.index(book.delta), format_func=accounting.shown, key="privacy-delta",
            help="The same charges give another ε at another δ.",
        )  # fmt: skip


def _gauge(total: SiteTotal, several: bool) -> None:
    """The number, its limit as a bar, and both in words."""
    where = f" · {widgets.plain(total.federation)}" if several else ""
    st.markdown(f"**{widgets.plain(total.site)}**{where}")
    noised = total.releases > total.without_noise
    if noised:
        st.metric("Privacy spent, ε", f"{total.spent:g}")
    if not total.guaranteed:
        st.badge("no formal guarantee", icon=":material/shield_question:", color="gray")
    if total.share is not None and noised:
        st.progress(total.share, text=widgets.plain(total.limit_sentence))
    st.caption(widgets.plain(" ".join(_told(total, noised))))
    st.link_button(
        "Statement",
        downloads.house_url("site-statement.html", federation=total.federation, site=total.site),
        icon=":material/description:",
        type="tertiary",
        key=f"statement {total.federation} {total.site}",
    )


def _told(total: SiteTotal, noised: bool) -> list[str]:
    """The card's small print."""
    parts = [total.sentence[:1].upper() + total.sentence[1:] if not noised else total.sentence]
    if total.this_run:
        parts.append(f"Of it in the chosen run: ε {total.this_run:g}.")
    if noised and total.share is None:
        parts.append(total.limit_sentence)
    return [*parts, total.own_word]


def _site_table(totals: list[SiteTotal]) -> None:
    rows = [
        {
            "Site": total.site,
            "Federation": total.federation,
            "ε spent": total.spent if total.releases > total.without_noise else None,
            "Of its limit": 100 * total.share if total.share is not None else None,
            "Limit": total.limit,
            "Without noise": total.without_noise,
            "In words": total.sentence,
        }
        for total in totals
    ]
    config = {"Of its limit": st.column_config.ProgressColumn(min_value=0, max_value=100, format="%.0f %%")}
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=config, alt="Privacy spent per site")


# --- every charge ----------------------------------------------------------------------------------------------------


def _charges(book: Book) -> None:
    st.subheader("Every charge", anchor=False)
    run, site = _filter(book)
    found = [one for one in reversed(book.entries) if run in (_ALL, one.release.run) and (site == _ALL or site in one.sites)]
    if not found:
        st.caption("No charge of this run and site.")
        return
    st.dataframe(
        pd.DataFrame([_row(one) for one in found]),
        hide_index=True,
        column_config={"Sites": st.column_config.TextColumn(width="medium"), "Noise": st.column_config.TextColumn(width="large")},
        alt="Charges, the newest first",
    )
    st.caption(
        "μ² is what one release costs one site: (clip / σ)², exact in the export. ε comes from the sum of these, not from adding ε up. "
        "Adjacency: zero-out of one client. Every site of the stage is charged, also one that did not answer."
    )


def _filter(book: Book) -> tuple[str, str]:
    """By run and site; both stand in the address."""
    sites = sorted({site for entry in book.entries for site in entry.sites})
    left, right = st.columns(2)
    with left:
        run = _choice("Run", "run", [_ALL, *book.runs])
    with right:
        site = _choice("Site", "site", [_ALL, *sites])
    return run, site


def _choice(label: str, name: str, options: list[str]) -> str:
    now = st.query_params.get(name, _ALL)
    key = f"privacy {name} {now}"

    def choose() -> None:
        picked = st.session_state[key]
        if picked == _ALL:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = picked

    return st.selectbox(label, options, index=options.index(now) if now in options else 0, key=key, on_change=choose)


def _row(entry: Entry) -> dict[str, object]:
    one = entry.release
    sites = f"{len(entry.sites)}: {', '.join(entry.sites)}"
    return {
        "Entry": one.seq,
        "Time": widgets.when(entry.time),
        "Run": one.run,
        "Stage": one.stage,
        "Attempt": one.attempt,
        "Round": one.round,
        "What": entry.what,
        "μ² per site": "no formal guarantee" if entry.mu2 is None else f"{float(entry.mu2):.4g}",
        "State": _STATES[one.state],
        "Answered": len(one.inputs),
        "Sites": sites,
        "Noise": entry.noise,
    }


def _export(book: Book) -> None:
    run, site = st.query_params.get("run"), st.query_params.get("site")
    known = run if run in book.runs else None
    with st.container(horizontal=True, vertical_alignment="center"):
        st.link_button("Export CSV", downloads.house_url("ledger.csv", run=known, site=site), icon=":material/table:")
        st.link_button("Export JSON", downloads.house_url("ledger.json", run=known), icon=":material/data_object:")
        if known and not book.problem:
            st.link_button("Printable statement", downloads.url(known, "statement.html"), type="primary", icon=":material/description:")
    whole = f"run {widgets.plain(known)}" if known else "the whole ledger"
    st.caption(f"Of {whole}. The JSON holds every hash of the chain, so that others can verify it without this program.")


main()
