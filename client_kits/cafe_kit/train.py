"""Stage 2 at a site, and for a proxy on the server: local LoRA training on one or several shards.

Knows: records as token ids, batches, AdamW. Does not know where records come from, privacy, or what becomes of the delta.
The same order and the same records give the same bytes on one machine: every choice is drawn from (seed, round, site).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch

from cafe_kit.base_model import BaseModel, by_length
from cafe_kit.errors import CafeError
from cafe_kit.orders import TrainParams
from cafe_kit.task import Record, Task

MAX_GRADIENT_NORM = 1.0  # every step's gradient is clipped to this L2 norm over all trained tensors
MAX_WEIGHT = 1e4  # a trained weight beyond this is no adapter any more
PASS_TOKENS = 512  # padded tokens in one pass with gradients; a larger batch is several passes, summed
_WINDOW = 16  # batches among which records are exchanged to bring similar lengths together
Pair = tuple[list[int], list[int]]


class Team(Protocol):
    """Several processes that train as one: each computes its share of every batch."""

    def share(self, batch: Sequence[Pair]) -> Sequence[Pair]:
        """What of the batch is computed here."""
        ...

    def add_up(self, weights: Sequence[torch.nn.Parameter], loss: float) -> float:
        """Make the gradients the sum over all processes; the sum of their losses."""
        ...


def train(
    params: TrainParams,
    task: Task,
    base: BaseModel,
    adapter: Mapping[str, np.ndarray],
    shards: Mapping[str, Sequence[Record]],
    progress: Callable[[str, int, int], None],
    round: int = 0,
    team: Team | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Train each shard from the same adapter; the base model is shared.

    Args:
        adapter: PEFT names to float32 tensors; where every shard starts.
        shards: site to its records. A shard's result does not depend on the other shards.
        progress: called with (site, steps done, steps).
        round: part of what batches are drawn from.
        team: the processes that train together, each of which gets all of these arguments (``parallel``).

    Returns:
        Site to {tensor name: float32 delta, after minus before}, for the trained tensors only (``params.trained``).

    Raises:
        CafeError: CAFE-401 (no records), CAFE-402 (answer too long for the model), CAFE-403 (diverged), CAFE-404
            (adapter and order do not fit), CAFE-426 and CAFE-427 (adapter does not fit the base model).
    """
    if params.threads:
        torch.set_num_threads(params.threads)
    if any(tensor.shape[0] != params.lora_rank for name, tensor in adapter.items() if name.endswith("lora_A.weight")):
        raise CafeError("CAFE-404", "The adapter does not have the rank that the order names.", "Start the round again.")
    deltas = {}
    try:
        for site, records in shards.items():
            base.set_adapter(adapter, params.lora_alpha)
            pairs = encode(records, task, base, params.max_tokens)
            trained = _trained(params, base)
            stream = batches(pairs, params, f"{params.seed}/{round}/{site}")
            _run(params, base, trained, stream, partial(progress, site), team)
            deltas[site] = _delta(trained, adapter)
    finally:
        base.set_adapter(None)
    return deltas


def encode(records: Sequence[Record], task: Task, base: BaseModel, max_tokens: int) -> list[Pair]:
    """Token ids of prompt and answer (with end-of-text) of each record; the prompt gives way, the answer never."""
    if not records:
        raise CafeError("CAFE-401", "There are no records to train on.", "Check the site's data file and its columns.")
    pairs = []
    for record in records:
        answer = [*base.encode_answer(task.completion(record.answer)), base.eos]
        prompt = cut_middle(base.encode_prompt(task.prompt(record.text)), max(8, max_tokens - len(answer)))
        if len(prompt) + len(answer) > max(max_tokens, base.max_positions):
            raise CafeError(
                "CAFE-402",
                "An answer is longer than the base model can read; answers are never cut.",
                "Leave such records out, or choose a base model with a longer context.",
            )
        pairs.append((prompt, answer))
    return pairs


def cut_middle(ids: list[int], length: int) -> list[int]:
    """At most ``length`` tokens: the middle goes, the beginning and the end stay."""
    if len(ids) <= length:
        return ids
    head = (length + 1) // 2
    return ids[:head] + ids[len(ids) - (length - head) :]


def batches(pairs: Sequence[Pair], params: TrainParams, seed: str) -> Iterator[list[Pair]]:
    """``steps`` batches. Records come in shuffled epochs, end on end; inside a window of batches they are sorted by
    length and cut into batches, which are then shuffled: little padding, no preference for any length."""
    chance = random.Random(seed)
    order: list[int] = []
    while len(order) < params.steps * params.batch_size:
        epoch = list(range(len(pairs)))
        chance.shuffle(epoch)
        order += epoch
    size, window = params.batch_size, _WINDOW * params.batch_size
    order = order[: params.steps * size]
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        cut = [near[at : at + size] for at in range(0, len(near), size)]
        chance.shuffle(cut)
        for batch in cut:
            yield [pairs[i] for i in batch]


def _trained(params: TrainParams, base: BaseModel) -> dict[str, torch.nn.Parameter]:
    names = {"A+B": ("lora_A.weight", "lora_B.weight"), "B": ("lora_B.weight",)}[params.trained]
    trained = {name: tensor for name, tensor in base.adapters.parameters().items() if name.endswith(names)}
    if not trained:
        raise CafeError("CAFE-404", "The adapter has no tensors to train.", "Start the round again.")
    for tensor in trained.values():
        tensor.requires_grad_(True)
    return trained


def _run(
    params: TrainParams,
    base: BaseModel,
    trained: Mapping[str, torch.nn.Parameter],
    stream: Iterator[list[Pair]],
    progress: Callable[[int, int], None],
    team: Team | None,
) -> None:
    """AdamW steps over the stream: linear warm-up, then a constant rate; the loss is the mean over a batch's answer tokens."""
    weights = list(trained.values())
    optimizer = torch.optim.AdamW(weights, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
    for step, batch in enumerate(stream, start=1):
        optimizer.param_groups[0]["lr"] = params.learning_rate * min(1.0, step / (params.warmup_steps + 1))
        loss = backward(base, team.share(batch) if team else batch, sum(len(answer) for _, answer in batch))
        loss = team.add_up(weights, loss) if team else loss
        norm = torch.nn.utils.clip_grad_norm_(weights, MAX_GRADIENT_NORM, foreach=True)
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            raise _diverged()
        optimizer.step()
        optimizer.zero_grad()
        progress(step, params.steps)
    if not all(bool((tensor.detach().abs() <= MAX_WEIGHT).all()) for tensor in weights):
        raise _diverged()


def backward(base: BaseModel, batch: Sequence[Pair], tokens: int) -> float:
    """Add the gradient of the summed answer loss over ``tokens`` to the trained tensors; returns that loss: a whole batch's mean."""
    total = 0.0
    for part in by_length([len(prompt) + len(answer) for prompt, answer in batch], PASS_TOKENS):
        loss = base.answer_nll([batch[i] for i in part]).sum() / tokens
        loss.backward()
        total += float(loss.detach())
    return total


def _diverged() -> CafeError:
    return CafeError("CAFE-403", "Training diverged: its numbers grew beyond all bounds.", "Lower learning_rate, or add warmup_steps.")


def _delta(trained: Mapping[str, torch.nn.Parameter], adapter: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy() - np.asarray(adapter[name], dtype=np.float32) for name, tensor in trained.items()}
