"""Exact Gaussian noise on the integers, from the operating system's randomness.

Knows: the rounded Gaussian and how to draw it without any error that counts. Does not know what it is added to, who
asked, or what it costs. There is no seed parameter, here or anywhere: a noise that can be repeated protects nothing.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from functools import cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from mpmath import MPContext
from numpy.typing import NDArray

from cafe_kit.errors import CafeError

Steps = NDArray[np.int64]  # numbers on the integer grid: value = steps / terms.grid

TAIL_SIGMAS = 14  # a draw never lies farther out; the mass that is cut is below 2**-145
MAX_STEPS = 2**31  # largest clip and largest sigma in steps: every sum of contributions then fits into 64 bits

_exact = MPContext()  # a context of our own: mpmath's global precision belongs to nobody
_exact.prec = 256
_CELLS, _REACH = 512, 5  # nodes per sigma of the quantile table, and how many sigmas it reaches on either side
_QUANTILE_ERROR = 2.0**-40  # in sigmas; the true error of `_quantile` is below 2**-42, see there
_BLOCK = 2**18  # coordinates at a time: bounds the memory, changes no number


class GaussianNoise:
    """Rounded Gaussian noise on the integers: k has probability Phi((k+1/2)/sigma) - Phi((k-1/2)/sigma), exactly.

    For an integer q, q + round(g) = round(q + g): the sum is post-processing of the continuous Gaussian mechanism, so
    the accounting of the latter holds without any correction. Drawn by inversion of a 192-bit uniform number U: the
    first 64 bits decide unless U lies within a proved error bound of a cell's border; then 128 more bits and 256-bit
    arithmetic decide. Total variation distance to the ideal: below 2**-120 for ten million coordinates (cut tail
    2**-145 and 192-bit borders, per coordinate). Any sigma up to 2**31 steps, one table for all.
    Randomness: AES-256-CTR under a fresh key from the operating system per draw; the key is dropped. No seed.

    Args:
        sigma_steps: standard deviation of the Gaussian before rounding, in grid steps, >= 1.
    """

    def __init__(self, sigma_steps: int) -> None:
        if not 1 <= sigma_steps <= MAX_STEPS:
            raise CafeError(
                "CAFE-304",
                "Noise of this size cannot be drawn, so nothing is released.",
                "A release under a guarantee needs a noise multiplier above 0; calibrate() finds it.",
            )
        self.sigma_steps = sigma_steps
        self.bound = TAIL_SIGMAS * sigma_steps

    def draw(self, size: int) -> Steps:
        """``size`` independent draws, (size,), each within -bound..bound."""
        stream = _Keystream()
        blocks = [self._invert(stream.words(min(_BLOCK, size - start)), stream) for start in range(0, size, _BLOCK)]
        return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.int64)

    def _invert(self, leading: NDArray[np.uint64], stream: _Keystream) -> Steps:
        """The draws that belong to the leading 64 bits; the few that these do not decide take 128 bits more."""
        shifted = self.sigma_steps * _quantile(leading) + 0.5
        draws = np.floor(shifted)
        margin = self.sigma_steps * _QUANTILE_ERROR
        with np.errstate(invalid="ignore"):  # outside the table the quantile is NaN, which is never "decided"
            decided = (shifted - draws > margin) & (shifted - draws < 1 - margin)
        steps = np.where(decided, draws, 0).astype(np.int64)
        for i in np.flatnonzero(~decided):
            steps[i] = self._invert_exactly(int(leading[i]) << 128 | stream.bits(128))
        return steps

    def _invert_exactly(self, uniform: int) -> int:
        """How many cell borders lie at or below a 192-bit uniform number."""
        return bisect_right(range(-self.bound, self.bound), uniform, key=self._border) - self.bound

    def _border(self, k: int) -> int:
        """The upper border of cell k, as a 192-bit integer."""
        return int(_exact.floor(_exact.ncdf((_exact.mpf(k) + 0.5) / self.sigma_steps) * _exact.mpf(2) ** 192))


class _Keystream:
    """AES-256-CTR under a key that nobody else ever holds. Made anew for every draw, so also after a fork."""

    def __init__(self) -> None:
        self._cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8").astype(np.uint64)

    def bits(self, count: int) -> int:
        return int.from_bytes(self._cipher.update(bytes(count // 8)), "big")


@cache
def _nodes() -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """At the nodes z = j / 512, |z| <= 5: floor(2**64 * Phi(z)), and 1 / phi(z). The lower half by symmetry."""
    upper = [_exact.mpf(j) / _CELLS for j in range(1, _REACH * _CELLS + 1)]
    tails = [_exact.ncdf(-z) * _exact.mpf(2) ** 64 for z in upper]
    cumulative = [int(_exact.floor(tail)) for tail in reversed(tails)] + [2**63] + [2**64 - int(_exact.ceil(tail)) for tail in tails]
    inverse_density = [float(1 / _exact.npdf(z)) for z in upper]
    return np.array(cumulative, dtype=np.uint64), np.array([*reversed(inverse_density), float(1 / _exact.npdf(0)), *inverse_density])


def _quantile(leading: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Phi^-1(U) for every U in [u, u + 1) / 2**64, to within 2**-42; NaN beyond 5 sigmas.

    Taylor's series of the quantile at the node below, in y = (Phi(z + t) - Phi(z)) / phi(z) < 0.00197: the first term
    left out is at most 600 * y**6 < 2**-44.5; the width of U and the floor of the node's value give 2 * 2**-64 / phi(5)
    < 2**-43.6, float64 a few units of 2**-50.
    """
    cumulative, inverse_density = _nodes()
    cell = np.searchsorted(cumulative, leading, side="right") - 1
    inside = (cell >= 0) & (cell < cumulative.size - 1)
    cell = np.where(inside, cell, 0)
    z = (cell - _REACH * _CELLS) / _CELLS
    y = (leading - cumulative[cell]).astype(np.float64) * 2.0**-64 * inverse_density[cell]
    zz = z * z
    fifth = (7 + zz * (46 + 24 * zz)) / 120
    t = y * (1 + y * (z / 2 + y * ((1 + 2 * zz) / 6 + y * (z * (7 + 6 * zz) / 24 + y * fifth))))
    return np.where(inside, z + t, np.nan)
