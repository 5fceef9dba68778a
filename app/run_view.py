"""A run that is being watched: state, phase, sites, curve, events, log, and the buttons that stop and resume it.

Knows one run's ``Overview``. Used by the pages that follow a run; all of them show the same, because all of it is read
from the store at each look. Buttons write a wish into the store and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import altair as alt
import pandas as pd
import streamlit as st

from app import frame, widgets
from pipeline import launch, overview
from pipeline.overview import Overview, SiteNow
from server_store.desk import Desk

More = Callable[[Desk, Overview], None]

_LOG_BYTES = 20_000
_EVENTS = 30
_DOUBTS = 5


def watch(run_id: str, key: str, *, details: bool = True, more: More | None = None) -> None:
    """The whole panel, drawn again every two seconds while the run goes on; when it ends, the page once more as a whole.

    more: what else a page shows of the run, drawn between the sites and the events at the same look.
    """
    with frame.desk() as store:
        running = store.run(run_id).active
    st.fragment(_panel, run_every=frame.FAST_S if running else frame.SLOW_S)(run_id, key, details, running, more)


def _panel(run_id: str, key: str, details: bool, was_running: bool, more: More | None = None) -> None:
    with widgets.guard(f"{key} panel"), frame.desk() as store:
        seen = overview.look(store, run_id)
        if was_running and not seen.run.active:
            st.rerun()  # the page around this panel changes with the run's end
        head(seen)
        if seen.run.error and seen.state == "Failed":
            widgets.failure_card(seen.run.error, f"{key} {run_id}", run=seen.run)
        buttons(seen, key)
        doubts(store, run_id)
        if seen.run.active or any(site.doing for site in seen.sites):
            sites_table(seen)
        if more:
            more(store, seen)
        curve(seen)
        if details:
            events(store, run_id)
            log_tail(seen)


def head(seen: Overview) -> None:
    """State, phase, round n of N, how long, who is waited for."""
    columns = st.columns(4)
    with columns[0], st.container(border=True, height="stretch"):
        st.caption("State")
        widgets.state_badge(seen.state)
    if seen.run.active:
        what = {0: "Preparing", 1: "Stage 1 · vote", 2: "Stage 2 · round"}[seen.stage]
        done = f"{min(max(seen.round, 1), seen.rounds)} of {seen.rounds}" if seen.rounds else "–"
        columns[1].metric(what, done, border=True, height="stretch")
        columns[2].metric("Time left", f"≈ {widgets.span(seen.eta_s)}" if seen.eta_s else "–", border=True, height="stretch")
    else:
        best = seen.best
        columns[1].metric(
            "Best round", f"{best.round} ({widgets.score(best.value, seen.metric)})" if best else "–", border=True, height="stretch"
        )
        took = (seen.run.finished or 0) - (seen.run.started or 0) if seen.run.finished and seen.run.started else None
        columns[2].metric("Took", widgets.span(took), border=True, height="stretch")
    last = seen.last
    columns[3].metric(
        f"{seen.metric.capitalize()}, latest", widgets.score(last.value, seen.metric) if last else "–", border=True, height="stretch"
    )
    if seen.run.active:
        st.progress(seen.share or 0.0, text=widgets.plain(seen.sentence))
        if seen.waiting_for:
            st.caption(f"Waiting for: {widgets.plain(seen.waiting_for)}")
    elif seen.state != "Failed":
        st.markdown(widgets.plain(seen.sentence))


def buttons(seen: Overview, key: str) -> None:
    """Stop after this round, stop now, resume: whichever makes sense now."""
    run = seen.run
    with st.container(horizontal=True):
        if run.active and seen.state != "Lost contact":
            if st.button("Stop after this round", icon=":material/stop_circle:", key=f"{key} stop", disabled=seen.state == "Stopping"):
                _say(launch.stop(run.id, now=False))
            if st.button("Stop now…", icon=":material/cancel:", key=f"{key} stop now"):
                _stop_now(run.id)
        elif seen.state != "Done" and not seen.awaits_approval:
            resume(seen, key)


def resume(seen: Overview, key: str) -> None:
    """The button that goes on with a run, and from where."""
    if st.button("Resume", icon=":material/play_arrow:", type="primary", key=f"{key} resume"):
        launch.resume(seen.run.id)
        st.rerun()
    st.caption(f"{_resume_from(seen)} Nothing that was done is done again, and nothing is charged twice.")


def _resume_from(seen: Overview) -> str:
    """From where a run goes on: the first round that has no score yet."""
    scored = [score.round for score in seen.scores if score.round is not None]
    rounds = seen.settings.stage2.rounds if seen.settings else 0
    if seen.stage == 2 and scored and max(scored) < rounds:
        return f"Goes on from round {max(scored) + 1} of {rounds}."
    return "Goes on from where it stood."


@st.dialog("Stop now?")
def _stop_now(run_id: str) -> None:
    st.markdown("What this round has done so far is lost; the rounds before it are kept. **Privacy that was spent stays spent.**")
    if st.button("Stop now", type="primary", icon=":material/cancel:"):
        _say(launch.stop(run_id, now=True))
        st.rerun()


def _say(text: str) -> None:
    st.toast(widgets.plain(text))


def sites_table(seen: Overview) -> None:
    """Every site: what it does, how long ago it said so."""
    st.subheader("Sites", anchor=False)
    rows = [
        {
            "site": site.name,
            "kind": "GPU" if site.kind == "gpu" else "no GPU",
            "who": "the server, on its synthetic share" if site.by_server else "the site, on its own records",
            "does": _doing(site, seen.run.active),
            "done": 100 * site.done / site.of if site.of else None,
            "last word": f"{widgets.span(site.age_s)} ago" if site.doing and seen.run.active else "",
        }
        for site in seen.sites
    ]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        alt="What every site does now",
        column_config={
            "site": st.column_config.TextColumn(width="medium"),
            "done": st.column_config.ProgressColumn("done", min_value=0, max_value=100, format="%.0f %%"),
        },
    )


def _doing(site: SiteNow, active: bool) -> str:
    words = {
        "": "not asked yet",
        "asked": "was asked, has not begun" if active else "was not reached",
        "sent": "answered",
        "vote": "votes" if active else "was voting",
        "train": "trains" if active else "was training",
        "hello": "reads its data" if active else "was reading its data",
    }
    return words.get(site.doing, site.doing)


def doubts(store: Desk, run_id: str) -> None:
    """What was odd about updates that were taken, the newest first: for the operator, since it may depend on un-noised numbers."""
    found = [event for event in store.events(run_id) if event.confidential][::-1]
    if found:
        lines = [f"- **{widgets.plain(event.site or '')}**: {widgets.plain(event.text)}" for event in found[:_DOUBTS]]
        more = [f"- {len(found) - _DOUBTS} more under *Events*"] if len(found) > _DOUBTS else []
        told = "These updates were taken and are odd. It is for you alone: no export says it."
        st.warning("\n".join([told, "", *lines, *more]), icon=":material/troubleshoot:")


def curve(seen: Overview) -> None:
    """The score after each round, on the public test set, with the best one marked."""
    points = [score for score in seen.scores if score.round is not None]
    if not points:
        return
    st.subheader(f"{seen.metric.capitalize()} on the public test set", anchor=False)
    table = pd.DataFrame([{"round": score.round, seen.metric: score.value, "n": score.n} for score in points])
    x = alt.X("round:O", title="round (0: after the synthetic set alone)", axis=alt.Axis(labelAngle=0))
    y = alt.Y(
        f"{seen.metric}:Q",
        title=seen.metric,
        axis=alt.Axis(format="%" if seen.metric == "accuracy" else ".2f"),
        scale=alt.Scale(zero=seen.metric == "accuracy"),
    )
    layers = [
        alt.Chart(table).mark_line(point=alt.OverlayMarkDef(size=60), strokeWidth=3).encode(x, y, tooltip=["round", seen.metric, "n"])
    ]
    base = next((score for score in seen.scores if score.round is None), None)
    if base:
        rule = pd.DataFrame([{seen.metric: base.value, "what": "base model"}])
        layers.append(alt.Chart(rule).mark_rule(strokeDash=[6, 4], color="gray").encode(y=f"{seen.metric}:Q"))
    st.altair_chart(alt.layer(*layers).properties(height=260), alt=_told(seen))
    st.caption(_told(seen))


def _told(seen: Overview) -> str:
    """The curve in words."""
    parts = []
    base = next((score for score in seen.scores if score.round is None), None)
    if base:
        parts.append(f"base model {widgets.score(base.value, seen.metric)} (dashed)")
    parts += [f"round {score.round} {widgets.score(score.value, seen.metric)}" for score in seen.scores if score.round is not None]
    best = f" Best: round {seen.best.round}." if seen.best else ""
    n = f" on {seen.scores[-1].n} public test records" if seen.scores else ""
    return f"{seen.metric.capitalize()}{n}: " + ", ".join(parts) + "." + best


def events(store: Desk, run_id: str) -> None:
    """What happened, the newest first."""
    st.subheader("Events", anchor=False)
    found = store.events(run_id)[::-1]
    rows = [
        {"time": widgets.when(event.time), "level": event.level, "site": event.site or "", "what": event.text} for event in found[:_EVENTS]
    ]
    if not rows:
        st.caption("Nothing has happened yet.")
        return
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        alt="Events of the run, the newest first",
        column_config={"what": st.column_config.TextColumn(width="large")},
    )
    if len(found) > _EVENTS:
        st.caption(f"The last {_EVENTS} of {len(found)} events. The export has all that are not for you alone.")


def log_tail(seen: Overview) -> None:
    """The end of the worker's log. It holds codes, phases and library chatter, no records."""
    with st.expander("Log of the worker, its end", icon=":material/terminal:"):
        st.code(tail(Path(seen.run.folder) / "log" / "worker.log") or "The log is empty.", language=None, wrap_lines=True)


def tail(path: Path) -> str:
    """The last 20 kB of a file as text."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
