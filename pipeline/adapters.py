"""Adapter tensors and PEFT folders, without torch.

Knows names, shapes, first values and files of a LoRA adapter. Does not know how one is trained or averaged.
Names are PEFT's: ``base_model.model.<module>.lora_A.weight`` (rank, in) and ``….lora_B.weight`` (out, rank), float32.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cafe_kit.errors import CafeError
from safetensors import safe_open
from safetensors.numpy import load, save

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, np.ndarray]


def schema(base_model: Path, target_modules: Sequence[str], rank: int) -> Shapes:
    """Name → shape of every adapter tensor, in sorted order, from the headers of the base model's safetensors files.

    Raises:
        CafeError: CAFE-411 when the base model has no such linear layer.
    """
    shapes: Shapes = {}
    for file in sorted(base_model.glob("*.safetensors")):
        with safe_open(str(file), framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                module = name.removesuffix(".weight")
                if name.endswith(".weight") and module.rsplit(".", 1)[-1] in target_modules:
                    out_features, in_features = tensors.get_slice(name).get_shape()
                    shapes[f"base_model.model.{module}.lora_A.weight"] = (rank, in_features)
                    shapes[f"base_model.model.{module}.lora_B.weight"] = (out_features, rank)
    missing = [target for target in target_modules if not any(f".{target}." in name for name in shapes)]
    if missing:
        raise CafeError("CAFE-411", f"The base model has no linear layer called {missing[0]!r}.", "Mend stage2.target_modules.")
    return dict(sorted(shapes.items()))


def trained(shapes: Shapes, ffa: bool) -> Shapes:
    """The tensors that are trained and sent: all of them, or B alone (FFA)."""
    return {name: shape for name, shape in shapes.items() if not ffa or ".lora_B." in name}


def parameters(shapes: Shapes) -> int:
    """Number of coordinates."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def first_adapter(shapes: Shapes, ffa: bool, seed: int) -> Tensors:
    """The adapter before any training: B zero; A uniform in ±1/√in (as PEFT), or with orthonormal rows from a public seed.

    With orthonormal rows ‖ΔB·A‖ = ‖ΔB‖, so that a clip of B bounds the change of the weights (algorithm notes §4.3).
    """
    tensors: Tensors = {}
    for name, shape in shapes.items():
        if ".lora_B." in name:
            tensors[name] = np.zeros(shape, dtype=np.float32)
            continue
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        if ffa:
            q, r = np.linalg.qr(rng.normal(size=(shape[1], shape[0])))
            tensors[name] = np.ascontiguousarray((q * np.sign(np.diag(r))).T, dtype=np.float32)
        else:
            bound = 1.0 / np.sqrt(shape[1])
            tensors[name] = rng.uniform(-bound, bound, size=shape).astype(np.float32)
    return tensors


def unflatten(vector: np.ndarray, shapes: Shapes) -> Tensors:
    """The inverse of laying all tensors of ``shapes`` end to end in sorted order."""
    tensors: Tensors = {}
    at = 0
    for name, shape in sorted(shapes.items()):
        size = int(np.prod(shape))
        tensors[name] = vector[at : at + size].reshape(shape)
        at += size
    return tensors


def flatten(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """All tensors end to end in sorted order, as float64."""
    return np.concatenate([np.asarray(tensors[name], dtype=np.float64).ravel() for name in sorted(tensors)])


def to_bytes(tensors: Tensors) -> bytes:
    """Canonical safetensors bytes."""
    return save({name: np.ascontiguousarray(tensors[name], dtype=np.float32) for name in sorted(tensors)})


def from_bytes(data: bytes) -> Tensors:
    """The tensors of our own stored adapter."""
    return dict(load(data))


def save_peft(folder: Path, tensors: Tensors, *, base: str, rank: int, alpha: float, target_modules: Sequence[str], card: str) -> None:
    """A folder that PEFT loads: ``adapter_config.json``, ``adapter_model.safetensors``, ``README.md`` (the card).

    The folder appears whole or not at all. ``base`` is a name or hub id, never a path of this machine.
    """
    name, _, revision = base.partition("@") if "/" in base else (base, "", "")  # a hub id may name its revision
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision or None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    (beside / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (beside / "adapter_model.safetensors").write_bytes(to_bytes(tensors))
    (beside / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
