"""Ed25519 signatures over files in OpenSSH's own format, so that a kit is checked with ``ssh-keygen -Y verify`` before it runs.

Knows the bytes of OpenSSH's PROTOCOL.sshsig. Does not know what is signed, or where keys lie. A signature is bound to a namespace: one
that was made for a kit is good for nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import textwrap

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NAMESPACE = "cafe-kit"
PRINCIPAL = "federation"
_KIND = b"ssh-ed25519"
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"


def sign(message: bytes, key: Ed25519PrivateKey) -> str:
    """The text of ``SHA256SUMS.sig`` for the bytes of ``SHA256SUMS``."""
    signature = _string(_KIND) + _string(key.sign(_signed(message)))
    return _armour(_public(key.public_key().public_bytes_raw()), signature)


def fits(message: bytes, text: str, verify_key: str) -> bool:
    """Whether ``text`` is the signature of ``message`` by the key, given in raw hexadecimal."""
    try:
        public = bytes.fromhex(verify_key)
        body = base64.b64decode("".join(text.strip().removeprefix(_BEGIN).removesuffix(_END).split()), validate=True)
        signature = body[-64:]
        if _armour(_public(public), _string(_KIND) + _string(signature)).split() != text.split():
            return False
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _signed(message))
    except (InvalidSignature, ValueError):
        return False
    return True


def allowed_signers(verify_key: str) -> str:
    """The one line of ``allowed_signers`` that names this key."""
    public = base64.b64encode(_public(bytes.fromhex(verify_key))).decode()
    return f'{PRINCIPAL} namespaces="{NAMESPACE}" {_KIND.decode()} {public}\n'


def fingerprint(verify_key: str) -> str:
    """The key's fingerprint as ``ssh-keygen -l`` prints it: to be compared by another channel than the kit's."""
    digest = hashlib.sha256(_public(bytes.fromhex(verify_key))).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _public(raw: bytes) -> bytes:
    return _string(_KIND) + _string(raw)


def _signed(message: bytes) -> bytes:
    """What is really signed: the namespace and the message's hash."""
    return b"SSHSIG" + b"".join(map(_string, (NAMESPACE.encode(), b"", b"sha512", hashlib.sha512(message).digest())))


def _armour(public: bytes, signature: bytes) -> str:
    parts = b"".join(map(_string, (public, NAMESPACE.encode(), b"", b"sha512", signature)))
    body = base64.b64encode(b"SSHSIG" + (1).to_bytes(4, "big") + parts).decode()
    return "\n".join([_BEGIN, *textwrap.wrap(body, 70), _END]) + "\n"
