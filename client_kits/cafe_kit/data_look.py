"""A look at the site's own data for the one who owns them: rows, empties, duplicates, lengths, and what may identify people.

Knows records and patterns. Everything it finds is a count; a value never leaves these functions. Even the counts are for the
site's own screen: a report that is sent says only whether the data can be used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cafe_kit import records
from cafe_kit.records import DataSource
from cafe_kit.task import Record, Task

_SHORT = 3  # characters
_LEAK = 0.9  # share of texts that name their label, above which the label was probably written into them
_PATTERNS = {
    "e-mail addresses": re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"),
    "telephone numbers": re.compile(r"(?<![\w.])(?:\+\d{1,3}[ /.-]?)?(?:\(?\d{2,5}\)?[ /.-]){1,3}\d{3,8}(?![\w.])"),
    "dates of birth": re.compile(r"(?i)\b(?:born|birth|dob|geb)\w*\W{0,12}\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"),
    "numbers of persons or cases": re.compile(
        r"(?i)\b(?:mrn|ssn|patient(?:en)?|case|insurance|policy|account)\W{0,3}(?:id|no|nr|number)?\W{0,3}\d{4,}"
    ),
    "names with a title": re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|Herr|Frau)\.? [A-ZÄÖÜ]\w+"),
    "card or bank numbers": re.compile(r"\b(?:[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}|(?:\d{4}[ -]){3}\d{4})\b"),
}


@dataclass(frozen=True)
class DataLook:
    """Counts. ``identifying``: rows in which a pattern occurs, for patterns that do. ``unusual``: what their owner should look at."""

    rows: int
    left_out: int
    duplicates: int
    longest: int
    identifying: dict[str, int]
    unusual: tuple[str, ...] = ()


def look(source: DataSource, task: Task) -> tuple[DataLook, list[Record]]:
    """Read everything once as a vote would, and count.

    Raises:
        CafeError: CAFE-201 to CAFE-221: what is wrong and where, never what stands there.
    """
    found = records.read(source, task)
    present = sum(1 for _ in records.raw_rows(source, task))
    return DataLook(
        rows=len(found),
        left_out=max(0, present - len(found)),
        duplicates=len(found) - len(set(found)),
        longest=max(len(record.text) for record in found),
        identifying=identifying(found),
        unusual=tuple(unusual(found, task)),
    ), found


def identifying(found: Sequence[Record]) -> dict[str, int]:
    """Rows per pattern that occurs."""
    counts = {name: sum(1 for record in found if pattern.search(f"{record.text}\n{record.answer}")) for name, pattern in _PATTERNS.items()}
    return {name: count for name, count in counts.items() if count}


def unusual(found: Sequence[Record], task: Task) -> Iterator[str]:
    """What can be read and is seldom meant."""
    there = len({record.answer for record in found}) if task.labels else len(task.classes)
    if there < len(task.classes):
        yield f"{there} of {len(task.classes)} labels occur"
    if short := sum(1 for record in found if len(record.text) < _SHORT):
        yield f"{short:,} texts have fewer than {_SHORT} characters"
    if damaged := sum(1 for record in found if "\ufffd" in record.text):
        yield f"{damaged:,} texts hold the sign for a damaged character (U+FFFD)"
    named = sum(1 for record in found if record.answer.replace("_", " ").lower() in record.text.lower()) if task.labels else 0
    if named > len(found) * _LEAK:
        yield f"{named:,} texts name their own label"
