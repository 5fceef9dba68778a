"""The process that serves a run's base model and its adapters for the chat: ``python -m pipeline.chat_service RUN``.

Knows: which adapters a run has, the model server (ours, or the operator's own), and the file in which it is found again.
It outlives whoever started it and ends by itself when nobody asks any more. It sees no prompt and no answer.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import traceback
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil
from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_file, hash_folder

from pipeline import launch, machine, models, settings
from pipeline.endpoint import Endpoint
from pipeline.generator import Generator, ModelServer, Scorer
from pipeline.home import home
from pipeline.models import ModelFolder
from server_store.blobs import write_whole
from server_store.desk import Desk
from server_store.errors import StoreError

_IDLE_MINUTES = 15.0
WEIGHTS = "adapter_model.safetensors"
_LOOK_S = 0.5


@dataclass(frozen=True)
class Service:
    """What is known of the service of one run. ``born`` tells its process from a later one with the same pid."""

    state: Literal["starting", "ready", "failed", "stopped"] = "stopped"
    doing: str = ""
    since: float = 0.0  # seconds since 1970
    pid: int = 0
    born: float = 0.0
    other: str = ""  # address of the operator's own server; "": ours
    url: str = ""
    key: str = ""  # of our server only: another's stays in the environment
    base: dict[str, str] = field(default_factory=dict)  # name, model (as the server calls it), sha256
    adapters: dict[str, str] = field(default_factory=dict)  # column -> sha256 of its adapter_model.safetensors
    error: dict[str, str] | None = None

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.born) < 0.5 and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, ValueError):
            return False

    @property
    def endpoint_key(self) -> str:
        return os.environ.get("CAFE_OPENAI_API_KEY", "") if self.other else self.key


def configured() -> str:
    """Address of the operator's own OpenAI-compatible server; "": we start ours."""
    return os.environ.get("CAFE_OPENAI_BASE_URL", "").strip()


def idle_minutes(desk: Desk) -> float:
    """After how long without a question the service ends: the preference ``chat_idle_minutes``."""
    try:
        return float(desk.preference("chat_idle_minutes", str(_IDLE_MINUTES)))
    except ValueError:
        return _IDLE_MINUTES


def file_of(run_id: str) -> Path:
    """Where the service of this run is found."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", run_id):
        raise StoreError("CAFE-655", f"There is no run {run_id!r}.", "`cafe status` lists the runs.")
    return home("chat") / f"{run_id}.json"


def read(run_id: str) -> Service:
    """The service as it is now: one whose process is gone without a word has failed."""
    try:
        found = Service(**json.loads(file_of(run_id).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Service()
    if found.state in ("starting", "ready") and not found.alive:
        died = CafeError("CAFE-506", "The chat's model ended without a word.", "The machine may have run out of memory; start it again.")
        return replace(found, state="failed", error=as_json(died))
    return found


def write(run_id: str, service: Service) -> None:
    """For its owner's eyes only: the file holds the key."""
    write_whole(file_of(run_id), json.dumps(asdict(service)).encode())


def as_json(error: CafeError | StoreError) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "hint": error.hint}


def adapters_of(run_folder: Path) -> dict[str, Path]:
    """Column -> PEFT folder: "synthetic-only" (the warm start), "federated" (the newest), then each round's; what exists."""
    attempts = sorted((run_folder / "adapters").glob("attempt-*"), key=_number)
    rounds = {_number(path): path for path in attempts[-1].glob("round-*") if (path / WEIGHTS).is_file()} if attempts else {}
    found = {"synthetic-only": rounds[0]} if 0 in rounds else {}
    later = {number: rounds[number] for number in sorted(rounds) if number > 0}
    final = run_folder / "adapters" / "final"
    if (final / WEIGHTS).is_file():
        found["federated"] = final
    elif later:
        found["federated"] = later[max(later)]
    return found | {f"round-{number}": path for number, path in later.items()}


def _number(path: Path) -> int:
    tail = path.name.rpartition("-")[2]
    return int(tail) if tail.isdecimal() else -1


def model_name(column: str, sha256: str) -> str:
    """What a server calls an adapter: the name holds the hash, so that it never stands for other weights."""
    return f"{column}-{sha256[:12]}"


def put_on(url: str, key: str, column: str, folder: Path) -> tuple[str, str]:
    """Have the server serve this adapter; returns its name there and its SHA-256.

    A server keeps a name with its weights, so that a name once served proves what answers.

    Raises:
        CafeError: CAFE-518 when the file changed while it was loaded; 501-509 from the server.
    """
    sha256 = hash_file(folder / WEIGHTS)
    model = model_name(column, sha256)
    if model in Generator(url, key, "").models():
        return model, sha256
    scorer = Scorer(url, key)
    try:
        scorer.load_adapter(model, folder)
    except CafeError:
        if model not in Generator(url, key, "").models():  # else another tab was faster
            raise
    if hash_file(folder / WEIGHTS) != sha256:
        scorer.unload_adapter(model)
        raise CafeError("CAFE-518", "The adapter was replaced while it was loaded.", "Ask again.")
    return model, sha256


class _Carrier:
    """The life of one service: start, serve, end."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        own = psutil.Process()
        self._said = Service("starting", "Starting", time.time(), own.pid, own.create_time(), configured())
        with closing(launch.store()) as store:
            self._folder = Path(store.run(run_id).folder)

    def carry(self) -> int:
        try:
            with ExitStack() as stack:
                server = self._start(stack)
                self._wait(server)
        except (CafeError, StoreError) as error:
            return self._failed(error)
        except Exception as error:
            traceback.print_exc()
            return self._failed(CafeError("CAFE-519", f"The chat met something unforeseen ({type(error).__name__}).", "Start it again."))
        finally:
            self._leave()
        return 0

    def _start(self, stack: ExitStack) -> ModelServer | None:
        chosen = settings.load(self._folder / "config.yaml")
        self._say(doing="Checking the base model")
        base = models.base_model(chosen.base_model, lambda what, share: self._say(doing=what))
        server = None
        if self._said.other:
            self._say(doing="Asking the operator's model server", url=self._said.other, base=_base_at(self._said, base))
        else:
            self._say(doing="Loading the base model")
            server = stack.enter_context(
                ModelServer(base.path, adapters=self._folder / "adapters", dtype=_dtype(machine.choose(chosen).dtype))
            )
            self._say(url=server.base_url, key=server.api_key, base=_named(base, server.model, base.sha256))
        self._say(doing="Loading the adapters")
        wanted = {name: path for name, path in adapters_of(self._folder).items() if name in ("synthetic-only", "federated")}
        hashes = {name: put_on(self._said.url, self._said.endpoint_key, name, path)[1] for name, path in wanted.items()}
        self._say(state="ready", doing="", since=time.time(), adapters=hashes)
        return server

    def _wait(self, server: ModelServer | None) -> None:
        """Until nobody has asked for a while, the run is gone, or another service has taken over."""
        with closing(launch.desk()) as desk:
            idle_s = 60 * idle_minutes(desk)
        while self._mine() and self._folder.is_dir() and time.time() - self._last_asked() < idle_s:
            if server and (error := server.died()):
                raise error
            time.sleep(_LOOK_S)

    def _say(self, **changed: Any) -> None:
        before, self._said = self._said, replace(self._said, **changed)
        if self._said != before or not self._mine():
            write(self._run_id, self._said)

    def _failed(self, error: CafeError | StoreError) -> int:
        if self._mine():
            self._say(state="failed", error=as_json(error), key="")
        return 1

    def _mine(self) -> bool:
        try:
            return int(json.loads(file_of(self._run_id).read_text(encoding="utf-8"))["pid"]) == self._said.pid
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _last_asked(self) -> float:
        """Whoever asks touches the file."""
        try:
            return file_of(self._run_id).stat().st_mtime
        except OSError:
            return 0.0

    def _leave(self) -> None:
        if self._said.state != "failed" and self._mine():
            file_of(self._run_id).unlink(missing_ok=True)


def _named(base: ModelFolder, model: str, sha256: str) -> dict[str, str]:
    return {"name": Path(base.name).name if Path(base.name).is_absolute() else base.name, "model": model, "sha256": sha256}


def _base_at(service: Service, base: ModelFolder) -> dict[str, str]:
    """The run's base model as another server offers it. Its hash is proven only where that server reads the same files."""
    entries = Endpoint(service.other, service.endpoint_key).get("/v1/models").get("data", [])
    names = {base.name, base.path.name, str(base.path)}
    for entry in entries:
        root = Path(str(entry.get("root") or ""))
        if not entry.get("parent") and names & {str(entry["id"]), str(root), root.name}:
            same = root.is_absolute() and root.is_dir() and hash_folder(root).sha256 == base.sha256
            return _named(base, str(entry["id"]), base.sha256 if same else "")
    offered = ", ".join(str(entry.get("id")) for entry in entries) or "nothing"
    raise CafeError(
        "CAFE-516",
        f"The model server at {service.other} offers {offered}, but this run was trained on {base.name}.",
        "Serve that base model there, or unset CAFE_OPENAI_BASE_URL to use the built-in server.",
    )


def _dtype(name: str) -> Literal["bfloat16", "float32"]:
    return "float32" if name == "float32" else "bfloat16"


def _end(*_: object) -> None:
    raise SystemExit(0)


def main() -> None:
    os.umask(0o077)
    signal.signal(signal.SIGTERM, _end)
    sys.exit(_Carrier(sys.argv[1]).carry())


if __name__ == "__main__":
    main()
