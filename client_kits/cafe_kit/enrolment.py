"""Joining: what a kit says of itself, what a site asks for, what the operator answers; each a small signed document.

Knows: shapes, canonical bytes, signatures, the join code and the address that it opens. Does not know how the documents travel,
where they lie or who decides. The code itself is never stored or sent: its key (scrypt, salted with the kit's serial) opens the
sealed address and proves that the request comes from whoever was told the code.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, TypeVar

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cafe_kit.errors import CafeError
from cafe_kit.orders import MAX_BYTES, PROTOCOL, Count, Hash, Name, Positive, PositiveFloat
from cafe_kit.task import Task
from cafe_kit.words import words as words  # part of the agreement

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_ALPHABET = "ABCDEFGHJKMNPQRSTVWXYZ23456789"  # no I, L, O, U, 0, 1: they are misread
_CODE_LETTERS = 16

Serial = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
# one line, without control characters and without what turns the direction of text: it is shown in terminals and on pages
Line = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u{2028}-\u{202e}\u{2066}-\u{2069}\u{feff}]*$")]
Time = Annotated[float, Field(ge=0)]  # seconds since 1970, UTC
Kind = Literal["cpu", "gpu"]


@dataclass(frozen=True, config=_STRICT)
class Server:
    """The public halves of the server's keys: with one it signs orders and approvals, to the other sites seal what they send."""

    verify_key: Hash
    seal_key: Hash


@dataclass(frozen=True, config=_STRICT)
class Limits:
    """Limits of a site's policy: proposed by the operator in the kit, and as the site set them in its request."""

    max_epsilon: PositiveFloat | None = 10.0
    max_epsilon_per_run: PositiveFloat | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    kinds: Annotated[tuple[Literal["hello", "vote", "train"], ...], Field(min_length=1)] = ("hello", "vote", "train")
    max_rounds_per_run: Positive = 200
    allow_without_noise: bool = True


@dataclass(frozen=True, config=_STRICT)
class Embedder:
    """The folder models/embedder of a kit without a GPU: its hash (``hash_folder``) and size in bytes."""

    sha256: Hash
    size: Count


@dataclass(frozen=True, config=_STRICT)
class KitInfo:
    """``federation.json``: what a kit says of itself. Public; it holds no usable secret."""

    federation: Name
    site: Name
    kind: Kind
    serial: Serial
    issued: Time
    expires: Time
    server: Server
    task: Task
    sealed: Annotated[str, Field(max_length=16000)]
    limits: Limits = Limits()
    embedder: Embedder | None = None
    stands_in: bool = False  # the operator's own cluster: it trains the server's proxies and has no records
    protocol: int = PROTOCOL


@dataclass(frozen=True, config=_STRICT)
class Host:
    """What the operator is told about the machine. ``gpu``: its name, or "" for none."""

    system: Line
    python: Line
    cores: Positive
    memory_gib: Annotated[float, Field(ge=0)]
    gpu: Line = ""


@dataclass(frozen=True, config=_STRICT)
class Consent:
    """Who at the site said yes, in which role, under which reference (such as an approval's number)."""

    name: Line
    role: Line
    reference: Line = ""


@dataclass(frozen=True, config=_STRICT)
class JoinRequest:
    """What a site asks. ``records``: how many, rounded or exactly, or None where the site does not share it.

    ``seal_key``: the public half (X25519) of the key that what is meant for this site alone is sealed to.
    """

    federation: Name
    serial: Serial
    site: Name
    site_key: Hash
    made: Time
    host: Host
    limits: Limits
    consent: Consent
    seal_key: Hash
    records: Count | None = None
    code_proof: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    protocol: int = PROTOCOL


@dataclass(frozen=True, config=_STRICT)
class Approval:
    """The operator's answer, yes or no, to the site with this key. ``reason`` of a refusal.

    ``sealed``: how orders reach the site (``connection.Connection``), for its eyes only, in hexadecimal; "" with a refusal.
    """

    federation: Name
    serial: Serial
    site: Name
    site_key: Hash
    approved: bool
    made: Time
    expires: Time | None = None
    reason: Annotated[str, Field(max_length=500)] = ""
    sealed: Annotated[str, Field(max_length=16000, pattern=r"^[0-9a-f]*$")] = ""
    protocol: int = PROTOCOL


@dataclass(frozen=True, config=_STRICT)
class Leaving:
    """A site's last word: from ``made`` on it takes no part any more."""

    federation: Name
    serial: Serial
    site: Name
    site_key: Hash
    made: Time
    protocol: int = PROTOCOL


def request_name(serial: str) -> str:
    """The request's file in the exchange folder."""
    return f"{serial}.request.json"


def answer_name(serial: str) -> str:
    """The answer's file in the exchange folder."""
    return f"{serial}.answer.json"


def leaving_name(serial: str) -> str:
    """The file in the exchange folder that says that the site has left."""
    return f"{serial}.leave.json"


Document = KitInfo | JoinRequest | Approval | Leaving
_T = TypeVar("_T", KitInfo, JoinRequest, Approval, Leaving)


def canonical(message: Document) -> bytes:
    """The bytes that are hashed and signed: JSON with sorted keys, no spaces, no NaN."""
    return json.dumps(asdict(message), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse(kind: type[_T], data: bytes) -> _T:
    """A document from bytes that came from outside; too many bytes, unknown fields, wrong types and NaN are refused.

    Raises:
        CafeError: CAFE-101 naming the field, never its value; CAFE-103 for another protocol.
    """
    hint = "Kit and server must be of the same version; ask the operator for a new kit."
    plain = _plain(data, kind.__name__)
    if isinstance(plain, dict) and isinstance(plain.get("protocol"), int) and plain["protocol"] != PROTOCOL:
        raise CafeError("CAFE-103", f"This document speaks protocol {plain['protocol']}, this side speaks {PROTOCOL}.", hint)
    try:
        return TypeAdapter(kind).validate_json(json.dumps(plain, allow_nan=False), strict=True)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "message"
        raise CafeError("CAFE-101", f"A {kind.__name__} was refused: field '{where[:80]}' is not as agreed.", hint) from None
    except (ValueError, TypeError, RecursionError):
        raise CafeError("CAFE-101", f"A {kind.__name__} was refused: it is not plain JSON.", hint) from None


def _plain(data: bytes, name: str) -> Any:
    if len(data) > MAX_BYTES:
        raise CafeError("CAFE-101", f"A {name} was refused: it is larger than {MAX_BYTES // 1024} kB.", "Is it the right file?")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise CafeError("CAFE-101", f"A {name} was refused: it is not plain JSON.", "Is it the right file?") from None


# The join code


def new_code() -> str:
    """A fresh join code: 16 characters in groups of four (78 bits), none of which is easily misread."""
    letters = [_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(400) if byte < 256 - 256 % len(_ALPHABET)][:_CODE_LETTERS]
    return "-".join("".join(letters[at : at + 4]) for at in range(0, _CODE_LETTERS, 4))


def _code_key(code: str, serial: str, use: bytes) -> bytes:
    letters = "".join(letter for letter in code.upper() if letter.isalnum())
    key = hashlib.scrypt(letters.encode(), salt=bytes.fromhex(serial), n=2**15, r=8, p=1, maxmem=2**26, dklen=32)
    return hmac.digest(key, use, "sha256")


def proof_key(code: str, serial: str) -> bytes:
    """What the server keeps instead of the code: enough to check a proof, of no use for opening the address."""
    return _code_key(code, serial, b"cafe-kit proof")


def seal_address(address: dict[str, str], code: str, serial: str) -> str:
    """``address`` as only the code opens it, in hexadecimal."""
    nonce = os.urandom(12)
    cipher = ChaCha20Poly1305(_code_key(code, serial, b"cafe-kit address"))
    return (nonce + cipher.encrypt(nonce, json.dumps(address, sort_keys=True).encode(), serial.encode())).hex()


def open_address(sealed: str, code: str, serial: str) -> dict[str, str]:
    """What was sealed with ``code``.

    Raises:
        CafeError: CAFE-140 when it is another code.
    """
    try:
        data = bytes.fromhex(sealed)
        cipher = ChaCha20Poly1305(_code_key(code, serial, b"cafe-kit address"))
        found = json.loads(cipher.decrypt(data[:12], data[12:], serial.encode()))
        return {str(name): str(value) for name, value in found.items()}
    except (InvalidTag, ValueError):
        raise CafeError("CAFE-140", "The join code does not fit this kit.", "Read it again; each kit has a code of its own.") from None


# The request


def prove(request: JoinRequest, code_key: bytes) -> JoinRequest:
    """The request with the proof that whoever made it was told the code."""
    return replace(request, code_proof=_proof(request, code_key))


def _proof(request: JoinRequest, code_key: bytes) -> str:
    return hmac.digest(code_key, canonical(replace(request, code_proof="")), "sha256").hex()


def sign_request(request: JoinRequest, key: Ed25519PrivateKey) -> bytes:
    """The request's file: the document and the site's signature."""
    return _signed(request, key)


def read_request(data: bytes) -> JoinRequest:
    """A request from its file, with the right shape and signed by the key that it names; says nothing about the code yet.

    Raises:
        CafeError: CAFE-101, 102, 103.
    """
    request, signature, signed = _read(JoinRequest, data)
    _verify(request.site_key, signature, signed, "join request")
    return request


def check_request(request: JoinRequest, code_key: bytes) -> None:
    """The request comes from whoever was told the code.

    Raises:
        CafeError: CAFE-140.
    """
    if not hmac.compare_digest(request.code_proof, _proof(request, code_key)):
        raise CafeError(
            "CAFE-140", "The request was not made with this kit's join code.", "Tell the site its code again, by telephone or in person."
        )


# The answer


def sign_approval(approval: Approval, key: Ed25519PrivateKey) -> bytes:
    """The answer's file: the document and the server's signature."""
    return _signed(approval, key)


def check_approval(data: bytes, verify_key: str, serial: str, site_key: str) -> Approval:
    """The answer of this server to this site, yes or no.

    Raises:
        CafeError: CAFE-101, 102, 103; CAFE-148 when it answers another request.
    """
    approval, signature, signed = _read(Approval, data)
    _verify(verify_key, signature, signed, "answer")
    if (approval.serial, approval.site_key) != (serial, site_key):
        raise CafeError("CAFE-148", "This answer is for another kit or another site.", "Ask the operator for the answer to your request.")
    return approval


# The end


def sign_leaving(leaving: Leaving, key: Ed25519PrivateKey) -> bytes:
    """The file of a leaving: the document and the site's signature."""
    return _signed(leaving, key)


def read_leaving(data: bytes) -> Leaving:
    """A leaving from its file, with the right shape and signed by the key that it names; whose key that is, the caller knows.

    Raises:
        CafeError: CAFE-101, 102, 103.
    """
    leaving, signature, signed = _read(Leaving, data)
    _verify(leaving.site_key, signature, signed, "leaving")
    return leaving


def _signed(message: JoinRequest | Approval | Leaving, key: Ed25519PrivateKey) -> bytes:
    signed = b"cafe-kit " + type(message).__name__.encode() + b"\0" + canonical(message)
    return json.dumps({"document": asdict(message), "signature": key.sign(signed).hex()}, indent=1, sort_keys=True).encode() + b"\n"


def _read(kind: type[_T], data: bytes) -> tuple[_T, str, bytes]:
    """Document, signature, and the bytes that were signed."""
    plain = _plain(data, kind.__name__)
    if not isinstance(plain, dict) or plain.keys() != {"document", "signature"} or not isinstance(plain["signature"], str):
        raise CafeError("CAFE-101", f"A {kind.__name__} was refused: it is no signed document.", "Is it the right file?")
    document = parse(kind, json.dumps(plain["document"]).encode())
    return document, plain["signature"], b"cafe-kit " + kind.__name__.encode() + b"\0" + canonical(document)


def _verify(key: str, signature: str, signed: bytes, what: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), signed)
    except (InvalidSignature, ValueError):
        raise CafeError(
            "CAFE-102", f"The signature of the {what} does not fit.", "It was altered on the way, or comes from somebody else."
        ) from None
