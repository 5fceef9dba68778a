"""A kit process that misbehaves: ``python -m tests.rogue_host MODE SEATS.json``. Otherwise the real host with the tiny engine."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from cafe_kit import host

from tests.fakes import TinyEngine


class RogueHost(host.Host):
    """Says what ``mode`` wants instead of, or besides, what the real host says."""

    mode = ""
    marks = Path()

    def _say(self, told: dict[str, Any]) -> None:
        if "reply" not in told:
            return super()._say(told)
        if self.mode == "dies" or (self.mode == "dies once" and self._first_time()):
            os._exit(7)
        if self.mode == "hangs":
            time.sleep(600)
        if self.mode == "chatters":
            self._out.write(
                b"Downloading weights: 100%\n\x00\xff{]\n" + b"x" * 300_000 + b"\n[1, 2]\n" + json.dumps({"hello": 1}).encode() + b"\n"
            )
        if self.mode == "says more":
            told = {**told, "reply": {**told["reply"], "accuracy_on_private_data": 0.9}}
        if self.mode == "signs badly":
            told = {**told, "signature": "00" * 64}
        if self.mode == "another round":
            told = {**told, "reply": {**told["reply"], "order_hash": "ab" * 32}}
        if self.mode == "names another":
            told = {**told, "reply": {**told["reply"], "site": "somebody"}}
        super()._say(told)
        if self.mode == "twice":
            super()._say(told)

    def _first_time(self) -> bool:
        try:
            (self.marks / "died").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


if __name__ == "__main__":
    RogueHost.mode, RogueHost.marks = sys.argv[1], Path(sys.argv[2]).parent
    host.Host = RogueHost  # type: ignore[misc]
    os.environ["CAFE_KIT_ENGINE"] = f"tests.fakes:{TinyEngine.__name__}"
    sys.exit(host.main(sys.argv[2:]))
