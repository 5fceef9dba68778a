"""The wire: what the server asks of one site, and what the site answers.

Knows: shapes, canonical bytes, hashes and signatures. Does not know how they travel, who runs them, or any record.
To extend: meanings never change; a new field is optional with a default that means "as before", or ``PROTOCOL`` goes up.
An order is identified by ``order_hash``; delivery is at-least-once, and the same hash gets the same sealed reply bytes.
Transport (paths or URLs, deadline) travels beside an order, unsigned, and may be renewed without changing the order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, field
from typing import Annotated, Any, Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cafe_kit.errors import CafeError
from cafe_kit.task import Task

PROTOCOL = 1
SERVER_SEATS = ("proxy.", "proxies.")  # names of the server's own seats begin so; no site is called so
MAX_BYTES = 64 * 1024
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Figure = Annotated[int, Field(ge=0, le=10**12)]  # that a site tells: small enough for every sum
Word = Annotated[str, Field(max_length=40, pattern=r"^[A-Za-z0-9 .+_-]*$")]


@dataclass(frozen=True, config=_STRICT)
class Blob:
    """An input or output by reference: SHA-256 of its bytes (of a folder: see ``hash_folder``) and size in bytes."""

    sha256: Hash
    size: Count


@dataclass(frozen=True, config=_STRICT)
class PrivacyTerms:
    """The terms of the release that an order feeds; the site computes its cost from these numbers itself.

    ``mechanism`` "none": no formal guarantee, no clip. "gaussian": the contribution is clipped to L2 norm
    ``clip_norm`` and noise of standard deviation ``noise_multiplier * clip_norm`` per coordinate is added once by the
    server (``trust`` "server", the paper's setting) or by every site to its own contribution ("local").
    ``grid``: steps per unit of the integer grid on which clip and noise are computed (a power of two).
    ``unit``: what one guarantee covers; "client" is all records of one site (zero-out adjacency).
    """

    mechanism: Literal["none", "gaussian"]
    trust: Literal["server", "local"] = "server"
    unit: Literal["client"] = "client"
    clip_norm: PositiveFloat = 1.0
    noise_multiplier: Annotated[float, Field(ge=0)] = 0.0
    grid: Positive = 2**16


@dataclass(frozen=True, config=_STRICT)
class VoteParams:
    """Stage 1: each record votes for its nearest candidate of its class; at most ``max_votes_per_candidate`` count."""

    kind: Literal["vote"] = "vote"
    max_votes_per_candidate: Positive = 8


@dataclass(frozen=True, config=_STRICT)
class TrainParams:
    """Stage 2: local LoRA training, in steps, never epochs (the time to finish must not tell the number of records).

    ``batch_size`` sequences a step; AdamW with ``learning_rate`` after a linear warm-up over ``warmup_steps``;
    ``trained`` is "A" and "B" (plain) or "B" only (FFA: A frozen and shared). ``dtype`` of the frozen base.
    """

    steps: Positive
    batch_size: Positive
    learning_rate: PositiveFloat
    lora_rank: Positive
    lora_alpha: PositiveFloat
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)]
    seed: int
    kind: Literal["train"] = "train"
    trained: Literal["A+B", "B"] = "A+B"
    warmup_steps: Count = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Annotated[int, Field(ge=8)] = 256
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    threads: Count = 0  # 0: the site's own choice; equal bytes need equal threads


@dataclass(frozen=True, config=_STRICT)
class HelloParams:
    """Are you there, and in which versions."""

    kind: Literal["hello"] = "hello"


@dataclass(frozen=True, config=_STRICT)
class ResultParams:
    """Here is the run's adapter, for the site to keep; nothing is asked back. ``adapter``: the hash of its unpacked folder."""

    adapter: Hash
    kind: Literal["result"] = "result"


@dataclass(frozen=True, config=_STRICT)
class Order:
    """What the server asks of one site.

    ``inputs``: base_model, adapter (train; a proxy's also records); embedder, candidates (vote); adapter_folder (result).
    """

    run: Name
    stage: Literal[1, 2]
    attempt: Positive
    round: Count
    site: Name
    task: Task
    privacy: PrivacyTerms
    inputs: dict[str, Blob]
    params: Annotated[VoteParams | TrainParams | HelloParams | ResultParams, Field(discriminator="kind")]
    protocol: int = PROTOCOL

    @property
    def kind(self) -> str:
        return self.params.kind

    @property
    def release_id(self) -> str:
        """Names the one statistic that this order may ever be answered with."""
        return f"{self.run}/{self.stage}/{self.attempt}/{self.round}/{self.site}/{self.kind}"


@dataclass(frozen=True, config=_STRICT)
class Transport:
    """Where inputs are fetched and the body is put: paths or URLs. Unsigned; may be renewed for the same order.

    ``output`` "": seal the answer and tell its size and hash; where to put it comes with the same order, delivered again.
    ``seen_head``: the last head of the site's ledger that the server knows; the site compares.
    """

    inputs: dict[str, str]
    output: str
    deadline_s: PositiveFloat  # from the moment a compute slot is granted
    seen_head: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


@dataclass(frozen=True, config=_STRICT)
class Numbers:
    """The closed list of figures that a reply may carry. ``records`` only when the release has no privacy terms.

    ``ledger_head``, ``charges``, ``mu_squared``: end, length and exact-to-a-float sum of the site's own ledger, all of it public.
    """

    kit: Word = ""
    python: Word = ""
    seconds_load: Seconds = 0.0
    seconds_work: Seconds = 0.0
    seconds_release: Seconds = 0.0
    ledger_head: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    records: Figure | None = None
    charges: Figure | None = None
    mu_squared: Annotated[float, Field(ge=0)] | None = None


@dataclass(frozen=True, config=_STRICT)
class Reply:
    """What the site answers. ``status`` "ok" has one output named "body"; otherwise ``code`` and ``sentence`` say why."""

    order_hash: Hash
    site: Name
    status: Literal["ok", "refused", "failed"]
    outputs: dict[str, Blob] = field(default_factory=dict)
    numbers: Numbers = field(default_factory=Numbers)
    code: Annotated[str, Field(pattern=r"^(CAFE-[0-9]{3})?$")] = ""
    sentence: Annotated[str, Field(max_length=500)] = ""


_T = TypeVar("_T", Order, Reply, Transport)


def canonical(message: Order | Reply) -> bytes:
    """The bytes that are hashed and signed: JSON with sorted keys, no spaces, no NaN."""
    return json.dumps(asdict(message), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def order_hash(order: Order) -> str:
    """SHA-256 of the canonical order: its identity everywhere."""
    return hashlib.sha256(canonical(order)).hexdigest()


def sign(message: Order | Reply, key: Ed25519PrivateKey) -> str:
    """Ed25519 signature over the canonical bytes, in hexadecimal."""
    return key.sign(canonical(message)).hex()


def parse(kind: type[_T], data: Any) -> _T:
    """A message from JSON-like data that came over the wire; unknown fields, wrong types and NaN are refused.

    Raises:
        CafeError: CAFE-101, naming the field, never its value.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data, allow_nan=False), strict=True)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "message"
        raise CafeError(
            "CAFE-101",
            f"A {kind.__name__.lower()} was refused: field '{where}' is not as agreed.",
            "Kit and server must be of the same protocol; update the older one.",
        ) from None
    except (ValueError, TypeError, RecursionError):
        raise CafeError("CAFE-101", f"A {kind.__name__.lower()} was refused: it is not plain JSON.", "Update the kit.") from None


def verify(message: Order | Reply, signature: str, key: Ed25519PublicKey) -> None:
    """Check that the message is from the holder of ``key``.

    Raises:
        CafeError: CAFE-102.
    """
    try:
        key.verify(bytes.fromhex(signature), canonical(message))
    except (InvalidSignature, ValueError):
        raise CafeError(
            "CAFE-102",
            f"The signature of a {type(message).__name__.lower()} does not fit.",
            "It was altered on the way or comes from somebody else; compare the fingerprints of both sides.",
        ) from None
