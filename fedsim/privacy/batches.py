"""Poisson batches: how often, at what rate, and by what a private gradient is divided.

Everything follows from the declared number of units n (rows, or groups of rows) and the batch size B: rate
q = min(1, B / n), steps per epoch = ceil(n / B), divisor q n. Neither the size of the batch that was drawn nor the
number of rows of a unit enters anywhere, since they depend on the data set that is to be protected. A client without
units draws nothing, takes no step and spends nothing.
"""

import math

import numpy as np

from fedsim.seeds import Draw


def sampling_rate(units: int, batch_size: int) -> float:
    """q = min(1, B / n), the probability with which each unit enters a batch; 0 where there is none."""
    return min(1.0, batch_size / units) if units else 0.0


def expected_batch(units: int, batch_size: int) -> float:
    """q n, the mean number of units in a batch and the divisor of every private gradient."""
    return sampling_rate(units, batch_size) * units


def declared_units(rate: float, divisor: float) -> int:
    """n, from q and q n as the two functions above give them; exact as long as floats hold n."""
    return round(divisor / rate) if rate else 0


def steps_of(units: int, batch_size: int, epochs: int) -> int:
    """Private steps of `epochs` passes over `units` units, ceil(n / B) each."""
    return epochs * math.ceil(units / batch_size)


def steps_of_pass(units: int, batch_size: int, own: int | None, epochs: int, steps: int | None) -> int:
    """Private steps of one call of `local.train`.

    Args:
        units: n.
        batch_size: B.
        own: epochs that the strategy asks for in this call; None leaves it to the scenario.
        epochs, steps: the scenario's; steps before epochs, where there are units.
    """
    if own is None and steps is not None:
        return steps if units else 0
    return steps_of(units, batch_size, epochs if own is None else own)


def poisson_batch(units: int, rate: float, draw: Draw) -> np.ndarray:
    """Draw every unit independently with probability `rate`.

    Args:
        units: n.
        rate: q in [0, 1]; 1 draws every unit.
        draw: from `seeds`.

    Returns:
        Sorted unit numbers, int64; possibly none.
    """
    return np.flatnonzero(draw.random(units) < rate)


def rows_of(drawn: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of drawn units, and whose each is.

    Args:
        drawn: [U] sorted unit numbers.
        units: [n] the unit of every row.

    Returns:
        [B] sorted row numbers, and [B] for each the place of its unit in `drawn`.
    """
    rows = np.flatnonzero(np.isin(units, drawn))
    return rows, np.searchsorted(drawn, units[rows])
