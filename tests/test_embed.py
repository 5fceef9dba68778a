"""Sentence embeddings without torch: batches, cut, cache and refusals on a tiny real graph; sense on the real model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
from cafe_kit import embed as module
from cafe_kit.embed import Embedder
from cafe_kit.errors import CafeError
from cafe_kit.orders import VoteParams
from cafe_kit.task import Record, Task
from cafe_kit.vote import vote
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

WORDS = {"[PAD]": 0, "[UNK]": 1, "up": 2, "right": 3, "down": 4}
TABLE = np.array([[9, 9], [1, 1], [0, 1], [1, 0], [0, -1]], np.float32)  # what a word adds; [PAD] must never count


def graph(table: np.ndarray, output: str = "sentence") -> onnx.ModelProto:
    """Mean of the words' rows of ``table`` over the mask, of unit length."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["words", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "length"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], [output], axis=1, p=2),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "attention_mask")]
    constants = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2]), "last"),
                 numpy_helper.from_array(np.array([1]), "length")]  # fmt: skip
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", table.shape[1]])]
    model = helper.make_model(helper.make_graph(nodes, "tiny", inputs, outputs, constants), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An embedder of two dimensions and three words, with the fixed padding that MiniLM's tokenizer brings, too."""
    onnx.save(graph(TABLE), str(tmp_path / "model.onnx"))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "embedder.json").write_text(json.dumps({"dim": 2, "max_tokens": 4}))
    return tmp_path


def test_golden_vectors_in_the_order_of_the_texts(folder: Path) -> None:
    vectors = Embedder(folder, threads=1).embed(["up", "up right up right", "right", "down down", "up up right"])
    half, third = 0.5**0.5, 0.2**0.5
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, [[0, 1], [half, half], [1, 0], [0, -1], [third, 2 * third]], atol=1e-6)


def test_no_texts(folder: Path) -> None:
    assert Embedder(folder).embed([]).shape == (0, 2)


def test_a_text_is_cut_after_the_given_tokens(folder: Path) -> None:
    vectors = Embedder(folder).embed(["up up up up", "up up up up right right right right"])
    assert np.array_equal(vectors[0], vectors[1])


def test_a_text_is_embedded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(folder)
    asked: list[str] = []
    run = embedder._run

    def listening(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return run(texts)

    monkeypatch.setattr(embedder, "_run", listening)
    first = embedder.embed(["up", "right", "up"])
    first_copy = first.copy()
    first[:] = 7  # what a caller does to its array does not reach the cache
    assert np.array_equal(embedder.embed(["down", "up", "right"])[1:], first_copy[:2])
    assert asked == ["up", "right", "down"]


def test_a_full_cache_takes_no_more_and_the_vectors_stay_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_TEXTS", 1)
    embedder = Embedder(folder)
    for _ in range(2):
        assert np.array_equal(embedder.embed(["up", "right"]), [[0, 1], [1, 0]])
    assert len(embedder._cache) == 1


def test_batches_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(["up", "right", "down", "other"][i % 4] for i in range(n % 4 + 1)) + f" x{n}" for n in range(50)]
    whole = Embedder(folder).embed(texts)
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 5)
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 7)
    assert np.allclose(Embedder(folder).embed(texts), whole, atol=1e-6)


@given(st.lists(st.integers(1, 128), max_size=300))
@settings(max_examples=50)
def test_every_row_is_in_one_batch_within_the_budget(lengths: Sequence[int]) -> None:
    batches = list(module._batches(lengths))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[row] for row in batch) <= module.TOKENS_PER_BATCH for batch in batches)


def refused(folder: Path, call: Any = lambda embedder: None) -> str:
    with pytest.raises(CafeError) as caught:
        call(Embedder(folder))
    return caught.value.code


def test_folders_that_are_no_embedder(folder: Path) -> None:
    assert refused(folder / "nowhere") == "CAFE-444"
    for name in ("embedder.json", "tokenizer.json", "model.onnx"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(b"{" + whole[:40])
        assert refused(folder) == "CAFE-445", name
        (folder / name).write_bytes(whole)
    for config in ({"dim": 2, "pooling": "cls"}, {"dim": "2"}, {"size": 2}):
        (folder / "embedder.json").write_text(json.dumps(config))
        assert refused(folder) == "CAFE-445"
    (folder / "embedder.json").unlink()  # then it must be one like MiniLM
    assert refused(folder) == "CAFE-446"
    (folder / "tokenizer.json").unlink()
    assert refused(folder) == "CAFE-444"


def test_another_output_is_another_kind_of_model(folder: Path) -> None:
    onnx.save(graph(TABLE, output="logits"), str(folder / "model.onnx"))
    assert refused(folder) == "CAFE-446"


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_vectors_that_are_none_are_refused_and_not_remembered(folder: Path, value: float) -> None:
    table = TABLE.copy()
    table[WORDS["up"]] = value
    onnx.save(graph(table), str(folder / "model.onnx"))
    embedder = Embedder(folder)
    for _ in range(2):
        with pytest.raises(CafeError) as caught:
            embedder.embed(["right", "up"])
        assert caught.value.code == "CAFE-448"


# --- the real model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm(real_models: Any) -> Embedder:
    return Embedder(real_models.embedder.path, threads=1)


@pytest.mark.heavy
def test_meaning_decides_who_gets_the_vote(minilm: Embedder) -> None:
    task = Task(kind="classification", description="", labels=("message",))
    private = "I would like to move my appointment", "could I come another day", "the invoice is wrong", "you charged me twice"
    public = "Please reschedule my visit.", "There is a mistake in my bill.", "My dog likes the beach."
    records, candidates = ([Record(text, "message") for text in texts] for texts in (private, public))
    assert vote(VoteParams(), task, records, candidates, minilm).tolist() == [2, 2, 0]


@pytest.mark.heavy
def test_a_vector_does_not_depend_on_its_neighbours(minilm: Embedder, real_models: Any) -> None:
    texts = ["short", "a somewhat longer sentence about nothing", "word " * 100, ""]
    together = minilm.embed(texts)
    assert together.shape == (4, minilm.dim) and np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-4)
    alone = Embedder(real_models.embedder.path, threads=1)
    for text, vector in zip(texts, together, strict=True):
        assert np.allclose(alone.embed([text])[0], vector, atol=1e-5)
