"""Poisson batches: how often, at what rate, and by what a private gradient is divided.

Everything follows from the declared number of rows n and the batch size B: rate q = min(1, B / n), steps per
epoch = ceil(n / B), divisor q n. The size of the batch that was drawn enters nowhere, since it depends on the
data set that is to be protected. A client without rows draws nothing, takes no step and spends nothing.
"""

import math

import numpy as np


def sampling_rate(rows: int, batch_size: int) -> float:
    """q = min(1, B / n), the probability with which each row enters a batch; 0 where there is none."""
    return min(1.0, batch_size / rows) if rows else 0.0


def expected_batch(rows: int, batch_size: int) -> float:
    """q n, the mean size of a batch and the divisor of every private gradient."""
    return sampling_rate(rows, batch_size) * rows


def steps_of(rows: int, batch_size: int, epochs: int) -> int:
    """Private steps of `epochs` passes over `rows` rows, ceil(n / B) each."""
    return epochs * math.ceil(rows / batch_size)


def poisson_batch(rows: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Draw every row independently with probability `rate`.

    Args:
        rows: n.
        rate: q in [0, 1]; 1 draws every row.
        generator: from `seeds`.

    Returns:
        Sorted row numbers, int64; possibly none.
    """
    return np.flatnonzero(generator.random(rows) < rate)
