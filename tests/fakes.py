"""Small stand-ins for tests: an engine without models, a server's keys, orders with everything they refer to.

Nothing here is a model of quality: different records and different adapters give different numbers, equal ones equal
numbers, quickly and without torch. Hosts use it through ``CAFE_KIT_ENGINE=tests.fakes:TinyEngine``.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from cafe_kit.engine import Deltas, Progress
from cafe_kit.inputs import hash_folder
from cafe_kit.orders import Blob, HelloParams, Order, PrivacyTerms, TrainParams, Transport, VoteParams, order_hash, sign
from cafe_kit.release import Box, body_to_bytes
from cafe_kit.task import Record, Task
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

TASK = Task(kind="classification", description="where a message goes", labels=("billing", "card"), text_name="Message", answer_name="Desk")
VOTE = VoteParams(max_votes_per_candidate=8)
TRAIN = TrainParams(steps=3, batch_size=2, learning_rate=0.1, lora_rank=2, lora_alpha=4.0, target_modules=("q_proj",), seed=7)
NO_NOISE = PrivacyTerms(mechanism="none")
BY_SERVER = PrivacyTerms(mechanism="gaussian", trust="server", clip_norm=4.0, noise_multiplier=2.0, grid=1024)
BY_SITE = replace(BY_SERVER, trust="local")


class TinyEngine:
    """Votes by hashes of texts; trains by moving the adapter towards a vector made of the records.

    ``CAFE_TINY_SECONDS`` (environment): how long each vote and each training step takes, for tests that kill.
    """

    def __init__(self) -> None:
        self._pause = float(os.environ.get("CAFE_TINY_SECONDS", "0"))

    def vote(self, params: VoteParams, task: Task, records: Sequence[Record], candidates: Sequence[Record], embedder: Path) -> np.ndarray:
        time.sleep(self._pause)
        counts = np.zeros(len(candidates), np.int64)
        for record in records:
            near = [(abs(_number(c.text) - _number(record.text)), i) for i, c in enumerate(candidates) if c.answer == record.answer]
            if near:
                counts[min(near)[1]] += 1
        return np.minimum(counts, params.max_votes_per_candidate)

    def train(
        self,
        params: TrainParams,
        task: Task,
        base_model: Path,
        adapter: Mapping[str, np.ndarray],
        shards: Mapping[str, Sequence[Record]],
        round: int,
        progress: Progress,
    ) -> Deltas:
        deltas = {}
        for site, records in shards.items():
            for step in range(params.steps):
                time.sleep(self._pause)
                progress(site, step + 1, params.steps)
            goal = _number("\n".join(sorted(f"{record.text}\t{record.answer}" for record in records)) + f"{params.seed}/{round}")
            deltas[site] = {
                name: np.float32(0.5) * (_direction(goal, name, tensor.shape) - tensor)
                for name, tensor in adapter.items()
                if params.trained == "A+B" or "lora_B" in name
            }
        return deltas


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _direction(goal: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([goal, _number(name)]).uniform(-0.1, 0.1, shape).astype(np.float32)


@dataclass
class TinyServer:
    """A server's keys, a folder of inputs for its orders, and an inbox.

    ``orders(site, kind)`` is what a host reads: order, signature and transport as plain data.
    """

    folder: Path
    signing: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    sealing: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)

    def __post_init__(self) -> None:
        for name in ("base_model", "embedder", "inbox"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "base_model" / "config.json").write_text("{}")
        (self.folder / "embedder" / "config.json").write_text("{}")
        adapter = {f"layer.{n}.lora_{m}.weight": np.full((2, 3), 0.01 * n, np.float32) for n in (1, 2) for m in "AB"}
        (self.folder / "adapter").write_bytes(body_to_bytes(adapter))
        lines = [{"answer": label, "text": f"{label} {n}"} for label in TASK.labels for n in range(3)]
        (self.folder / "candidates").write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))

    def seat_config(self, site: str, rows: int = 12) -> dict[str, Any]:
        """A site with its own data file and a home that does not exist yet."""
        data = self.folder / f"{site}.jsonl"
        records = [{"text": f"{site} message {n}", "label": TASK.labels[n % 2]} for n in range(rows)]
        data.write_text("".join(json.dumps(record) + "\n" for record in records))
        return {
            "site": site,
            "kind": "cpu",
            "home": str(self.folder / "homes" / site),
            "data": {"path": str(data)},
            "server": {
                "verify_key": self.signing.public_key().public_bytes_raw().hex(),
                "seal_key": self.sealing.public_key().public_bytes_raw().hex(),
            },
        }

    def order(self, site: str, kind: str = "train", privacy: PrivacyTerms = NO_NOISE, **changes: Any) -> Order:
        """An order of the kind, with the real hashes of this server's inputs."""
        names = {"train": ("base_model", "adapter"), "vote": ("embedder", "candidates"), "hello": ()}[kind]
        params = {"train": TRAIN, "vote": VOTE, "hello": HelloParams()}[kind]
        order = Order(
            run="run",
            stage=2 if kind == "train" else 1,
            attempt=1,
            round=1,
            site=site,
            task=TASK,
            privacy=privacy,
            inputs={name: self.blob(name) for name in names},
            params=params,
        )
        return replace(order, **changes)

    def blob(self, name: str) -> Blob:
        path = self.folder / name
        if path.is_dir():
            return hash_folder(path)
        return Blob(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size)

    def ask(self, order: Order) -> dict[str, Any]:
        """The order as it travels: signed, with its transport."""
        where = {name: str(self.folder / name) for name in order.inputs}
        transport = Transport(inputs=where, output=str(self.output(order)), deadline_s=60.0)
        return {"order": asdict(order), "signature": sign(order, self.signing), "transport": asdict(transport)}

    def output(self, order: Order) -> Path:
        return self.folder / "inbox" / order_hash(order)

    def open(self, order: Order) -> bytes:
        """What the server reads: the body that lies in the inbox, its box opened."""
        data = self.output(order).read_bytes()
        noised = order.privacy.mechanism == "gaussian" and order.privacy.trust == "local"
        return data if noised else Box.open(data, self.sealing, order_hash(order).encode())
