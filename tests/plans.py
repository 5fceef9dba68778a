"""What the tests of pages share: drafts of a tiny federation in a home, homes that a run was made in, and the pages over them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest

from pipeline import federations
from tests.federation import LABELS, ROOT
from tests.tiny_models import tiny_base, tiny_embedder

HOSTILE = "<script>alert(1)</script>**x** :red[y] $z$ [a](http://b)"


def draft(home: Path, *, weak: int = 3, strong: int = 2, **changes: Any) -> federations.Federation:
    """A complete draft called tiny, its base model on this disk, nothing ever run."""
    (home / "federations" / "tiny").mkdir(parents=True)
    folder = home / "federations" / "tiny"
    rows = [{"text": f"{label} question {n}", "label": label} for n in range(3) for label in LABELS]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data: dict[str, Any] = {
        "name": "tiny",
        "task": {"kind": "classification", "description": "where a message goes", "labels": list(LABELS)},
        "base_model": str(tiny_base(home / "base")),
        "embedder": str(tiny_embedder(home / "embedder")),
        "sites": [{"name": f"weak{n}", "kind": "cpu", "data": "none.jsonl"} for n in range(weak)]
        + [{"name": f"strong{n}", "kind": "gpu", "data": "none.jsonl"} for n in range(strong)],
        "test": "test.jsonl",
        "privacy": {"stage1": {"epsilon": 20, "delta": 1e-5}, "stage2": "off"},
        "stage1": {"rounds": 2, "candidates_per_label": 4, "survivors_per_label": 1, "synthetic_per_label": 6, "approve": "automatic"},
    }
    return federations.save("tiny", {**data, **changes})


def page(name: str, **query: str) -> AppTest:
    """The page as it opens at this address."""
    shown = AppTest.from_file(str(ROOT / "app" / "pages.py"), default_timeout=30)
    shown.switch_page(f"views/{name}.py")
    for key, value in query.items():
        shown.query_params[key] = value
    return run(shown)


def run(shown: AppTest) -> AppTest:
    shown.run()
    assert not shown.exception, shown.exception
    return shown


def told(shown: AppTest) -> str:
    kinds = ("title", "subheader", "markdown", "caption", "info", "code", "text")
    return "\n".join(str(one.value) for kind in kinds for one in shown.get(kind))


def button(shown: AppTest, label: str) -> Any:
    return next(one for one in shown.button if one.label == label)


def number(shown: AppTest, label: str) -> Any:
    return next(one for one in shown.number_input if one.label == label)


def field(shown: AppTest, label: str) -> Any:
    return next(one for kind in ("text_input", "toggle", "selectbox", "button_group") for one in shown.get(kind) if one.label == label)


def move_in(source: Path, home: Path, run_id: str, folder: str) -> None:
    """A copy of a home in which a run was made."""
    shutil.copytree(source, home, dirs_exist_ok=True)
    change(home, "UPDATE runs SET folder=? WHERE id=?", str(home / Path(folder).relative_to(source)), run_id)


def change(home: Path, sql: str, *values: object) -> None:
    with sqlite3.connect(home / "store.db") as rows:
        rows.execute(sql, values)
