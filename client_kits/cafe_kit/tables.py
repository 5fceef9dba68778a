"""Rows out of CSV, JSON lines and Parquet, or a refusal that says where the file is wrong.

Knows: formats and what goes wrong in them. Does not know what a row means, and opens nothing: the handle is given.
A refusal names lines, and column names that look like names; never a value. Everything is streamed under size limits.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from cafe_kit.errors import CafeError

Row = tuple[str, Mapping[str, object]]  # ("line 17", {column: value})

MAX_BYTES = 8 * 2**30  # of a file, after decompression
MAX_LINE = 16 * 2**20  # bytes of one line
MAX_COLUMNS = 10_000

_MAGIC = (
    (b"pk\x03\x04", "a ZIP or Excel file"), (b"pk\x05\x06", "an empty ZIP file"), (b"\xd0\xcf\x11\xe0", "an old Excel or Word file"),
    (b"%pdf", "a PDF"), (b"sqlite format 3\0", "an SQLite database"), (b"par1", "a Parquet file"), (b"arrow1", "an Arrow file"),
    (b"\x1f\x8b", "a gzip-compressed file"), (b"bzh", "a bzip2-compressed file"), (b"\xfd7zxz\0", "an xz-compressed file"),
    (b"\x28\xb5\x2f\xfd", "a zstd-compressed file"), (b"\x80\x04\x95", "a Python pickle"), (b"{\\rtf", "an RTF document"),
    (b"<!doctype", "a web page"), (b"<html", "a web page"), (b"<?xml", "an XML document"),
    (b"version https://git-lfs", "a Git LFS pointer and not the data itself"),
)  # fmt: skip
_NAME = re.compile(r"[^\W\d][\w.:/-]{0,39}( [\w.:/-]{1,20}){0,2}")  # what a column name looks like; a sentence does not
_WORDS = {"csv": "CSV", "jsonl": "JSON lines", "parquet": "Parquet"}


@dataclass(frozen=True)
class Wanted:
    """The columns that a reader is asked for: without a required one it refuses, an optional one may be absent."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def check(self, found: Iterable[str], place: str) -> None:
        """Refuse a header or row without the required columns, or with two of one name."""
        names = list(found)
        twice = [name for name in self.required + self.optional if names.count(name) > 1]
        if twice:
            raise CafeError("CAFE-206", f"There are several columns '{twice[0]}'.", "Rename or remove all but one.")
        missing = [name for name in self.required if name not in names]
        if not missing:
            return
        likely = [f"'{name}'" for name in names if _NAME.fullmatch(name)]
        there = f"It has {', '.join(likely[:20])}" if likely and len(likely) == len(names) else "What stands there looks like no header"
        raise CafeError("CAFE-206", f"There is no column '{missing[0]}' in {place}.", f"{there}; map the columns in the configuration.")


def rows(handle: IO[bytes], kind: str, wanted: Wanted) -> Iterator[Row]:
    """The rows of one open file of ``kind`` csv, jsonl or parquet, each with its place ("line 17").

    Raises:
        CafeError: CAFE-204 to CAFE-212 and CAFE-217 to CAFE-219.
    """
    _check_content(handle.read(4096), kind)
    handle.seek(0)
    readers = {"csv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}
    yield from readers[kind](handle, wanted)


def names(handle: IO[bytes], kind: str) -> list[str]:
    """The column names of one open file of ``kind``, from its first line or its schema; none where they look like no names.

    Raises:
        CafeError: as ``rows``.
    """
    if kind == "parquet":
        _check_content(handle.read(4096), kind)
        handle.seek(0)
        found = _parquet_names(handle)
    else:
        first = next(rows(handle, kind, Wanted(())), None)
        found = list(first[1]) if first else []
    return found[:MAX_COLUMNS] if all(_NAME.fullmatch(name) for name in found) else []


def too_large(message: str) -> CafeError:
    """CAFE-219: a limit on sizes was met."""
    return CafeError("CAFE-219", message, "Split the data or shorten the texts.")


def _check_content(head: bytes, kind: str) -> None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    found = next((words for magic, words in _MAGIC if start.startswith(magic)), None)
    if kind == "parquet" and head.startswith(b"PAR1"):
        return
    if kind == "parquet":
        found = found or "something else"
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")) or (found is None and head.count(0) > len(head) // 4):
        raise CafeError("CAFE-204", "The data file is UTF-16 or binary, not UTF-8 text.", "Save it as UTF-8.")
    elif kind == "csv" and start.startswith((b'{"', b'[{"', b"[\n")):
        found = "JSON"
    if found:
        raise CafeError("CAFE-205", f"The data file is {found}, not {_WORDS[kind]}.",
                        f"Export the data as {_WORDS[kind]}, or name the file and its format as what they are.")  # fmt: skip


def _lines(handle: IO[bytes]) -> Iterator[str]:
    offset = 0
    while raw := handle.readline(MAX_LINE + 1):
        if len(raw) > MAX_LINE or offset > MAX_BYTES:
            raise too_large("The data file, or one of its lines, is too large.")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CafeError("CAFE-204", f"The data file is not UTF-8: byte {offset + error.start} does not belong there.",
                            "Save the file as UTF-8 (in Excel: 'CSV UTF-8').") from None  # fmt: skip
        yield line.removeprefix("\ufeff") if offset == 0 else line
        offset += len(raw)


def _csv_rows(handle: IO[bytes], wanted: Wanted) -> Iterator[Row]:
    reader = csv.reader(_lines(handle), strict=True)
    names: list[str] = []
    for line, fields in _csv_fields(reader):
        if not names:
            names = _header(fields, wanted)
        elif len(fields) != len(names):
            raise CafeError("CAFE-208", f"Line {line} has {len(fields)} fields; the first line has {len(names)}.",
                            "Put texts that hold commas or line ends between double quotes.")  # fmt: skip
        else:
            yield f"line {line}", dict(zip(names, fields, strict=True))


def _csv_fields(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line on which it starts."""
    start = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error:
            raise CafeError("CAFE-209", f"Line {start} has a quote that is not closed, or a broken or over-long field.",
                            "Double the quotes inside quoted fields, and end lines with a line feed.") from None  # fmt: skip
        if fields is None:
            return
        if fields:
            yield start, fields
        start = reader.line_num + 1


def _header(fields: list[str], wanted: Wanted) -> list[str]:
    names = [name.strip() for name in fields]
    separator = next((mark for mark in ";\t|" if mark in ",".join(fields)), "")
    if separator and not set(wanted.required) & set(names):
        shown = "tabulators" if separator == "\t" else f"'{separator}'"
        raise CafeError("CAFE-207", f"The data file looks separated by {shown}, not by commas.", "Save it again with commas.")
    wanted.check(names, "the first line")
    return names


def _jsonl_rows(handle: IO[bytes], wanted: Wanted) -> Iterator[Row]:
    started = False
    for number, line in enumerate(_lines(handle), start=1):
        if not line.strip():
            continue
        if not started and line.lstrip().startswith("["):
            raise CafeError("CAFE-211", "The data file holds a JSON array; it should hold one JSON object a line.",
                            "Convert it, for instance with: jq -c '.[]' old.json > new.jsonl")  # fmt: skip
        started = True
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise CafeError("CAFE-210", f"Line {number} is not one whole JSON object.", "Write one object a line, between braces.")
        wanted.check(row, f"line {number}")
        yield f"line {number}", row


def _parquet_rows(handle: IO[bytes], wanted: Wanted) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CafeError("CAFE-217", "Reading Parquet needs pyarrow, which is not installed here.",
                        "Install it with: pip install 'cafe-kit[parquet]', or export the data as JSON lines or CSV.") from None  # fmt: skip
    try:
        file = parquet.ParquetFile(handle)
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=_parquet_columns(file, wanted)):  # small: a page may swell a thousandfold
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError):
        raise _damaged() from None


def _parquet_names(handle: IO[bytes]) -> list[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return []  # the names are typed; reading the rows will say what is missing
    try:
        return [str(name) for name in parquet.read_schema(handle).names]
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError):
        raise _damaged() from None


def _damaged() -> CafeError:
    return CafeError("CAFE-218", "The Parquet file is damaged.", "Copy or export it again.")


def _parquet_columns(file: Any, wanted: Wanted) -> list[str]:
    """The wanted columns that are there, judged by the metadata alone: nothing is decompressed yet."""
    meta = file.metadata
    if meta.num_columns > MAX_COLUMNS or sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)) > MAX_BYTES:
        raise too_large(f"The Parquet file has more than {MAX_COLUMNS} columns or {MAX_BYTES // 2**30} GiB.")
    schema = file.schema_arrow
    wanted.check(schema.names, "the file")
    there = [name for name in wanted.required + wanted.optional if name in schema.names]
    for name in there:
        kind = schema.field(name).type
        if str(getattr(kind, "value_type", kind)) not in ("string", "large_string", "string_view") or "list" in str(kind):
            raise CafeError("CAFE-212", f"Column '{name}' does not hold text.", "Convert the column to strings.")
    return there
