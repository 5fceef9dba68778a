"""Rows of tokens laid end to end in one matrix, without padding.

Knows: where each row's tokens lie, where the heads' vectors go when attention sets row beside row, rotary positions.
Does not know weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SHORT = 48  # up to this row length attention's products are as fast in float32 as in bfloat16


class Layout:
    """Where each row's tokens lie in the matrix.

    ``ids``, ``positions`` (tokens,): the shared beginning once, then each row's rest. ``slots`` (rows, width): the matrix row of a
    row's j-th token; behind a row's end it repeats a token that nobody sees, by the causal order. ``back`` (tokens,): the
    inverse, into the flattened slots.
    """

    def __init__(self, rows: Sequence[list[int]], share_at_most: int) -> None:
        shared = _common(rows, share_at_most) if len(rows) > 1 else 0
        width = max(map(len, rows))
        ids, positions, slots, back = rows[0][:shared], list(range(shared)), [], list(range(shared))
        for n, row in enumerate(rows):
            own = range(len(ids), len(ids) + len(row) - shared)
            slots.append([*range(shared), *own, *[0] * (width - len(row))])
            back += range(n * width + shared, n * width + len(row))
            positions += range(shared, len(row))
            ids = ids + row[shared:]
        self.shared, self.width, self.rows = shared, width, len(rows)
        self.ids, self.positions = torch.tensor(ids), torch.tensor(positions)
        self.slots, self.back = torch.tensor(slots), torch.tensor(back)

    def at(self, row: int, position: int) -> int:
        """The matrix row of a token."""
        return int(self.slots[row, position])


def _common(rows: Sequence[list[int]], limit: int) -> int:
    for length in range(min(limit, *map(len, rows))):
        if any(row[length] != rows[0][length] for row in rows):
            return length
    return min(limit, *map(len, rows))


class Plan:
    """What attention needs to know of a layout, the same in all layers: lists of row numbers, tables, and buffers used in turn.

    Side by side, a token has ``heads`` queries, ``groups`` keys and ``groups`` values. Stacked, all queries come first, in the order
    (row, group, head of the group, position), then all keys, then all values, in the order (row, group, position).

    ``stack``: stacked from side by side; ``unstack``: back; ``common``: those of the shared beginning, in every row. ``mixed`` and
    ``spread``: the same for what attention gives, which has places for queries only; a place behind a row's end takes the row of
    zeros in ``padded``. ``later`` (width, heads of a group x width): -inf where a query may not look. ``cos`` and ``sin`` (width x
    head,), the sine with the sign of its half: rotary positions. ``kind``: the type of attention's products.
    """

    def __init__(self, layout: Layout, heads: int, groups: int, cos: torch.Tensor, sin: torch.Tensor, dtype: torch.dtype) -> None:
        rows, width, tokens, self.head = layout.rows, layout.width, len(layout.ids), cos.shape[-1]
        self.tokens, self.shared, self.rows, self.stacks = tokens, layout.shared, rows, rows * groups
        self.kind = torch.float32 if width <= SHORT else dtype
        kinds = torch.arange(heads + 2 * groups).split([heads, groups, groups])
        self.sizes = [rows * len(kind) * width for kind in kinds]
        self.stack = torch.cat([(layout.slots[:, None] * (heads + 2 * groups) + kind[:, None]).flatten() for kind in kinds])
        numbers = torch.arange(len(self.stack)).split(self.sizes)
        places = torch.cat([n.view(rows, -1, width).transpose(1, 2) for n in numbers], dim=2)  # (rows, width, all heads)
        self.common = places[:, : self.shared].flatten()
        self.unstack = places.flatten(0, 1)[layout.back].flatten()
        self.mixed = places[..., :heads].flatten(0, 1)[layout.back].flatten()
        owner = torch.full((rows * width,), tokens).index_copy_(0, layout.back, torch.arange(tokens))
        self.spread = (owner.view(rows, 1, width) * heads + torch.arange(heads)[:, None]).flatten()
        self.padded = torch.zeros((tokens + 1, heads * self.head), dtype=dtype)
        self.gradient = torch.empty((len(self.stack), self.head), dtype=self.kind)
        self.later = torch.full((width, width), float("-inf"), dtype=self.kind).tril_(-1).repeat(1, heads // groups)
        half = self.head // 2
        self.swap = torch.arange(2 * (self.sizes[0] + self.sizes[1])).view(-1, 2).flip(1).flatten()
        self.cos, self.sin = cos.flatten(), torch.cat([-sin[:, :half], sin[:, half:]], dim=1).flatten()

    def parts(self, stacked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of queries (rows x groups, heads of a group x width, head), keys and values (rows x groups, width, head)."""
        q, k, v = stacked.split(self.sizes)
        return q.view(self.stacks, -1, self.head), k.view(self.stacks, -1, self.head), v.view(self.stacks, -1, self.head)

    def turn(self, stacked: torch.Tensor, sign: int = 1) -> torch.Tensor:
        """Turn queries and keys in place, in float32; ``sign`` -1 turns back, which is also the gradient."""
        turned = stacked[: self.sizes[0] + self.sizes[1]]
        other = turned.view(-1, self.head // 2).index_select(0, self.swap).view(-1, len(self.sin))
        turned.view(-1, len(self.cos)).mul_(self.cos).addcmul_(other, self.sin, value=sign)
        return stacked

    def together(self, stacked: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Gradients back side by side, (tokens, all heads x head): what all rows say of the shared beginning is summed."""
        side = stacked.to(dtype).index_select(0, self.unstack).view(self.tokens, -1)
        if self.shared:
            side[: self.shared] = stacked.index_select(0, self.common).view(self.rows, self.shared, -1).sum(0)
        return side
