"""What is wrong with a run's settings, in words: the setting, the nearest name, what it may be.

Knows how pydantic reports. Does not know any setting. Values are the operator's own, never a site's data.
"""

from __future__ import annotations

import difflib
from typing import Any

from cafe_kit.errors import CafeError
from pydantic import BaseModel, ValidationError


def in_words(error: ValidationError, schema: type[BaseModel]) -> CafeError:
    """The first problem in words. Values are the operator's own settings, never a site's data."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a mistyped key explains a missing one
    where = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        allowed = _fields_at(schema, tuple(first["loc"][:-1]))
        near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(allowed)}."
        return CafeError("CAFE-601", f"Unknown setting {where!r}.", hint)
    if first["type"] == "missing":
        return CafeError("CAFE-602", f"The setting {where!r} is missing.", "Add it; docs/reference.md lists every setting.")
    reason = _reason(first)
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (int, float, str, bool)) and len(str(given)) <= 80 else ""
    named = "" if reason.startswith(("sites", "stage", "task")) else f"{where!r}: "
    return CafeError(
        "CAFE-602", f"A setting was refused. {named}{reason}{shown}.", "Mend it; docs/reference.md says what each setting may be."
    )


def _reason(first: Any) -> str:
    """What the setting may be, in words; pydantic's own where they do."""
    kind, more = first["type"], first.get("ctx", {})
    if kind == "model_type" and first["loc"][:1] == ("privacy",):
        return "may be off, or {epsilon, delta}"
    if kind == "model_type":
        return "is a section of its own: settings below it, indented"
    if kind == "too_short" and first["loc"] == ("sites",):
        return "sites: there is none yet; write them into the file, or let sites of other machines join (`cafe site add`)"
    if kind == "string_pattern_mismatch":
        return "letters, digits, dot, dash and underscore alone, at most 64 of them"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        return next(f"must be {words[sign]} {bound:g}" for sign, bound in more.items() if sign in words)
    if kind in ("float_parsing", "int_parsing", "int_from_float", "float_type", "int_type"):
        return "must be a whole number" if kind.startswith("int") else "must be a number"
    return str(first["msg"]).removeprefix("Value error, ")


def _fields_at(schema: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys that are allowed where an unknown one was found."""
    at: Any = schema
    for part in location:
        if isinstance(part, int):
            continue
        field = at.model_fields.get(part) if hasattr(at, "model_fields") else None
        if field is None:
            break
        inner = [
            kind
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not inner:
            break
        at = inner[0]
    return list(at.model_fields)
