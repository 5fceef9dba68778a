"""What the numbers in a site's body can be, by what was agreed in public: votes are not negative, and weights need a count.

Knows orders and their bodies, after the gate of ``cafe_kit.bodies``. Does not clip: the door does, and it bounds whatever passes here.
Only what no honest kit sends is refused; nothing here looks at what the numbers say.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from cafe_kit.errors import CafeError
from cafe_kit.orders import SERVER_SEATS, Order, VoteParams
from cafe_kit.release import clip_steps, squared_norm


def check(order: Order, tensors: Mapping[str, np.ndarray], records: int | None) -> None:
    """Whether an honest site can have sent this. ``records``: how many the reply declares.

    Raises:
        CafeError: CAFE-349.
    """
    if isinstance(order.params, VoteParams):
        noised = order.privacy.mechanism == "gaussian" and order.privacy.trust == "local"
        (votes,) = tensors.values()
        unit = order.privacy.grid if order.privacy.mechanism == "gaussian" else 1
        if not noised and votes.size and (votes.min() < 0 or votes.max() > order.params.max_votes_per_candidate * unit):
            raise _impossible("they are votes below zero, or more for one candidate than count")
    elif order.privacy.mechanism == "none" and not records and not order.site.startswith(SERVER_SEATS):
        raise _impossible("they come without the number of records, by which they are weighed in a run without noise")


def is_longer(order: Order, tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the site did not clip as agreed: the door clips it once more, so that it counts for as much as any other."""
    terms = order.privacy
    return terms.mechanism == "gaussian" and terms.trust == "server" and squared_norm(tensors["q"]) > clip_steps(terms) ** 2


def _impossible(why: str) -> CafeError:
    return CafeError("CAFE-349", f"No site that keeps to the order sends such numbers: {why}.", "Look at the site.")
