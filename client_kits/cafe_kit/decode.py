"""Continues prompts token by token, many rows at once.

Knows: sampling, stop strings, streaming. Does not know chats, tasks or adapters. Each row draws from its own random
stream (seed, row), so that a text does not depend on what else is in the batch, but for the rounding of the
arithmetic. Rows that are done leave the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cafe_kit.base_model import BaseModel

ROWS = 32  # rows decoded together
OnToken = Callable[[int, str], None]


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. ``temperature`` 0 is greedy; ``top_p`` keeps the likeliest tokens of that total
    probability (Holtzman et al. 2020); ``stop`` strings end a row and are not part of it; ``seed`` None: not repeatable."""

    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None


class _Row:
    """One text in the making: its tokens, its random stream, and how much of it has been handed out."""

    def __init__(self, base: BaseModel, index: int, sampling: Sampling, on_token: OnToken | None) -> None:
        self.index, self._sampling, self._on_token, self._tokenizer = index, sampling, on_token, base.tokenizer
        self._random = random.Random(None if sampling.seed is None else f"{sampling.seed}/{index}")
        self._ends = base.stop_ids
        self._ids: list[int] = []
        self._given = 0
        self.text = ""

    def draw(self) -> float:
        return self._random.random()

    def add(self, token: int) -> bool:
        """Take one token; True when the row is done."""
        done = token in self._ends
        if done and self._given == len(self.text):
            return True
        if not done:
            self._ids.append(token)
            self.text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            cut = [at for at in (self.text.find(stop) for stop in self._sampling.stop if stop) if at >= 0]
            if cut:
                self.text, done = self.text[: min(cut)], True
        done = done or len(self._ids) >= self._sampling.max_tokens
        self._hand_out(done)
        return done

    def _hand_out(self, done: bool) -> None:
        """Stream what is certain: not half a character, nor what may be the beginning of a stop string."""
        if self._on_token is None:
            return
        sure = len(self.text)
        if not done:
            sure -= len(self.text) - len(self.text.rstrip("\ufffd"))
            held = (n for stop in self._sampling.stop for n in range(len(stop) - 1, 0, -1) if self.text[:sure].endswith(stop[:n]))
            sure -= max(held, default=0)
        self._on_token(self.index, self.text[self._given : sure])
        self._given = max(self._given, sure)


def generate(base: BaseModel, prompts: Sequence[str], sampling: Sampling, on_token: OnToken | None = None) -> list[str]:
    """The continuation of each prompt, without the prompt. ``on_token(row, piece)`` is called for every token drawn, with the text
    that has become certain by it (perhaps none); what it raises ends the generation.

    Prompts longer than the model's positions allow lose their beginning.
    """
    limit = max(1, base.max_positions - sampling.max_tokens)
    ids = [base.encode_prompt(prompt)[-limit:] for prompt in prompts]
    rows = [_Row(base, index, sampling, on_token) for index in range(len(prompts))]
    order = sorted(range(len(rows)), key=lambda i: len(ids[i]))
    with torch.inference_mode():
        for start in range(0, len(order), ROWS):
            chosen = order[start : start + ROWS]
            _decode(base, [ids[i] for i in chosen], [rows[i] for i in chosen], sampling)
    return [row.text for row in rows]


def _decode(base: BaseModel, ids: list[list[int]], rows: list[_Row], sampling: Sampling) -> None:
    """Left-padded prefill, then one token a row and step."""
    width = max(map(len, ids))
    tokens = torch.tensor([[base.pad] * (width - len(row)) + row for row in ids], device=base.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=base.device)
    positions, cache = (mask.cumsum(1) - 1).clamp(min=0), None
    while rows:
        ends = range(tokens.shape[1] - 1, tokens.numel(), tokens.shape[1])
        with base.only(ends):
            out = base.model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        chosen = choose(out.logits[0].float(), [row.draw for row in rows], sampling.temperature, sampling.top_p)
        alive = [n for n, (row, token) in enumerate(zip(rows, chosen, strict=True)) if not row.add(token)]
        cache = out.past_key_values
        if len(alive) < len(rows):
            kept = torch.tensor(alive, dtype=torch.long, device=base.device)
            rows, chosen, mask, positions = [rows[n] for n in alive], [chosen[n] for n in alive], mask[kept], positions[kept]
            if rows:
                cache.batch_select_indices(kept)
        tokens = torch.tensor(chosen, device=base.device)[:, None]
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)


def choose(logits: torch.Tensor, draws: Sequence[Callable[[], float]], temperature: float, top_p: float) -> list[int]:
    """One token a row from logits (rows, vocabulary) float32; ``draws``: each row's uniform random numbers in [0, 1).

    Nucleus sampling by rejection, without sorting: a token drawn from the whole distribution is kept if the likelier tokens
    together stay below ``top_p``; otherwise it is drawn again.
    """
    likeliest = logits.argmax(-1)
    if temperature <= 0:
        return likeliest.tolist()
    probabilities = (logits / temperature).softmax(-1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    chosen = likeliest.clone()
    open_rows = (probabilities.amax(-1) < top_p).nonzero()[:, 0]  # elsewhere the likeliest token is the whole nucleus
    while len(open_rows):
        uniform = torch.tensor([draws[row]() for row in open_rows.tolist()], dtype=torch.float64, device=logits.device)
        targets = (uniform * cumulative[open_rows, -1])[:, None]
        tokens = torch.searchsorted(cumulative[open_rows], targets, right=True).clamp(max=logits.shape[-1] - 1)
        of_rows = probabilities[open_rows]
        above = torch.where(of_rows > of_rows.gather(1, tokens), of_rows, 0).sum(-1)
        kept = above < top_p
        chosen[open_rows[kept]] = tokens[kept, 0]
        open_rows = open_rows[~kept]
    return chosen.tolist()
