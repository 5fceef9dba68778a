"""What is odd about an update that is taken all the same: it is all zero, or byte for byte the site's update of an earlier round.

Knows tensors after the gate. Excludes nobody: what depends on the numbers would be a statistic of its own, for which no noise was computed.
Of a site's last update a fingerprint is kept, in the memory of this worker alone, since the numbers may be un-noised. So after a restart a
site's first update has none to be compared with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from cafe_kit.orders import Order, TrainParams
from cafe_kit.release import body_to_bytes


class Doubts:
    """Of one run, in the hands of one worker."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[tuple[int, int], bytes]] = {}  # site -> (attempt, round), fingerprint

    def about(self, order: Order, tensors: Mapping[str, np.ndarray]) -> str:
        """What to tell the operator of this update; "" for nothing. Votes may be all zero: a site without records of a class has none."""
        if not isinstance(order.params, TrainParams):
            return ""
        now, fingerprint = (order.attempt, order.round), hashlib.sha256(body_to_bytes(tensors)).digest()
        before, same = self._last.get(order.site, (now, b""))
        self._last[order.site] = (now, fingerprint)
        if not any(tensor.any() for tensor in tensors.values()):
            return "the update is all zero; it was taken and changes nothing"
        if before < now and same == fingerprint:
            return f"the update is byte for byte that of round {before[1]}, so the site has not trained; it was taken"
        return ""
