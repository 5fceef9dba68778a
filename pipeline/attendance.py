"""Who takes part in a run: sites of this machine are seated, every site says that it is there, and at the end the joined ones are
handed the adapter.

Knows greetings and their quorum. Does not know rounds, votes or training, nor how a site is reached.
"""

from __future__ import annotations

from pathlib import Path

from cafe_kit.errors import CafeError
from cafe_kit.orders import HelloParams, Order, PrivacyTerms, Transport, sign
from cafe_kit.seat_config import DataConfig, SeatConfig, ServerKeys

from pipeline import delivery, demo_sites, enrolling, federations
from pipeline.context import RunContext
from pipeline.settings import SiteSettings
from pipeline.sites import Envelope, Host

_HELLO_S = 300.0  # a site of this machine may have to read its data; a joined one that is away is waited for as long


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

    A site of this machine that cannot at the start ends the start, by name. A joined one may be away: the run goes on while enough others
    are there for each stage's quorum.
    """
    envelopes = []
    for site in ctx.settings.sites:
        order = Order(ctx.run, 1, 1, 0, site.name, ctx.plan.task, PrivacyTerms("none"), {}, HelloParams())
        envelopes.append(Envelope(order, sign(order, ctx.keys.signing), Transport({}, str(ctx.folder / "inbox" / "hello"), _HELLO_S)))
    here: set[str] = set()
    tell = ctx.progress("every site is asked whether it is there")
    ctx.store.set_state(ctx.run, ctx.epoch, "Waiting for sites")
    for site in ctx.settings.sites:
        ctx.at_site(site.name, "asked")
    for number, answer in enumerate(ctx.sites.ask(envelopes), start=1):
        tell(number, len(envelopes))
        ctx.at_site(answer.order.site, "sent" if answer.reply is not None and answer.reply.status == "ok" else "failed")
        if answer.reply is not None and answer.reply.status == "ok":
            ctx.keep(f"site/{answer.order.site}", None, key=ctx.site_keys[answer.order.site])
            here.add(answer.order.site)
        elif answer.order.site in ctx.settings.joined:
            ctx.say(f"is not there: {answer.code} {answer.sentence}", level="warning", site=answer.order.site)
        else:
            raise CafeError(
                answer.code or "CAFE-123",
                f"Site {answer.order.site!r}: {answer.sentence}",
                "Mend the site's data or settings, then resume the run.",
            )
    _check_enough(ctx, here)
    ctx.store.set_state(ctx.run, ctx.epoch, "Running")


def _check_enough(ctx: RunContext, here: set[str]) -> None:
    """Raises CAFE-187 where a stage would lack its quorum from the start."""
    for stage, kind in ((1, "cpu"), (2, "gpu")):
        names = ctx.settings.names(kind)
        if names and len(here.intersection(names)) < ctx.settings.quorum(stage):
            away = ", ".join(name for name in names if name not in here)
            raise CafeError(
                "CAFE-187",
                f"Stage {stage} needs {ctx.settings.quorum(stage)} of its {len(names)} sites, and these are not there: {away}.",
                "Let their admins start them (`./cafe-site start`), then resume the run; `cafe site doctor SITE` finds a broken link.",
            )


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
