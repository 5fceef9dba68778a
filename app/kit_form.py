"""A new kit: the form that makes it, and what is shown of it once: the zip, its SHA-256, the fingerprint, the join code.

Knows this tab. The code is kept in it until the operator says that he has it; after that nobody on this side knows it any more.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import streamlit as st
from cafe_kit.errors import CafeError

from app import dialogs, downloads, widgets
from pipeline import enrolling, handover
from pipeline.connecting import Via
from pipeline.enrolling import Issued
from pipeline.federations import Federation

_MADE = "kit made"  # of this tab: what is shown once
_WAYS: dict[Via, str] = {"folder": "A folder that both sides reach", "globus": "Globus Compute"}
_TOLD: dict[Via, str] = {
    "folder": "such as a network share, mounted here and there; joining and orders are files in it",
    "globus": "over the internet; large files travel through your object store",
}


def draw(federation: Federation, name: str, kind: Literal["cpu", "gpu"]) -> None:
    """The rest of the form, and the button that makes the kit."""
    if st.session_state.get(_MADE):
        dialogs.ask("made")  # a second click of the same: the kit is there
    via = st.radio("How its orders travel", list(_WAYS), format_func=_WAYS.__getitem__, captions=list(_TOLD.values()), key="kit-via")
    exchange = ""
    if via == "folder":
        exchange = st.text_input(
            "Exchange folder", key="kit-exchange", placeholder="/mnt/exchange",
            help="The same path at both sides. What lies in it is public, sealed or noised; both may write there.",
        ).strip()  # fmt: skip
    days = st.number_input("Days in which the site may join", 1, 90, round(enrolling.DAYS), key="kit-days", width=260)
    wheels = st.toggle(
        "Carry the Python packages", key="kit-wheels",
        help="For a site that reaches no package index. The zip becomes larger, and making it takes a minute or more.",
    )  # fmt: skip
    whole = bool(name and (via != "folder" or exchange))
    if st.button("Make the kit", type="primary", key="kit-make", disabled=not whole, icon=":material/inventory_2:"):
        _make(federation, name, kind, via, Path(exchange) if exchange else None, wheels, float(days))


def _make(
    federation: Federation, name: str, kind: Literal["cpu", "gpu"], via: Via, exchange: Path | None, wheels: bool, days: float
) -> None:
    with widgets.guard("kit"):
        if any(str(one.get("name", "")).lower() == name.lower() and one.get("data") for one in federation.data.get("sites") or []):
            raise CafeError("CAFE-602", f"A site of this machine is called {name!r}.", "Take another name, or remove that site first.")
        waits = "The kit is packed and signed; a first one without a GPU takes longer …"
        with st.spinner("The Python packages are fetched and packed …" if wheels else waits):
            # kept at once: a second click must find it, not make another
            st.session_state[_MADE] = enrolling.issue(
                federation.name, name, kind, exchange=exchange, via=via, wheels=wheels, days=days
            )  # fmt: skip
        dialogs.ask("made")


@st.dialog("The kit is made", width="medium", dismissible=False)
def made() -> None:
    """What the operator hands over and what he tells, shown once."""
    issued: Issued | None = st.session_state.get(_MADE)
    if issued is None:
        dialogs.done()
        return
    with widgets.guard("made"):
        kit = enrolling.find(issued.serial)
        st.markdown("**1. Hand over the zip**, by any way: nothing in it is secret.")
        download(issued.serial, primary=True)
        st.markdown("**2. Tell this by another way**, such as the telephone, to the person whom you know at the site.")
        st.caption(f"Join code. It works once, until {time.strftime('%d %B, %H:%M', time.localtime(issued.expires))}.")
        st.code(issued.code, language=None)
        st.caption("Fingerprint of the key that signed the kit")
        st.code(issued.fingerprint, language=None, wrap_lines=True)
        st.warning("The join code is shown this once and kept nowhere. Who holds zip and code could ask to join.", icon=":material/key:")
        words(kit.serial)
        if st.button("I have noted the code", key="kit-noted", icon=":material/check:"):
            st.session_state.pop(_MADE, None)
            dialogs.done()


def download(serial: str, *, primary: bool = False) -> None:
    """The zip with its hash."""
    kit = enrolling.find(serial)
    with widgets.guard("kit zip"):
        size = widgets.size(handover.zip_place(kit).stat().st_size)
        address, kind = downloads.kit_url(serial, "kit.zip"), "primary" if primary else "secondary"
        st.link_button(f"Download the kit ({size})", address, type=kind, icon=":material/download:")  # type: ignore[call-overload]
    st.caption("SHA-256 of the zip")
    st.code(kit.zip_sha256, language=None, wrap_lines=True)


def words(serial: str) -> None:
    """What the admin at the site does, to be sent along or printed."""
    with st.expander("What to write to the site's admin", icon=":material/mail:"):
        st.code(handover.letter(enrolling.find(serial)), language=None, wrap_lines=True)
