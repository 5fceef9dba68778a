"""The resident base model against transformers and PEFT: the same numbers by other ways."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cafe_kit.base_model import BaseModel, by_length
from cafe_kit.decode import choose
from cafe_kit.errors import CafeError
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import (
    AutoModelForCausalLM,
)

from tests.tiny_llama import write_adapter, write_model

PROMPTS = ["Message: my card is lost\nLabel:", "Message: help\nLabel:", "Message: when will the letter of the doctor come?\nLabel:"]
OPTIONS = [" lost card", " lost", " letter", " l", " doctor's letter"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def peft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "one", seed=1, alpha=16.0)


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    return BaseModel.load(folder, "float32")


def tensors(peft_folder: Path) -> dict[str, np.ndarray]:
    return load_file(peft_folder / "adapter_model.safetensors")


def naive(model: torch.nn.Module, base: BaseModel, prompt: str, answer: list[int]) -> float:
    """Log-probability of the answer's tokens: one row, all logits."""
    ids = base.encode_prompt(prompt)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[len(ids) - 1 + i, token]) for i, token in enumerate(answer))


def test_label_scores_are_those_of_one_row_for_each_option(base: BaseModel, folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = [[naive(plain, base, prompt, base.encode_answer(option)) for option in OPTIONS] for prompt in PROMPTS]
    base.set_adapter(None)
    np.testing.assert_allclose(base.label_logprobs(PROMPTS, OPTIONS), expected, atol=1e-4)
    np.testing.assert_allclose(
        base.label_logprobs(PROMPTS, [" ", "a"]),
        [[naive(plain, base, prompt, base.encode_answer(option)) for option in (" ", "a")] for prompt in PROMPTS],
        atol=1e-4,
    )


def test_answer_losses_are_those_of_the_answer_and_its_end_only(base: BaseModel, folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base.set_adapter(None)
    sums, counts = base.answer_losses(list(zip(PROMPTS, OPTIONS, strict=False)))
    expected = [
        -naive(plain, base, prompt, [*base.encode_answer(option), base.eos]) for prompt, option in zip(PROMPTS, OPTIONS, strict=False)
    ]
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    assert counts.tolist() == [len(option) + 1 for option in OPTIONS[:3]]  # the tiny tokenizer reads characters


def test_peft_loads_the_same_tensors_and_agrees(base: BaseModel, folder: Path, peft_folder: Path) -> None:
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), peft_folder)
    base.set_adapter(None)
    bare = base.label_logprobs(PROMPTS, OPTIONS)
    base.set_adapter(tensors(peft_folder), alpha=16.0)
    expected = [[naive(peft, base, prompt, base.encode_answer(option)) for option in OPTIONS] for prompt in PROMPTS]
    np.testing.assert_allclose(base.label_logprobs(PROMPTS, OPTIONS), expected, atol=1e-3)
    assert np.abs(bare - expected).max() > 1
    base.set_adapter(None)
    np.testing.assert_array_equal(base.label_logprobs(PROMPTS, OPTIONS), bare)


def test_bfloat16_agrees_with_peft_within_its_rounding(folder: Path, tmp_path: Path) -> None:
    mild = write_adapter(tmp_path / "mild", seed=1, alpha=1.0)
    base = BaseModel.load(folder, "bfloat16")
    base.set_adapter(tensors(mild), alpha=1.0)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), mild)
    sums, _ = base.answer_losses(list(zip(PROMPTS, OPTIONS, strict=False)))
    expected = [
        -naive(peft, base, prompt, [*base.encode_answer(option), base.eos]) for prompt, option in zip(PROMPTS, OPTIONS, strict=False)
    ]
    np.testing.assert_allclose(sums, expected, rtol=0.02)


def test_greedy_text_is_that_of_transformers(base: BaseModel, folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base.set_adapter(None)
    texts = base.generate(PROMPTS, max_tokens=12, temperature=0, top_p=1.0, stop=(), seed=None)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = torch.tensor([base.encode_prompt(prompt)])
        out = plain.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=2)[
            0, ids.shape[1] :
        ]
        assert text == base.tokenizer.decode(out, skip_special_tokens=True)


def test_a_sampled_text_depends_on_its_own_row_only_and_pieces_make_up_the_text(base: BaseModel) -> None:
    base.set_adapter(None)
    pieces: dict[int, list[str]] = {0: [], 1: [], 2: []}

    def run(prompts: list[str], on_token: Callable[[int, str], None] | None = None, seed: int = 5) -> list[str]:
        return base.generate(prompts, max_tokens=20, temperature=1.0, top_p=0.9, stop=("ab", "e"), seed=seed, on_token=on_token)

    texts = run(PROMPTS, lambda row, piece: pieces[row].append(piece))
    assert texts == ["".join(pieces[row]) for row in range(3)]
    assert run(PROMPTS[:1]) == texts[:1] and run(PROMPTS[:2]) == texts[:2]
    assert run(PROMPTS, seed=6) != texts
    assert not any("e" in text or "ab" in text for text in texts)
    assert all(len(p) <= 20 for p in pieces.values())


def drawn(logits: torch.Tensor, draws: list[float], temperature: float, top_p: float) -> int:
    return choose(logits, [iter(draws).__next__], temperature, top_p)[0]


def test_top_p_keeps_the_likeliest_tokens_and_the_draw_decides() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.25, 0.15]]))
    assert [drawn(logits, [draw], 1.0, 1.0) for draw in (0.05, 0.15, 0.55, 0.65, 0.84, 0.86, 0.999)] == [0, 1, 1, 2, 2, 3, 3]
    assert [drawn(logits, [draw, 0.7], 1.0, 0.7) for draw in (0.05, 0.15, 0.8, 0.9)] == [2, 1, 2, 2]  # 0 and 3 are drawn again
    assert [drawn(logits, [draw], 1.0, 0.76) for draw in (0.15, 0.8, 0.9)] == [1, 2, 3]
    assert drawn(logits, [], 1.0, 0.3) == drawn(logits, [], 0.0, 1.0) == 1


@pytest.mark.parametrize(("top_p", "expected"), [(1.0, [0.1, 0.5, 0.25, 0.15]), (0.7, [0, 2 / 3, 1 / 3, 0])])
def test_samples_have_the_models_distribution_within_the_nucleus(top_p: float, expected: list[float]) -> None:
    logits, chance = torch.log(torch.tensor([0.1, 0.5, 0.25, 0.15])), random.Random(1)
    chosen = torch.tensor(choose(logits.expand(20_000, 4), [chance.random] * 20_000, 1.0, top_p))
    torch.testing.assert_close(torch.bincount(chosen, minlength=4) / 20_000, torch.tensor(expected), atol=0.015, rtol=0)


@given(lengths=st.lists(st.integers(1, 50), max_size=30), budget=st.integers(1, 200))
def test_groups_hold_every_row_once_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    groups = list(by_length(lengths, budget))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or max(lengths[i] for i in group) * len(group) <= budget for group in groups)


def refused(folder: Path) -> str:
    with pytest.raises(CafeError) as refusal:
        BaseModel.load(folder, "float32")
    assert str(folder.parent) not in refusal.value.message
    return refusal.value.code


def test_a_folder_that_is_no_usable_base_model_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    def copy(name: str, *without: str) -> Path:
        (tmp_path / name).mkdir()
        for file in folder.iterdir():
            if not file.name.startswith(without):
                (tmp_path / name / file.name).write_bytes(file.read_bytes())
        return tmp_path / name

    assert refused(tmp_path / "nowhere") == "CAFE-421"
    encoder = copy("encoder", "config")
    (encoder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    assert refused(encoder) == "CAFE-422"
    unknown = copy("unknown", "config")
    (unknown / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    assert refused(unknown) == "CAFE-422"
    pickled = copy("pickled", "model.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert refused(pickled) == "CAFE-423"
    assert refused(copy("silent", "token")) == "CAFE-424"
    assert refused(copy("empty", "model.safetensors")) == "CAFE-425"
    damaged = copy("damaged")
    (damaged / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    assert refused(damaged) == "CAFE-425"


def test_an_adapter_of_another_model_is_refused_and_the_plain_base_remains(base: BaseModel, peft_folder: Path) -> None:
    good = tensors(peft_folder)
    base.set_adapter(None)
    bare = base.label_logprobs(PROMPTS[:1], OPTIONS)
    name = next(iter(good))
    for code, bad in (
        ("CAFE-426", {"lm_head.weight": good[name]}),
        ("CAFE-426", {name: good[name]}),
        ("CAFE-427", {key.replace("q_proj", "query"): tensor for key, tensor in good.items()}),
        ("CAFE-427", {key: tensor[:, :-1] for key, tensor in good.items()}),
    ):
        with pytest.raises(CafeError) as refusal:
            base.set_adapter(bad)
        assert refusal.value.code == code
        np.testing.assert_array_equal(base.label_logprobs(PROMPTS[:1], OPTIONS), bare)
