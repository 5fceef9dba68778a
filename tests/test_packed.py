"""The training pass that is written out by hand, against plain autograd and against transformers' own pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cafe_kit import packed
from cafe_kit.base_model import BaseModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.tiny_llama import write_adapter, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def peft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "one", seed=1, alpha=16.0)


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    return BaseModel.load(folder, "float32")


tokens = st.integers(3, 60)
pairs = st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=12), st.lists(tokens, min_size=1, max_size=5)), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(pairs=pairs, shared=st.lists(tokens, max_size=4))
def test_the_pass_without_padding_has_the_values_and_gradients_of_transformers(
    base: BaseModel, peft_folder: Path, pairs: list[tuple[list[int], list[int]]], shared: list[int]
) -> None:
    assert_equal_passes(base, load_file(peft_folder / "adapter_model.safetensors"), [(shared + prompt, answer) for prompt, answer in pairs])


def assert_equal_passes(base: BaseModel, adapter: dict[str, np.ndarray], rows: list[tuple[list[int], list[int]]]) -> None:
    def both() -> tuple[np.ndarray, dict[str, torch.Tensor]]:
        base.set_adapter(adapter, alpha=1.0)
        parameters = base.adapters.parameters()
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        nll = base.answer_nll(rows)
        (nll * torch.linspace(1, 2, len(nll))).sum().backward()
        return nll.detach().numpy(), {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}

    values, gradients = both()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "fits", lambda *_: False)
        expected_values, expected = both()
    np.testing.assert_allclose(values, expected_values, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3)


def test_the_pass_without_padding_knows_biases_and_any_target(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
    model = Qwen2ForCausalLM(Qwen2Config(**size, num_attention_heads=4, num_key_value_heads=2, eos_token_id=1, pad_token_id=2))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(tmp_path)
    for file in folder.glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    chance, adapter = np.random.default_rng(0), {}
    for name in ("layers.0.self_attn.k_proj", "layers.1.self_attn.o_proj", "layers.1.mlp.gate_proj", "layers.1.self_attn.v_proj"):
        linear = model.get_submodule(f"model.{name}")
        for half, shape in (("A", (3, linear.in_features)), ("B", (linear.out_features, 3))):
            adapter[f"base_model.model.model.{name}.lora_{half}.weight"] = chance.normal(size=shape).astype(np.float32)
    base = BaseModel.load(tmp_path, "float32")
    assert packed.fits(base.model, 8)
    assert_equal_passes(base, adapter, [([3, 4, 5], [6, 7]), ([3, 4, 10, 11, 12, 13], [14])])


def llama_like(config: type[PretrainedConfig], groups: int, **more: Any) -> torch.nn.Module:
    """A random three-layer model, its biases too."""
    torch.manual_seed(0)
    size = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "max_position_embeddings": 128}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = AutoModelForCausalLM.from_config(
        config(**size, **tokens, num_attention_heads=4, num_key_value_heads=groups, initializer_range=0.15, **more)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.3)
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return model


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROWS = [([3, 4, 5, 6], [6, 7]), ([3, 4, 10, 11, 12, 13], [14]), ([3, 4, 5, 9], [20, 21, 22, 1]), ([3, 4] + [30, 31, 32] * 17, [8, 1])]


@pytest.mark.parametrize(
    ("config", "groups", "more"),
    [
        (LlamaConfig, 2, {}),
        (LlamaConfig, 4, {"attention_bias": True, "mlp_bias": True}),
        (LlamaConfig, 1, {"head_dim": 16, "tie_word_embeddings": True}),
        (MistralConfig, 2, {"sliding_window": None}),
        (Qwen2Config, 2, {}),
        (Qwen2Config, 4, {}),
    ],
)
@pytest.mark.parametrize("targets", [LINEAR, ("q_proj", "v_proj"), ("down_proj",)])
@pytest.mark.parametrize("halves", ["AB", "B"])
def test_gradients_are_those_of_plain_autograd(
    folder: Path,
    tmp_path: Path,
    config: type[PretrainedConfig],
    groups: int,
    more: dict[str, object],
    targets: tuple[str, ...],
    halves: str,
) -> None:
    llama_like(config, groups, **more).save_pretrained(tmp_path)
    for file in folder.glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), LoraConfig(r=3, lora_alpha=6, target_modules=list(targets))
    )
    chance, adapter, plain = np.random.default_rng(0), {}, {}
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            plain[name.replace(".default", "")] = parameter.requires_grad_(f"lora_{halves[-1]}" in name or halves == "AB")
            adapter[name.replace(".default", "")] = chance.normal(0, 0.1, parameter.shape).astype(np.float32)
            parameter.data.copy_(torch.from_numpy(adapter[name.replace(".default", "")]))
    losses = [-peft(torch.tensor([p + a])).logits[0].log_softmax(-1)[len(p) - 1 + i, t] for p, a in ROWS for i, t in enumerate(a)]
    torch.stack(losses).mean().backward()

    base = BaseModel.load(tmp_path, "float32")
    base.set_adapter(adapter, alpha=6.0)
    ours = base.adapters.parameters()
    for name, parameter in ours.items():
        parameter.requires_grad_(plain[name].requires_grad)
    assert packed.fits(base.model, 60)
    nll = base.answer_nll(ROWS)
    nll.mean().backward()
    torch.testing.assert_close(nll, torch.stack(losses), rtol=1e-4, atol=1e-5)
    assert {name for name, parameter in ours.items() if parameter.grad is not None} == {n for n, p in plain.items() if p.requires_grad}
    for name, parameter in ours.items():
        if parameter.grad is not None:
            assert torch.dist(parameter.grad, plain[name].grad) <= 2e-5 * plain[name].grad.norm(), name


def test_another_architecture_trains_through_transformers(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(tmp_path)
    for file in folder.glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    base = BaseModel.load(tmp_path, "float32")
    assert not packed.fits(base.model, 8)
    rows = [([3, 4, 5], [6, 7]), ([8, 9, 10, 11, 12, 13], [14])]
    a = torch.randn(4, 32).numpy()
    base.set_adapter(
        {
            f"base_model.model.model.layers.0.self_attn.v_proj.lora_{half}.weight": tensor
            for half, tensor in (("A", a), ("B", np.zeros((16, 4), np.float32)))
        }
    )
    trained = next(p for name, p in base.adapters.parameters().items() if "lora_B" in name).requires_grad_(True)
    nll = base.answer_nll(rows)
    expected = []
    for prompt, answer in rows:
        logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected += [-logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]
    torch.testing.assert_close(nll, torch.stack(expected), rtol=1e-4, atol=1e-4)
    nll.sum().backward()
    weight = model.model.layers[0].self_attn.v_proj.weight
    torch.stack(expected).sum().backward()
    torch.testing.assert_close(trained.grad, 16.0 / 4 * weight.grad @ torch.from_numpy(a).T, rtol=1e-3, atol=1e-4)
