"""Forms out of the schema: a widget per field of a settings section, with its bounds, its description and its default.

Knows pydantic fields and widgets; not what a setting does. What is typed lives in the browser's session until it is saved;
a widget starts anew when the stored value under it changes, so that the form never shows an older file than there is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import streamlit as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app import widgets

Values = dict[str, Any]
_LABELS = {
    "Stage1Settings.rounds": "Votes",
    "Stage1Settings.approve": "Who approves the synthetic set",
    "TaskSettings.kind": "Kind of task",
    "top_p": "Top p",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "deadline_s": "Deadline, seconds",
    "url": "URL",
    "api_key_env": "Name of the variable that holds the key",
}


@dataclass(frozen=True)
class Shape:
    """What a field may hold. ``kind``: choice | bool | int | float | words | text."""

    kind: str
    optional: bool
    options: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


def section(model: type[BaseModel], values: Any, fields: Iterable[str], key: str, columns: int = 2) -> Values:
    """Draw these fields of a section, ``columns`` in a row; returns the section's values as they stand in the form now.

    values: as written in the draft, perhaps unfinished. What is at its default and was not written stays unwritten.
    """
    written: Values = dict(values) if isinstance(values, Mapping) else {}
    edited = dict(written)
    names = list(fields)
    for at in range(0, len(names), columns):
        for column, name in zip(st.columns(columns), names[at : at + columns], strict=False):
            with column:
                value = _field(label(name, model.__name__), name, model.model_fields[name], written.get(name), key)
            put(edited, name, value, _default(model.model_fields[name]), written)
    return edited


def put(edited: Values, name: str, value: Any, default: Any, written: Mapping[str, Any]) -> None:
    """Write a value down, unless it says no more than leaving it out."""
    if value is None or (name not in written and value == default):
        edited.pop(name, None)
    elif name not in written or value != written[name]:
        edited[name] = value


def place(edited: Values, name: str, values: Values) -> None:
    """Write a section down, unless all of it is at its defaults."""
    if values:
        edited[name] = values
    else:
        edited.pop(name, None)


def others(model: type[BaseModel], shown: Iterable[str]) -> list[str]:
    """The fields of a section that are not among the basic ones; sections within are drawn by their own pages."""
    out = set(shown)
    return [name for name, field in model.model_fields.items() if name not in out and not _holds_section(field.annotation)]


def mark(stored: Any) -> str:
    """A few letters that change with the stored value: a widget's key ends with them."""
    return hashlib.sha256(json.dumps(stored, sort_keys=True, default=str).encode()).hexdigest()[:6]


def label(name: str, model: str = "") -> str:
    """A field's name as a person reads it."""
    return _LABELS.get(f"{model}.{name}") or _LABELS.get(name, name.replace("_", " ").capitalize())


def shape(field: FieldInfo) -> Shape:
    """What the schema says about a field."""
    kind, optional, hints = _unwrap(field.annotation)
    hints = [*hints, *field.metadata]
    if get_origin(kind) is Literal:
        return Shape("choice", optional, tuple(str(option) for option in get_args(kind)))
    if kind is bool:
        return Shape("bool", optional)
    if kind in (int, float):
        low, high = _bounds(hints, whole=kind is int)
        return Shape("int" if kind is int else "float", optional, low=low, high=high)
    return Shape("words" if get_origin(kind) is tuple else "text", optional)


def _field(shown: str, name: str, field: FieldInfo, stored: Any, key: str) -> Any:
    """One widget; returns its value, None where the field is left out."""
    asked, default = shape(field), _default(field)
    told = widgets.plain(_help(field, asked, default))
    usable = stored is not None and _usable(stored, asked)
    value = stored if usable else default
    if stored is not None and not usable:
        st.caption(f"{shown}: {widgets.plain(repr(stored)[:60])} cannot stand here; the default is shown.")
    common: dict[str, Any] = {"help": told, "key": f"{key}.{name}.{mark(stored)}", "persist_state": "session"}
    if asked.kind == "choice":
        return _choice(shown, asked, value, common)
    if asked.kind == "bool":
        return st.toggle(shown, bool(value), **common)
    if asked.kind in ("int", "float"):
        return _number(shown, asked, value, default, common)
    if asked.kind == "words":
        known = list(dict.fromkeys([*(value or ()), *(default or ())]))
        picked = st.multiselect(shown, known, list(value or ()), accept_new_options=True, **common)
        return picked if picked != list(default or ()) or stored is not None else tuple(picked)
    text = st.text_input(shown, "" if value is None else str(value), placeholder="left out" if asked.optional else None, **common).strip()
    return text or None


def _choice(name: str, asked: Shape, value: Any, common: dict[str, Any]) -> Any:
    options = ["left out", *asked.options] if asked.optional else list(asked.options)
    picked = st.segmented_control(name, options, default=value or options[0], required=True, **common)
    return None if asked.optional and picked == "left out" else picked


def _number(name: str, asked: Shape, value: Any, default: Any, common: dict[str, Any]) -> Any:
    whole = asked.kind == "int"
    as_is: Callable[[Any], Any] = int if whole else float
    bounds: dict[str, Any] = {"min_value": asked.low, "max_value": asked.high, "value": value}
    if asked.optional:  # only a number that begins empty can be emptied again
        st.session_state.setdefault(common["key"], None if value is None else as_is(value))
        bounds["value"] = None
    widget: Any = st.number_input  # its many signatures tell whole from broken numbers; here the schema does
    return widget(
        name,
        **{bound: None if number is None else as_is(number) for bound, number in bounds.items()},
        step=1 if whole else _step(value if value is not None else default),
        format="%d" if whole else "%g",
        placeholder="left out" if asked.optional else None,
        **common,
    )


def _step(value: Any) -> float:
    """A tenth of the number's own size."""
    return float(10.0 ** (math.floor(math.log10(abs(value))) - 1)) if value else 0.1


def _help(field: FieldInfo, asked: Shape, default: Any) -> str:
    told = (field.description or "").rstrip(".")
    if field.is_required():
        return f"{told}."
    shown = "left out" if default is None else ", ".join(default) if asked.kind == "words" else f"{default}"
    return f"{told}. Default: {shown}."


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _usable(value: Any, asked: Shape) -> bool:
    """Whether the widget can show it: a draft may hold anything that somebody typed."""
    if asked.kind == "choice":
        return value in asked.options
    if asked.kind == "bool":
        return isinstance(value, bool)
    if asked.kind == "int":
        return isinstance(value, int) and not isinstance(value, bool) and _within(value, asked)
    if asked.kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and _within(value, asked)
    if asked.kind == "words":
        return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(word, str) for word in value)
    return isinstance(value, str)


def _within(value: float, asked: Shape) -> bool:
    return (asked.low is None or value >= asked.low) and (asked.high is None or value <= asked.high)


def _bounds(hints: Iterable[Any], *, whole: bool) -> tuple[float | None, float | None]:
    low = high = None
    for hint in hints:
        if isinstance(hint, FieldInfo):
            inner = _bounds(hint.metadata, whole=whole)
            low, high = inner[0] if inner[0] is not None else low, inner[1] if inner[1] is not None else high
        for name, over in (("ge", 0), ("gt", 1 if whole else 0)):
            if (found := getattr(hint, name, None)) is not None:
                low = found + over
        for name, under in (("le", 0), ("lt", 1 if whole else 0)):
            if (found := getattr(hint, name, None)) is not None:
                high = found - under
    return low, high


def _unwrap(annotation: Any) -> tuple[Any, bool, list[Any]]:
    """The plain type under Optional and Annotated; whether it may be left out; what was annotated."""
    if get_origin(annotation) is Annotated:
        inner, *hints = get_args(annotation)
        kind, optional, more = _unwrap(inner)
        return kind, optional, [*hints, *more]
    parts = get_args(annotation) if type(None) in get_args(annotation) else ()
    if parts:
        kind, _, hints = _unwrap(next(part for part in parts if part is not type(None)))
        return kind, True, hints
    return annotation, False, []


def _holds_section(annotation: Any) -> bool:
    kind, _, _ = _unwrap(annotation)
    return isinstance(kind, type) and issubclass(kind, BaseModel)
