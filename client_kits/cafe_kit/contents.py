"""What leaves, as the site's admin reads it: votes one by one, or the tensors of an update and what was done to them.

Knows orders, numbers and words. Does not know where this is kept or whether it leaves (``outbox.py``, ``seat.py``). It is written
before anything leaves, stays at the site, and says of a body exactly what is in it: with noise where the site added it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cafe_kit.orders import Order, PrivacyTerms, VoteParams
from cafe_kit.records import clean
from cafe_kit.release import squared_norm
from cafe_kit.task import Record

_SHOWN = 200  # characters of a candidate's text; the whole of it came from the operator
_NAME = 120  # characters of a tensor's name

Arrays = Mapping[str, np.ndarray]
Files = dict[str, bytes]  # ending of the file's name -> its bytes


def of_votes(order: Order, order_hash: str, candidates: Sequence[Record], sent: np.ndarray, body: bytes, sealed_to: str) -> Files:
    """``json``: one line a candidate with the votes that leave for it.

    Args:
        sent: (len(candidates),) as it is in the body: counts without a guarantee, else steps of the grid.
        sealed_to: the server's key, hexadecimal; "" when the body leaves as it is.
    """
    private = order.privacy.mechanism == "gaussian"
    lines = []
    for place, (candidate, number) in enumerate(zip(candidates, sent.tolist(), strict=True)):
        shown = {
            "candidate": place,
            "class": _line(candidate.answer, _SHOWN),
            "text": _line(candidate.text, _SHOWN),
            "votes": number / order.privacy.grid if private else number,
        }
        lines.append("  " + json.dumps(shown | ({"steps": number} if private else {}), ensure_ascii=False))
    head = dict(_facts(order, order_hash, body, sealed_to)) | {"votes are": _noise(order.privacy)}
    told = [f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}," for name, value in head.items()]
    return {"json": "\n".join(["{", *told, ' "votes": [', ",\n".join(lines), " ]", "}", ""]).encode()}


def of_update(order: Order, order_hash: str, trained: Arrays, clipped: Arrays, sent: bytes, body: bytes, sealed_to: str) -> Files:
    """``txt``: tensors, norms, clip and noise; and ``safetensors``: the numbers themselves, where the body does not show them.

    Args:
        trained: tensor name to what training changed, before the clip.
        clipped: as it is before any noise; ``sent``: safetensors of what leaves, before it was sealed.
    """
    facts = list(_facts(order, order_hash, body, sealed_to))
    before = math.sqrt(sum(float(np.square(tensor, dtype=np.float64).sum()) for tensor in trained.values()))
    facts += [("norm before the clip", f"{before:.6g}"), *_after(order.privacy, clipped), ("noise", _noise(order.privacy))]
    facts += [("the numbers", "contents.safetensors, until two rounds later" if sealed_to else "the body itself is safetensors")]
    rows = [(_line(name, _NAME), " x ".join(map(str, trained[name].shape)), str(trained[name].dtype)) for name in sorted(trained)]
    text = [
        "An update of the adapter.",
        "",
        *_columns(facts),
        "",
        f"{len(rows)} tensors, in the order in which they leave:",
        *_columns(rows),
    ]
    return {"txt": ("\n".join(text) + "\n").encode()} | ({"safetensors": sent} if sealed_to else {})


def _facts(order: Order, order_hash: str, body: bytes, sealed_to: str) -> Iterator[tuple[str, str]]:
    yield "run", f"{order.run}, stage {order.stage}, attempt {order.attempt}, round {order.round}"
    yield "order", order_hash
    yield "body", f"{hashlib.sha256(body).hexdigest()}, {len(body)} bytes"
    yield "readable by", f"the server alone, sealed to its key {sealed_to}" if sealed_to else "anybody who gets it: it carries noise"
    if order.privacy.mechanism == "gaussian":
        yield "clip", f"{order.privacy.clip_norm:g} (L2, all numbers together), in steps of 1/{order.privacy.grid}"
    if isinstance(order.params, VoteParams):
        yield "most votes for one candidate", str(order.params.max_votes_per_candidate)
    yield "trust", order.privacy.trust if order.privacy.mechanism == "gaussian" else "no formal guarantee"


def _after(terms: PrivacyTerms, clipped: Arrays) -> Iterator[tuple[str, str]]:
    if terms.mechanism == "gaussian":
        yield "norm after the clip", f"{math.sqrt(squared_norm(clipped['q'])) / terms.grid:.6g}"


def _noise(terms: PrivacyTerms) -> str:
    if terms.mechanism == "none":
        return "as they were counted or trained, without noise"
    who = "clipped, with noise added by this site" if terms.trust == "local" else "clipped; the server adds noise to the sum over all sites"
    return f"{who} ({terms.noise_multiplier:g} x clip)"


def _line(text: str, length: int) -> str:
    """Words from outside as one harmless line."""
    text = " ".join(clean(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of text in columns."""
    if not rows:
        return []
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
