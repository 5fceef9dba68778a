"""``docs/reference.md``, written from what the program itself knows: the settings' schema and the command line.

Knows how to read pydantic's JSON schema and typer's commands as tables. ``python -m pipeline.reference`` writes the file; a
test compares. What others lean on beyond these (``results.json``, the environment) is described here and checked there.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer.models

from pipeline.cli import app
from pipeline.settings import RunSettings

FILE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"

RESULTS = {
    "schema_version": "1; goes up when a meaning changes",
    "run": "id of the run",
    "name": "of the federation",
    "zero_shot": "the base model on the test set: `accuracy` (classification) or `loss` (instruction data), and `n`, its size",
    "synthetic_only": "the same after training on the synthetic set alone; null where there was none",
    "federated": "the same after the last round",
    "rounds": "a list: the same after every round, with `round`",
    "privacy": "per stage `epsilon`, `delta`, `unit`, `trust`, or off",
    "adapter": "absolute path of the PEFT folder",
    "synthetic": "absolute path of the synthetic set (Parquet); null where there is none",
    "seconds": "wall time by phase, and `total`",
    "sites": "per site `name`, `kind`, how many orders were answered, refused, failed or late, and seconds by phase",
    "base_model": "`name` and `sha256` of the base model's folder",
}

ENVIRONMENT = {
    "CAFE_HOME": "folder of models, runs and databases; `~/.cafe` when not set; made with mode 0700",
    "CAFE_GENERATOR_KEY": "key of another generator (`stage1.generator`), unless its `api_key_env` names another variable",
    "CAFE_TEST_DATA": "where tests find external data sets; `../shared/data` when not set",
    "CAFE_CI": "1: a test that was skipped fails the session, but for long loops and what needs a GPU",
    "PIP_INDEX_URL": "pip's own: the package index from which the shipped models come",
    "HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN": "the Hugging Face client's own, for base models by hub id",
}

EXIT_CODES = {
    "0": "done",
    "1": "failed",
    "2": "wrong settings or usage",
    "5": "refused for privacy (CAFE-3xx)",
    "130": "interrupted by Ctrl-C",
}


def render() -> str:
    """The whole page, as Markdown."""
    parts = [
        "# Reference",
        "Written by `python -m pipeline.reference` out of the program itself; do not edit by hand.",
        "## Commands",
        "`make demo` and `make install` put `cafe` into `.venv/bin`.",
        *_commands(),
        "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
        "## Settings of a run",
        "The YAML of `cafe run`. YAML 1.2: `no` is a word, `1e-5` a number. Unknown keys are refused. Paths are relative to the file.",
        *_settings(),
        "## results.json",
        "In the run's folder, written last. Keys and meanings change only with an entry in the CHANGELOG.",
        _table(("key", "meaning"), [(f"`{key}`", meaning) for key, meaning in RESULTS.items()]),
        "## Environment",
        _table(("variable", "meaning"), [(f"`{name}`", meaning) for name, meaning in ENVIRONMENT.items()]),
    ]
    return "\n\n".join(parts) + "\n"


# Settings


def _settings() -> Iterator[str]:
    """One table for the top, then one for every section, each below the section that it is part of."""
    schema = RunSettings.model_json_schema()
    titles: dict[str, list[str]] = {}  # definition -> where it is used, in order
    _used(schema, "", schema["$defs"], titles)
    yield _section(schema, schema["$defs"])
    for name, where in titles.items():
        definition = schema["$defs"][name]
        yield "### " + ", ".join(f"`{title}`" for title in where)
        yield definition["description"]
        yield _section(definition, schema["$defs"])


def _used(schema: dict[str, Any], title: str, definitions: dict[str, Any], titles: dict[str, list[str]]) -> None:
    for name, field in schema["properties"].items():
        for reference in _references(field):
            path = f"{title}.{name}" if title else name
            titles.setdefault(reference, []).append(path)
            _used(definitions[reference], path, definitions, titles)


def _references(field: dict[str, Any]) -> list[str]:
    return re.findall(r"'#/\$defs/(\w+)'", str(field))


def _section(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    for name, field in schema["properties"].items():
        default = "required" if name in schema.get("required", ()) else _value(field.get("default"))
        sections = _references(field)
        if sections and default != "required":
            default = ""  # the section's own table has the defaults
        meaning = field.get("description") or " ".join(definitions[one]["description"] for one in sections)
        rows.append((f"`{name}`", _kind(field), default, meaning))
    return _table(("setting", "what it may be", "default", "meaning"), rows)


def _kind(field: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in field or "allOf" in field:
        return "a section"
    if "anyOf" in field:
        return " or ".join(_kind(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field or "const" in field:
        return " · ".join(f"`{one}`" for one in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"a list of {_plural(_kind(field.get('items', {'type': 'string'})))}"
    if field.get("type") == "object":
        return "names and values"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    kind = "path" if field.get("format") == "path" else words.get(field.get("type", ""), "anything")
    bounds = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    limits = ", ".join(f"{sign} {_value(field[key]).strip('`')}" for key, sign in bounds if key in field)
    return f"{kind} {limits}".strip()


def _plural(kind: str) -> str:
    return {"a section": "sections", "text": "texts", "path": "paths"}.get(kind, kind)


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, (list, tuple)):
        return "`[" + ", ".join(map(str, value)) + "]`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`"


# Commands


def _commands() -> Iterator[str]:
    for above, command in commands():
        function = command.callback
        assert function is not None
        rows = list(_parameters(function))
        arguments = "".join(f" {row[0].strip('`')}" for row in rows if not row[0].startswith("`--"))
        yield f"### `cafe {above}{(command.name or function.__name__).replace('_', '-')}{arguments}`"
        yield inspect.getdoc(function) or ""
        if rows:
            yield _table(("argument", "what it may be", "default", "meaning"), rows)


def commands() -> Iterator[tuple[str, typer.models.CommandInfo]]:
    """Every command, with the words that stand above it ("site ")."""
    yield from (("", command) for command in app.registered_commands)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from ((f"{group.name} ", command) for command in group.typer_instance.registered_commands)


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name, kind, default and help of each parameter, from the signature that typer reads too."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *marks = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        info = next((mark for mark in marks if isinstance(mark, typer.models.ParameterInfo)), typer.models.OptionInfo())
        required = parameter.default is inspect.Parameter.empty
        argument = isinstance(info, typer.models.ArgumentInfo)
        declared = next((one for one in info.param_decls or () if one.startswith("--")), "--" + name.replace("_", "-"))
        shown = (name.upper() if required else f"[{name.upper()}]") if argument else declared
        default = (
            "required" if required else "" if parameter.default is False else _value(getattr(parameter.default, "value", parameter.default))
        )
        yield f"`{shown}`", _python_kind(kind, info), default, info.help or ""


def _python_kind(kind: Any, info: typer.models.ParameterInfo) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " · ".join(f"`{one.value}`" for one in kind)
    if get_origin(kind) is Literal:
        return " · ".join(f"`{one}`" for one in get_args(kind))
    word = {Path: "path", str: "text", int: "whole number", float: "number", bool: "switch"}.get(kind, kind.__name__)
    limits = [f"{sign} {bound}" for bound, sign in ((info.min, "≥"), (info.max, "≤")) if bound is not None]
    return " ".join((word, ", ".join(limits))).strip()


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
    print(f"{FILE.name} written", file=sys.stderr)
