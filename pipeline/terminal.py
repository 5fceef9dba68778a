"""How commands print: for people, or as one JSON object for machines. Knows the terminal; not what is told."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any


class Format(StrEnum):
    """How to print: for people, or one JSON object for machines."""

    text = "text"
    json = "json"


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def plain(text: str) -> str:
    """Text that is shown as it is, also where it looks like the terminal's markup or holds its control characters."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text).replace("[", r"\[")
