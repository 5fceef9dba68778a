"""A site's own data: from a file, or the site's own loader, to records. The only code that opens private files.

Knows: roles, columns, the task's public labels. Does not know the formats (``tables.py``) or what becomes of the records.
A refusal may name the file, a line and column names; never a value, and never how many rows there are.

Text is cleaned by one rule (``clean``): NFC; line ends of every kind become ``\\n``; control characters, lone surrogates,
byte-order marks and direction overrides go; white space at both ends goes. "NA" and "null" stay text. A row whose
text or answer is then empty is left out; one whose label is not in the task's list is refused.
"""

from __future__ import annotations

import gzip
import re
import stat
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, cast

from cafe_kit.errors import CafeError
from cafe_kit.loader import load_rows
from cafe_kit.tables import Row, Wanted, names, rows, too_large
from cafe_kit.task import Record, Task

Format = Literal["jsonl", "csv", "parquet", "loader"]

ROLES = {"classification": ("text", "label"), "instruction": ("instruction", "input", "output")}
OPTIONAL_ROLES = ("input",)
MIN_RECORDS = 2  # one record is no data set: nothing can be learnt from it, and every vote would speak of it
MAX_TEXT = 1_000_000  # characters of one text; far more than any model reads
MAX_CHARACTERS = 2 * 2**30  # of all texts together: they are kept in memory

_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet", ".py": "loader",
}  # fmt: skip
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_DROPPED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]")
_KINDS = {type(None): "nothing (null)", bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class DataSource:
    """Where a site's records are, and which columns hold what.

    ``path``: a regular file or a link to one. ``columns``: role -> column name; the roles are text, label
    (classification) or instruction, input, output (instruction data; input may be absent); a role that is not named is
    the column of its own name. ``format``: by default from the suffix (.jsonl .ndjson .json .csv .parquet .py; text
    also with .gz); the content is then checked against it. A ``.py`` file is the site's own loader (``loader.py``): its
    rows have the roles as names, whatever ``columns`` says.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    format: Format | None = None


def read(source: DataSource, task: Task) -> list[Record]:
    """All records of the source, in its order.

    Raises:
        CafeError: CAFE-201 to CAFE-221, saying what is wrong and where, never what stands there.
    """
    columns = _columns(source, task)
    before = fingerprint(source)
    records = _records(_rows(source, columns), columns, task)
    if fingerprint(source) != before:
        raise CafeError("CAFE-220", f"The data file '{source.path.name}' changed while it was read.",
                        "Let whatever writes it finish, then start again.")  # fmt: skip
    return records


def column_names(source: DataSource) -> list[str]:
    """The names of the source's columns, for whoever maps them; none where it has none that look like names, or is a loader.

    Raises:
        CafeError: CAFE-201 to CAFE-219, as ``read``.
    """
    fingerprint(source)
    kind = _format(source)
    if kind == "loader":
        return []
    with _opened(source) as handle:
        return names(handle, kind)


def raw_rows(source: DataSource, task: Task) -> Iterator[Row]:
    """The rows as they stand in the file, each with its place: for the site's own eyes, at the site.

    Raises:
        CafeError: CAFE-201 to CAFE-221, as ``read``.
    """
    fingerprint(source)
    return _rows(source, _columns(source, task))


def fingerprint(source: DataSource) -> str:
    """Size in bytes and time of change in nanoseconds: another one when the file changed. It stays at the site.

    Raises:
        CafeError: CAFE-201 (not there), CAFE-202 (no regular file, or not readable), CAFE-203 (empty).
    """
    try:
        found = source.path.stat()
    except PermissionError:
        raise _unreadable(source.path) from None
    except (OSError, ValueError):
        raise CafeError("CAFE-201", f"The data file '{source.path.name}' was not found.", f"Check the path: {source.path}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise CafeError("CAFE-202", f"The data path '{source.path.name}' is {kind}.", "Give the path of one file.")
    if found.st_size == 0:
        raise _empty()
    return f"{found.st_size}-{found.st_mtime_ns}"


def clean(text: str) -> str:
    """The rule of this module's docstring, applied to one text."""
    return unicodedata.normalize("NFC", _DROPPED.sub("", _LINE_END.sub("\n", text))).strip()


def _columns(source: DataSource, task: Task) -> dict[str, str]:
    roles = ROLES[task.kind]
    unknown = [role for role in source.columns if role not in roles]
    if unknown:
        raise CafeError("CAFE-221", f"The column mapping names '{unknown[0]}', which {task.kind} data do not have.",
                        f"The roles are: {', '.join(roles)}.")  # fmt: skip
    return {role: role if _format(source) == "loader" else source.columns.get(role, role) for role in roles}


def _format(source: DataSource) -> Format:
    name = source.path.name.lower().removesuffix(".gz")
    kind = source.format or _SUFFIXES.get(Path(name).suffix)
    if kind is None:
        raise CafeError("CAFE-216", f"The format of '{source.path.name}' cannot be told from its name.",
                        "Use .jsonl, .csv, .parquet or a .py loader, or name the format in the configuration.")  # fmt: skip
    return kind


def _rows(source: DataSource, columns: Mapping[str, str]) -> Iterator[Row]:
    kind = _format(source)
    optional = tuple(columns[role] for role in OPTIONAL_ROLES if role in columns)
    wanted = Wanted(tuple(column for column in columns.values() if column not in optional), optional)
    if kind == "loader":
        for place, row in load_rows(source.path):
            wanted.check(row, place)
            yield place, row
        return
    with _opened(source) as handle:
        yield from rows(handle, kind, wanted)


@contextmanager
def _opened(source: DataSource) -> Iterator[IO[bytes]]:
    """The file, unpacked where its name says so."""
    packed = _format(source) != "parquet" and source.path.suffix.lower() == ".gz"
    try:
        with source.path.open("rb") as file, gzip.open(file) if packed else file as handle:
            yield cast(IO[bytes], handle)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise CafeError("CAFE-218", f"The file '{source.path.name}' is not a whole gzip file.", "Copy or export it again.") from None
    except OSError:
        raise _unreadable(source.path) from None


def _records(found: Iterable[Row], columns: Mapping[str, str], task: Task) -> list[Record]:
    labels = {clean(label): label for label in task.labels}
    records: list[Record] = []
    characters = 0
    for place, row in found:
        *parts, answer = [_value(row.get(column), column, role, place) for role, column in columns.items()]
        if not parts[0] or (not answer and not labels):
            continue
        if labels and answer not in labels:
            raise CafeError("CAFE-213", f"{place.capitalize()} has a label that is not in the list of this task.",
                            f"The labels are: {', '.join(task.labels[:20])}{' ...' if len(task.labels) > 20 else ''}.")  # fmt: skip
        records.append(Record("\n\n".join(part for part in parts if part), labels.get(answer, answer)))
        characters += len(records[-1].text) + len(records[-1].answer)
        if characters > MAX_CHARACTERS:
            raise too_large("The data hold more text than can be kept in memory.")
    if not records:
        raise _empty()
    if len(records) < MIN_RECORDS:
        raise CafeError("CAFE-214", f"The data have fewer than {MIN_RECORDS} rows with text.", "Give more rows, or leave this site out.")
    return records


def _value(value: object, column: str, role: str, place: str) -> str:
    if value is None and role in OPTIONAL_ROLES:
        return ""
    if not isinstance(value, str):
        raise CafeError("CAFE-212", f"{place.capitalize()} has {_KINDS.get(type(value), 'something else')} in column '{column}', not text.",
                        "Write the value as text; leave out rows that have none.")  # fmt: skip
    if len(value) > MAX_TEXT:
        raise too_large(f"{place.capitalize()} has a text of more than {MAX_TEXT} characters in column '{column}'.")
    return clean(value)


def _empty() -> CafeError:
    return CafeError("CAFE-203", "The data have no rows with text.", "Check that it is the right file and that its columns hold text.")


def _unreadable(path: Path) -> CafeError:
    return CafeError("CAFE-202", f"The data file '{path.name}' cannot be read by this account.", f"Check the rights and the disk: {path}")
