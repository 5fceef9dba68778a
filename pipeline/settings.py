"""Every setting of a run, once: the form, the YAML, the command line and the documentation read these fields.

Knows: what may be asked for, and refuses the rest at birth. Does not know how anything is carried out, and reads no
private file: of a site it knows the name, the kind and where its data lie. Settings under ``machine`` change only the
speed; no other setting does only that.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from cafe_kit.errors import CafeError
from cafe_kit.orders import SERVER_SEATS as SERVER_SEATS
from cafe_kit.records import DataSource, read
from cafe_kit.task import Record, Task
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.setting_errors import in_words

Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Delta = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


PROXY, PROXIES = SERVER_SEATS  # seats of the server's own begin so: for one weak site, and for all of them


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(_Section):
    """What is learned. Everything here is public."""

    kind: Literal["classification", "instruction"] = Field(description="text → label from a public list, or instruction, input → output")
    description: Annotated[str, Field(min_length=3, max_length=500)] = Field(description="one phrase: what the texts are")
    text: str = Field("text", description="classification: name of the column with the text")
    label: str = Field("label", description="classification: name of the column with the label")
    labels: Path | tuple[str, ...] | None = Field(
        None, description="classification: the public label list, a file with one a line or a list"
    )
    instruction: str = Field("instruction", description="instruction data: name of the column with the instruction")
    input: str = Field("input", description="instruction data: name of the column with the input; may be absent from the data")
    output: str = Field("output", description="instruction data: name of the column with the output")
    examples: Path | None = Field(None, description="a few invented examples, public, in the same columns; the generator is shown them")
    text_name: str | None = Field(None, description="word before the text in the prompt; the column's name when left out")
    answer_name: str | None = Field(None, description="word before the answer in the prompt; the column's name when left out")

    @property
    def columns(self) -> dict[str, str]:
        """Role → column name, as the site's reader wants it."""
        if self.kind == "classification":
            return {"text": self.text, "label": self.label}
        return {"instruction": self.instruction, "input": self.input, "output": self.output}


class SiteSettings(_Section):
    """One site: of this machine, with its data file; or of another, which joined with a kit and keeps its data file to itself."""

    name: SiteName = Field(description="letters, digits, dot, dash, underscore; unique")
    kind: Literal["cpu", "gpu"] = Field(description="cpu: weak, votes in stage 1; gpu: strong, trains in stage 2")
    data: Path | None = Field(
        None,
        description="JSONL, CSV, Parquet or a Python loader file; relative to the YAML. Left out: a site that joined with a kit",
    )
    format: Literal["jsonl", "csv", "parquet", "loader"] | None = Field(None, description="when the suffix does not tell")
    columns: dict[str, str] = Field(default_factory=dict, description="role → column name, where this site's differ")

    @model_validator(mode="after")
    def _own_data(self) -> SiteSettings:
        if self.data is None and (self.format or self.columns):
            raise ValueError("sites: format and columns belong to a data file; a joined site has named its own")
        return self


class StagePrivacy(_Section):
    """Client-level differential privacy of one stage."""

    epsilon: Epsilon = Field(description="privacy loss bound per site over the whole stage")
    delta: Delta = Field(description="probability with which the bound may fail; at most 1/(10 × sites) is customary")


class PrivacySettings(_Section):
    """Which stage is protected, and against whom."""

    stage1: StagePrivacy | None = Field(None, description="{epsilon, delta} or off")
    stage2: StagePrivacy | None = Field(None, description="{epsilon, delta} or off")
    trust: Literal["server", "local"] = Field("server", description="who adds the noise: the server once, or every site to its own message")
    accept_noise: bool = Field(False, description="start although the signal is expected to drown in the noise (SNR below 1)")


class GeneratorSettings(_Section):
    """Another OpenAI-compatible server (vLLM) for stage 1; left out: our model server with the base model."""

    url: str = Field(description="base URL, ending in /v1")
    model: str = Field(description="model name as the server lists it")
    api_key_env: str = Field("CAFE_GENERATOR_KEY", description="environment variable that holds the key")


class Stage1Settings(_Section):
    """Private evolution over the sites without a GPU."""

    rounds: Positive = Field(2, description="votes; each is one release")
    candidates_per_label: Annotated[int, Field(ge=2)] = Field(8, description="candidates proposed per label (instruction data: in all)")
    survivors_per_label: Positive = Field(4, description="candidates kept per label after a vote")
    select: Literal["rank", "sample"] = Field("rank", description="keep the best by noised votes, or draw in proportion to them")
    synthetic_per_label: Positive = Field(40, description="texts per label in the synthetic set, the survivors among them")
    temperature: PositiveFloat = Field(0.7, description="sampling temperature of the generator; a large model bears 1.0")
    drop_off_label: bool = Field(True, description="drop a text that is nearer to another label's public texts than to its own label's")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="nucleus sampling of the generator")
    max_tokens: Annotated[int, Field(ge=4)] | None = Field(
        None, description="longest text the generator may write, in tokens; 48, or 256 for instruction data, when left out"
    )
    max_votes_per_candidate: Positive = Field(8, description="votes of one site for one candidate that count")
    clip_norm: PositiveFloat = Field(1.0, description="L2 norm to which a site's votes over all labels are clipped")
    vote_cap: Annotated[float, Field(gt=0, le=1)] = Field(0.25, description="share of clip_norm that one site may give one candidate")
    quorum: Positive | None = Field(None, description="sites that must answer a round; half of them when left out")
    deadline_s: PositiveFloat = Field(600.0, description="seconds a site may take for a round, from the moment it may compute")
    approve: Literal["automatic", "operator"] = Field("automatic", description="operator: the run waits for approval of the synthetic set")
    generator: GeneratorSettings | None = Field(None, description="another OpenAI-compatible server (vLLM)")

    @model_validator(mode="after")
    def _survivors_fit(self) -> Stage1Settings:
        if self.survivors_per_label > self.candidates_per_label:
            raise ValueError("survivors_per_label must not be above candidates_per_label")
        if self.survivors_per_label > self.synthetic_per_label:
            raise ValueError("synthetic_per_label must not be below survivors_per_label")
        return self


class Stage2Settings(_Section):
    """Federated LoRA with proxies."""

    rounds: Positive = Field(5, description="federated rounds")
    steps: Positive = Field(12, description="optimizer steps per site and round")
    batch_size: Positive = Field(8, description="sequences per step")
    learning_rate: PositiveFloat = Field(1e-3, description="of AdamW, constant after the warm-up")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="steps of linear warm-up in each round")
    lora_rank: Annotated[int, Field(ge=1, le=256)] = Field(8, description="rank of the adapter")
    lora_alpha: PositiveFloat = Field(32.0, description="scale of the adapter is lora_alpha / lora_rank")
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("q_proj", "v_proj"), description="linear layers that get an adapter"
    )
    aggregation: Literal["fedavg", "ffa"] | None = Field(
        None, description="fedavg: A and B are averaged; ffa: A is frozen and shared. Left out: ffa with privacy, fedavg without"
    )
    proxy_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="weight of all proxies together, as a multiple of all strong sites together"
    )
    warm_start: bool = Field(True, description="first train on the synthetic set alone; the federated rounds start from there")
    warm_start_steps: Positive = Field(60, description="steps of the warm start; also what synthetic_only is scored on")
    clip_norm: PositiveFloat = Field(1.0, description="with privacy: L2 norm to which a site's update is clipped")
    max_tokens: Annotated[int, Field(ge=8)] = Field(256, description="longest training sequence; the prompt is cut from the middle")
    quorum: Positive | None = Field(None, description="strong sites that must answer a round; half of them when left out")
    deadline_s: PositiveFloat = Field(1800.0, description="seconds a site may take for a round, from the moment it may compute")


class MachineSettings(_Section):
    """What changes only the speed and the memory. Zero: chosen from cores and memory."""

    threads: Annotated[int, Field(ge=0)] = Field(0, description="threads of one kit process")
    compute_slots: Annotated[int, Field(ge=0)] = Field(0, description="kit processes that may compute at once")
    resident: Annotated[int, Field(ge=0)] = Field(0, description="kit processes that may stay in memory at once")
    proxies: SiteName | None = Field(
        None,
        description="name of a site that trains for the weak sites (the operator's own cluster); left out: this machine does",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="of the frozen base; auto: bfloat16 where the processor computes it natively"
    )


class RunSettings(_Section):
    """One run: stage 1, stage 2, one adapter."""

    name: SiteName = Field(description="of the federation; one run of a name at a time")
    task: TaskSettings
    base_model: str = Field("smollm2-135m-instruct", description="a known name, a Hugging Face id, or a folder")
    embedder: str = Field("all-minilm-l6-v2", description="sentence embedder of the weak sites: a known name or a folder")
    sites: Annotated[tuple[SiteSettings, ...], Field(min_length=1)]
    test: Path = Field(description="public test set, in the task's columns")
    synthetic: str | None = Field(
        None, description="id of an earlier run: its approved synthetic set is used again, and stage 1 is not run (nor charged) again"
    )
    privacy: PrivacySettings = Field(description="{stage1, stage2, trust, accept_noise}; or {epsilon, delta} for each stage; or off")
    stage1: Stage1Settings = Field(default_factory=Stage1Settings)
    stage2: Stage2Settings = Field(default_factory=Stage2Settings)
    machine: MachineSettings = Field(default_factory=MachineSettings)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="of the plan (order of examples, prompts, first adapter); never of privacy noise"
    )

    @field_validator("privacy", mode="before")
    @classmethod
    def _privacy_in_short(cls, value: Any) -> Any:
        """`off`, and a bare {epsilon, delta}, mean each stage."""
        return value if isinstance(value, PrivacySettings) else privacy_in_full(value)

    @model_validator(mode="after")
    def _fits_together(self) -> RunSettings:
        names = [site.name for site in self.sites]
        twice = sorted({name for name in names if [n.lower() for n in names].count(name.lower()) > 1})
        if twice:
            raise ValueError(f"sites: two sites are called {twice[0]!r}")
        if any(name.lower().startswith(SERVER_SEATS) for name in names):
            raise ValueError("sites: names that begin with 'proxy.' or 'proxies.' are the server's")
        for stage, kind, quorum in (("stage1", "cpu", self.stage1.quorum), ("stage2", "gpu", self.stage2.quorum)):
            number = len(self.names(kind))
            if quorum and quorum > max(number, 1):
                raise ValueError(f"{stage}.quorum: {quorum} is above the {number} {kind} sites")
        if self.machine.proxies in names:
            raise ValueError(f"sites: {self.machine.proxies!r} stands in for others (machine.proxies), so it takes no part itself")
        if self.task.kind == "classification" and self.task.labels is None:
            raise ValueError("task.labels: a classification task needs its public label list")
        return self

    @property
    def joined(self) -> tuple[str, ...]:
        """Names of the sites of other machines."""
        return tuple(site.name for site in self.sites if site.data is None)

    def names(self, kind: str) -> tuple[str, ...]:
        """Names of the sites of one kind ("cpu" weak, "gpu" strong), in the order of the file."""
        return tuple(site.name for site in self.sites if site.kind == kind)

    def quorum(self, stage: int) -> int:
        """Sites that must answer a round of this stage."""
        section, number = (self.stage1, len(self.names("cpu"))) if stage == 1 else (self.stage2, len(self.names("gpu")))
        return section.quorum or math.ceil(number / 2)

    @property
    def new_tokens(self) -> int:
        """The longest text that the generator may write, in tokens."""
        return self.stage1.max_tokens or (48 if self.task.kind == "classification" else 256)

    @property
    def ffa(self) -> bool:
        """Whether A is frozen and shared: asked for, or by default when stage 2 is private (algorithm notes §4.3)."""
        return self.stage2.aggregation == "ffa" or (self.stage2.aggregation is None and self.privacy.stage2 is not None)

    def public_task(self) -> Task:
        """The task as it stands in every order; reads the label list."""
        task = self.task
        labels = _read_labels(task.labels) if task.kind == "classification" else ()
        text, answer = (task.text, task.label) if task.kind == "classification" else (task.instruction, task.output)
        return Task(task.kind, task.description, labels, task.text_name or _word(text), task.answer_name or _word(answer))

    def test_records(self) -> list[Record]:
        """The public test set."""
        return _public("test", self.test, self.task.columns, self.public_task())

    def examples(self) -> list[Record]:
        """The invented public examples; empty without a file."""
        if self.task.examples is None:
            return []
        return _public("task.examples", self.task.examples, self.task.columns, self.public_task())

    def source(self, site: SiteSettings) -> DataSource:
        """Where the data of a site of this machine lie, in its own columns."""
        assert site.data is not None, "a joined site keeps that to itself"
        return DataSource(site.data, {**self.task.columns, **site.columns}, site.format)


def privacy_in_full(value: Any) -> dict[str, Any]:
    """What may stand under ``privacy``, written out per stage: `off`, and a bare {epsilon, delta}, mean each stage."""
    off = ("off", "none", False, None)
    if value in off:
        return {}
    if not isinstance(value, dict):
        raise ValueError("is off, or {epsilon, delta}, or {stage1, stage2}")
    value = {
        key: None if key in ("stage1", "stage2") and not isinstance(part, dict) and part in off else part for key, part in value.items()
    }
    if "epsilon" in value or "delta" in value:
        both = {key: value.pop(key) for key in ("epsilon", "delta") if key in value}
        value = {"stage1": both, "stage2": both, **value}
    return value


def load(path: Path) -> RunSettings:
    """Read a run's YAML (1.2 rules: ``no`` is a word, ``1e-5`` a number); paths in it are relative to the file.

    Raises:
        CafeError: CAFE-601 unknown key (with the nearest name), CAFE-602 wrong value, CAFE-603 no such file,
            CAFE-604 not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CafeError(
            "CAFE-603", f"The settings file {path} cannot be read: {_why(error)}.", "Check the path; the file is UTF-8 YAML."
        ) from None
    try:
        data = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" near line {mark.line + 1}" if mark else ""
        raise CafeError(
            "CAFE-604", f"{path.name} is not YAML{line}.", "Two spaces of indent per level, a space after each colon."
        ) from None
    if not isinstance(data, dict):
        raise CafeError("CAFE-604", f"{path.name} holds no settings.", "Start from the example in README.")
    return build(data, path.parent)


def build(data: dict[str, Any], folder: Path) -> RunSettings:
    """Settings from plain data; relative paths are taken from ``folder``."""
    try:
        settings = RunSettings.model_validate(data)
    except ValidationError as error:
        raise in_words(error, RunSettings) from None
    return _absolute(settings, folder.resolve())


def to_yaml(settings: RunSettings) -> str:
    """The complete settings, defaults included, as YAML that ``load`` reads back to the same settings."""
    out = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(json.loads(settings.model_dump_json(exclude_none=True)), out)
    return out.getvalue()


def _public(setting: str, file: Path, columns: dict[str, str], task: Task) -> list[Record]:
    """The records of a public file; what is wrong in it is told with its name."""
    try:
        return read(DataSource(file, columns), task)
    except CafeError as error:
        raise CafeError(error.code, f"{setting}, {file.name}: {error.message}", error.hint) from None


def _why(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or "no reason was given").lower() if isinstance(error, OSError) else "it is not UTF-8"


def _word(column: str) -> str:
    return column.replace("_", " ").strip().capitalize()


def _read_labels(labels: Path | tuple[str, ...] | None) -> tuple[str, ...]:
    if isinstance(labels, Path):
        try:
            found = tuple(line.strip() for line in labels.read_text(encoding="utf-8-sig").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise CafeError("CAFE-605", f"The label list {labels} cannot be read: {_why(error)}.", "One label a line, UTF-8.") from None
    else:
        found = labels or ()
    if len(found) < 2 or len(set(found)) != len(found):
        raise CafeError("CAFE-605", "The label list needs at least two labels, each once.", "Mend task.labels.")
    return found


def _absolute(settings: RunSettings, folder: Path) -> RunSettings:
    """Paths become absolute; the files that the operator names must exist (a site's data are the site's to check)."""

    def there(path: Path | None, what: str) -> Path | None:
        if path is None:
            return None
        full = (folder / path.expanduser()).absolute()
        if not full.exists():
            raise CafeError("CAFE-603", f"{what}: there is no file {full}.", "Paths are relative to the settings file.")
        return full

    task = settings.task
    labels = there(task.labels, "task.labels") if isinstance(task.labels, Path) else task.labels
    task = task.model_copy(update={"labels": labels, "examples": there(task.examples, "task.examples")})
    sites = tuple(
        site.model_copy(update={"data": (folder / site.data.expanduser()).absolute() if site.data else None}) for site in settings.sites
    )
    base = folder / settings.base_model
    looks_local = settings.base_model.startswith((".", "/", "~")) or (base.is_dir() and (base / "config.json").exists())
    model = str((folder / Path(settings.base_model).expanduser()).absolute()) if looks_local else settings.base_model
    return settings.model_copy(update={"task": task, "sites": sites, "test": there(settings.test, "test"), "base_model": model})
