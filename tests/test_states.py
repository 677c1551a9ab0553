"""A client's state counts once its round was accepted: in memory, on the disk, and in Flower's Context alike.

The oracle is a plain dict of the last accepted values, copied at every checkpoint.
"""

import gc
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fedsim.checkpoints import Snapshot
from fedsim.errors import RunFolderError
from fedsim.parameters import Weights, fingerprint, layout_of
from fedsim.records import RoundRecord, StateRow
from fedsim.runs import Best, RunFolder
from fedsim.states import ClientStates, ContextStates, State, StateFiles, states_file

CLIENTS = 6
LAYOUT = layout_of(nn.Linear(2, 1))
WEIGHTS = Weights(torch.zeros(LAYOUT.size), torch.zeros(0))


class Store(Protocol):
    def get(self, client: int, accepted_round: int) -> State | None: ...

    def put(self, client: int, round: int, state: State) -> None: ...


def stores() -> list[Store]:
    return [ClientStates(CLIENTS), ContextStates(Context(1, 2, {}, RecordDict(), {}))]


def value(state: State | None) -> float | None:
    return None if state is None else float(state["control"])


def state(number: int) -> State:
    return {"control": torch.tensor([float(number)])}


@given(st.lists(st.booleans(), max_size=12))
def test_the_state_is_that_of_the_last_accepted_round(accepted: list[bool]) -> None:
    """Whatever rounds the server gave up in between: a list of accepted rounds is the whole oracle."""
    for store in stores():
        last, expected = 0, None
        for number, kept in enumerate(accepted, start=1):
            assert value(store.get(0, last)) == expected
            store.put(0, number, state(number))
            if kept:
                last, expected = number, float(number)
        assert value(store.get(0, last)) == expected


@pytest.mark.parametrize("place", [0, 1])
def test_before_its_first_round_a_client_has_no_state(place: int) -> None:
    assert stores()[place].get(0, 0) is None


def test_clients_do_not_see_each_other() -> None:
    store = ClientStates(CLIENTS)
    for client in (1, 2):
        store.put(client, 1, state(client))
    assert [value(store.get(client, 1)) for client in (0, 1, 2)] == [None, 1.0, 2.0]


# On the disk: rounds, checkpoints and kills, in any order


class Step(NamedTuple):
    """A round: who trained, whose reply counted, whether it has a checkpoint, whether the process dies after it."""

    trained: frozenset[int]
    accepted: frozenset[int]
    checkpoint: bool
    killed: bool


class Past(NamedTuple):
    """What is true at a checkpoint: every client's value and last accepted round."""

    values: Mapping[int, float]
    accepted: np.ndarray


class Life:
    """A run that only keeps states, beside the dict that says what they should be."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self.folder = RunFolder.create(path, "test", "", [], {}, keep=keep)
        self.checkpoints: dict[int, Past] = {}
        self.number = 0
        self._begin(Past({}, np.zeros(CLIENTS, dtype=np.int64)))

    def _begin(self, past: Past) -> None:
        self.states = ClientStates(CLIENTS, self.folder.checkpoints)
        self.values, self.accepted = dict(past.values), past.accepted.copy()

    def live(self, step: Step) -> None:
        """One round as `rounds.py` does it."""
        self.number += 1
        for client in sorted(step.trained):
            assert value(self.states.get(client, int(self.accepted[client]))) == self.values.get(client)
            made = self.number * 100 + client
            self.states.put(client, self.number, state(made))
            if client in step.accepted:
                self.accepted[client], self.values[client] = self.number, float(made)
        self.states.settle(self.accepted)
        leaving = self.states.leave() if step.checkpoint else None
        self.compare()
        nobody = np.zeros(CLIENTS, dtype=np.int64)
        snapshot = Snapshot(WEIGHTS, {}, nobody, self.accepted.copy())
        record = RoundRecord(self.number, 0.0, 0, 0, {}, None, fingerprint(WEIGHTS), [])
        self.folder.commit(record, LAYOUT, snapshot, Best(0, WEIGHTS), states=leaving)
        if step.checkpoint:
            self.checkpoints[self.number] = Past(dict(self.values), self.accepted.copy())
            self.check_disk()
        if step.killed:
            self.go_back()
        elif step.checkpoint:
            self.states.left(self.number)
        self.compare()

    def go_back(self) -> None:
        """What was in memory alone is lost; the run goes on from its last checkpoint."""
        self.folder.close()
        self.folder = RunFolder(self.path, self.keep)
        restored = self.folder.restore(LAYOUT, CLIENTS, WEIGHTS)
        self.number = max(self.checkpoints, default=0)
        self._begin(self.checkpoints.get(self.number, Past({}, np.zeros(CLIENTS, dtype=np.int64))))
        assert (restored.round if restored is not None else 0) == self.number
        if restored is not None:
            assert (restored.snapshot.accepted == self.accepted).all()
            self.states.restore(restored.places)

    def compare(self) -> None:
        found = [value(self.states.get(client, int(self.accepted[client]))) for client in range(CLIENTS)]
        assert found == [self.values.get(client) for client in range(CLIENTS)]

    def check_disk(self) -> None:
        """At most twice what lives at the oldest kept checkpoint, and what later ones wrote; nothing else is there."""
        kept = sorted(self.checkpoints)[-self.keep :]
        sizes = {name: states_in(self.folder.checkpoints / name) for name in names_in(self.folder.checkpoints)}
        written = sum(sizes.get(states_file(number), 0) for number in kept[1:])
        assert sum(sizes.values()) <= 2 * len(self.checkpoints[kept[0]].values) + written
        assert sum(sizes.values()) <= sum(2 * len(self.checkpoints[number].values) for number in kept)
        files = [name for name in sizes if not name.startswith("states-")]
        assert files == [f"round-{number:06d}.safetensors" for number in kept]


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def states_in(path: Path) -> int:
    """How many clients' states a file holds."""
    if not path.name.startswith("states-"):
        return 0
    with safe_open(path, framework="pt") as file:
        return len(list(file.keys()))


@contextmanager
def life(keep: int) -> Iterator[Life]:
    with tempfile.TemporaryDirectory() as folder:
        living = Life(Path(folder) / "run", keep)
        try:
            yield living
        finally:
            living.folder.close()


some = st.frozensets(st.integers(0, CLIENTS - 1))
steps = st.builds(Step, some, some, st.booleans(), st.sampled_from([True, False, False, False]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.lists(steps, max_size=20))
def test_states_on_the_disk_are_those_of_a_dict(keep: int, rounds: Sequence[Step]) -> None:
    """Through any rounds, checkpoints and kills; and what lies on the disk is bounded by what lives."""
    with life(keep) as living:
        for step in rounds:
            living.live(step)


def test_old_states_move_before_their_file_is_mostly_waste() -> None:
    """Five clients train once, one in every round: its old values must not hold the others' file for ever."""
    everyone, one = frozenset(range(CLIENTS)), frozenset({0})
    with life(keep=1) as living:
        living.live(Step(everyone, everyone, True, False))
        for clients in (frozenset({0, 1, 2, 3}), one, one, frozenset({0, 4}), one, one):
            living.live(Step(clients, everyone, True, False))
        names = names_in(living.folder.checkpoints)
        assert states_file(1) not in names
        assert sum(states_in(living.folder.checkpoints / name) for name in names) <= 2 * CLIENTS


def test_what_is_on_the_disk_is_no_longer_in_memory(tmp_path: Path) -> None:
    """A million clients cost memory for those alone that trained since the last checkpoint."""
    states = ClientStates(CLIENTS, tmp_path)
    vectors = [torch.tensor([float(client)]) for client in range(CLIENTS)]
    for client, vector in enumerate(vectors):
        states.put(client, 1, {"control": vector})
    states.settle(np.ones(CLIENTS, dtype=np.int64))
    save_file(
        {f"{client}/control": kept.state["control"] for client, kept in states.leave().items()}, written(tmp_path)
    )
    states.left(1)
    held = [weakref.ref(vector) for vector in vectors]
    del vectors, vector
    gc.collect()
    assert [each() for each in held] == [None] * CLIENTS
    assert [value(states.get(client, 1)) for client in range(CLIENTS)] == [float(client) for client in range(CLIENTS)]


def written(folder: Path, checkpoint: int = 1) -> Path:
    return folder / states_file(checkpoint)


def test_a_file_in_which_nothing_lives_takes_no_place(tmp_path: Path) -> None:
    """While it is mapped, removing it would not give its blocks back."""
    states = ClientStates(1, tmp_path)
    for number in range(1, 4):
        states.put(0, number, state(number))
        states.settle(np.array([number]))
        save_file(
            {f"{client}/control": kept.state["control"] for client, kept in states.leave().items()},
            written(tmp_path, number),
        )
        states.left(number)
        assert value(states.get(0, number)) == number
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("looks for mapped files in /proc")
    assert [number for number in range(1, 4) if str(written(tmp_path, number)) in maps.read_text()] == [3]


# Files that are not what they should be


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff" * 100, "cannot be read"),
        ({"control": torch.zeros(1)}, "'control' is not client/name"),
        ({f"{'9' * 5000}/control": torch.zeros(1)}, "is not client/name"),
        ({"1/control": torch.zeros(1)}, "has no state of client 0"),
    ],
    ids=["gone", "empty", "garbage", "names", "number", "another"],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    content: bytes | dict[str, torch.Tensor] | None, reason: str, tmp_path: Path
) -> None:
    """A client whose state is not there must not begin anew as if nothing had been."""
    if isinstance(content, bytes):
        written(tmp_path).write_bytes(content)
    elif content is not None:
        save_file(content, written(tmp_path))
    with pytest.raises(RunFolderError, match=reason) as error:
        StateFiles(tmp_path).read(1, 0)
    assert states_file(1) in str(error.value)


@pytest.mark.parametrize("client", [-1, CLIENTS, 2**62])
def test_records_of_a_client_that_there_is_not_are_refused(client: int, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such client"):
        ClientStates(CLIENTS, tmp_path).restore([StateRow(client, 1, 1)])
