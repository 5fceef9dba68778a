"""The demo federation: eight invented clinic sites, their messages, the public files and the settings to run them.

Knows the sites' styles and shares and writes files; knows nothing of models, stages or the store. Everything is drawn
from ``random.Random(seed)`` with integer weights, so that one seed gives the same bytes on every machine.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.demo_grammar import EXAMPLES, TOPICS, expand

TEST_RECORDS = 300
# Shares of the departments at a site, dealt out in an order of its own: the first two or three make up most of a weak site.
_WEAK_SHARES = (34, 22, 14, 9, 7, 5, 4, 2, 2, 1)
_STRONG_SHARES = (18, 15, 13, 11, 10, 9, 8, 7, 5, 4)


@dataclass(frozen=True)
class Style:
    """How the patients of one site write: ``words`` is the local vocabulary, ``slips`` the share of mistyped words."""

    site: str
    kind: str
    records: int
    greetings: tuple[str, ...]
    closings: tuple[str, ...]
    words: Mapping[str, str]
    slips: float = 0.0
    lower_case: bool = False


STYLES: tuple[Style, ...] = (
    Style(
        "riverside",
        "cpu",
        records=110,
        greetings=("", "", "hey", "hi"),
        closings=("", "", "thx", "ty"),
        words={"please": "pls", "and": "n", "are": "r", "you": "u", "tomorrow": "tmrw"},
        slips=0.04,
        lower_case=True,
    ),
    Style(
        "hillcrest",
        "cpu",
        records=90,
        greetings=("", "Dear team.", "Dear Sir or Madam."),
        closings=("", "Kind regards.", "Yours faithfully."),
        words={"can't": "cannot", "won't": "will not", "I'm": "I am", "haven't": "have not"},
    ),
    Style(
        "oakdale",
        "cpu",
        records=140,
        greetings=("Hi there!", "Hi!", "Hello :)", ""),
        closings=("Thanks a lot!", "Cheers, sorry for all the questions!", "", ""),
        words={"my mother": "my mom", "our youngest": "my youngest kid", "our eldest": "my oldest kid"},
        slips=0.01,
    ),
    Style(
        "lakeview",
        "cpu",
        records=70,
        greetings=("",),
        closings=("", "", "Pls advise.", "Asap."),
        words={"appointment": "appt", "tablets": "tabs", "please": "pls", "My": "", "The": "", "I'm": "am", "I": ""},
        slips=0.03,
    ),
    Style(
        "fernbank",
        "cpu",
        records=80,
        greetings=("", "Good morning.", "Good day to you."),
        closings=("", "Thank you kindly.", "God bless."),
        words={"phone": "telephone", "jabs": "injections", "this afternoon": "after lunch", "my husband": "my dear husband"},
    ),
    Style(
        "millbrook",
        "cpu",
        records=120,
        greetings=("", "", "Quick question:", "Me again:"),
        closings=("", "", "Ta.", "Let me know."),
        words={"mother": "mum", "father": "dad", "my little boy": "our lad", "afternoon": "arvo", "my son": "our lad"},
        slips=0.03,
    ),
    Style(
        "kingsbridge",
        "gpu",
        records=260,
        greetings=("", "", "Hello.", "Hi."),
        closings=("", "", "Thank you."),
        words={"my partner": "my other half", "my grandmother": "gran"},
        slips=0.01,
    ),
    Style(
        "stonegate",
        "gpu",
        records=260,
        greetings=("", "", "Hi doc.", "To whom it may concern."),
        closings=("", "", "Thanks.", "Best wishes."),
        words={"mother": "mom", "jabs": "shots", "please": "kindly", "my little girl": "my girl"},
        slips=0.02,
    ),
)

_YAML = """\
# The demo federation. Every message is invented; the same seed ({seed}) writes the same files.
name: demo
seed: {seed}
task:
  kind: classification
  description: messages to a clinic's patient portal, to be routed to the department that answers them
  text: text
  label: department
  labels: labels.txt
  examples: examples.jsonl
  text_name: Message
  answer_name: Department
base_model: smollm2-135m-instruct
sites:
{sites}
test: test.jsonl
privacy:
  stage1: {{epsilon: 8, delta: 1.0e-5}}
  stage2: off
stage1:
  rounds: 2
stage2:
  rounds: 5
  steps: 12
  learning_rate: 2.0e-3
  proxy_weight: 0.5  # synthetic text knows less of the clinic's ways than the strong sites do
"""

Row = tuple[str, str]  # text, department


def write(folder: Path, seed: int = 0, *, joined: bool = False) -> Path:
    """Writes the sites' records, labels, public examples, test set and ``demo.yaml`` into ``folder``.

    ``joined``: the sites join with kits (``demo_sites``), so the YAML does not name their data.

    Returns the path of the YAML. Files that are there already are overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bodies = Bodies(random.Random(f"{seed}/bodies"))
    for style, order in zip(STYLES, _orders(seed), strict=True):
        _write_rows(folder / f"{style.site}.jsonl", site_rows(style, order, bodies, random.Random(f"{seed}/{style.site}")))
    _write_rows(folder / "test.jsonl", test_rows(bodies, random.Random(f"{seed}/test")))
    _write_rows(folder / "examples.jsonl", ((text, department) for department, texts in EXAMPLES.items() for text in texts))
    _write_text(folder / "labels.txt", "".join(f"{department}\n" for department in TOPICS))
    data = {style.site: "" if joined else f", data: {style.site}.jsonl" for style in STYLES}
    sites = "\n".join(f"  - {{name: {style.site}, kind: {style.kind}{data[style.site]}}}" for style in STYLES)
    _write_text(folder / "demo.yaml", _YAML.format(seed=seed, sites=sites))
    return folder / "demo.yaml"


class Bodies:
    """What messages say before a style dresses them. None is given out twice, so no site shares a text with the test set."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._given = {text.casefold() for texts in EXAMPLES.values() for text in texts}

    def draw(self, department: str) -> str:
        """A new message to ``department``: one of its topics, one of the topic's templates, filled in."""
        templates = self._rng.choice(list(TOPICS[department].values()))
        while True:
            body = _sentences(expand(self._rng.choice(templates), self._rng))
            if body.casefold() not in self._given:
                self._given.add(body.casefold())
                return body


def site_rows(style: Style, order: list[str], bodies: Bodies, rng: random.Random) -> Iterator[Row]:
    """The records of one site; its share of the departments falls along ``order``."""
    shares = _STRONG_SHARES if style.kind == "gpu" else _WEAK_SHARES
    for department in rng.choices(order, weights=shares, k=style.records):
        yield dress(bodies.draw(department), style, rng), department


def test_rows(bodies: Bodies, rng: random.Random) -> Iterator[Row]:
    """The public test set: the departments in equal parts, the sites' styles at random, shuffled."""
    departments = list(TOPICS) * (TEST_RECORDS // len(TOPICS))
    rng.shuffle(departments)
    for department in departments:
        yield dress(bodies.draw(department), rng.choice(STYLES), rng), department


def dress(body: str, style: Style, rng: random.Random) -> str:
    """The message as a patient of this site would write it: local words, greeting, closing, slips of the keyboard."""
    for word, local in style.words.items():
        body = re.sub(rf"\b{re.escape(word)}\b", local, body)
    text = " ".join((rng.choice(style.greetings), _sentences(body), rng.choice(style.closings))).strip()
    text = " ".join(_slip(word, rng) if rng.random() < style.slips else word for word in text.split())
    return text.lower() if style.lower_case else text


def _sentences(text: str) -> str:
    """Each sentence with a capital letter at its beginning."""
    return re.sub(r"(^|[.?!] )\s*([a-z])", lambda match: match[1] + match[2].upper(), text.lstrip())


def _slip(word: str, rng: random.Random) -> str:
    """The word with two neighbouring inner letters swapped, or one left out; short words stay."""
    if len(word) < 5 or not word.isalpha():
        return word
    i = rng.randrange(1, len(word) - 2)
    return word[:i] + word[i + 1] + (word[i] if rng.random() < 0.6 else "") + word[i + 2 :]


def _orders(seed: int) -> Iterator[list[str]]:
    """For each site the departments, most frequent first. The last site turns the order of the one before it around, so
    that the two strong sites together see every department."""
    rng = random.Random(f"{seed}/orders")
    order = list(TOPICS)
    for _ in STYLES[:-1]:
        rng.shuffle(order)
        yield list(order)
    yield order[::-1]


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    _write_text(path, "".join(json.dumps({"text": text, "department": department}) + "\n" for text, department in rows))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
