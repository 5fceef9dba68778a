"""Local training: transformers' Trainer with PEFT against cafe_kit.train, in one process.

(a) On the same batches both must have the same loss within 1 %. (b) Each with its own batching: real tokens (prompt and answer,
no padding) per second. The runs alternate and medians are taken, against noise. How to read it: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cafe_kit.base_model import BaseModel
from cafe_kit.orders import TrainParams
from cafe_kit.task import Record, Task
from cafe_kit.train import Pair, backward, batches, encode, train
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

PARAMS = TrainParams(steps=8, batch_size=8, learning_rate=1e-3, lora_rank=8, lora_alpha=32.0, target_modules=("q_proj", "v_proj"), seed=1)
TRAINERS = {  # name: (type of the weights, arguments of the Trainer)
    "Trainer, defaults (fp32)": (torch.float32, {}),
    "Trainer, fp32, by length": (torch.float32, {"train_sampling_strategy": "group_by_length"}),
    "Trainer, bf16 weights, by length": (torch.bfloat16, {"train_sampling_strategy": "group_by_length"}),
    "Trainer, bf16 autocast, by length": (torch.float32, {"bf16": True, "train_sampling_strategy": "group_by_length"}),
}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class StepTimes(TrainerCallback):
    """The clock at the end of every optimiser step."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.marks = clock, []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append(self.clock())


def read(path: Path | None, text: str, answer: str, limit: int) -> tuple[Task, list[Record]]:
    """Records of a JSONL file, or made up: requests of very different lengths for one of twelve departments."""
    if path:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        records = [Record(str(row[text]), str(row[answer])) for row in random.Random(0).sample(rows, min(limit, len(rows)))]
    else:
        chance, words = (
            random.Random(0),
            ["the", "a", "my", "please", "help", "card", "order", "result", "appointment", "letter", "pain", "when"],
        )
        records = [
            Record(" ".join(chance.choices(words, k=int(chance.lognormvariate(2.8, 0.6)) + 3)), f"department_{chance.randrange(12)}")
            for _ in range(limit)
        ]
    labels = tuple(sorted({record.answer for record in records}))
    kind = {"kind": "classification", "labels": labels} if len(labels) <= 200 else {"kind": "instruction"}
    return Task(description="", text_name="Message", answer_name="Answer", **kind), records  # type: ignore[arg-type]


def first_adapter(base: BaseModel) -> dict[str, np.ndarray]:
    """Random A and a small random B, so that both factors have gradients."""
    chance, adapter = np.random.default_rng(0), {}
    for name, module in base.model.named_modules():
        if name.endswith(PARAMS.target_modules):
            for half, shape in (("A", (PARAMS.lora_rank, module.in_features)), ("B", (module.out_features, PARAMS.lora_rank))):
                adapter[f"base_model.model.{name}.lora_{half}.weight"] = chance.normal(0, 0.02 if half == "A" else 0.002, shape).astype(
                    np.float32
                )
    return adapter


class PeftTrainer:
    """The Trainer's way: PEFT model, padded batches, the model's own loss."""

    def __init__(self, folder: Path, dtype: torch.dtype, arguments: dict[str, Any], tokenizer: Any, adapter: dict[str, np.ndarray]) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        config = LoraConfig(
            r=PARAMS.lora_rank, lora_alpha=PARAMS.lora_alpha, target_modules=list(PARAMS.target_modules), task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(model, config)
        for name, tensor in self.model.named_parameters():
            if "lora_" in name:
                tensor.data.copy_(torch.from_numpy(adapter[name.replace(".default", "")]))
        self.arguments, self.tokenizer = arguments, tokenizer

    def features(self, pairs: Sequence[Pair]) -> list[dict[str, list[int]]]:
        return [{"input_ids": p + a, "attention_mask": [1] * len(p + a), "labels": [-100] * len(p) + a} for p, a in pairs]

    def trainer(self, pairs: Sequence[Pair], steps: int, seed: int, callbacks: list[TrainerCallback]) -> Trainer:
        arguments = TrainingArguments(
            output_dir="unused",
            max_steps=steps,
            per_device_train_batch_size=PARAMS.batch_size,
            learning_rate=PARAMS.learning_rate,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=seed,
            data_seed=seed,
            **self.arguments,
        )
        collator = CountingCollator(self.tokenizer)
        trainer = Trainer(model=self.model, args=arguments, train_dataset=self.features(pairs), data_collator=collator, callbacks=callbacks)
        return trainer

    def loss(self, batch: Sequence[Pair]) -> float:
        trainer = self.trainer(batch, 1, 0, [])
        inputs = trainer.data_collator(self.features(batch))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            return float(trainer.compute_loss(self.model.eval(), inputs))

    def rate(self, pairs: Sequence[Pair], steps: int, seed: int, clock: Callable[[], float]) -> float:
        """Real tokens per second over the steps after the first."""
        times = StepTimes(clock)
        trainer = self.trainer(pairs, steps + 1, seed, [times])
        self.model.train()
        trainer.train()
        return sum(trainer.data_collator.tokens[1 : steps + 1]) / (times.marks[-1] - times.marks[0])


class CountingCollator(DataCollatorForSeq2Seq):
    """The usual padding collator, noting each batch's real tokens."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.tokens: list[int] = []

    def __call__(self, features: Any, return_tensors: Any = None) -> Any:
        batch = super().__call__(features, return_tensors)
        self.tokens.append(int(batch["attention_mask"].sum()))
        return batch


class Ours:
    """cafe_kit's way."""

    def __init__(self, base: BaseModel, task: Task, records: list[Record], adapter: dict[str, np.ndarray]) -> None:
        self.base, self.task, self.records, self.adapter = base, task, records, adapter

    def loss(self, batch: Sequence[Pair]) -> float:
        self.base.set_adapter(self.adapter, PARAMS.lora_alpha)
        for tensor in self.base.adapters.parameters().values():
            tensor.requires_grad_(True)
        return backward(self.base, batch, sum(len(answer) for _, answer in batch))

    def rate(self, pairs: Sequence[Pair], steps: int, seed: int, clock: Callable[[], float]) -> float:
        """Real tokens per second over the steps after the first."""
        params, marks = replace(PARAMS, steps=steps + 1, seed=seed), []
        train(params, self.task, self.base, self.adapter, {"a": self.records}, lambda *_: marks.append(clock()))
        tokens = [sum(len(p) + len(a) for p, a in batch) for batch in batches(pairs, params, f"{seed}/0/a")]
        return sum(tokens[1:]) / (marks[-1] - marks[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--data", type=Path, help="JSONL file; without it, made-up text")
    parser.add_argument("--text", default="text")
    parser.add_argument("--answer", default="label")
    parser.add_argument("--limit", type=int, default=1000, help="records used")
    parser.add_argument("--steps", type=int, default=8, help="timed steps in one turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: on a busy machine, with --threads 1")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = BaseModel.load(options.model)
    task, records = read(options.data, options.text, options.answer, options.limit)
    pairs, adapter = encode(records, task, base, PARAMS.max_tokens), first_adapter(base)
    runners: dict[str, Any] = {
        name: PeftTrainer(options.model, dtype, arguments, base.tokenizer, adapter) for name, (dtype, arguments) in TRAINERS.items()
    }
    runners["Ours"] = Ours(base, task, records, adapter)
    compare_losses(runners, list(batches(pairs, PARAMS, "loss"))[:4])
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(options.turns):
        for name, runner in runners.items():
            rates[name].append(runner.rate(pairs, options.steps, turn, CLOCKS[options.clock]))
            gc.collect()
    show({name: statistics.median(values) for name, values in rates.items()}, rates)


def compare_losses(runners: dict[str, Any], same: list[list[Pair]]) -> None:
    """(a) The same batches, the same adapter: the loss within 1 % of the Trainer's in fp32."""
    losses = {name: statistics.mean(runner.loss(batch) for batch in same) for name, runner in runners.items()}
    expected = losses["Trainer, defaults (fp32)"]
    print("loss on the same batches: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
    assert abs(losses["Ours"] - expected) <= 0.01 * expected, "the losses differ by more than 1 %"


def show(median: dict[str, float], rates: dict[str, list[float]]) -> None:
    best = max(rate for name, rate in median.items() if name != "Ours")
    default = median["Trainer, defaults (fp32)"]
    print(f"\n{'':36} {'tokens/s':>9} {'of default':>11} {'of best':>8}   turns")
    for name, rate in median.items():
        turns = " ".join(f"{value:.0f}" for value in rates[name])
        print(f"{name:36} {rate:9.1f} {rate / default:11.2f} {rate / best:8.2f}   {turns}")


if __name__ == "__main__":
    main()
