"""A model server without a model, for tests of a whole run: words from hashes, scores from hashes. Numpy only.

The worker takes it through ``CAFE_MODELS=tests.tiny_models:TinyModels``. Equal questions get equal answers, so that a
disturbed run can be compared with an undisturbed one to the byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cafe_kit.inputs import hash_file

_WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "glade",
    "heron",
    "islet",
    "jetty",
    "knoll",
    "larch",
    "meadow",
    "north",
    "ocean",
    "pebble",
    "quartz",
    "river",
    "slate",
    "tulip",
]


def _numbers(*parts: object) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big"))


class TinyModels:
    """Stands where ``pipeline.generator.ModelServer`` does."""

    model = "tiny"

    def __init__(self, folder: Path, *, adapters: Path, dtype: str) -> None:
        self._loaded: dict[str, str] = {}

    def __enter__(self) -> TinyModels:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def generator(self) -> TinyModels:
        return self

    def scorer(self) -> TinyModels:
        return self

    def complete(self, prompts: Sequence[str], *, seed: int, progress: Any = None, **_: object) -> list[str]:
        texts = [" " + " ".join(_numbers(prompt, seed, i).choice(_WORDS, size=6)) for i, prompt in enumerate(prompts)]
        if prompts and "###" in prompts[0]:  # instruction data: a text and its answer
            texts = [f"{text}?\nOutput: {text.split()[0]} and {text.split()[1]}" for text in texts]
        if progress:
            progress(len(prompts), len(prompts))
        return texts

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """All alike, so that no text is nearer to another class than to its own."""
        return np.ones((len(texts), 4)) / 2

    def load_adapter(self, name: str, folder: Path) -> None:
        self._loaded[name] = hash_file(folder / "adapter_model.safetensors")

    def unload_adapter(self, name: str) -> None:
        del self._loaded[name]

    def label_logprobs(self, model: str, prompts: Sequence[str], options: Sequence[str]) -> np.ndarray:
        return np.stack([_numbers(self._loaded.get(model), prompt).uniform(-5, 0, len(options)) for prompt in prompts])

    def answer_losses(self, model: str, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        return _numbers(self._loaded.get(model)).uniform(1, 2, len(pairs)), np.ones(len(pairs), dtype=np.int64)


def tiny_base(folder: Path) -> Path:
    """A folder that looks like a base model: two layers' projections of four numbers, and a configuration."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    shapes = {f"model.layers.{n}.self_attn.{m}.weight": np.zeros((4, 4), np.float32) for n in (0, 1) for m in ("q_proj", "v_proj")}
    save_file(shapes, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def tiny_embedder(folder: Path) -> Path:
    """A folder that looks like an embedder."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"tiny")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "embedder.json").write_text(json.dumps({"dim": 4, "max_tokens": 16}))
    return folder
