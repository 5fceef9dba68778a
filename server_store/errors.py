"""What a person is told when the store cannot do something. Same shape as the kit's error, which this room may not import."""

from __future__ import annotations


class StoreError(Exception):
    """A refusal with a code (``CAFE-651`` ...), what happened and why, and what to do next."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)
        self.code, self.message, self.hint = code, message, hint

    def __str__(self) -> str:
        return f"{self.code} {self.message} {self.hint}".strip()
