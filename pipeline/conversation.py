"""What was asked and answered about a run, as it is kept: one question, its answers, the label scores, a blind vote.

Knows what is kept and what may be shown of it: in a blind question no name before the vote. Does not know models or pages.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.answers import Answers

SAME, BAD = "same", "bad"  # votes that name no column
_Z = 1.959964  # of a 95 % interval
Question = dict[str, Any]  # JSON: what ``question`` returns, and what is added to it later
T = TypeVar("T")


@dataclass(frozen=True)
class Tally:
    """How often a column was voted best in ``n`` blind votes, with its 95 % interval (Wilson)."""

    title: str
    wins: int
    n: int
    low: float
    high: float


def question(answers: Answers, *, template: str, seed: int, temperature: float, max_tokens: int, blind: bool, expected: str) -> Question:
    """What is kept of a question beside its text."""
    return {
        "template": template,
        "seed": seed,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "blind": blind,
        "vote": "",
        "expected": expected,
        "answers": [stream.as_json() for stream in answers.streams],
    }


def shuffled(columns: Sequence[T]) -> list[T]:
    """The columns of a blind question, in an order that nobody chose."""
    return random.SystemRandom().sample(list(columns), len(columns))


def with_labels(asked: Question, labels: Sequence[str], scores: Sequence[Sequence[float]]) -> Question:
    """With the labels' probabilities, one row a label and one number an answer."""
    return asked | {"labels": list(labels), "scores": [[round(float(score), 4) for score in row] for row in scores]}


def hidden(asked: Question) -> bool:
    """Whether names must not be shown yet."""
    return bool(asked["blind"] and not asked["vote"])


def titles(asked: Question) -> list[str]:
    """What stands over each answer: letters while a blind question waits for its vote, then both."""
    names = [str(answer["title"]) for answer in asked["answers"]]
    if not asked["blind"]:
        return names
    letters = [letter(number) for number in range(len(names))]
    return letters if hidden(asked) else [f"{one} = {name}" for one, name in zip(letters, names, strict=True)]


def letter(number: int) -> str:
    return "ABCDEFGH"[number]


def choices(asked: Question) -> dict[str, str]:
    """What may be voted for: value → words."""
    best = {str(answer["name"]): f"{letter(number)} is best" for number, answer in enumerate(asked["answers"])}
    return {**best, SAME: "No difference", BAD: "All are bad"}


def ballot(asked: Question) -> Question:
    """The vote alone, for operators who keep no prompts: no text of question or answers."""
    named = [{"name": answer["name"], "title": answer["title"]} for answer in asked["answers"]]
    return {"blind": True, "vote": asked["vote"], "answers": named, "ballot": True}


def tally(asked: Sequence[Question]) -> list[Tally]:
    """Per column its blind votes."""
    votes = [one for one in asked if one.get("blind") and one.get("vote")]
    found = {str(answer["name"]): str(answer["title"]) for one in votes for answer in one["answers"]}
    lines = []
    for name in sorted(found, key=_order):
        ballots = [one["vote"] for one in votes if any(answer["name"] == name for answer in one["answers"])]
        wins = ballots.count(name)
        lines.append(Tally(found[name], wins, len(ballots), *wilson(wins, len(ballots))))
    return lines


def wilson(wins: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, which holds for few votes too; (0, 1) for none."""
    if n == 0:
        return 0.0, 1.0
    share, spread = wins / n, _Z * _Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _order(name: str) -> tuple[int, str]:
    known = ("base", "synthetic-only", "federated")
    return (known.index(name), name) if name in known else (len(known), name)
