"""The tables of ``docs/architecture.md``: every file of the four rooms with the first sentence that it says of itself.

Knows folders and docstrings; imports nothing of what it lists. ``python -m pipeline.rooms`` writes them; a test compares.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "architecture.md"
ROOMS = {
    "client_kits/cafe_kit": "what a site runs",
    "pipeline": "the algorithm and the processes of the server",
    "server_store": "the only SQL, blobs, the ledger",
    "app": "the console",
}
_BEGIN, _END = "## Rooms\n", "## The path of a number"


def tables(root: Path = ROOT) -> str:
    """The section *Rooms*, as Markdown."""
    parts = [_BEGIN, "One noun a file; each opens by saying what it knows and what it does not. `make format` writes these tables.\n"]
    for room, what in ROOMS.items():
        rows = [f"| `{name}` | {sentence} |" for name, sentence in _files(root / room)]
        parts.append("\n".join((f"### `{room}/`: {what}\n", "| file | in one line |", "| --- | --- |", *rows, "")))
    return "\n".join(parts) + "\n"


def page(text: str) -> str:
    """The architecture's text with the tables as they should be."""
    return text[: text.index(_BEGIN)] + tables() + text[text.index(_END) :]


def _files(room: Path) -> list[tuple[str, str]]:
    found = []
    for file in sorted(room.rglob("*.py")):
        if file.name != "__init__.py":
            summary = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].replace("\n", " ")
            found.append((file.relative_to(room).as_posix(), summary.split(". ")[0].rstrip(".")))
    return found


if __name__ == "__main__":
    FILE.write_text(page(FILE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{FILE.name} written")
