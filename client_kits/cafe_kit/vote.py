"""Stage 1 at a site: every record votes for the candidate nearest to it (private evolution, Xie et al. 2024, Algorithm 1).

Knows: records, candidates, distances. Does not clip to the joint norm, add noise or send anything: what comes out of
``vote`` is private and goes to ``release.py``. Candidates are public texts, so that the site can read what it votes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from pydantic import ValidationError

from cafe_kit.errors import CafeError
from cafe_kit.orders import VoteParams
from cafe_kit.task import Record, Task

MAX_CANDIDATES = 200_000
MAX_CANDIDATE_BYTES = 256 * 2**20
_CHUNK = 4 * 2**20  # similarities at once: 16 MiB
_TIE = 5  # decimals: float32 sums differ behind them with the order of summation, which is no reason to vote otherwise


class EmbedsTexts(Protocol):
    """What ``vote`` wants of an embedder."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), dim) float32, unit length."""
        ...


def vote(params: VoteParams, task: Task, records: Sequence[Record], candidates: Sequence[Record], embedder: EmbedsTexts) -> np.ndarray:
    """Votes per candidate, (len(candidates),) int64. Private: not clipped to the joint norm, no noise.

    Each record votes once, for the candidate of its class with the largest cosine; of several equally near ones the
    first gets the vote. A class without candidates casts none. At most ``params.max_votes_per_candidate`` count for one.

    Raises:
        CafeError: CAFE-113 (no candidates), CAFE-114 (a candidate of a class that the task does not have).
    """
    if not candidates:
        raise CafeError("CAFE-113", "There are no candidates to vote on.", "Report this to the operator of the run.")
    places = _by_class(task, candidates)
    if set(places) - set(task.classes):
        raise CafeError("CAFE-114", "A candidate has a label that this task does not have.", "Report this to the operator of the run.")
    counts = np.zeros(len(candidates), np.int64)
    for name, voters in _by_class(task, records).items():
        if name in places:
            stood = embedder.embed([task.embedded(candidates[place]) for place in places[name]])
            voting = embedder.embed([task.embedded(records[voter]) for voter in voters])
            counts[places[name]] = np.bincount(_nearest(voting, stood), minlength=len(stood))
    return np.minimum(counts, params.max_votes_per_candidate)


def candidates_to_bytes(candidates: Sequence[Record]) -> bytes:
    """One JSON object a line, ``{"answer": ..., "text": ...}``; the only form of these candidates. Ids are positions.

    Raises:
        CafeError: CAFE-111 (a text that is not Unicode), CAFE-112 (too many).
    """
    _check_size(len(candidates), 0)
    lines = (json.dumps({"answer": c.answer, "text": c.text}, separators=(",", ":"), ensure_ascii=False) + "\n" for c in candidates)
    try:
        data = "".join(lines).encode()
    except UnicodeEncodeError:
        raise _not_as_agreed() from None
    _check_size(0, len(data))
    return data


def candidates_from_bytes(data: bytes) -> list[Record]:
    """The candidates that ``candidates_to_bytes`` wrote; any other bytes are refused.

    Raises:
        CafeError: CAFE-111 (not of that form), CAFE-112 (too many, too large).
    """
    _check_size(data.count(b"\n"), len(data))
    try:
        candidates = [Record(**json.loads(line)) for line in data.split(b"\n")[:-1]]
    except (ValueError, TypeError, RecursionError, ValidationError):
        raise _not_as_agreed() from None
    if candidates_to_bytes(candidates) != data:
        raise _not_as_agreed()
    return candidates


def _by_class(task: Task, records: Sequence[Record]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault(task.class_of(record), []).append(place)
    return places


def _nearest(voting: np.ndarray, stood: np.ndarray) -> np.ndarray:
    """For each row of ``voting`` (n, dim) the row of ``stood`` (m, dim) with the largest dot product: (n,) int64."""
    nearest = np.empty(len(voting), np.int64)
    step = max(1, _CHUNK // len(stood))
    for start in range(0, len(voting), step):
        similarity = np.round(voting[start : start + step] @ stood.T, _TIE)
        nearest[start : start + step] = similarity.argmax(axis=1)  # the first of equal ones
    return nearest


def _check_size(count: int, size: int) -> None:
    if count > MAX_CANDIDATES or size > MAX_CANDIDATE_BYTES:
        raise CafeError("CAFE-112", f"There are more than {MAX_CANDIDATES} candidates or {MAX_CANDIDATE_BYTES // 2**20} MiB of them.",
                        "Ask for fewer candidates.")  # fmt: skip


def _not_as_agreed() -> CafeError:
    return CafeError("CAFE-111", "The list of candidates is not as agreed.", "Update the older one of kit and server.")
