"""What the generator is asked in stage 1, and which of its answers are kept.

Knows: the public task, its public invented examples, and survivors of noisy votes. Does not know a model, HTTP, a site
or a private record. Every prompt is the beginning of a list that the model goes on with: a small model that is asked
plainly writes nonsense, the same model going on with a list is usable (measured in ``docs/experiments.md``).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cafe_kit.task import Record, Task

STOP: tuple[str, ...] = ("\n",)  # a text of a classification task is one line
RECORD_STOP: tuple[str, ...] = ("\n###",)  # a record of instruction data may be several

Embed = Callable[[Sequence[str]], np.ndarray]  # texts to unit vectors, (n, dim)

_SHOWN = 2  # texts of the wanted class in one prompt, drawn anew for every text
_SHOWN_RECORDS = 3  # instruction data: the one class is wider
_MARKER = re.compile(r"^\s*(?:[-*•–]+|\(?\d{1,3}[.):])\s+")
_QUOTES = "\"'`“”‘’«»„*_ "


@dataclass(frozen=True)
class Ask:
    """One completion to ask for.

    ``label``: the class it is for ("" for instruction data). ``source``: ``propose``, ``vary:<i>`` (i: the place of the
    survivor among those given) or ``expand``. ``stop``: the strings at which the answer ends. ``begin``: the first words
    of the text, where the prompt gives them already. ``one_paragraph``: the answers shown are one paragraph each (instruction
    data), so that what follows a blank line is chatter.
    """

    prompt: str
    label: str
    source: str
    stop: tuple[str, ...] = STOP
    begin: str = ""
    one_paragraph: bool = False


def propose(task: Task, label: str, examples: Sequence[Record], rng: random.Random) -> Ask:
    """Ask for a first text of ``label``; ``examples`` are the task's public invented ones, of any label, maybe none."""
    return _ask(task, label, _drawn(task, label, examples, rng, _shown(task)), examples, rng, "propose")


def vary(task: Task, survivor: Record, others: Sequence[Record], rng: random.Random) -> Ask:
    """Ask for a neighbour of a survivor of the vote; ``others`` are further survivors and examples, of any label."""
    label = task.class_of(survivor)
    place = next((index for index, other in enumerate(others) if other == survivor), 0)
    beside = _drawn(task, label, [other for other in others if other != survivor], rng, _shown(task) - 1)
    return _ask(task, label, [*beside, survivor], others, rng, f"vary:{place}")


def expand(task: Task, label: str, survivors: Sequence[Record], rng: random.Random) -> Ask:
    """Ask for one more text like the winners of the last vote (give the examples too): costs no privacy."""
    return _ask(task, label, _drawn(task, label, survivors, rng, _shown(task)), survivors, rng, "expand")


def parse(task: Task, ask: Ask, completion: str) -> Record | None:
    """The one record out of a completion, or None if there is none. Never raises, whatever the model wrote."""
    if not task.labels:
        return _instruction(task, ask.begin + completion, ask.one_paragraph)
    answer = completion if ask.begin else completion.lstrip()
    line = answer.split("\n", 1)[0]
    text = _text(task, ask.begin + line) if line.strip() else ""
    return Record(text, ask.label) if text else None


def _shown(task: Task) -> int:
    return _SHOWN if task.labels else _SHOWN_RECORDS


def _drawn(task: Task, label: str, records: Sequence[Record], rng: random.Random, number: int) -> list[Record]:
    own = [record for record in records if task.class_of(record) == label]
    return rng.sample(own, min(number, len(own)))


def _ask(task: Task, label: str, shown: Sequence[Record], others: Sequence[Record], rng: random.Random, source: str) -> Ask:
    if not task.labels:
        body = "".join(f"### {task.text_name}: {record.text}\n{task.answer_name}: {record.answer}\n\n" for record in shown)
        return Ask(
            f"{_sentence(task.description)}\n\n{body}### {task.text_name}:",
            label,
            source,
            RECORD_STOP,
            one_paragraph=bool(shown) and not any("\n\n" in record.answer for record in shown),
        )
    blocks = [_block(label, shown)]
    if not shown:  # the form at least can be learned from the other classes
        rest = sorted({task.class_of(record) for record in others} - {label})
        for other in rng.sample(rest, min(2, len(rest))):
            blocks.insert(0, _block(other, _drawn(task, other, others, rng, _SHOWN)))
    return Ask(f"{_sentence(task.description)}\n\n" + "\n".join(blocks) + "-", label, source)


def _block(label: str, records: Sequence[Record]) -> str:
    items = "".join(f"- {_one_line(record.text)}\n" for record in records)
    return f'Different examples of "{_words(label)}":\n{items}'


def _sentence(description: str) -> str:
    line = _one_line(description)
    return line[:1].upper() + line[1:] + ("" if line.endswith((".", "!", "?", ":")) else ".")


def _words(label: str) -> str:
    return label.replace("_", " ")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(task: Task, line: str) -> str:
    """The line without list marker, quotes, and whatever of a next field runs on in it."""
    line = _MARKER.sub("", line.strip().strip(_QUOTES) + " ")
    line = re.sub(rf"(?i)^{re.escape(task.text_name)}\s*:", "", line.strip())
    line = re.split(rf"(?i)(?:^|\s){re.escape(task.answer_name)}\s*:", line, maxsplit=1)[0]
    return _one_line(line).strip(_QUOTES)


def _instruction(task: Task, completion: str, one_paragraph: bool) -> Record | None:
    body = completion.split("###", 1)[0]
    parts = re.split(rf"(?im)^\s*{re.escape(task.answer_name)}\s*:", body, maxsplit=1)
    if len(parts) < 2:
        return None
    text = re.sub(rf"(?i)^\s*{re.escape(task.text_name)}\s*:", "", parts[0]).strip()
    next_record = rf"(?im)^\s*(?:{re.escape(task.text_name)}|{re.escape(task.answer_name)})\s*:"
    answer = re.split(next_record, parts[1], maxsplit=1)[0].strip()
    answer = re.split(r"\n\s*\n", answer, maxsplit=1)[0].strip() if one_paragraph else answer
    return Record(text, answer) if text and answer else None


_CHATTER = re.compile(
    r"(?i)language model|^as an ai\b|^(?:sure|certainly|of course)[,!] here"
    r"|^here(?:'s| is| are) .*\b(?:message|example|sample|sentence|version|text|list)s?\b.*:"
    r"|^i(?:'m| am) sorry,? (?:but )?i (?:can(?:no|')t|am unable)|different examples of"
)
_MARKUP = re.compile(r"<\||\|>|```|https?://|\[[\w' ]+\]|\{[\w' ]+\}|</?\w+>|_{3,}|\.{4,}|[\ufffd\x00-\x08]")


class Filter:
    """Keeps a usable record once; ``counts`` says how many were kept, and dropped for which reason.

    ``known``: public records that must not come back (the examples, the survivors already held). They set the yardstick
    of length too: ``max_words`` words of text or answer, three times the mean of ``known`` unless given.

    ``embed``: texts to unit vectors (n, dim). With it, a text is dropped as ``off label`` when the mean of another class's
    known texts is nearer to it than that of its own. All of it is public, so it costs no privacy; it is the measure
    that does most for a small generator (``docs/experiments.md``). Classes without a known text are not judged.
    """

    NEAR = 0.8  # share of common words (Jaccard) from which two texts of a class are the same one

    def __init__(self, task: Task, known: Sequence[Record] = (), max_words: int | None = None, embed: Embed | None = None) -> None:
        self.counts: dict[str, int] = Counter()
        self._task = task
        self._max_words = max_words or _yardstick(task, known)
        self._markup_known = any(_is_markup(task.embedded(record)) for record in known)  # what the examples have is no fault
        self._heading = _one_line(task.description).casefold()
        self._held: dict[str, list[frozenset[str]]] = {}
        self._known: dict[str, list[frozenset[str]]] = {}
        for record in known:
            self._known.setdefault(task.class_of(record), []).append(self._bag(record))
        self._embed = embed
        self._means = _means(task, known, embed) if embed and len(self._known) > 1 else {}

    def keep(self, record: Record) -> bool:
        """Whether the record is a new and usable one."""
        reason = self._fault(record) or self._seen(record) or self._off_label(record) or "kept"
        self.counts[reason] += 1
        if reason == "kept":
            self._held.setdefault(self._task.class_of(record), []).append(self._bag(record))
        return reason == "kept"

    def _bag(self, record: Record) -> frozenset[str]:
        return frozenset(re.findall(r"\w+", self._task.embedded(record).casefold()))

    def _fault(self, record: Record) -> str:
        """What is wrong with the record by itself, or an empty string."""
        parts = [record.text] if self._task.labels else [record.text, record.answer]
        words = [word.casefold() for part in parts for word in part.split()]
        whole = _one_line(" ".join(parts)).casefold()
        if not all(part.strip() for part in parts):
            return "empty"
        if any(len(part.split()) > self._max_words or len(part) > 12 * self._max_words for part in parts):
            return "too long"
        if (len(record.text.split()) < 2 and len(record.text) < 8) or whole == _words(record.answer).casefold():
            return "too short"
        if not self._markup_known and _is_markup(whole):
            return "markup"
        if _CHATTER.search(record.text) or (self._heading and self._heading in whole):
            return "chatter"
        return "repetitive" if len(words) >= 6 and 2 * len(set(words)) < len(words) else ""

    def _seen(self, record: Record) -> str:
        label, bag = self._task.class_of(record), self._bag(record)
        for reason, others in (("echo", self._known), ("duplicate", self._held)):
            if any(len(bag & other) >= self.NEAR * len(bag | other) for other in others.get(label, ())):
                return reason
        return ""

    def _off_label(self, record: Record) -> str:
        label = self._task.class_of(record)
        if self._embed is None or label not in self._means:
            return ""
        vector = self._embed([record.text])[0]
        nearest = max(self._means, key=lambda name: float(vector @ self._means[name]))
        return "" if nearest == label else "off label"


def _means(task: Task, known: Sequence[Record], embed: Embed) -> dict[str, np.ndarray]:
    """The unit mean vector (dim,) of each class that has known texts."""
    texts: dict[str, list[str]] = {}
    for record in known:
        texts.setdefault(task.class_of(record), []).append(record.text)
    means = {label: embed(own).mean(axis=0) for label, own in texts.items()}
    return {label: mean / max(float(np.linalg.norm(mean)), 1e-12) for label, mean in means.items()}


def _is_markup(text: str) -> bool:
    return bool(_MARKUP.search(text)) or 2 * sum(map(str.isalnum, text)) < len(text)


def _yardstick(task: Task, known: Sequence[Record]) -> int:
    lengths = [len(part.split()) for record in known for part in ([record.text] if task.labels else [record.text, record.answer])]
    least = 24 if task.labels else 120
    return max(least, 3 * sum(lengths) // len(lengths)) if lengths else 2 * least
