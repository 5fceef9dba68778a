"""Weights kept in blocks: the plain product, to the bit, in both directions."""

from __future__ import annotations

import pytest
import torch
from cafe_kit import frozen
from cafe_kit.frozen import Frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

blocks = pytest.mark.skipif(not frozen.has_blocks(torch.zeros(1, dtype=torch.bfloat16)), reason="this torch multiplies in no blocks")


def layers(outputs: list[int], inputs: int, bias: bool, dtype: torch.dtype = torch.bfloat16) -> list[nn.Linear]:
    torch.manual_seed(sum(outputs) + inputs)
    return [nn.Linear(inputs, size, bias=bias, dtype=dtype).requires_grad_(False) for size in outputs]


@blocks
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 96),
    outputs=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    bias=st.booleans(),
)
def test_blocks_change_no_bit(rows: int, inputs: int, outputs: list[int], bias: bool) -> None:
    plain, fast = Frozen(layers(outputs, inputs, bias)), Frozen(layers(outputs, inputs, bias), blocks=True)
    x, grad = torch.randn(rows, inputs).bfloat16(), torch.randn(rows, sum(outputs)).bfloat16()
    assert torch.equal(fast.back(grad), plain.back(grad))
    assert fast._forth is not None and plain._forth is None
    assert torch.equal(fast.times(x), plain.times(x))


@blocks
def test_a_weight_is_kept_in_blocks_only_once_somebody_trains() -> None:
    one = Frozen(layers([64], 64, False), blocks=True)
    one.times(torch.randn(3, 64).bfloat16())
    assert one._forth is None
    one.back(torch.randn(3, 64).bfloat16())
    assert one._forth is not None


def test_other_types_and_other_builds_of_torch_multiply_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    single = Frozen(layers([8], 4, True, torch.float32), blocks=True)
    grad = torch.randn(2, 8)
    assert torch.equal(single.back(grad), grad @ single.weight) and single._forth is None
    monkeypatch.setattr(frozen, "_OPERATIONS", object())
    assert not frozen.has_blocks(torch.zeros(1, dtype=torch.bfloat16))
    without = Frozen(layers([8], 4, True), blocks=True)
    assert torch.equal(without.back(grad.bfloat16()), grad.bfloat16() @ without.weight)


def test_layers_with_one_input_share_one_memory() -> None:
    some = layers([5, 3], 4, True, torch.float32)
    expected = torch.cat([one(torch.ones(1, 4)) for one in some], dim=1)
    one = Frozen(some)
    torch.testing.assert_close(one.times(torch.ones(1, 4)), expected)
    one.weight.mul_(2)
    assert torch.equal(some[1].weight, one.weight[5:])
