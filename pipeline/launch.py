"""Starting, resuming and ending runs, for whoever asks: the command line and the console call the same functions.

Knows folders, the store and how a worker process is started. Does not carry a run, and draws nothing.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cafe_kit.errors import CafeError
from cafe_kit.release import make_folder

from pipeline import adapters, bundles, federations, models, synthesis
from pipeline.fetch import Progress
from pipeline.home import home
from pipeline.plan import Plan, plan, refusals
from pipeline.plan import foresee as foresee_plan
from pipeline.settings import RunSettings, to_yaml
from server_store.blobs import write_whole
from server_store.desk import Desk
from server_store.errors import StoreError
from server_store.rows import Run, Step
from server_store.store import Store


def store() -> Store:
    """The store of this home."""
    return Store(home() / "store.db")


def desk() -> Desk:
    """The store with the operators' notes, for the console."""
    return Desk(home() / "store.db")


def check(settings: RunSettings, progress: Progress | None = None) -> Plan:
    """Everything that can be refused before a run exists: models, public files, privacy terms, chances.

    Raises:
        CafeError: with the code of what is wrong; nothing was started.
    """
    _check_public(settings)
    base = models.base_model(settings.base_model, progress)
    if settings.names("cpu"):
        models.embedder(settings.embedder, progress)
    return plan(settings, adapters.schema(base.path, settings.stage2.target_modules, settings.stage2.lora_rank))


def foresee(settings: RunSettings) -> tuple[Plan, list[CafeError]] | None:
    """What a run of these settings would cost and hope for, and what would be refused; None until its base model is on this disk.

    Fetches, starts and loads nothing: a form asks it at every change.
    """
    base = models.at_hand(settings.base_model)
    if base is None:
        return None
    made = foresee_plan(settings, adapters.schema(base, settings.stage2.target_modules, settings.stage2.lora_rank))
    return made, [] if settings.privacy.accept_noise else refusals(made, settings)


def check_at_hand(settings: RunSettings) -> None:
    """What can be refused at once, in a process that never loads torch; the worker checks the rest before anything is spent.

    Raises:
        CafeError: with the code of what is wrong; nothing was started.
    """
    _check_public(settings)
    foreseen = foresee(settings)
    for refusal in foreseen[1] if foreseen else []:
        raise refusal


def start(settings: RunSettings, out: Path | None = None, operator: str = "") -> Run:
    """Create a run and start its worker, in the name of ``operator``. Two starts of one name at once give one run: the second is refused.

    Raises:
        CafeError: CAFE-606 when ``out`` is in use. StoreError: CAFE-654 when a run of this name is active.
    """
    run_id = f"{settings.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    folder = (out or home() / "runs" / run_id).absolute()
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)  # of two starts into one folder, one succeeds
    except OSError as error:
        raise CafeError(
            "CAFE-606", f"The run's folder {folder} cannot be used ({error.strerror}).", "Name a new or empty folder with --out."
        ) from None
    try:
        make_folder(folder)  # durable, with the settings in it, before a row tells of the run
        write_whole(folder / "config.yaml", to_yaml(settings).encode())
        run = store().create_run(run_id, settings.name, folder, operator)
    except BaseException:
        shutil.rmtree(folder)
        raise
    spawn(run)
    return run


def start_demo(operator: str = "") -> Run:
    """The demo federation, set up if it is not there, and its run: a new one, or the one that is under way already.

    A double click, a second tab and a `cafe demo` in a terminal give one run. Returns at once: the worker fetches the models.
    """
    with (home("federations") / ".demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # or two would write the same files
        known = {one.name: one for one in federations.listed()}
        demo = known.get("demo") or federations.create_demo()
        if under_way := store().active_run(demo.name):
            return under_way
        try:
            return start(demo.settings(), operator=operator)
        except StoreError as error:
            if error.code == "CAFE-654" and (under_way := store().active_run(demo.name)):
                return under_way  # a terminal was quicker by a moment
            raise


def start_once(settings: RunSettings, seen: str | None, operator: str) -> tuple[Run, bool]:
    """Start, unless somebody did since ``seen`` was the newest run of this name: then that one, and False. Raises as ``start`` does."""
    found = store()
    newest = newest_of(found, settings.name)
    if newest and newest.id != seen:
        return newest, False
    try:
        return start(settings, operator=operator), True
    except StoreError as error:
        other = found.active_run(settings.name)
        if error.code != "CAFE-654" or other is None:
            raise
        return other, False


def newest_of(store: Store, name: str) -> Run | None:
    """The newest run of this name."""
    return next((run for run in store.runs() if run.name == name), None)


def resume(run_id: str) -> Run:
    """Go on with a run from where it stopped. A run whose worker lives is left alone."""
    found = store()
    run = found.run(run_id)
    if run.shown_state == "Done":
        raise CafeError("CAFE-658", f"Run {run_id} is done.", "`cafe run` starts a new one.")
    if _at_work(run):
        raise CafeError("CAFE-658", f"Run {run_id} is {run.shown_state.lower()} already.", f"`cafe status {run_id}` follows it.")
    found.queue(run_id)
    spawn(run)
    return found.run(run_id)


def take_up(run_id: str) -> Run:
    """Go on after the operator's word. A worker that still scores the set finds the word by itself."""
    run = store().run(run_id)
    return run if _at_work(run) else resume(run_id)


def _at_work(run: Run) -> bool:
    return run.active and run.shown_state != "Lost contact" and run.pid is not None


def spawn(run: Run) -> None:
    """A worker in a session of its own: closing the terminal or the console does not touch it."""
    logs = Path(run.folder) / "log"
    logs.mkdir(exist_ok=True, mode=0o700)
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH", "")) if part)
    with (logs / "worker.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.worker", run.id],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )


def stop(run_id: str, now: bool) -> str:
    """Ask for a stop after the round, or now; ends a run at once whose worker is gone. Returns what was done."""
    found = store()
    run = found.run(run_id)
    if not run.active:
        return f"Run {run_id} is {run.state.lower()} already."
    if run.shown_state == "Lost contact" or run.pid is None:
        found.abandon(run_id)
        return f"Run {run_id} had no worker any more; it is stopped and can be resumed."
    found.command(run_id, "stop now" if now else "stop")
    return f"Run {run_id} stops {'now' if now else 'after this round'}; what privacy it spent stays spent."


def decide(run_id: str, approved: bool, reason: str, attempt: int | None = None, operator: str = "") -> tuple[Step, bool]:
    """The operator's word on the synthetic set that a run waits for, kept once per attempt, with the rows that he left out.

    attempt: the one that he looked at; left out, the one that waits.

    Returns: the word that counts, and whether it is this one: of two operators the first is heard.

    Raises:
        CafeError: CAFE-659 when no set of this attempt waits.
    """
    found = desk()
    run = found.run(run_id)
    waiting = 1
    while found.step(run_id, f"stage1/{waiting}/approval"):
        waiting += 1
    attempt = waiting if attempt is None else attempt
    if not found.step(run_id, f"stage1/{attempt}/synthetic"):
        raise CafeError("CAFE-659", f"Run {run_id} has no synthetic set that waits for approval.", "`cafe status` shows what it does.")
    name, token = f"stage1/{attempt}/approval", secrets.token_hex(8)
    out = sorted(found.excluded(run_id, attempt)) if approved else []
    facts = {"approved": approved, "reason": reason, "excluded": out, "operator": operator, "token": token}
    word = found.step(run_id, name) or found.save_step(run_id, run.epoch, name, None, facts)
    return word, word.facts.get("token") == token


def export(run_id: str, to: Path) -> Path:
    """A zip of what a run leaves, for reproduction; in the folder ``to``, or as the file ``to``."""
    return bundles.export(store(), run_id, to / f"{run_id}.zip" if to.is_dir() else to)


def clean(run_id: str) -> None:
    """Delete an ended run: its folder and its rows. Its charges stay in the ledger: privacy is not given back."""
    found = store()
    run = found.run(run_id)
    if run.active and run.shown_state != "Lost contact":
        raise CafeError("CAFE-658", f"Run {run_id} is {run.shown_state.lower()}.", f"`cafe stop {run_id}` first.")
    if run.pid and run.shown_state == "Lost contact" and _alive_worker(run):
        os.killpg(run.pid, signal.SIGKILL)
    shutil.rmtree(run.folder, ignore_errors=True)
    found.delete(run_id)


def _check_public(settings: RunSettings) -> None:
    settings.public_task()
    settings.test_records()
    settings.examples()
    if settings.synthetic:
        synthesis.approved_set(store(), settings.synthetic)


def _alive_worker(run: Run) -> bool:
    """Whether the silent pid is really a worker of this run, and not a stranger with its number."""
    try:
        line = Path(f"/proc/{run.pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"pipeline.worker" in line and run.id.encode() in line
