"""A process that serves seats over JSON lines: orders come in on standard input, replies go out on standard output.

Knows: lines, the end of input, what a process must do to leave nothing behind. Does not know what an order asks for.
In:  ``{"id": n, "orders": [{"order": ..., "signature": ..., "transport": ...}, ...]}``
Out: ``{"id": 0, "ready": {site: its public key}}`` once (or ``{"id": 0, "failed": {"code", "sentence"}}``, and the end),
     ``{"id": n, "progress": {"site", "phase", "done", "of"}}``, and ``{"id": n, "reply": ..., "signature": ...}`` per order.
What libraries print goes to standard error. The end of input ends the process at once, in the middle of whatever it
does: everything that counts is durable before it is told.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import resource
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from cafe_kit.engine import Engine, from_environment
from cafe_kit.errors import CafeError
from cafe_kit.seat import Request, Seat, answer_many
from cafe_kit.seat_config import load_host_config

MAX_LINE = 64 * 1024 * 1024
_PROGRESS_EVERY_S = 0.25
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


class Host:
    """Seats, one engine for all of them, and the descriptor that the protocol owns."""

    def __init__(self, seats: list[Seat], engine: Engine, out: BinaryIO) -> None:
        self._seats = {seat.site: seat for seat in seats}
        self._first, self._engine, self._out = seats[0], engine, out
        self._told: dict[str, float] = {}

    def serve(self, lines: queue.Queue[bytes]) -> NoReturn:
        """Answer line after line; the reader thread ends the process."""
        self._say({"id": 0, "ready": {site: seat.verify_key for site, seat in self._seats.items()}})
        while True:
            try:
                asked = json.loads(lines.get())
                number, orders = asked["id"], list(asked["orders"])
            except (ValueError, KeyError, TypeError, RecursionError):
                print("a line that is not of the protocol was left out", file=sys.stderr)
                continue
            self._answer(number, orders)

    def _answer(self, number: Any, orders: list[Any]) -> None:
        def progress(site: str, phase: str, done: int, of: int) -> None:
            now = time.monotonic()
            if done >= of or now - self._told.get(site, 0.0) >= _PROGRESS_EVERY_S:
                self._told[site] = now
                self._say({"id": number, "progress": {"site": site, "phase": phase, "done": done, "of": of}})

        for reply, signature in answer_many([self._request(order) for order in orders], self._engine, progress):
            self._say({"id": number, "reply": asdict(reply), "signature": signature})

    def _request(self, asked: Any) -> Request:
        """Addressed to its seat; what names no seat of ours is refused by the first one, in its own name."""
        asked = asked if isinstance(asked, dict) else {}
        order = asked.get("order")
        site = order.get("site") if isinstance(order, dict) else None
        seat = self._seats.get(site, self._first) if isinstance(site, str) else self._first
        return Request(seat, order, str(asked.get("signature")), asked.get("transport"))

    def _say(self, told: dict[str, Any]) -> None:
        self._out.write(json.dumps(told, ensure_ascii=True, allow_nan=False).encode() + b"\n")
        self._out.flush()


def _read_lines(source: BinaryIO, lines: queue.Queue[bytes]) -> None:
    """Feed the queue; end the process when the other side is gone."""
    while (line := source.readline(MAX_LINE)).endswith(b"\n"):
        lines.put(line)
    os._exit(0)


def claim_stdout() -> BinaryIO:
    """Keep standard output for the protocol and let everything else that is printed go to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return out


def leave_nothing_behind() -> None:
    """No core dumps, files for this user only, and no life after the process that started this one."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches whole groups; the end of input is what ends this process
    sys.excepthook = lambda kind, *_: print(f"the site's process ended with {kind.__name__}", file=sys.stderr)  # no text: it may quote
    parent = os.getppid()
    # The kernel sends the signal already when the *thread* that started us ends; only a changed parent counts.
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(0) if os.getppid() != parent else None)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)


def no_core_dumps() -> None:
    """Neither a file nor a collector of crashes gets this process's memory, in which records are. Hides its environment, too:
    not for processes that an endpoint has to find again by that (``leftovers.py``)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def main(arguments: list[str]) -> NoReturn:
    """Serve the seats of a configuration file until the input ends; exit status 2 when it cannot start."""
    out = claim_stdout()
    leave_nothing_behind()
    no_core_dumps()
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_lines, args=(sys.stdin.buffer, lines), daemon=True).start()
    try:
        config = load_host_config(json.loads(Path(arguments[0]).read_bytes()))
        host = Host([Seat(seat) for seat in config.seats], from_environment(config.threads), out)
    except CafeError as error:
        _cannot_start(out, error)
    except (OSError, ValueError, IndexError):
        _cannot_start(out, CafeError("CAFE-136", "The site's configuration file is missing or not JSON.", "Make the kit again."))
    try:
        host.serve(lines)
    except BrokenPipeError:
        os._exit(0)


def _cannot_start(out: BinaryIO, error: CafeError) -> NoReturn:
    print(error, file=sys.stderr)
    out.write(json.dumps({"id": 0, "failed": {"code": error.code, "sentence": error.message}}).encode() + b"\n")
    out.flush()
    sys.stderr.flush()
    os._exit(2)  # at a usual exit the interpreter stumbles over the thread that is reading


if __name__ == "__main__":
    main(sys.argv[1:])
