"""Attention for short rows on a CPU, as plugged into transformers for the models that ``packed`` does not know.

Knows: one layer's queries, keys and values. Does not know models. PyTorch's fused attention is slow backward in bfloat16 on
CPUs (at 20 tokens, half of a layer's time); plain products are several times faster up to some hundred tokens, the queries
of grouped heads stacked so that keys and values are never copied. Everything else goes to transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

NAME = "cafe_short"
MAX_LENGTH = 384  # tokens in a row; longer rows would make the table of scores too large


def short_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention; query (rows, heads, length, width), key and value (rows, groups, length, width).

    Returns (rows, length, heads, width) and no weights, as transformers asks of an attention function.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length = query.shape[2]
    plain = attention_mask is None and dropout == 0.0 and length == key.shape[2] and "position_bias" not in others
    if not plain or length > MAX_LENGTH or not torch.is_grad_enabled() or not others.get("is_causal", True):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    return _causal(query, key, value, scaling or query.shape[-1] ** -0.5), None


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    stacked = query.reshape(rows * groups, heads // groups * length, width)
    hidden = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1).repeat(heads // groups, 1)
    scores = torch.baddbmm(hidden, stacked, key.reshape(rows * groups, length, width).transpose(1, 2), alpha=scale)
    mixed = torch.bmm(F.softmax(scores, dim=-1), value.reshape(rows * groups, length, width))
    return mixed.view(rows, heads, length, width).transpose(1, 2).contiguous()


def use(model: Any) -> None:
    """Let a model on a CPU attend this way, if it attends by PyTorch's fused function now."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, short_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
