"""Turns the model files that a package index carries into the folders that we run.

Knows two conversions: a GGUF file into a bf16 safetensors folder, and a sentence encoder into one ONNX graph that ends
in the sentence's unit vector. Runs as a process of its own (``python -m pipeline.conversion gguf|embedder FROM TO``),
so that whoever asked never loads torch. Does not know where files come from or where the result is kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MAX_TOKENS = 128  # what all-MiniLM-L6-v2 was trained with
SENTENCES = (
    "I need to move my appointment.",
    "Please send the results of my blood test to Dr. Okafor, she asked for them last week and again today.",
    "Danke!",
)


def gguf_to_folder(gguf: Path, out: Path) -> None:
    """Unpack quantised weights once into a folder that ``from_pretrained`` reads: bf16 safetensors, tokenizer, chat template.

    Deterministic: the unpacking is element-wise, and what depends on the machine or the version is taken out of the JSON.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    plain = GgufConfig(dequantize=True)  # else transformers calls the model quantised and refuses to save it
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=plain)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    _drop(out / "config.json", "_model_name_or_path", "_name_or_path", "transformers_version")
    _drop(out / "generation_config.json", "_from_model_config", "transformers_version", "output_attentions", "output_hidden_states")
    _drop(out / "tokenizer_config.json", "is_local", "local_files_only")


def encoder_to_onnx(encoder: Path, out: Path) -> None:
    """Export a BERT-like encoder with mean pooling and L2 normalisation as one graph.

    The graph takes ``input_ids`` and ``attention_mask`` (batch, length) int64 and gives ``sentence`` (batch, dim)
    float32 of unit length. Beside it ``tokenizer.json`` (without padding or truncation: whoever batches decides) and
    ``embedder.json``. The result is compared with torch before anyone may use it.

    Raises:
        ValueError: graph and torch differ by 1e-4 or more.
    """
    import onnx
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    out.mkdir(parents=True)
    tokenizer.save(str(out / "tokenizer.json"))

    model = _sentence_encoder(encoder)
    tokenizer.enable_padding(pad_id=0)
    inputs = _batch(tokenizer, SENTENCES)
    dynamic = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=MAX_TOKENS)} for name in inputs}
    program = torch.onnx.export(model, kwargs=inputs, dynamo=True, dynamic_shapes=dynamic, output_names=["sentence"], verbose=False)
    assert program is not None
    graph = program.model_proto
    _forget_origin(graph)
    onnx.save(graph, str(out / "model.onnx"))
    (out / "embedder.json").write_text(json.dumps({"dim": int(model.dim), "max_tokens": MAX_TOKENS}) + "\n")
    _compare(model, tokenizer, out / "model.onnx")


def _sentence_encoder(folder: Path) -> Any:
    """The encoder as a torch module that ends in the unit sentence vector."""
    import torch
    from transformers import AutoModel

    class SentenceEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, add_pooling_layer=False).eval()
            self.dim = self.encoder.config.hidden_size

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (batch, length, dim)
            weight = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    return SentenceEncoder().eval()


def _batch(tokenizer: Any, sentences: tuple[str, ...]) -> dict[str, Any]:
    import torch

    encoded = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": torch.tensor([one.ids for one in encoded]),
        "attention_mask": torch.tensor([one.attention_mask for one in encoded]),
    }


def _compare(model: Any, tokenizer: Any, graph: Path) -> None:
    """Other batch sizes and lengths than those of the export, so that a frozen shape is noticed."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    for sentences in (SENTENCES, SENTENCES[1:], SENTENCES[2:], (SENTENCES[1] * 4, "")):
        tokenizer.enable_truncation(MAX_TOKENS)
        inputs = _batch(tokenizer, sentences)
        with torch.inference_mode():
            expected = model(**inputs).numpy()
        (given,) = session.run(["sentence"], {name: value.numpy() for name, value in inputs.items()})
        worst = float(abs(given - expected).max())
        if not worst < 1e-4 or given.dtype != "float32":
            raise ValueError(f"the exported graph differs from torch by {worst:.1e}")


def _forget_origin(graph: Any) -> None:
    """The exporter writes stack traces with this machine's paths into the graph; they would travel to every site."""
    parts = [graph, graph.graph, *graph.functions, *graph.graph.node, *graph.graph.value_info, *graph.graph.initializer]
    parts += [*graph.graph.input, *graph.graph.output, *(node for function in graph.functions for node in function.node)]
    for part in parts:
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        if hasattr(part, "doc_string"):
            part.ClearField("doc_string")


def _drop(path: Path, *keys: str) -> None:
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in keys}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    {"gguf": gguf_to_folder, "embedder": encoder_to_onnx}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
