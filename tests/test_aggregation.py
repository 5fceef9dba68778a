"""From one adapter to the next, on numbers that can be checked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.adapters import first_adapter, flatten, from_bytes, to_bytes, trained, unflatten
from pipeline.aggregation import Arrivals, State, fedavg

SHAPES = {"m.lora_A.weight": (2, 4), "m.lora_B.weight": (3, 2)}


def state():
    return State(0, first_adapter(SHAPES, ffa=False, seed=1))


def test_golden_mean_of_strong_and_proxies():
    d = 14
    after = fedavg(state(), Arrivals(np.full(d, 3.0), [np.full(d, 1.0), np.full(d, 2.0)], 0.5), SHAPES)
    moved = flatten(after.adapter) - flatten(state().adapter)
    np.testing.assert_allclose(moved, (3.0 + 0.5 * 1.5) / 1.5, rtol=1e-6)
    assert after.round == 1


def test_a_group_that_is_not_there_leaves_the_other_its_weight():
    d = 14
    only_strong = fedavg(state(), Arrivals(np.full(d, 3.0), [], 2.0), SHAPES)
    only_proxies = fedavg(state(), Arrivals(None, [np.full(d, 1.0)], 0.0), SHAPES)
    nobody = fedavg(state(), Arrivals(None, [], 1.0), SHAPES)
    np.testing.assert_allclose(flatten(only_strong.adapter) - flatten(state().adapter), 3.0, rtol=1e-6)
    np.testing.assert_allclose(flatten(only_proxies.adapter) - flatten(state().adapter), 1.0, rtol=1e-6)
    assert (flatten(nobody.adapter) == flatten(state().adapter)).all() and nobody.round == 1


def test_weight_zero_silences_the_proxies():
    after = fedavg(state(), Arrivals(np.full(14, 3.0), [np.full(14, 1.0)], 0.0), SHAPES)
    np.testing.assert_allclose(flatten(after.adapter) - flatten(state().adapter), 3.0, rtol=1e-6)


def test_ffa_moves_b_alone_and_a_is_orthonormal():
    shapes = trained(SHAPES, ffa=True)
    assert list(shapes) == ["m.lora_B.weight"]
    before = State(0, first_adapter(SHAPES, ffa=True, seed=1))
    a = before.adapter["m.lora_A.weight"]
    np.testing.assert_allclose(a @ a.T, np.eye(2), atol=1e-6)
    after = fedavg(before, Arrivals(np.ones(6), [], 1.0), shapes)
    assert (after.adapter["m.lora_A.weight"] == a).all() and (after.adapter["m.lora_B.weight"] == 1).all()


def test_the_first_adapter_is_a_function_of_the_seed():
    assert to_bytes(first_adapter(SHAPES, True, 3)) == to_bytes(first_adapter(SHAPES, True, 3))
    assert to_bytes(first_adapter(SHAPES, True, 3)) != to_bytes(first_adapter(SHAPES, True, 4))


@given(st.lists(st.floats(-10, 10, width=32), min_size=14, max_size=14))
def test_flatten_and_bytes_round_trip(values):
    tensors = unflatten(np.array(values), SHAPES)
    assert (flatten(tensors) == values).all()
    back = from_bytes(to_bytes(tensors))
    assert flatten(back) == pytest.approx(flatten(tensors))
