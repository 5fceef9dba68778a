"""The command of a site: ``cafe-site join · doctor · start · status · log · outbox · limits · adapter · pause · resume · leave``.

Knows the words, and the verbs by which a site joins and works; those of a site that has joined are in ``commands.py``. With ``--format
json`` standard output holds one JSON document, and everything said on the way goes to standard error.
Exit codes: 0 done, 1 something stands in the way, 2 usage, 3 the operator has not answered yet, 4 the kit, the approval or what came
cannot be used, 5 refused for privacy.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cafe_kit import answering, asking, commands, doctor, host, joining, kit_folder, questions, service, site_folder, starting
from cafe_kit.engine import from_environment
from cafe_kit.enrolment import Approval
from cafe_kit.errors import CafeError
from cafe_kit.site_folder import SiteSettings
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
        print("\nNobody answers here. For a script: --yes (to join: --answers FILE --yes)", file=sys.stderr)
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
        approval = _heard(options, out, home, settings)
        if approval is None:
            out.end({"state": "waiting", **about, "request": str(home / asking.REQUEST)})
            return TIMEOUT
        site_folder.check_let_in(approval)
    out.say(f"\n✅ {settings.site} has joined {settings.federation}.")
    if _goes_on(options, out):
        return _started(home, settings, kit.folder, out)
    out.end({"state": "joined", **about, "expires": approval.expires}, "Orders are answered while this runs: ./cafe-site start")
    return OK


def _heard(options: argparse.Namespace, out: Output, home: Path, settings: SiteSettings) -> Approval | None:
    """The operator's word, waited for; None where files are handed over and it is not here yet."""
    if options.approval:
        return asking.receive(home, settings, Path(options.approval))
    if (kept := site_folder.answer(home, settings)) is not None:
        with suppress(CafeError):  # a later word, if there is one
            return asking.receive(home, settings) if settings.exchange else kept
        return kept
    delivered = asking.deliver(home, settings)
    out.say(f"\nYour four words: {joining.words(settings)}\nRead them to the operator by telephone; he approves if his are the same.")
    if not delivered:
        out.say(f"Hand this file to the operator: {home / asking.REQUEST}\nHis answer is a file, too: cafe-site join --approval FILE")
        return None
    out.say("Waiting for the operator. You may stop this (Ctrl-C); cafe-site join continues.")
    return asking.wait(home, settings, options.wait, out.say)


def _goes_on(options: argparse.Namespace, out: Output) -> bool:
    """Whether joining goes on to be at work: as said, or as a person at a terminal answers."""
    if options.start or options.yes or options.format == "json" or not sys.stdin.isatty():
        return bool(options.start)
    return out.ask("Start now? It answers orders until you stop it. [Y/n] ").strip().lower() in ("", "y", "yes")


def _code(out: Output) -> str:
    if code := os.environ.pop("CAFE_JOIN_CODE", ""):  # and no program that is started later sees it
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


def _start(options: argparse.Namespace, out: Output) -> int:
    home, settings = commands.the_site(options)
    kit = commands.its_kit(options, settings)
    if not options.service:
        return _started(home, settings, kit, out, options.once)
    settings = starting.with_kit(home, settings, kit)
    starting.way(home, settings)
    unit = service.write(home, settings)
    lines = {"To have it started, now and at every boot:": service.to_enable(settings), "To undo this:": service.to_undo(settings)}
    out.end(
        {"unit": str(unit), "enable": service.to_enable(settings), "undo": service.to_undo(settings)},
        f"Written: {unit}. Nothing was started.",
        *([] if service.possible() else ["This machine has no systemctl; the unit is for one that has."]),
        *(line for head, each in lines.items() for line in (head, *(f"   {command}" for command in each))),
    )
    return OK


def _started(home: Path, settings: SiteSettings, kit: Path | None, out: Output, once: bool = False) -> int:
    status = starting.start(home, settings, kit, out.say, once)
    out.end({"ended": True, "status": status})
    return status


def _answer(options: argparse.Namespace, out: Output) -> int:
    """For the endpoint: what it hands in is answered, whatever it is; the exit code says only that an answer was written."""
    wire = host.claim_stdout()
    host.leave_nothing_behind()
    data = sys.stdin.buffer.read(answering.MAX_MESSAGE + 1)
    try:
        message = answering.read_message(data)
        home, settings = commands.the_site(options)
        told = answering.answer(home, settings, message, from_environment(), lambda *_: None)
    except Exception as error:
        told = answering.problem(error)
    wire.write(json.dumps(told, ensure_ascii=True, allow_nan=False).encode() + b"\n")
    wire.flush()
    return OK


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
    join.add_argument("--start", action="store_true", help="after the approval be at work, without being asked")
    check = verb("doctor", _doctor, "Is this machine fit? Changes nothing.")
    check.add_argument("--report", metavar="FILE", help="write what may be sent to the operator")
    check.add_argument("--answers", metavar="FILE", help="look at the data that these answers name, before joining")
    begin = verb("start", _start, "Be at work: answer orders until this is stopped (Ctrl-C, SIGTERM).")
    begin.add_argument("--once", action="store_true", help="answer the orders that wait in the exchange folder, and end")
    begin.add_argument("--service", action="store_true", help="write a systemd unit for this user instead; nothing is enabled")
    verb("answer", _answer, "Answer one order, from standard input to standard output; what a Globus Compute endpoint calls.")
    verb("status", commands.status, "Where this site stands.")
    verb("log", commands.log, "What happened.").add_argument("--explain", action="store_true", help="in sentences")
    outbox = verb("outbox", commands.show_outbox, "What was sent, and what waits for your word.")
    outbox.add_argument(
        "act", nargs="*", action=_OutboxAct, metavar="show N | approve N | refuse N", help="one answer: in full, let out, kept in"
    )
    outbox.add_argument("--all", action="store_true", help="with approve: all that wait")
    bounds = verb("limits", commands.show_limits, "The site's limits; lowered freely, raised only by typing it here.")
    bounds.add_argument(
        "act", nargs="*", action=_LimitsAct, metavar="set NAME=VALUE | restore", help="change limits; a policy.toml that is gone"
    )
    taken = verb("adapter", commands.show_adapter, "The adapters that the operator sent; checked, and copied where you want one.")
    taken.add_argument("--run", help="of this run")
    taken.add_argument("--to", metavar="FOLDER", help="copy it, as a PEFT folder, to this new folder")
    verb("pause", commands.pause, "Refuse every order from now on.").set_defaults(pause=True)
    verb("resume", commands.pause, "Answer orders again.").set_defaults(pause=False)
    verb("leave", commands.leave, "Leave the federation; the ledger stays unless you say otherwise.").add_argument(
        "--yes", action="store_true"
    )
    return parser


class _OutboxAct(argparse.Action):
    """``show N``, ``approve N``, ``approve`` (with --all), ``refuse N``, or nothing: the word and the number."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        word, *numbers = values or ("",)
        most = {"": (0,), "show": (1,), "approve": (0, 1), "refuse": (1,)}
        if len(numbers) not in most.get(word, ()) or not all(map(str.isdecimal, numbers)):
            parser.error("write: outbox show N, approve N, approve --all, or refuse N")
        namespace.act = word, int(numbers[0]) if numbers else None


class _LimitsAct(argparse.Action):
    """``set NAME=VALUE ...``, ``restore``, or nothing."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        word, *settings = values or ("",)
        if not ((word == "set" and settings and all("=" in each for each in settings)) or (word in ("", "restore") and not settings)):
            parser.error("write: limits set NAME=VALUE ..., or limits restore")
        namespace.act, namespace.settings = word, settings


if __name__ == "__main__":
    sys.exit(main())
