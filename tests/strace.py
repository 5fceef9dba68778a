"""What a command and its children did to a folder, system call by system call, as strace tells it.

Knows strace's lines. Does not know what a call does: ``power_cut.py`` does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_CALLS = (
    "open,openat,creat,lseek,write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,fallocate,copy_file_range,sendfile,splice,"
    "fsync,fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
)
_WHOLE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<.*>)?(?: .*)?")
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
_ENDED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")


@dataclass(frozen=True)
class Call:
    """One system call that succeeded. ``arguments``: as strace wrote them."""

    process: str
    name: str
    arguments: tuple[str, ...]
    result: int


def cannot() -> str:
    """Why nothing can be traced on this machine; "" where it can."""
    if shutil.which("strace") is None:
        return "no strace on this machine; `make system` installs it where it may"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if tried.returncode == 0:
        return ""
    why = tried.stderr.strip()[:200]
    return f"ptrace is forbidden here: {why}" if "not permitted" in why else f"strace cannot trace: {why}"


def trace(command: Sequence[str], top: Path, log: Path, environment: Mapping[str, str]) -> list[Call]:
    """Run the command to its end; what it and its children did below ``top``, call by call."""
    how = ["strace", "-f", "-y", "-xx", "-s", "50000000", "-e", f"trace={_CALLS}", "-o", str(log)]
    done = subprocess.run([*how, *command], env=dict(environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(_read(log, top))


def _read(log: Path, top: Path) -> Iterator[Call]:
    """Calls in the order in which they ended."""
    begun: dict[str, str] = {}
    marks = (str(top), _hex(str(top)))
    with log.open() as lines:
        for line in lines:
            if found := _BEGUN.match(line):
                begun[found[1]] = line[: line.rindex(" <unfinished")]
                continue
            if found := _ENDED.match(line):
                line = begun.pop(found[1]) + found[2]
            if not any(mark in line for mark in marks):
                continue
            found = _WHOLE.match(line)
            if found and int(found[4]) >= 0:
                yield Call(found[1], found[2], tuple(found[3].split(", ")), int(found[4]))


def _hex(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def plain(text: str) -> str:
    """A path as strace shows it beside a descriptor; one whose name is gone is nowhere."""
    return bytes.fromhex(text.replace("\\x", "")).decode() if text.startswith("\\x") else text


def bytes_of(argument: str) -> bytes:
    assert argument.startswith('"') and argument.endswith('"'), f"cut off: {argument[-40:]}"
    return bytes.fromhex(argument[1:-1].replace("\\x", ""))


def text_of(argument: str) -> str:
    return os.fsdecode(bytes_of(argument))
