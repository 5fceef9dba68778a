"""A network that misbehaves when told to: a proxy on loopback between a client and a real server.

It forwards bytes untouched, so signatures hold: the client addresses the proxy, whose name it signs. A fault is set with ``fail`` and
used up by so many connections. Setting one ends the connections that are open; one that met a fault carries no second request.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["refuse", "black hole", "status", "cut up", "cut down", "flip up", "flip down", "slow"]
_BLOCK = 64 * 1024


@dataclass
class _Fault:
    kind: Kind
    times: int
    after: float


@dataclass(eq=False)
class _Line:
    """One connection: to the client and to the server, and the fault it meets."""

    client: asyncio.StreamWriter
    seen: Counter[str]
    server: asyncio.StreamWriter | None = None
    fault: _Fault | None = None
    answered: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


class FaultProxy:
    """Listens on ``endpoint``; ``seen`` counts connections, bytes, and the faults that were met."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream, self._loop = upstream_port, asyncio.new_event_loop()
        self._faults: list[_Fault] = []
        self._lines: set[_Line] = set()
        self.seen: Counter[str] = Counter()
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, kind: Kind, times: int = 1, after: float = 0) -> None:
        """The next ``times`` connections meet this. ``after``: of a cut or flip, the byte where it happens, headers counted; of a status,
        its number; of slow, the seconds before each block."""
        self._faults.append(_Fault(kind, times, after))
        self._hang_up()

    def heal(self) -> None:
        self._faults.clear()
        self._hang_up()

    def _hang_up(self) -> None:
        self._loop.call_soon_threadsafe(lambda: [line.over.set() for line in self._lines])

    def _next(self) -> _Fault | None:
        self.seen["connections"] += 1
        while self._faults and self._faults[0].times <= 0:
            self._faults.pop(0)
        if not self._faults:
            return None
        self._faults[0].times -= 1
        self.seen[self._faults[0].kind] += 1
        return self._faults[0]

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(writer, self.seen, fault=self._next())
        self._lines.add(line)
        try:
            match line.fault.kind if line.fault else None:
                case "refuse":
                    pass
                case "black hole":
                    await reader.read()  # until the client gives up
                case "status":
                    await self._answer(reader, line)
                case _:
                    await self._forward(reader, line)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a side has gone, or the test has ended
        finally:
            self._lines.discard(line)
            for side in (line.client, line.server):
                if side:
                    side.transport.abort() if line.fault and line.fault.kind == "refuse" else side.close()

    async def _answer(self, reader: asyncio.StreamReader, line: _Line) -> None:
        """A status instead of the server's answer, after the whole request was read, as a server in trouble does."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        lengths = [int(row.split(b":")[1]) for row in head.split(b"\r\n") if row.startswith(b"content-length:")]
        if lengths and b"100-continue" not in head:
            await reader.readexactly(lengths[0])
        assert line.fault
        line.client.write(f"HTTP/1.1 {line.fault.after:.0f} Trouble\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await line.client.drain()
        line.client.write_eof()
        await reader.read()

    async def _forward(self, reader: asyncio.StreamReader, line: _Line) -> None:
        up_reader, line.server = await asyncio.open_connection("127.0.0.1", self._upstream)
        pumps = [asyncio.ensure_future(_pump(reader, line, up=True)), asyncio.ensure_future(_pump(up_reader, line, up=False))]
        await asyncio.wait([*pumps, hung_up := asyncio.ensure_future(line.over.wait())], return_when=asyncio.FIRST_COMPLETED)
        for task in (*pumps, hung_up):
            task.cancel()


async def _pump(reader: asyncio.StreamReader, line: _Line, *, up: bool) -> None:
    """Bytes from one side to the other, until the end, or the place of a cut."""
    writer = line.server if up else line.client
    assert writer
    fault = line.fault if line.fault and (line.fault.kind == "slow" or line.fault.kind.endswith("up") == up) else None
    writer.transport.set_write_buffer_limits(0)  # what was written has left before anything else happens
    passed = 0
    while block := await reader.read(_BLOCK):
        if up and line.fault and line.answered:
            return
        line.answered |= not up and not block.startswith(b"HTTP/1.1 100")
        if fault and fault.kind == "slow":
            await asyncio.sleep(fault.after)
        at = int(fault.after) - passed if fault else -1
        if fault and fault.kind.startswith("flip") and 0 <= at < len(block):
            block = block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]
        if fault and fault.kind.startswith("cut") and at <= len(block):
            writer.write(block[: max(0, at)])
            await writer.drain()
            return
        passed += len(block)
        line.seen["bytes up" if up else "bytes down"] += len(block)
        writer.write(block)
        await writer.drain()


@contextmanager
def fault_proxy(upstream_port: int) -> Iterator[FaultProxy]:
    """A proxy to 127.0.0.1:``upstream_port``, in a thread of its own."""
    proxy, listening = FaultProxy(upstream_port), threading.Event()
    loop = proxy._loop

    async def listen() -> None:
        server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0, limit=_BLOCK)
        proxy.port = server.sockets[0].getsockname()[1]
        listening.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        begun = loop.create_task(listen())
        loop.run_forever()
        for task in asyncio.all_tasks(loop) - {begun}:
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert listening.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
