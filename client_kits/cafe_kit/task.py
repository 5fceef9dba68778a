"""The task that is learned, as every party sees it: what a record is and how it reads to the language model.

Knows: the public task. Does not know where records come from, what trains on them or who is asked. The proxies, the
sites, the evaluation and the chat all render through here, so that they cannot drift apart.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, config=_STRICT)
class Record:
    """One example. Private at a site, public when synthetic.

    ``text`` is what the model reads (instruction data: the instruction, then the input after a blank line);
    ``answer`` what it should say (classification: the label's name as in the label list).
    """

    text: str
    answer: str


@dataclass(frozen=True, config=_STRICT)
class Task:
    """The public description of the task, part of every order.

    ``labels`` is the public label list of a classification task, empty for instruction data. ``text_name`` and
    ``answer_name`` are the words that stand before text and answer in the prompt ("Message", "Department").
    """

    kind: Literal["classification", "instruction"]
    description: str
    labels: tuple[str, ...] = ()
    text_name: str = "Text"
    answer_name: str = "Label"

    @property
    def classes(self) -> tuple[str, ...]:
        """The public classes within which votes are cast: the labels, or one class for instruction data."""
        return self.labels or ("",)

    def class_of(self, record: Record) -> str:
        """The class in which this record votes."""
        return record.answer if self.labels else ""

    def embedded(self, record: Record) -> str:
        """The text whose embedding stands for the record. A label is no part of it: votes stay inside the class."""
        return record.text if self.labels else f"{record.text}\n{record.answer}"

    def prompt(self, text: str) -> str:
        """What the model reads before it answers; ends without a space."""
        return f"{self.text_name}: {text}\n{self.answer_name}:"

    def completion(self, answer: str) -> str:
        """What the model should say after ``prompt``; label names lose their underscores. No end-of-text token."""
        return " " + (answer.replace("_", " ") if self.labels else answer)
