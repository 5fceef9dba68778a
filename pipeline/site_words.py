"""What a site says, before it is kept or shown: one line of plain words, a code that is one, a count that is small.

Knows what terminals, pages and logs would take for more than words. Does not know who speaks; nothing here makes a word true.
"""

from __future__ import annotations

import re
from typing import Any

from cafe_kit.records import clean

NOT_SAID = "The site gave no reason."
_MOST = 500  # characters of a sentence
_MOST_COUNT = 10**9
_CODE = re.compile(r"CAFE-[0-9]{3}")
_MARKS = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")", "`": "'", "|": "¦", "*": "∗", "$": "＄", "\\": "/"})


def line(told: Any, most: int = _MOST) -> str:
    """One line without control characters, turned text, markup or addresses that can be clicked."""
    text = " ".join(clean(str(told)[: 2 * most]).split()).translate(_MARKS).replace("://", ": //")
    return "".join(letter for letter in text if letter.isprintable())[:most]


def code(told: Any) -> str:
    """An error code; what is none means that the site gave no answer."""
    return str(told) if _CODE.fullmatch(str(told)) else "CAFE-123"


def count(told: Any) -> int:
    """A number of steps; 0 for what is none."""
    return told if isinstance(told, int) and not isinstance(told, bool) and 0 <= told <= _MOST_COUNT else 0
