"""Vectors that clients keep between rounds.

A client's new state is pending until a later message names its round as accepted; then it is the client's
state. If another round is named, the pending one was lost and the older holds. The same rule serves a
simulated client and a deployed one.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

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
