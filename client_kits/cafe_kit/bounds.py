"""What no order of ours asks for: figures and sizes beyond any use, refused before a byte is fetched or a model is loaded.

Knows orders. Does not know what the site's admin allows (``policy.py``). A limit here protects the machine, not the records; it is
far above what any run wants.
"""

from __future__ import annotations

from collections.abc import Iterator

from cafe_kit.errors import CafeError
from cafe_kit.orders import Order, TrainParams, VoteParams
from cafe_kit.vote import MAX_CANDIDATE_BYTES

GIB = 2**30
MOST_BYTES = {
    "candidates": MAX_CANDIDATE_BYTES,
    "records": MAX_CANDIDATE_BYTES,
    "adapter": 8 * GIB,
    "adapter_folder": 8 * GIB,
    "embedder": 64 * GIB,
    "base_model": 4096 * GIB,
    "probe": 2**16,
}
_STEPS_OF_ONE_VOTE = 2**62  # grid steps that still are a machine's integer


def check(order: Order) -> None:
    """Raises CAFE-343, naming what is too large."""
    for what, asked, most in _figures(order):
        if asked > most:
            raise CafeError(
                "CAFE-343", f"The order asks for more than any run has use for: {what} above {most}.", "Kit and server must fit."
            )


def _figures(order: Order) -> Iterator[tuple[str, int, int]]:
    for name, blob in order.inputs.items():
        yield f"bytes of the input '{name}'", blob.size, MOST_BYTES[name]
    params = order.params
    if isinstance(params, VoteParams):
        yield "max_votes_per_candidate in steps of the grid", params.max_votes_per_candidate * order.privacy.grid, _STEPS_OF_ONE_VOTE
    if isinstance(params, TrainParams):
        yield "steps", params.steps, 1_000_000
        yield "batch_size", params.batch_size, 65_536
        yield "max_tokens", params.max_tokens, 1_048_576
        yield "lora_rank", params.lora_rank, 4_096
        yield "threads", params.threads, 4_096
    yield "grid", order.privacy.grid, 2**60
