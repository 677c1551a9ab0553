"""How a cohort's updates become one.

The mean is taken as "sum, then divide". The sum has fixed brackets, so its bits depend on the cohort alone
and not on who computed what: the cohort, sorted by client number, is cut into contiguous chunks; each chunk
is a left fold in the vector's own type, and the chunks' sums are folded in order.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

FEWEST_CHUNKS, MOST_CHUNKS = 16, 64
"""Enough chunks to keep many workers busy, few enough that a chunk's sum saves most of the traffic."""

Combiner = Callable[[Tensor, Tensor], Tensor]
"""combine(updates [n, P], weights [n]) -> [P]."""


def chunk_numbers(rows: Sequence[int]) -> list[int]:
    """For each client of a sorted cohort the number of its chunk.

    Args:
        rows: train rows of each client; chunks get near-equal totals.

    Returns:
        Non-decreasing numbers from 0: a chunk for every client up to 16, then up to 64 chunks of about eight
        clients or more. Every chunk has a client.
    """
    count = min(len(rows), max(FEWEST_CHUNKS, min(MOST_CHUNKS, len(rows) // 8)))
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


def mean(updates: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over clients: sum_i w_i u_i / sum_i w_i."""
    return (updates * weights[:, None]).sum(0) / weights.sum()
