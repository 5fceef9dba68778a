"""How the work is done at a site that is reached through Globus Compute: ``endpoint.toml``, which the site owns.

Knows the settings, and what they mean for the endpoint's template, for jobs, and for the command that answers an order. Does not know
how an endpoint is installed or started (``endpoint.py``).
"""

from __future__ import annotations

import os
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cafe_kit.errors import CafeError
from cafe_kit.launched import Machines
from cafe_kit.release import seal_file

FILE = "endpoint.toml"
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
_HEARTBEAT_S, _QUICK_HEARTBEAT_S = 30, 5  # the second, the least that there is, beside a stand-in of the service
_IDLE_S, _MOST_S = 600, 7 * 86400  # the process that takes orders ends after so long without one; and whatever it waits for

_SRUN = ("srun", "--ntasks-per-node=1", "--cpu-bind=none", "--kill-on-bad-exit=1")
_MPIEXEC = ("mpiexec", "--ppn", "1", "--cpu-bind", "none")

Word = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]  # one line: it goes into a job's script
Count = Annotated[int, Field(ge=0, le=100_000)]


class Batch(BaseModel):
    """Of a site whose work is done in jobs."""

    model_config = _STRICT
    queue: Word = ""
    account: Word = ""
    qos: Word = ""
    walltime: Annotated[str, Field(pattern=r"^\d{1,3}:[0-5]\d:[0-5]\d$")] = "01:00:00"
    cores_per_node: Count = 0
    memory_gib: Count = 0
    exclusive: bool = False
    options: list[Word] = []
    idle_minutes: Annotated[float, Field(ge=0, le=1440)] = 3.0
    interface: Word = ""
    launcher: list[Word] = []


class EndpointSettings(BaseModel):
    """``endpoint.toml``."""

    model_config = _STRICT
    kind: Literal["plain", "slurm", "pbs"] = "plain"
    setup: Annotated[str, Field(max_length=4000)] = ""
    command: list[Word] = []
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 0
    nodes: Annotated[int, Field(ge=1, le=1000)] = 1
    batch: Batch = Batch()


def load(home: Path, template: Path) -> EndpointSettings:
    """The site's settings; where there are none yet, the kit's ``template`` becomes its own file first.

    Raises:
        CafeError: CAFE-171, naming the setting.
    """
    path = home / FILE
    if not path.exists():
        seal_file(path, template.read_bytes())
    try:
        found = EndpointSettings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise _wrong(f"'{where[:80]}'") from None
    except (ValueError, OSError):
        raise _wrong("it cannot be read as TOML") from None
    if found.nodes > 1 and found.kind == "plain":
        raise _wrong("'nodes' is more than one, and a plain host is one")
    return found


def _wrong(what: str) -> CafeError:
    return CafeError("CAFE-171", f"{FILE} is not as agreed: {what}.", "Correct it; the kit's endpoint/endpoint.toml says what each means.")


def answer_command(settings: EndpointSettings) -> list[str]:
    """What is started for each order: it reads one message from standard input and writes one answer."""
    command = settings.command or [sys.executable, "-I", "-m", "cafe_kit.cli", "answer"]
    if settings.setup.strip():
        return ["bash", "-lc", f'{settings.setup.strip()}\nexec "$@"', "cafe-site", *command]
    return command


def training(settings: EndpointSettings) -> str:
    """What a training order may use (``launched.Machines``), as it stands in the environment; "" for one process alone."""
    gpus, nodes = max(1, settings.gpus_per_node), settings.nodes
    if gpus * nodes == 1:
        return ""
    usual = {"slurm": [*_SRUN, f"--nodes={nodes}", f"--ntasks={nodes}"], "pbs": [*_MPIEXEC, "-n", str(nodes)], "plain": []}[settings.kind]
    launcher = (settings.batch.launcher or usual) if nodes > 1 else []
    return Machines(gpus_per_node=gpus, nodes=nodes, launcher=launcher).model_dump_json()


def in_template(settings: EndpointSettings, environment: dict[str, str], quick: bool) -> dict[str, Any]:
    """The variable "site" of the endpoint's template. ``environment``: what a job has to find, whatever its scheduler hands on."""
    batch, period = settings.batch, _QUICK_HEARTBEAT_S if quick else _HEARTBEAT_S
    gpus = settings.gpus_per_node or None
    select = [f"ngpus={gpus}"] if gpus else []
    select += [f"mem={batch.memory_gib}gb"] if batch.memory_gib else []
    return {
        "kind": settings.kind,
        "period": period,
        "idle_beats": _IDLE_S // period,
        "most_beats": _MOST_S // period,
        "interface": batch.interface,
        "look_s": 1 if quick else period,
        "idle_s": batch.idle_minutes * 60,
        "queue": batch.queue or None,
        "account": batch.account or None,
        "qos": batch.qos or None,
        "walltime": batch.walltime,
        "cores_per_node": batch.cores_per_node or None,
        "memory_gib": batch.memory_gib or None,
        "gpus_per_node": gpus,
        "exclusive": batch.exclusive,
        "select": ":".join(select),
        "options": "\n".join(batch.options),
        "worker_init": "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())),
        "nodes": settings.nodes,
    }


def handed_on() -> dict[str, str]:
    """What holds where cafe-site was started holds where the work is done, too: proxies, certificates, cores and devices."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
    wanted = {*names, *(name.lower() for name in names), "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "LANG"}
    wanted |= {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"}
    return {name: value for name, value in os.environ.items() if name in wanted}
