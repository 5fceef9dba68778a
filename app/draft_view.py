"""A federation's draft beside its form: the public files it names, and the same settings as YAML and as a command.

Knows uploads and text areas; what is accepted is decided in ``pipeline.federations``. What was typed stays when it is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import streamlit as st
from cafe_kit.errors import CafeError

from app import forms, widgets
from app.forms import Values
from pipeline import federations
from pipeline.federations import Federation, PublicFiles
from server_store.errors import StoreError

_FILES = {
    "labels": ("Label list", ["txt"], "one label a line"),
    "examples": ("Invented examples", ["jsonl", "csv", "parquet"], "a few, in the same columns; the generator is shown them"),
    "test": ("Public test set", ["jsonl", "csv", "parquet"], "what every adapter is scored on"),
}


def public_files(federation: Federation, edited: Values, key: str) -> None:
    """Labels, examples and test set: their paths, an upload for each, and what was read from them."""
    task = dict(edited.get("task") or {})
    roles = [role for role in _FILES if role != "labels" or task.get("kind", "classification") == "classification"]
    if isinstance(task.get("labels"), list) and "labels" in roles:
        _path("labels", task, edited, key)
    paths = [role for role in roles if not (role == "labels" and isinstance((edited.get("task") or {}).get("labels"), list))]
    for role, column in zip(paths, st.columns(len(paths)), strict=True):
        with column:
            _path(role, task, edited, key)
    edited["task"] = task
    with st.expander("Upload these files", icon=":material/upload_file:"):
        st.markdown(
            "**Do not upload private text here.** These files are public: the generator, every site and every reader of the"
            " results may see them. A site's own records never pass through this page."
        )
        for role, column in zip(roles, st.columns(len(roles)), strict=True):
            with column:
                _upload(federation, edited, role, key)
    _read(federation, edited)


def _path(role: str, task: Values, edited: Values, key: str) -> None:
    """Where the file lies; a label list may also stand in the settings themselves."""
    holder = edited if role == "test" else task
    stored, (name, _, told) = holder.get(role), _FILES[role]
    common: dict[str, Any] = {
        "key": f"{key}.{role}.{forms.mark(stored)}",
        "persist_state": "session",
        "help": f"{told}. Path on this server.",
    }
    if isinstance(stored, list):
        chosen: Any = st.multiselect(
            "Labels", [str(one) for one in stored], [str(one) for one in stored], accept_new_options=True, **common
        )
    else:
        chosen = st.text_input(name, stored or "", placeholder="not there yet" if role != "examples" else "none", **common).strip()
    if chosen:
        holder[role] = chosen
    else:
        holder.pop(role, None)


def _upload(federation: Federation, edited: Values, role: str, key: str) -> None:
    """Keep an uploaded file at once, with everything else that was typed."""
    name, kinds, _ = _FILES[role]
    turn = f"{key}.{role}.turn"
    given = st.file_uploader(name, kinds, key=f"{turn}.{st.session_state.setdefault(turn, 0)}", max_upload_size=50)
    if given is None:
        return
    with widgets.guard(f"{key} {role}"):
        federations.save(federation.name, edited)
        federations.put_file(federation.name, role, given.name, given.getvalue())
        st.session_state[turn] += 1
        st.toast(f"{name} kept.")
        st.rerun()


def _read(federation: Federation, edited: Values) -> None:
    """What is in them: the labels, and how many records."""
    found = _files(str(federation.folder), json.dumps(edited, default=str), _times(federation, edited))
    for role, problem in found.problems.items():
        widgets.failure_card(problem, f"public {role}")
    counted = [f"{number} {what}" for number, what in ((found.examples, "invented examples"), (found.test, "test records")) if number]
    if found.labels:
        st.caption(f"Read: {len(found.labels)} labels" + "".join(f" · {one}" for one in counted) + ".")
        st.markdown(" ".join(f":gray-badge[{widgets.plain(label)}]" for label in found.labels[:60]))
        if len(found.labels) > 60:
            st.caption(f"and {len(found.labels) - 60} more")
    elif counted:
        st.caption("Read: " + " · ".join(counted) + ".")


@st.cache_data(max_entries=16, show_spinner=False)
def _files(folder: str, data: str, times: tuple[float, ...]) -> PublicFiles:
    """Read anew only when a path or a file changed: a form asks at every key."""
    return federations.public_files(Federation(Path(folder).name, Path(folder), json.loads(data)))


def _times(federation: Federation, edited: Values) -> tuple[float, ...]:
    task = edited.get("task") or {}
    named = [one for one in (task.get("labels"), task.get("examples"), edited.get("test")) if isinstance(one, str)]
    paths = [federation.folder / one for one in named]
    return tuple(path.stat().st_mtime if path.is_file() else 0.0 for path in paths)


def as_yaml(federation: Federation, edited: Values, key: str) -> None:
    """The same settings as text: to read, to change, to load from a file, and for the command line."""
    with st.expander("The same as YAML, and as a command", icon=":material/code:"):
        if edited != federation.data:
            st.caption("This is the draft as it was saved last; the form above has changes that are not saved yet.")
        text = st.text_area(
            "federation.yaml", federation.text, height=340, key=f"{key}.yaml.{forms.mark(federation.text)}", persist_state="session"
        )
        given = st.file_uploader("or a YAML file", ["yaml", "yml"], key=f"{key}.yaml.file", max_upload_size=1)
        if st.button("Load", icon=":material/check:", key=f"{key}.yaml.load"):
            _load(federation.name, text if given is None else given.getvalue().decode("utf-8", "replace"), key)
        if error := st.session_state.get(f"{key}.yaml.error"):
            widgets.failure_card(error, f"{key} yaml")
        st.caption("On the command line, in the federation's folder:")
        st.code("cafe run federation.yaml", language="bash")


def _load(name: str, text: str, key: str) -> None:
    st.session_state.pop(f"{key}.yaml.error", None)
    try:
        federations.save_text(name, text)
    except (CafeError, StoreError) as error:
        st.session_state[f"{key}.yaml.error"] = error
        return
    st.toast("Loaded.")
    st.rerun()
