"""Who takes part in a run: sites of this machine are seated, every site says that it is there, and at the end the joined ones are
handed the adapter.

Knows greetings and their quorum. Does not know rounds, votes or training, nor how a site is reached.
"""

from __future__ import annotations

import time
from pathlib import Path

from cafe_kit.errors import CafeError
from cafe_kit.orders import HelloParams, Order, PrivacyTerms, Transport, sign
from cafe_kit.seat_config import DataConfig, SeatConfig, ServerKeys

from pipeline import delivery, demo_sites, enrolling, federations
from pipeline.context import RunContext
from pipeline.settings import SiteSettings
from pipeline.sites import Envelope, Host

_HELLO_S, _JOINED_HELLO_S = 300.0, 45.0  # a site of this machine may be slow to read its data; a joined one may be away, and is asked again
_WAIT_S = 3600.0  # for the quorum


def join_demo(ctx: RunContext) -> None:
    """The demo's sites join first, where they have not: as every site does, by a kit and four words."""
    demo = next((one for one in federations.listed() if one.name == ctx.settings.name and one.is_demo), None)
    if demo is not None:
        sites = [(site.name, site.kind) for site in ctx.settings.sites if site.data is None]
        demo_sites.join_all(demo, sites, ctx.progress("the demo's sites join"))


def seat(ctx: RunContext) -> None:
    """Make the sites known that this machine serves, each a process with a home of its own that outlives the run (its ledger does)."""
    for site in ctx.settings.sites:
        config = _own(ctx, site) if site.data is not None else _joined_here(ctx, site.name)
        if config is not None:
            ctx.sites.add(Host(site.name, (config.model_dump(mode="json"),)))


def _own(ctx: RunContext, site: SiteSettings) -> SeatConfig:
    """A site whose data file the settings name."""
    source, place = ctx.settings.source(site), ctx.home / "sites" / ctx.settings.name / site.name
    _first_policy(place)
    return SeatConfig(
        site=site.name,
        kind=site.kind,
        home=str(place),
        data=DataConfig(path=str(source.path), format=source.format, columns=dict(source.columns)),
        server=ServerKeys(verify_key=ctx.keys.verify_hex, seal_key=ctx.keys.seal_hex),
    )


def _joined_here(ctx: RunContext, site: str) -> SeatConfig | None:
    """A site that joined and that this machine serves (the demo's), under the key that was approved; None for all other joined ones."""
    kits = [kit for kit in enrolling.listed(ctx.settings.name) if kit.site == site and kit.state == "approved"]
    config = demo_sites.seat_config(kits[0]) if kits else None
    if config is not None:
        ctx.site_keys[site] = kits[0].site_key
    return config


def _first_policy(seat_home: Path) -> None:
    """A site of this machine has no other owner than the operator: no limit until he writes one; the ledger counts all."""
    seat_home.mkdir(parents=True, exist_ok=True, mode=0o700)
    policy = seat_home / "policy.toml"
    if not policy.exists():
        policy.write_text(
            "# Limits of this site; docs/privacy.md explains them. Without max_epsilon there is no limit.\n# max_epsilon = 10.0\n",
            encoding="utf-8",
        )


def greet(ctx: RunContext) -> None:
    """Every site says that it is there and can read its data.

    A site of this machine that cannot at the start ends the start, by name. Joined ones may be away: the run waits for them until each
    stage has its quorum, and goes on without the others, which are asked again in each round.

    Raises:
        CafeError: what a site of this machine says; CAFE-187 when too few came in time.
    """
    here: set[str] = set()
    told: dict[str, str] = {}
    began = time.monotonic()
    ctx.store.set_state(ctx.run, ctx.epoch, "Waiting for sites")
    while True:
        _ask_who_is_here(ctx, here, told)
        lacking = _lacking(ctx, here)
        if not lacking:
            break
        if time.monotonic() - began > _WAIT_S or not set(ctx.settings.joined) - here:
            raise CafeError(
                "CAFE-187",
                f"{lacking}, and these are not there: {', '.join(site.name for site in ctx.settings.sites if site.name not in here)}.",
                "Let their admins start them (`./cafe-site start`), then resume the run; `cafe site doctor SITE` finds a broken link.",
            )
        ctx.may_stop()
    ctx.store.set_state(ctx.run, ctx.epoch, "Running")


def _ask_who_is_here(ctx: RunContext, here: set[str], told: dict[str, str]) -> None:
    """Greet everybody who has not answered yet; ``told``: what was said of those that are away, so that it is said once."""
    asked = [site for site in ctx.settings.sites if site.name not in here]
    envelopes = []
    for site in asked:
        order = Order(ctx.run, 1, 1, 0, site.name, ctx.plan.task, PrivacyTerms("none"), {}, HelloParams())
        transport = Transport({}, str(ctx.folder / "inbox" / "hello"), _HELLO_S if site.data is not None else _JOINED_HELLO_S)
        envelopes.append(Envelope(order, sign(order, ctx.keys.signing), transport))
        ctx.at_site(site.name, "asked")
    tell = ctx.progress("every site is asked whether it is there")
    tell(len(here), len(ctx.settings.sites))
    for answer in ctx.sites.ask(envelopes):
        name = answer.order.site
        fit = answer.reply is not None and answer.reply.status == "ok"
        ctx.at_site(name, "sent" if fit else "failed")
        if fit:
            ctx.keep(f"site/{name}", None, key=ctx.site_keys[name])
            here.add(name)
            tell(len(here), len(ctx.settings.sites))
        elif name not in ctx.settings.joined:
            log = ctx.home / "sites" / ctx.settings.name / name / "log" / "site.log"
            hint = f"{log} says what and where. " if answer.code.startswith("CAFE-2") and log.is_file() else ""
            raise CafeError(
                answer.code or "CAFE-123",
                f"Site {name!r}: {answer.sentence}",
                f"{hint}Mend the site's data or settings, then resume the run.",
            )
        elif told.get(name) != (why := f"is not there: {answer.code} {answer.sentence}"):
            told[name] = why
            ctx.say(why, level="warning", site=name)


def _lacking(ctx: RunContext, here: set[str]) -> str:
    """Which stage would lack its quorum; "" for none."""
    for stage, kind in ((1, "cpu"), (2, "gpu")):
        names = ctx.settings.names(kind)
        if names and len(here.intersection(names)) < ctx.settings.quorum(stage):
            return f"Stage {stage} needs {ctx.settings.quorum(stage)} of its {len(names)} sites"
    return ""


def hand_over(ctx: RunContext, folder: Path) -> None:
    """Send every joined site the run's adapter, as an order that asks nothing back. Who is away is said, and nothing fails by it."""
    if not ctx.settings.joined:
        return
    envelopes = delivery.envelopes(ctx.run, ctx.plan.task, ctx.settings.joined, folder, ctx.keys)
    tell = ctx.progress("the adapter goes to the joined sites")
    for number, answer in enumerate(ctx.sites.ask(envelopes), start=1):
        tell(number, len(envelopes))
        if answer.reply is not None and answer.reply.status == "ok":
            ctx.say("has the adapter", site=answer.order.site)
        else:
            told = f"{answer.code} {answer.sentence}".strip()
            ctx.say(f"does not have the adapter yet: {told}", level="warning", site=answer.order.site)
