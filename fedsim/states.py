"""Vectors that clients keep between rounds.

A client's new state is pending until a later message names its round as accepted; then it is the client's
state. If another round is named, the pending one was lost and the older holds. The same rule serves a
simulated client and a deployed one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from torch import Tensor

from fedsim.parameters import encode, view

State = Mapping[str, Tensor]


class Kept(NamedTuple):
    """A state and the round that made it."""

    round: int
    state: State


class ClientStates:
    """States of simulated clients, in memory."""

    def __init__(self) -> None:
        self._accepted: dict[int, Kept] = {}
        self._pending: dict[int, Kept] = {}

    def get(self, client: int, accepted_round: int) -> State | None:
        """The client's state after `accepted_round` (0: it has never been accepted), or None before its first."""
        pending = self._pending.pop(client, None)
        if pending is not None and pending.round == accepted_round:
            self._accepted[client] = pending
        kept = self._accepted.get(client)
        return kept.state if kept is not None else None

    def put(self, client: int, round: int, state: State) -> None:
        """Keep a new state until it is known whether its round was accepted."""
        self._pending[client] = Kept(round, state)


class ContextStates:
    """A client's vectors in its own Flower Context, under the same rule: in Flower's simulation, and deployed."""

    def __init__(self, context: Context) -> None:
        self._records = context.state

    def get(self, client: int, accepted_round: int) -> State | None:
        """The state after `accepted_round`, or None before the client's first accepted round."""
        pending = self._kept("pending")
        if pending is not None and pending.round == accepted_round:
            self._keep("accepted", pending)
        self._records.pop("pending", None)
        self._records.pop("pending-round", None)
        accepted = self._kept("accepted")
        return accepted.state if accepted is not None else None

    def put(self, client: int, round: int, state: State) -> None:
        """Keep a new state until it is known whether its round was accepted."""
        if state:
            self._keep("pending", Kept(round, state))

    def _kept(self, name: str) -> Kept | None:
        if name not in self._records:
            return None
        arrays = self._records.array_records[name]
        state = {key: torch.from_numpy(view(array).copy()) for key, array in arrays.items()}
        return Kept(int(self._records.config_records[f"{name}-round"]["round"]), state)  # type: ignore[arg-type]

    def _keep(self, name: str, kept: Kept) -> None:
        self._records[name] = ArrayRecord({key: encode(vector.numpy()) for key, vector in kept.state.items()})
        self._records[f"{name}-round"] = ConfigRecord({"round": kept.round})
