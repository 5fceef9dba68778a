"""*Settings*: this machine, this console, and what an operator may choose about them.

Draws what ``pipeline.premises`` finds. Preferences lie in the store; secrets lie in the environment and are never shown.
"""

from __future__ import annotations

import os
import re
import sys

import streamlit as st

from app import frame, globus_view, people, storage_view, widgets
from pipeline import premises
from pipeline.home import home
from pipeline.settings import GeneratorSettings
from server_store.desk import Desk

WHAT = """
What this console stands on: the folder that holds everything, the models, the object store, who may enter. Nothing here changes a run
that has begun. What a run does is set up on *Generate* and *Train*.
"""
_SECRETS = (
    ("CAFE_OPENAI_API_KEY", "key of the server that answers the chat, where it asks for one"),
    (str(GeneratorSettings.model_fields["api_key_env"].default), "key of another generator of stage 1"),
)
_DOCS = {
    "For the operator": "operator.md",
    "For a site without a GPU": "site-no-gpu.md",
    "For a site with a GPU": "site-gpu.md",
    "Security": "security.md",
    "Privacy": "privacy.md",
    "Troubleshooting": "troubleshooting.md",
    "Reference of all settings": "reference.md",
}
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")  # from one document to another: there is no such page here
WORD = "remove demo"


def main() -> None:
    widgets.heading("Settings", WHAT)
    drawn = ["This machine", "Storage", "Globus", "Operators", "Preferences", "Security", "Versions and documents"]
    machine, store_tab, globus, people_tab, choices, safety, about = st.tabs(drawn)
    with machine, widgets.guard("machine"):
        _machine()
    with store_tab, widgets.guard("storage"):
        storage_view.draw()
    with globus, widgets.guard("globus"):
        globus_view.draw()
    with people_tab:
        people.draw_operators()
    with choices, widgets.guard("preferences"), frame.desk() as store:
        _preferences(store)
        _demo()
    with safety:
        _security()
    with about:
        _about()


# -- this machine ------------------------------------------------------------------------------------------------------


def _machine() -> None:
    st.subheader("Folder", anchor=False)
    st.code(str(home()), language=None, wrap_lines=True)
    st.caption(f"{widgets.size(premises.free_bytes())} free on its disk. CAFE_HOME names another folder at the console's start.")
    st.subheader("Models", anchor=False)
    rows = [
        {
            "Name": one.name,
            "Use": one.use,
            "Size": widgets.size(one.size) if one.size else "–",
            "State": "here" if one.whole else "fetched when first needed" if not one.size else "not whole",
        }
        for one in premises.models()
    ]
    st.dataframe(rows, hide_index=True, alt="Models on this disk")
    _serving()
    st.subheader("Doctor", anchor=False)
    st.markdown("Looks at Python, disk, memory, versions, models, store and ledger. It changes nothing and takes some seconds.")
    if st.button("Run doctor", icon=":material/stethoscope:", key="doctor"):
        with st.spinner("The doctor looks …"), widgets.guard("doctor"):
            _findings(premises.examine())


def _serving() -> None:
    st.subheader("Serving", anchor=False)
    other = os.environ.get("CAFE_OPENAI_BASE_URL", "").strip()
    if other:
        st.markdown("Questions on *Try it* are answered by your own server:")
        st.code(other, language=None, wrap_lines=True)
    else:
        st.markdown("Questions on *Try it* are answered by the built-in model server, on this machine.")
        st.caption("CAFE_OPENAI_BASE_URL at the console's start names another, such as vLLM: `http://127.0.0.1:8000/v1`.")
    rows = [{"Variable": name, "State": "set" if os.environ.get(name) else "not set", "Holds": told} for name, told in _SECRETS]
    st.dataframe(rows, hide_index=True, alt="Secrets by environment variable, and whether they are set")
    st.caption("Secrets are read from the environment of whoever starts the console. They are never stored and never shown.")


def _findings(found: list[dict[str, object]]) -> None:
    bad = [one for one in found if not one["ok"]]
    if bad:
        st.warning(f"{len(bad)} of {len(found)} checks need a look.", icon=":material/warning:")
    else:
        st.success(f"All {len(found)} checks are fine.", icon=":material/check_circle:")
    rows = [
        {
            "State": "fine" if one["ok"] else "look",
            "Check": one["name"],
            "Found": one["detail"],
            "What to do": "" if one["ok"] else one["hint"],
        }
        for one in sorted(found, key=lambda one: bool(one["ok"]))
    ]
    st.dataframe(rows, hide_index=True, alt="What the doctor found", height="content")


# -- preferences -------------------------------------------------------------------------------------------------------


def _preferences(store: Desk) -> None:
    _choice(store, "explanations", "Show explanations open", "no", "What stands behind *What is this?* is shown at once.")
    _choice(store, "store_prompts", "Keep questions and answers of the chat", "yes", "Without it they go when the browser's tab is closed.")
    stored = store.preference("chat_idle_minutes", "10")
    minutes = st.number_input(
        "Minutes without a question after which the chat's model ends", 1, 24 * 60, max(1, round(float(stored))), key=f"idle {stored}",
        help="It gives its memory back then. The next question starts it again.", width=440,
    )  # fmt: skip
    if float(minutes) != float(stored):
        store.set_preference("chat_idle_minutes", str(minutes))
        st.rerun()
    st.caption("The console follows the browser's light or dark scheme. It has no keyboard shortcuts of its own.")


def _choice(store: Desk, key: str, label: str, default: str, told: str) -> None:
    """A switch that is kept at once; the key holds what is stored, so that another tab's change shows here."""
    stored = store.preference(key, default)
    chosen = "yes" if st.toggle(label, stored == "yes", key=f"{key} {stored}", help=told) else "no"
    if chosen != stored:
        store.set_preference(key, chosen)
        st.rerun()


def _demo() -> None:
    if not premises.has_demo():
        return
    st.subheader("Demo", anchor=False)
    st.markdown(f"The demo federation and its runs ({len(premises.demo_runs())}) may be removed. What they charged stays in the ledger.")
    if st.button("Remove demo…", icon=":material/delete:", key="remove-demo"):
        _remove_demo()


@st.dialog("Remove the demo?")
def _remove_demo() -> None:
    st.markdown(
        "The pretend clinics, every run of the demo with its synthetic texts and adapters, and its chats are deleted. "
        "**Charges stay in the privacy ledger.** This cannot be undone."
    )
    typed = st.text_input(f"Type “{WORD}” to go on", key="remove-demo-word")
    if st.button("Remove", icon=":material/delete:", key="remove-demo-yes", disabled=typed.strip() != WORD):
        with widgets.guard("remove demo"):
            premises.remove_demo()
            st.rerun()


# -- security ----------------------------------------------------------------------------------------------------------


def _security() -> None:
    address, hosts = str(st.get_option("server.address") or "every address"), st.get_option("server.allowedHosts") or []
    local = address in ("127.0.0.1", "localhost", "::1")
    reach, details = "this machine only" if local else "reachable from elsewhere", str(st.get_option("client.showErrorDetails"))
    facts = [
        ("Listens on", f"{address}, port {st.get_option('server.port')}", local, reach),
        ("Names it answers to", ", ".join(map(str, hosts)) or "any", bool(hosts), "against DNS rebinding"),
        _switch("Forged requests refused (XSRF)", "server.enableXsrfProtection", True),
        _switch("Other origins refused (CORS)", "server.enableCORS", True),
        _switch("Usage statistics", "browser.gatherUsageStats", False),
        ("Error details in pages", details, details == "none", "pages show codes, never a stack trace"),
        ("Upload limit", f"{st.get_option('server.maxUploadSize')} MB", True, "public files only"),
        ("Who may enter", "one-time link, or a sign-in with Globus", True, "the tab Operators says who"),
    ]
    rows = [{"State": "as shipped" if fine else "changed", "What": what, "Is": value, "Means": told} for what, value, fine, told in facts]
    st.dataframe(rows, hide_index=True, alt="Security facts of this console, as its server holds them now", height="content")
    st.markdown("**Whoever may enter can start runs and read what this home holds.**")
    st.caption("Read from the running server. How others may reach it safely: *For the operator*, under *Versions and documents*.")


def _switch(what: str, option: str, wanted: bool) -> tuple[str, str, bool, str]:
    on = bool(st.get_option(option))
    return what, "on" if on else "off", on is wanted, f"{'on' if wanted else 'off'} as shipped"


# -- versions and documents --------------------------------------------------------------------------------------------


def _about() -> None:
    with st.container(horizontal=True):
        for title, file in _DOCS.items():
            if (premises.ROOT / "docs" / file).is_file() and st.button(title, icon=":material/description:", key=f"doc {file}"):
                _document(title, file)
        if st.button("Licence", icon=":material/gavel:", key="licence"):
            _licence()
    rows = [{"Library": one.name, "Version": one.version, "Licence": one.licence} for one in premises.packages()]
    python = ".".join(map(str, sys.version_info[:3]))
    rows.insert(0, {"Library": "python", "Version": python, "Licence": "PSF-2.0"})
    st.dataframe(rows, hide_index=True, alt="Versions and licences of the libraries that do the work", height="content")


@st.dialog("Document", width="large")
def _document(title: str, file: str) -> None:
    path = premises.ROOT / "docs" / file
    text = path.read_text(encoding="utf-8") if path.is_file() else f"{title} is not part of this installation: docs/{file}"
    st.markdown(_LINK.sub(r"*\1*", text))


@st.dialog("Licence", width="large")
def _licence() -> None:
    st.code((premises.ROOT / "LICENSE").read_text(encoding="utf-8"), language=None, wrap_lines=True)


main()
