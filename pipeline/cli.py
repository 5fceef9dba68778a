"""The command line: ``cafe demo · serve · link · run · status · stop · resume · approve · reject · export · doctor · clean · explain``, and
groups of commands: ``site · globus · members · operators``.

Knows words and exit codes: 0 done, 1 failed, 2 settings or usage, 5 refused for privacy. What is done lies elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from cafe_kit.errors import CafeError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline import error_pages, federations, identity_commands, launch, operators, site_commands, storage_commands, watch
from pipeline.home import home
from pipeline.settings import RunSettings, load
from pipeline.terminal import Format, plain, print_json
from server_store.errors import StoreError
from server_store.rows import Run

app = typer.Typer(
    help="Federated LoRA fine-tuning that includes sites without a GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(site_commands.app, name="site")
app.add_typer(storage_commands.app, name="storage")
app.add_typer(identity_commands.globus, name="globus")
app.add_typer(identity_commands.members, name="members")
app.add_typer(identity_commands.operators_app, name="operators")


_DEMO = """\
Eight invented clinics on this machine teach a small language model which department answers a patient's message. Six of them have no
GPU: they vote, privately, for messages that the model makes up. Two train on their own messages. Nothing leaves this machine.
Stage 1 is private (epsilon 8); stage 2 has no formal guarantee: with two sites its noise would drown everything.
The synthetic messages are approved automatically; a real run can wait for a person to read them."""

RunId = Annotated[str, typer.Argument(help="the run's id, as `cafe status` shows it")]
AsFormat = Annotated[Format, typer.Option("--format", help="text for people, json for machines")]
Out = Annotated[Path | None, typer.Option("--out", help="put the run's folder here (a new or empty folder)")]


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="of the demo's data and plan", min=0)] = 0,
    out: Out = None,
    format: AsFormat = Format.text,
) -> None:
    """Run the demo federation on this machine: eight pretend clinics, invented messages, a small real model."""
    settings = federations.create_demo(seed).settings()
    if format is Format.text:
        _console.print(_DEMO, highlight=False)
    under_way = launch.store().active_run(settings.name)
    if under_way is None:
        _run(settings, out, format)
        return
    _console.print(f"A demo is under way already ({under_way.shown_state}); going on with {under_way.id}.", highlight=False)
    if under_way.shown_state == "Lost contact":
        launch.resume(under_way.id)
    _ended(watch.follow(launch.store(), under_way.id, _quiet(format)), format)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="settings, as YAML")],
    out: Out = None,
    format: AsFormat = Format.text,
    check: Annotated[bool, typer.Option("--check", help="check the settings and foresee the privacy cost; start nothing")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="start and return; `cafe status RUN` follows it")] = False,
) -> None:
    """Run a federation on this machine, from its settings to its adapter."""
    settings = load(config)
    if check:
        _checked(settings, format)
        return
    _run(settings, out, format, detach)


@app.command()
def status(
    run_id: Annotated[str | None, typer.Argument(help="follow this run; without it, list all")] = None,
    format: AsFormat = Format.text,
) -> None:
    """List the runs, or follow one."""
    store = launch.store()
    if format is Format.json:
        found = [store.run(run_id)] if run_id else store.runs()
        print_json([watch.as_json(one) for one in found])
    elif run_id:
        seen = watch.follow(store, run_id, _console, stops=False)
        if seen.active and seen.shown_state != "Lost contact":
            _console.print(f"\nRun {run_id} goes on; `cafe stop {run_id}` ends it.", highlight=False, soft_wrap=True)
            return
        _ended(seen, Format.text)
    else:
        _console.print(watch.runs_table(store.runs()) if store.runs() else "No runs yet. `cafe demo` starts one.")


@app.command()
def stop(run_id: RunId, now: Annotated[bool, typer.Option("--now", help="do not wait for the end of the round")] = False) -> None:
    """Stop a run after its round; it can be resumed."""
    _console.print(launch.stop(run_id, now), highlight=False)


@app.command()
def resume(run_id: RunId, format: AsFormat = Format.text) -> None:
    """Go on with a run that stopped, failed or lost its worker. Nothing that was done is done again."""
    launch.resume(run_id)
    _ended(watch.follow(launch.store(), run_id, _quiet(format)), format)


@app.command()
def approve(run_id: RunId) -> None:
    """Approve the synthetic set that a run waits for, and go on."""
    launch.decide(run_id, True, "", operator=operators.at_terminal(home()))
    _ended(watch.follow(launch.store(), launch.take_up(run_id).id, _console), Format.text)


@app.command()
def reject(run_id: RunId, reason: Annotated[str, typer.Option(help="why; kept with the run")]) -> None:
    """Reject the synthetic set; the run makes another one, which is charged anew."""
    launch.decide(run_id, False, reason, operator=operators.at_terminal(home()))
    _ended(watch.follow(launch.store(), launch.take_up(run_id).id, _console), Format.text)


@app.command()
def export(run_id: RunId, to: Annotated[Path, typer.Option(help="a folder, or the zip's name")] = Path()) -> None:
    """Write a zip of what a run leaves: results, settings, adapter, synthetic set, ledger, events."""
    _console.print(str(launch.export(run_id, to.absolute())), highlight=False, soft_wrap=True)


@app.command()
def clean(run_id: RunId, yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False) -> None:
    """Delete an ended run's folder and rows. What privacy it spent stays in the ledger."""
    found = launch.store().run(run_id)
    if not yes and not typer.confirm(f"Delete {found.folder} for good? What privacy it spent is not given back."):
        raise typer.Exit(1)
    launch.clean(run_id)
    _console.print(f"Run {run_id} is deleted; its charges stay in the ledger.", highlight=False)


@app.command()
def doctor(format: AsFormat = Format.text) -> None:
    """Check this machine: Python, disk, memory, versions, models, store and ledger."""
    from pipeline.doctor import checks

    found = checks(home())
    if format is Format.json:
        print_json([{"name": one.name, "ok": one.ok, "detail": one.detail, "hint": one.hint} for one in found])
    else:
        for one in found:
            mark = "[green]ok  [/green]" if one.ok else "[red]FAIL[/red]"
            _console.print(f"{mark} {one.name}: {one.detail}" + ("" if one.ok else f". {one.hint}"), highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(one.ok for one in found) else 1)


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="where it listens", min=1, max=65535)] = 8501,
    base_url_path: Annotated[str | None, typer.Option(help="path below which a reverse proxy offers the console, such as cafe")] = None,
    hosts: Annotated[str | None, typer.Option(help="names under which a reverse proxy offers it, separated by commas")] = None,
    behind_proxy: Annotated[
        str, typer.Option(help="the proxy asks for a login and names the person in this header, such as X-Remote-User")
    ] = "",
    address: Annotated[str, typer.Option(help="another address to listen on; only with a sign-in by Globus")] = "127.0.0.1",
    open: Annotated[bool, typer.Option("--open", help="open a browser with the one-time link")] = False,
) -> None:
    """Open the console, for a browser on this machine; docs/operator.md has recipes for others."""
    from pipeline.serving import serve as opened

    names = [name.strip() for name in (hosts or "").split(",") if name.strip()]
    opened(port, base_url_path or "", names, address=address, behind_proxy=behind_proxy, browser=open)


app.command()(identity_commands.link)


@app.command()
def explain(code: Annotated[str, typer.Argument(help="an error code, such as CAFE-331")]) -> None:
    """Print the page of an error code: what happened, why, what to do."""
    print(error_pages.explain(code))


def main() -> None:
    """Entry of ``cafe``: an error that is meant for people is printed as one, never as a traceback."""
    try:
        app(standalone_mode=True)
    except (CafeError, StoreError) as error:
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        if "json" in sys.argv or "--format=json" in sys.argv:
            print_json({"error": told})
        else:
            _tell(told)
        sys.exit(5 if error.code.startswith("CAFE-3") else 2)
    except KeyboardInterrupt:
        sys.exit(130)


_console = Console()
_errors = Console(stderr=True)


def _run(settings: RunSettings, out: Path | None, format: Format, detach: bool = False) -> None:
    _prepare(settings, format)
    started = launch.start(settings, out, operators.at_terminal(home()))
    if format is Format.text:
        _console.print(f"run {started.id} in {started.folder}", highlight=False, soft_wrap=True)
    if detach:
        if format is Format.json:
            print_json(watch.as_json(started))
        return
    _ended(watch.follow(launch.store(), started.id, _quiet(format)), format)


def _prepare(settings: RunSettings, format: Format) -> Any:
    """Fetch what is missing, with a bar, and refuse what can be refused before anything starts."""
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=_quiet(format), transient=True) as bars:
        bar = bars.add_task("checking", total=1.0)
        return launch.check(settings, lambda what, share: bars.update(bar, description=what, completed=share))


def _checked(settings: RunSettings, format: Format) -> None:
    made = _prepare(settings, format)
    told = {
        "stage1": {"noise_multiplier": made.votes.noise_multiplier, "vote_snr": made.vote_snr} if made.vote_snr is not None else "off",
        "stage2": {"noise_multiplier": made.deltas.noise_multiplier, "norm_snr": made.norm_snr} if made.norm_snr is not None else "off",
        "trained_parameters": sum(int(a * b) for a, b in made.trained.values()),
    }
    if format is Format.json:
        print_json(told)
        return
    for stage, chance, kind in ((1, made.vote_snr, "cpu"), (2, made.norm_snr, "gpu")):
        part = settings.privacy.stage1 if stage == 1 else settings.privacy.stage2
        line = "no formal guarantee"
        if part is not None and chance is not None:
            line = f"each site spends ε {part.epsilon:g} at δ {part.delta:g}; expected signal-to-noise ratio {chance:.2f}"
            line += "" if chance >= 1 else ": below 1, so the noise is expected to drown most of it"
        _console.print(f"Stage {stage}: {line if settings.names(kind) else 'no site for it'}", highlight=False, soft_wrap=True)
    _console.print(f"{told['trained_parameters']:,} numbers are trained. Nothing was started.", highlight=False)


def _ended(run: Run, format: Format) -> None:
    """Say how it ended; raise the exit code that says the same."""
    file = Path(run.folder) / "results.json"
    if run.state == "Done":
        results = json.loads(file.read_text(encoding="utf-8"))
        if format is Format.json:
            print_json(results)
        else:
            watch.closing(results, _console)
        return
    if format is Format.json:
        print_json(watch.as_json(run))
    elif run.error:
        _tell(run.error)
        _errors.print(f"`cafe resume {run.id}` goes on with it.", highlight=False)
    else:
        _console.print(f"Run {run.id}: {run.shown_state}. `cafe resume {run.id}` goes on with it.", highlight=False)
    code = (run.error or {}).get("code", "")
    raise typer.Exit(5 if code.startswith("CAFE-3") else 0 if run.state == "Stopped" else 1)


def _tell(error: Mapping[str, str]) -> None:
    """An error in the words that the console's card shows, too."""
    code, words = error["code"], plain(f"{error['message']} {error['hint']}")
    _errors.print(f"[bold red]{code}[/bold red] {words}", highlight=False, soft_wrap=True)
    if error_pages.page(code):
        _errors.print(f"`cafe explain {code}` says more.", highlight=False)


def _quiet(format: Format) -> Console:
    return _console if format is Format.text else Console(quiet=True)


if __name__ == "__main__":
    main()
