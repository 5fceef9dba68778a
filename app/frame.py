"""What surrounds every page: which federation and run it is about, the line that says what is going on, the sidebar's foot.

Knows the address bar (``?federation=``, ``?run=``) and the operator's last choice. Holds no truth: both are looked up anew
at each drawing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version

import streamlit as st
from cafe_kit.errors import CafeError

from app import sign_in, widgets
from pipeline import federations, launch, overview
from pipeline.federations import Federation
from server_store.desk import Desk
from server_store.rows import Run

FAST_S, SLOW_S = 2.0, 15.0


@contextmanager
def desk() -> Iterator[Desk]:
    """The store, for the time of one drawing."""
    found = launch.desk()
    try:
        yield found
    finally:
        found.close()


def operator() -> str:
    """Who sits here, as it is written down beside what he does: his Globus name, his proxy's name for him, or the account.

    Raises:
        CafeError: CAFE-191 where the session has ended.
    """
    return sign_in.person().name


def federation() -> Federation | None:
    """The federation that the page is about: of the address, else the one that was opened last."""
    known = federations.listed()
    if not known:
        return None
    with desk() as store:
        wanted = st.query_params.get("federation") or store.preference("federation")
    return next((one for one in known if one.name == wanted), known[0])


def open_federation(name: str) -> None:
    """Make it the one that pages are about."""
    with desk() as store:
        store.set_preference("federation", name)
    if st.query_params.get("federation"):
        st.query_params["federation"] = name


def run_of_page(store: Desk, name: str | None = None) -> Run | None:
    """The run of the address; without one the newest, of this federation if a name is given. None where there is none."""
    wanted = st.query_params.get("run")
    if wanted:
        return store.run(wanted)  # CAFE-655 for an unknown id
    return next((run for run in store.runs() if name is None or run.name == name), None)


def pace(store: Desk) -> float:
    """How often a page that watches looks again: often while a run is carried."""
    return FAST_S if any(run.active for run in store.runs()) else SLOW_S


def status_line() -> None:
    """One line on every page: which run, its state, what it does, how long it may take."""
    with desk() as store:
        every = pace(store)
    st.fragment(_status_line, run_every=every)()


def _status_line() -> None:
    with widgets.guard("status"), desk() as store:
        run = overview.active(store)
        if run is None:
            return
        seen = overview.look(store, run.id)
        parts = [widgets.state_mark(seen.state), f"**{widgets.plain(run.name)}**", widgets.plain(seen.sentence.removesuffix("."))]
        counted = f"{'vote' if seen.stage == 1 else 'round'} {min(max(seen.round, 1), seen.rounds)} of {seen.rounds}"
        if run.active and seen.rounds and counted not in seen.sentence:
            parts.append(counted)
        if seen.eta_s:
            parts.append(f"about {widgets.span(seen.eta_s)} left")
        with st.container(horizontal=True, vertical_alignment="center", key="status-line"):
            st.markdown(" · ".join(parts))
            st.page_link("views/runs.py", label="Open", icon=":material/open_in_new:", query_params={"run": run.id})


def foot() -> None:
    """The end of the sidebar: federation, operator, version, when the page last looked."""
    who = sign_in.still_here()
    known = federations.listed()
    with desk() as store:
        st.session_state[widgets.EXPLAINED] = store.preference("explanations") == "yes"
    with st.sidebar:
        now = federation()
        if len(known) > 1 and now is not None:
            names = [one.name for one in known]
            chosen = st.selectbox("Federation", names, index=names.index(now.name), key="federation-choice")
            if chosen != now.name:
                open_federation(chosen)
                st.rerun()
        elif now is not None:
            st.caption(f"Federation: {widgets.plain(now.name)}" + (" (invented data)" if now.is_demo else ""))
        st.fragment(_last_look, run_every=FAST_S)()
        sign_in.foot(who)
        st.caption(f"Café au Lait {version('cafe-au-lait')}")


def _last_look() -> None:
    with suppress(CafeError):
        sign_in.person()
        st.caption(f"Last update {time.strftime('%H:%M:%S')}")
        return
    st.rerun()  # the session has ended: the whole page says so
