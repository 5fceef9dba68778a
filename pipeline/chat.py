"""Talking to what a run has made: its base model and its adapters, side by side.

Knows: how the service that serves them is found, started and ended, and how one question is put to several of them at once,
all in the same words. Loads no model (``chat_service`` does, in a process that outlives the console); keeps no history.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_file
from cafe_kit.task import Record, Task

from pipeline import chat_service, launch
from pipeline.answers import Answers, Column, Events
from pipeline.chat_service import Service
from pipeline.endpoint import Endpoint
from pipeline.generator import Scorer
from pipeline.home import home
from pipeline.settings import RunSettings, load
from server_store.rows import Run

TITLES = {"base": "Base", "synthetic-only": "Synthetic only", "federated": "Federated"}
_ROUND = "round-"


def state(run_id: str) -> Service:
    """The service of this run as it is now: starting, ready, failed (with ``error``), or stopped."""
    return chat_service.read(run_id)


def open(run_id: str) -> Chat:
    """Find the service of this run, or start it. Returns at once: ``Chat.service`` says how far it is.

    Two that open at once get one service. One that failed is started again, and so is one that serves from elsewhere
    than CAFE_OPENAI_BASE_URL says by now.

    Raises:
        StoreError: CAFE-655 no such run.
    """
    found = Chat(run_id)
    with _one_at_a_time():
        service = state(run_id)
        if service.state in ("starting", "ready") and service.other == chat_service.configured():
            return found
        _end(run_id, service)
        _spawn(run_id)
    return found


def close(run_id: str) -> None:
    """End the service, if there is one, and give its memory back."""
    with _one_at_a_time():
        _end(run_id, state(run_id))


def with_adapters(runs: Sequence[Run]) -> list[Run]:
    """The runs that have an adapter to try, in their order."""
    return [run for run in runs if chat_service.adapters_of(Path(run.folder))]


class Chat:
    """Questions to one run's models.

    Raises:
        StoreError: CAFE-655 no such run.
    """

    def __init__(self, run_id: str) -> None:
        with closing(launch.store()) as store:
            self.run = store.run(run_id)
        self.run_id = run_id

    @cached_property
    def settings(self) -> RunSettings:
        return load(Path(self.run.folder) / "config.yaml")

    @cached_property
    def task(self) -> Task:
        return self.settings.public_task()

    @cached_property
    def service(self) -> Service:
        """Read once: a page draws one moment."""
        return state(self.run_id)

    def names(self) -> list[str]:
        """Columns that can be asked for: "base", and what adapters the run has by now."""
        return ["base", *chat_service.adapters_of(Path(self.run.folder))]

    def columns(self, names: Sequence[str]) -> list[Column]:
        """The models behind these columns; an adapter that is not served yet is loaded.

        Raises:
            CafeError: CAFE-515 the service is not ready, 518 the adapter changed, 508 it cannot be served, 501-509.
        """
        return [self._column(name) for name in names]

    def ask(self, prompt: str, columns: Sequence[Column], *, seed: int, temperature: float, max_tokens: int, free: bool = False) -> Answers:
        """Put one question to all columns at once, in the same words, with the same seed.

        Args:
            prompt: the task's text; with ``free`` a message, which the model's chat template wraps.
            temperature: 0 is greedy.

        Raises:
            CafeError: CAFE-515 the service is not ready. What goes wrong in one column stands in its stream.
        """
        self._ready()
        self._touch()
        how = {"seed": seed, "temperature": temperature, "max_tokens": max_tokens, "stream_options": {"include_usage": True}}
        return Answers([(column, self._events(column, prompt, how, free)) for column in columns], self._touch)

    def label_scores(self, text: str, columns: Sequence[Column]) -> np.ndarray:
        """(labels, columns): what each model gives to each of the task's labels, as probabilities over the label list.

        Raises:
            CafeError: CAFE-517 not a classification task, or another server than ours; 515, 501-509.
        """
        self._ready()
        if not self.task.labels:
            raise CafeError("CAFE-517", "This task has no labels to score.", "Read the answers instead.")
        if self.service.other:
            raise CafeError("CAFE-517", "The operator's model server cannot score a list of labels.", "Unset CAFE_OPENAI_BASE_URL for it.")
        self._touch()
        scorer = Scorer(self.service.url, self.service.key, self._died)
        options = [self.task.completion(label) for label in self.task.labels]
        scores = [scorer.label_logprobs(column.model, [self.task.prompt(text)], options)[0] for column in columns]
        return np.stack([_softmax(row) for row in scores], axis=1)

    def example(self) -> Record:
        """Any record of the public test set."""
        return random.choice(self.settings.test_records())

    def template(self, free: bool) -> str:
        """How a question reads to the models, for people."""
        return "the base model's own chat template" if free else f"the task's prompt “{self.task.prompt('…')}”".replace("\n", " ⏎ ")

    def _column(self, name: str) -> Column:
        base = self._ready().base
        if name == "base":
            return Column("base", TITLES["base"], f"the base model {base['name']} alone", base["model"], base["sha256"])
        folder = chat_service.adapters_of(Path(self.run.folder)).get(name)
        if folder is None:
            raise CafeError("CAFE-503", f"This run has no adapter '{name}'.", "Choose one of those it has.")
        sha256 = hash_file(folder / chat_service.WEIGHTS)
        model = chat_service.model_name(name, sha256)
        if self.service.adapters.get(name) != sha256:  # not among those that the service loaded
            model, sha256 = chat_service.put_on(self.service.url, self.service.endpoint_key, name, folder)
        which = "the final adapter" if folder.name == "final" else f"the adapter of round {folder.name.removeprefix(_ROUND)}"
        which = "the adapter trained on the synthetic set alone" if name == "synthetic-only" else which
        return Column(name, title(name), f"{base['name']} with {which}", model, base["sha256"], sha256)

    def _events(self, column: Column, prompt: str, how: dict[str, Any], free: bool) -> Events:
        body: dict[str, Any] = {"model": column.model, **how}
        if free:
            return self._asking("/v1/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]})
        stop = "\n" if self.task.labels else f"\n{self.task.text_name}:"
        return self._asking("/v1/completions", body | {"prompt": self.task.prompt(prompt), "stop": [stop]})

    def _asking(self, path: str, body: dict[str, Any]) -> Events:
        server = Endpoint(self.service.url, self.service.endpoint_key, self._died)
        return lambda: server.stream(path, body)

    def _ready(self) -> Service:
        if self.service.state != "ready":
            raise CafeError("CAFE-515", f"The chat's model is not ready ({self.service.state}).", "Start it and wait until it is ready.")
        return self.service

    def _died(self) -> CafeError | None:
        error = state(self.run_id).error
        return CafeError(**error) if error else None

    def _touch(self) -> None:
        """Tell the service that somebody is here."""
        with suppress(OSError):  # it ends just now; the answers say so
            os.utime(chat_service.file_of(self.run_id))


def title(name: str) -> str:
    """A column's name as people read it."""
    return TITLES.get(name) or f"Federated, round {name.removeprefix(_ROUND)}"


def _softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max())
    return np.asarray(shifted / shifted.sum())


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (home("chat") / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _spawn(run_id: str) -> None:
    """A service in a session of its own: nothing that happens to the console touches it."""
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH", "")) if part)
    with chat_service.file_of(run_id).with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.chat_service", run_id],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )
    born = psutil.Process(process.pid).create_time()
    if state(run_id).pid != process.pid:  # else it was faster and has told more already
        chat_service.write(run_id, Service("starting", "Starting", time.time(), process.pid, born, chat_service.configured()))


def _end(run_id: str, service: Service) -> None:
    if service.alive:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(service.pid)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except psutil.TimeoutExpired:
                process.kill()
    chat_service.file_of(run_id).unlink(missing_ok=True)
