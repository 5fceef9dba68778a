"""``cafe site add · list · receive · approve · refuse · revoke``: sites of other machines, from their kit to the operator's answer.

Knows words and options. What is done lies in ``pipeline/enrolling.py``. Exit codes are those of ``cafe``.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline import delivery, enrolling, members, operators
from pipeline.enrolling import Waiting
from pipeline.home import home
from pipeline.terminal import Format, plain, print_json
from server_store.site_kits import SiteKit

app = typer.Typer(help="Sites of other machines: make their kits, let them in.", no_args_is_help=True, add_completion=False)


class Kind(StrEnum):
    """What the site has: no GPU (it votes in stage 1), or one (it trains in stage 2)."""

    cpu = "cpu"
    gpu = "gpu"


class Way(StrEnum):
    """How orders travel to a site of another machine."""

    folder = "folder"
    globus = "globus"


Site = Annotated[str, typer.Argument(help="the site's name, or its kit's serial")]
InFederation = Annotated[str | None, typer.Option("--federation", help="where sites of several federations have this name")]
AsFormat = Annotated[Format, typer.Option("--format", help="text for people, json for machines")]


@app.command()
def add(
    federation: Annotated[str, typer.Argument(help="name of a federation that was set up in the console")],
    name: Annotated[str, typer.Argument(help="of the site: letters, digits, dot, dash, underscore")],
    kind: Annotated[Kind, typer.Option(help="cpu: no GPU, votes in stage 1; gpu: trains in stage 2")],
    exchange: Annotated[Path | None, typer.Option(help="a folder that both sides reach; without it two files are handed over")] = None,
    via: Annotated[
        Way | None,
        typer.Option(help="how orders will reach the site: folder (the exchange folder), globus (Globus Compute and the object store)"),
    ] = None,
    stands_in: Annotated[
        bool, typer.Option("--stands-in", help="your own cluster: it trains for the weak sites and has no records (`machine.proxies`)")
    ] = False,
    member: Annotated[
        str | None, typer.Option(help="who answers for it: a member of the federation's Globus group, by e-mail address or identity")
    ] = None,
    wheels: Annotated[bool, typer.Option("--wheels", help="carry what pip would fetch, for a site without a package index")] = False,
    to: Annotated[Path | None, typer.Option(help="a folder, or the zip's name; `CAFE_HOME/kits` when left out")] = None,
    days: Annotated[float, typer.Option(help="how long the join code is good", min=0.01, max=90)] = enrolling.DAYS,
    format: AsFormat = Format.text,
) -> None:
    """Make the kit for a site. The join code is shown once; tell it by another way than the zip."""
    answers_for = members.named(federation, member) if member else None  # first: of somebody unknown no kit is made
    made = enrolling.issue(
        federation,
        name,
        kind.value,
        exchange=exchange,
        via=via.value if via else None,
        stands_in=stands_in,
        wheels=wheels,
        to=to,
        days=days,
        member=answers_for,
    )
    if format is Format.json:
        print_json({**asdict(made), "zip": str(made.zip), **({"member": answers_for["email"]} if answers_for else {})})
        return
    _say(f"Kit          {made.zip}")
    _say(f"SHA-256      {made.sha256}")
    _say(f"Fingerprint  {made.fingerprint}")
    _say(f"Join code    {made.code}   (shown once; works once, until {_day(made.expires)})")
    if answers_for:
        _say(f"Issued to    {answers_for['email']}")
    _say("Hand over the zip; tell code and fingerprint by another way, such as the telephone. When the site has asked:")
    _say("`cafe site receive`" if exchange else "`cafe site receive FILE`, with the file that the site sends.")


@app.command(name="list")
def list_kits(
    federation: Annotated[str | None, typer.Argument(help="of this federation alone")] = None, format: AsFormat = Format.text
) -> None:
    """List the kits, the newest first, and how far each site has come."""
    kits = enrolling.listed(federation)
    if format is Format.json:
        print_json([_as_json(kit) for kit in kits])
        return
    if not kits:
        _say("No kits yet. `cafe site add FEDERATION NAME --kind cpu` makes one.")
        return
    table = Table("federation", "site", "kind", "state", "since", "serial", box=None)
    for kit in kits:
        expired = kit.state == "issued" and kit.expires < time.time()
        state = "expired" if expired else f"issued, until {_day(kit.expires)[:10]}" if kit.state == "issued" else kit.state
        since = kit.decided or (kit.request or {}).get("made") or kit.issued
        table.add_row(kit.federation, kit.site, kit.kind, state, _day(since)[:10], kit.serial[:8])
    _console.print(table)


@app.command()
def receive(
    file: Annotated[Path | None, typer.Argument(help="what the site sent; without it, whatever lies in the exchange folders")] = None,
    format: AsFormat = Format.text,
) -> None:
    """Take in a site's request, check it, and show what to compare before approving it; or its word that it has left."""
    if file and (left := enrolling.receive_leave(file)):
        _answered(left, None, format)
        return
    here = {kit.serial for kit in enrolling.listed() if kit.state == "approved"}
    found, wrong = ([enrolling.receive(file)], []) if file else enrolling.received()
    gone = [kit for kit in enrolling.listed() if kit.serial in here and kit.state == "left"]
    if format is Format.json:
        told = [{"code": error.code, "message": error.message, "hint": error.hint} for error in wrong]
        print_json({"requests": [_request_as_json(one) for one in found], "left": [_as_json(kit) for kit in gone], "errors": told})
    else:
        for kit in gone:
            _say(f"{kit.site} of {kit.federation} has left; it is asked nothing from now on.")
        for one in found:
            _show(one)
        for error in wrong:
            _say(str(error))
        if not found and not wrong and not gone:
            _say("No request lies in an exchange folder. A file that was handed over: `cafe site receive FILE`.")
    if wrong:
        raise typer.Exit(1)


@app.command()
def approve(
    site: Site,
    words: Annotated[str, typer.Option(help="the four words that the site's admin reads to you")],
    federation: InFederation = None,
    format: AsFormat = Format.text,
) -> None:
    """Let a site in, after its admin has read the four words aloud."""
    kit = enrolling.find(site, federation)
    _answered(kit, enrolling.approve(kit.serial, words, operators.at_terminal(home())), format)


@app.command()
def refuse(
    site: Site,
    reason: Annotated[str, typer.Option(help="why; the site reads it")],
    federation: InFederation = None,
    format: AsFormat = Format.text,
) -> None:
    """Say no to a site's request."""
    kit = enrolling.find(site, federation)
    _answered(kit, enrolling.refuse(kit.serial, reason, operators.at_terminal(home())), format)


@app.command()
def deliver(
    run: Annotated[str, typer.Argument(help="id of a finished run")],
    sites: Annotated[list[str] | None, typer.Argument(help="joined sites; all of the run when left out")] = None,
    format: AsFormat = Format.text,
) -> None:
    """Send a run's adapter once more to its joined sites, such as those that were away at its end."""
    answers = delivery.deliver(run, sites or ())
    if format is Format.json:
        print_json([{"site": one.order.site, "code": one.code, "message": one.sentence} for one in answers])
    else:
        for one in answers:
            _say(f"{one.order.site}: {'has the adapter' if not one.code else f'{one.code} {one.sentence}'}")
    if any(one.code for one in answers):
        raise typer.Exit(1)


@app.command()
def revoke(
    site: Site,
    reason: Annotated[str, typer.Option(help="why; the site reads it")] = "",
    federation: InFederation = None,
    format: AsFormat = Format.text,
) -> None:
    """Take a kit back, whether the site has joined with it or not. Its name is then free for a new one."""
    kit = enrolling.find(site, federation)
    _answered(kit, enrolling.revoke(kit.serial, reason, operators.at_terminal(home())), format)


@app.command()
def doctor(
    site: Site,
    federation: InFederation = None,
    wait: Annotated[float, typer.Option(help="seconds for the greeting; a site that works in jobs may need long", min=1)] = 60.0,
    format: AsFormat = Format.text,
) -> None:
    """Try the whole way to a joined site, up to a signed greeting there and back; say which link is broken and what to do."""
    from pipeline import site_doctor

    links = site_doctor.diagnose(enrolling.find(site, federation), home(), wait)
    if format is Format.json:
        print_json([asdict(link) for link in links])
    else:
        marks = {"ok": "[green]ok  [/green]", "broken": "[red]FAIL[/red]", "not tried": "[dim]--  [/dim]"}
        for link in links:
            told = f"{link.name}: {link.detail}" + (f" {link.hint} {link.code}" if link.state == "broken" else "")
            _console.print(marks[link.state], plain(told), highlight=False, soft_wrap=True)
    raise typer.Exit(0 if site_doctor.broken(links) is None else 1)


_console = Console()


def _say(text: str) -> None:
    _console.print(plain(text), highlight=False, soft_wrap=True)


def _answered(kit: SiteKit, answer: Path | None, format: Format) -> None:
    now = enrolling.find(kit.serial)
    if format is Format.json:
        print_json({**_as_json(now), "answer": str(answer) if answer else None})
        return
    _say(f"{now.site} of {now.federation}: {now.state}.")
    if answer is not None:
        there = " It lies in the exchange folder, too." if now.exchange else " Hand it to the site: `./cafe-site join --approval FILE`."
        _say(f"The answer is {answer}.{there}")


def _show(one: Waiting) -> None:
    """What the operator compares, as a person reads it. Texts from the site are shown as they are."""
    host, limits, consent = one.request.host, one.request.limits, one.request.consent
    epsilon = "no limit" if limits.max_epsilon is None else f"ε {limits.max_epsilon:g} at delta {limits.delta:g}"
    without = "; also runs without noise" if limits.allow_without_noise else "; no run without noise"
    _say(f"\n{one.kit.site} of {one.kit.federation} ({one.kit.kind}), {one.kit.state}, asked {_day(one.request.made)}")
    _say(f"  Words     {'-'.join(one.words)}")
    _say(f"  Machine   {host.system}, Python {host.python}, {host.cores} cores, {host.memory_gib:g} GiB, {host.gpu or 'no GPU'}")
    _say(f"  Limits    {epsilon}, answers {', '.join(limits.kinds)}{without}")
    _say(f"  Records   {'not told' if one.request.records is None else f'about {one.request.records}'}")
    _say(f"  Consent   {', '.join(part for part in (consent.name, consent.role, consent.reference) if part)}")
    if one.kit.state == "requested":
        _say("Call the site's admin and let them read their four words. Only if they are the same:")
        _say(f"`cafe site approve {one.kit.site} --words WORD-WORD-WORD-WORD`, with the words that you hear")


def _request_as_json(one: Waiting) -> dict[str, Any]:
    return {**_as_json(one.kit), "words": "-".join(one.words), "request": asdict(one.request)}


def _as_json(kit: SiteKit) -> dict[str, Any]:
    """A kit without what proves its code."""
    hidden = ("code_key", "request")
    return {name: value for name, value in asdict(kit).items() if name not in hidden}


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
