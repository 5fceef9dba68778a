"""The pages in ``docs/errors``: one for every code that the program can raise, and the index of them.

Knows where the pages lie and which codes stand in the sources. Does not know what a code means: its page says it. The
command line (``cafe explain``) and the console show the same text. ``python -m pipeline.error_pages`` writes the index.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from cafe_kit.errors import CafeError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "errors"
ROOMS = ("client_kits", "pipeline", "server_store", "app")
SECTIONS = ("What happened", "Why", "What to do")
GROUPS = {
    "1": "Sites and orders",
    "2": "Data",
    "3": "Privacy",
    "4": "Training, models, bodies",
    "5": "Generation, evaluation, chat",
    "6": "Settings, store, machine",
}
_CODE = re.compile(r"CAFE-\d{3}\b")


def page(code: str, folder: Path = FOLDER) -> str | None:
    """The page of a code, as Markdown; None where there is none."""
    if not _CODE.fullmatch(code):
        return None
    try:
        return (folder / f"{code}.md").read_text(encoding="utf-8")
    except OSError:
        return None


def explain(code: str) -> str:
    """The page of a code as a person types it: ``CAFE-331``, ``cafe-331`` or ``331``.

    Raises:
        CafeError: CAFE-682 where there is no such page.
    """
    wanted = code.strip().upper()
    text = page(f"CAFE-{wanted}" if wanted.isdigit() else wanted)
    if text is None:
        raise CafeError("CAFE-682", "There is no page about this code.", "A code is the word CAFE, a dash and three digits: CAFE-331.")
    return text


def codes_in_source(root: Path = ROOT) -> set[str]:
    """Every code that stands in a text of the program; what only a docstring or a comment names does not count."""
    return {code for room in ROOMS for path in sorted((root / room).rglob("*.py")) for code in _codes(path)}


def codes_with_pages(folder: Path = FOLDER) -> set[str]:
    return {path.stem for path in folder.glob("CAFE-*.md")}


def mismatches(root: Path = ROOT, folder: Path = FOLDER) -> list[str]:
    """Codes without a page and pages without a code, in words."""
    raised, explained = codes_in_source(root), codes_with_pages(folder)
    missing = [f"{code} has no page" for code in sorted(raised - explained)]
    return missing + [f"{code}.md explains a code that is never raised" for code in sorted(explained - raised)]


def index(folder: Path = FOLDER) -> str:
    """``README.md`` of the folder: every code with its name, by its first digit."""
    parts = ["# Error codes", "Written by `python -m pipeline.error_pages`; do not edit by hand. `cafe explain CAFE-331` prints a page;"]
    parts[-1] += " `cafe` is `.venv/bin/cafe` in the project's folder."
    for digit, group in GROUPS.items():
        codes = [code for code in sorted(codes_with_pages(folder)) if code[5] == digit]
        rows = [f"| [{code}]({code}.md) | {_name(code, folder)} |" for code in codes]
        parts += [f"## {digit}xx: {group}", "\n".join(["| code | in one line |", "| --- | --- |", *rows])]
    return "\n\n".join(parts) + "\n"


def _name(code: str, folder: Path) -> str:
    return (page(code, folder) or "").partition("\n")[0].partition(": ")[2]


def _codes(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield from _CODE.findall(node.value)


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(index(), encoding="utf-8")
