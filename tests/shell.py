"""A person's shell for tests: it remembers its folder and what was exported, types answers at a terminal, and ends with Ctrl-C.

Knows bash and pseudo-terminals. Does not know any of our commands.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CTRL_C = "\x03"
_WIDE = struct.pack("HHHH", 50, 200, 0, 0)  # lines and columns

# a question and its answer; or who looks at the screen then, does something elsewhere, and perhaps types what he found
Typed = tuple[str, str | Callable[[str], str | None]]


class Shell:
    """``home`` is where it begins, and its HOME. ``notes``: a folder for what it keeps between two calls."""

    def __init__(self, home: Path, notes: Path, environment: Mapping[str, str]) -> None:
        self._notes, self._begun = notes, list[Running]()
        notes.mkdir(parents=True, exist_ok=True)
        (notes / "exported").touch()
        (notes / "folder").write_text(str(home))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAFE_", "XDG_", "GLOBUS_"))}
        self._environment = kept | {"HOME": str(home), "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "200", **environment}

    def run(self, script: str, typed: Sequence[Typed] = (), status: int = 0, seconds: float = 120) -> str:
        """Run it to its end; what it printed. ``typed``: at a terminal."""
        process, leader = self._begin(script, bool(typed))
        said = _talk(process, leader, typed, seconds) if typed else _read(process, seconds)
        assert process.returncode == status, f"{script}\nended with {process.returncode}, not {status}:\n{said}"
        return said

    def start(self, script: str) -> Running:
        """Begin something that goes on until it is ended."""
        log = self._notes / f"out-{time.monotonic_ns()}"
        with log.open("wb") as out:
            process = subprocess.Popen(["bash", "-e", "-c", self._whole(script)], **self._how(), stdout=out, stderr=out)  # type: ignore[call-overload]
        self._begun.append(Running(process, log))
        return self._begun[-1]

    def close(self) -> None:
        """End whatever still goes on."""
        for running in self._begun:
            running.end()

    def _begin(self, script: str, at_terminal: bool) -> tuple[subprocess.Popen[bytes], int]:
        if not at_terminal:
            pipe = subprocess.PIPE
            command = ["bash", "-e", "-c", self._whole(script)]
            return subprocess.Popen(command, **self._how(), stdout=pipe, stderr=subprocess.STDOUT), -1  # type: ignore[call-overload]
        leader, follower = pty.openpty()
        fcntl.ioctl(leader, termios.TIOCSWINSZ, _WIDE)
        how = self._how() | {"stdin": follower, "preexec_fn": _own_terminal}
        process = subprocess.Popen(["bash", "-e", "-c", self._whole(script)], **how, stdout=follower, stderr=follower)  # type: ignore[call-overload]
        os.close(follower)
        return process, leader

    def _how(self) -> dict[str, object]:
        return {
            "env": self._environment,
            "cwd": (self._notes / "folder").read_text().rstrip("\n"),
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
            "preexec_fn": _hears_signals,
        }

    def _whole(self, script: str) -> str:
        keep = f'export -p | grep -v " -x OLDPWD" > "{self._notes}/exported"\npwd > "{self._notes}/folder"'
        return f'. "{self._notes}/exported"\n{script}\n{keep}\n'


class Running:
    """Something that goes on."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def says(self, words: str, seconds: float = 60) -> str:
        """Wait until it has printed these words; all that it printed."""
        until = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < until and self._process.poll() is None, f"{words!r} was not said:\n{self.said}"
            time.sleep(0.1)
        return self.said

    def done(self, seconds: float = 60) -> str:
        """Wait until it has ended by itself, well; all that it printed."""
        self._process.wait(seconds)
        assert self._process.returncode == 0, self.said
        return self.said

    def end(self, seconds: float = 60) -> str:
        """As Ctrl-C does; all that it printed."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise
        return self.said


def _hears_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a session in the background ignores it


def _own_terminal() -> None:
    _hears_signals()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read(process: subprocess.Popen[bytes], seconds: float) -> str:
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return said.decode(errors="replace")


def _talk(process: subprocess.Popen[bytes], leader: int, typed: Sequence[Typed], seconds: float) -> str:
    said, at, left, until = "", 0, list(typed), time.monotonic() + seconds
    while True:
        if left and left[0][0] in said[at:]:
            at = said.index(left[0][0], at) + len(left[0][0])
            _, answer = left.pop(0)
            if callable(answer):
                answer = answer(said)
            if answer is not None:
                os.write(leader, answer.encode() if answer == CTRL_C else f"{answer}\n".encode())
        ready, _, _ = select.select([leader], [], [], 0.2)
        try:
            data = os.read(leader, 65536) if ready else b""
        except OSError:  # nobody has the terminal any more
            break
        said += data.decode(errors="replace").replace("\r\n", "\n")
        if time.monotonic() > until:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"waited in vain, with {left} still to be typed:\n{said}")
    process.wait(10)
    os.close(leader)
    assert not left, f"nobody asked for {left}:\n{said}"
    return said
