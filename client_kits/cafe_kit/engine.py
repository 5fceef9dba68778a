"""The models behind a site's answers, loaded once per process.

Knows: which function computes which kind of order and what it keeps in memory. Does not know orders, policies, budgets
or files of records. torch is imported only when there is something to train. Tests put a tiny engine in this place.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cafe_kit import launched
from cafe_kit.launched import Machines
from cafe_kit.orders import TrainParams, VoteParams
from cafe_kit.task import Record, Task

if TYPE_CHECKING:
    from cafe_kit.base_model import BaseModel
    from cafe_kit.embed import Embedder

Deltas = dict[str, dict[str, np.ndarray]]
Progress = Callable[[str, int, int], None]


class Engine(Protocol):
    """What a seat needs to have computed."""

    def vote(self, params: VoteParams, task: Task, records: Sequence[Record], candidates: Any, embedder: Path) -> np.ndarray:
        """Votes per candidate, (num_candidates,) int64: see ``cafe_kit.vote``. ``embedder``: its folder."""
        ...

    def train(
        self,
        params: TrainParams,
        task: Task,
        base_model: Path,
        adapter: Mapping[str, np.ndarray],
        shards: Mapping[str, Sequence[Record]],
        round: int,
        progress: Progress,
    ) -> Deltas:
        """Site to trained tensors' float32 deltas: see ``cafe_kit.train``. ``base_model``: its folder."""
        ...


class RealEngine:
    """The kit's own functions with one embedder and one base model resident.

    Args:
        threads: CPU threads of the embedder, and of training where the order leaves the choice (0: the library's own choice).
        machines: GPUs, perhaps of several nodes, that a training order may use together; None: this process alone.
    """

    def __init__(self, threads: int = 0, machines: Machines | None = None) -> None:
        self._threads, self._machines = threads, machines
        self._embedder: tuple[Path, Embedder] | None = None
        self._base_model: tuple[tuple[Path, str], BaseModel] | None = None

    def vote(self, params: VoteParams, task: Task, records: Sequence[Record], candidates: Any, embedder: Path) -> np.ndarray:
        from cafe_kit.embed import Embedder
        from cafe_kit.vote import vote

        if self._embedder is None or self._embedder[0] != embedder:
            self._embedder = None  # the old one goes before the new one comes
            self._embedder = embedder, Embedder(embedder, self._threads)
        return vote(params, task, records, candidates, self._embedder[1])

    def train(
        self,
        params: TrainParams,
        task: Task,
        base_model: Path,
        adapter: Mapping[str, np.ndarray],
        shards: Mapping[str, Sequence[Record]],
        round: int,
        progress: Progress,
    ) -> Deltas:
        if self._machines is not None:
            return launched.train(self._machines, params, task, base_model, adapter, shards, round, progress)
        import torch

        from cafe_kit.base_model import BaseModel
        from cafe_kit.train import train

        if params.threads or self._threads:
            torch.set_num_threads(params.threads or self._threads)
        wanted = base_model, params.dtype
        if self._base_model is None or self._base_model[0] != wanted:
            self._base_model = None
            self._base_model = wanted, BaseModel.load(base_model, params.dtype)
        return train(params, task, self._base_model[1], adapter, shards, progress, round)


def from_environment(threads: int = 0) -> Engine:
    """The kit's own, or the one that the launching environment names (tests): never one that an order names."""
    named = os.environ.get("CAFE_KIT_ENGINE")
    if not named:
        return RealEngine(threads, launched.from_environment())
    module, _, name = named.partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)()
    return engine
