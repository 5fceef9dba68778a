"""How a private array becomes something that may leave: integer grid, clip, noise from the operating system, seal.

Knows: integers, exact bounds, exact noise, files that are whole or absent, boxes that one key opens. Does not know
what the numbers mean, who asked, or what was spent: the caller charges a ledger first. A site and the server's door
call the same functions. Nothing here takes a seed, and nothing here is undone by a flag.
Specification: the grid and the clip are exact integer arithmetic, so the sensitivity is a theorem and not a rounding.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray

from cafe_kit.bodies import body_from_bytes, body_to_bytes
from cafe_kit.errors import CafeError
from cafe_kit.failpoints import failpoint
from cafe_kit.noise import MAX_STEPS, TAIL_SIGMAS, GaussianNoise, Steps
from cafe_kit.orders import PrivacyTerms

__all__ = [
    "MAX_STEPS",
    "TAIL_SIGMAS",
    "Box",
    "GaussianNoise",
    "Steps",
    "body_from_bytes",
    "body_to_bytes",
    "bound",
    "cap",
    "clip_steps",
    "clip_to_norm",
    "contribution",
    "make_folder",
    "seal_file",
    "sigma_steps",
    "squared_norm",
    "sync_folder",
    "to_grid",
]

# --- the integer grid and the clip -------------------------------------------------------------------------------


def clip_steps(terms: PrivacyTerms) -> int:
    """The L2 bound of one contribution in grid steps: floor(clip_norm * grid), exactly."""
    steps = math.floor(Fraction(terms.clip_norm) * terms.grid)
    if not 1 <= steps <= MAX_STEPS:
        raise CafeError(
            "CAFE-301",
            f"A clip norm of {terms.clip_norm:g} on a grid of {terms.grid} steps per unit cannot be computed with.",
            "Choose the grid so that clip_norm * grid lies between 1 and 2**31; calibrate() does.",
        )
    return steps


def sigma_steps(terms: PrivacyTerms) -> int:
    """The standard deviation of the noise in grid steps: ceil(noise_multiplier * clip_steps); 0 without noise.

    The ledger's cost of one release is the exact fraction clip_steps**2 / sigma_steps**2, which is mu**2 of Gaussian DP.
    """
    if terms.mechanism == "none":
        return 0
    steps = math.ceil(Fraction(terms.noise_multiplier) * clip_steps(terms))
    if steps > MAX_STEPS:
        raise CafeError("CAFE-302", "The noise is too large for the integer grid.", "Choose a larger epsilon or a coarser grid.")
    return steps


def to_grid(x: NDArray[np.floating | np.integer], grid: int) -> Steps:
    """Round ``x`` (any shape, finite) to the nearest grid step.

    Nearest and not toward zero: the exact clip runs *after* this, so rounding cannot touch the sensitivity, and
    truncation would shrink every coordinate of a large vector.

    Raises:
        CafeError: CAFE-303 for NaN, Inf or a number of 2**53 steps and more.
    """
    with np.errstate(over="ignore"):
        scaled = np.asarray(x, dtype=np.float64) * grid
    if not np.isfinite(scaled).all():
        raise CafeError(
            "CAFE-303",
            "A contribution holds NaN or infinite numbers, so it was not released.",
            "Lower the learning rate; nothing was sent.",
        )
    if np.abs(scaled).max(initial=0.0) >= 2.0**53:
        raise CafeError(
            "CAFE-303",
            "A contribution holds numbers too large for the integer grid, so it was not released.",
            "Lower the learning rate; nothing was sent.",
        )
    return np.rint(scaled).astype(np.int64)


def squared_norm(q: Steps) -> int:
    """The exact sum of squares of ``q`` (d,): machine integers where they cannot overflow, Python's otherwise."""
    if _largest(q) ** 2 * q.size < 2**63:
        return int(q @ q)
    return sum(value * value for value in q.tolist())


def clip_to_norm(q: Steps, limit: int) -> Steps:
    """``q`` (d,) scaled down to a sum of squares <= limit**2, exactly; as it is where it already holds.

    With r = ceil(||q||), every |q_i| * limit // r is at most |q_i| * limit / ||q||, so the bound needs no second look.
    """
    total = squared_norm(q)
    if total <= limit * limit:
        return q
    norm = math.isqrt(total - 1) + 1
    if max(_largest(q) * limit, norm) < 2**63:
        return np.sign(q) * (np.abs(q) * limit // norm)
    return np.array([(abs(value) * limit // norm) * (1 if value > 0 else -1) for value in q.tolist()], dtype=np.int64)


def cap(q: Steps, limit: int) -> Steps:
    """Every coordinate of ``q`` (d,) within -limit..limit: one site's say over one candidate. Only ever shrinks the norm."""
    return np.clip(q, -limit, limit)


def bound(q: Steps, terms: PrivacyTerms, most: float | None = None) -> Steps:
    """What a site does to its own contribution and the door does to it once more: cap (votes only), then joint L2 clip.

    ``most``: largest magnitude of one coordinate, in the units of the statistic. Both only ever shrink, and doing it twice
    changes nothing: the door leaves the contribution of an honest site as it is, bit for bit.
    """
    if most is not None:
        q = cap(q, math.floor(Fraction(most) * terms.grid))
    return clip_to_norm(q, clip_steps(terms))


def contribution(x: NDArray[np.floating | np.integer], terms: PrivacyTerms, most: float | None = None) -> Steps:
    """One site's contribution to one release, ready to be sealed: grid, cap, clip, and under trust "local" its own noise.

    Under trust "local" the caller charges its ledger before and seals after, and never calls this twice for one release.

    Args:
        x: (d,) every released number, flattened *together*: one clip for all of them.
        terms: of a release with mechanism "gaussian".
        most: per-candidate cap in votes (units of ``x``).
    """
    q = bound(to_grid(x, terms.grid), terms, most)
    return q + GaussianNoise(sigma_steps(terms)).draw(q.size) if terms.trust == "local" else q


def _largest(q: Steps) -> int:
    """Largest magnitude, also for the one int64 whose absolute value is no int64."""
    return max(int(q.max()), -int(q.min())) if q.size else 0


# --- seals -------------------------------------------------------------------------------------------------------


class Box:
    """Bytes that only the holder of one X25519 key can read: X25519, HKDF-SHA256, ChaCha20-Poly1305.

    A box is 32 bytes of a one-time public key, then the ciphertext with its tag. ``context`` (who, which release) is
    authenticated with it: a box moved to another place does not open.
    """

    @staticmethod
    def seal(data: bytes, to: X25519PublicKey, context: bytes) -> bytes:
        once = X25519PrivateKey.generate()
        public = _raw(once.public_key())
        return public + Box._cipher(once.exchange(to), public, _raw(to)).encrypt(bytes(12), data, context)

    @staticmethod
    def open(box: bytes, key: X25519PrivateKey, context: bytes) -> bytes:
        """Raises CAFE-459 when the box was altered, cut, sealed to another key or for another place."""
        try:
            public = bytes(box[:32])
            shared = key.exchange(X25519PublicKey.from_public_bytes(public))
            return Box._cipher(shared, public, _raw(key.public_key())).decrypt(bytes(12), box[32:], context)
        except (InvalidTag, ValueError):
            raise CafeError(
                "CAFE-459",
                "A sealed body does not open: it was altered, or sealed to another key or for another round.",
                "Ask the site to send its sealed body again; it is the same bytes and costs nothing.",
            ) from None

    @staticmethod
    def _cipher(shared: bytes, once: bytes, to: bytes) -> ChaCha20Poly1305:
        """The key is used for one message only, so the nonce may be zero."""
        return ChaCha20Poly1305(HKDF(hashes.SHA256(), 32, salt=None, info=b"cafe-box-1" + once + to).derive(shared))


def _raw(key: X25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def seal_file(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data`` whole and durably, or not exist at all: beside, fsync, rename, fsync of the folder.

    Readable by the owner only. A killed process leaves at most ``<name>.tmp``.

    Raises:
        CafeError: CAFE-305 when the disk refuses (full, read-only); nothing half-written stays.
    """
    beside = path.with_name(path.name + ".tmp")
    failpoint("seal.before_write")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb", buffering=0) as file:
            half = len(data) // 2
            _write_all(file.fileno(), data[:half])
            failpoint("seal.half_written")
            _write_all(file.fileno(), data[half:])
            os.fsync(file.fileno())
        failpoint("seal.before_rename")
        beside.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CafeError(
            "CAFE-305",
            f"A sealed file could not be written: {error.strerror or 'the disk refused'}.",
            "Free space or mend the folder's rights, then resume; nothing was released.",
        ) from error
    failpoint("seal.after_rename")


def make_folder(folder: Path) -> None:
    """Make ``folder``, the owner's alone, and durably its name and those above it, whoever made them. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in (folder, *folder.parents):
        if place.is_mount() or not os.access(place.parent, os.R_OK | os.W_OK):
            break  # not made by us, or not on this disk
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
