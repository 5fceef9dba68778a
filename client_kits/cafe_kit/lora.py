"""Low-rank adapters on the linear layers of a frozen model.

Knows: how a LoRA pair acts on one linear layer, and PEFT's tensor names. Does not know tasks, records or optimisers.
PEFT's own layers cast every activation to float32 and go through several wrappers; this one does the same arithmetic in
the base model's type, on float32 master weights, and what it trains is loaded by PEFT (a test proves it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cafe_kit.errors import CafeError
from cafe_kit.frozen import Frozen

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
        return _Graph.apply(x, Product([self], Frozen([self.base])), self.A, self.B)


def plain(layer: nn.Linear | LoraLinear) -> nn.Linear:
    """The frozen layer, whether or not there is a place for a pair on it."""
    return layer.base if isinstance(layer, LoraLinear) else layer


class Product:
    """Linear layers with the same input as one product, with the pairs that they have: ``LoraLinear``'s formula, and its gradients.

    All A are stacked, all B lie in one matrix, each in its rows and columns, with alpha / r multiplied in:

        low = x Aᵀ       y = x Wᵀ + b + low Bᵀ
        dlow = dy B      dx = dy W + dlow A      dA = dlowᵀ x      dB = dyᵀ low

    ``frozen``: W and b of these layers.
    """

    def __init__(self, layers: Sequence[Any], frozen: Frozen) -> None:
        self.frozen = frozen
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._places: list[tuple[slice, slice, float]] = []  # rows of the weight, columns of B, alpha / r
        rows = ranks = 0
        for layer in layers:
            if isinstance(layer, LoraLinear) and layer.A is not None and layer.B is not None:
                self.pairs.append((layer.A, layer.B))
                self._places.append((slice(rows, rows + len(layer.B)), slice(ranks, ranks + len(layer.A)), layer.scale))
                ranks += len(layer.A)
            rows += plain(layer).out_features
        if self.pairs:
            self._stack(rows, ranks)

    @torch.no_grad()
    def _stack(self, rows: int, ranks: int) -> None:
        self.a = torch.cat([a for a, _ in self.pairs]).to(self.frozen.weight.dtype)
        b = self.pairs[0][1].new_zeros((rows, ranks))
        for (outputs, columns, scale), (_, one) in zip(self._places, self.pairs, strict=True):
            torch.mul(one, scale, out=b[outputs, columns])
        self.b = b.to(self.frozen.weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (rows, inputs)."""
        y = self.frozen.times(x)
        if self.pairs:
            self.x, self.low = x, F.linear(x, self.a)
            y.addmm_(self.low, self.b.t())
        return y

    def backward(self, grad: torch.Tensor) -> torch.Tensor:
        """The input's gradient."""
        self.note(grad)
        d_x = self.frozen.back(grad)
        return d_x.addmm_(self.d_low, self.a) if self.pairs else d_x

    def note(self, grad: torch.Tensor) -> None:
        """Instead of ``backward`` where the input needs no gradient: what ``gradients`` asks for."""
        if self.pairs:
            self.grad, self.d_low = grad, grad @ self.b

    def gradients(self) -> dict[torch.Tensor, torch.Tensor]:
        """Of every A and B that wants one, in float32. Asked for once all products are through: small operations in a row are faster."""
        found: dict[torch.Tensor, torch.Tensor] = {}
        if any(a.requires_grad for a, _ in self.pairs):
            d_a = (self.d_low.t() @ self.x).float()
            found.update((a, d_a[columns]) for (_, columns, _), (a, _) in zip(self._places, self.pairs, strict=True))
        if any(b.requires_grad for _, b in self.pairs):
            d_b = (self.grad.t() @ self.low).float()
            found.update((b, d_b[place[:2]] * place[2]) for place, (_, b) in zip(self._places, self.pairs, strict=True))
        return found


class _Graph(torch.autograd.Function):
    """One ``Product`` as a node of PyTorch's graph, for models that ``packed`` does not know; ``pairs`` only announce themselves."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, product: Product, *pairs: torch.Tensor) -> torch.Tensor:
        ctx.product, ctx.pairs, ctx.shape = product, pairs, x.shape
        return product.forward(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = ctx.product.backward(grad.reshape(-1, grad.shape[-1])).view(ctx.shape)
        else:
            ctx.product.note(grad.reshape(-1, grad.shape[-1]))
        found = ctx.product.gradients()
        return d_x, None, *(found.get(part) for part in ctx.pairs)


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
