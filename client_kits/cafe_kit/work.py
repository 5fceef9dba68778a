"""An order on its way through a site: read from the wire, its inputs loaded, carried to the release.

Knows: what each kind of order refers to and how that is read. Does not know whether the order may be answered, what is
computed from it, or what the answer costs. To extend: a new kind is a row in ``INPUTS``, a new input one in ``_LOADERS``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from cafe_kit import inputs
from cafe_kit.errors import CafeError
from cafe_kit.orders import MAX_BYTES, Blob, Numbers, Order, Transport, order_hash, parse
from cafe_kit.task import Record

INPUTS: dict[str, set[str]] = {
    "hello": set(),
    "vote": {"embedder", "candidates"},
    "train": {"base_model", "adapter"},  # of a proxy on another machine also its "records"
    "result": {"adapter_folder"},
}
PROBE = {"hello": {"probe"}}  # what a kind may bring beside: a few bytes, by which a site shows that it reaches the object store
try:
    KIT_VERSION = version("cafe-kit")
except PackageNotFoundError:  # run from its folder
    KIT_VERSION = "not installed"


@dataclass
class Work:
    """An order that was let in, with everything that computing it needs."""

    order: Order
    hash: str
    transport: Transport
    records: Sequence[Record] = ()
    given: dict[str, Any] = field(default_factory=dict)  # input name: folder, candidates or adapter
    began: float = field(default_factory=time.monotonic)
    numbers: Numbers = field(default_factory=Numbers)


def read_order(order_json: Any, transport_json: Any) -> tuple[Order, Transport]:
    """Both messages, strictly, and neither larger than ``MAX_BYTES``.

    Raises:
        CafeError: CAFE-101.
    """
    for message in (order_json, transport_json):
        try:
            size = len(json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode())
        except (ValueError, TypeError, RecursionError):
            continue  # parse says it better
        if size > MAX_BYTES:
            raise CafeError("CAFE-101", f"The order is longer than {MAX_BYTES} bytes.", "Inputs go by reference.")
    return parse(Order, order_json), parse(Transport, transport_json)


def name_of(order_json: Any) -> str:
    """The hash by which a reply names the order; zeros for what is no order."""
    try:
        return order_hash(parse(Order, order_json))
    except CafeError:
        return 64 * "0"


def load_inputs(order: Order, transport: Transport, shelf: Sequence[Path] = ()) -> dict[str, Any]:
    """Everything that the order refers to, checked by hash and size: folders of models, the adapter's tensors, the candidates.

    ``shelf``: folders of this machine that hold models, looked through first; what has to be fetched is kept in the last one.

    Raises:
        CafeError: CAFE-106 (not there), CAFE-107 (not what the order names), CAFE-111 and CAFE-112 (candidates); what ``inputs`` raises.
    """
    until = transport.deadline_s
    return {name: _LOADERS[name](name, transport.inputs[name], blob, shelf, until) for name, blob in order.inputs.items()}


def check_finite(result: Mapping[str, np.ndarray]) -> None:
    """Raises CAFE-403, naming the tensor, where a number is NaN or infinite."""
    for name, tensor in result.items():
        if not np.isfinite(tensor).all():
            raise CafeError("CAFE-403", f"Training diverged: '{name}' is not finite any more.", "Lower learning_rate, or add warmup_steps.")


def _adapter(name: str, where: str, blob: Blob, _: Sequence[Path], longest_s: float) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(inputs.fetch(name, where, blob, longest_s))
    except (SafetensorError, KeyError, ValueError):
        raise CafeError("CAFE-107", "The adapter is not a safetensors file.", "Ask the operator to send the order again.") from None


def _candidates(name: str, where: str, blob: Blob, _: Sequence[Path], longest_s: float) -> Any:
    from cafe_kit.vote import candidates_from_bytes

    return candidates_from_bytes(inputs.fetch(name, where, blob, longest_s))


def _probe(name: str, where: str, blob: Blob, _: Sequence[Path], longest_s: float) -> bytes:
    return inputs.fetch(name, where, blob, longest_s)


_LOADERS: dict[str, Callable[[str, str, Blob, Sequence[Path], float], Any]] = {
    "base_model": inputs.fetch_folder,
    "embedder": inputs.fetch_folder,
    "adapter": _adapter,
    "adapter_folder": inputs.fetch_folder,
    "records": _candidates,
    "candidates": _candidates,
    "probe": _probe,
}
