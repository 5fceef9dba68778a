"""How a command of the site speaks: lines or one JSON document, questions, refusals, exit codes.

Knows streams and terminals. Does not know any verb. With JSON, standard output holds one document and everything that is said on the
way goes to standard error, so that a script reads the one and a person the other.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from cafe_kit.errors import CafeError

OK, FAILED, USAGE, TIMEOUT, BAD_KIT, PRIVACY = range(6)
_STATUS = {"CAFE-155": TIMEOUT, "CAFE-157": USAGE, "CAFE-316": FAILED, "CAFE-153": FAILED, "CAFE-156": FAILED, "CAFE-159": FAILED}
_BAD_KIT = {f"CAFE-{number}" for number in (101, 102, 103, 115, 120, 128, *range(137, 160), 459)}
_PRIVACY = {f"CAFE-{number}" for number in (116, *range(310, 321), *range(328, 331), *range(340, 347))}


class Output:
    """Where things are said, and the one document or the lines that a verb ends with."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._aside: TextIO = sys.stderr if as_json else sys.stdout

    def say(self, text: str) -> None:
        print(text, file=self._aside, flush=True)

    def end(self, document: Any, *lines: str) -> None:
        if self._json:
            print(json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False))
        for line in lines if not self._json else ():
            print(line)

    def ask(self, question: str) -> str:
        print(question, end="", file=self._aside, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def fail(self, error: CafeError) -> None:
        if self._json:
            print(json.dumps({"code": error.code, "message": error.message, "hint": error.hint}, ensure_ascii=False, indent=1))
        else:
            print(f"❌ {error.code} {error.message}\n   {error.hint}", file=sys.stderr)


def unforeseen(error: Exception) -> CafeError:
    """What a person is told of an error that nobody foresaw: class and place, never its text, which may quote a record."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"
    return CafeError("CAFE-109", f"This could not be finished ({place}).", "Tell the operator. cafe-site log says what was sent.")


def exit_code(code: str) -> int:
    """The exit code of a refusal with this code."""
    return _STATUS.get(code, BAD_KIT if code in _BAD_KIT else PRIVACY if code in _PRIVACY else FAILED)
