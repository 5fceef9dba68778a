"""The pages of the documentation as tests read them: sections, fenced blocks, and what a command is said to print.

A fenced block of ``sh`` is a command, which a story runs word for word. A block of ``text`` right after it is what it prints. A block whose
first line is ``# not run by our tests: REASON`` is left out, and readers see why. Knows Markdown; does not run anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = "# not run by our tests: "
_COMMANDS = ("sh", "bash")
_FENCE = re.compile(r" *```(\w*)")
_LOOSE = re.compile(r"…|\b[A-Z][A-Z_]{2,}\b|\d[\d.,:-]*")  # whatever is another time another: signs left out, PLACEHOLDERS, numbers


@dataclass(frozen=True)
class Block:
    """One fenced block. ``section``: the heading of second order above it. ``prints``: the text that follows it as its output."""

    page: str
    section: str
    line: int
    language: str
    text: str
    prints: str = ""

    @property
    def is_command(self) -> bool:
        return self.language in _COMMANDS

    @property
    def left_out(self) -> str:
        """Why it is not run; "" for one that is."""
        first = self.text.splitlines()[0]
        return first.removeprefix(LEFT_OUT) if first.startswith(LEFT_OUT) else ""

    @property
    def command(self) -> str:
        """Its first line that is one."""
        return next(line for line in self.text.splitlines() if line.strip() and not line.startswith("#"))

    def filled(self, words: Mapping[str, str]) -> str:
        """Its text with what a reader puts in: each of ``words`` has to stand there."""
        text = self.text
        for word, meant in words.items():
            assert word in text, f"{self.page}, line {self.line}: {word} is not there"
            text = text.replace(word, meant)
        return text


def blocks(page: str) -> list[Block]:
    """Every fenced block of a page, in its order."""
    found: list[Block] = []
    section, language, began, body, between = "", "", 0, [""], True
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.fullmatch(line)
        if fence and not language:
            language, began, body = fence[1] or "plain", number, []
        elif fence:
            block = Block(page, section, began, language, "".join(f"{one}\n" for one in body))
            if language == "text" and found and found[-1].is_command and not between:
                found[-1] = replace(found[-1], prints=block.text)
            found.append(block)
            language, between = "", False
        elif language:
            body.append(line)
        else:
            section = line.removeprefix("## ") if line.startswith("## ") else section
            between = between or bool(line.strip())
    return found


def commands(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.is_command]


class Story:
    """The commands of one section of a page, taken one after the other and none left out."""

    def __init__(self, page: str, section: str) -> None:
        self._left = [block for block in commands(page) if block.section == section and not block.left_out]
        assert self._left, f"{page} has no commands under {section!r}"

    def next(self, begins: str) -> Block:
        """The next command, which begins with these words."""
        assert self._left, f"the page has no command after the one before {begins!r}"
        block = self._left.pop(0)
        assert block.command.startswith(begins), f"{block.page}, line {block.line}: {block.command!r}, not {begins!r}"
        return block

    def ends(self) -> None:
        """Nothing was left out."""
        assert not self._left, f"no test runs {[f'{block.page}:{block.line} {block.command}' for block in self._left]}"


def missing(prints: str, said: str) -> list[str]:
    """The lines of ``prints`` that ``said`` does not hold in their order: their fixed words, whatever stands for the others."""
    wrong, at = [], 0
    for line in filter(str.strip, prints.splitlines()):
        pattern, last = "", 0
        for loose in _LOOSE.finditer(line):
            pattern += _fixed(line[last : loose.start()]) + (r".*?" if loose[0] == "…" else r"[^\s]+?")
            last = loose.end()
        found = re.compile(pattern + _fixed(line[last:])).search(said, at)
        if found is None:
            wrong.append(line)
        else:
            at = found.end()
    return wrong


def _fixed(text: str) -> str:
    return r"\s+".join(re.escape(word) for word in re.split(r"\s+", text))
