"""``cafe globus setup · login · logout · whoami · client``, ``cafe members group · invite · list · remove · bind``,
``cafe operators add · list · remove`` and ``cafe link``: who somebody is, and what follows from it, at a terminal.

Knows words, options and prompts; a secret is typed, or read from the environment, and never stands on a command line. What is done lies
in ``globus_login``, ``groups``, ``members``, ``operators`` and ``entrance``.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Annotated

import typer
from cafe_kit.errors import CafeError
from rich.console import Console
from rich.table import Table

from pipeline import enrolling, entrance, federations, globus_compute, globus_login, globus_settings, groups, operators, site_applications
from pipeline import members as membership
from pipeline.home import home
from pipeline.terminal import Format, plain, print_json
from pipeline.vault import Vault

SECRET = "CAFE_GLOBUS_SECRET"

globus = typer.Typer(help="Globus: sign in, and the applications that this server and its sites use.", no_args_is_help=True)
members = typer.Typer(help="The people of a federation: its Globus group.", no_args_is_help=True)
operators_app = typer.Typer(help="Who may operate this server by signing in with Globus.", no_args_is_help=True)

AsFormat = Annotated[Format, typer.Option("--format", help="text for people, json for machines")]
InFederation = Annotated[str, typer.Argument(help="name of a federation")]
Username = Annotated[str, typer.Argument(help="Globus username, as app.globus.org shows it; it looks like an e-mail address")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]


def link() -> None:
    """Print another one-time link to the console that was started last."""
    print(entrance.link(home()))


# -- cafe globus -------------------------------------------------------------------------------------------------------


@globus.command()
def setup(
    public: Annotated[str | None, typer.Option(help="id of an application without a secret: sign-in by code")] = None,
    confidential: Annotated[str | None, typer.Option(help=f"id of an application with a secret; asked for, or in {SECRET}")] = None,
    redirect: Annotated[str | None, typer.Option(help="its redirect: https://HOST/PATH/oauth2callback")] = None,
    format: AsFormat = Format.text,
) -> None:
    """Say which Globus applications this server uses, or show it. An empty id takes one away."""
    before = globus_settings.read(home())
    given = {"public": public, "confidential": confidential, "redirect": redirect}
    changed = {name: value.strip() for name, value in given.items() if value is not None}
    if changed.get("confidential"):
        secret = _secret()
        globus_login.check_secret(changed["confidential"], secret)
        Vault(home()).put(globus_settings.application_secret(changed["confidential"]), {"client_secret": secret})
    now = globus_settings.write(home(), replace(before, **changed)) if changed else before
    if format is Format.json:
        print_json(asdict(now))
        return
    _say(f"sign-in by code      {now.public or 'not set up'}")
    _say(f"this server itself   {now.confidential or 'not set up'}")
    _say(f"sign-in by redirect  {now.redirect or 'not set up'}")


@globus.command()
def login(
    applications: Annotated[
        bool, typer.Option("--applications", help="also allow to register applications (`cafe globus client`)")
    ] = False,
) -> None:
    """Sign in with Globus: open an address in any browser, paste the code that it shows."""
    flow = globus_login.begin(home(), applications=applications)
    _say("Open this address in a browser, sign in, and copy the code that it shows:")
    print(f"\n{flow.url}\n")
    identity = globus_login.finish(home(), flow.id, typer.prompt("Code", hide_input=True))
    globus_settings.remember_account(home(), identity.id)
    _say(f"Signed in as {identity.username}.")
    if not operators.listed(home()):
        operators.admit(home(), identity, claims=True)
        _say(f"{identity.username} is the first operator of this server.")


@globus.command()
def logout() -> None:
    """Sign out: Globus forgets what it allowed for this server, and nothing of it stays here."""
    account = globus_settings.read(home()).account
    if not account:
        _say("Nobody is signed in.")
    elif globus_login.sign_out(home(), account):
        _say("Signed out.")
    else:
        _say("Signed out here. Globus could not be asked to forget its tokens: see app.globus.org, under Settings, Consents.")


@globus.command()
def whoami(format: AsFormat = Format.text) -> None:
    """Who is signed in with Globus for the command line."""
    found = globus_login.signed_in(home(), globus_settings.read(home()).account)
    if format is Format.json:
        print_json({"username": found.username, "identity": found.id} if found else None)
    else:
        _say(f"{found.username} ({found.id})" if found else "Nobody is signed in. `cafe globus login` does it.")
    raise typer.Exit(0 if found else 1)


@globus.command()
def client(
    site: Annotated[str, typer.Argument(help="the site's name, or its kit's serial")],
    client_id: Annotated[
        str | None, typer.Option(help=f"of an application that was registered for it; its secret is asked for, or in {SECRET}")
    ] = None,
    federation: Annotated[str | None, typer.Option("--federation", help="where sites of several federations have this name")] = None,
    endpoint_id: Annotated[str | None, typer.Option(help="of an endpoint that the site itself owns: docs/globus-root.md")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="forget the site's application instead")] = False,
) -> None:
    """Make the Globus application (confidential client) of a site, or take one that was pasted."""
    kit = enrolling.find(site, federation)
    if endpoint_id:
        globus_compute.take_endpoint(home(), kit, endpoint_id)
        _say(f"{kit.site} is reached at its own endpoint {endpoint_id}.")
        return
    if drop:
        site_applications.drop(home(), kit)
        _say(f"{kit.site} has no Globus application any more.")
        return
    if client_id:
        made = site_applications.take(home(), kit, client_id, _secret())
    else:
        made = site_applications.make(home(), kit, globus_settings.read(home()).account)
    _say(f"{kit.site} is reached under the Globus application {made}. Its secret is in the vault.")


# -- cafe members ------------------------------------------------------------------------------------------------------


@members.command()
def group(
    federation: InFederation,
    choose: Annotated[str | None, typer.Option(help="id of a group that exists and that you manage")] = None,
    forget: Annotated[bool, typer.Option("--forget", help="the federation shall have no group; at Globus nothing changes")] = False,
    yes: Yes = False,
) -> None:
    """Make the Globus group of a federation, or choose one; from then on only sites of its active members take part."""
    federations.get(federation)
    account = globus_settings.read(home()).account
    if forget:
        if not yes and not typer.confirm("Every approved site may then take part, whoever it was issued to. Forget the group?"):
            raise typer.Exit(1)
        groups.forget(home(), federation)
        _say(f"{federation} has no group any more.")
        return
    made = groups.choose(home(), federation, choose, account) if choose else groups.create(home(), federation, account)
    membership.forget(federation)
    _say(f"{federation}: {made.name} ({made.id}). Sites that are not tied to an active member are not asked any more.")


@members.command()
def invite(
    federation: InFederation,
    email: Annotated[str, typer.Argument(help="the address under which the person signs in with Globus")],
    format: AsFormat = Format.text,
) -> None:
    """Invite somebody by e-mail; Globus writes to him."""
    made = groups.invite(home(), federation, email)
    if format is Format.json:
        print_json(asdict(made))
    else:
        _say(f"{made.email or made.username} is invited. His site takes part once he has accepted.")


@members.command(name="list")
def list_members(federation: InFederation, format: AsFormat = Format.text) -> None:
    """List who is in the group, who was invited, and which sites were issued to them."""
    found = groups.members(home(), federation)
    sites = {one.identity: membership.sites_of(federation, one) for one in found}
    if format is Format.json:
        print_json([{**asdict(one), "sites": sites[one.identity]} for one in found])
        return
    table = Table("person", "role", "status", "sites", box=None)
    for one in found:
        table.add_row(plain(one.email or one.username), one.role, one.status, ", ".join(sites[one.identity]))
    _console.print(table)
    if said := membership.silence(federation):
        _say(said)


@members.command()
def remove(
    federation: InFederation, person: Annotated[str, typer.Argument(help="e-mail address, username or identity")], yes: Yes = False
) -> None:
    """Take somebody out of the group, or his invitation back; his site stops at its next round."""
    if not yes and not typer.confirm(f"Remove {person}? His sites take part in no further round."):
        raise typer.Exit(1)
    gone = membership.remove(federation, person)
    _say(f"{gone.email or gone.username} is removed.")


@members.command()
def bind(
    site: Annotated[str, typer.Argument(help="the site's name, or its kit's serial")],
    email: Annotated[str, typer.Argument(help="of a member, invited or active")],
    federation: Annotated[str | None, typer.Option("--federation", help="where sites of several federations have this name")] = None,
) -> None:
    """Tie a site to a member of the group, for kits that were made before there was one."""
    kit = membership.bind(enrolling.find(site, federation).serial, email)
    _say(f"{kit.site} is issued to {kit.connection['member']['email']}.")


# -- cafe operators ----------------------------------------------------------------------------------------------------


@operators_app.command()
def add(username: Username) -> None:
    """Let somebody operate this server; he signs in with Globus under this name."""
    added = operators.add(home(), username, operators.at_terminal(home()))
    _say(f"{added.username} may operate this server.")


@operators_app.command(name="list")
def list_operators(format: AsFormat = Format.text) -> None:
    """List who may operate this server."""
    found = operators.listed(home())
    if format is Format.json:
        print_json([asdict(one) for one in found])
        return
    table = Table("operator", "has signed in", "added by", box=None)
    for one in found:
        table.add_row(plain(one.username), "yes" if one.identity else "not yet", plain(one.by))
    _console.print(table if found else "Nobody. The first one who signs in with Globus from a one-time link becomes an operator.")


@operators_app.command(name="remove")
def remove_operator(username: Username) -> None:
    """Take the right away; his sessions end at once."""
    if not operators.remove(home(), username):
        raise CafeError("CAFE-192", f"{username[:60]!r} is no operator here.", "`cafe operators list` shows who is.")
    _say(f"{username} may not operate this server any more.")


_console = Console()


def _secret() -> str:
    return os.environ.get(SECRET) or str(typer.prompt("Secret", hide_input=True))


def _say(text: str) -> None:
    _console.print(plain(text), highlight=False, soft_wrap=True)
