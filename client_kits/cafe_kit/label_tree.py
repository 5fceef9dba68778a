"""Scores a fixed set of short texts after a prompt in one pass.

Knows: token ids and attention masks. Does not know what the texts mean. The texts form a tree (common beginnings are
one branch); the tree is laid behind the prompt, each node seeing the prompt and its own branch only. The first token of
a text is predicted by the prompt's last position and the last token need not be fed, so a one-token text costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from cafe_kit.base_model import BaseModel


class LabelTree:
    """The tree of all options' proper beginnings.

    ``size`` nodes; ``tokens[i]`` and ``depth[i]`` of node i; ``steps[o]``: for option o its pairs (node that predicts, token
    predicted), node -1 being the prompt's last position. ``sees`` (size, size): node i attends to node j.
    """

    def __init__(self, options: Sequence[list[int]]) -> None:
        nodes: dict[tuple[int, ...], int] = {}
        self.steps: list[list[tuple[int, int]]] = []
        for option in options:
            for end in range(1, len(option)):
                nodes.setdefault(tuple(option[:end]), len(nodes))
            self.steps.append([(nodes.get(tuple(option[:end]), -1), token) for end, token in enumerate(option)])
        self.size = len(nodes)
        self.tokens = [path[-1] for path in nodes]
        self.depth = torch.tensor([len(path) - 1 for path in nodes], dtype=torch.long)
        self.sees = torch.zeros((self.size, self.size), dtype=torch.bool)
        for path, node in nodes.items():
            self.sees[node, [nodes[path[:end]] for end in range(1, len(path) + 1)]] = True

    def score(self, base: BaseModel, prompts: Sequence[list[int]]) -> np.ndarray:
        """Total log-probability of each option after each prompt (token ids), (prompts, options)."""
        lengths = torch.tensor([len(row) for row in prompts])
        width = int(lengths.max())
        full = width + self.size
        ids = torch.tensor([row + [base.pad] * (width - len(row)) + self.tokens for row in prompts], device=base.device)
        asked = [n * full + p for n, row in enumerate(prompts) for p in (len(row) - 1, *range(width, full))]
        mask, positions = self._mask(lengths, width).to(base.device), self._positions(lengths, width).to(base.device)
        logits = base.logits_at(ids, asked, **({"attention_mask": mask, "position_ids": positions} if self.size else {}))
        return self._sums(logits.view(len(prompts), 1 + self.size, -1))

    def _sums(self, logits: torch.Tensor) -> np.ndarray:
        """Logits (rows, 1 + size, vocabulary), the prompt's last position first, to sums over each option's tokens."""
        pairs = sorted({pair for steps in self.steps for pair in steps})
        column = {pair: i for i, pair in enumerate(pairs)}
        where = torch.tensor([node + 1 for node, _ in pairs], device=logits.device)
        what = torch.tensor([token for _, token in pairs], device=logits.device)
        normaliser = torch.stack([row.float().logsumexp(-1) for row in logits])
        logprobs = (logits[:, where, what].float() - normaliser[:, where]).double().cpu().numpy()
        return np.stack([logprobs[:, [column[pair] for pair in steps]].sum(axis=1) for steps in self.steps], axis=1)

    def _mask(self, lengths: torch.Tensor, width: int) -> torch.Tensor:
        """(rows, 1, full, full) boolean: causal among the prompt, the real prompt and its own branch for each node."""
        full = width + self.size
        mask = torch.zeros((len(lengths), 1, full, full), dtype=torch.bool)
        mask[:, :, :width, :width] = torch.ones((width, width), dtype=torch.bool).tril()
        mask[:, :, width:, :width] = (torch.arange(width) < lengths[:, None])[:, None, None, :]
        mask[:, :, width:, width:] = self.sees
        return mask

    def _positions(self, lengths: torch.Tensor, width: int) -> torch.Tensor:
        prompt = torch.arange(width).expand(len(lengths), width)
        return torch.cat([prompt, lengths[:, None] + self.depth], dim=1)
