"""One training pass over rows of tokens without padding, for Llama-like models on a CPU.

Knows: the arithmetic of one architecture (Llama, Mistral, Qwen2: RMSNorm, rotary positions, grouped heads, SwiGLU). Does not
know losses, records or adapters. All rows lie end to end in one matrix; the
beginning that they share is laid down once; only attention sees rows; after the last attention only the asked positions go
on. The stream between the layers is float32, which in bfloat16 models rounds less than transformers' own pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from cafe_kit.layer import Layer, Norm
from cafe_kit.layout import Layout, Plan
from cafe_kit.lora import Product

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


def hidden_states(model: Any, layout: Layout, asked: torch.Tensor) -> torch.Tensor:
    """The output layer's input at the asked matrix rows, (asked, hidden), with gradients to the adapters."""
    trunk, config = model.model, model.config
    with torch.no_grad():
        x = F.embedding(layout.ids, trunk.embed_tokens.weight)
        cos, sin = (table[0] for table in trunk.rotary_emb(x.float(), torch.arange(layout.width)[None]))  # (width, head)
        plan = Plan(layout, config.num_attention_heads, config.num_key_value_heads, cos, sin, x.dtype)
        last = trunk.layers[config.num_hidden_layers - 1]
        layers = [Layer(layer, plan, asked if layer is last else None) for layer in trunk.layers[: config.num_hidden_layers]]
    trained = [part for layer in layers for part in layer.trained()] if torch.is_grad_enabled() else []
    return _Pass.apply(x.float(), layers, Norm(trunk.norm), *trained)


class _Pass(torch.autograd.Function):
    """All layers, in turn, as one node of PyTorch's graph; from the lowest one that is trained on, they remember what they saw.

    ``trained``, the parts of adapters that the layers found in the model, only tell the graph of themselves. In inference mode each
    of the many small operations is a little faster.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layers: list[Layer], norm: Norm, *trained: torch.Tensor) -> torch.Tensor:
        ctx.layers, ctx.norm, ctx.trained = [], norm, trained
        with torch.inference_mode():
            while layers:  # nobody else may hold on to a layer that is to forget
                layer = layers.pop(0)
                x = layer.forward(x)
                if trained and (ctx.layers or layer.trained()):
                    ctx.layers.append(layer)
                del layer
            y = norm.forward(x)
        return y.clone()  # outside, an ordinary tensor

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        stream = torch.zeros_like(ctx.norm.x)
        ctx.norm.backward(grad, stream)
        products: list[Product] = []
        with torch.inference_mode():
            while ctx.layers:
                layer = ctx.layers.pop()
                stream = layer.backward(stream, lowest=not ctx.layers)
                products += layer.products
        found = {part: gradient for product in products for part, gradient in product.gradients().items()}
        return None, None, None, *(found[one] for one in ctx.trained)


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
