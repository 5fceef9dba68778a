"""*Home*: what is going on, and what to do next.

Draws what ``pipeline.journey`` and ``pipeline.overview`` say; the buttons lead to the page where the work is done.
"""

from __future__ import annotations

from contextlib import closing
from typing import Literal

import streamlit as st

from app import dialogs, downloads, frame, joined_view, run_view, widgets
from pipeline import catalogue, enrolling, federations, joined_sites, journey, launch, overview, request_watch
from pipeline.accounting import NO_GUARANTEE, shown
from pipeline.journey import Journey, Step
from pipeline.overview import Need
from server_store.desk import Desk
from server_store.rows import Run
from server_store.site_kits import SiteKits

WHAT = """
A *federation* is a group of sites that may not share their data. Together they fine-tune a language model, in two stages:

1. **Synthetic data.** Sites without a GPU vote for texts that the server's model has invented. No record leaves a site.
2. **Training.** Sites with a GPU train on their own records; the server trains on the synthetic texts for the others.

The result is one *adapter*: a small file that changes what the base model answers.
"""
DEMO = """
Eight pretend clinics on this computer, with invented messages, teach a small real language model to which department a message
belongs. It takes about ten minutes on two cores, after the models were fetched once (about 180 MB); nothing leaves this machine.
"""
OWN = """
You name it and say what its texts are; then you add its sites: a kit for each one elsewhere, or a data file of this machine.
Nothing starts before you say so.
"""
KINDS = {"classification": "Text to label, from a list that you give", "instruction": "Instruction to answer"}
_EVENTS = 12
_GO = "home-go"  # where a button leads, for one drawing
_TO = {"approval": "Approve or reject", "failure": "Open run", "lost": "Open run", "silent": "Open run"}
_ICON = {"Not yet": "radio_button_unchecked", "Not needed": "remove", "So far": "timelapse"}


def main() -> None:
    if wanted := st.session_state.pop(_GO, None):
        st.switch_page(f"views/{wanted['page']}.py", query_params=wanted["query"])
    widgets.heading("Home", WHAT)
    with frame.desk() as store:
        every, empty = frame.pace(store), _is_empty(store)
    if empty:
        _empty()
        st.fragment(_until_something, run_every=frame.SLOW_S)()
    else:
        st.fragment(_normal, run_every=every)(every)


def _go(page: str, **query: str) -> None:
    """To another page, by way of a whole drawing: a switch out of a fragment or a dialog may leave the browser with an empty page."""
    st.session_state[_GO] = {"page": page, "query": query}
    st.rerun()


def _is_empty(store: Desk) -> bool:
    return not federations.listed() and not store.runs()


# -- the first time ----------------------------------------------------------------------------------------------------


def _empty() -> None:
    st.markdown("Nothing is set up yet.")
    demo, own = st.columns(2)
    with demo, st.container(border=True, height="stretch", key="try-demo-card"):
        st.subheader("See it work", anchor=False)
        st.markdown(DEMO)
        _demo_button(primary=True)
    with own, st.container(border=True, height="stretch", key="own-card"):
        st.subheader("Use your own data", anchor=False)
        st.markdown(OWN)
        _own_button()


def _until_something() -> None:
    """Another tab, or a terminal, may have begun something."""
    with frame.desk() as store:
        if not _is_empty(store):
            st.rerun()


def _demo_button(*, primary: bool = False) -> None:
    label, kind = "Try the demo federation", "primary" if primary else "secondary"
    if st.button(label, type=kind, icon=":material/play_arrow:", key="try-demo"):  # type: ignore[arg-type]
        with widgets.guard("demo"):
            run = launch.start_demo(frame.operator())
            frame.open_federation(run.name)
            st.rerun()


def _own_button() -> None:
    if st.button("Set up a real federation", icon=":material/add:", key="own-federation"):
        _set_up()


@st.dialog("Set up a federation", width="medium")
def _set_up() -> None:
    name = st.text_input("Name", key="own-name", max_chars=64, help="Letters, digits, dot, dash and underscore. Runs are named after it.")
    kind = st.radio("Kind of task", list(KINDS), format_func=KINDS.__getitem__, key="own-kind")
    told = st.text_input(
        "What the texts are, in one phrase", key="own-description", max_chars=500, placeholder="messages to a library's help desk",
        help="Public: the server's model reads it, and every site does.",
    )  # fmt: skip
    if st.button("Set it up", type="primary", key="own-create", disabled=not name.strip() or len(told.strip()) < 3):
        with widgets.guard("own"):
            made = federations.create(name.strip(), kind, told.strip())
            frame.open_federation(made.name)
            _go("sites")


# -- every other time --------------------------------------------------------------------------------------------------


def _normal(every: float) -> None:
    with widgets.guard("home"), frame.desk() as store, closing(enrolling.store()) as kits:
        if frame.pace(store) != every:
            st.rerun()  # a run began or ended: look more or less often
        wrong = request_watch.look()
        now = journey.look(store, frame.federation())
        _title(now)
        _now(now, kits)
        _steps(now, asked=bool(joined_sites.asking(kits)))
        _figures(now)
        for number, error in enumerate(wrong):
            widgets.failure_card(error, f"request {number}")
        _needs(store, now, kits)
        _activity(store)
        _more()


def _title(now: Journey) -> None:
    name = now.federation.name if now.federation else now.seen.run.name if now.seen else ""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(widgets.plain(name), anchor=False, width="content")
        widgets.state_badge(now.seen.state if now.seen else "Draft")
        if now.federation and now.federation.is_demo:
            st.badge("demo: all data is invented", icon=":material/science:", color="gray")


def _now(now: Journey, kits: SiteKits) -> None:
    """The sentence of the moment: how far, who is awaited, and what that means; or what came out."""
    seen = now.seen
    if seen is None:
        _draft(now, kits)
    elif seen.run.active and seen.state != "Lost contact":
        left = f" About {widgets.span(seen.eta_s)} left." if seen.eta_s else ""
        st.progress(seen.share or 0.0, text=widgets.plain(f"{seen.sentence}{left}"))
        st.markdown(f":material/info: {journey.guide(seen)}")
        if seen.waiting_for:
            st.caption(f"Waiting for: {widgets.plain(seen.waiting_for)}")
        for site in joined_sites.absent(seen, kits):
            st.markdown(f":material/hourglass_top: **{widgets.plain(site.name)}** is not there: {widgets.plain(joined_view.absence(site))}")
    elif seen.state == "Done":
        _done(now)
    elif _stopped(now):
        st.markdown(widgets.plain(seen.sentence))
        with st.container(horizontal=True, vertical_alignment="center"):
            run_view.resume(seen, "home")


def _stopped(now: Journey) -> bool:
    """Whether going on with the run is what comes next."""
    return now.seen is not None and now.seen.state == "Stopped" and not now.seen.awaits_approval


def _draft(now: Journey, kits: SiteKits) -> None:
    out = [kit.site for kit in kits.kits(now.federation.name) if kit.state == "issued"] if now.federation else []
    if now.federation and now.federation.is_demo:
        st.markdown(DEMO)
        _demo_button(primary=True)
    elif now.sites:
        st.markdown("The sites are there. Next: plan the run, see what it costs in privacy, and start it.")
    else:
        st.markdown("Next: add the sites that take part: a kit for each one elsewhere, or a data file of this machine.")
    if out:
        st.markdown(f":material/inventory_2: Kits are out that were not used yet: {widgets.plain(', '.join(sorted(out)))}.")


def _done(now: Journey) -> None:
    assert now.seen is not None
    run, made = now.seen.run, now.made
    if made is None or made.newest is None:
        st.markdown("The run is done. It made no adapter.")
        return
    base = f" The base model alone: {made.zero_shot.shown}." if made.zero_shot else ""
    with st.container(border=True, key="done"):
        st.markdown(
            f":material/check_circle: **Adapter {widgets.plain(run.name)}, {made.newest.title}, is ready.** "
            f"It scores {made.newest.score.shown} on {made.newest.score.n} public test records.{base}"
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            first = not now.questions
            if st.button("Try it", type="primary" if first else "secondary", icon=":material/forum:", key="done-try"):
                _go("try_it", run=run.id)
            st.link_button("Download", downloads.url(run.id, "adapter.zip", round=made.newest.round), icon=":material/download:")
            st.page_link("views/adapters.py", label="More about it", icon=":material/extension:", query_params={"run": run.id})


def _steps(now: Journey, *, asked: bool) -> None:
    """``asked``: a site waits to be let in."""
    places = st.columns(len(now.steps), gap="small")
    for number, (place, step) in enumerate(zip(places, now.steps, strict=True), start=1):
        with place, st.container(border=True, height="stretch", gap="xsmall", key=f"step-card-{number}"):
            st.caption(f"{number} · {step.title}")
            _state(step.state)
            st.markdown(f"**{widgets.plain(step.number)}**")
            _step_button(now, step, number, asked)


def _state(state: str) -> None:
    if state in _ICON:
        st.badge(state, icon=f":material/{_ICON[state]}:", color="gray")
    else:
        widgets.state_badge(state)


def _step_button(now: Journey, step: Step, number: int, asked: bool) -> None:
    """Of all buttons of the page one is primary: what is to be done next."""
    above = (now.seen is not None and now.seen.state == "Done") or (now.seen is None and now.federation and now.federation.is_demo)
    above = above or _stopped(now) or (asked and now.seen is None)
    waits = not (now.seen and (now.seen.run.active or now.seen.state == "Failed"))
    primary = step.next and waits and not above
    if st.button(step.button, type="primary" if primary else "secondary", key=f"step {number}", width="stretch"):
        _go(step.page, **({"run": now.seen.run.id} if now.seen and step.page != "sites" else {}))


def _figures(now: Journey) -> None:
    seen = now.seen
    if seen is None:
        return
    best = seen.best or (seen.last if seen.scores else None)
    rounds = seen.settings.stage2.rounds if seen.settings else 0
    done = now.made.newest.round if now.made and now.made.newest else 0
    with st.container(horizontal=True, key="figures"):
        st.metric("Sites", len(seen.settings.sites) if seen.settings else now.sites, border=True, width=124, height="stretch")
        st.metric("Synthetic rows", f"{now.rows:,}" if now.rows is not None else "–", border=True, width=144, height="stretch")
        st.metric("Training round", f"{done} of {rounds}" if rounds else "–", border=True, width=168, height="stretch")
        st.metric(f"Best {seen.metric}", widgets.score(best.value, seen.metric) if best else "–", border=True, width=144, height="stretch")
        with st.container(border=True, width=336, height="stretch", gap="xsmall"):
            worst, told = _privacy(now)
            st.markdown("Highest privacy spent in this run", help="By the site that spent most. What sites spent is never added up.")
            st.markdown(f"**{worst}**")
            st.caption(told)


def _privacy(now: Journey) -> tuple[str, str]:
    """The worst site of the run in words, and what must stand beside the number."""
    found = catalogue.promised(now.made) if now.made else {}
    if not found.get("sites"):
        return "nothing yet", "No site was asked for anything that counts."
    most, without, sites = found["maximum"], len(found["sites_without_guarantee"]), len(found["sites"])
    spent = f"ε {most['epsilon']:g} at δ {shown(most['delta'])}" if most else ""
    if not without:
        return spent, "Unit: all records of one site."
    others = f" The other {most['over_sites']}: {spent}." if most else ""
    return NO_GUARANTEE, f"{without} of {sites} sites sent something without noise.{others}"


def _needs(store: Desk, now: Journey, kits: SiteKits) -> None:
    found, asking = overview.needs(store), joined_sites.asking(kits)
    if not found and not asking:
        return
    st.subheader(f"Needs you ({len(found) + len(asking)})", anchor=False)
    for number, kit in enumerate(asking):
        with st.container(border=True, key=f"asks {kit.serial}"):
            joined_view.who_asks(joined_sites.look(kit), of=kit.federation)
            kind: Literal["primary", "secondary"] = "secondary" if now.seen or number else "primary"
            if st.button("Look at its request", key=f"request {kit.serial}", icon=":material/badge:", type=kind):
                frame.open_federation(kit.federation)
                dialogs.prepare("request", kit.serial)
                _go("sites")
    for number, need in enumerate(found):
        run = store.run(need.run)
        if need.what == "failure" and run.error:
            widgets.failure_card(run.error, f"need {number}", run=run)
            _open(need, run, number)
        else:
            with st.container(border=True, key=f"need-card-{number}"):
                widgets.state_badge(run.shown_state)
                st.markdown(f"**{widgets.plain(run.name)}**: {widgets.plain(need.sentence)}")
                _open(need, run, number)


def _open(need: Need, run: Run, number: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        page = "datasets" if need.what == "approval" else "runs"
        if st.button(_TO[need.what], key=f"need {number} {need.run}", icon=":material/open_in_new:"):
            _go(page, run=need.run)
        if need.what in ("lost", "failure"):
            if st.button(
                "Resume", type="primary" if number == 0 else "secondary", key=f"resume {number} {need.run}", icon=":material/play_arrow:"
            ):
                launch.resume(run.id)
                st.rerun()
            st.caption("Goes on from where it stood; nothing is charged twice.")


def _activity(store: Desk) -> None:
    st.subheader("Activity", anchor=False)
    found = store.newest_events(_EVENTS)
    if not found:
        st.caption("Nothing has happened yet.")
        return
    rows = [
        {
            "When": widgets.when(event.time),
            "What": event.text if not event.site else f"{event.site}: {event.text}",
            "Level": event.level,
            "Run": f"runs?run={run}",
        }
        for run, event in found
    ]
    st.dataframe(
        rows,
        hide_index=True,
        alt="What happened, the newest first",
        column_config={
            "What": st.column_config.TextColumn(width="large"),
            "Run": st.column_config.LinkColumn(display_text=r"run=(.*)$"),
        },
    )


def _more() -> None:
    with st.container(horizontal=True, key="more"):
        if not any(one.is_demo for one in federations.listed()):
            _demo_button()
        _own_button()


main()
