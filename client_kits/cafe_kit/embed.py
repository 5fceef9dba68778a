"""Sentence embeddings on a CPU, without torch: the server's ONNX export of the embedder, run by onnxruntime.

Knows: a folder with ``model.onnx`` (inputs ``input_ids`` and ``attention_mask``, int64, (batch, length); output
``sentence``, float32, (batch, dim), mean-pooled and of unit length), ``tokenizer.json`` and perhaps ``embedder.json``.
Does not know what the texts are. Embeddings of private texts live in this process's memory and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cafe_kit.errors import CafeError

TOKENS_PER_BATCH = 1024  # padded; more is not faster on a CPU and takes memory (1024: 250 MB in all, 8192: 490 MB)
CACHED_TEXTS = 250_000  # about 1.8 kB each
_TEXTS_AT_ONCE = 8192  # tokenised together; bounds the memory for token ids


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class EmbedderConfig:
    """``embedder.json``; all-MiniLM-L6-v2 where there is none. ``pooling`` says what the graph does, "mean"."""

    dim: int = 384
    max_tokens: int = 128
    pooling: Literal["mean"] = "mean"


class Embedder:
    """Texts to unit vectors. What was embedded once is remembered by the SHA-256 of the text.

    Args:
        folder: of the embedder, see the module's docstring.
        threads: of onnxruntime; 0 is one for each core of the machine.

    Raises:
        CafeError: CAFE-444 (no embedder in the folder), 445 (its files cannot be read), 446 (another kind of model),
            447 (onnxruntime or tokenizers is not installed).
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self.config = _config(folder)
        self._tokenizer = _tokenizer(folder, self.config.max_tokens)
        self._session = _session(folder, threads, self.config.dim)
        self._cache: dict[bytes, np.ndarray] = {}

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.config.dim

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings, (len(texts), dim) float32, each of unit length. Texts are cut after ``max_tokens`` tokens.

        Raises:
            CafeError: CAFE-448 (the model gives vectors that are not finite or not of unit length).
        """
        vectors = np.empty((len(texts), self.dim), np.float32)
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        new: dict[bytes, list[int]] = {}  # a text that comes twice is embedded once
        for row, key in enumerate(keys):
            if key in self._cache:
                vectors[row] = self._cache[key]
            else:
                new.setdefault(key, []).append(row)
        fresh = list(new.items())
        for start in range(0, len(fresh), _TEXTS_AT_ONCE):
            part = fresh[start : start + _TEXTS_AT_ONCE]
            for (key, rows), vector in zip(part, self._run([texts[rows[0]] for _, rows in part]), strict=True):
                vectors[rows] = vector
                if len(self._cache) < CACHED_TEXTS:
                    self._cache[key] = vector.copy()
        return vectors

    def _run(self, texts: list[str]) -> np.ndarray:
        encoded = self._tokenizer.encode_batch(texts)
        vectors = np.empty((len(texts), self.dim), np.float32)
        for rows in _batches([len(item.ids) for item in encoded]):
            ids = np.zeros((len(rows), max(len(encoded[row].ids) for row in rows)), np.int64)
            mask = np.zeros_like(ids)  # what stands behind a text is masked, so that the id there does not matter
            for line, row in enumerate(rows):
                ids[line, : len(encoded[row].ids)] = encoded[row].ids
                mask[line, : len(encoded[row].ids)] = 1
            (vectors[rows],) = self._session.run(["sentence"], {"input_ids": ids, "attention_mask": mask})
        if not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3):  # false for NaN, too
            raise CafeError("CAFE-448", "The embedder gives vectors that are not finite or not of unit length.",
                            "Its files may be damaged or of another model; fetch the embedder again.")  # fmt: skip
        return vectors


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers by falling length, so many at once that the padded batch stays within ``TOKENS_PER_BATCH``."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        size = max(1, TOKENS_PER_BATCH // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _config(folder: Path) -> EmbedderConfig:
    missing = [name for name in ("model.onnx", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        raise CafeError("CAFE-444", f"The folder '{folder.name}' holds no embedder: {missing[0]} is missing.", "Fetch the embedder again.")
    try:
        path = folder / "embedder.json"
        return TypeAdapter(EmbedderConfig).validate_json(path.read_bytes()) if path.exists() else EmbedderConfig()
    except (ValidationError, OSError):
        raise _damaged("embedder.json") from None


def _tokenizer(folder: Path, max_tokens: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise _not_installed("tokenizers") from None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # tokenizers raises plain Exception
        raise _damaged("tokenizer.json") from None
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def _session(folder: Path, threads: int, dim: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise _not_installed("onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # sites share their cores
    try:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's own classes are not public
        raise _damaged("model.onnx") from None
    inputs = {node.name: node.type for node in session.get_inputs()}
    outputs = {node.name: (node.type, node.shape[-1:]) for node in session.get_outputs()}
    if inputs != {"input_ids": "tensor(int64)", "attention_mask": "tensor(int64)"} or outputs != {"sentence": ("tensor(float)", [dim])}:
        raise CafeError("CAFE-446", f"The file model.onnx is not a sentence embedder with vectors of length {dim}.",
                        "Take the embedder that the server exported.")  # fmt: skip
    return session


def _damaged(name: str) -> CafeError:
    return CafeError("CAFE-445", f"The embedder's file {name} cannot be read.", "It may be damaged; fetch the embedder again.")


def _not_installed(package: str) -> CafeError:
    return CafeError("CAFE-447", f"The package {package} is not installed here.", "Install the kit with: pip install 'cafe-kit[light]'")
