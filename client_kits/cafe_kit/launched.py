"""Training on several GPUs, perhaps of several machines, for one order: started through accelerate, waited for, its result brought back.

Knows a folder that all of them see, what is written there, and that it is gone afterwards: it holds the site's records, readable for its
user alone. Does not know how a step is computed (``parallel.py``, in each process).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load_file, save_file

from cafe_kit.errors import CafeError
from cafe_kit.orders import TrainParams
from cafe_kit.task import Record, Task

VARIABLE = "CAFE_TRAIN_ON"  # JSON of Machines; the site's own choice, never an order's
JOB, ADAPTER, ERROR = "job.json", "adapter.safetensors", "error.json"
_MOST_LINE = 65536
_OLD_S = 7 * 86400


class Machines(BaseModel):
    """What a training order may use. ``launcher``: starts one program on each node; empty: this machine alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    gpus_per_node: Annotated[int, Field(ge=1, le=64)]
    nodes: Annotated[int, Field(ge=1, le=1000)] = 1
    launcher: list[str] = []


def from_environment() -> Machines | None:
    """What whoever started this process allows; None for training in this very process.

    Raises:
        CafeError: CAFE-176 when it cannot be read.
    """
    told = os.environ.get(VARIABLE, "")
    try:
        return Machines.model_validate_json(told) if told else None
    except ValidationError:
        raise CafeError("CAFE-176", f"{VARIABLE} is not as agreed.", "Correct endpoint.toml, and start again.") from None


def train(
    machines: Machines,
    params: TrainParams,
    task: Task,
    base_model: Path,
    adapter: Mapping[str, np.ndarray],
    shards: Mapping[str, Sequence[Record]],
    round: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, dict[str, np.ndarray]]:
    """As ``train.train``, by many processes.

    Raises:
        CafeError: what they raise; CAFE-176 when they could not be started or ended otherwise.
    """
    above = Path(os.environ.get("CAFE_SITE_HOME") or tempfile.gettempdir())  # on several nodes: a folder that they all see
    _forget_abandoned(above)
    folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=above))  # 0700
    try:
        _write(folder, params, task, base_model, adapter, shards, round)
        status = _run([*machines.launcher, *_on_each_node(machines, folder)], folder, progress)
        return _result(folder, list(shards), status)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    return f"training-{socket.gethostname()}-"


def _forget_abandoned(above: Path) -> None:
    """Delete what a process of this machine left that was killed, and what nobody has touched for a week."""
    for path in above.glob("training-*-*-*"):
        process = path.name.removeprefix(_prefix()).partition("-")[0]
        dead = path.name.startswith(_prefix()) and process.isdigit() and not Path(f"/proc/{process}").exists()
        if dead or time.time() - path.stat().st_mtime > _OLD_S:
            shutil.rmtree(path, ignore_errors=True)


def _write(
    folder: Path,
    params: TrainParams,
    task: Task,
    base_model: Path,
    adapter: Mapping[str, np.ndarray],
    shards: Mapping[str, Sequence[Record]],
    round: int,
) -> None:
    rows = {site: [[record.text, record.answer] for record in records] for site, records in shards.items()}
    job = {"params": asdict(params), "task": asdict(task), "base_model": str(base_model), "round": round, "shards": rows}
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    save_file(dict(adapter), folder / ADAPTER)


def _on_each_node(machines: Machines, folder: Path) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    head = socket.gethostname() if machines.nodes > 1 else "127.0.0.1"
    shape = [str(machines.gpus_per_node), str(machines.nodes), head, str(port)]
    return [sys.executable, "-m", "cafe_kit.parallel", "node", str(folder), *shape]


def _run(command: list[str], folder: Path, progress: Callable[[str, int, int], None]) -> int:
    """Start it and hand its progress on, to its end; its exit status. What libraries say goes where ours goes."""
    quiet = {"OMP_NUM_THREADS": "1"} | os.environ | {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=quiet)
    except OSError as error:
        raise _failed(f"{command[0]} cannot be started ({error.strerror})") from None
    assert process.stdout
    try:
        while line := process.stdout.readline(_MOST_LINE):
            try:
                site, done, of = json.loads(line)["progress"]
                progress(str(site), int(done), int(of))
            except (ValueError, KeyError, TypeError):
                continue  # chatter
        return process.wait()
    finally:
        process.kill()
        process.wait()


def _result(folder: Path, sites: list[str], status: int) -> dict[str, dict[str, np.ndarray]]:
    if (folder / ERROR).is_file():
        told: dict[str, Any] = json.loads((folder / ERROR).read_text(encoding="utf-8"))
        raise CafeError(told["code"], told["message"], told["hint"])
    if status or not all((folder / name).is_file() for name in map(delta_name, range(len(sites)))):
        raise _failed(f"exit status {status}")
    return {site: dict(load_file(folder / delta_name(number))) for number, site in enumerate(sites)}


def delta_name(number: int) -> str:
    """The file with what the shard of this number became."""
    return f"delta-{number}.safetensors"


def _failed(why: str) -> CafeError:
    return CafeError("CAFE-176", f"The training on several GPUs did not come to its end: {why}.", "log/answer.out at the site says more.")
