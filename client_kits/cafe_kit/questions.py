"""What joining asks of the site: which data, which columns, which limits, who consents. By prompt, or out of a file.

Knows the questions, their cautious defaults and what an answer may be. Does not know what is done with them. The first two rows
are shown on this screen only; they are in no file, no log and nothing that is sent.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cafe_kit import nearest, records
from cafe_kit.enrolment import KitInfo, Limits
from cafe_kit.errors import CafeError
from cafe_kit.records import OPTIONAL_ROLES, ROLES, DataSource
from cafe_kit.seat_config import DataConfig
from cafe_kit.site_folder import Consent, ShareRows
from cafe_kit.task import Task

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
_SHOWN = 100
_LIKELY = {
    "text": ("message", "note", "content", "body", "sentence", "utterance", "query"),
    "label": ("class", "category", "department", "intent", "target", "diagnosis"),
    "instruction": ("prompt", "question", "query"),
    "output": ("response", "answer", "completion"),
    "input": ("context",),
}

EXAMPLE = """\
the file of answers:
  [data]
  path = "/home/me/notes.csv"
  columns = {text = "message", label = "department"}   # role = column, where the names differ
  [limits]                        # what is left out is as the kit proposes, without runs without noise
  max_epsilon = 4.0               # over all runs
  max_epsilon_per_run = 2.0
  share_rows = "no"               # no, rounded, exact: whether the operator is told how many records there are
  [consent]
  name = "Dr. Jane Roe"
  role = "head of data protection"
  reference = "IRB-2026-7"
  agreed = true                   # "I may use this data for this purpose"
"""

Ask = Callable[[str], str]  # shows a question, returns one line
Say = Callable[[str], None]


class AskedLimits(BaseModel):
    """The limits that the site consents to."""

    model_config = _STRICT
    max_epsilon: Annotated[float, Field(gt=0)] | None = None
    max_epsilon_per_run: Annotated[float, Field(gt=0)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    kinds: tuple[Literal["hello", "vote", "train"], ...] = ("hello", "vote")
    allow_without_noise: bool = False
    share_rows: ShareRows = "no"


class Answers(BaseModel):
    """``--answers FILE``: TOML with the tables data, limits and consent."""

    model_config = _STRICT
    data: DataConfig
    limits: AskedLimits
    consent: Consent

    def source(self) -> DataSource:
        return DataSource(path=Path(self.data.path), format=self.data.format, columns=dict(self.data.columns))


def from_file(path: Path, kit: KitInfo) -> Answers:
    """Answers from a file; limits that it leaves out are those that the kit proposes, in their cautious form.

    Raises:
        CafeError: CAFE-157, naming the answer; CAFE-340 without consent.
    """
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
        proposed = proposal(kit).model_dump(mode="json")
        plain["limits"] = {**proposed, **plain.get("limits", {})}
        answers = Answers.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        told = f"The answers are not as agreed: '{nearest.first(error)}'.{nearest.meant(error, Answers)}"
        raise CafeError("CAFE-157", told, "cafe-site join --help shows a whole file.") from None
    except (OSError, ValueError, TypeError, AttributeError):
        raise CafeError("CAFE-157", "The file of answers cannot be read, or is not TOML.", "Check its path and its form.") from None
    return _checked(answers)


def by_prompt(kit: KitInfo, ask: Ask, say: Say) -> Answers:
    """Ask the four questions; what cannot be used is asked again.

    Raises:
        CafeError: CAFE-340 without consent; EOFError when nobody answers.
    """
    say("\n1 of 4. Your data file. It stays where it is; only this kit reads it.")
    data = _data(kit.task, ask, say)
    say("\n3 of 4. Limits. You can lower them at any time, and raise them only here at the site.")
    limits = _limits(kit, ask, say)
    say("\n4 of 4. Who consents. The operator is told these three lines.")
    consent = _consent(kit, ask)
    return _checked(Answers(data=data, limits=limits, consent=consent))


def proposal(kit: KitInfo) -> AskedLimits:
    """The operator's proposal; where this side is more cautious, its own."""
    limits: Limits = kit.limits
    able = ("hello", "vote") if kit.kind == "cpu" else ("hello", "vote", "train")
    return AskedLimits(
        max_epsilon=limits.max_epsilon,
        max_epsilon_per_run=limits.max_epsilon_per_run,
        delta=limits.delta,
        kinds=tuple(kind for kind in limits.kinds if kind in able),
        allow_without_noise=False,
    )


def _checked(answers: Answers) -> Answers:
    if not answers.consent.agreed:
        raise CafeError("CAFE-340", "Nobody has consented to the use of the data, so nothing was sent.", "Join again when it is allowed.")
    limits = answers.limits
    if limits.max_epsilon and limits.max_epsilon_per_run and limits.max_epsilon_per_run > limits.max_epsilon:
        raise CafeError("CAFE-157", "The limit of one run is higher than the limit of all runs.", "Lower max_epsilon_per_run.")
    path = Path(answers.data.path).expanduser()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CafeError("CAFE-157", "The path of the data file is no Unicode text.", "Rename the file or its folder.") from None
    return answers.model_copy(update={"data": answers.data.model_copy(update={"path": str(path.absolute())})})


def _data(task: Task, ask: Ask, say: Say) -> DataConfig:
    """A file that can be opened, and its columns, seen by whoever answers."""
    while True:
        path = Path(ask("Data file (.csv, .jsonl, .parquet, or your own loader .py): ").strip().strip("'\"")).expanduser().absolute()
        try:
            names = records.column_names(DataSource(path=path))
            say("\n2 of 4. Columns." if names else "\n2 of 4. Columns: none to choose.")
            columns = _columns(task, names, ask, say)
            source = DataSource(path=path, columns=columns)
            for place, row in islice(records.raw_rows(source, task), 2):
                shown = ", ".join(f"{role}: {_short(row.get(columns.get(role, role)))}" for role in ROLES[task.kind])
                say(f"   {place}: {shown}   (on this screen only)")
            if _yes(ask, "Are these the right columns?", True):
                return DataConfig(path=str(path), columns=columns)
        except CafeError as error:
            say(f"   {error}")


def _columns(task: Task, names: Sequence[str], ask: Ask, say: Say) -> dict[str, str]:
    if not names:
        return {}
    say(f"   There are: {', '.join(names[:30])}")
    columns = {}
    for role in ROLES[task.kind]:
        guess = guessed(role, names)
        optional = " (optional)" if role in OPTIONAL_ROLES else ""
        answer = ask(f"Column with the {role}{optional} [{guess or role}]: ").strip() or guess or role
        if answer != role:
            columns[role] = answer
    return columns


def guessed(role: str, names: Sequence[str]) -> str:
    """The column that most likely holds ``role``: of its name, of a usual name, or with such a name in it; "" for none."""
    plain = {name.lower(): name for name in reversed(names)}
    likely = (role, *_LIKELY[role])
    exact = [plain[word] for word in likely if word in plain]
    partly = [plain[name] for word in likely for name in plain if word in name]
    return next(iter(exact + partly), "")


def _limits(kit: KitInfo, ask: Ask, say: Say) -> AskedLimits:
    first = proposal(kit)
    say("   Epsilon measures what all answers together may tell about your data as a whole; smaller is safer.")
    total = _number(ask, f"Total privacy limit, epsilon at delta {first.delta:g}", first.max_epsilon or 10.0)
    per_run = _number(ask, "At most per run, epsilon", min(first.max_epsilon_per_run or total, total))
    kinds = list(first.kinds)
    if "train" in kinds and not _yes(ask, "Allow training on your records here (stage 2)?", True):
        kinds.remove("train")
    asked = " (this federation plans such runs)" if kit.limits.allow_without_noise else ""
    without = _yes(ask, f"Allow runs without noise{asked}? They carry no formal guarantee and tell the number of your records", False)
    share = ask("Tell the operator how many records you have: no, rounded, exact [no]: ").strip().lower() or "no"
    return AskedLimits(
        max_epsilon=total,
        max_epsilon_per_run=min(per_run, total),
        delta=first.delta,
        kinds=tuple(kinds),
        allow_without_noise=without,
        share_rows="rounded" if share == "rounded" else "exact" if share == "exact" else "no",
    )


def _consent(kit: KitInfo, ask: Ask) -> Consent:
    name, role = (_filled(ask, f"Your {what}: ") for what in ("name", "role"))
    reference = ask("Reference of the approval, such as a number (may be empty): ").strip()[:200]
    agreed = _yes(ask, f"I may use this data for this purpose: {_short(kit.task.description)}", False)
    return Consent(name=name, role=role, reference=reference, agreed=agreed)


def _filled(ask: Ask, question: str) -> str:
    while not (answer := ask(question).strip()[:200]):
        pass
    return answer


def _number(ask: Ask, question: str, default: float) -> float:
    while True:
        answer = ask(f"{question} [{default:g}]: ").strip()
        try:
            number = float(answer) if answer else default
        except ValueError:
            continue
        if 0 < number < 1e6:
            return number


def _yes(ask: Ask, question: str, default: bool) -> bool:
    while (answer := ask(f"{question} [{'Y/n' if default else 'y/N'}] ").strip().lower()) not in ("", "y", "yes", "n", "no"):
        pass
    return answer.startswith("y") or (default and not answer)


def _short(value: object) -> str:
    text = " ".join(records.clean(str(value)).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
