"""Canaries: rows or clients that are in the data by the toss of a coin, made to be noticed if they can be.

Rows far from all others (noise six times as strong as the data, under the class that the first model holds for least
likely, windows of drawn bytes) have long gradients in directions of their own: on digits, without noise, an audit
tells all 100 of them apart after 72 steps, and two thirds of the data's own rows under a wrong class. Clients send
vectors that share no coordinate.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.data.corpus import BYTES, PREDICTS_NEXT
from fedsim.data.federation import Federation, Rows
from fedsim.errors import ScenarioError

LEAST_ROWS = 1000
_REACH = 6.0  # standard deviation of a drawn input, over the root mean square of those that there are


class Audited(NamedTuple):
    """One client's rows with canaries behind them.

    Attributes:
        federation: of that client alone.
        canaries: their rows.
        others: how many rows are before them.
        owner: whose these are, for people.
    """

    federation: Federation
    canaries: Rows
    others: int
    owner: str


def coins(seed: int, canaries: int) -> np.ndarray:
    """[m] bool: which canaries are in."""
    return seeds.numpy_generator(seed, "audit coins").random(canaries) < 0.5


Predict = Callable[[np.ndarray], np.ndarray]
"""Inputs [m, ...] -> the first model's logits for them [m, classes]."""


def canary_rows(federation: Federation, canaries: int, seed: int, predict: Predict) -> Rows:
    """Rows as far from all others as they can be, m of them."""
    draws = seeds.numpy_generator(seed, "canaries")
    if federation.task in PREDICTS_NEXT:
        windows = draws.integers(0, BYTES, (canaries, federation.x.shape[1] + 1)).astype(federation.x.dtype)
        return Rows(windows[:, :-1], windows[:, 1:].astype(federation.y.dtype))
    if not federation.labelled or federation.x.dtype != np.float32:
        raise ScenarioError(f"an audit makes rows of numbers with a class, or bytes; {federation.corpus!r} has others")
    reach = _REACH * float(np.sqrt(np.square(federation.at_once("an audit").x).mean()))
    x = draws.normal(0, reach, (canaries, *federation.x.shape[1:])).astype(federation.x.dtype)
    # Under a class that is likely already a row hardly moves the model.
    return Rows(x, predict(x).argmin(1).astype(federation.y.dtype))


def audited_rows(federation: Federation, drawn: Rows) -> Audited:
    """All that an audit of rows declares: the largest client where it is large enough, else all train rows in one.

    Args:
        federation: of the scenario.
        drawn: the canaries.

    Raises:
        ScenarioError: even together they are too few.
    """
    canaries, rows = len(drawn.x), federation.train_rows
    largest = int(rows.argmax())
    if rows.sum() + canaries < LEAST_ROWS:
        raise ScenarioError(
            f"the audit needs {LEAST_ROWS:,} train rows at one client, its canaries among them; the largest has "
            f"{rows[largest]:,} and all together {rows.sum():,}. Take more --canaries, more data, or a smaller "
            "data.split.central"
        )
    alone = rows[largest] + canaries >= LEAST_ROWS
    clients = [largest] if alone else range(federation.clients)
    every = federation.at_once("an audit")
    places = np.concatenate([np.arange(federation.offsets[k], federation.train_ends[k]) for k in clients])
    groups = None
    if federation.groups is not None:  # each canary is a unit of its own
        groups = np.concatenate([federation.groups[places], federation.groups.max() + 1 + np.arange(canaries)])
    count = len(places) + canaries
    one = replace(
        federation,
        x=np.concatenate([every.x[places], drawn.x]),
        y=np.concatenate([every.y[places], drawn.y]),
        offsets=np.array([0, count]),
        train_ends=np.array([count]),
        validation_ends=np.array([count]),
        names=("audited",),
        groups=groups,
    )
    owner = f"client {federation.names[largest]}" if alone else "all clients, pooled"
    return Audited(one, drawn, len(places), owner)


def with_those(audited: Audited, inside: np.ndarray) -> Federation:
    """The federation of the audited client with only the canaries that are in [m] bool."""
    kept = np.concatenate([np.ones(audited.others, dtype=bool), inside])
    ends, whole = np.array([int(kept.sum())]), audited.federation
    return replace(
        whole,
        x=whole.x[kept],
        y=whole.y[kept],
        groups=whole.groups[kept] if whole.groups is not None else None,
        offsets=np.array([0, *ends]),
        train_ends=ends,
        validation_ends=ends,
    )


def with_clients(federation: Federation, inside: np.ndarray) -> Federation:
    """A federation with m more registered clients, the last; one that is in [m] bool can take part, others never do."""
    every = federation.at_once("an audit")
    first = federation.train_ends[federation.train_rows > 0][0] - 1  # a row that canaries have but do not train on
    ends = len(every.x) + np.cumsum(inside)
    extra = int(inside.sum())
    return replace(
        federation,
        x=np.concatenate([every.x, np.repeat(every.x[first : first + 1], extra, axis=0)]),
        y=np.concatenate([every.y, np.repeat(every.y[first : first + 1], extra, axis=0)]),
        groups=np.append(federation.groups, np.repeat(federation.groups[first], extra))
        if federation.groups is not None
        else None,
        offsets=np.concatenate([federation.offsets, ends]),
        train_ends=np.concatenate([federation.train_ends, ends]),
        validation_ends=np.concatenate([federation.validation_ends, ends]),
        names=(*federation.names, *(f"canary {number}" for number in range(len(inside)))),
    )


class Directions:
    """A unit vector for every canary client and round, on coordinates that no other canary has.

    Its signs are drawn anew every round, so that what honest clients send round after round does not add up along it.
    """

    def __init__(self, shared: Tensor, canaries: int, seed: int) -> None:
        """For the coordinates that leave their clients [D] bool, of which there must be one for each canary."""
        self._places = torch.from_numpy(np.flatnonzero(shared.numpy()))
        self._owner = torch.arange(len(self._places)) % canaries
        self._lengths = torch.bincount(self._owner, minlength=canaries).double().sqrt()
        self._size, self._seed = len(shared), seed

    def _signs(self, round: int) -> Tensor:
        drawn = seeds.numpy_generator(self._seed, "canary signs", round).integers(0, 2, len(self._places))
        return torch.from_numpy(2.0 * drawn - 1)

    def of(self, canary: int, round: int) -> Tensor:
        """[D] in float64."""
        own = self._owner == canary
        vector = torch.zeros(self._size, dtype=torch.float64)
        vector[self._places[own]] = self._signs(round)[own] / self._lengths[canary]
        return vector

    def projections(self, vector: Tensor, round: int) -> Tensor:
        """[m] inner products of a vector [D] with every canary's direction."""
        along = vector.double()[self._places] * self._signs(round)
        return torch.zeros(len(self._lengths), dtype=torch.float64).index_add_(0, self._owner, along) / self._lengths
