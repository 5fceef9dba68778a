"""One of the processes that train together: on each machine ``python -m cafe_kit.parallel node FOLDER ...`` starts, through accelerate,
``python -m cafe_kit.parallel FOLDER`` once for each GPU.

Knows ranks, and the sum over all of them. Does not know who asked; what is to be trained lies in the folder (``launched.py``). All start
from the same adapter and make the same step from the same summed gradient, so they stay equal; the first one writes what came out.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as ranks
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save_file

from cafe_kit import launched
from cafe_kit.base_model import BaseModel
from cafe_kit.errors import CafeError
from cafe_kit.orders import TrainParams
from cafe_kit.task import Record, Task
from cafe_kit.train import Pair, train

_SILENT_S = 600  # a process that says nothing for so long has lost the others
_NODE_RANK = ("SLURM_NODEID", "PMIX_RANK", "PALS_RANKID", "PMI_RANK", "OMPI_COMM_WORLD_RANK")  # by who starts one program on each node


class Ranks:
    """All processes of this training (``train.Team``)."""

    def share(self, batch: Sequence[Pair]) -> Sequence[Pair]:
        """Every n-th row, in turn; the rows are of similar length."""
        return batch[ranks.get_rank() :: ranks.get_world_size()]

    def add_up(self, weights: Sequence[torch.nn.Parameter], loss: float) -> float:
        """One sum for everything: gradients and loss in a row."""
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in weights]
        row = torch.cat([*(part.detach().float().reshape(-1) for part in parts), torch.tensor([loss], device=parts[0].device)])
        ranks.all_reduce(row)
        at = 0
        for each, part in zip(weights, parts, strict=True):
            each.grad = row[at : at + part.numel()].view_as(part).to(part.dtype)
            at += part.numel()
        return float(row[-1])


def on_node(folder: str, gpus: str, nodes: str, head: str, port: str) -> None:
    """Become accelerate's launcher of this machine's processes. A configuration of its user's own is not looked at."""
    rank = next((os.environ[name] for name in _NODE_RANK if name in os.environ), "0") if int(nodes) > 1 else "0"
    shape = ["--num_machines", nodes, "--num_processes", str(int(gpus) * int(nodes)), "--machine_rank", rank]
    meeting = ["--main_process_ip", head, "--main_process_port", port, "--mixed_precision", "no", "--dynamo_backend", "no"]
    program = ["-m", "accelerate.commands.launch", "--multi_gpu", *shape, *meeting, "-m", "cafe_kit.parallel", folder]
    os.execv(sys.executable, [sys.executable, *program])


def on_gpu(folder: Path) -> None:
    """Train as one of many. A refusal, which all of them meet, is written down and ends none of the others."""
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    own = torch.cuda.is_available() and torch.cuda.device_count() >= here
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    ranks.init_process_group("nccl" if own else "gloo", timeout=timedelta(seconds=_SILENT_S))
    try:
        _train(folder)
    except CafeError as error:
        if ranks.get_rank() == 0:
            told = {"code": error.code, "message": error.message, "hint": error.hint}
            (folder / launched.ERROR).write_text(json.dumps(told), encoding="utf-8")
    finally:
        ranks.destroy_process_group()


def _train(folder: Path) -> None:
    job = json.loads((folder / launched.JOB).read_text(encoding="utf-8"))
    params = TypeAdapter(TrainParams).validate_json(json.dumps(job["params"]))
    task = TypeAdapter(Task).validate_json(json.dumps(job["task"]))
    shards = {site: [Record(text, answer) for text, answer in rows] for site, rows in job["shards"].items()}
    base = BaseModel.load(Path(job["base_model"]), params.dtype, params.threads)
    first = ranks.get_rank() == 0

    def progress(site: str, done: int, of: int) -> None:
        if first:
            print(json.dumps({"progress": [site, done, of]}), flush=True)

    deltas = train(params, task, base, load_file(folder / launched.ADAPTER), shards, progress, job["round"], Ranks())
    if first:
        for number, delta in enumerate(deltas.values()):
            save_file(delta, folder / launched.delta_name(number))


if __name__ == "__main__":
    if sys.argv[1:2] == ["node"]:
        on_node(*sys.argv[2:])
    on_gpu(Path(sys.argv[1]))
