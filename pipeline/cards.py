"""The cards of an adapter and of a synthetic set, and the checks before an adapter may leave the house.

Knows how a card reads: front matter as the model hub wants it, then sections for people. Takes every figure from the
``catalogue`` and computes none. Words that came from people stand in code spans, so that nothing in them is markup.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError
from cafe_kit.task import Record

from pipeline import accounting
from pipeline.catalogue import Adapter, Base, Made, file_sha256
from pipeline.markdown import code, fenced, table
from pipeline.settings import RunSettings

TAGS = ["lora", "federated", "synthetic-data", "differential-privacy"]
_MISSING = "[More Information Needed]"
_PATH = re.compile(r"(?<![\w/.:-])(?:/(?:home|root|tmp|Users)/\w|[A-Z]:\\\w)")


def adapter(made: Made, which: Adapter, promise: dict[str, Any]) -> str:
    """The card of one adapter. ``promise``: what ``catalogue.promise`` says of the run."""
    body = (
        f"# LoRA adapter of {code(made.settings.name)}, {_place(made, which)}",
        _use(made, which),
        _training(made),
        _lineage(made, which),
        f"## Privacy\n\n{privacy(promise, made.settings)}",
        _evaluation(made, which),
        _load(made),
        _hashes(made, which),
    )
    return _front_matter(made.base) + "\n\n".join(body) + "\n"


def dataset(settings: RunSettings, run_id: str, synthetic: Sequence[Record], files: Sequence[Path], promise: dict[str, Any]) -> str:
    """The card of a synthetic set whose ``files`` are written already."""
    from huggingface_hub import DatasetCardData

    classification = settings.task.kind == "classification"
    data = DatasetCardData(
        task_categories=["text-classification" if classification else "text-generation"],
        tags=["synthetic", "differential-privacy", "federated"],
        configs=[{"config_name": "default", "data_files": "train.parquet"}],
    )
    generator = settings.stage1.generator.model if settings.stage1.generator else Path(settings.base_model).name
    counts = Counter(record.answer for record in synthetic).values()
    spread = f", {min(counts)} to {max(counts)} per label over {len(counts)} labels" if classification and counts else ""
    hashes = "\n".join(f"- `{file.name}`: sha256 `{file_sha256(file)}`" for file in files)
    return f"""---
{data.to_yaml()}
---
# Synthetic set of {code(settings.name)}

{len(synthetic)} texts{spread}. What they are: {code(settings.task.description)}.

## How it was made

The language model {code(generator)} wrote candidates. {len(settings.names("cpu"))} sites without a GPU voted for those nearest to
their own records ({settings.stage1.rounds} votes); the winners were kept and varied. The operator's public invented examples are
among the texts. No record of a site is in the set, and no text says which site wanted it. Run `{run_id}`.

## Use and limits

For training and for trying out methods. A small generator writes texts with errors and repeats itself; shares of labels are the
operator's quotas and say nothing about the sites.

## Privacy

- Guarantee: {told(promise, "stage1")}.
{_accounting(promise, "stage1")}- Not covered: what the generator has seen in its own training; label list and examples (public).

## Files

{hashes}
"""


def check(folder: Path, card: str | None = None) -> list[str]:
    """What keeps this adapter's folder from being handed over, in sentences; empty when nothing does.

    ``card``: the card that will travel, where it is not the folder's own README.md.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        card = (folder / "README.md").read_text(encoding="utf-8") if card is None else card
    except (OSError, ValueError):
        return ["The folder has no readable adapter_config.json and README.md."]
    base = config.get("base_model_name_or_path")
    found = {
        "The weights (adapter_model.safetensors) are missing.": not (folder / "adapter_model.safetensors").is_file(),
        f"The card is not filled in ({_MISSING}).": _MISSING in card,
        "The card does not name the base model.": not re.search(r"^base_model: *['\"]?[^\s'\"]", card, re.MULTILINE),
        "The card lacks a section (training, privacy, evaluation or loading).": any(
            f"\n## {section}\n" not in card for section in ("Training", "Privacy", "Evaluation", "Load")
        ),
        "The card holds a path of this machine.": bool(_PATH.search(card)) or str(folder.absolute().parent) in card,
        "adapter_config.json does not name the base model.": not base,
        "adapter_config.json holds a path of this machine.": any(_is_path(text) for text in _texts(config)),
        "adapter_config.json asks for modules_to_save, which servers do not load.": bool(config.get("modules_to_save")),
    }
    return [sentence for sentence, wrong in found.items() if wrong]


def told(promise: dict[str, Any], stage: str) -> str:
    """One stage's guarantee in a sentence."""
    part = promise.get(stage, "off")
    if not isinstance(part, dict):
        return f"{accounting.NO_GUARANTEE} (this stage ran without noise)"
    adder = {"server": "the server", "local": "every site"}.get(part["trust"], "the server or the site")
    return (
        f"differential privacy with ε = {accounting.shown(part['epsilon'])}, δ = {accounting.shown(part['delta'])};"
        f" unit {part['unit']} (all records of one site), "
        f"adjacency {part['adjacency']}, noise added by {adder}"
    )


def privacy(promise: dict[str, Any], settings: RunSettings) -> str:
    """What was promised to the sites, and what was not."""
    votes, updates = len(settings.names("cpu")), len(settings.names("gpu"))
    open_sites = len(promise["sites_without_guarantee"])
    lines = []
    if votes:
        lines += [f"- Stage 1, votes of {votes} sites for synthetic texts: {told(promise, 'stage1')}.", _accounting(promise, "stage1")]
    if updates:
        lines += [f"- Stage 2, training at {updates} sites: {told(promise, 'stage2')}.", _accounting(promise, "stage2")]
    lines += [
        f"- Sites whose contribution has no formal guarantee in this run: {open_sites}." if open_sites else "",
        "- Counted for this run alone; what the same sites spent in other runs adds to it (the operator's ledger has all).",
        "- Not covered: what the base model has seen in its own training; the public label list, examples and test set; who takes part.",
    ]
    return "\n".join(line.rstrip("\n") for line in lines if line)


def _accounting(promise: dict[str, Any], stage: str) -> str:
    part = promise.get(stage)
    if not isinstance(part, dict):
        return ""
    return (
        f"- Accountant: Gaussian mechanism, {part['releases']} releases composed, every site in each (no amplification);"
        " ε by the closed form and by dp-accounting's privacy loss distributions, which must agree.\n"
    )


def _front_matter(base: Base) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base.hub_id or base.name,
        base_model_relation="adapter",
        library_name="peft",
        pipeline_tag="text-generation",
        license=base.licence,
        tags=TAGS,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _place(made: Made, which: Adapter) -> str:
    return f"round {which.round} of {made.settings.stage2.rounds}" if which.round else "synthetic only (before the federated rounds)"


def _use(made: Made, which: Adapter) -> str:
    so_far = "" if which.round == made.settings.stage2.rounds else "\nNot the last adapter of its run, but the state after that round."
    prompt = _prompt(made.settings)
    reads = f"The model reads this and answers after the colon:\n\n{fenced(prompt)}\n\n" if prompt else ""
    return f"""What it does: {code(made.settings.task.description)}.{so_far}

## Use and limits

{reads}Fit for texts like those of the sites that took part. It was scored on one public test set and on nothing else; it makes mistakes,
and it can be wrong more often for groups that the sites' records hold rarely. Do not let it decide alone about people. It works
with the base model named here and no other."""


def _prompt(settings: RunSettings) -> str:
    try:
        return settings.public_task().prompt("…")
    except CafeError:  # the label list's file is gone
        return ""


def _training(made: Made) -> str:
    s = made.settings.stage2
    rows = {
        "federated rounds": s.rounds,
        "sites that trained on their own records": made.strong,
        "sites without a GPU, for which the server trained on synthetic texts": made.weak,
        "weight of these together, against the others together": f"{s.proxy_weight:g}",
        "warm start on the synthetic set": f"{s.warm_start_steps} steps" if s.warm_start and made.weak else "none",
        "steps × batch per site and round": f"{s.steps} × {s.batch_size}",
        "learning rate (AdamW)": f"{s.learning_rate:g}",
        "LoRA rank, alpha": f"{s.lora_rank}, {s.lora_alpha:g}",
        "target modules": ", ".join(code(name) for name in s.target_modules),
        "aggregation": "A frozen and shared, B averaged (FFA)" if made.settings.ffa else "A and B averaged (FedAvg)",
        "seed": made.settings.seed,
    }
    return "## Training\n\n" + table(("setting", "value"), [(key, str(value)) for key, value in rows.items()])


def _lineage(made: Made, which: Adapter) -> str:
    steps = [
        f"{n}. {what}: {detail}" + (f", sha256 `{sha256}`" if sha256 else "")
        for n, (what, detail, sha256) in enumerate(lineage(made, which), start=1)
    ]
    return "## Lineage\n\n" + "\n".join(steps)


def lineage(made: Made, which: Adapter) -> list[tuple[str, str, str]]:
    """Where the adapter came from, step by step: what, more of it (Markdown), its SHA-256 or nothing."""
    stage1, stage2 = made.settings.stage1, made.settings.stage2
    steps = [("Base model", code(made.base.name), made.base.sha256)]
    if made.synthetic:
        last = made.synthetic[-1]
        votes = f"{stage1.rounds} votes" if stage1.rounds > 1 else "1 vote"
        steps += [("Votes", f"{made.weak} sites without a GPU, {votes} each", "")]
        steps += [("Synthetic set", f"{last.rows} texts, attempt {last.attempt} (train.parquet)", last.sha256)]
    warm = next((one for one in made.adapters if one.round == 0), None)
    if warm and (stage2.warm_start or not which.round):
        steps += [("Warm start", "trained on the synthetic set alone", warm.sha256 if which.round else "")]
    if which.round:
        behalf = f", the server for {made.weak}" if made.weak else ""
        steps += [("Federated rounds", f"{which.round} of {stage2.rounds}: {made.strong} sites trained{behalf}", "")]
    return [*steps, ("This adapter", which.title, which.sha256)]


def _evaluation(made: Made, which: Adapter) -> str:
    scores = ([("base model", made.zero_shot)] if made.zero_shot else []) + [(one.title, one.score) for one in made.adapters]
    kind = which.score.kind
    what = "share of right answers" if kind == "accuracy" else "mean loss per answer token; lower is better"
    rows = [(f"**{name}**" if name == which.title else name, score.shown, str(score.n)) for name, score in scores]
    return f"## Evaluation\n\nOn the operator's public test set ({what}).\n\n" + table(("model", kind, "n"), rows)


def _load(made: Made) -> str:
    at = "" if made.base.hub_id else "  # the folder that holds the base model"
    remark = f"\nThe base model here was {made.base.remark}.\n" if made.base.remark else ""
    base = made.base.hub_id or made.base.name
    return f"""## Load
{remark}
With PEFT:

{fenced(peft_lines(base, "FOLDER", at), "python")}

With vLLM, which then serves it under the name {code(made.settings.name)}:

{fenced(vllm_line(base, made.settings.name, "FOLDER", made.settings.stage2.lora_rank), "bash")}"""


def peft_lines(base: str, folder: str, remark: str = "") -> str:
    """Python that loads the adapter; ``base`` and ``folder`` as the reader has them."""
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {json.dumps(base, ensure_ascii=False)}{remark}
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), {json.dumps(folder, ensure_ascii=False)})"""


def vllm_line(base: str, name: str, folder: str, rank: int) -> str:
    """The command that serves base and adapter; vLLM knows the ranks 8, 16, 32, ... only, so the next one is named."""
    from shlex import quote

    allowed = next((one for one in (8, 16, 32, 64, 128, 256) if one >= rank), rank)
    return f"vllm serve {quote(base)} --enable-lora --max-lora-rank {allowed} --lora-modules {quote(f'{name}={folder}')}"


def _hashes(made: Made, which: Adapter) -> str:
    rows = [("`adapter_model.safetensors`", f"`{which.sha256}`"), ("base model's folder", f"`{made.base.sha256}`")]
    if made.synthetic:
        rows.insert(1, ("`train.parquet` of the synthetic set", f"`{made.synthetic[-1].sha256}`"))
    return "## Hashes\n\n" + table(("what", "sha256"), rows) + f"\n\nRun `{made.run.id}`. Made with Café au Lait."


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list) else [value] if isinstance(value, str) else []


def _is_path(text: str) -> bool:
    return text.startswith(("/", "~", "./", "../", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", text) is not None
