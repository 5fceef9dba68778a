"""A few texts of the generator alone, before any site is asked: ``python -m pipeline.sample FEDERATION``.

Knows a federation's draft and the file in which its last sample is found again. Asks no site and spends no privacy. The
process is its own, so that the console never loads a model.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from cafe_kit.errors import CafeError
from cafe_kit.task import Record

from pipeline import federations, machine, models, prompts
from pipeline.federations import Federation
from pipeline.settings import RunSettings, build
from pipeline.worker import LazyModels
from server_store.blobs import write_whole

_FILE = "sample.json"
_TEXTS = 10
_STARTS_S = 20.0  # after which a process that was begun has written its number


@dataclass(frozen=True)
class Sample:
    """The last sample of a federation. ``state``: running | done | failed."""

    state: str
    begun: float
    pid: int
    texts: tuple[tuple[str, str], ...] = ()  # (text, answer)
    dropped: str = ""
    error: dict[str, str] | None = None


def start(name: str) -> None:
    """Begin a sample of the saved draft, unless one is being made. Raises CafeError for a draft that says too little."""
    federation = federations.get(name)
    _settings(federation)
    now = found(name)
    if now and now.state == "running":
        return
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH", "")) if part)
    _keep(federation, Sample("running", time.time(), 0))  # from here on only the process writes
    with (federation.folder / "sample.log").open("wb") as log:
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.sample", name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )


def found(name: str) -> Sample | None:
    """The last sample, as it is now."""
    try:
        data = json.loads((federations.get(name).folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    sample = Sample(**{**data, "texts": tuple((text, answer) for text, answer in data["texts"])})
    if sample.state == "running" and not _alive(sample):
        told = {
            "code": "CAFE-690",
            "message": "The sample ended without a result.",
            "hint": "Try again; sample.log beside the draft says more.",
        }
        return replace(sample, state="failed", error=told)
    return sample


def make(federation: Federation) -> tuple[list[Record], str]:
    """Texts as stage 1 would propose them at first, and what was dropped on the way."""
    settings = _settings(federation)
    task, examples = settings.public_task(), settings.examples()
    rng = random.Random(f"{settings.seed}/sample")
    labels = rng.sample(list(task.classes), len(task.classes))
    asks = [prompts.propose(task, labels[n % len(labels)], examples, rng) for n in range(2 * _TEXTS)]
    stage = settings.stage1
    with ExitStack() as stack:
        ours = stage.generator is None
        base = models.base_model(settings.base_model).path if ours else federation.folder
        server = LazyModels(stack, settings, base, None, Path(stack.enter_context(TemporaryDirectory())), machine.choose(settings).dtype)
        texts = server.generator().complete(
            [ask.prompt for ask in asks],
            max_tokens=settings.new_tokens,
            temperature=stage.temperature,
            top_p=stage.top_p,
            stop=asks[0].stop,
            seed=rng.getrandbits(30),
        )
    sieve = prompts.Filter(task, examples)
    records = [prompts.parse(task, ask, text) for ask, text in zip(asks, texts, strict=True)]
    kept = [record for record in records if record is not None and sieve.keep(record)]
    dropped = ", ".join(f"{number} {reason}" for reason, number in sorted(sieve.counts.items()) if reason != "kept")
    return kept[:_TEXTS], dropped


def main(name: str) -> None:
    federation = federations.get(name)
    before = Sample("running", time.time(), os.getpid())
    _keep(federation, before)
    try:
        records, dropped = make(federation)
        done = replace(before, state="done", texts=tuple((one.text, one.answer) for one in records), dropped=dropped)
    except CafeError as error:
        done = replace(before, state="failed", error={"code": error.code, "message": error.message, "hint": error.hint})
    _keep(federation, done)


def _settings(federation: Federation) -> RunSettings:
    """The draft's settings; its sites and its test set may still be missing."""
    data: dict[str, Any] = dict(federation.data)
    data["sites"] = data.get("sites") or [{"name": "nobody", "kind": "cpu", "data": federations.FILE}]
    data["test"] = data.get("test") or federations.FILE
    return build(data, federation.folder)


def _keep(federation: Federation, sample: Sample) -> None:
    write_whole(federation.folder / _FILE, json.dumps(asdict(sample)).encode())


def _alive(sample: Sample) -> bool:
    if not sample.pid:
        return time.time() - sample.begun < _STARTS_S
    try:
        process = psutil.Process(sample.pid)
        return process.status() != psutil.STATUS_ZOMBIE and "pipeline.sample" in process.cmdline()
    except psutil.Error:
        return False


if __name__ == "__main__":
    main(sys.argv[1])
