"""The frozen base model and its adapter, resident in one process.

Knows: weights, tokens, log-probabilities. Does not know tasks, records, privacy or where folders come from. It is loaded
once; adapters are swapped in place. Rows of tokens are padded on the right, so that the causal order alone keeps
padding out of sight and no attention mask is needed; logits are made only at the positions that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cafe_kit import attention, decode, packed
from cafe_kit.errors import CafeError
from cafe_kit.label_tree import LabelTree
from cafe_kit.lora import Adapters

SCORED_TOKENS = 2048  # padded tokens in one pass without gradients
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class BaseModel:
    """A causal language model with frozen weights, its tokenizer, and at most one LoRA adapter.

    ``model`` and ``tokenizer`` are transformers' own; ``dtype`` is the type that the weights have here.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.dtype, self.device = model.dtype, model.device
        self.eos = _first(tokenizer.eos_token_id, model.config.eos_token_id)
        self.pad = _first(tokenizer.pad_token_id, self.eos)
        self.adapters = Adapters(model)
        attention.use(model)
        packed.prepare(model)
        self._positions: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._gather)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        more = self.model.generation_config.eos_token_id
        return frozenset([self.eos, *(more if isinstance(more, list) else [more] if more is not None else [])])

    @classmethod
    def load(cls, folder: Path, dtype: str = "bfloat16", threads: int = 0) -> BaseModel:
        """Load a model from a folder: safetensors only, nothing fetched, no code of the folder run.

        Args:
            folder: config, weights and tokenizer as transformers saves them.
            dtype: "bfloat16" or "float32"; bfloat16 becomes float32 on a CPU without instructions for it.
            threads: CPU threads of this process from now on; 0 leaves them as they are.

        Raises:
            CafeError: CAFE-421 to CAFE-425: what is missing in the folder.
        """
        if threads:
            torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        _check_weights(folder)
        model = _load_model(folder, _supported(dtype))
        return cls(model.to("cuda") if torch.cuda.is_available() else model, _load_tokenizer(folder))

    @property
    def max_positions(self) -> int:
        """Longest row of tokens that the model was made for."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2**20)

    def set_adapter(self, tensors: Mapping[str, np.ndarray] | None, alpha: float = 16.0) -> None:
        """Replace the adapter. PEFT names, float32; ``None`` is the plain base. See ``Adapters.set``."""
        self.adapters.set(tensors, alpha)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, with the beginning-of-text token where the model wants one; never empty."""
        bos = self.tokenizer.bos_token
        ids = self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
        while ids and ids[-1] == self.eos and not text.endswith(self.tokenizer.eos_token or "\0"):
            ids = ids[:-1]  # some tokenizers close every text
        return ids or [_first(self.tokenizer.bos_token_id, self.eos)]

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of what follows a prompt, tokenized by itself, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def answer_nll(self, pairs: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
        """Negative log-likelihood of every answer token, (all answer tokens,) float32, in the order of the pairs.

        ``pairs``: token ids of prompt and answer; the answer's last token is predicted and not fed.
        """
        rows = [prompt + answer[:-1] for prompt, answer in pairs]
        wanted = [(n, len(prompt) - 1 + i) for n, (prompt, answer) in enumerate(pairs) for i in range(len(answer))]
        width = max(map(len, rows))
        targets = torch.tensor([token for _, answer in pairs for token in answer], device=self.device)
        if packed.fits(self.model, width):
            layout = packed.Layout(rows, min(len(prompt) for prompt, _ in pairs) - 1)
            asked = torch.tensor([layout.at(row, position) for row, position in wanted])
            hidden = packed.hidden_states(self.model, layout, asked)
            return packed.TokenLoss.apply(hidden, self.model.lm_head.frozen, targets)
        logits = self.logits_at(self._padded(rows, width), [row * width + position for row, position in wanted])
        return F.cross_entropy(logits.float(), targets, reduction="none")

    def answer_losses(self, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Summed negative log-likelihood of answer + end-of-text after each prompt, and its number of tokens; both (n,)."""
        ids = [(self.encode_prompt(prompt), [*self.encode_answer(answer), self.eos]) for prompt, answer in pairs]
        sums, counts = np.zeros(len(ids)), np.array([len(answer) for _, answer in ids], dtype=np.int64)
        with torch.inference_mode():
            for group in by_length([len(p) + len(a) for p, a in ids], SCORED_TOKENS):
                nll = self.answer_nll([ids[i] for i in group]).split([len(ids[i][1]) for i in group])
                sums[group] = [float(part.sum()) for part in nll]
        return sums, counts

    def label_logprobs(self, prompts: Sequence[str], options: Sequence[str]) -> np.ndarray:
        """Total log-probability of each option's text after each prompt, (prompts, options) float64.

        All options hang on one computation of the prompt, as a tree (see ``LabelTree``).
        """
        tree = LabelTree([self.encode_answer(option) for option in options])
        ids = [self.encode_prompt(prompt) for prompt in prompts]
        scores = np.zeros((len(ids), len(options)))
        with torch.inference_mode():
            for group in by_length([len(row) + tree.size for row in ids], SCORED_TOKENS):
                scores[group] = tree.score(self, [ids[i] for i in group])
        return scores

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop: Sequence[str],
        seed: int | None,
        on_token: Callable[[int, str], None] | None = None,
    ) -> list[str]:
        """Continue each prompt; see ``decode.generate``."""
        sampling = decode.Sampling(max_tokens, temperature, top_p, tuple(stop), seed)
        return decode.generate(self, prompts, sampling, on_token)

    def logits_at(self, ids: torch.Tensor, positions: Sequence[int], **inputs: Any) -> torch.Tensor:
        """Logits (positions, vocabulary) at flat positions of ``ids`` (rows, width), after the model's own scaling."""
        with self.only(positions):
            return self.model(input_ids=ids, use_cache=False, **inputs).logits.squeeze(0)

    def _padded(self, rows: Sequence[list[int]], width: int) -> torch.Tensor:
        return torch.tensor([row + [self.pad] * (width - len(row)) for row in rows], device=self.device)

    @contextmanager
    def only(self, positions: Sequence[int]) -> Iterator[None]:
        """Within, the model makes logits (1, positions, vocabulary) at these flat positions of its input only."""
        self._positions = torch.tensor(positions, device=self.device)
        try:
            yield
        finally:
            self._positions = None

    def _gather(self, module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        """Before the output layer: keep the asked positions, so that no other logits are made."""
        if self._positions is None:
            return None
        return (args[0].reshape(-1, args[0].shape[-1])[self._positions].unsqueeze(0),)


def by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in groups of similar length, longest first, at most ``budget`` padded tokens (at least one row) each."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and lengths[group[0]] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _first(*candidates: Any) -> int:
    """The first token id that is set; a list of ids counts as its first."""
    for candidate in candidates:
        if isinstance(candidate, list) and candidate:
            return int(candidate[0])
        if isinstance(candidate, int):
            return candidate
    raise CafeError("CAFE-424", "The base model's tokenizer has no end-of-text token.", "Set eos_token in its tokenizer_config.json.")


def _supported(dtype: str) -> torch.dtype:
    fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if dtype == "bfloat16" and fast else torch.float32


def _check_weights(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise CafeError(
            "CAFE-421",
            f"There is no base model in the folder '{folder.name}' (no config.json).",
            "Name a folder in the form that transformers saves.",
        )
    if any(folder.glob("*.safetensors")):
        return
    if any(next(folder.glob(pattern), None) for pattern in _PICKLED):
        raise CafeError(
            "CAFE-423",
            "The base model's weights are pickled; loading them could run foreign code.",
            "Convert them once to safetensors on a machine that you can lose, for example with save_pretrained.",
        )
    raise CafeError("CAFE-425", "The base model's folder holds no weights (no .safetensors file).", "Fetch the model again.")


def _load_model(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    wrong = CafeError(
        "CAFE-422",
        "The base model is not a causal language model that transformers knows without foreign code.",
        "Choose a text generation model, such as smollm2-135m-instruct.",
    )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:
        raise wrong from None
    names = config.architectures or []
    if names and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        raise wrong
    damaged = CafeError("CAFE-425", "The base model's weights are incomplete, or a file is damaged.", "Fetch the model again.")
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception:
        raise damaged from None
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        raise damaged
    return model


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:
        raise CafeError("CAFE-424", "The base model's folder has no tokenizer that can be read.", "Fetch the model again.") from None
