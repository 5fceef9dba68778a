"""Frozen weights, multiplied by as fast as the CPU can.

Knows: PyTorch's products on a CPU. Does not know adapters, layers or models. oneDNN multiplies block by block, and lays a weight out
in blocks anew in every call; for the hundred rows of a training step that takes as long as a fifth of the product. A weight that is
trained through is therefore kept in blocks as well, once for each direction. The products are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

_OPERATIONS: Any = torch.ops.mkldnn  # what PyTorch's own compiler calls for this; it has no public name


class Frozen:
    """Linear layers with the same input as one: ``y = x Wᵀ + b``, and the input's gradient ``dx = dy W``.

    ``weight`` (outputs, inputs) and ``bias`` (outputs,): the layers' own; of several, laid end to end, of which each layer's weight
    becomes a view, so that no memory is added. ``blocks``: whether the weight may be kept twice more.
    """

    def __init__(self, layers: Sequence[torch.nn.Linear], blocks: bool = False) -> None:
        weights, biases = [layer.weight.data for layer in layers], [layer.bias for layer in layers]
        self.weight: torch.Tensor = weights[0] if len(layers) == 1 else torch.cat(weights)
        self.bias: torch.Tensor | None = None
        if biases[0] is not None:
            self.bias = biases[0].data if len(layers) == 1 else torch.cat([bias.data for bias in biases])
        if len(layers) > 1:
            for layer, rows in zip(layers, self.weight.split([len(weight) for weight in weights]), strict=True):
                layer.weight.data = rows
        self._blocks = blocks and has_blocks(self.weight)
        self._forth: torch.Tensor | None = None
        self._back: torch.Tensor | None = None

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x (rows, inputs)."""
        if self._forth is None:
            return F.linear(x, self.weight, self.bias)
        return _product(x, self._forth, self.bias)

    def back(self, grad: torch.Tensor) -> torch.Tensor:
        """grad (rows, outputs). Who asks for it trains, and will ask again."""
        if not self._blocks:
            return grad @ self.weight
        if self._back is None:
            self._forth, self._back = _in_blocks(self.weight), _in_blocks(self.weight.t().contiguous())
        return _product(grad, self._back, None)


def has_blocks(weight: torch.Tensor) -> bool:
    """Whether this machine multiplies by such a weight in blocks."""
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and all(hasattr(_OPERATIONS, name) for name in names)


@torch.no_grad()
def _in_blocks(weight: torch.Tensor) -> torch.Tensor:
    return _OPERATIONS._reorder_linear_weight(weight)


def _product(x: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return _OPERATIONS._linear_pointwise(x, blocks, bias, "none", [], "")
