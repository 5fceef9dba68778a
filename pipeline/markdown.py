"""Markdown that says what was meant: words from people as code spans, blocks whose fence cannot be closed, tables.

Knows the marks of CommonMark and GitHub's tables. Does not know what is written with them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def code(text: str) -> str:
    """Text from people as a code span: one line, shown as typed, no markup in it (not even in a table)."""
    text = " ".join(text.split()).replace("|", "¦") or "(empty)"
    fence = "`" * (1 + _longest_fence(text))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def fenced(text: str, language: str = "text") -> str:
    """A block of code whose fence nothing in the text can close."""
    fence = "`" * max(3, 1 + _longest_fence(text))
    return f"{fence}{language}\n{text}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are Markdown of ours."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _longest_fence(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
