"""Scores on the public test set, against a plain computation and on hand-made tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from cafe_kit.errors import CafeError
from cafe_kit.task import Record, Task

from pipeline.evaluation import Score, evaluate
from pipeline.generator import ModelServer
from tests.tiny_llama import write_adapter, write_model

LABELS = Task("classification", "departments", ("front_desk", "billing", "lab"), "Message", "Department")
WORDS = Task("instruction", "answers")


class _Table:
    """A scorer that gives what it was made with, row by row."""

    def __init__(self, logprobs: Sequence[Sequence[float]] = (), losses: Sequence[float] = (), tokens: Sequence[int] = ()) -> None:
        self._logprobs, self._losses, self._tokens = np.array(logprobs), np.array(losses), np.array(tokens)
        self.asked: list[object] = []

    def label_logprobs(self, model: str, prompts: Sequence[str], options: Sequence[str]) -> np.ndarray:
        self.asked += [(prompt, tuple(options)) for prompt in prompts]
        return self._logprobs[len(self.asked) - len(prompts) : len(self.asked)]

    def answer_losses(self, model: str, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        self.asked += pairs
        here = slice(len(self.asked) - len(pairs), len(self.asked))
        return self._losses[here], self._tokens[here]


def test_accuracy_of_the_likeliest_label_first_on_a_tie() -> None:
    records = [Record("a", "billing"), Record("b", "front_desk"), Record("c", "billing"), Record("d", "lab")]
    scorer = _Table([[-3, -1, -2], [-1, -1, -1], [-1, -1, -2], [-9, -8, -8.5]])
    score = evaluate(scorer, "m", LABELS, records)
    assert (score.n, score.accuracy, score.loss) == (4, 0.5, None)
    assert score.by_label == {"front_desk": 1.0, "billing": 0.5, "lab": 0.0}
    assert score.as_json() == {"accuracy": 0.5, "n": 4}
    assert scorer.asked[0] == ("Message: a\nDepartment:", (" front desk", " billing", " lab"))


def test_loss_is_per_token_and_not_per_answer() -> None:
    score = evaluate(_Table(losses=[2.0, 10.0], tokens=[1, 5]), "m", WORDS, [Record("a", "x"), Record("b", "y")])
    assert score.as_json() == {"loss": 2.0, "n": 2}
    assert score.by_label == {} and score.accuracy is None


def test_progress_in_parts() -> None:
    seen: list[tuple[int, int]] = []
    scorer = _Table([[0, -1, -1]] * 130)
    score = evaluate(scorer, "m", LABELS, [Record(str(i), "front_desk") for i in range(130)], lambda a, b: seen.append((a, b)))
    assert score.accuracy == 1.0
    assert seen == [(64, 130), (128, 130), (130, 130)]


def test_what_cannot_be_scored() -> None:
    for scorer, records, code in (
        (_Table(), [], "CAFE-511"),
        (_Table([[0, 0, 0]]), [Record("a", "surgery")], "CAFE-512"),
        (_Table([[0, math.nan, 0]]), [Record("a", "lab")], "CAFE-513"),
    ):
        with pytest.raises(CafeError) as refused:
            evaluate(scorer, "m", LABELS, records)
        assert refused.value.code == code
        assert "surgery" not in str(refused.value)


def test_a_score_of_zero_is_a_score() -> None:
    assert Score(3, accuracy=0.0).as_json() == {"accuracy": 0.0, "n": 3}
    assert Score(3, loss=0.0).as_json() == {"loss": 0.0, "n": 3}


def _naive(folder: Path, prompt: str, answer: str, end: bool) -> tuple[float, int]:
    """Log-probability of the answer's tokens, one forward pass over everything, with PEFT where there is an adapter."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    model = LlamaForCausalLM.from_pretrained(folder / "tiny")
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, folder / "adapters" / "a")
    before = tokenizer(prompt, add_special_tokens=False).input_ids
    after = tokenizer(answer, add_special_tokens=False).input_ids + ([tokenizer.eos_token_id] if end else [])
    with torch.no_grad():
        logprobs = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[len(before) - 1 + i, token]) for i, token in enumerate(after)), len(after)


def test_through_the_server_it_equals_a_plain_computation_with_peft(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny")
    write_adapter(tmp_path / "adapters" / "a", seed=1)
    records = [Record(text, label) for text, label in zip("abcdef", LABELS.labels * 2, strict=True)]
    with ModelServer(tmp_path / "tiny", adapters=tmp_path / "adapters", dtype="float32", threads=1) as server:
        scorer = server.scorer()
        scorer.load_adapter("a", tmp_path / "adapters" / "a")
        score = evaluate(scorer, "a", LABELS, records)
        loss = evaluate(scorer, "a", WORDS, records)
        table = scorer.label_logprobs("a", [LABELS.prompt(r.text) for r in records], [LABELS.completion(x) for x in LABELS.labels])
    assert not Path(f"/proc/{server.pid}").exists(), "the server ends with its block"
    naive = [[_naive(tmp_path, LABELS.prompt(r.text), LABELS.completion(x), False)[0] for x in LABELS.labels] for r in records]
    assert np.allclose(table, naive, atol=1e-3)
    assert score.accuracy == np.mean([LABELS.labels[int(np.argmax(row))] == r.answer for row, r in zip(naive, records, strict=True)])
    parts = [_naive(tmp_path, WORDS.prompt(r.text), WORDS.completion(r.answer), True) for r in records]
    assert loss.loss == pytest.approx(-sum(part[0] for part in parts) / sum(part[1] for part in parts), abs=1e-4)
