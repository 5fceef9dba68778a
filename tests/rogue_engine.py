"""An engine that spoils one site's update: ``CAFE_ROGUE=SITE=MODE`` with nan, shape, missing, huge, zero, same or slow."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from cafe_kit.engine import Deltas

from tests.fakes import TinyEngine


class RogueEngine(TinyEngine):
    def train(self, *args: Any, **kwargs: Any) -> Deltas:
        deltas = super().train(*args, **kwargs)
        site, _, mode = os.environ.get("CAFE_ROGUE", "").partition("=")
        if site in deltas:
            own = deltas[site]
            name = sorted(own)[0]
            if mode == "nan":
                own[name] = np.full_like(own[name], np.nan)
            if mode == "shape":
                own[name] = np.zeros((7, 7), np.float32)
            if mode == "missing":
                del own[name]
            if mode == "huge":
                own[name] = np.full_like(own[name], 1e6)
            if mode in ("zero", "same"):
                deltas[site] = {name: np.full_like(own[name], 0.0 if mode == "zero" else 0.01) for name in own}
            if mode == "slow":
                time.sleep(60)
        return deltas
