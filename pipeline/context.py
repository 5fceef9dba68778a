"""What both stages hold in their hands while a run is carried: its settings, its durable steps, its sites and models.

Knows how a result is kept (blob first, row after), how the operator is told, and where a stop is allowed. Does not know
what a stage does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from cafe_kit.orders import Blob

from pipeline.doubts import Doubts
from pipeline.evaluation import Scores
from pipeline.keys import ServerKeys
from pipeline.models import ModelFolder
from pipeline.plan import Plan
from pipeline.privacy import PrivacyDoor
from pipeline.settings import RunSettings
from pipeline.sites import Sites
from server_store.blobs import Blobs
from server_store.rows import Metric, Step
from server_store.store import Store

Progress = Callable[[int, int], None]


class Completes(Protocol):
    """Text out of a model: ``pipeline.generator.Generator``."""

    def complete(
        self,
        prompts: list[str],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop: tuple[str, ...],
        seed: int,
        progress: Progress | None = None,
    ) -> list[str]: ...


class ServesAdapters(Scores, Protocol):
    """Scores, of the base model and of adapters: ``pipeline.generator.Scorer``."""

    def load_adapter(self, name: str, folder: Path) -> None: ...

    def unload_adapter(self, name: str) -> None: ...


class Models(Protocol):
    """The server's model process, started when first asked: ``pipeline.worker.LazyModels``."""

    @property
    def base(self) -> str: ...

    def generator(self) -> Completes: ...

    def scorer(self) -> ServesAdapters: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray: ...


class Stopped(Exception):
    """The operator asked for a stop, and here is a place for it."""


@dataclass
class RunContext:
    """One run in the hands of its worker. ``epoch`` is the worker's fence; ``command`` the operator's last wish."""

    run: str
    folder: Path
    home: Path
    settings: RunSettings
    plan: Plan
    store: Store
    epoch: int
    blobs: Blobs
    door: PrivacyDoor
    keys: ServerKeys
    sites: Sites
    models: Models
    base_model: ModelFolder
    embedder: ModelFolder | None
    command: Callable[[], str | None]
    site_keys: dict[str, str]  # site → public key, as shown first
    doubts: Doubts = field(default_factory=Doubts)
    _seconds: dict[str, float] = field(default_factory=dict)
    _at_sites: dict[str, tuple[str, float]] = field(default_factory=dict)

    # -- durable results --------------------------------------------------------------------------------------------

    def step(self, name: str) -> Step | None:
        """What an earlier passage kept under this name, or None."""
        return self.store.step(self.run, name)

    def keep(self, name: str, data: bytes | None = None, /, **facts: Any) -> Step:
        """Keep a result for good: the blob first, then the row that names it. The first writer of a name wins."""
        sha256 = None if data is None else self.blobs.put(data)
        return self.store.save_step(self.run, self.epoch, name, sha256, facts)

    def data(self, step: Step) -> bytes:
        """The bytes of a step that has some."""
        assert step.sha256 is not None
        return self.blobs.get(step.sha256)

    def blob(self, step: Step) -> tuple[Blob, Path]:
        """A step's bytes as the input of an order."""
        assert step.sha256 is not None
        path = self.blobs.path(step.sha256)
        return Blob(step.sha256, path.stat().st_size), path

    # -- what the operator sees -------------------------------------------------------------------------------------

    def say(self, text: str, *, level: str = "info", site: str | None = None) -> None:
        self.store.event(self.run, text, level=level, site=site)

    def warn_operator(self, text: str, site: str) -> None:
        """A warning for the operator alone; once, also where a round is asked again."""
        if not any(event.site == site and event.text == text for event in self.store.events(self.run)):
            self.store.event(self.run, text, level="warning", site=site, confidential=True)

    def progress(self, phase: str) -> Progress:
        """A callback that writes (done, of) of this phase, at most four times a second."""
        self.store.set_progress(self.run, phase, 0, 0)
        last = 0.0

        def tell(done: int, of: int) -> None:
            nonlocal last
            now = time.monotonic()
            if done >= of or now - last > 0.25:
                last = now
                self.store.set_progress(self.run, phase, done, of)

        return tell

    def at_site(self, site: str, doing: str, done: int = 0, of: int = 0) -> None:
        """What a site does now, written once a second at most while it does the same."""
        now, (last, at) = time.monotonic(), self._at_sites.get(site, ("", 0.0))
        if doing != last or now - at > 1.0:
            self._at_sites[site] = (doing, now)
            self.store.set_site_progress(self.run, site, doing, done, of)

    def metric(self, phase: str, round: int, name: str, value: float, n: int) -> None:
        self.store.metric(self.run, self.epoch, Metric(name, phase, round, value, n))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time of the block to the phase's seconds, which survive a restart (one row per worker)."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.monotonic() - begun
            self.metric(phase, self.epoch, "seconds", self._seconds[phase], 1)

    def may_stop(self, *, after_round: bool = False) -> None:
        """Raise Stopped if the operator wants it: "stop now" anywhere, "stop" after a round."""
        command = self.command()
        if command == "stop now" or (after_round and command == "stop"):
            raise Stopped
