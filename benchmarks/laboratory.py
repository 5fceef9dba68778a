"""Measures of a synthetic set against a public corpus that plays the private one.

Knows: a corpus of records (train: the judge and the voters; test: where the synthetic set is tried), an embedder, numpy.
Does not know how the texts were made. For benchmarks only: a run never compares anything with private records.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from cafe_kit.embed import Embedder
from cafe_kit.task import Record
from scipy.optimize import minimize


def read_corpus(folder: Path, split: str, field: str, labels: Sequence[str]) -> Iterator[Record]:
    """Records of ``split.jsonl`` or ``split.jsonl.gz`` whose ``field`` is one of ``labels``."""
    path = min(folder.glob(f"{split}.jsonl*"))
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row[field] in labels:
                yield Record(row["text"], row[field])


class Regression:
    """Multinomial logistic regression with an L2 penalty on the weights, fitted by L-BFGS."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, classes: int, penalty: float = 1e-3) -> None:
        wide = np.hstack([features, np.ones((len(features), 1))])
        wanted = np.eye(classes)[targets]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = flat.reshape(wide.shape[1], classes)
            scores = wide @ weights
            scores -= scores.max(1, keepdims=True)
            chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            value = -np.log(chances[np.arange(len(targets)), targets] + 1e-30).mean() + penalty * np.square(weights).sum()
            return value, (wide.T @ (chances - wanted) / len(targets) + 2 * penalty * weights).ravel()

        start = np.zeros(wide.shape[1] * classes)
        self.weights = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x.reshape(-1, classes)

    def predict(self, features: np.ndarray) -> np.ndarray:
        return (features @ self.weights[:-1] + self.weights[-1]).argmax(1)


def words(text: str) -> list[str]:
    return [word for word in (part.strip(".,?!;:\"'") for part in text.casefold().replace("'", " ").split()) if word]


def bags(texts: Sequence[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Binary bags of words of unit length, (texts, vocabulary): features that know no language beforehand."""
    out = np.zeros((len(texts), len(vocabulary)))
    for row, text in enumerate(texts):
        out[row, [vocabulary[word] for word in words(text) if word in vocabulary]] = 1.0
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1.0)


class Laboratory:
    """A public corpus, embedded once."""

    def __init__(self, train: Sequence[Record], test: Sequence[Record], labels: Sequence[str], embedder: Embedder) -> None:
        self.labels, self.train, self.test, self.vectors = list(labels), list(train), list(test), embedder.embed
        self._train_x, self._test_x = self.embed(train), self.embed(test)
        self._train_y, self._test_y = self.targets(train), self.targets(test)
        self._judge = Regression(self._train_x, self._train_y, len(labels), 1e-4)

    def embed(self, records: Sequence[Record]) -> np.ndarray:
        return self.vectors([record.text for record in records])

    def targets(self, records: Sequence[Record]) -> np.ndarray:
        return np.array([self.labels.index(record.answer) for record in records])

    def measure(self, made: Sequence[Record]) -> dict[str, float]:
        """``fid``, ``d1``, ``d2``, ``cos``, ``near``, ``emb``, ``bow``, ``words``: see ``docs/experiments.md``."""
        x, y, texts = self.embed(made), self.targets(made), [words(record.text) for record in made]
        flat = [word for text in texts for word in text]
        pairs = [pair for text in texts for pair in pairwise(text)]
        return {
            "fid": float((self._judge.predict(x) == y).mean()),
            "d1": len(set(flat)) / len(flat),
            "d2": len(set(pairs)) / max(1, len(pairs)),
            "cos": self._spread(x, y),
            "near": self._near(x, y),
            "emb": float((Regression(x, y, len(self.labels)).predict(self._test_x) == self._test_y).mean()),
            "bow": self._by_words(made, y),
            "words": len(flat) / len(made),
        }

    def survivors(self, made: Sequence[Record], each: int) -> list[Record]:
        """The ``each`` candidates of every class with most votes of the train records: stage 1 without noise."""
        x, y, out = self.embed(made), self.targets(made), []
        for label in range(len(self.labels)):
            mine = np.flatnonzero(y == label)
            if len(mine):
                votes = np.bincount((self._train_x[self._train_y == label] @ x[mine].T).argmax(1), minlength=len(mine))
                out += [made[mine[place]] for place in np.argsort(-votes, kind="stable")[:each]]
        return out

    def _spread(self, x: np.ndarray, y: np.ndarray) -> float:
        """Mean cosine distance of two texts of one class, mean over classes."""
        groups = [x[y == label] for label in range(len(self.labels)) if (y == label).sum() > 1]
        return float(np.mean([1 - ((group @ group.T).sum() - len(group)) / (len(group) * (len(group) - 1)) for group in groups]))

    def _near(self, x: np.ndarray, y: np.ndarray) -> float:
        """Mean cosine similarity of a test text to the nearest synthetic text of its class (0 where there is none)."""
        best = [self._test_x[self._test_y == label] @ x[y == label].T for label in range(len(self.labels)) if (y == label).any()]
        return float(sum(part.max(1).sum() for part in best) / len(self.test))

    def _by_words(self, made: Sequence[Record], y: np.ndarray) -> float:
        vocabulary = {word: place for place, word in enumerate(sorted({word for record in made for word in words(record.text)}))}
        fitted = Regression(bags([record.text for record in made], vocabulary), y, len(self.labels))
        return float((fitted.predict(bags([record.text for record in self.test], vocabulary)) == self._test_y).mean())
