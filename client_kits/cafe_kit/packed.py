"""One training pass over rows of tokens without padding, for Llama-like models on a CPU.

Knows: the arithmetic of one architecture (Llama, Mistral, Qwen2: RMSNorm, rotary positions, grouped heads, SwiGLU). Does not
know losses, records or adapters: layers are called as they stand in the model. All rows lie end to end in one matrix; the
beginning that they share is laid down once; only attention sees rows; after the last attention only the asked positions go
on. The stream between the layers is float32, which in bfloat16 models rounds less than transformers' own pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from cafe_kit.lora import stacked_product

_KNOWN = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}
MAX_LENGTH = 512  # tokens in a row; the table of scores of longer rows would be too large


def fits(model: Any, longest: int) -> bool:
    """Whether this pass computes the model's function for rows of this length."""
    config = model.config
    return (
        type(model).__name__ in _KNOWN
        and model.device.type == "cpu"
        and config.hidden_act == "silu"
        and longest <= min(MAX_LENGTH, getattr(config, "sliding_window", None) or MAX_LENGTH)
    )


class Layout:
    """Where each row's tokens lie in the matrix.

    ``ids``, ``positions`` (tokens,): the shared beginning once, then each row's rest. ``slots`` (rows, width): the matrix row of a
    row's j-th token; behind a row's end it repeats a token that nobody sees, by the causal order. ``back`` (tokens,): the
    inverse, into the flattened slots.
    """

    def __init__(self, rows: Sequence[list[int]], share_at_most: int) -> None:
        shared = _common(rows, share_at_most) if len(rows) > 1 else 0
        width = max(map(len, rows))
        ids, positions, slots, back = rows[0][:shared], list(range(shared)), [], list(range(shared))
        for n, row in enumerate(rows):
            own = range(len(ids), len(ids) + len(row) - shared)
            slots.append([*range(shared), *own, *[0] * (width - len(row))])
            back += range(n * width + shared, n * width + len(row))
            positions += range(shared, len(row))
            ids = ids + row[shared:]
        self.shared, self.width, self.rows = shared, width, len(rows)
        self.ids, self.positions = torch.tensor(ids), torch.tensor(positions)
        self.later = torch.full((width, width), float("-inf")).triu_(1)  # hides what comes later in the row
        self.slots, self.back = torch.tensor(slots).flatten(), torch.tensor(back)

    def at(self, row: int, position: int) -> int:
        """The matrix row of a token."""
        return int(self.slots[row * self.width + position])


def _common(rows: Sequence[list[int]], limit: int) -> int:
    for length in range(min(limit, *map(len, rows))):
        if any(row[length] != rows[0][length] for row in rows):
            return length
    return min(limit, *map(len, rows))


def hidden_states(model: Any, layout: Layout, asked: torch.Tensor) -> torch.Tensor:
    """The output layer's input at the asked matrix rows, (asked, hidden), with gradients to the adapters."""
    trunk, config = model.model, model.config
    x = F.embedding(layout.ids, trunk.embed_tokens.weight)
    cos, sin = trunk.rotary_emb(x, layout.positions[None])
    x = x.float()
    half = cos.shape[-1] // 2
    turn = (cos.transpose(0, 1), torch.cat([-sin[..., :half], sin[..., half:]], dim=-1).transpose(0, 1))  # (tokens, 1, head)
    layers = trunk.layers[: config.num_hidden_layers]
    for number, layer in enumerate(layers, start=1):
        mixed = _attention(layer, _norm(layer.input_layernorm, x), turn, layout)
        if number == len(layers):
            x, mixed = x[asked], mixed[asked]
        x = x + layer.self_attn.o_proj(mixed)
        y, mlp = _norm(layer.post_attention_layernorm, x), layer.mlp
        x = x + mlp.down_proj(F.silu(mlp.gate_proj(y)) * mlp.up_proj(y))
    return _norm(trunk.norm, x)


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)


def prepare(model: Any) -> None:
    """Lay the weights of each layer's query, key and value projections end to end, each becoming a view: no memory is added."""
    if not fits(model, 1):
        return
    for layer in model.model.layers:
        attention = layer.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        attention.qkv_weight = torch.cat([projection.weight.data for projection in projections])
        attention.qkv_bias = None if attention.q_proj.bias is None else torch.cat([projection.bias.data for projection in projections])
        for projection, rows in zip(projections, attention.qkv_weight.split([len(p.weight) for p in projections]), strict=True):
            projection.weight.data = rows


def _attention(layer: Any, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], layout: Layout) -> torch.Tensor:
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    heads = stacked_product(x, attention.qkv_weight, attention.qkv_bias, projections).view(len(x), -1, attention.head_dim)
    groups = heads.shape[1] // (attention.num_key_value_groups + 2)
    return _Attention.apply(heads, *turn, layout, groups, attention.scaling).view(len(x), -1)


class _RMSNorm(torch.autograd.Function):
    """``y = w x / sqrt(mean(x²) + eps)`` (Zhang and Sennrich 2019, equation 4), in float32; ``w`` is frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight.float()).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        grad = grad * weight.float()
        along = (grad * x).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-x.shape[-1])
        return grad.mul_(inverse).addcmul_(x, along), None, None


class _Attention(torch.autograd.Function):
    """Rotary positions and causal attention over rows that lie in one matrix (Su et al. 2021; Vaswani et al. 2017, equation 1).

    heads (tokens, query heads + 2 groups, head): queries, keys and values side by side; cos and signed sin (tokens, 1, head).
    The queries of a group's heads are stacked, so that keys and values are not copied for them.
    """

    @staticmethod
    def forward(
        ctx: Any, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: Layout, groups: int, scale: float
    ) -> torch.Tensor:
        ctx.layout, ctx.scale, ctx.groups, width = layout, scale, groups, layout.width
        turned = _turn(heads[:, :-groups], cos, sin).index_select(0, layout.slots)
        q, k = _stack(turned[:, :-groups], layout, groups), _stack(turned[:, -groups:], layout, groups)
        v = _stack(heads[:, -groups:].index_select(0, layout.slots), layout, groups)
        scores = torch.bmm(q, k.transpose(1, 2))
        masked = torch.add(layout.later, scores.view(-1, width, width), alpha=scale)  # in float32: faster and finer
        weights = F.softmax(masked, dim=-1).view_as(scores)
        ctx.save_for_backward(q, k, v, weights, cos, sin)
        return _lift(torch.bmm(weights.to(v.dtype), v), layout)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        q, k, v, weights, cos, sin = ctx.saved_tensors
        layout = ctx.layout
        padded = grad.new_zeros((len(layout.slots), *grad.shape[1:])).index_copy_(0, layout.back, grad)  # behind a row's end: nothing
        grad = _stack(padded, layout, ctx.groups)
        d_value = torch.bmm(weights.to(v.dtype).transpose(1, 2), grad)
        d_weights = torch.bmm(grad, v.transpose(1, 2)).float()
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(ctx.scale).to(v.dtype)
        d_query, d_key = torch.bmm(d_scores, k), torch.bmm(d_scores.transpose(1, 2), q)
        turned = torch.cat([_lift(d_query, layout), _lift(d_key, layout, total=True)], dim=1)
        return torch.cat([_turn(turned, cos, -sin), _lift(d_value, layout, total=True)], dim=1), None, None, None, None, None


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on (tokens, heads, head); with ``-sin``, back again (and the gradient)."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


def _stack(padded: torch.Tensor, layout: Layout, groups: int) -> torch.Tensor:
    """(rows x width, heads, head) to (rows x groups, heads of a group x width, head)."""
    heads, head = padded.shape[1:]
    return padded.view(layout.rows, layout.width, heads, head).transpose(1, 2).reshape(layout.rows * groups, -1, head)


def _lift(stacked: torch.Tensor, layout: Layout, total: bool = False) -> torch.Tensor:
    """Back to (tokens, heads, head). ``total``: what all rows say of the shared beginning is summed, else the first row's is taken."""
    head = stacked.shape[-1]
    padded = stacked.view(layout.rows, -1, layout.width, head).transpose(1, 2)
    x = padded.reshape(layout.rows * layout.width, -1, head).index_select(0, layout.back)
    if total and layout.shared:
        x[: layout.shared] = padded[:, : layout.shared].sum(0)
    return x


class TokenLoss(torch.autograd.Function):
    """Negative log-likelihood of target tokens, (rows,) float32, from the frozen output layer's input (rows, hidden)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logprobs = F.linear(x, weight).float().log_softmax(-1)
        loss = -logprobs.gather(1, targets[:, None])[:, 0]
        if ctx.needs_input_grad[0]:
            error = logprobs.exp_()
            error[torch.arange(len(targets)), targets] -= 1.0  # in float32: where the target is nearly certain, little is left
            ctx.save_for_backward(error.to(x.dtype), weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        error, weight = ctx.saved_tensors
        return (error @ weight).mul_(grad[:, None].to(weight.dtype)), None, None
