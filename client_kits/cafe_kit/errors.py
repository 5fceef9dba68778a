"""What a person is told when something cannot be done.

Knows: the one exception that is meant for people. Does not know who prints it. Codes: 1xx site and order, 2xx data,
3xx privacy, 4xx training and models, 5xx generation and serving, 6xx settings, store and machine. A message never
carries a record's text, a label's count or an un-noised number.
"""

from __future__ import annotations


class CafeError(Exception):
    """A refusal or failure with a code (``CAFE-201``), what happened and why, and what to do next.

    Args:
        code: ``CAFE-`` and three digits.
        message: one or two sentences: what happened, why. No private data.
        hint: one sentence: what to do next.
    """

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)  # all three, so that the exception survives being sent to another process
        self.code, self.message, self.hint = code, message, hint

    def __str__(self) -> str:
        return f"{self.code} {self.message} {self.hint}".strip()
