"""The process that carries one run from start to end, and on from where it stopped: ``python -m pipeline.worker RUN``.

Knows the order of the phases and how a run ends. Resume is the same code as start: what is durable is not done again.
One worker per run (a lock on the run's folder, and a fence in the store); no process that it started outlives it.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from cafe_kit.embed import Embedder
from cafe_kit.errors import CafeError
from cafe_kit.failpoints import failpoint
from cafe_kit.orders import PROTOCOL
from cafe_kit.task import Record

from pipeline import adapters, archive, attendance, models, results, synthesis, tuning
from pipeline.context import Completes, RunContext, ServesAdapters, Stopped
from pipeline.generator import Generator, ModelServer
from pipeline.home import home
from pipeline.keys import server_keys
from pipeline.machine import Machine, choose
from pipeline.plan import plan
from pipeline.privacy import PrivacyDoor
from pipeline.settings import RunSettings, load
from pipeline.sites import LocalSites, Sites
from pipeline.ways import joined_sites
from server_store.blobs import Blobs
from server_store.errors import StoreError
from server_store.ledger import Ledger
from server_store.rows import Step
from server_store.store import Store

_BEAT_S = 2.0


class LazyModels:
    """Our model server, started when first asked; stage 1 may use another server (``stage1.generator``)."""

    def __init__(
        self, stack: ExitStack, settings: RunSettings, folder: Path, embedder: Path | None, adapter_root: Path, dtype: str
    ) -> None:
        self._stack, self._settings, self._folder, self._adapters, self._dtype = stack, settings, folder, adapter_root, dtype
        self._server: Any = None
        self._embedder_folder = embedder
        self._embedder: Embedder | None = None

    @property
    def base(self) -> str:
        return str(self._started().model)

    def generator(self) -> Completes:
        other = self._settings.stage1.generator
        if other is None:
            return self._started().generator()  # type: ignore[no-any-return]
        return Generator(other.url, os.environ.get(other.api_key_env, ""), other.model)

    def scorer(self) -> ServesAdapters:
        return self._started().scorer()  # type: ignore[no-any-return]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, dim) of public texts, by the embedder that the sites vote with."""
        if hasattr(self._started(), "embed"):
            return self._started().embed(texts)  # type: ignore[no-any-return]
        if self._embedder is None:
            assert self._embedder_folder is not None
            self._embedder = Embedder(self._embedder_folder)
        return self._embedder.embed(texts)

    def _started(self) -> Any:
        if self._server is None:
            self._adapters.mkdir(parents=True, exist_ok=True)
            named = os.environ.get("CAFE_MODELS")  # tests: tiny models in this place, by the launching environment alone
            module, _, name = (named or "").partition(":")
            kind: Callable[..., Any] = getattr(importlib.import_module(module), name) if named else ModelServer
            self._server = self._stack.enter_context(kind(self._folder, adapters=self._adapters, dtype=self._dtype))
        return self._server


class Heart:
    """Beats in the store while the worker lives, and hears the operator. Stops the process when it was overtaken."""

    def __init__(self, path: Path, run: str, epoch: int) -> None:
        self.command: str | None = None
        self._path, self._run, self._epoch = path, run, epoch
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        store = Store(self._path)
        while not self._over.wait(_BEAT_S):
            try:
                self.command = store.heartbeat(self._run, self._epoch)
                if self.command == "stop now":
                    # No need to ask the threads: a run may be killed anywhere, and all that it started ends with it.
                    store.event(self._run, "stopped by the operator; it can be resumed")
                    store.finish(self._run, self._epoch, "Stopped")
                    os._exit(0)
                if self.command == "stop":
                    store.set_state(self._run, self._epoch, "Stopping")
            except StoreError:
                os._exit(3)  # another worker has the run
            except Exception:
                continue  # a busy disk: the next beat tells


class Waits(Stopped):
    """The run stops until the operator has spoken about the synthetic set of this attempt."""

    def __init__(self, attempt: int) -> None:
        super().__init__()
        self.attempt = attempt


def carry(run_id: str) -> int:
    """Carry a run; returns the process's exit code: 0 done or stopped, 1 failed, 3 another worker has it."""
    where = home()
    store = Store(where / "store.db")
    run = store.run(run_id)
    folder = Path(run.folder)
    with (folder / "worker.lock").open("w") as lock:
        if not _locked(lock) or not store.run(run_id).active:
            return 3
        epoch = store.claim(run_id, os.getpid())
        failpoint("worker.claimed")
        heart = Heart(where / "store.db", run_id, epoch)
        state, error, waits = "Done", None, 0
        try:
            with ExitStack() as stack:
                _carry(stack, store, run_id, epoch, folder, where, heart)
        except Waits as stop:
            state, waits = "Stopped", stop.attempt
        except Stopped:
            state = "Stopped"
            store.event(run_id, "stopped by the operator; it can be resumed")
        except (CafeError, StoreError) as known:
            state, error = "Failed", {"code": known.code, "message": known.message, "hint": known.hint}
        except Exception as unknown:
            (folder / "log").mkdir(exist_ok=True)
            with (folder / "log" / "worker.log").open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            error = {
                "code": "CAFE-690",
                "message": f"The worker met something unforeseen ({type(unknown).__name__}).",
                "hint": "log/worker.log in the run's folder says more; resume the run when it is mended.",
            }
            state = "Failed"
        finally:
            heart.stop()
        try:
            if error:
                store.event(run_id, f"{error['code']} {error['message']}", level="error")
            store.finish(run_id, epoch, state, error)
            if state == "Done" and (told := archive.keep_if_wished(run_id)):
                store.event(run_id, told)
        except StoreError as last:  # a full disk, or another worker: the run shows as Lost contact, or as the other's
            print(error or "", last, file=sys.stderr)
            return 1
    if waits and store.step(run_id, f"stage1/{waits}/approval") and not store.run(run_id).active:
        try:  # the word came while this worker was not done yet: nobody else goes on
            store.queue(run_id)
        except StoreError as taken:  # another run of this name began in between; this one stays stopped, its word kept
            store.event(run_id, f"{taken.code} {taken.message} `cafe resume {run_id}` goes on after it.", level="warning")
            return 0
        return carry(run_id)
    return 0 if state != "Failed" else 1


def _locked(lock: IO[str]) -> bool:
    """Whether this worker has the run's folder to itself; a worker that is just ending is waited for."""
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
    return False


def _carry(stack: ExitStack, store: Store, run_id: str, epoch: int, folder: Path, where: Path, heart: Heart) -> None:
    ctx, machine, ledger = _context(stack, store, run_id, epoch, folder, where, heart)
    with ctx.timed("start"):
        attendance.join_demo(ctx)
        attendance.seat(ctx)
        attendance.greet(ctx)
    tuning.score(ctx, 0, "zero_shot", 0, None)
    attempt, synthetic, whole = _synthetic(ctx, ledger, machine)
    adapter = tuning.run(ctx, attempt, synthetic, machine, whole)
    failpoint("worker.before_results")
    with ctx.timed("save"):
        results.write(ctx, attempt, synthetic, adapter, ledger)
    attendance.hand_over(ctx, ctx.folder / "adapters" / "final")
    ctx.sites.sweep()
    ctx.say("done: the adapter is ready")


def _synthetic(ctx: RunContext, ledger: Ledger, machine: Machine) -> tuple[int, list[Record], bool]:
    """The approved synthetic set, its attempt, and whether it is whole; none without weak sites.

    A rejected set is made again, charged anew. Before anybody decides, training on the set alone is scored.
    """
    attempt = 1
    while ctx.settings.names("cpu"):
        word = ctx.step(f"stage1/{attempt}/approval")
        if word and not word.facts["approved"]:
            attempt += 1
            continue
        synthetic = synthesis.reused(ctx) if ctx.settings.synthetic else synthesis.run(ctx, attempt)
        results.save_synthetic(ctx, attempt, synthetic, results.privacy_statement(ctx, ledger))
        if word is None:
            tuning.audition(ctx, attempt, synthetic, machine)
            word = _decision(ctx, attempt)
        kept = synthesis.kept(synthetic, word.facts)
        return attempt, kept, len(kept) == len(synthetic)
    return attempt, [], True


def _decision(ctx: RunContext, attempt: int) -> Step:
    """The word on a new synthetic set: automatic, or the operator's, for which the run stops."""
    if ctx.settings.synthetic is None and ctx.settings.stage1.approve == "operator":
        ctx.say(
            "the synthetic set waits for the operator: approve or reject it on the page Datasets, or by `cafe approve` and `cafe reject`"
        )
        raise Waits(attempt)
    ctx.say(
        "the synthetic set is approved automatically (stage1.approve)" if ctx.settings.synthetic is None else "the set was approved before"
    )
    return ctx.keep(f"stage1/{attempt}/approval", None, approved=True, reason="automatic")


def _context(
    stack: ExitStack, store: Store, run_id: str, epoch: int, folder: Path, where: Path, heart: Heart
) -> tuple[RunContext, Machine, Ledger]:
    settings = load(folder / "config.yaml")
    store.set_progress(run_id, "the models are looked up", 0, 0)
    told = lambda what, share: store.set_progress(run_id, what, int(1000 * (share or 0.0)), 1000)  # noqa: E731
    base = models.base_model(settings.base_model, told)
    embedder = models.embedder(settings.embedder, told) if settings.names("cpu") else None
    made = plan(settings, adapters.schema(base.path, settings.stage2.target_modules, settings.stage2.lora_rank))
    chosen = store.step(run_id, "machine")  # once per run: the warm start's order names its threads
    machine = Machine(**chosen.facts) if chosen else choose(settings)
    ledger = Ledger(where / "ledger.db")
    door = PrivacyDoor(ledger, folder / "releases")
    door.recover(run_id)
    keys: dict[str, str] = {step.name.removeprefix("site/"): step.facts["key"] for step in store.steps(run_id, "site/")}
    local = stack.enter_context(
        LocalSites(folder / "log", threads=machine.threads, slots=machine.slots, resident=machine.resident, keys=keys)
    )
    remote = joined_sites(where, settings.name, run_id, keys, settings.machine.proxies)
    stack.callback(remote.close)
    ctx = RunContext(
        run=run_id,
        folder=folder,
        home=where,
        settings=settings,
        plan=made,
        store=store,
        epoch=epoch,
        blobs=Blobs(folder / "blobs"),
        door=door,
        keys=server_keys(where),
        sites=Sites(local, remote),
        models=LazyModels(stack, settings, base.path, embedder.path if embedder else None, folder / "adapters", machine.dtype),
        base_model=base,
        embedder=embedder,
        command=lambda: heart.command,
        site_keys=keys,
    )
    _freeze(ctx, machine)
    return ctx, machine, ledger


def _freeze(ctx: RunContext, machine: Machine) -> None:
    """What must not change between a crash and a resume: kept at the first start, compared at every later one."""
    wanted = {
        "base_model": ctx.base_model.sha256,
        "embedder": ctx.embedder.sha256 if ctx.embedder else None,
        "settings": ctx.settings.model_dump_json(),
        "protocol": PROTOCOL,
    }
    step = ctx.keep("frozen", None, **wanted)
    changed = [key for key, value in wanted.items() if step.facts.get(key) != value]
    if changed:
        raise CafeError(
            "CAFE-657", f"The run cannot go on: {', '.join(changed)} changed since it began.", "Restore it, or start a new run."
        )
    ctx.keep("machine", None, **machine.facts())


def main() -> None:
    """Entry of the process."""
    os.umask(0o077)
    sys.exit(carry(sys.argv[1]))


if __name__ == "__main__":
    main()
