"""A real RabbitMQ for tests, from the Debian package: on loopback alone, any user, in a folder of its own, ended by its process id.

Knows how the broker is started without the system's service. Does not know who speaks over it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the package's own script; the command in sbin switches user and folder
_START_S = 60


def is_here() -> bool:
    """Whether the package is installed."""
    return SERVER.exists()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """A broker with its files in ``folder``, as long as the block; yields its AMQP URL."""
    folder.mkdir(parents=True, exist_ok=True)
    port, mapper, nodes = free_port(), free_port(), free_port()
    epmd = subprocess.Popen(["epmd", "-address", "127.0.0.1", "-port", str(mapper)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with (folder / "start.log").open("wb") as log:
        broker = subprocess.Popen(
            [str(SERVER)], env=_environment(folder, port, mapper, nodes), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
        )
    try:
        _await_amqp(broker, port, folder)
        yield f"amqp://guest:guest@127.0.0.1:{port}/%2F"
    finally:
        for process in (broker, epmd):
            _end(process)


def _environment(folder: Path, port: int, mapper: int, nodes: int) -> dict[str, str]:
    config = (
        f"listeners.tcp.local = 127.0.0.1:{port}\nloopback_users = none\nlog.console = false\nvm_memory_high_watermark.absolute = 256MB\n"
    )
    (folder / "rabbitmq.conf").write_text(config)
    (folder / "plugins").write_text("[].\n")
    return os.environ | {
        "HOME": str(folder),  # where Erlang keeps its cookie
        "RUNNING_UNDER_SYSTEMD": "1",  # the script becomes the broker, instead of standing beside it
        "NOTIFY_SOCKET": "",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_NODENAME": "rabbit@localhost",
        "RABBITMQ_DIST_PORT": str(nodes),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +A 8",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(mapper),
    }


def _await_amqp(broker: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    """Until it greets as a broker does: a listening port alone is not enough."""
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        if broker.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as greeting:
            greeting.sendall(b"AMQP\x00\x00\x09\x01")
            if greeting.recv(1):
                return
        time.sleep(0.2)
    raise RuntimeError(f"RabbitMQ did not start:\n{(folder / 'start.log').read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
