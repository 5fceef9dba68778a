"""Which dialog a page has open: kept for this tab, so that a page that draws itself again keeps it open.

Knows a name and what it is about. A page's own ``main`` draws the dialog; buttons, also those inside a part that draws itself
again every few seconds, only ask for it.
"""

from __future__ import annotations

import streamlit as st

_OPEN = "dialog open"


def ask(name: str, about: str = "") -> None:
    """Open it with the next drawing of the page, which begins at once."""
    prepare(name, about)
    st.rerun()


def prepare(name: str, about: str = "") -> None:
    """Open it with the next drawing of a page that knows it."""
    st.session_state[_OPEN] = (name, about)


def close() -> None:
    st.session_state.pop(_OPEN, None)


def done() -> None:
    """Close it and draw the page."""
    close()
    st.rerun()


def opened() -> tuple[str, str]:
    """Name and subject of the dialog that is open; two empty words for none."""
    name, about = st.session_state.get(_OPEN, ("", ""))
    return name, about
