"""The command of a site: ``cafe-site join · doctor · status · log · outbox · limits · pause · resume · leave``.

Knows words, terminals and exit codes. Does not know how anything is done: each verb is one call and its printing. With ``--format
json`` standard output holds one JSON document, and everything said on the way goes to standard error.
Exit codes: 0 ok, 1 a check failed, 2 usage, 3 the operator has not answered yet, 4 the kit cannot be used, 5 refused for privacy.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cafe_kit import answering, doctor, explain, host, joining, kit_folder, leaving, limits, questions, site_folder, starting
from cafe_kit.engine import from_environment
from cafe_kit.enrolment import Approval
from cafe_kit.errors import CafeError
from cafe_kit.policy import load_policy
from cafe_kit.site_home import SiteHome
from cafe_kit.terminal import FAILED, OK, TIMEOUT, USAGE, Output, exit_code, unforeseen


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # a terminal of another locale loses signs, not lines
    os.umask(0o077)
    options = _parser().parse_args(arguments)
    out = Output(options.format == "json")
    try:
        return int(options.verb(options, out))
    except CafeError as error:
        out.fail(error)
        return exit_code(error.code)
    except BrokenPipeError:  # whoever read this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except EOFError:
        print("\nNobody answers here. For a script: --answers FILE --yes", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("\nStopped. Run the same again: it continues where it was.", file=sys.stderr)
        return TIMEOUT
    except Exception as error:
        out.fail(unforeseen(error))
        return FAILED


def _join(options: argparse.Namespace, out: Output) -> int:
    kit = kit_folder.open_kit(kit_folder.find_kit(options.kit))
    home = site_folder.site_home(kit.info)
    if site_folder.load(home) is None:
        checks = doctor.first_checks(kit, home)
        out.say("\n".join(doctor.lines(checks)))
        doctor.must_be_fit(checks)
    with joining.alone(home):
        tries = 1 if os.environ.get("CAFE_JOIN_CODE") else 3
        talk = joining.Talk(out.say, lambda: _code(out), lambda info: _answers(options, out, info), tries)
        settings = joining.prepare(kit, home, talk)
        about: dict[str, Any] = {"site": settings.site, "federation": settings.federation, "words": joining.words(settings)}
        approval = site_folder.answer(home, settings) or _asked(options, out, home, settings)
        if approval is None:
            out.end({"state": "waiting", **about, "request": str(home / joining.REQUEST)})
            return TIMEOUT
        site_folder.check_let_in(approval)
    out.end({"state": "joined", **about, "expires": approval.expires}, f"\n✅ {settings.site} has joined {settings.federation}.")
    return OK


def _asked(options: argparse.Namespace, out: Output, home: Path, settings: site_folder.SiteSettings) -> Approval | None:
    """The operator's answer, waited for; None where files are handed over and it is not here yet."""
    given = Path(options.approval) if options.approval else None
    delivered = joining.deliver(home, settings)
    out.say(f"\nYour four words: {joining.words(settings)}\nRead them to the operator by telephone; he approves if his are the same.")
    if not delivered:
        out.say(f"Hand this file to the operator: {home / joining.REQUEST}\nHis answer is a file, too: cafe-site join --approval FILE")
        return joining.receive(home, settings, given) if given else None
    out.say("Waiting for the operator. You may stop this (Ctrl-C); cafe-site join continues.")
    return joining.wait(home, settings, given, options.wait)


def _code(out: Output) -> str:
    if code := os.environ.get("CAFE_JOIN_CODE"):
        return code
    if sys.stdin.isatty():
        return getpass.getpass("Join code (it is not shown): ")
    return out.ask("Join code: ")


def _answers(options: argparse.Namespace, out: Output, info: Any) -> questions.Answers:
    if options.answers is None:
        return questions.by_prompt(info, out.ask, out.say)
    answers = questions.from_file(Path(options.answers), info)
    if not options.yes:
        shown = answers.limits.model_dump(exclude_none=True)
        out.say(f"Data: {Path(answers.data.path).name}. Limits: {', '.join(f'{name} {value}' for name, value in shown.items())}.")
        if out.ask(f"Join as {info.site} with these answers? [y/N] ").strip().lower() not in ("y", "yes"):
            raise CafeError(
                "CAFE-340", "Nobody has consented to the use of the data, so nothing was sent.", "Join again when it is allowed."
            )
    return answers


def _doctor(options: argparse.Namespace, out: Output) -> int:
    kit = kit_folder.open_kit(kit_folder.find_kit(options.kit))
    home = site_folder.site_home(kit.info)
    settings = site_folder.load(home)
    checks = doctor.first_checks(kit, home)
    if options.answers:
        checks += doctor.data_checks(questions.from_file(Path(options.answers), kit.info).source(), kit.info.task)
    elif settings is not None:
        checks = [check for check in checks if check.code != "CAFE-152"]  # it has joined: the kit need not be fresh
        checks += doctor.data_checks(settings.source(), settings.task) + doctor.site_checks(home, settings)
    if options.report:
        text = json.dumps(
            {"site": kit.info.site, "federation": kit.info.federation, "checks": doctor.report(checks)}, ensure_ascii=False, indent=1
        )
        try:
            Path(options.report).write_text(text + "\n", encoding="utf-8")
        except OSError:
            raise CafeError("CAFE-135", "The report could not be written there.", "Choose another place.") from None
    fit = doctor.fit(checks)
    out.end({"fit": fit, "checks": doctor.report(checks)}, *doctor.lines(checks), "Fit to take part." if fit else "Not fit yet: see ❌.")
    return OK if fit else FAILED


def _status(options: argparse.Namespace, out: Output) -> int:
    home, settings = _site(options)
    approval = site_folder.answer(home, settings)
    state = (
        "let in by the operator"
        if approval and approval.approved
        else "refused by the operator"
        if approval
        else "waiting for the operator"
    )
    policy = load_policy(home / "policy.toml")
    done = explain.sent(home, policy.delta)
    total = done[-1].total if done else 0.0
    document = {
        "federation": settings.federation,
        "site": settings.site,
        "state": "joined" if approval and approval.approved else "refused" if approval else "waiting",
        "words": joining.words(settings),
        "paused": limits.is_paused(home),
        "answers": len(done),
        "epsilon": total,
        "max_epsilon": policy.max_epsilon,
        "delta": policy.delta,
    }
    spent = f"ε {total:.3g}" + (f" of {policy.max_epsilon:g}" if policy.max_epsilon is not None else "") + f" at delta {policy.delta:g}"
    out.end(
        document,
        f"{settings.site} in {settings.federation}: {state}{', PAUSED' if document['paused'] else ''}",
        f"words: {document['words']}",
        f"privacy spent: {spent}, in {len(done)} answers",
    )
    return OK


def _log(options: argparse.Namespace, out: Output) -> int:
    home, _ = _site(options)
    lines = explain.history(home, load_policy(home / "policy.toml"), options.explain)
    out.end(
        lines,
        *(f"{line['time'].replace('T', ' ')[:16]}  {line['text']}" for line in lines or [{"time": "", "text": "Nothing happened yet."}]),
    )
    return OK


def _outbox(options: argparse.Namespace, out: Output) -> int:
    home, _ = _site(options)
    policy = load_policy(home / "policy.toml")
    found = explain.sent(home, policy.delta)
    if options.show is None:
        out.end([explain.shown(item) for item in found], *(f"{item.number:6}  {explain.sentence(item, policy)}" for item in found))
        return OK
    item = next((item for item in found if item.number == options.show), None)
    if item is None:
        raise CafeError("CAFE-157", f"There is no answer number {options.show}.", "cafe-site outbox lists them.")
    document = explain.shown(item)
    out.end(document, explain.sentence(item, policy), *(f"   {name}: {value}" for name, value in document.items()))
    return OK


def _limits(options: argparse.Namespace, out: Output) -> int:
    home, _ = _site(options)
    policy = load_policy(home / "policy.toml")
    if options.set:
        policy = limits.change(home, limits.wanted(options.set), _typed)
        SiteHome(home).log("limits", settings=" ".join(options.set)[:200])
    done = explain.sent(home, policy.delta)
    shown = policy.model_dump()
    spent = f"{'spent':22} ε {done[-1].total if done else 0.0:.3g}"
    lines = (f"{name:22} {limits.in_words(value)}" for name, value in shown.items())
    out.end(shown | {"spent": done[-1].total if done else 0.0}, *lines, spent)
    return OK


def _typed(names: list[str]) -> bool:
    """Whether a person at a terminal types the names of what is to be raised."""
    question = f"This gives more away than before. To raise it, type: {' '.join(names)}\n> "
    return sys.stdin.isatty() and input(question).split() == names


def _pause(options: argparse.Namespace, out: Output) -> int:
    home, settings = _site(options)
    change, event = (limits.pause, "paused") if options.pause else (limits.resume, "resumed")
    if change(home):
        SiteHome(home).log(event)
    told = "is paused: it refuses every order. cafe-site resume ends this." if options.pause else "answers orders again."
    out.end({"paused": options.pause}, f"{settings.site} {told}")
    return OK


def _leave(options: argparse.Namespace, out: Output) -> int:
    home, settings = _site(options)
    if not options.yes and out.ask(f"Leave {settings.federation}? The site's key is deleted. [y/N] ").strip().lower() not in ("y", "yes"):
        out.end({"left": False}, "Nothing was changed.")
        return OK
    keep = options.yes or out.ask("Keep the ledger and the log, as proof of what was sent? [Y/n] ").strip().lower() not in ("n", "no")
    with joining.alone(home):
        remains = leaving.leave(home, keep)
    told = "Tell the operator; he ends the site's part at his side."
    out.end(
        {"left": True, "remains": remains}, f"{settings.site} has left. {told}", f"In {home} remains: {', '.join(remains) or 'nothing'}."
    )
    return OK


def _start(options: argparse.Namespace, out: Output) -> int:
    home, settings = _site(options)
    status = starting.start(home, settings, _kit_of(options, settings), out.say, options.once)
    out.end({"ended": True, "status": status})
    return status


def _answer(options: argparse.Namespace, out: Output) -> int:
    """For the endpoint: what it hands in is answered, whatever it is; the exit code says only that an answer was written."""
    wire = host.claim_stdout()
    host.leave_nothing_behind()
    data = sys.stdin.buffer.read(answering.MAX_MESSAGE + 1)
    try:
        message = answering.read_message(data)
        home, settings = _site(options)
        told = answering.answer(home, settings, message, from_environment(), lambda *_: None)
    except Exception as error:
        told = answering.problem(error)
    wire.write(json.dumps(told, ensure_ascii=True, allow_nan=False).encode() + b"\n")
    wire.flush()
    return OK


def _site(options: argparse.Namespace) -> tuple[Path, site_folder.SiteSettings]:
    """The site's folder, found by the kit where there is one, and its settings. The kit's files need not be whole for that."""
    try:
        info = kit_folder.read_info(kit_folder.find_kit(options.kit))
    except CafeError:
        info = None
    home = site_folder.site_home(info)
    return home, site_folder.joined(home)


def _kit_of(options: argparse.Namespace, settings: site_folder.SiteSettings) -> Path | None:
    """The folder of the kit that this site joined with, if cafe-site runs out of it."""
    try:
        folder = kit_folder.find_kit(options.kit)
        return folder if kit_folder.read_info(folder).serial == settings.serial else None
    except CafeError:
        return None


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--kit", metavar="FOLDER", help="the unzipped kit (default: where cafe-site lies)")
    common.add_argument("--format", choices=("text", "json"), default="text")
    parser = argparse.ArgumentParser(prog="cafe-site", description="A site of a Café au Lait federation.", allow_abbrev=False)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, act: Callable[[argparse.Namespace, Output], int], what: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, parents=[common], help=what, description=what, allow_abbrev=False)
        made.set_defaults(verb=act)
        return made

    join = verb(
        "join", _join, "Join the federation of this kit; continues where it stopped. The join code is asked for (or CAFE_JOIN_CODE)."
    )
    join.formatter_class, join.epilog = argparse.RawDescriptionHelpFormatter, questions.EXAMPLE
    join.add_argument("--answers", metavar="FILE", help="answers to the questions, for scripts")
    join.add_argument("--yes", action="store_true", help="do not ask whether these answers are meant")
    join.add_argument("--approval", metavar="FILE", help="the operator's answer, where files are handed over")
    join.add_argument("--wait", metavar="SECONDS", type=float, help="how long to wait for the operator (default: until stopped)")
    check = verb("doctor", _doctor, "Is this machine fit? Changes nothing.")
    check.add_argument("--report", metavar="FILE", help="write what may be sent to the operator")
    check.add_argument("--answers", metavar="FILE", help="look at the data that these answers name, before joining")
    verb("status", _status, "Where this site stands.")
    verb("log", _log, "What happened.").add_argument("--explain", action="store_true", help="in sentences")
    outbox = verb("outbox", _outbox, "What was sent.")
    outbox.add_argument("show", nargs="*", action=_Show, metavar="show N", help="one answer in full")
    bounds = verb("limits", _limits, "The site's limits; lowered freely, raised only by typing it here.")
    bounds.add_argument("set", nargs="*", action=_Set, metavar="set NAME=VALUE", help="change limits")
    begin = verb("start", _start, "Be at work: answer orders until this is stopped (Ctrl-C, SIGTERM).")
    begin.add_argument("--once", action="store_true", help="answer the orders that wait in the exchange folder, and end")
    verb("answer", _answer, "Answer one order, from standard input to standard output; what a Globus Compute endpoint calls.")
    verb("pause", _pause, "Refuse every order from now on.").set_defaults(pause=True)
    verb("resume", _pause, "Answer orders again.").set_defaults(pause=False)
    verb("leave", _leave, "Leave the federation; the ledger stays unless you say otherwise.").add_argument("--yes", action="store_true")
    return parser


class _Show(argparse.Action):
    """``show N``, or nothing."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        if values and (len(values) != 2 or values[0] != "show" or not values[1].isdecimal()):
            parser.error("write: outbox show N")
        namespace.show = int(values[1]) if values else None


class _Set(argparse.Action):
    """``set NAME=VALUE ...``, or nothing."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        if values and (len(values) < 2 or values[0] != "set" or not all("=" in value for value in values[1:])):
            parser.error("write: limits set NAME=VALUE ...")
        namespace.set = values[1:]


if __name__ == "__main__":
    sys.exit(main())
