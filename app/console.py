"""The console, in its first form: what it will be, what runs there are, and the commands that do the work today.

Knows how to draw. Holds no truth: every figure is read from the store at each drawing. Never loads torch.
"""

from __future__ import annotations

import time

import streamlit as st

from pipeline import launch
from server_store.rows import Run
from server_store.store import Store

COMMANDS = """\
make demo                           # the demo federation, to its adapter
.venv/bin/cafe run federation.yaml  # your own federation, on this machine
.venv/bin/cafe status               # all runs; with an id: follow one
.venv/bin/cafe stop RUN             # after the round; cafe resume RUN goes on
.venv/bin/cafe export RUN           # results, adapter, synthetic set, ledger
.venv/bin/cafe doctor               # is this machine fit for it?"""
MARKS = {"Done": "✓", "Running": "▶", "Failed": "✗", "Lost contact": "?"}


def main() -> None:
    st.set_page_config(page_title="Café au Lait", page_icon="☕")
    st.title("Café au Lait")
    st.write(
        "Federated fine-tuning of a language model that includes sites without a GPU. "
        "The console comes with a later release; this page lists the runs of this machine."
    )
    st.header("Runs")
    runs()
    st.header("Commands")
    st.write("Type them in a terminal, in the project's folder. Nothing leaves this machine.")
    st.code(COMMANDS, language="bash")


@st.fragment(run_every="2s")
def runs() -> None:
    """All runs, the newest first."""
    try:
        store = launch.store()
    except Exception as error:  # CafeError and StoreError read as a code, a sentence and a hint; nothing else may reach the page
        st.error(str(error) if getattr(error, "code", "") else f"The store cannot be opened ({type(error).__name__}). Run `cafe doctor`.")
        return
    try:
        found = store.runs()
        if not found:
            st.info("No runs yet. `make demo` starts the first one: about ten minutes, on this machine alone.")
        else:
            st.dataframe([_line(store, run) for run in found], hide_index=True, width="stretch")
    finally:
        store.close()


def _line(store: Store, run: Run) -> dict[str, str]:
    state, progress = run.shown_state, store.progress(run.id)
    doing = f"{progress.phase} {progress.done}/{progress.of}" if run.active and progress else (run.error or {}).get("message", "")
    return {
        "state": f"{MARKS.get(state, '·')} {state}",
        "run": run.id,
        "now": doing,
        "started": time.strftime("%d %b %H:%M", time.localtime(run.created)),
        "folder": run.folder,
    }


main()
