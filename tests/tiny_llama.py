"""A language model that is made in a second: a random two-layer Llama over single characters, and LoRA adapters for it.

It never ends a text by itself, so that a test knows how long its texts are.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, LAYERS = 64, 2
SPECIAL = ["<s>", "</s>", "<pad>"]
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)  # fmt: skip


def write_model(folder: Path, seed: int = 0) -> Path:
    """Config, weights, tokenizer and chat template as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = SPECIAL + list(string.ascii_letters + string.digits + " .,:;!?'-_\n")
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<pad>"))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=CHAT)
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.15, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # the first dimension is the same for every token, and the special tokens are unlikely along it
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[: len(SPECIAL)] = 0.0
        model.lm_head.weight[: len(SPECIAL), 0] = -50.0
        model.lm_head.weight[len(SPECIAL) :, 0] = 0.0
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def write_adapter(folder: Path, seed: int, alpha: float = 64.0, size: tuple[int, int] = (LAYERS, HIDDEN), **config: object) -> Path:
    """A PEFT folder: a random pair of rank 4 on every query projection, strong enough to change what the model says.

    ``size``: layers and hidden size of another Llama whose query projections are square.
    """
    (layers, hidden), rank = size, 4
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = random.normal(size=(rank, hidden)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = random.normal(size=(hidden, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    text = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj"], "inference_mode": True, **config}
    (folder / "adapter_config.json").write_text(json.dumps(text))
    return folder
