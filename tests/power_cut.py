"""A disk that loses its power: what is left of a folder after a cut at any moment.

Knows the system calls that change files, and what POSIX promises: bytes survive that an fsync of their file covered, names that an
fsync of their folder covered; of the rest any part may be there, in any order, sector by sector. That is harsher than any real file
system. Does not know what the files mean, nor what must hold of them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from random import Random

from tests.strace import Call, bytes_of, plain, text_of

SECTOR = 512  # what a disk writes whole
_FD = re.compile(r"(AT_FDCWD|\d+)<(.*)>")


@dataclass(frozen=True)
class Wrote:
    node: int
    at: int
    data: bytes


@dataclass(frozen=True)
class Sized:
    node: int
    size: int


@dataclass(frozen=True)
class Named:
    """Names that come and go together: (folder, name, what it names from now on)."""

    changes: tuple[tuple[int, str, int | None], ...]


Change = Wrote | Sized | Named


@dataclass
class Tree:
    """Files and folders by number; 0 is the top."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})

    def copy(self) -> Tree:
        return Tree(dict(self.files), {number: dict(names) for number, names in self.folders.items()})

    def apply(self, change: Change) -> None:
        if isinstance(change, Wrote):
            data = self.files.get(change.node, b"").ljust(change.at, b"\0")
            self.files[change.node] = data[: change.at] + change.data + data[change.at + len(change.data) :]
        elif isinstance(change, Sized):
            self.files[change.node] = self.files.get(change.node, b"")[: change.size].ljust(change.size, b"\0")
        else:
            for folder, name, node in change.changes:
                if node is None:
                    self.folders[folder].pop(name, None)
                else:
                    self.folders[folder][name] = node

    def find(self, path: str) -> int | None:
        """The file or folder at a path below the top; "" is the top itself."""
        node: int | None = 0
        for part in filter(None, path.split("/")):
            node = self.folders.get(node, {}).get(part) if node is not None else None
        return node

    def contents(self, node: int = 0, at: str = "") -> Iterator[tuple[str, bytes | None]]:
        """Every path below ``node`` with its bytes; None for a folder."""
        for name, below in sorted(self.folders[node].items()):
            if below in self.folders:
                yield f"{at}{name}", None
                yield from self.contents(below, f"{at}{name}/")
            else:
                yield f"{at}{name}", self.files.get(below, b"")


class Disk:
    """The folders ``parts`` of ``top``, empty at first: what the traced processes see in them (``now``), what a cut leaves for
    certain (``kept``), and what it may leave (``loose``).

    Raises:
        AssertionError: for a call that this disk does not know.
    """

    def __init__(self, top: Path, parts: tuple[str, ...]) -> None:
        self.now, self.kept = Tree(), Tree()
        self.loose: list[Change] = []
        self._top, self._parts, self._nodes = str(top), parts, 0
        self._places: dict[tuple[str, str], int] = {}  # (process, descriptor) -> where the next write goes; -1: at the end
        for part in parts:
            self._make(part, folder=True)
        self.kept, self.loose = self.now.copy(), []

    def is_as_told(self) -> bool:
        """Whether the real folders hold what the calls have told, byte by byte; but for memory that SQLite shares by a file."""
        top = Path(self._top)
        paths = [path for part in self._parts for path in (top / part).rglob("*")]
        real = {path.relative_to(top).as_posix(): None if path.is_dir() else path.read_bytes() for path in paths}
        told = {path: data for path, data in self.now.contents() if path not in self._parts}
        return all(real.get(path, b"") == told.get(path, b"") for path in real.keys() | told.keys() if not path.endswith("-shm"))

    def play(self, call: Call) -> bool:
        """Do what the call did; False where it changed nothing that a cut could show."""
        before = len(self.loose)
        if call.name in ("fsync", "fdatasync"):
            node = self._node(call.arguments[0])
            return node is not None and self._sync(node)
        getattr(self, f"_{_ALIKE.get(call.name, call.name)}", self._unknown)(call)
        return len(self.loose) > before

    def after(self, chance: Random | None = None, *, newest: bool = False) -> Tree:
        """What is there when the power comes back: only what was made durable; with it the newest change alone, or a random half."""
        tree = self.kept.copy()
        for change in self.loose[-1:] if newest else self.loose if chance else ():
            for part in _sectors(change):
                if newest or (chance and chance.random() < 0.5):
                    tree.apply(part)
        return tree

    # --- what calls do ---

    def _do(self, change: Change) -> None:
        self.now.apply(change)
        self.loose.append(change)

    def _sync(self, node: int) -> bool:
        """An fsync: of a file it keeps its bytes, of a folder its names."""
        settled = [change for change in self.loose if _concerns(change, node)]
        for change in settled:
            self.kept.apply(change)
        self.loose = [change for change in self.loose if not _concerns(change, node)]
        return bool(settled)

    def _make(self, path: str, *, folder: bool) -> int:
        above, _, name = path.rpartition("/")
        parent = self.now.find(above)
        assert parent is not None, path
        self._nodes += 1
        if folder:
            self.now.folders[self._nodes], self.kept.folders[self._nodes] = {}, {}
        self._do(Named(((parent, name, self._nodes),)))
        return self._nodes

    def _openat(self, call: Call) -> None:
        base, path, flags = call.arguments[:3]
        if (below := self._below(path, base)) is None or "O_DIRECTORY" in flags:
            return
        node = self.now.find(below)
        if node is None:
            assert "O_CREAT" in flags, call
            node = self._make(below, folder=False)
        elif "O_TRUNC" in flags and self.now.files.get(node, b""):
            self._do(Sized(node, 0))
        self._places[call.process, str(call.result)] = -1 if "O_APPEND" in flags else 0

    def _lseek(self, call: Call) -> None:
        key = call.process, call.arguments[0].partition("<")[0]
        if self._places.get(key, -1) >= 0:
            self._places[key] = call.result

    def _write(self, call: Call) -> None:
        node = self._node(call.arguments[0])
        if node is None:
            return
        key = call.process, call.arguments[0].partition("<")[0]
        at = self._places[key] if self._places[key] >= 0 else len(self.now.files.get(node, b""))
        self._do(Wrote(node, at, bytes_of(call.arguments[1])[: call.result]))
        if self._places[key] >= 0:
            self._places[key] += call.result

    def _pwrite64(self, call: Call) -> None:
        if (node := self._node(call.arguments[0])) is not None:
            self._do(Wrote(node, int(call.arguments[3]), bytes_of(call.arguments[1])[: call.result]))

    def _ftruncate(self, call: Call) -> None:
        if (node := self._node(call.arguments[0])) is not None:
            self._do(Sized(node, int(call.arguments[1])))

    def _rename(self, call: Call) -> None:
        old, new = self._two(call)
        if old is not None or new is not None:
            assert old is not None and new is not None, f"into the disk, or out of it: {call}"
            self._do(Named((self._name(old, None), self._name(new, self.now.find(old)))))

    def _link(self, call: Call) -> None:
        old, new = self._two(call)
        if new is not None:
            assert old is not None, call
            self._do(Named((self._name(new, self.now.find(old)),)))

    def _unlink(self, call: Call) -> None:
        base, path = call.arguments[:2] if call.name == "unlinkat" else ("", call.arguments[0])
        if below := self._below(path, base):
            self._do(Named((self._name(below, None),)))

    def _mkdir(self, call: Call) -> None:
        base, path = call.arguments[:2] if call.name == "mkdirat" else ("", call.arguments[0])
        if below := self._below(path, base):
            self._make(below, folder=True)

    def _unknown(self, call: Call) -> None:
        raise AssertionError(f"this disk does not know the call {call.name}")

    # --- where ---

    def _two(self, call: Call) -> tuple[str | None, str | None]:
        if call.name.endswith(("at", "at2")):
            return self._below(call.arguments[1], call.arguments[0]), self._below(call.arguments[3], call.arguments[2])
        return self._below(call.arguments[0]), self._below(call.arguments[1])

    def _below(self, argument: str, base: str = "") -> str | None:
        """The path below the top that a call names; None for one elsewhere."""
        path = text_of(argument)
        if not path.startswith("/") and (found := _FD.fullmatch(base)):
            path = f"{plain(found[2])}/{path}"
        return self._ours(os.path.normpath(path))

    def _ours(self, path: str) -> str | None:
        below = path.removeprefix(f"{self._top}/")
        return below if below != path and below.split("/")[0] in self._parts else None

    def _node(self, descriptor: str) -> int | None:
        """What an open descriptor stands for, by the path that it has at this moment; None elsewhere and when its name is gone."""
        found = _FD.fullmatch(descriptor)
        below = self._ours(plain(found[2])) if found else None
        return self.now.find(below) if below is not None else None

    def _name(self, path: str, node: int | None) -> tuple[int, str, int | None]:
        above, _, name = path.rpartition("/")
        folder = self.now.find(above)
        assert folder is not None, path
        return folder, name, node


_ALIKE = {
    "open": "openat", "renameat": "rename", "renameat2": "rename", "linkat": "link", "unlinkat": "unlink", "rmdir": "unlink",
    "mkdirat": "mkdir",
}  # fmt: skip


def _concerns(change: Change, node: int) -> bool:
    return any(folder == node for folder, _, _ in change.changes) if isinstance(change, Named) else change.node == node


def _sectors(change: Change) -> Iterator[Change]:
    """The parts of a change that a disk may keep or lose one by one."""
    if not isinstance(change, Wrote):
        yield change
        return
    last = change.at + len(change.data)
    for begin, end in pairwise([change.at, *range(change.at // SECTOR * SECTOR + SECTOR, last, SECTOR), last]):
        yield Wrote(change.node, begin, change.data[begin - change.at : end - change.at])


# --- states ----------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What became of the states: how many different ones were looked at, and what was wrong with how many."""

    states: int = 0
    bad: Counter[str] = field(default_factory=Counter)


Look = Callable[[Path, dict[str, bytes]], None]


def replay(calls: Sequence[Call], disk: Disk, look: Look, scratch: Path, *, halves: int, seed: int = 1, enough: int = 0) -> Verdict:
    """Cut the power after every call that changed something, and ``look`` at what is there then.

    Args:
        disk: as it was before the first call; afterwards, as it is after the last.
        look: is given the folder ``disk`` after the cut, and the files of ``outside`` at that moment, which others have seen and no
            cut takes back; it raises when a promise is broken.
        halves: random halves of what was not durable, for each moment, beside the states with nothing of it and with the newest of it.
        enough: so many bad states are not followed by more. 0: all are looked at.
    """
    verdict, known, chance = Verdict(), set[bytes](), Random(seed)
    for call in calls:
        if not disk.play(call) or (enough and verdict.bad.total() >= enough):
            continue
        seen = {path: data for path, data in disk.now.contents(disk.now.folders[0]["outside"]) if data is not None}
        for tree in (disk.after(), disk.after(newest=True), *(disk.after(chance) for _ in range(halves))):
            found = list(tree.contents(tree.folders[0]["disk"]))
            if (mark := _mark([*found, *seen.items()])) not in known:
                known.add(mark)
                verdict.states += 1
                verdict.bad.update(_looked_at(found, seen, look, scratch / str(verdict.states)))
    return verdict


def _looked_at(found: list[tuple[str, bytes | None]], seen: dict[str, bytes], look: Look, place: Path) -> list[str]:
    """What is wrong with one state; nothing, if all is well."""
    _write(place, found)
    try:
        look(place, seen)
    except Exception as error:  # whatever it is, somebody would have met it after a power cut
        return [str(getattr(error, "code", f"{type(error).__name__}: {error}"))[:120]]
    finally:
        shutil.rmtree(place)
    return []


def _mark(found: list[tuple[str, bytes | None]]) -> bytes:
    """Equal for equal states."""
    digest = sha256()
    for path, data in found:
        digest.update(f"{path}\0{-1 if data is None else len(data)}\0".encode() + (data or b""))
    return digest.digest()


def _write(folder: Path, found: list[tuple[str, bytes | None]]) -> None:
    folder.mkdir(mode=0o700)
    for path, data in found:
        if data is None:
            (folder / path).mkdir(mode=0o700)
        else:
            (folder / path).write_bytes(data)
