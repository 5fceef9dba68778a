"""What one order's result becomes before it leaves: on the grid, capped, clipped; then noised where the site adds the noise; sealed.

Knows the two halves, between which the caller charges the ledger. Does not know who asked, what was spent, or where it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from cafe_kit import contents, release
from cafe_kit.orders import VoteParams
from cafe_kit.work import Work, check_finite

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outgoing:
    """``body``: as it travels. ``contents``: what is in it, for the site's admin (ending of the file's name to bytes)."""

    body: bytes
    contents: contents.Files


def bounded(work: Work, result: Mapping[str, np.ndarray]) -> Arrays:
    """Grid, cap and clip; without a guarantee the result as it is, if it is finite.

    Raises:
        CafeError: CAFE-303, CAFE-403.
    """
    terms, params = work.order.privacy, work.order.params
    if terms.mechanism == "none":
        check_finite(result)
        return dict(result)
    flat = np.concatenate([result[name].astype(np.float64).ravel() for name in sorted(result)])
    most = params.max_votes_per_candidate if isinstance(params, VoteParams) else None
    return {"q": release.bound(release.to_grid(flat, terms.grid), terms, most)}


def made(work: Work, result: Mapping[str, np.ndarray], clipped: Arrays, seal_to: X25519PublicKey) -> Outgoing:
    """The body of a result whose cost was charged: for the server's eyes only unless it carries noise. Drawn once, never again."""
    order, terms = work.order, work.order.privacy
    noised = terms.mechanism == "gaussian" and terms.trust == "local"
    arrays = clipped
    if noised:
        arrays = {"q": clipped["q"] + release.GaussianNoise(release.sigma_steps(terms)).draw(clipped["q"].size)}
    plain = release.body_to_bytes(arrays)
    body = plain if noised else release.Box.seal(plain, seal_to, work.hash.encode())
    to = "" if noised else seal_to.public_bytes_raw().hex()
    if isinstance(order.params, VoteParams):
        (sent,) = arrays.values()
        return Outgoing(body, contents.of_votes(order, work.hash, work.given["candidates"], sent, body, to))
    return Outgoing(body, contents.of_update(order, work.hash, result, clipped, plain, body, to))
