"""How a cohort's updates become one: what a combiner is, and the mean. Robust ones are in `strategies/`.

The mean is taken as "sum, then divide". The sum has fixed brackets, so its bits depend on the cohort alone
and not on who computed what: the cohort, sorted by client number, is cut into contiguous chunks; each chunk
is a left fold in the vector's own type, and the chunks' sums are folded in order.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FEWEST_CHUNKS, MOST_CHUNKS = 16, 64
"""Enough chunks to keep many workers busy, few enough that a chunk's sum saves most of the traffic."""

COLUMNS = 1 << 12
"""Columns of a block: with 100 clients 3 MB in float64, which the processor's cache holds."""


@dataclass(frozen=True)
class Combiner:
    """How a cohort's updates become one; called with them, it says what they are together.

    Attributes:
        name: as in reports.
        combine: (updates [n, P], weights [n], previous [P]) -> [P]. P counts parameters, buffers and the algorithm's
            extra vectors; `previous` is what was combined in the last round, zeros before the first.
        least: the fewest updates for which its promise holds.
        needs: that promise's condition, for messages: "n >= 2 f + 3".
        remembers: whether it reads `previous`, which is then kept and saved.
    """

    name: str
    combine: Callable[[Tensor, Tensor, Tensor], Tensor]
    least: int = 1
    needs: str = "one update"
    remembers: bool = False

    def __call__(self, updates: Tensor, weights: Tensor, previous: Tensor | None = None) -> Tensor:
        """The combined vector [P]; to the bit the same for any order of the clients."""
        prints = [hashlib.sha256(np.ascontiguousarray(update.numpy()).data).digest() for update in updates]
        order = sorted(range(len(updates)), key=lambda row: (prints[row], float(weights[row])))
        before = torch.zeros_like(updates[0]) if previous is None else previous
        return self.combine(updates[order], weights[order], before)


def chunk_numbers(rows: Sequence[int], stack: int = 1) -> list[int]:
    """For each client of a sorted cohort the number of its chunk.

    Args:
        rows: train rows of each client; chunks get near-equal totals.
        stack: W, how many clients are trained at once; each W of the cohort stay in one chunk.

    Returns:
        Non-decreasing numbers from 0: a chunk for every stack up to 16 of them, then up to 64 chunks of about eight
        clients or more. Every chunk has a client.
    """
    most = max(FEWEST_CHUNKS, min(MOST_CHUNKS, len(rows) // 8))
    stacks = [sum(rows[start : start + stack]) for start in range(0, len(rows), stack)]
    numbers = _chunk_numbers(stacks, min(len(stacks), most))
    return [numbers[position // stack] for position in range(len(rows))]


def _chunk_numbers(rows: Sequence[int], count: int) -> list[int]:
    """The cut into `count` chunks of near-equal totals, none of them empty."""
    total = sum(rows)
    numbers: list[int] = []
    chunk, seen = 0, 0
    for position, size in enumerate(rows):
        remaining = len(rows) - position
        full = seen * count >= (chunk + 1) * total
        if numbers and chunk + 1 < count and (full or remaining <= count - 1 - chunk):
            chunk += 1
        numbers.append(chunk)
        seen += size
    return numbers


class Fold:
    """A running weighted sum of vectors."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self._own = False

    def add(self, vector: Tensor, weight: float = 1.0) -> None:
        """Add weight * vector, in one pass over memory (rounded once where the processor can)."""
        if self.total is None:  # the first term itself, not a copy of it
            self.total, self._own = (vector, False) if weight == 1.0 else (vector * weight, True)
        elif self._own:
            self.total.add_(vector, alpha=weight)
        else:
            self.total, self._own = self.total.add(vector, alpha=weight), True


def _mean(updates: Tensor, weights: Tensor, previous: Tensor) -> Tensor:
    return (updates * weights[:, None]).sum(0) / weights.sum()


mean = Combiner("mean", _mean)
"""The weighted mean over clients: sum_i w_i u_i / sum_i w_i."""


def by_columns(rule: Callable[[Tensor], Tensor], updates: Tensor) -> Tensor:
    """A coordinate-wise rule taken block by block, so that what it makes on the way stays small.

    Args:
        rule: [c, n] -> [c], for any c; the values of a coordinate lie side by side, where they are sorted fastest.
        updates: [n, P].

    Returns:
        [P], in the updates' type whatever the rule's.
    """
    combined = torch.empty_like(updates[0])
    for part, block in zip(torch.split(combined, COLUMNS), torch.split(updates, COLUMNS, dim=1), strict=True):
        part.copy_(rule(block.T.contiguous()))
    return combined


def distances(updates: Tensor, centre: Tensor) -> Tensor:
    """[n] in float64: how far each of the updates [n, P] lies from a centre [P]."""
    squares = torch.zeros(len(updates), dtype=torch.float64)
    for block, middle in zip(torch.split(updates, COLUMNS, dim=1), torch.split(centre, COLUMNS), strict=True):
        squares += (block.double() - middle.double()).square_().sum(1)
    return squares.sqrt_()


def weighted_sum(updates: Tensor, factors: Tensor) -> Tensor:
    """[P]: sum_i c_i u_i of updates [n, P] and factors [n], added up in float64 and rounded once."""
    total = torch.zeros_like(updates[0], dtype=torch.float64)
    for update, factor in zip(updates, factors.tolist(), strict=True):
        total.add_(update, alpha=factor)
    return total.to(updates.dtype)
