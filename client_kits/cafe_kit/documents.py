"""Small documents of the site's own: written whole or not at all, once where the first writer is to win, read without trust.

Knows files and JSON. Does not know what they say.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from cafe_kit.release import sync_folder


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, make durable, rename. Raises OSError."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_once(path: Path, document: dict[str, Any]) -> bool:
    """Write a document durably unless there is one already; False: another writer was first. Raises OSError."""
    return write_first(path, json.dumps(document).encode())


def write_first(path: Path, data: bytes) -> bool:
    """The same for bytes."""
    beside = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        write_whole(beside, data)
        os.link(beside, path)
        return True
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)
        sync_folder(path.parent)


def read(path: Path) -> dict[str, Any]:
    """The document; {} where there is none, or something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
