"""Answers in the making: one question put to several models at once, each answer streamed by a thread of its own.

Knows: pieces of text, when an answer ended and why. Does not know which model is behind a column, nor who looks on.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from cafe_kit.errors import CafeError

State = Literal["running", "done", "stopped", "failed"]
Events = Callable[[], Iterator[dict[str, Any]]]  # asks, and gives the server's events
_TOGETHER_S = 0.05  # what arrives within this time is drawn together


@dataclass(frozen=True)
class Column:
    """One model that answers, and the proof which weights it has.

    ``model`` is what the server calls it; hashes are SHA-256 in hexadecimal, "" where there is nothing to hash
    (the base column has no adapter) or nothing that can be proven (the base of another server).
    """

    name: str  # base | synthetic-only | federated | round-3
    title: str
    words: str
    model: str
    base_sha256: str
    adapter_sha256: str = ""


class Stream:
    """One answer. ``text`` grows while ``state`` is "running" and never changes after that."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.text, self.state, self.error = "", "running", None
        self.tokens, self._begun, self._seconds = 0, time.monotonic(), 0.0
        self._lock = threading.Lock()

    text: str
    state: State
    error: CafeError | None

    @property
    def seconds(self) -> float:
        """Since the question, up to now or to the end."""
        return time.monotonic() - self._begun if self.state == "running" else self._seconds

    def add(self, piece: str) -> bool:
        """A piece that arrived; False when nobody waits for it any more."""
        with self._lock:
            if self.state == "running":
                self.text += piece
                self.tokens += 1
            return self.state == "running"

    def end(self, state: State, tokens: int | None = None, error: CafeError | None = None) -> None:
        """The first end counts."""
        with self._lock:
            if self.state == "running":
                self._seconds, self.error = time.monotonic() - self._begun, error
                self.tokens = self.tokens if tokens is None else tokens
                self.state = state

    def as_json(self) -> dict[str, Any]:
        """For the history: what was answered, by which weights."""
        column = self.column
        return {
            "name": column.name,
            "title": column.title,
            "base_sha256": column.base_sha256,
            "adapter_sha256": column.adapter_sha256,
            "text": self.text,
            "state": self.state,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "error": str(self.error) if self.error else "",
        }


class Answers:
    """All answers to one question. Leaving the ``with`` block, in whatever way, stops those that still run."""

    def __init__(self, asked: list[tuple[Column, Events]], on_piece: Callable[[], None] = lambda: None) -> None:
        self._news: queue.Queue[None] = queue.Queue()
        self._on_piece = on_piece
        self.streams = [Stream(column) for column, _ in asked]
        for stream, (_, events) in zip(self.streams, asked, strict=True):
            threading.Thread(target=self._fill, args=(stream, events), name=f"chat-{stream.column.name}", daemon=True).start()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return any(stream.state == "running" for stream in self.streams)

    def stop(self) -> None:
        """Keep what has arrived. The connections are closed by the next piece that arrives on them."""
        for stream in self.streams:
            stream.end("stopped")
        self._news.put(None)

    def updates(self) -> Iterator[None]:
        """Comes round whenever there is something new to draw, once more after the last piece, and ends."""
        while self.running:
            try:
                self._news.get(timeout=1.0)
                time.sleep(_TOGETHER_S)
                while not self._news.empty():
                    self._news.get_nowait()
            except queue.Empty:
                pass  # nothing new, but the seconds have moved on
            yield
        yield

    def _fill(self, stream: Stream, events: Events) -> None:
        tokens: int | None = None
        try:
            with closing(events()) as arriving:  # type: ignore[type-var]
                for event in arriving:
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    if not self._take(stream, _piece(event)):
                        return
            stream.end("done", tokens)
        except CafeError as error:
            stream.end("failed", error=error)
        except Exception as error:
            stream.end("failed", error=CafeError("CAFE-519", f"The answer broke off ({type(error).__name__}).", "Ask again."))
        finally:
            self._news.put(None)

    def _take(self, stream: Stream, piece: str) -> bool:
        if not piece:
            return stream.state == "running"
        self._on_piece()
        self._news.put(None)
        return stream.add(piece)


def _piece(event: dict[str, Any]) -> str:
    """The text that an event adds, of a completion or of a chat."""
    choice = (event.get("choices") or [{}])[0]
    return str(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
