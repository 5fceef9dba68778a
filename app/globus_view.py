"""Globus as *Settings* shows it: which applications this server uses, who acts here, whether the services answer.

Draws what ``pipeline.globus_settings`` and ``pipeline.globus_reach`` say. Nothing is set up here: ids and secrets are given at a terminal.
"""

from __future__ import annotations

import streamlit as st

from app import sign_in, widgets
from pipeline import globus_reach, globus_settings
from pipeline.home import home

_NONE = "not set up"


def draw() -> None:
    settings = globus_settings.read(home())
    st.subheader("Globus", anchor=False)
    st.markdown("Globus carries orders to sites elsewhere, lets people sign in, and keeps the group of those who answer for sites.")
    rows = [
        {"For": "Sign-in by code, and what is done in your name", "Application": settings.public or _NONE},
        {"For": "What this server does itself", "Application": settings.confidential or _NONE},
        {"For": "Sign-in by redirect, back to", "Application": settings.redirect or _NONE},
    ]
    st.dataframe(rows, hide_index=True, alt="The Globus applications of this server")
    st.caption("`cafe globus setup` sets them; secrets lie encrypted in the vault of this home and are never shown.")
    who = sign_in.person()
    acts = sign_in.globus_identity(who)
    st.markdown(f"Towards Globus you act as **{widgets.plain(acts.username)}**." if acts else "You are not signed in with Globus.")
    if st.button("Check Globus", icon=":material/cloud_done:", key="globus-check"):
        with st.spinner("Globus is asked …"):
            found = list(globus_reach.look(home(), acts.id if acts else ""))
        _told(found)


def _told(found: list[globus_reach.Reached]) -> None:
    bad = sum(not one.ok for one in found)
    if bad:
        st.warning(f"{bad} of {len(found)} did not answer as they should.", icon=":material/cloud_off:")
    else:
        st.success("Globus answers.", icon=":material/check_circle:")
    rows = [{"Asked": one.name, "State": "ok" if one.ok else "broken", "Found": one.detail, "What to do": one.hint} for one in found]
    st.dataframe(rows, hide_index=True, height="content", alt="What Globus answered")
