"""``cafe storage set · show · check · keep · sweep · forget``: the object store of this home.

Knows words and options. What is done lies in ``pipeline/storage.py``, ``archive.py`` and ``object_depot.py``. A secret is asked for, never
taken from the command line.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from cafe_kit.errors import CafeError
from rich.console import Console

from pipeline import storage
from pipeline.terminal import Format, plain, print_json

app = typer.Typer(
    help="The object store (S3) by which sites of other machines fetch and deliver.", no_args_is_help=True, add_completion=False
)

AsFormat = Annotated[Format, typer.Option("--format", help="text for people, json for machines")]
RunId = Annotated[str, typer.Argument(help="the run's id, as `cafe status` shows it")]
_MARKS = {"ok": "[green]ok    [/green]", "warn": "[yellow]warn  [/yellow]", "failed": "[red]FAILED[/red]"}


@app.command(name="set")
def set_store(
    bucket: Annotated[str | None, typer.Option(help="the bucket's name; it must exist")] = None,
    endpoint: Annotated[str | None, typer.Option(help="https://HOST of the S3 service, as sites reach it; '' for AWS")] = None,
    prefix: Annotated[str | None, typer.Option(help="folder in the bucket; '' for none")] = None,
    region: Annotated[str | None, typer.Option(help="the bucket's region")] = None,
    profile: Annotated[str | None, typer.Option(help="take the access key from this profile of ~/.aws")] = None,
    access_key: Annotated[str | None, typer.Option(help="keep this access key here, encrypted; its secret is asked for")] = None,
    keep_results: Annotated[
        bool | None, typer.Option("--keep-results/--no-keep-results", help="copy results of finished runs there")
    ] = None,
    format: AsFormat = Format.text,
) -> None:
    """Set up the object store, or change what is named. Then try it: `cafe storage check`."""
    given = {
        "bucket": bucket,
        "endpoint_url": endpoint,
        "prefix": prefix,
        "region": region,
        "profile": profile,
        "keep_results": keep_results,
    }
    secret = (access_key, _secret()) if access_key else None
    storage.set_up({name: value for name, value in given.items() if value is not None}, secret)
    show(format)


@app.command()
def show(format: AsFormat = Format.text) -> None:
    """Show which object store is set up. No secret is shown."""
    found = storage.configured()
    told: dict[str, Any] = {} if found is None else {**found.model_dump(), "key": storage.key_source(found)}
    if format is Format.json:
        print_json(told)
    elif found is None:
        _say("No object store is set up. `cafe storage set --bucket NAME --endpoint https://HOST` does it.")
    else:
        place = "/".join(part for part in (found.bucket, found.prefix) if part)
        _say(f"Store        {found.endpoint_url or 'AWS'}, region {found.region}")
        _say(f"Bucket       {place}")
        _say(f"Access key   {told['key']}")
        _say(f"Results      {'of finished runs are kept there, too' if found.keep_results else 'stay on this machine'}")


@app.command()
def check(format: AsFormat = Format.text) -> None:
    """Try everything that a run needs of the store, some seconds long. What is written for it is deleted again."""
    found = []
    for one in storage.checks(storage.object_store(patience_s=8.0)):
        found.append(one)
        if format is Format.text:
            _console.print(f"{_MARKS[one.state]} {plain(one.sentence)} {plain(one.meaning)}".rstrip(), highlight=False, soft_wrap=True)
    if format is Format.json:
        print_json([{"name": one.name, "state": one.state, "sentence": one.sentence, "meaning": one.meaning} for one in found])
    else:
        failed, warned = (sum(one.state == state for one in found) for state in ("failed", "warn"))
        _say("\nRuns cannot use this store yet." if failed else f"\nThis store is fit for runs{', with a warning' if warned else ''}.")
    raise typer.Exit(1 if any(one.state == "failed" for one in found) else 0)


@app.command()
def keep(run_id: RunId, format: AsFormat = Format.text) -> None:
    """Copy results, settings, figures and log of a finished run into the store; nothing that is not public or noised."""
    from pipeline import archive

    kept = archive.keep(run_id, storage.object_store())
    if format is Format.json:
        print_json([{"key": one.key, "size": one.size, "sha256": one.sha256} for one in kept])
        return
    for one in kept:
        _say(f"{one.key}  ({one.size} bytes)")


@app.command()
def sweep(
    run_id: Annotated[str | None, typer.Argument(help="a run that has ended")] = None,
    models: Annotated[bool, typer.Option("--models", help="the models that runs have handed out, too")] = False,
) -> None:
    """Delete what a run has left on its way (adapters handed out, answers not fetched), or the models. Kept results stay."""
    from pipeline import launch, object_depot

    if run_id and (run := launch.store().run(run_id)).active:
        raise CafeError("CAFE-658", f"Run {run.id} is {run.shown_state.lower()}.", "Stop it first, or wait for its end.")
    store = storage.object_store()
    count = object_depot.ObjectDepot(store, run_id).sweep() if run_id else 0
    count += object_depot.sweep_models(store) if models else 0
    _say(f"{count} objects were deleted." if run_id or models else "Name a run, or --models.")


@app.command()
def forget(yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False) -> None:
    """Forget the store and its key on this machine. Objects stay where they are."""
    if not yes and not typer.confirm("Forget the object store of this home? Sites that fetch and deliver by it are not reached any more."):
        raise typer.Exit(1)
    storage.forget()
    _say("The object store is forgotten; its objects stay where they are.")


_console = Console()


def _say(text: str) -> None:
    _console.print(plain(text), highlight=False, soft_wrap=True)


def _secret() -> str:
    """Typed unseen, or the first line of what is piped in: a command line can be seen by others of this machine."""
    if sys.stdin.isatty():
        return str(typer.prompt("Secret", hide_input=True)).strip()
    secret = sys.stdin.readline().strip()
    if not secret:
        raise CafeError("CAFE-694", "No secret was given for the access key.", "Type it when asked, or pipe it in: it is one line.")
    return secret
