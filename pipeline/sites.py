"""Gives orders to sites and brings their answers back: all of them, and here those that are processes of this machine.

Knows processes, slots, deadlines and the line protocol of ``cafe_kit.host``. Does not know what an order asks for, and
opens no body. A kit process keeps its model in memory between rounds; ``slots`` says how many compute at once,
``resident`` how many stay in memory. A deadline starts when the slot is granted. An answer is trusted only when it is
signed by the key that the site showed first.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from cafe_kit.errors import CafeError
from cafe_kit.orders import Order, Reply, Transport, order_hash, parse, verify
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipeline import site_words

WAITS_FOR_ADMIN = "waits for its admin"  # what a joined site does while its outbox is in review mode
_MAX_LINE = 256 * 1024
_START_S = 120.0


@dataclass(frozen=True)
class Envelope:
    """An order on its way: the order, the server's signature, where its inputs and its output lie, and the most bytes of a body."""

    order: Order
    signature: str
    transport: Transport
    most: int = 64 * 2**20


@dataclass(frozen=True)
class Answer:
    """What became of an envelope: a verified reply, or a problem with a code and a sentence (whatever the site said, plain words)."""

    order: Order
    reply: Reply | None
    code: str = ""
    sentence: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", self.code and site_words.code(self.code))
        object.__setattr__(self, "sentence", site_words.line(self.sentence))


SiteProgress = Callable[[str, str, int, int], None]
Answers = queue.Queue[Answer | tuple[str, str, int, int]]


class Party(Protocol):
    """Sites that are reached in one way. Every envelope gets exactly one answer, with progress before it; never raises for a site."""

    def hand_out(self, envelopes: Sequence[Envelope], answers: Answers) -> None: ...

    def sweep(self) -> None: ...


class Sites:
    """All sites of a run: those that a host of this machine serves by ``local``, all others by ``remote``."""

    def __init__(self, local: LocalSites, remote: Party) -> None:
        self._local, self._remote = local, remote

    def sweep(self) -> None:
        """The run is over: nothing of it stays on the way to other machines."""
        self._remote.sweep()

    def add(self, host: Host) -> None:
        """Make a host of this machine known."""
        self._local.add(host)

    def ask(self, envelopes: Sequence[Envelope], on_progress: SiteProgress | None = None) -> Iterator[Answer]:
        """Hand out the orders and yield one answer each, as they come. Never raises for what a site did.

        ``on_progress`` is told (site, phase, done, of), in the caller's own thread.
        """
        answers: Answers = queue.Queue()
        near = self._local.sites
        if far := [envelope for envelope in envelopes if envelope.order.site not in near]:
            self._remote.hand_out(far, answers)
        self._local.hand_out([envelope for envelope in envelopes if envelope.order.site in near], answers)
        return listen(answers, len(envelopes), on_progress)


def listen(answers: Answers, number: int, on_progress: SiteProgress | None = None) -> Iterator[Answer]:
    """``number`` answers, as they come; ``on_progress`` is told what comes before them."""
    while number:
        told = answers.get()
        if isinstance(told, Answer):
            number -= 1
            yield told
        elif on_progress:
            on_progress(*told)


@dataclass(frozen=True)
class Host:
    """One kit process and the seats (sites) that it serves; each seat is a ``cafe_kit.seat.SeatConfig`` as plain data."""

    name: str
    seats: tuple[dict[str, Any], ...]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(seat["site"] for seat in self.seats)


class LocalSites:
    """The kit processes of this machine, for the time of a ``with`` block; none outlives it.

    Args:
        folder: where seat files and the kits' own logs (standard error) lie.
        threads: of each kit process.
        slots: kit processes that may compute at once.
        resident: kit processes that may stay in memory; the longest idle one is ended first.
        keys: site → public key (hexadecimal) seen before; filled as sites show theirs.
        kit: the command that serves a seats file; tests put ill-behaved ones here.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int,
        slots: int,
        resident: int,
        keys: dict[str, str],
        kit: Sequence[str] = (sys.executable, "-m", "cafe_kit.host"),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._threads, self._resident = folder, threads, max(resident, slots)
        self._keys, self._kit = keys, tuple(kit)
        self._hosts: dict[str, Host] = {}
        self._running: dict[str, _Process] = {}
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        # The threads live as long as the pool, and must: the kernel ends a kit process when the thread that started it ends.
        self._pool = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="slot")

    def __enter__(self) -> LocalSites:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, host: Host) -> None:
        """Make the host's sites known; its process starts with the first order."""
        self._hosts[host.name] = host

    def close(self) -> None:
        """End every kit process now; what they were doing is lost and can be asked again."""
        with self._lock:
            running, self._running = list(self._running.values()), {}
        for process in running:
            process.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def ask(self, envelopes: Sequence[Envelope], on_progress: SiteProgress | None = None) -> Iterator[Answer]:
        """As ``Sites.ask``, of this machine alone."""
        answers: Answers = queue.Queue()
        self.hand_out(envelopes, answers)
        return listen(answers, len(envelopes), on_progress)

    @property
    def sites(self) -> frozenset[str]:
        """The sites that a host of this machine serves."""
        return frozenset(site for host in self._hosts.values() for site in host.sites)

    def hand_out(self, envelopes: Sequence[Envelope], answers: Answers) -> None:
        """Queue the orders, one job for each host; returns at once."""
        by_host: dict[str, list[Envelope]] = {}
        of_site = {site: host.name for host in self._hosts.values() for site in host.sites}
        for envelope in envelopes:
            by_host.setdefault(of_site[envelope.order.site], []).append(envelope)
        for name, group in by_host.items():
            self._pool.submit(self._job, self._hosts[name], group, answers)

    def _job(self, host: Host, group: list[Envelope], answers: Answers) -> None:
        """One host's orders, in one slot. Every envelope gets exactly one answer, whatever happens."""
        open_ = {order_hash(envelope.order): envelope for envelope in group}
        deadline = time.monotonic() + min(envelope.transport.deadline_s for envelope in group)
        code, sentence = "", ""
        try:
            for _ in range(2):  # a process that dies is started once more: delivery is at-least-once
                try:
                    self._converse(host, open_, deadline, answers)
                except CafeError as error:
                    code, sentence = error.code, error.message
                if not open_ or code in ("CAFE-124", "CAFE-126"):
                    break
        except Exception as error:
            code, sentence = "CAFE-127", f"The site's process could not be used ({type(error).__name__})."
        finally:
            with self._lock:
                self._busy.discard(host.name)
            for envelope in open_.values():
                answers.put(Answer(envelope.order, None, code or "CAFE-123", sentence or "The site gave no answer."))

    def _converse(self, host: Host, open_: dict[str, Envelope], deadline: float, answers: Answers) -> None:
        process = self._process(host)
        process.send([{"order": asdict(e.order), "signature": e.signature, "transport": asdict(e.transport)} for e in open_.values()])
        while open_:
            line = process.receive(deadline)
            if line is None:
                self._drop(host)
                if time.monotonic() >= deadline:
                    raise CafeError("CAFE-124", "The site did not answer before the deadline.", "Raise deadline_s, or look at the site.")
                raise CafeError("CAFE-123", f"The site's process ended ({process.epitaph()}).", "Its log in the run's folder says more.")
            if isinstance(told := line.get("progress"), dict):
                if told.get("site") in host.sites:  # of no other
                    counts = site_words.count(told.get("done")), site_words.count(told.get("of"))
                    answers.put((told["site"], site_words.line(told.get("phase", ""), 40), *counts))
            elif "reply" in line:
                answer = self._checked(host, line, open_)
                if answer is not None:
                    del open_[order_hash(answer.order)]
                    answers.put(answer)

    def _checked(self, host: Host, line: dict[str, Any], open_: dict[str, Envelope]) -> Answer | None:
        """A reply that was asked for, from whom it was asked, signed with the key known for him; None for any other."""
        claimed = line["reply"].get("order_hash") if isinstance(line["reply"], dict) else None
        envelope = open_.get(str(claimed))
        if envelope is None:
            return None  # an answer to nothing that is open: an old round, or the second of two
        try:
            reply = parse(Reply, line["reply"])
            if reply.site != envelope.order.site:
                raise CafeError("CAFE-125", "A reply names another site.", "Look at the site.")
            verify(reply, str(line.get("signature", "")), Ed25519PublicKey.from_public_bytes(bytes.fromhex(self._keys[reply.site])))
        except CafeError as error:
            return Answer(envelope.order, None, error.code, error.message)
        return Answer(envelope.order, reply, reply.code, reply.sentence)

    def _process(self, host: Host) -> _Process:
        """The host's process, started if it is not there; another idle one makes room for it."""
        with self._lock:
            self._busy.add(host.name)
            process = self._running.get(host.name)
            if process is not None and process.alive():
                self._running[host.name] = self._running.pop(host.name)  # the most recently used is last
                return process
            idle = [name for name in self._running if name not in self._busy]
            evicted = [self._running.pop(name) for name in idle[: max(0, len(self._running) + 1 - self._resident)]]
        for other in evicted:
            other.stop()
        process = _Process(host, self._folder, self._threads, self._kit)
        with self._lock:
            self._running[host.name] = process
        for site, key in process.await_ready(time.monotonic() + _START_S).items():
            if self._keys.setdefault(site, key) != key:
                self._drop(host)
                raise CafeError(
                    "CAFE-126", f"Site {site!r} shows another key than before.", "Somebody else answers in its name, or its home was lost."
                )
        return process

    def _drop(self, host: Host) -> None:
        with self._lock:
            process = self._running.pop(host.name, None)
        if process is not None:
            process.stop(now=True)


class _Process:
    """One ``cafe_kit.host`` process and its two pipes."""

    def __init__(self, host: Host, folder: Path, threads: int, kit: tuple[str, ...]) -> None:
        seats = folder / f"{host.name}.seats.json"
        seats.write_text(json.dumps({"threads": threads, "seats": host.seats}), encoding="utf-8")
        here = Path(__file__).resolve().parents[1]
        path = os.pathsep.join(part for part in (str(here), os.environ.get("PYTHONPATH", "")) if part)
        # Threads that wait must sleep: spinning, two of them beside any other work run at a tenth of one thread's speed.
        quiet = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
        environment = quiet | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if threads:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with (folder / f"{host.name}.log").open("ab") as log:
            self._popen = subprocess.Popen(
                [*kit, str(seats)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._asked = 0

    def alive(self) -> bool:
        return self._popen.poll() is None

    def await_ready(self, deadline: float) -> dict[str, str]:
        """Wait for the first line; returns site → public key in hexadecimal."""
        line = self.receive(deadline)
        if line is not None and isinstance(line.get("failed"), dict):
            self.stop()
            raise CafeError(
                str(line["failed"].get("code", "CAFE-123")), str(line["failed"].get("sentence", "")), "Mend the site's home or settings."
            )
        if line is None or not isinstance(line.get("ready"), dict):
            self.stop(now=True)
            raise CafeError("CAFE-123", f"The site's process did not start ({self.epitaph()}).", "Its log in the run's folder says more.")
        return {str(site): str(key) for site, key in line["ready"].items()}

    def send(self, orders: list[dict[str, Any]]) -> None:
        self._asked += 1
        assert self._popen.stdin
        try:
            self._popen.stdin.write(json.dumps({"id": self._asked, "orders": orders}).encode() + b"\n")
            self._popen.stdin.flush()
        except OSError:
            pass  # it is gone; the reader tells

    def receive(self, deadline: float) -> dict[str, Any] | None:
        """The next line; None at the deadline, or when the process has ended."""
        try:
            return self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None

    def epitaph(self) -> str:
        try:
            code = self._popen.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "silent"
        return "killed, perhaps for want of memory" if code == -9 else f"exit status {code}"

    def stop(self, now: bool = False) -> None:
        """End of input ends a kit process; one that does not listen is killed."""
        try:
            if self._popen.stdin:
                self._popen.stdin.close()
        except OSError:
            pass
        try:
            if now:
                self._popen.kill()
            self._popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def _read(self) -> None:
        assert self._popen.stdout
        while line := self._popen.stdout.readline(_MAX_LINE):
            try:
                told = json.loads(line)
            except (ValueError, RecursionError):
                continue  # chatter: not of the protocol
            if isinstance(told, dict):
                self._lines.put(told)
        self._lines.put(None)
