"""Secrets of this home that must be kept (tokens, client secrets): encrypted files, one for each name.

Knows names and bytes. Does not know what a secret opens. The key lies beside the other keys (``keys/vault.key``, 0600); a copy of the
vault without it is of no use. Nothing here is ever logged, shown, or put into a session.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pipeline.keys import vault_key
from server_store.blobs import write_whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Vault:
    """The secrets below ``home``."""

    def __init__(self, home: Path) -> None:
        self._home, self._folder = home, home / "vault"

    def put(self, name: str, secret: dict[str, Any]) -> None:
        """Keep ``secret`` (plain JSON) under ``name``, in place of what was there."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        nonce = os.urandom(12)
        box = nonce + self._cipher().encrypt(nonce, json.dumps(secret).encode(), name.encode())
        write_whole(self._path(name), box)

    def get(self, name: str) -> dict[str, Any] | None:
        """The secret of this name; None where there is none.

        Raises:
            CafeError: CAFE-688 when it does not open.
        """
        try:
            box = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        try:
            found: dict[str, Any] = json.loads(self._cipher().decrypt(box[:12], box[12:], name.encode()))
        except (InvalidTag, ValueError):
            raise CafeError(
                "CAFE-688",
                "A kept secret does not open: it or the key of this home was changed.",
                "Restore CAFE_HOME/keys and CAFE_HOME/vault from the same backup, or sign in (or paste the secret) again.",
            ) from None
        return found

    def drop(self, name: str) -> None:
        """Forget the secret of this name, if there is one."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError("no name for a secret")
        return self._folder / f"{name}.sealed"

    def _cipher(self) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(vault_key(self._home))
