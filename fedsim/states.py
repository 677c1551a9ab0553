"""Vectors that clients keep between rounds.

A client's new state is pending until a later message names its round as accepted; then it is the client's
state. If another round is named, the pending one was lost and the older holds. The same rule serves a
simulated client and a deployed one.

A simulated client's state is in memory until a checkpoint takes it to the run's folder, and is read from there
when the client is next asked: a million clients cost memory for the cohort alone.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedsim.arrays import encode, view
from fedsim.errors import RunFolderError
from fedsim.records import StateRow

State = Mapping[str, Tensor]
STATES = "states-"
"""How the names of files with clients' states begin."""
_OPEN_FILES = 8
_LONGEST_NUMBER = 18  # digits of a client


class Kept(NamedTuple):
    """A state and the round that made it."""

    round: int
    state: State


def states_file(checkpoint: int) -> str:
    """The name of the file that a checkpoint's new states are in."""
    return f"{STATES}{checkpoint:06d}.safetensors"


def named_states(states: Mapping[int, Kept]) -> dict[str, Tensor]:
    """Clients' states as the tensors of one file, named client/name."""
    return {f"{client}/{name}": value for client, kept in states.items() for name, value in kept.state.items()}


class ClientStates:
    """States of simulated clients.

    Committing takes three steps: `settle` when a round has been accepted, `leave` for what a checkpoint must
    write, `left` when it is on the disk; in between, `get` still gives what is on its way.
    """

    def __init__(self, population: int, folder: Path | None = None) -> None:
        """No client has a state; `folder` holds the checkpoints, without one all stays in memory."""
        self._pending: dict[int, Kept] = {}
        self._fresh: dict[int, Kept] = {}
        self._leaving: dict[int, Kept] = {}
        self._where = np.zeros(population, dtype=np.int64)  # the checkpoint in whose file a state is, 0: in none
        self._made = np.zeros(population, dtype=np.int64)
        self._sizes: dict[int, int] = {}
        self._files = StateFiles(folder) if folder is not None else None

    def get(self, client: int, accepted_round: int) -> State | None:
        """The client's state after `accepted_round` (0: it has never been accepted), or None before its first."""
        pending = self._pending.pop(client, None)
        if pending is not None and pending.round == accepted_round:
            self._fresh[client] = pending
        kept = self._fresh.get(client) or self._leaving.get(client)
        if kept is not None:
            return kept.state
        return self._read(client) if self._where[client] else None

    def put(self, client: int, round: int, state: State) -> None:
        """Keep a new state until it is known whether its round was accepted."""
        self._pending[client] = Kept(round, state)

    def settle(self, accepted: np.ndarray) -> None:
        """Take over pending states that were accepted, and forget the others; [K] last accepted rounds."""
        for client in list(self._pending):
            self.get(client, int(accepted[client]))

    def leave(self) -> Mapping[int, Kept]:
        """The states that the next checkpoint's file must hold, by client.

        Those that changed since the last one, and those that still live in a file of which less than half does:
        so all files together take at most twice what lives.
        """
        moving = {client: Kept(int(self._made[client]), self._read(client)) for client in self._survivors()}
        self._leaving, self._fresh = dict(sorted((moving | self._fresh).items())), {}
        return self._leaving

    def left(self, checkpoint: int) -> None:
        """What `leave` gave is on the disk, in the file of that checkpoint."""
        clients = list(self._leaving)
        self._where[clients] = checkpoint
        self._made[clients] = [kept.round for kept in self._leaving.values()]
        self._sizes[checkpoint] = len(clients)
        self._leaving = {}

    def restore(self, places: Iterable[StateRow]) -> None:
        """Take over what a checkpoint says of where states are.

        Raises:
            RunFolderError: it says so of a client that there is not, or a file has gone or is damaged.
        """
        for place in places:
            if not 0 <= place.client < len(self._where):
                raise RunFolderError(f"the records have a state of client {place.client}, and there is no such client")
            self._where[place.client], self._made[place.client] = place.checkpoint, place.made
        self._sizes = {int(file): self._file().size(int(file)) for file in np.unique(self._where[self._where > 0])}

    def _survivors(self) -> list[int]:
        """Clients whose unchanged state is in a file of which less than half lives on."""
        where = self._where.copy()
        where[list(self._fresh)] = 0
        files, counts = np.unique(where[where > 0], return_counts=True)
        self._sizes = {file: self._sizes[file] for file in files.tolist()}
        if self._files is not None:
            self._files.keep_open(self._sizes)
        living = zip(files.tolist(), counts.tolist(), strict=True)
        sparse = [file for file, count in living if 2 * count < self._sizes[file]]
        clients: list[int] = np.flatnonzero(np.isin(where, sparse)).tolist()
        return clients

    def _read(self, client: int) -> State:
        return self._file().read(int(self._where[client]), client)

    def _file(self) -> "StateFiles":
        assert self._files is not None  # nothing is committed without a folder
        return self._files


class StateFiles:
    """The files of committed states, a few of them open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[int, tuple[Any, dict[int, dict[str, str]]]] = {}

    def read(self, checkpoint: int, client: int) -> State:
        """One client's state, read now.

        Raises:
            RunFolderError: the file has gone, is damaged or is another.
        """
        file, names = self._opened(checkpoint)
        if client not in names:  # without one the client would begin anew, and nobody would know
            path = self._folder / states_file(checkpoint)
            raise RunFolderError(f"{path} does not fit the run: it has no state of client {client}")
        return {name: file.get_tensor(key).clone() for name, key in names[client].items()}

    def size(self, checkpoint: int) -> int:
        """How many clients' states a file holds."""
        return len(self._opened(checkpoint)[1])

    def keep_open(self, living: Container[int]) -> None:
        """Let go of files in which no state lives: one that is open takes its place on the disk when removed, too."""
        self._open = {checkpoint: opened for checkpoint, opened in self._open.items() if checkpoint in living}

    def _opened(self, checkpoint: int) -> tuple[Any, dict[int, dict[str, str]]]:
        if checkpoint not in self._open:
            while len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open)))
            self._open[checkpoint] = _opened(self._folder / states_file(checkpoint))
        return self._open[checkpoint]


def _opened(path: Path) -> tuple[Any, dict[int, dict[str, str]]]:
    """A file of states, and its keys by client and name."""
    try:
        file = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path}: clients' states cannot be read ({error}); fedsim resume goes back") from error
    names: dict[int, dict[str, str]] = {}
    for key in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118  no mapping
        client, _, name = key.partition("/")
        if not client.isdecimal() or len(client) > _LONGEST_NUMBER:
            raise RunFolderError(f"{path} holds no clients' states: {key!r} is not client/name")
        names.setdefault(int(client), {})[name] = key
    return file, names


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
