"""From one adapter to the next: ``(state, arrivals) -> state``.

Knows arithmetic on what was released or is public. Does not clip, noise or gather. Synchronous federated averaging is
one schedule; others fit the same signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.adapters import Shapes, Tensors, unflatten


@dataclass(frozen=True)
class State:
    """The adapter after ``round`` federated rounds."""

    round: int
    adapter: Tensors


@dataclass(frozen=True)
class Arrivals:
    """What a round brings.

    strong_mean: (d,) the released mean of the strong sites' updates; with privacy the noised sum over a public
        divisor (a missing site counts as zero), without it FedAvg's mean over those who arrived; None if there is none.
    proxies: each (d,), the updates made on synthetic data, which is public already.
    proxy_weight: weight of all proxies together, as a multiple of all strong sites together.
    """

    strong_mean: np.ndarray | None
    proxies: Sequence[np.ndarray]
    proxy_weight: float


def fedavg(state: State, arrivals: Arrivals, trained: Shapes) -> State:
    """θ' = θ + (m_S + ρ·m_V) / (1 + ρ): the mean m_S of the strong sites and m_V of the proxies, ρ = ``proxy_weight``.

    A group that is not there leaves the other its whole weight. McMahan et al. 2017; proxies as in DESIGN §7.
    """
    groups: list[tuple[float, np.ndarray]] = []
    if arrivals.strong_mean is not None:
        groups.append((1.0, arrivals.strong_mean))
    if arrivals.proxies and (arrivals.proxy_weight > 0 or not groups):
        groups.append((arrivals.proxy_weight or 1.0, np.mean(np.stack(list(arrivals.proxies)), axis=0)))
    if not groups:
        return State(state.round + 1, state.adapter)
    total = sum(weight for weight, _ in groups)
    step = unflatten(np.sum([weight / total * mean for weight, mean in groups], axis=0), trained)
    moved = {name: (values + step[name]).astype(np.float32) if name in step else values for name, values in state.adapter.items()}
    return State(state.round + 1, moved)
