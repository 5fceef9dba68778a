"""A form for a name and its secret: what was typed goes to whoever takes it, and out of this session, before anything is drawn.

Knows two fields and a button. A refusal is a card below the form; the name stays then, the secret is to be typed again.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st
from cafe_kit.errors import CafeError

from app import widgets
from server_store.errors import StoreError

Take = Callable[[str, str], object]


def draw(key: str, name: str, secret: str, button: str, take: Take, *, told: str = "") -> None:
    """``take`` is called with what was typed into ``name`` and ``secret``; ``told``: help beside the first."""
    with st.form(key, border=False):
        left, right = st.columns(2)
        left.text_input(name, key=f"{key} name", max_chars=200, autocomplete="off", help=told or None)
        right.text_input(secret, key=f"{key} secret", max_chars=200, autocomplete="off", type="password")
        st.form_submit_button(button, icon=":material/key:", key=f"{key} take", on_click=_taken, args=(key, take))
    if error := st.session_state.pop(f"{key} refused", None):
        widgets.failure_card(error, key)


def _taken(key: str, take: Take) -> None:
    name, secret = str(st.session_state[f"{key} name"] or "").strip(), str(st.session_state[f"{key} secret"] or "").strip()
    st.session_state[f"{key} secret"] = ""
    if not (name and secret):
        return
    try:
        take(name, secret)
        st.session_state[f"{key} name"] = ""
    except (CafeError, StoreError) as error:
        st.session_state[f"{key} refused"] = error
