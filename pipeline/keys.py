"""The server's two keys, one signs its orders, to the other the sites seal what they send; the console's cookie secret and the vault's key.

Knows where they lie (``CAFE_HOME/keys``, 0600). Does not know orders or bodies.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cafe_kit.errors import CafeError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey


@dataclass(frozen=True)
class ServerKeys:
    """``signing`` signs orders; ``sealing`` opens what sites sealed to this server."""

    signing: Ed25519PrivateKey
    sealing: X25519PrivateKey

    @property
    def verify_hex(self) -> str:
        """What a site pins to know an order of this server."""
        return self.signing.public_key().public_bytes_raw().hex()

    @property
    def seal_hex(self) -> str:
        """What a site seals its un-noised contributions to."""
        return self.sealing.public_key().public_bytes_raw().hex()


def server_keys(home: Path) -> ServerKeys:
    """The keys of this home, made at the first call; safe when several processes start at once.

    Raises:
        CafeError: CAFE-680 when a key file is damaged.
    """
    folder = home / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    signing = _secret(folder / "signing.key", Ed25519PrivateKey.generate().private_bytes_raw())
    sealing = _secret(folder / "sealing.key", X25519PrivateKey.generate().private_bytes_raw())
    return ServerKeys(Ed25519PrivateKey.from_private_bytes(signing), X25519PrivateKey.from_private_bytes(sealing))


def cookie_secret(home: Path) -> str:
    """What the console signs its cookies with: the same after a restart, so that nobody is thrown out by one.

    Raises:
        CafeError: CAFE-680 when the file is damaged.
    """
    folder = home / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    return _secret(folder / "console.key", os.urandom(32)).hex()


def vault_key(home: Path) -> bytes:
    """What ``vault.py`` encrypts with.

    Raises:
        CafeError: CAFE-680 when the file is damaged.
    """
    folder = home / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    return _secret(folder / "vault.key", os.urandom(32))


def _secret(path: Path, fresh: bytes) -> bytes:
    """The secret in ``path``; ``fresh`` becomes it when there is none. The first of several writers wins (link)."""
    if not path.exists():
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # threads of one process, too, may come at once
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(fresh)
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(beside, path)
        except FileExistsError:
            pass
        finally:
            beside.unlink()
    secret = path.read_bytes()
    if len(secret) != 32:
        raise CafeError(
            "CAFE-680", f"The key file {path.name} is damaged.", "Restore it from a backup; a new key needs every site to join again."
        )
    return secret
