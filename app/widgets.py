"""Small things that every page draws: badges, cards, times, text from people.

Knows how to draw; asks nobody for anything. Text that a person typed, or a model wrote, goes through ``plain`` before it
may stand in Markdown, so that it shows as it was typed and never as a link, an image or a colour.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import streamlit as st
from cafe_kit.errors import CafeError

from pipeline.error_pages import page
from server_store.errors import StoreError
from server_store.rows import Run

# state → (icon, colour of the badge); the word stands beside it always
STATES = {
    "Draft": ("draft", "gray"),
    "Queued": ("hourglass_top", "gray"),
    "Waiting for sites": ("hourglass_top", "orange"),
    "Running": ("play_circle", "blue"),
    "Stopping": ("stop_circle", "orange"),
    "Stopped": ("pause_circle", "gray"),
    "Failed": ("error", "red"),
    "Lost contact": ("link_off", "red"),
    "Done": ("check_circle", "green"),
}
EXPLAINED = "explained"  # of the session: the preference as the store had it when this drawing began (``frame.foot``)
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&@^=\"'/])")
_ADDRESS = re.compile(r"(?i)\b(?:https?:|www|mailto|xmpp)(?=[/.:])|(?=@)")  # what Markdown makes a link of even where it is escaped
Known = CafeError | StoreError | Mapping[str, str]


def plain(text: str) -> str:
    """Text as it was typed, for a place that reads Markdown: one line, every mark escaped."""
    return _SPECIAL.sub(r"\\\1", _ADDRESS.sub("\\g<0>\u2060", " ".join(text.split())))


def heading(title: str, explained: str = "") -> None:
    """The page's title, and what it is about behind a small button, or below it for who wants explanations open."""
    if explained and st.session_state.get(EXPLAINED):
        st.title(title)
        what_is_this(explained, key=f"what {title}")
        return
    left, right = st.columns([5, 1], vertical_alignment="center")
    left.title(title)
    if explained:
        with right:
            what_is_this(explained, key=f"what {title}")


def what_is_this(text: str, key: str | None = None) -> None:
    """A longer explanation, one click away; open at once for who set it so."""
    if st.session_state.get(EXPLAINED):
        with st.container(border=True, key=key and f"open {key}"):
            st.markdown(text)
        return
    with st.popover("What is this?", icon=":material/help:", type="tertiary", key=key):
        st.markdown(text)


def state_badge(state: str) -> None:
    """The state as a word with an icon; the colour only repeats it."""
    icon, colour = STATES.get(state, ("help", "gray"))
    st.badge(state, icon=f":material/{icon}:", color=colour)  # type: ignore[arg-type]


def state_mark(state: str) -> str:
    """The same within a line of Markdown."""
    icon, colour = STATES.get(state, ("help", "gray"))
    return f":{colour}-badge[:material/{icon}: {state}]"


def when(seconds: float | None) -> str:
    """A point in time, local, with the day where it is not today."""
    if seconds is None:
        return "–"
    then = time.localtime(seconds)
    today = time.localtime()
    same_day = then[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same_day else "%d %b %Y %H:%M", then)


def span(seconds: float | None) -> str:
    """A length of time in the two largest units: 45 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 and whole < 600 else "")
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def score(value: float, metric: str) -> str:
    """A score as people read it: 79.0 % or a loss of 1.234."""
    return f"{value:.1%}".replace("%", " %") if metric == "accuracy" else f"{value:.3f}"


def size(number: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def failure_card(error: Known, key: str, *, site: str | None = None, run: Run | None = None) -> None:
    """What happened, which site, why, what to do next; the details to copy, and the page of the code."""
    code, message, hint = _parts(error)
    with st.container(border=True, key=f"failure {key}"):
        where = f" · site {plain(site)}" if site else ""
        st.markdown(f":red-badge[:material/error: {code}]{where}")
        st.markdown(f"**{plain(message)}**")
        if hint:
            st.markdown(f"What to do: {plain(hint)}")
        with st.container(horizontal=True):
            with st.popover("Copy details", icon=":material/content_copy:", key=f"details {key}"):
                st.code(details(error, site=site, run=run), language=None, wrap_lines=True)
            if explained := page(code):  # no dialog: a card may stand in one, or in a form
                with st.popover(f"About {code}", icon=":material/help:", key=f"about {key}"):
                    st.markdown(re.sub(r"^(#+) ", r"###\1 ", explained, flags=re.MULTILINE))


def details(error: Known, *, site: str | None = None, run: Run | None = None) -> str:
    """What one sends to somebody who is asked for help. Public words only."""
    code, message, hint = _parts(error)
    lines = [f"{code} {message}", f"What to do: {hint}", f"time: {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"]
    lines += [f"site: {site}"] if site else []
    lines += [f"run: {run.id} ({run.shown_state})"] if run else []
    return "\n".join(lines)


@contextmanager
def guard(key: str) -> Iterator[None]:
    """Draw a known refusal as a card instead of ending the page."""
    try:
        yield
    except (CafeError, StoreError) as error:
        failure_card(error, key)


def _parts(error: Known) -> tuple[str, str, str]:
    if isinstance(error, Mapping):
        return error.get("code", "CAFE-690"), error.get("message", ""), error.get("hint", "")
    return error.code, error.message, error.hint
