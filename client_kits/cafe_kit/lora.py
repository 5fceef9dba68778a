"""Low-rank adapters on the linear layers of a frozen model.

Knows: how a LoRA pair acts on one linear layer, and PEFT's tensor names. Does not know tasks, records or optimisers.
PEFT's own layers cast every activation to float32 and go through several wrappers; this one does the same arithmetic in
the base model's type, on float32 master weights, and what it trains is loaded by PEFT (a test proves it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cafe_kit.errors import CafeError

PREFIX = "base_model.model."
_SUFFIX_A, _SUFFIX_B = ".lora_A.weight", ".lora_B.weight"


class LoraLinear(nn.Module):
    """``y = x Wᵀ + b + (alpha / r) (x Aᵀ) Bᵀ`` (Hu et al. 2021, equation 3); without a pair, the plain layer.

    ``A`` (r, in) and ``B`` (out, r) are float32 masters; the product is taken in the type of ``x``.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.A: nn.Parameter | None = None
        self.B: nn.Parameter | None = None
        self.scale = 0.0

    def set_pair(self, a: np.ndarray, b: np.ndarray, alpha: float) -> None:
        """Put a pair on this layer; copies, without gradients until somebody asks for them."""
        rank, inputs = a.shape
        if inputs != self.base.in_features or b.shape != (self.base.out_features, rank):
            raise CafeError(
                "CAFE-427",
                "The adapter's tensors do not have the shape of the base model's layers.",
                "Use the adapter with the base model that it was trained on.",
            )
        device = self.base.weight.device
        self.A = nn.Parameter(torch.tensor(a, dtype=torch.float32, device=device), requires_grad=False)
        self.B = nn.Parameter(torch.tensor(b, dtype=torch.float32, device=device), requires_grad=False)
        self.scale = alpha / rank

    def clear(self) -> None:
        """Back to the plain layer."""
        self.A = self.B = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.A is None or self.B is None:
            return self.base(x)
        return _Product.apply(x, self.base.weight, self.base.bias, [slice(0, self.base.out_features)], [self.scale], self.A, self.B)


def stacked_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layers: Sequence[nn.Module]) -> torch.Tensor:
    """What the layers make of the same ``x``, side by side, by one product; ``weight`` and ``bias`` are theirs, stacked."""
    outputs, scales, pairs, start = [], [], [], 0
    for layer in layers:
        base = layer.base if isinstance(layer, LoraLinear) else layer
        stop = start + len(base.weight)  # type: ignore[arg-type]
        if isinstance(layer, LoraLinear) and layer.A is not None and layer.B is not None:
            outputs.append(slice(start, stop))
            scales.append(layer.scale)
            pairs += [layer.A, layer.B]
        start = stop
    return _Product.apply(x, weight, bias, outputs, scales, *pairs) if pairs else F.linear(x, weight, bias)


class _Product(torch.autograd.Function):
    """``LoraLinear``'s formula for one or several layers with the same input, and its gradients.

    ``outputs`` and ``scales``: of each adapted layer, its rows of the stacked weight, and alpha / r; ``pairs``: its A and B. All
    A are stacked, all B lie in one matrix, each in its rows and columns. The weight is frozen and has no gradient; A and B get
    theirs in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        outputs: Sequence[slice],
        scales: Sequence[float],
        *pairs: torch.Tensor,
    ) -> torch.Tensor:
        ranks = [len(one) for one in pairs[::2]]
        rank = sum(ranks)
        a, b = torch.cat([one.to(x.dtype) for one in pairs[::2]]), weight.new_zeros((len(weight), rank))
        columns = [slice(end - width, end) for end, width in zip(accumulate(ranks), ranks, strict=True)]
        for rows, column, scale, one in zip(outputs, columns, scales, pairs[1::2], strict=True):
            torch.mul(one, scale, out=b[rows, column])
        ctx.places = list(zip(outputs, columns, scales, strict=True))
        y, low = F.linear(x, weight, bias), F.linear(x, a)
        y.view(-1, len(b)).addmm_(low.view(-1, rank), b.t())
        ctx.save_for_backward(x, weight, a, b, low)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight, a, b, low = ctx.saved_tensors
        grad = grad.contiguous()
        flat, d_low, d_x = grad.view(-1, len(b)), grad @ b, None
        d_low = d_low.view(-1, len(a))
        if ctx.needs_input_grad[0]:
            d_x = grad @ weight
            d_x.view(-1, x.shape[-1]).addmm_(d_low, a)
        d_a = (d_low.t() @ x.reshape(-1, x.shape[-1])).float() if any(ctx.needs_input_grad[5::2]) else None
        d_b = (low.view(-1, len(a)).t() @ flat).float() if any(ctx.needs_input_grad[6::2]) else None
        gradients: list[torch.Tensor | None] = []
        for rows, column, scale in ctx.places:
            gradients.append(None if d_a is None else d_a[column])
            gradients.append(None if d_b is None else d_b[column, rows].t().mul(scale))
        return d_x, None, None, None, None, *gradients


def module_pairs(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """PEFT tensor names to ``{module path: (A, B)}``.

    Raises:
        CafeError: CAFE-426 for a name that is no LoRA tensor, or half a pair.
    """
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        for suffix in (_SUFFIX_A, _SUFFIX_B):
            if name.startswith(PREFIX) and name.endswith(suffix):
                halves.setdefault(name[len(PREFIX) : -len(suffix)], {})[suffix] = tensor
                break
        else:
            raise _bad_names()
    if any(len(pair) != 2 for pair in halves.values()):
        raise _bad_names()
    return {module: (pair[_SUFFIX_A], pair[_SUFFIX_B]) for module, pair in halves.items()}


def _bad_names() -> CafeError:
    return CafeError("CAFE-426", "The adapter holds tensors that are no LoRA pairs.", "Export it with PEFT as a plain LoRA adapter.")


class Adapters:
    """All LoRA layers of one model. Layers are wrapped when an adapter first names them and stay wrapped."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers: dict[str, LoraLinear] = {}

    def set(self, tensors: Mapping[str, np.ndarray] | None, alpha: float) -> None:
        """Replace the whole adapter; ``None`` is the plain base model.

        Raises:
            CafeError: CAFE-426, CAFE-427 (does not fit the base model); the plain base remains.
        """
        self._clear()
        try:
            for module, (a, b) in module_pairs(tensors or {}).items():
                self._wrapped(module).set_pair(a, b, alpha)
        except CafeError:
            self._clear()
            raise

    def _clear(self) -> None:
        for layer in self._layers.values():
            layer.clear()

    def parameters(self) -> dict[str, nn.Parameter]:
        """PEFT name to master weight, of the adapter that is set."""
        found = {}
        for module, layer in self._layers.items():
            if layer.A is not None and layer.B is not None:
                found[f"{PREFIX}{module}{_SUFFIX_A}"] = layer.A
                found[f"{PREFIX}{module}{_SUFFIX_B}"] = layer.B
        return found

    def _wrapped(self, module: str) -> LoraLinear:
        if module not in self._layers:
            parent_path, _, leaf = module.rpartition(".")
            try:
                parent = self._model.get_submodule(parent_path)
                linear = parent.get_submodule(leaf)
            except AttributeError:
                linear = None
            if not isinstance(linear, nn.Linear):
                raise CafeError(
                    "CAFE-427",
                    f"The base model has no linear layer '{module}' for the adapter.",
                    "Choose target modules that this base model has, such as q_proj and v_proj.",
                )
            self._layers[module] = LoraLinear(linear)
            setattr(parent, leaf, self._layers[module])
        return self._layers[module]
