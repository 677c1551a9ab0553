"""Sketches of updates: a few numbers each, in which clients that learn alike lie close together.

A sketch is a random projection: every coordinate has a random sign and adds to one of SIZE sums. Inner products of
sketches are those of the updates in expectation (Charikar, Chen and Farach-Colton 2002, "Finding frequent items in
data streams"; the sums here are dealt out in turn).
"""

import torch
from torch import Tensor

from fedsim import seeds

SIZE = 32


def due(round: int) -> bool:
    """Whether updates of a round are sketched: the first, every 5th below 100, every 50th below 1,000, and so on.

    It depends on no later round, so that a run that is made longer is the longer run.
    """
    return round == 1 or round % _step(round) == 0


def count(rounds: int) -> int:
    """In how many of the first so many rounds updates are sketched."""
    found, first = 1, 1
    while first <= rounds:
        step, last = _step(first), min(rounds, max(10 * first, 100) - 1)
        found += last // step - (first - 1) // step
        first = last + 1
    return found


def _step(round: int) -> int:
    return 5 * int(10 ** max(0, len(str(round)) - 2))


class Sketcher:
    """Makes sketches of updates of one size; two of the same seed make the same."""

    def __init__(self, seed: int, size: int) -> None:
        self._size, whole = size, -(-size // SIZE) * SIZE
        draws = seeds.numpy_generator(seed, "sketch").integers(0, 2, size=whole, dtype="int8")
        self._signs = torch.from_numpy(draws).float().mul_(2).sub_(1)
        self._signed = torch.zeros(whole)

    def __call__(self, update: Tensor) -> list[float]:
        """[SIZE] of an update [D]."""
        torch.mul(update, self._signs[: self._size], out=self._signed[: self._size])
        sums: list[float] = self._signed.view(-1, SIZE).sum(dim=0).tolist()
        return sums
