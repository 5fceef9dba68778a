"""The console's pages and their order. Streamlit runs this file at every drawing; ``console.py`` serves it.

Knows the menu. Never loads torch.
"""

from __future__ import annotations

import streamlit as st

from app import frame, widgets


def main() -> None:
    st.set_page_config(page_title="Café au Lait", page_icon="☕", layout="wide")
    menu: dict[str, list[st.Page]] = {
        "": [_page("home", "Home", "home", "What is going on, and what to do next", default=True)],
        "Federation": [_page("sites", "Sites", "hub", "Who takes part")],
        "Stage 1 · Synthetic data": [
            _page("generate", "Generate", "auto_awesome", "Plan, start and watch a run's synthetic text"),
            _page("datasets", "Datasets", "dataset", "Read and judge the synthetic sets"),
        ],
        "Stage 2 · Training": [_page("train", "Train", "model_training", "Federated training, round by round")],
        "Result": [
            _page("adapters", "Adapters", "extension", "Take an adapter home"),
            _page("try_it", "Try it", "forum", "Ask base and adapters side by side", path="try"),
        ],
        "Records": [
            _page("runs", "Runs", "history", "Every run, its log and its files"),
            _page("privacy", "Privacy ledger", "shield", "What was spent, by whom, for what"),
            _page("settings", "Settings", "settings", "This machine and this console"),
        ],
    }
    page = st.navigation(menu, expanded=True)
    frame.foot()
    frame.status_line()
    with widgets.guard("page"):
        page.run()


def _page(file: str, title: str, icon: str, told: str, *, path: str | None = None, default: bool = False) -> st.Page:
    return st.Page(f"views/{file}.py", title=title, icon=f":material/{icon}:", url_path=path or file, help=told, default=default)


main()
