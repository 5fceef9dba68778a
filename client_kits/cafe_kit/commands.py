"""The verbs of a site that has joined: what it does, what left, what is allowed, what came, and the end.

Knows words and what each prints. Does not know how anything is done: each verb is one call and its printing. ``cli.py`` names them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from cafe_kit import adapters, explain, instance, joining, kit_folder, leaving, limits, outbox, service, site_folder, starting
from cafe_kit.connection import Folder
from cafe_kit.errors import CafeError
from cafe_kit.explain import Sent
from cafe_kit.policy import Policy, load_policy
from cafe_kit.site_folder import SiteSettings
from cafe_kit.site_home import SiteHome
from cafe_kit.terminal import OK, Output

_OUTBOX = {
    "auto": "answers leave at once",
    "review": "each answer waits for your word: cafe-site outbox",
    "dry-run": "nothing leaves; what would have is in outbox/dry-run",
}


def the_site(options: argparse.Namespace) -> tuple[Path, SiteSettings]:
    """The site's folder, found by the kit where there is one, and its settings. The kit's files need not be whole for that."""
    try:
        info = kit_folder.read_info(kit_folder.find_kit(options.kit))
    except CafeError:
        info = None
    home = site_folder.site_home(info)
    return home, site_folder.joined(home)


def its_kit(options: argparse.Namespace, settings: SiteSettings) -> Path | None:
    """The folder of the kit that this site joined with, if cafe-site runs out of it."""
    try:
        folder = kit_folder.find_kit(options.kit)
        return folder if kit_folder.read_info(folder).serial == settings.serial else None
    except CafeError:
        return None


def status(options: argparse.Namespace, out: Output) -> int:
    home, settings = the_site(options)
    policy, paused, process = load_policy(home / "policy.toml"), limits.is_paused(home), instance.running(home)
    done = explain.sent(home, policy.delta)
    state, way = _standing(home, settings)
    last = explain.last_order(home, policy)
    document = {
        "federation": settings.federation,
        "site": settings.site,
        "state": state,
        "words": joining.words(settings),
        "connection": way,
        "running": process is not None,
        "process": process,
        "service": str(service.path(settings)) if service.path(settings).is_file() else None,
        "paused": paused,
        "outbox": policy.outbox,
        "waiting": len(outbox.waiting(home)),
        "last_order": last,
        "answers": len(done),
        "without_guarantee": sum(item.charge.mechanism == "none" for item in done),
        "epsilon": done[-1].total if done else 0.0,
        "max_epsilon": policy.max_epsilon,
        "delta": policy.delta,
    }
    out.end(document, *_status_lines(settings, document, policy))
    return OK


def _standing(home: Path, settings: SiteSettings) -> tuple[str, str | None]:
    """What the operator said, and how orders come."""
    approval = site_folder.answer(home, settings)
    if approval is None:
        return "waiting", None
    try:
        way = starting.way(home, settings)
    except CafeError as error:
        return {"CAFE-154": "refused", "CAFE-115": "expired"}.get(error.code, "joined"), None
    return "joined", f"folder {settings.exchange}" if isinstance(way, Folder) else f"Globus Compute, endpoint {way.endpoint_name}"


def _status_lines(settings: SiteSettings, told: dict[str, Any], policy: Policy) -> list[str]:
    words = {
        "waiting": "waiting for the operator",
        "refused": "refused by the operator",
        "expired": "let in for a time that is over",
        "joined": "let in by the operator",
    }[told["state"]]
    at_work = f"yes, process {told['process']}" if told["running"] else "no; begin with: cafe-site start"
    spent = f"ε {told['epsilon']:.3g}" + (f" of {policy.max_epsilon:g}" if policy.max_epsilon is not None else "")
    last = told["last_order"]
    return [
        f"{settings.site} in {settings.federation}: {words}{', PAUSED' if told['paused'] else ''}",
        f"words: {told['words']}",
        f"orders come by: {told['connection'] or 'not known yet'}",
        f"at work: {at_work}",
        *([f"service: {told['service']}"] if told["service"] else []),
        f"last order: {_minute(last['time'])}  {last['text']}" if last else "last order: none yet",
        f"outbox: {policy.outbox}, {_OUTBOX[policy.outbox]}" + (f"; {told['waiting']} wait" if told["waiting"] else ""),
        f"privacy spent: {spent} at delta {policy.delta:g}, in {_answers(told['answers'])}"
        + (f"; {told['without_guarantee']} of them without noise, hence with no formal guarantee" if told["without_guarantee"] else ""),
    ]


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count} answers"


def _minute(moment: str) -> str:
    """A moment of the ledger or the log, which are kept in UTC, by the clock on the wall."""
    with suppress(ValueError):
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")
    return moment[:16]


def log(options: argparse.Namespace, out: Output) -> int:
    home, _ = the_site(options)
    lines = explain.history(home, load_policy(home / "policy.toml"), options.explain)
    out.end(lines, *(f"{_minute(line['time'])}  {line['text']}" for line in lines or [{"time": "", "text": "Nothing happened yet."}]))
    return OK


def show_outbox(options: argparse.Namespace, out: Output) -> int:
    home, _ = the_site(options)
    policy = load_policy(home / "policy.toml")
    found = explain.sent(home, policy.delta)
    act, number = options.act
    if options.all != (act == "approve" and number is None):
        raise CafeError("CAFE-157", "Which answer may leave?", "Write: cafe-site outbox approve N, or approve --all")
    if act in ("approve", "refuse"):
        return _decide(home, policy, act, _chosen(found, number), out)
    if act == "show":
        (item,) = _chosen(found, number)
        document = explain.shown(item)
        out.end(document, explain.sentence(item, policy), *(f"   {line}" for line in _facts(document)))
        return OK
    waits = [f"{sum(item.state == 'waits' for item in found)} wait for your word: cafe-site outbox approve N, or refuse N"]
    lines = (f"{item.number:6}  {explain.sentence(item, policy)}" for item in found)
    out.end([explain.shown(item) for item in found], *lines, *(waits if any(item.state == "waits" for item in found) else []))
    return OK


def _facts(document: dict[str, Any]) -> Iterator[str]:
    """A document as lines; what is empty is left out, and what has parts is written out, ``body sha256: ...``."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _facts({f"{name} {part}": each for part, each in value.items()})
        elif isinstance(value, (list, tuple)):
            separator = " / " if name == "mu_squared" else ", "
            yield f"{name}: {separator.join(map(str, value))}"
        elif value not in ("", None):
            yield f"{name}: {'yes' if value is True else 'no' if value is False else value}"


def _chosen(found: list[Sent], number: int | None) -> list[Sent]:
    """One answer by its number, or all that wait."""
    if number is None:
        return [item for item in found if item.state == "waits"]
    items = [item for item in found if item.number == number]
    if not items:
        raise CafeError("CAFE-157", f"There is no answer number {number}.", "cafe-site outbox lists them.")
    return items


def _decide(home: Path, policy: Policy, act: str, items: list[Sent], out: Output) -> int:
    for item in items:
        (outbox.approve if act == "approve" else outbox.refuse)(home, item.charge.order_hash)
    word = "may leave: the server asks again and gets it" if act == "approve" else "stays here for good; what it cost stays spent"
    lines = (f"{item.number:6}  {word}" for item in items) if items else ["Nothing waits for your word."]
    out.end([item.number for item in items], *lines)
    return OK


def show_limits(options: argparse.Namespace, out: Output) -> int:
    home, settings = the_site(options)
    if options.act == "restore":
        mode = joining.restore_limits(home, settings).outbox
        out.say("policy.toml was written anew, as it was consented to on joining. What was lowered since has to be lowered again.")
        out.say(f"How answers leave was not loosened: outbox = {mode}, {_OUTBOX[mode]}.")
    elif options.act == "set":
        limits.change(home, limits.wanted(options.settings), _typed)
        _note(home, "limits", settings=" ".join(options.settings)[:200])
    policy = load_policy(home / "policy.toml")
    done = explain.sent(home, policy.delta)
    shown, total = policy.model_dump(), done[-1].total if done else 0.0
    lines = (f"{name:22} {limits.in_words(value)}" for name, value in shown.items())
    out.end(shown | {"spent": total}, *lines, f"{'spent':22} ε {total:.3g}")
    return OK


def _typed(names: list[str]) -> bool:
    """Whether a person at a terminal types the names of what is to be raised."""
    question = f"This gives more away than before. To raise it, type: {' '.join(names)}\n> "
    return sys.stdin.isatty() and input(question).split() == names


def show_adapter(options: argparse.Namespace, out: Output) -> int:
    home, settings = the_site(options)
    if options.to is None and options.run is None:
        found = adapters.came(home, settings)
        lines = (f"{one.run:30} {one.wrong or f'{one.size / 1e6:.1f} MB, {one.folder}'}" for one in found)
        out.end([_adapter(one) for one in found], *(lines if found else ["No adapter has come yet."]))
        return OK
    one = adapters.one(home, settings, options.run)
    place = adapters.copy(one, Path(options.to)) if options.to else one.folder
    told = f"The adapter of run {one.run}, as the operator signed it ({one.sha256[:16]}…), is in {place}"
    out.end(_adapter(one) | {"folder": str(place)}, told)
    return OK


def _adapter(one: adapters.Adapter) -> dict[str, Any]:
    wrong = {"code": one.wrong.code, "message": one.wrong.message} if one.wrong else None
    return {"run": one.run, "sha256": one.sha256, "size": one.size, "folder": str(one.folder), "wrong": wrong}


def pause(options: argparse.Namespace, out: Output) -> int:
    home, settings = the_site(options)
    change, event = (limits.pause, "paused") if options.pause else (limits.resume, "resumed")
    if change(home):
        _note(home, event)
    told = "is paused: it refuses every order. cafe-site resume ends this." if options.pause else "answers orders again."
    out.end({"paused": options.pause}, f"{settings.site} {told}")
    return OK


def _note(home: Path, event: str, **facts: str) -> None:
    """For the log. A site without its key may still pause and lower its limits."""
    with suppress(CafeError):
        SiteHome(home).log(event, None, **facts)


def leave(options: argparse.Namespace, out: Output) -> int:
    home, settings = the_site(options)
    if not options.yes and out.ask(f"Leave {settings.federation}? The site's key is deleted. [y/N] ").strip().lower() not in ("y", "yes"):
        out.end({"left": False}, "Nothing was changed.")
        return OK
    question = "Keep the ledger and the log, as proof of what was sent, and the adapters that came? [Y/n] "
    keep = options.yes or out.ask(question).strip().lower() not in ("n", "no")
    with joining.alone(home):
        left = leaving.leave(home, settings, keep)
    unit = service.path(settings)
    undo = service.to_undo(settings) if unit.is_file() else []
    told = "The operator is told." if left.told else f"Tell the operator{f': hand him {home / site_folder.LEAVE}' if keep else ''}."
    out.end(
        {"left": True, "told": left.told, "remains": left.remains, "undo": undo},
        f"{settings.site} has left. {told}",
        *(("The service is of no use any more. Remove it:", *(f"   {line}" for line in undo)) if undo else ()),
        f"In {home} remains: {', '.join(left.remains) or 'nothing'}.",
    )
    return OK
