"""Local training: what the loss sees, what comes back, and that the same order gives the same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cafe_kit.base_model import BaseModel
from cafe_kit.errors import CafeError
from cafe_kit.orders import TrainParams
from cafe_kit.task import Record, Task
from cafe_kit.train import batches, cut_middle, encode, train
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.tiny_llama import HIDDEN, LAYERS, write_model

TASK = Task(kind="classification", description="", labels=("lost_card", "letter"), text_name="Message", answer_name="Label")
RECORDS = [
    Record("my card is gone", "lost_card"),
    Record("please send the letter again to my house", "letter"),
    Record("where is it", "lost_card"),
    Record("post", "letter"),
    Record("i can not find my card", "lost_card"),
]
OTHERS = [Record("a letter", "letter"), Record("card", "lost_card")]
PARAMS = TrainParams(
    steps=4,
    batch_size=2,
    learning_rate=1e-2,
    lora_rank=4,
    lora_alpha=8.0,
    target_modules=("q_proj", "v_proj"),
    seed=3,
    dtype="float32",
    threads=1,
)


def quiet(site: str, step: int, steps: int) -> None:
    """Progress that nobody watches."""


def adapter(seed: int = 0) -> dict[str, np.ndarray]:
    chance, tensors = np.random.default_rng(seed), {}
    for layer in range(LAYERS):
        for module, outputs in (("q_proj", HIDDEN), ("v_proj", HIDDEN // 2)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_"
            tensors[name + "A.weight"] = chance.normal(0, 0.2, (4, HIDDEN)).astype(np.float32)
            tensors[name + "B.weight"] = chance.normal(0, 0.2, (outputs, 4)).astype(np.float32)
    return tensors


def digest(deltas: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(name.encode() + deltas[name].tobytes() for name in sorted(deltas))).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    return BaseModel.load(folder, "float32", threads=1)


@pytest.mark.parametrize("trained", ["A+B", "B"])
def test_the_deltas_are_those_of_peft_adamw_and_the_answers_loss(base: BaseModel, folder: Path, trained: str) -> None:
    params = replace(PARAMS, trained=trained, warmup_steps=1, weight_decay=0.1, batch_size=3)
    deltas = train(params, TASK, base, adapter(), {"north": RECORDS}, quiet, round=2)["north"]

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peft = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    weights = {name.replace(".default", ""): tensor for name, tensor in peft.named_parameters() if "lora_" in name}
    for name, tensor in weights.items():
        tensor.data.copy_(torch.from_numpy(adapter()[name]))
        tensor.requires_grad_(trained == "A+B" or "lora_B" in name)
    optimizer = torch.optim.AdamW([w for w in weights.values() if w.requires_grad], lr=params.learning_rate, weight_decay=0.1)
    for step, batch in enumerate(batches(encode(RECORDS, TASK, base, 256), params, "3/2/north"), start=1):
        optimizer.param_groups[0]["lr"] = params.learning_rate * min(1.0, step / 2)
        losses = []
        for prompt, answer in batch:
            logprobs = peft(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            losses += [-logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_([w for w in weights.values() if w.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    assert set(deltas) == {name for name in weights if trained == "A+B" or "lora_B" in name}
    for name, delta in deltas.items():
        expected = weights[name].detach().numpy() - adapter()[name]
        assert delta.dtype == np.float32 and np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(delta, expected, atol=2e-4)


def test_the_same_order_and_records_give_the_same_bytes_whatever_else_is_trained(base: BaseModel) -> None:
    both = train(PARAMS, TASK, base, adapter(), {"north": RECORDS, "south": OTHERS}, quiet)
    assert digest(both["north"]) == digest(train(PARAMS, TASK, base, adapter(), {"north": RECORDS}, quiet)["north"])
    assert digest(both["south"]) == digest(train(PARAMS, TASK, base, adapter(), {"south": OTHERS}, quiet)["south"])
    assert digest(both["north"]) != digest(train(PARAMS, TASK, base, adapter(), {"north": RECORDS}, quiet, round=1)["north"])
    assert digest(both["north"]) != digest(train(replace(PARAMS, seed=4), TASK, base, adapter(), {"north": RECORDS}, quiet)["north"])


IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from cafe_kit.base_model import BaseModel
from tests.test_train import OTHERS, PARAMS, RECORDS, TASK, adapter, digest, quiet, replace, train
base = BaseModel.load(Path(sys.argv[1]), sys.argv[2])
print(digest(train(replace(PARAMS, dtype=sys.argv[2]), TASK, base, adapter(), {"south": OTHERS, "north": RECORDS}, quiet)["north"]))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_process_gives_the_same_bytes(folder: Path, dtype: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(folder), dtype],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
    )
    here = BaseModel.load(folder, dtype)
    assert run.stdout.split()[-1] == digest(train(PARAMS, TASK, here, adapter(), {"north": RECORDS}, quiet)["north"])


def test_training_lowers_the_loss_and_leaves_the_base_bare(base: BaseModel) -> None:
    pairs = [(TASK.prompt(record.text), TASK.completion(record.answer)) for record in RECORDS]
    base.set_adapter(None)
    bare, _ = base.answer_losses(pairs)
    start = adapter()
    base.set_adapter(start, PARAMS.lora_alpha)
    before, counts = base.answer_losses(pairs)
    seen: list[tuple[str, int, int]] = []
    deltas = train(replace(PARAMS, steps=30), TASK, base, start, {"north": RECORDS}, lambda *told: seen.append(told))["north"]
    np.testing.assert_array_equal(base.answer_losses(pairs)[0], bare)
    base.set_adapter({name: start[name] + delta for name, delta in deltas.items()}, PARAMS.lora_alpha)
    after, _ = base.answer_losses(pairs)
    assert after.sum() / counts.sum() < 0.6 * before.sum() / counts.sum()
    assert seen == [("north", step, 30) for step in range(1, 31)]


def test_the_prompt_is_cut_from_the_middle_and_the_answer_never(base: BaseModel) -> None:
    assert cut_middle([1, 2, 3, 4, 5, 6], 4) == [1, 2, 5, 6] and cut_middle([1, 2, 3], 2) == [1, 3] and cut_middle([1, 2], 2) == [1, 2]
    long = Record("x" * 500, "lost_card")
    ((prompt, answer),) = encode([long], TASK, base, 64)
    assert len(prompt) + len(answer) == 64
    assert base.tokenizer.decode(answer) == " lost card</s>"
    text = base.tokenizer.decode(prompt)
    assert text.startswith("Message: xx") and text.endswith("xx\nLabel:")
    ((prompt, answer),) = encode([Record("x" * 500, "y" * 100)], Task(kind="instruction", description=""), base, 64)
    assert len(answer) == 102 and len(prompt) == 8


@given(records=st.integers(1, 40), batch=st.integers(1, 9), steps=st.integers(1, 30), seed=st.text(max_size=3))
def test_every_record_is_used_equally_often_and_batches_are_full(records: int, batch: int, steps: int, seed: str) -> None:
    pairs = [([1] * (7 * i % 11 + 1), [i]) for i in range(records)]
    drawn = list(batches(pairs, replace(PARAMS, batch_size=batch, steps=steps), seed))
    assert [len(one) for one in drawn] == [batch] * steps
    uses = Counter(answer[0] for one in drawn for _, answer in one)
    counts = [uses[i] for i in range(records)]
    assert max(counts) - min(counts) <= 1
    assert drawn == list(batches(pairs, replace(PARAMS, batch_size=batch, steps=steps), seed))


def test_similar_lengths_come_together_without_preference_for_any() -> None:
    pairs = [([1] * (i % 50 + 1), [i]) for i in range(400)]
    drawn = list(batches(pairs, replace(PARAMS, batch_size=8, steps=50), "a"))
    spread = [max(len(p) for p, _ in batch) - min(len(p) for p, _ in batch) for batch in drawn]
    assert np.mean(spread) < 8  # in batches drawn at random: about 39
    params = replace(PARAMS, batch_size=8, steps=50)
    first = [len(prompt) for seed in range(200) for prompt, _ in next(batches(pairs, params, str(seed)))]
    assert abs(float(np.mean(first)) - 25.5) < 4  # four standard errors; in order of length it would be far below


def code(base: BaseModel, params: TrainParams, records: list[Record], task: Task = TASK) -> str:
    with pytest.raises(CafeError) as refusal:
        train(params, task, base, adapter(), {"north": records}, quiet)
    assert not any(character.isdigit() for character in refusal.value.message)
    assert base.adapters.parameters() == {}
    return refusal.value.code


def test_what_cannot_be_trained_is_refused_in_words(base: BaseModel) -> None:
    assert code(base, PARAMS, []) == "CAFE-401"
    assert code(base, PARAMS, [Record("a", "b" * 5000)], Task(kind="instruction", description="")) == "CAFE-402"
    assert code(base, replace(PARAMS, learning_rate=1e9), RECORDS) == "CAFE-403"
    assert code(base, replace(PARAMS, lora_rank=8), RECORDS) == "CAFE-404"
