"""The model behind our model server: one base, its adapters by name, one computation at a time.

Knows: the kit's base model, adapter folders and whose turn it is. Does not know HTTP, tasks or prompts' meaning.
Computations share the model by turns: a generation passes the turn on after each token if others wait, so that three
chats stream side by side and a chat does not wait for a long list. Each keeps its own attention cache meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cafe_kit.errors import CafeError

if TYPE_CHECKING:
    from cafe_kit.base_model import BaseModel

_ROWS = 64  # texts scored in one turn
_CHANGES_MEANING = ("use_dora", "use_rslora", "modules_to_save", "alpha_pattern", "rank_pattern", "fan_in_fan_out", "use_qalora")
OnPiece = Callable[[int, str], None]  # (row, the text that a new token adds)


class Stopped(Exception):
    """Whoever asked has gone; nobody reads the answer."""


class Job:
    """One computation: a place in the queue and a way to end it from another thread."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.stopped = False

    def stop(self) -> None:
        with self._turns.changed:
            self.stopped = True
            self._turns.changed.notify_all()


class Turns:
    """A lock that goes round: who asks again stands at the end of the queue."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._queue: deque[Job] = deque()

    def __len__(self) -> int:
        """Jobs that compute or wait."""
        return len(self._queue)

    @contextmanager
    def turn(self, job: Job) -> Iterator[None]:
        self._take(job)
        try:
            yield
        finally:
            self._give(job)

    def pass_on(self, job: Job) -> bool:
        """Let the others go first; False if there are none. Called by the job whose turn it is.

        Raises:
            Stopped: the job was stopped meanwhile; the turn is still held, ``turn`` gives it back.
        """
        if job.stopped:
            raise Stopped
        if len(self._queue) == 1:
            return False
        with self.changed:
            self._queue.rotate(-1)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self._queue[0] is job or job.stopped)
        if job.stopped:
            raise Stopped
        return True

    def _take(self, job: Job) -> None:
        with self.changed:
            self._queue.append(job)
            self.changed.wait_for(lambda: self._queue[0] is job or job.stopped)
            if job.stopped:
                self._queue.remove(job)
                self.changed.notify_all()
                raise Stopped

    def _give(self, job: Job) -> None:
        with self.changed:
            self._queue.remove(job)
            self.changed.notify_all()


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: PEFT's tensors by name, its ``lora_alpha``, the SHA-256 of its safetensors file."""

    tensors: dict[str, np.ndarray]
    alpha: float
    sha256: str


@dataclass(frozen=True)
class Text:
    """One generated text. ``finish``: "stop" (end of text or a stop text) or "length"."""

    text: str
    tokens: int
    finish: str


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn; ``temperature`` 0 is greedy, ``seed`` None any."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


class ServedModel:
    """One base model and the adapters that were loaded for it.

    Args:
        base: the kit's base model, which this object has for itself.
        name: what the base model is called.
        adapters: the folder below which adapters may be loaded, or None.
    """

    def __init__(self, base: BaseModel, name: str, adapters: Path | None) -> None:
        self.base, self.name = base, name
        self._folder = adapters.resolve() if adapters else None
        self._adapters: dict[str, Adapter | None] = {name: None}
        self._worn: Adapter | None = None  # a base model is loaded bare
        self.turns = Turns()

    def names(self) -> list[str]:
        return list(self._adapters)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Serve the PEFT folder under ``name``. The same again is no harm, other weights under the name are refused."""
        resolved = folder.resolve()
        if self._folder is None or not resolved.is_relative_to(self._folder):
            raise CafeError(
                "CAFE-508", "The adapter lies outside the folder from which adapters may be loaded.", "Use an adapter of this run."
            )
        adapter, held = read_adapter(resolved), self._adapters.get(name)
        if name in self._adapters and (held is None or (held.sha256, held.alpha) != (adapter.sha256, adapter.alpha)):
            raise CafeError("CAFE-508", f"The name '{name}' is taken by other weights.", "Choose another name, or unload the old adapter.")
        self._try_on(adapter)
        self._adapters[name] = adapter

    def unload_adapter(self, name: str) -> None:
        self.known(name)
        if name != self.name:
            del self._adapters[name]

    def known(self, name: str) -> Adapter | None:
        """The adapter of this name, None for the base. CAFE-503 if there is no such model."""
        if name not in self._adapters:
            raise CafeError("CAFE-503", f"There is no model '{name}'; there is {', '.join(self._adapters)}.", "Take one of these names.")
        return self._adapters[name]

    def chat_prompt(self, messages: list[dict[str, str]]) -> str:
        """The messages as the model's chat template has them, up to where the assistant begins to speak."""
        try:
            return str(self.base.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception:  # a template may refuse anything, in any way
            raise CafeError(
                "CAFE-509", "The model's chat template refused the messages, or it has none.", "Let user and assistant take turns."
            ) from None

    def check_length(self, prompts: Sequence[str], max_tokens: int) -> int:
        """All the prompts' tokens. CAFE-509 if one of them with its new tokens does not fit into the model's context."""
        lengths, room = [len(self.base.encode_prompt(prompt)) for prompt in prompts], self.base.max_positions
        if max(lengths) + max_tokens > room:
            raise CafeError(
                "CAFE-509",
                f"A prompt of {max(lengths)} tokens and {max_tokens} new ones do not fit into the model's {room}.",
                "Shorten the prompt, or ask for fewer new tokens.",
            )
        return sum(lengths)

    def generate(self, job: Job, model: str, prompts: Sequence[str], how: Sampling, on_piece: OnPiece | None = None) -> list[Text]:
        """One text for each prompt; ``on_piece`` is called in the calling thread."""
        tokens = [0] * len(prompts)

        def on_token(row: int, piece: str) -> None:
            tokens[row] += 1
            if on_piece:
                on_piece(row, piece)
            if self.turns.pass_on(job):
                self._wear(model)

        with self.turns.turn(job):
            self._wear(model)
            texts = self.base.generate(
                prompts,
                max_tokens=how.max_tokens,
                temperature=how.temperature,
                top_p=how.top_p,
                stop=how.stop,
                seed=how.seed,
                on_token=on_token,
            )
        return [Text(text, n, "length" if n >= how.max_tokens else "stop") for text, n in zip(texts, tokens, strict=True)]

    def label_logprobs(self, job: Job, model: str, prompts: Sequence[str], options: Sequence[str]) -> list[list[float]]:
        """(n, k): see ``BaseModel.label_logprobs``."""
        table: list[list[float]] = []
        for start in range(0, len(prompts), _ROWS):
            with self.turns.turn(job):
                self._wear(model)
                table += self.base.label_logprobs(prompts[start : start + _ROWS], options).tolist()
        return table

    def answer_losses(self, job: Job, model: str, pairs: Sequence[tuple[str, str]]) -> tuple[list[float], list[int]]:
        """Summed negative log-likelihood (nats) and tokens of each answer: see ``BaseModel.answer_losses``."""
        losses: list[float] = []
        tokens: list[int] = []
        for start in range(0, len(pairs), _ROWS):
            with self.turns.turn(job):
                self._wear(model)
                sums, counts = self.base.answer_losses(pairs[start : start + _ROWS])
            losses += sums.tolist()
            tokens += counts.tolist()
        return losses, tokens

    def _wear(self, model: str) -> None:
        """Put the adapter on; only by the job whose turn it is."""
        adapter = self.known(model)
        if adapter is not self._worn:
            self.base.set_adapter(adapter.tensors if adapter else None, adapter.alpha if adapter else 1.0)
            self._worn = adapter

    def _try_on(self, adapter: Adapter) -> None:
        """CAFE-508 if the adapter does not fit the base model. Leaves the base bare."""
        job = Job(self.turns)
        with self.turns.turn(job):
            self._worn = None
            try:
                self.base.set_adapter(adapter.tensors, adapter.alpha)
            except CafeError as error:
                raise CafeError("CAFE-508", error.message, error.hint) from None
            finally:
                self.base.set_adapter(None)


def read_adapter(folder: Path) -> Adapter:
    """A PEFT folder's plain LoRA tensors.

    Raises:
        CafeError: CAFE-508: not there, not safetensors, or a kind of adapter that plain LoRA cannot stand for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        raw = (folder / "adapter_model.safetensors").read_bytes()
        alpha = float(config["lora_alpha"])
        tensors = {name: tensor.float().numpy() for name, tensor in load(raw).items()}
        strange = [key for key in _CHANGES_MEANING if config.get(key)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        raise CafeError(
            "CAFE-508", "The adapter cannot be read.", "It must be a PEFT folder with adapter_config.json and adapter_model.safetensors."
        ) from None
    if strange:
        raise CafeError("CAFE-508", f"The adapter is no plain LoRA ({', '.join(strange)}).", "Train and export it as plain LoRA.")
    return Adapter(tensors, alpha, hashlib.sha256(raw).hexdigest())
