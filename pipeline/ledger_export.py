"""The privacy ledger for other programs: CSV with a row per site and release, JSON with the whole chain of hashes.

Knows the form of the two files. Counts nothing: exact fractions and hashes go out as they were charged, so that each
epsilon and the chain can be computed again elsewhere.
"""

from __future__ import annotations

import csv
import io
import json

from pipeline.accounting import ADJACENCY
from pipeline.home import home
from pipeline.ledger_book import Book
from server_store.ledger import Ledger

SCHEMA_VERSION = 1
COLUMNS = (
    "entry", "time_utc", "federation", "run", "stage", "attempt", "round", "statistic", "site", "answered", "mechanism", "unit",
    "adjacency", "trust", "length", "clip_steps", "sigma_steps", "grid", "mu_squared", "state", "body_sha256", "entry_hash",
)  # fmt: skip


def to_csv(book: Book, *, run: str | None = None, site: str | None = None) -> str:
    """One row for each site that a release charged; of one run or site where they are named. An empty ``mu_squared``: no noise."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    for entry in book.entries:
        one, terms = entry.release, entry.release.terms
        for name in entry.sites:
            if (run and one.run != run) or (site and name != site):
                continue
            place = (one.seq, one.time, entry.federation, one.run, one.stage, one.attempt, one.round, one.statistic, name)
            words = (name in one.inputs, terms.get("mechanism"), terms.get("unit"), ADJACENCY, terms.get("trust"))
            numbers = [terms.get(key) for key in ("length", "clip_steps", "sigma_steps", "grid")]
            cost = "" if entry.mu2 is None else f"{entry.mu2.numerator}/{entry.mu2.denominator}"
            rows.writerow([_cell(value) for value in (*place, *words, *numbers, cost, one.state, one.sha256, one.hash)])
    return out.getvalue()


def to_json(book: Book, *, run: str | None = None) -> str:
    """Every entry with its hash and, where it charges, its whole description; of one run where it is named.

    An entry's hash is the SHA-256 of the canonical JSON (keys sorted, no spaces) of
    [prev, seq, rid, state, sha256, size, time, release or null].
    """
    path = home() / "ledger.db"
    ledger = Ledger(path) if path.exists() else None
    wanted = [one for one in book.runs if run in (None, one)]
    entries = sorted((entry for one in wanted for entry in ledger.export(one)), key=lambda entry: int(entry["seq"])) if ledger else []
    whole = {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "head": book.head,
        "chain": "unbroken" if book.problem is None else str(book.problem),
        "hash_covers": ["prev", "seq", "rid", "state", "sha256", "size", "time", "release"],
        "entries": entries,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cell(value: object) -> object:
    """No cell that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
