"""One layer of a Llama-like model, forwards and backwards, written out by hand.

Knows: RMSNorm, rotary positions, causal attention with grouped heads, SwiGLU. Does not know models, losses or how rows are laid out.
Each part keeps what its own way back needs; PyTorch's graph would make several times as many small operations, which on short
rows take as long as the large products. The stream between the layers is float32, the products have the weights' type.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from cafe_kit.layout import Plan
from cafe_kit.lora import Product


class Norm:
    """``y = w x / sqrt(mean(x²) + eps)`` (Zhang and Sennrich 2019, equation 4), in float32; ``w`` is frozen."""

    def __init__(self, norm: Any) -> None:
        self.weight, self.eps, self.dtype = norm.weight.float(), norm.variance_epsilon, norm.weight.dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        self.inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return (x * self.inverse).mul_(self.weight).to(self.dtype)

    def backward(self, grad: torch.Tensor, stream: torch.Tensor) -> None:
        """Add ``dx = i g - x i³ mean(g x)``, with ``g = w dy`` and ``i`` the inverse root, to the stream's gradient."""
        grad = grad * self.weight
        along = (grad * self.x).sum(-1, keepdim=True).mul_(self.inverse.pow(3))
        stream.addcmul_(grad, self.inverse).addcmul_(self.x, along, value=-1 / self.x.shape[-1])


class Attention:
    """Rotary positions and causal attention (Su et al. 2021, equation 34; Vaswani et al. 2017, equation 1) over the rows of a layout.

    Scores are kept as (keys, queries): on short rows the products and the softmax over keys are faster so. The queries of a group's
    heads are stacked, so that keys and values are not copied for them.
    """

    def __init__(self, plan: Plan, scale: float) -> None:
        self.plan, self.scale = plan, scale

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """heads (tokens, all heads x head): queries, keys and values side by side; gives (tokens, heads x head)."""
        plan = self.plan
        stacked = plan.turn(heads.view(-1, plan.head).index_select(0, plan.stack).float()).to(plan.kind)
        self.q, self.k, self.v = plan.parts(stacked)
        scores = torch.baddbmm(plan.later, self.k, self.q.transpose(1, 2), alpha=self.scale)
        self.weights = F.softmax(scores, dim=1, dtype=torch.float32)
        mixed = torch.bmm(self.weights.to(plan.kind).transpose(1, 2), self.v).to(heads.dtype)
        return mixed.view(-1, plan.head).index_select(0, plan.mixed).view(plan.tokens, -1)

    def backward(self, grad: torch.Tensor) -> torch.Tensor:
        plan = self.plan
        plan.padded[:-1] = grad
        d_mixed = plan.padded.view(-1, plan.head).index_select(0, plan.spread).to(plan.kind).view_as(self.q)
        d_q, d_k, d_v = plan.parts(plan.gradient)
        torch.bmm(self.weights.to(plan.kind), d_mixed, out=d_v)
        d_weights = torch.bmm(self.v, d_mixed.transpose(1, 2)).float()
        d_scores = torch._softmax_backward_data(d_weights, self.weights, 1, torch.float32).mul_(self.scale).to(plan.kind)
        torch.bmm(d_scores.transpose(1, 2), self.k, out=d_q)
        torch.bmm(d_scores, self.q, out=d_k)
        return plan.together(plan.turn(plan.gradient.float(), -1), grad.dtype)


class Gated:
    """``silu(gate) up`` (Shazeer 2020, SwiGLU); gate and up lie side by side, (rows, 2 x inner)."""

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        self.both, self.silu = both, F.silu(both.chunk(2, 1)[0])
        return self.silu * both.chunk(2, 1)[1]

    def backward(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradients, side by side too."""
        gate, up = self.both.chunk(2, 1)
        found = torch.empty_like(self.both)
        d_gate, d_up = found.chunk(2, 1)
        torch.mul(grad, self.silu, out=d_up)
        torch.ops.aten.silu_backward(grad.mul_(up), gate, grad_input=d_gate)
        return found


class Layer:
    """``x + o(attention(qkv(norm x)))``, then ``x + down(silu(gate y) up y)`` with ``y = norm x``.

    ``asked``: after attention only these matrix rows go on (in the last layer).
    """

    def __init__(self, layer: Any, plan: Plan, asked: torch.Tensor | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norms = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj], layer.frozen["qkv"])
        self.out = Product([attention.o_proj], layer.frozen["out"])
        self.gate_up = Product([mlp.gate_proj, mlp.up_proj], layer.frozen["gate_up"])
        self.down = Product([mlp.down_proj], layer.frozen["down"])
        self.attention, self.gated = Attention(plan, attention.scaling), Gated()
        self.products = (self.qkv, self.out, self.gate_up, self.down)
        self.asked, self.tokens, self.dtype = asked, plan.tokens, self.qkv.frozen.weight.dtype

    def trained(self) -> list[torch.nn.Parameter]:
        """The parts of its adapters that want a gradient."""
        return [part for product in self.products for pair in product.pairs for part in pair if part.requires_grad]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.attention.forward(self.qkv.forward(self.norms[0].forward(x)))
        if self.asked is not None:
            x, mixed = x[self.asked], mixed[self.asked]
        x = x + self.out.forward(mixed)
        y = self.norms[1].forward(x)
        return x + self.down.forward(self.gated.forward(self.gate_up.forward(y)))

    def backward(self, stream: torch.Tensor, lowest: bool) -> torch.Tensor:
        """The gradient of the layer's input from that of its output, which is overwritten. ``lowest``: nobody below asks for it."""
        d_both = self.gated.backward(self.down.backward(stream.to(self.dtype, copy=True)))
        self.norms[1].backward(self.gate_up.backward(d_both), stream)
        d_mixed = self.out.backward(stream.to(self.dtype, copy=True))
        if self.asked is not None:
            stream, d_mixed = (one.new_zeros((self.tokens, one.shape[1])).index_add_(0, self.asked, one) for one in (stream, d_mixed))
        d_heads = self.attention.backward(d_mixed)
        if lowest:
            self.qkv.note(d_heads)
        else:
            self.norms[0].backward(self.qkv.backward(d_heads), stream)
        return stream
