"""How good an adapter is on the public test set.

Knows: the task, the operator's public test records and the scorer. Does not know what was trained, or how. One number per
adapter: accuracy by label likelihood for classification, mean loss per answer token for instruction data.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from cafe_kit.errors import CafeError
from cafe_kit.task import Record, Task

_ROWS = 64  # records in one request: small enough for a progress bar that moves


class Scores(Protocol):
    """What ``pipeline.generator.Scorer`` offers and evaluation needs."""

    def label_logprobs(self, model: str, prompts: Sequence[str], options: Sequence[str]) -> np.ndarray: ...

    def answer_losses(self, model: str, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Score:
    """``accuracy`` in [0, 1] (classification) or ``loss`` in nats per answer token (instruction), over ``n`` records.

    ``by_label``: accuracy among the test records of each label; a label without test records is left out.
    """

    n: int
    accuracy: float | None = None
    loss: float | None = None
    by_label: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, float | int]:
        """For results.json: ``accuracy`` or ``loss``, and ``n``."""
        return {"accuracy": self.accuracy, "n": self.n} if self.accuracy is not None else {"loss": self.loss or 0.0, "n": self.n}


def evaluate(
    scorer: Scores, model: str, task: Task, records: Sequence[Record], progress: Callable[[int, int], None] | None = None
) -> Score:
    """Score ``model`` (base or a loaded adapter) on public ``records``; ``progress`` is told (records done, records).

    Raises:
        CafeError: CAFE-511 no records, 512 a label outside the task's list, 513 scores that are no numbers; 501-509.
    """
    if not records:
        raise CafeError("CAFE-511", "The test set is empty.", "Give at least one public test record.")
    return (_accuracy if task.kind == "classification" else _loss)(scorer, model, task, records, progress or (lambda done, total: None))


def _accuracy(scorer: Scores, model: str, task: Task, records: Sequence[Record], progress: Callable[[int, int], None]) -> Score:
    """The label whose text has the largest total log-probability after the prompt; on a tie the first of the list."""
    begun = time.monotonic()
    if {record.answer for record in records} - set(task.labels):
        raise CafeError("CAFE-512", "The test set has labels that are not in the label list.", "Correct the test file or the label list.")
    options = [task.completion(label) for label in task.labels]
    right: Counter[str] = Counter()
    for start in range(0, len(records), _ROWS):
        part = records[start : start + _ROWS]
        table = _finite(scorer.label_logprobs(model, [task.prompt(record.text) for record in part], options), model)
        chosen = [task.labels[i] for i in table.argmax(axis=1)]
        right.update(record.answer for record, label in zip(part, chosen, strict=True) if label == record.answer)
        progress(start + len(part), len(records))
    of_label = Counter(record.answer for record in records)
    by_label = {label: right[label] / of_label[label] for label in task.labels if of_label[label]}
    return Score(len(records), accuracy=right.total() / len(records), by_label=by_label, seconds=time.monotonic() - begun)


def _loss(scorer: Scores, model: str, task: Task, records: Sequence[Record], progress: Callable[[int, int], None]) -> Score:
    """Summed negative log-likelihood over all answers, divided by all their tokens."""
    begun = time.monotonic()
    loss, tokens = 0.0, 0
    for start in range(0, len(records), _ROWS):
        part = records[start : start + _ROWS]
        losses, counts = scorer.answer_losses(model, [(task.prompt(record.text), task.completion(record.answer)) for record in part])
        loss += float(_finite(losses, model).sum())
        tokens += int(counts.sum())
        progress(start + len(part), len(records))
    return Score(len(records), loss=loss / max(tokens, 1), seconds=time.monotonic() - begun)


def _finite(values: np.ndarray, model: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise CafeError(
            "CAFE-513", f"The model '{model}' gives scores that are no numbers.", "Its weights are broken; lower the learning rate."
        )
    return values
