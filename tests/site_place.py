"""A server with an exchange folder, and a site with its kit, its data and its home, in folders with spaces and umlauts.

The kit is a real one, out of the builder; its embedder is a graph of two dimensions. What the operator does is done here by hand.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import tokenizers
from cafe_kit import cli, connection, enrolment, site_folder, ssh_signature
from cafe_kit.connection import Connection, Folder
from cafe_kit.enrolment import Approval, KitInfo, Limits, Server
from cafe_kit.seat import Seat
from cafe_kit.site_folder import to_toml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client_kits import builder
from tests.fakes import TASK, TinyServer
from tests.test_embed import TABLE, WORDS, graph

MARK = "XMARKX"  # stands in every private text, and in the folder of the data
CODE, SERIAL = "ABCD-EFGH-JKMN-PQRS", "00112233445566778899aabbccddeeff"
DAY = 86_400.0


def tiny_embedder(folder: Path) -> Path:
    """A real graph of two dimensions, which onnxruntime runs."""
    folder.mkdir()
    onnx.save(graph(TABLE), str(folder / "model.onnx"))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "embedder.json").write_text(json.dumps({"dim": 2, "max_tokens": 4}))
    return folder


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Place:
    """A server with an exchange folder, and a site with its kit, its data and its home."""

    folder: Path
    server: TinyServer
    kit: Path
    info: KitInfo
    home: Path
    exchange: Path

    @property
    def data(self) -> Path:
        return self.folder / f"{MARK} Ordner" / "notes.csv"

    def answers(self, **changes: Any) -> Path:
        tree: dict[str, Any] = {
            "data": {"path": str(self.data), "columns": {"text": "message", "label": "department"}},
            "limits": {"max_epsilon": 4.0, "max_epsilon_per_run": 3.0, "share_rows": "rounded", "allow_without_noise": True},
            "consent": {"name": "Dr. Ärmel", "role": "head of IT", "reference": "IRB-7", "agreed": True},
        }
        for name, value in changes.items():
            table, _, field = name.partition("__")
            tree[table][field] = value
        path = self.folder / "answers.toml"
        path.write_text(to_toml(tree), encoding="utf-8")
        return path

    def environment(self, code: str | None = CODE) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CAFE_")}
        own = {"CAFE_SITE_HOME": str(self.home), "CAFE_KIT_FOLDER": str(self.kit), "OMP_NUM_THREADS": "1", "HOME": str(self.folder)}
        return kept | own | ({"CAFE_JOIN_CODE": code} if code else {})

    def really(self, *words: str, code: str | None = CODE, typed: str = "") -> Done:
        """The command in a process of its own."""
        command = [sys.executable, "-m", "cafe_kit.cli", *words]
        done = subprocess.run(
            command, env=self.environment(code), cwd=self.folder, input=typed, capture_output=True, text=True, timeout=120, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, *words: str, code: str | None = CODE, typed: str = "") -> Done:
        """The same in this process, which is faster."""
        out, err, umask = io.StringIO(), io.StringIO(), os.umask(0o022)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr("os.environ", self.environment(code))
            patch.setattr("sys.stdin", io.StringIO(typed))
            patch.chdir(self.folder)
            try:
                status = cli.main(list(words))
            except SystemExit as end:
                status = int(str(end.code))
            finally:
                os.umask(umask)
        return Done(status, out.getvalue(), err.getvalue())

    def json(self, *words: str, status: int = 0, **how: Any) -> Any:
        done = self.run(*words, "--format", "json", **how)
        assert done.returncode == status, done.stdout + done.stderr
        return json.loads(done.stdout)

    def join(self, *more: str, wait: str = "0", **how: Any) -> Done:
        return self.run("join", "--answers", str(self.answers()), "--yes", "--wait", wait, *more, **how)

    @property
    def asked(self) -> list[Path]:
        """What lies in the exchange folder for joining."""
        return list(self.exchange.glob("*.json"))

    def approve(self, key: Ed25519PrivateKey | None = None, way: Connection | None = None, **changes: Any) -> Path:
        """What the operator does: read, check the proof, answer with the way that orders take."""
        request = enrolment.read_request((self.exchange / enrolment.request_name(self.info.serial)).read_bytes())
        enrolment.check_request(request, enrolment.proof_key(CODE, self.info.serial))
        sealed = connection.seal(way or Folder(), request.seal_key, request.serial)
        answer = Approval(request.federation, request.serial, request.site, request.site_key, True, time.time(), sealed=sealed)
        path = self.exchange / enrolment.answer_name(self.info.serial)
        path.write_bytes(enrolment.sign_approval(replace(answer, **changes), key or self.server.signing))
        return path

    def seat(self) -> Seat:
        return Seat(site_folder.joined(self.home).seat_config(self.home))


def make_place(tmp_path: Path, **changes: Any) -> Place:
    """``changes``: of what the kit says of itself."""
    folder = tmp_path / "Klinik für Übungen"
    folder.mkdir()
    exchange = folder / "austausch"
    (exchange / "cafe-inputs").mkdir(parents=True)
    server = TinyServer(exchange / "cafe-inputs")  # what its orders refer to lies where the site reaches it
    keys = Server(server.signing.public_key().public_bytes_raw().hex(), server.sealing.public_key().public_bytes_raw().hex())
    serial, now = SERIAL, time.time()
    plain: dict[str, Any] = {
        "federation": "clinic", "site": "north", "kind": "cpu", "serial": serial, "issued": now, "expires": now + 7 * DAY,
        "server": keys, "task": TASK, "sealed": enrolment.seal_address({"exchange": str(exchange)}, CODE, serial),
        "limits": Limits(max_epsilon=8.0),
    }  # fmt: skip
    info = KitInfo(**plain | changes)
    archive = builder.build(
        info,
        folder / "kit.zip",
        sign=lambda sums: ssh_signature.sign(sums, server.signing),
        embedder=tiny_embedder(folder / "embedder") if info.kind == "cpu" else None,
    )
    zipfile.ZipFile(archive).extractall(folder / "mein kit")
    place = Place(folder, server, folder / "mein kit" / builder.folder_name(info), info, folder / "site höme", exchange)
    place.data.parent.mkdir()
    rows = [f'"{MARK} message {n}, call 0171 555{n:04}",{TASK.labels[n % 2]},{MARK}' for n in range(34)] + [f",card,{MARK}"]
    place.data.write_text("message,department,note\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return place
