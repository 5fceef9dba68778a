"""What the generator is asked in stage 1, and which of its answers are kept.

Knows: the public task, its public invented examples, and survivors of noisy votes. Does not know a model, HTTP, a site
or a private record. Every prompt is the beginning of a document that a language model continues, because a small model
that is asked plainly writes nonsense while the same model continuing a list is usable (``docs/experiments.md``).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cafe_kit.task import Record, Task

STOP: tuple[str, ...] = ("\n",)  # a text of a classification task is one line
RECORD_STOP: tuple[str, ...] = ("\n###",)  # a record of instruction data may have several

_SHOWN = 4  # texts shown in one prompt
_MARKER = re.compile(r"^\s*(?:[-*•–]+|\(?\d{1,3}[.):])\s+")
_QUOTES = "\"'`“”‘’«»„*_"


@dataclass(frozen=True)
class Ask:
    """One completion to ask for: the prompt, the class it is for, and ``propose``, ``vary:<i>`` or ``expand``.

    ``stop``: the strings at which the answer ends. ``begin``: the first words of the text, already given in the prompt.
    """

    prompt: str
    label: str
    source: str
    stop: tuple[str, ...] = STOP
    begin: str = ""


def propose(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    """Ask for a first text of ``label``; ``examples`` are the task's public invented ones, of any label, maybe none."""
    return _ask(task, label, _draw(task, label, examples, rng), "propose")


def vary(task: Task, survivor: Record, others: Sequence[Record], rng: random.Random) -> Ask:
    """Ask for a neighbour of a survivor of the vote; ``others`` are further public or surviving records."""
    label = task.class_of(survivor)
    rest = [record for record in _draw(task, label, others, rng) if record != survivor]
    return _ask(task, label, [*rest[: _SHOWN - 1], survivor], "vary:0")


def expand(task: Task, label: str, survivors: Sequence[Record], rng: random.Random) -> Ask:
    """Ask for one more text like the winners of the last vote: few-shot, and free of privacy cost."""
    return _ask(task, label, _draw(task, label, survivors, rng), "expand")


def parse(task: Task, ask: Ask, completion: str) -> Record | None:
    """The one record out of a completion, or None if there is none."""
    if not task.labels:
        return _parse_record(task, completion)
    answer = completion if ask.begin else completion.lstrip()
    line = answer.split("\n", 1)[0]
    text = _clean_line(ask.begin + line, task) if line.strip() else ""
    return Record(text, ask.label) if text else None


def _draw(task: Task, label: str, records: Sequence[Record], rng: random.Random) -> list[Record]:
    own = [record for record in records if task.class_of(record) == label]
    return rng.sample(own, min(_SHOWN, len(own)))


def _ask(task: Task, label: str, shown: Sequence[Record], source: str) -> Ask:
    if task.labels:
        name = label.replace("_", " ")
        head = f"{task.description}\n\nDifferent examples of \"{name}\":\n"
        items = "".join(f"- {_one_line(record.text)}\n" for record in shown)
        return Ask(f"{head}{items}-", label, source)
    records = "".join(f"### {task.text_name}: {record.text}\n{task.answer_name}: {record.answer}\n\n" for record in shown)
    return Ask(f"{task.description}\n\n{records}### {task.text_name}:", label, source, RECORD_STOP)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _clean_line(line: str, task: Task) -> str:
    line = _MARKER.sub("", line.strip())
    for name in (task.answer_name, task.text_name):
        head = re.match(rf"(?i){re.escape(name)}\s*:", line)
        line = line[head.end() :] if head else line
        line = re.split(rf"(?i)\s{re.escape(name)}\s*:", line, maxsplit=1)[0]
    return _one_line(line).strip(_QUOTES + " ")


def _parse_record(task: Task, completion: str) -> Record | None:
    body = completion.split("###", 1)[0]
    text, found, answer = body.partition(f"\n{task.answer_name}:")
    answer = answer.split(f"\n{task.text_name}:", 1)[0].strip()
    text = text.strip()
    return Record(text, answer) if found and text and answer else None


class Filter:
    """Keeps a text once, and drops what is none; ``counts`` says how many were kept and dropped, by reason.

    ``known``: public records that must not come back (examples shown in the prompts, survivors already held).
    """

    def __init__(self, task: Task, known: Sequence[Record] = (), max_words: int = 60) -> None:
        self.counts: dict[str, int] = Counter()
        self._task, self._max_words = task, max_words
        self._known = {self._key(record) for record in known}
        self._kept: set[str] = set()

    def keep(self, record: Record) -> bool:
        """Whether the record is a new and usable one; counts the reason."""
        reason = self._reason(record)
        self.counts[reason] += 1
        if reason == "kept":
            self._kept.add(self._key(record))
        return reason == "kept"

    def _key(self, record: Record) -> str:
        return " ".join(re.findall(r"\w+", self._task.embedded(record).casefold()))

    def _reason(self, record: Record) -> str:
        words = record.text.split()
        if not words:
            return "empty"
        if len(words) < 2:
            return "too short"
        if len(words) > self._max_words:
            return "too long"
        if self._key(record) in self._known:
            return "echo"
        return "duplicate" if self._key(record) in self._kept else "kept"
