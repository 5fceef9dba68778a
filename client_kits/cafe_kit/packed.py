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

from cafe_kit.frozen import Frozen
from cafe_kit.layer import Layer, Norm
from cafe_kit.layout import Layout, Plan
from cafe_kit.lora import Product, plain

_KNOWN = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}
MAX_BLOCKS = 1 << 30  # bytes of all layers' weights that are kept in blocks too; the products of larger models gain little by it
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
    """Gather each layer's frozen weights as its pass wants them: those with the same input are laid end to end."""
    if not fits(model, 1):
        return
    layers = model.model.layers
    blocks = sum(weight.nbytes for weight in layers.parameters()) <= MAX_BLOCKS
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        parts = {
            "qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
            "out": [attention.o_proj],
            "gate_up": [mlp.gate_proj, mlp.up_proj],
            "down": [mlp.down_proj],
        }
        layer.frozen = {name: Frozen([plain(one) for one in part], blocks) for name, part in parts.items()}
    model.lm_head.frozen = Frozen([model.lm_head], blocks)


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
    def forward(ctx: Any, x: torch.Tensor, head: Frozen, targets: torch.Tensor) -> torch.Tensor:
        logprobs = head.times(x).float().log_softmax(-1)
        loss = -logprobs.gather(1, targets[:, None])[:, 0]
        if ctx.needs_input_grad[0]:
            error = logprobs.exp_()
            error[torch.arange(len(targets)), targets] -= 1.0  # in float32: where the target is nearly certain, little is left
            ctx.head, ctx.error = head, error.to(x.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return ctx.head.back(ctx.error).mul_(grad[:, None].to(ctx.error.dtype)), None, None
