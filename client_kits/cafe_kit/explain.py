"""What a site did, in sentences: from its ledger, its outbox and its own log.

Knows how charges and answers read to a person. Does not decide, charge or send anything, and reads nothing private: what it tells
is what the files hold that the server has too, or that is about the site's own limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cafe_kit.errors import CafeError
from cafe_kit.ledger import Charge, SiteLedger, epsilon
from cafe_kit.orders import Blob, Reply, parse
from cafe_kit.outbox import state
from cafe_kit.policy import Policy

WAITS = "CAFE-328"  # the answer is ready and waits for the admin's word: nothing was refused, and the server asks again
_FIRST_VALUES = 24
_EVENTS = {
    "refused": "Refused an order: {code}. {sentence}",
    "failed": "Could not finish an order ({error}).",
    "asked": "Asked the operator to join.",
    "joined": "Joined the federation.",
    "not let in": "The operator did not let this site in.",
    "approved": "You let the answer {release} out.",
    "kept in": "You kept the answer {release} in; its charge stays.",
    "paused": "Paused: nothing is answered.",
    "resumed": "Answers orders again.",
    "limits": "Limits changed: {settings}.",
    "left": "Left the federation.",
}


@dataclass(frozen=True)
class Sent:
    """One charge and what became of it. ``blob`` is None while no answer was completed; ``path`` while its body is not kept.

    ``state``: "sent" (or free to be fetched), "waits" for the admin's word, "kept in" by it. ``contents``: files for people.
    """

    number: int
    charge: Charge
    cost: float  # by how much epsilon grew
    total: float
    blob: Blob | None
    path: Path | None
    state: Literal["sent", "waits", "kept in"]
    contents: tuple[Path, ...]

    @property
    def readable(self) -> bool:
        """Noised at the site, hence in the open; anything else was encrypted to the server's key."""
        return self.charge.mechanism == "gaussian" and self.charge.trust == "local"


def sent(home: Path, delta: float) -> list[Sent]:
    """Everything that was charged, in its order.

    Raises:
        CafeError: CAFE-318 when the ledger does not hold together.
    """
    found = []
    mu_squared, before = Fraction(0), 0.0
    for charge in SiteLedger(home / "ledger").charges if (home / "ledger").is_dir() else ():
        mu_squared += charge.cost
        total = epsilon(mu_squared, delta) if charge.cost else before
        folder = home / "outbox" / charge.order_hash
        blob = _blob(folder)
        path = folder / f"body.{blob.sha256}" if blob else None
        kept = path if path and path.is_file() else None
        found.append(Sent(charge.seq, charge, total - before, total, blob, kept, state(folder), tuple(sorted(folder.glob("contents.*")))))
        before = total
    return found


def _blob(folder: Path) -> Blob | None:
    try:
        return parse(Reply, json.loads((folder / "reply.json").read_bytes())["reply"]).outputs.get("body")
    except (OSError, ValueError, KeyError, TypeError, CafeError):
        return None


def values(item: Sent) -> np.ndarray | None:
    """The noised numbers that were sent, in units of the records' own scale; None where the site cannot read them."""
    if item.path is None or not item.readable:
        return None
    from safetensors.numpy import load_file

    return np.asarray(load_file(item.path)["q"])


def sentence(item: Sent, policy: Policy) -> str:
    """One line without its time: what was sent, how large, for whom, and what it cost."""
    charge = item.charge
    run, stage, attempt, round_, _site, kind = charge.release_id.split("/")
    numbers = values(item)
    what = {"vote": "counts", "train": "changes of the adapter"}.get(kind, "numbers")
    if charge.mechanism == "none":
        what = f"{what} without noise, encrypted to the server"
    elif charge.trust == "server":
        what = f"clipped {what}, encrypted to the server, which adds the noise"
    else:
        what = f"{numbers.size if numbers is not None else ''} noised {what}".strip()
    again = f", attempt {attempt}" if attempt != "1" else ""
    head = {"sent": "Sent", "waits": "Waits for your word:", "kept in": "Kept in by you:"}[item.state]
    head = head if item.blob else "Charged, but not completed:"
    size = f" ({_size(item.blob.size)})" if item.blob else ""
    where = f"for run {run}, {'vote' if kind == 'vote' else 'round'} {round_} of stage {stage}{again}"
    return f"{head} {what}{size} {where}. {_cost(item, policy)}"


def _cost(item: Sent, policy: Policy) -> str:
    if item.charge.mechanism == "none":
        return "No formal guarantee."
    limit = f" of {policy.max_epsilon:g}" if policy.max_epsilon is not None else ""
    return f"Cost ε {item.cost:.3g}, total {item.total:.3g}{limit}."


def shown(item: Sent) -> dict[str, Any]:
    """The item as ``outbox show`` prints it; of noised numbers their extent and the first ones."""
    told: dict[str, Any] = {**asdict(item.charge), "epsilon_cost": item.cost, "epsilon_total": item.total}
    told |= {"state": item.state, "contents": [str(path) for path in item.contents]}
    told["body"] = asdict(item.blob) | {"kept": item.path is not None} if item.blob else None
    numbers = values(item)
    if numbers is not None:
        flat = numbers.astype(np.float64)
        told["numbers"] = {
            "how_many": int(numbers.size),
            "unit": "steps of the grid, noise included",
            "least": int(numbers.min()),
            "most": int(numbers.max()),
            "norm": float(np.linalg.norm(flat)),
            "first": [int(value) for value in numbers[:_FIRST_VALUES]],
        }
    elif item.blob:
        told["numbers"] = (
            "the body is encrypted to the server's key; contents tells what is in it" if item.path else "dropped two rounds later"
        )
    return told


def history(home: Path, policy: Policy, explained: bool) -> list[dict[str, str]]:
    """What happened, oldest first: ``time`` and ``text``."""
    lines = []
    for event in _events(home):
        if event.get("event") != "answered" and event.get("code") != WAITS:  # the ledger tells these, with their cost
            lines.append({"time": str(event.get("time", "")), "text": _told(event) if explained else json.dumps(event, ensure_ascii=False)})
    lines += [{"time": item.charge.time, "text": sentence(item, policy)} for item in sent(home, policy.delta)]
    return sorted(lines, key=lambda line: line["time"])


def last_order(home: Path, policy: Policy) -> dict[str, str] | None:
    """The newest line of the history that is about an order, answered or not."""
    lines = [
        {"time": str(event.get("time", "")), "text": _told(event)}
        for event in _events(home)
        if event.get("event") in ("refused", "failed") and event.get("code") != WAITS
    ]
    lines += [{"time": item.charge.time, "text": sentence(item, policy)} for item in sent(home, policy.delta)[-1:]]
    return max(lines, key=lambda line: line["time"], default=None)


def _told(event: dict[str, Any]) -> str:
    words = _EVENTS.get(str(event.get("event")), "Noted: {event}.")
    told = {"code": "", "error": "", "settings": "", "sentence": "", "release": "", **event}
    return words.format_map({name: str(value)[:200] for name, value in told.items()}).rstrip()


def _events(home: Path) -> Iterator[dict[str, Any]]:
    for name in ("site.log.1", "site.log"):
        path = home / "log" / name
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event


def _size(count: int) -> str:
    return f"{count} bytes" if count < 1000 else f"{count / 1000:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
