"""A setting whose name was mistyped: what may have been meant.

Knows names of fields. Does not know what they mean, and repeats no value.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from pydantic import BaseModel, ValidationError


def first(error: ValidationError) -> str:
    """The setting that is wrong; one that nobody knows before one that is missing, since it explains it."""
    found = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    return ".".join(str(part) for part in found["loc"])[:80]


def meant(error: ValidationError, schema: type[BaseModel]) -> str:
    """A question to add to a refusal, or "" where the wrong setting is a known one, or nothing is near."""
    known = set(_names(schema))
    near = difflib.get_close_matches(first(error).rpartition(".")[2], known, n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near and first(error).rpartition(".")[2] not in known else ""


def _names(schema: type[BaseModel]) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation)
