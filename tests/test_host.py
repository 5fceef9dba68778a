"""The kit's process: one line of JSON in, one out, whatever libraries print, and no life after its input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import BY_SITE, TRAIN, TinyEngine, TinyServer

ROOT = Path(__file__).parents[1]
LONG = replace(TRAIN, steps=100_000)


class ChattyEngine(TinyEngine):
    """Prints as libraries do: through Python, through the descriptor, through a child."""

    def vote(self, *given: Any) -> np.ndarray:
        print('{"id": 1, "reply": "chatter"}', flush=True)
        os.write(1, b"Downloading 100%\n")
        subprocess.run(["echo", "chatter of a child"], check=True)
        return super().vote(*given)


class Process:
    """A host, its two pipes, and what it printed to standard error."""

    def __init__(self, folder: Path, seats: list[Any] | None, engine: str = "tests.fakes:TinyEngine", **environment: str) -> None:
        self.errors = folder / "stderr"
        if seats is not None:
            (folder / "seats.json").write_text(json.dumps({"threads": 1, "seats": seats}))
        with self.errors.open("w") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "cafe_kit.host", str(folder / "seats.json")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, cwd=ROOT, env=os.environ | {"CAFE_KIT_ENGINE": engine} | environment,
            )  # fmt: skip

    def write(self, line: bytes) -> None:
        assert self.popen.stdin
        self.popen.stdin.write(line + b"\n")
        self.popen.stdin.flush()

    def ask(self, number: int, *orders: dict[str, Any]) -> None:
        self.write(json.dumps({"id": number, "orders": orders}).encode())

    def read(self) -> dict[str, Any]:
        assert self.popen.stdout
        return json.loads(self.popen.stdout.readline())

    def reply(self) -> dict[str, Any]:
        while "reply" not in (line := self.read()):
            assert set(line) == {"id", "progress"}
        return line


@pytest.fixture
def server(tmp_path: Path) -> TinyServer:
    return TinyServer(tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    processes: list[Process] = []

    def make(*given: Any, **named: Any) -> Process:
        processes.append(Process(tmp_path, *given, **named))
        return processes[-1]

    yield make
    for process in processes:
        process.popen.kill()
        process.popen.wait()
        process.popen.stdout.close()


def test_seats_answer_over_lines(server, start):
    host = start([server.seat_config("a"), server.seat_config("b")])
    ready = host.read()
    assert ready["id"] == 0 and set(ready["ready"]) == {"a", "b"} and all(len(key) == 64 for key in ready["ready"].values())
    orders = [server.order("a"), server.order("b"), server.order("a", "vote")]
    host.ask(7, *map(server.ask, orders))
    lines = []
    while sum("reply" in line for line in lines) < 3:
        lines.append(host.read())
    assert {line["id"] for line in lines} == {7}
    assert [line["reply"]["site"] for line in lines if "reply" in line] == ["a", "b", "a"]
    told = [line["progress"] for line in lines if "progress" in line]
    assert {"site": "b", "phase": "train", "done": 3, "of": 3} in told
    assert all(server.open(order) for order in orders)


def test_chatter_does_not_break_the_protocol(server, start):
    host = start([server.seat_config("a")], "tests.test_host:ChattyEngine")
    host.read()
    host.ask(1, server.ask(server.order("a", "vote")))
    assert host.reply()["reply"]["status"] == "ok"
    said = host.errors.read_text()
    assert '"chatter"' in said and "Downloading" in said and "chatter of a child" in said


def test_lines_that_are_none_of_ours_are_left_out_and_strangers_refused(server, start):
    host = start([server.seat_config("a"), server.seat_config("b")])
    host.read()
    for line in (b"", b"hello", b"[]", b'{"id": 1}', b'{"id": 1, "orders": 7}', b"\xff\xfe", b"[" * 100_000):
        host.write(line)
    host.ask(2, server.ask(server.order("nobody")), {"order": None}, {})  # type: ignore[arg-type]
    codes = [host.reply()["reply"]["code"] for _ in range(3)]
    assert codes == ["CAFE-104", "CAFE-101", "CAFE-101"]


def test_the_end_of_input_ends_it_in_the_middle_of_work(server, start):
    host = start([server.seat_config("a")], CAFE_TINY_SECONDS="0.01")
    host.read()
    host.ask(1, server.ask(server.order("a", params=LONG)))
    assert host.read()["progress"]["done"] >= 1
    host.popen.stdin.close()
    assert host.popen.wait(timeout=60) == 0
    assert not list((server.folder / "homes" / "a" / "ledger").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's death only on Linux")
def test_the_death_of_its_parent_ends_it_though_the_input_stays_open(server, start, tmp_path):
    starter = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-m', 'cafe_kit.host', sys.argv[1]]); time.sleep(600)"
    (tmp_path / "seats.json").write_text(json.dumps({"seats": [server.seat_config("a")]}))
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, str(tmp_path / "seats.json")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        env=os.environ | {"CAFE_KIT_ENGINE": "tests.fakes:TinyEngine"},
    )  # fmt: skip
    assert parent.stdout and b"ready" in parent.stdout.readline()
    parent.send_signal(signal.SIGKILL)
    assert parent.stdout.read() == b"", "the pipe ends when the last process that holds it has ended"
    parent.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_its_files_are_private_and_it_dumps_no_core(server, start):
    host = start([server.seat_config("a")])
    host.read()
    host.ask(1, server.ask(server.order("a", "vote", BY_SITE)))
    host.reply()
    assert "Max core file size        0                    0" in Path(f"/proc/{host.popen.pid}/limits").read_text()
    home = server.folder / "homes" / "a"
    open_to_others = [path for path in home.rglob("*") if path.stat().st_mode & 0o077]
    assert (home / "ledger" / "00000001.json").exists() and open_to_others == []


@pytest.mark.parametrize(
    ("text", "code"),
    [(None, "CAFE-136"), ("{", "CAFE-136"), ("{}", "CAFE-136"), ('{"seats": [{"site": "../x"}]}', "CAFE-136")],
)
def test_a_configuration_that_is_none(tmp_path, start, text, code):
    if text is not None:
        (tmp_path / "seats.json").write_text(text)
    host = start(None)
    assert host.read()["failed"]["code"] == code
    assert host.popen.wait(timeout=60) == 2
    assert "Traceback" not in host.errors.read_text()


def test_a_site_in_doubt_says_so_and_does_not_start(server, start):
    seat = server.seat_config("a")
    host = start([seat])
    host.read()
    host.ask(1, server.ask(server.order("a", "vote", BY_SITE)))
    host.reply()
    host.popen.stdin.close()
    host.popen.wait(timeout=60)
    (Path(seat["home"]) / "ledger" / "00000001.json").unlink()
    assert start([seat]).read()["failed"]["code"] == "CAFE-319"


def test_the_kit_loads_no_torch_to_vote(server, start):
    probe = "import sys, cafe_kit.host; print(sorted({'torch', 'transformers', 'onnxruntime', 'pandas', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "[]\n"
