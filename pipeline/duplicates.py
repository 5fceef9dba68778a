"""Texts that say the same again within one set: copies, and near copies.

Knows texts and nothing of where they came from. What is compared: the *normalised* text (``normalised``). Two rows are
*exact* duplicates when their normalised texts are equal. Two different normalised texts are *near* duplicates when the
Jaccard likeness |A ∩ B| / |A ∪ B| of their sets of character 3-grams is at least 0.8 (``NEAR``); a text of fewer than
three characters is its only gram. Groups are connected: a is in one group with c when both are near to b.
The search is exact, not sampled: all pairs are compared, a block of rows at a time, as a product of sparse 0-1 matrices.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np

NEAR = 0.8
_BLOCK = 512  # rows compared with all others at once
_NOT_A_WORD = re.compile(r"[\W_]+")
_SPACE = re.compile(r"\s+")

Group = tuple[int, ...]  # positions of rows, rising


@dataclass(frozen=True)
class Duplicates:
    """What repeats. ``exact``: rows of equal text. ``near``: per group one row (the first) of each of its different texts."""

    rows: int
    exact: tuple[Group, ...]
    near: tuple[Group, ...]

    @property
    def spare(self) -> Group:
        """Rows that repeat an earlier one: all but the first of each group, copies of near copies among them."""
        later = {row for group in (*self.exact, *self.near) for row in group[1:]}
        return tuple(sorted(later))

    @property
    def exact_spare(self) -> int:
        return sum(len(group) - 1 for group in self.exact)

    @property
    def near_spare(self) -> int:
        return sum(len(group) - 1 for group in self.near)

    def without(self, rows: Set[int]) -> Duplicates:
        """The same where these rows are left out; a near group that loses its first row goes on with a copy of it, if there is one."""
        copies = {group[0]: [row for row in group if row not in rows] for group in self.exact}
        exact = [tuple(left) for left in copies.values()]
        near = [tuple(left for row in group for left in copies.get(row, [row] if row not in rows else [])[:1]) for group in self.near]
        return Duplicates(self.rows, _groups(exact), _groups(tuple(sorted(group)) for group in near))


def _groups(found: Iterable[Group]) -> tuple[Group, ...]:
    return tuple(sorted(group for group in found if len(group) > 1))


def normalised(text: str) -> str:
    """Compatibility forms and case folded, everything but letters and digits one space; a text without any keeps its marks."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _NOT_A_WORD.sub(" ", folded).strip() or _SPACE.sub(" ", folded).strip()


def grams(text: str) -> frozenset[str]:
    """Its character 3-grams; of a shorter text the text itself."""
    return frozenset(text[i : i + 3] for i in range(len(text) - 2)) if len(text) > 2 else frozenset((text,))


def duplicates(texts: Sequence[str]) -> Duplicates:
    """All groups of equal and of nearly equal texts, in the order of their first rows."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        rows_of[normalised(text)].append(row)
    exact = tuple(tuple(rows) for rows in rows_of.values() if len(rows) > 1)
    firsts = [rows[0] for rows in rows_of.values()]
    near = tuple(tuple(firsts[place] for place in group) for group in _connected([grams(text) for text in rows_of]))
    return Duplicates(len(texts), exact, near)


def _connected(sets: Sequence[frozenset[str]]) -> list[Group]:
    """Groups of positions that near pairs connect, each rising, in the order of their first members."""
    group_of = np.arange(len(sets))  # the smallest position known to be in the same group
    for near in _near(sets):
        touched = np.unique(group_of[near])
        if len(touched) > 1:
            group_of[np.isin(group_of, touched)] = touched[0]
    groups: dict[int, list[int]] = defaultdict(list)
    for place, first in enumerate(group_of.tolist()):
        groups[first].append(place)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _near(sets: Sequence[frozenset[str]]) -> Iterator[np.ndarray]:
    """For each position all positions near to it, itself among them.

    |A ∩ B| / (|A| + |B| − |A ∩ B|) ≥ 4/5 is 9·|A ∩ B| ≥ 4·(|A| + |B|), which whole numbers decide without rounding.
    """
    from scipy.sparse import csr_matrix  # a second to import, and only this needs it

    if not sets:
        return
    numbers = {gram: number for number, gram in enumerate(sorted({gram for one in sets for gram in one}))}
    sizes = np.array([len(one) for one in sets], np.int32)
    columns = np.fromiter((numbers[gram] for one in sets for gram in one), np.int32, int(sizes.sum()))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    held = csr_matrix((np.ones(len(columns), np.int32), columns, starts), shape=(len(sets), len(numbers)))
    turned = held.T.tocsr()
    for start in range(0, len(sets), _BLOCK):
        shared = (held[start : start + _BLOCK] @ turned).toarray()
        enough = 9 * shared >= 4 * (sizes[start : start + _BLOCK, None] + sizes[None, :])
        yield from (np.flatnonzero(row) for row in enough)
