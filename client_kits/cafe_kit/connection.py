"""How orders reach this site: what the operator's answer holds for the site alone, sealed to its key.

Knows shapes and the seal. Does not know how a connection is made.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cafe_kit.enrolment import Serial
from cafe_kit.errors import CafeError
from cafe_kit.release import Box

_STRICT = ConfigDict(extra="forbid", strict=True)
Uuid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


@dataclass(frozen=True, config=_STRICT)
class Folder:
    """Orders come as files in the folder that both sides reach (``SiteSettings.exchange``)."""

    via: Literal["folder"] = "folder"


@dataclass(frozen=True, config=_STRICT)
class GlobusCompute:
    """Orders come through Globus Compute, to an endpoint that the site starts under this confidential client.

    ``function_id``: the one function that the endpoint runs. ``service``: "" for the real one, "local" for a stand-in (tests).
    """

    client_id: Uuid
    client_secret: Annotated[str, Field(min_length=1, max_length=200)]
    function_id: Uuid
    endpoint_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
    via: Literal["globus"] = "globus"
    service: Literal["", "local"] = ""


Connection = Folder | GlobusCompute


def seal(connection: Connection, to: str, serial: str) -> str:
    """``connection`` as only the holder of the X25519 key ``to`` (hexadecimal) reads it, in hexadecimal."""
    data = json.dumps(asdict(connection), sort_keys=True).encode()
    return Box.seal(data, X25519PublicKey.from_public_bytes(bytes.fromhex(to)), _context(serial)).hex()


def unseal(sealed: str, key: X25519PrivateKey, serial: Serial) -> Connection:
    """What was sealed to this site.

    Raises:
        CafeError: CAFE-459 for another key or kit, CAFE-101 when it is of another version.
    """
    plain = Box.open(bytes.fromhex(sealed), key, _context(serial))
    try:
        found: Connection = TypeAdapter(Annotated[Connection, Field(discriminator="via")]).validate_json(plain, strict=True)
    except ValidationError:
        raise CafeError("CAFE-101", "What the operator says of the connection is not as agreed.", "Ask for a new kit.") from None
    return found


def _context(serial: str) -> bytes:
    return b"cafe-kit connection " + serial.encode()
