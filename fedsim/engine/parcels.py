"""What travels between the driver and its workers: messages without their arrays, and arrays as they are mapped.

A model that many messages share is placed once; replies come with their arrays apart, so that they are mapped instead
of pickled.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedsim.grid import Chunk, ChunkResult, client_number, with_content
from fedsim.states import State


class Flat(NamedTuple):
    """An array as Ray maps it without a copy: the bytes that Flower would send, as a NumPy array."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: np.ndarray


class Parcel(NamedTuple):
    """A chunk without its arrays; `records` says by name which of a worker's arrays belong where."""

    messages: list[Message]
    records: list[dict[str, str]]
    states: Mapping[int, Mapping[str, np.ndarray] | None]


class Returned(NamedTuple):
    """A chunk's result with its arrays apart, so that Ray maps them instead of pickling them."""

    replies: list[Message]
    records: list[dict[str, dict[str, Flat]]]
    states: Mapping[int, Mapping[str, np.ndarray]]

    def unpacked(self) -> ChunkResult:
        """The replies with their arrays back in place."""
        for reply, records in zip(self.replies, self.records, strict=True):
            for key, flat in records.items():
                reply.content[key] = unpack(flat)
        return ChunkResult(self.replies, {client: _copied(state) for client, state in self.states.items()})


class Placed(NamedTuple):
    """A record and where it lies in the object store; holding the record keeps its `id` its own."""

    record: ArrayRecord
    ref: Any


class Store:
    """Records in Ray's object store, each placed once for as long as calls go on naming it."""

    def __init__(self, put: Callable[[Any], Any]) -> None:
        """Nothing is placed yet; `put` places a value and gives the reference to it."""
        self._put = put
        self._placed: dict[int, Placed] = {}

    def parcels(self, chunks: Sequence[Chunk]) -> list[Parcel]:
        """Chunks without their arrays; what the last call placed and this one does not name is let go."""
        used: dict[int, Placed] = {}
        parcels = [self._parcel(chunk, used) for chunk in chunks]
        self._placed = used
        return parcels

    @property
    def refs(self) -> dict[str, Any]:
        """What the last call placed or found placed, by the names that its parcels use."""
        return {placed.ref.hex(): placed.ref for placed in self._placed.values()}

    def _parcel(self, chunk: Chunk, used: dict[int, Placed]) -> Parcel:
        messages, records = [], []
        for message in chunk.messages:
            names, content = {}, RecordDict()
            for key, record in message.content.items():
                if isinstance(record, ArrayRecord) and record:  # an empty one is cheaper to pickle
                    placed = used.get(id(record)) or self._placed.get(id(record))
                    used[id(record)] = placed or Placed(record, self._put(pack(record)))
                    names[key] = used[id(record)].ref.hex()
                else:
                    content[key] = record
            messages.append(with_content(message, content))
            records.append(names)
        states = {
            client: arrays_of_state(state) if state is not None else None for client, state in chunk.states.items()
        }
        return Parcel(messages, records, states)


def alone(parcel: Parcel, place: int) -> Parcel:
    """One client of a parcel; instead of a sum it gives its update, and the driver folds as the worker would have."""
    message = parcel.messages[place]
    content, config = RecordDict(dict(message.content)), message.content.get("config")
    if isinstance(config, ConfigRecord) and config.get("reply") == "sum":
        content["config"] = ConfigRecord({**config, "reply": "update"})
    states = {client: state for client, state in parcel.states.items() if client == client_number(message)}
    return Parcel([with_content(message, content)], [parcel.records[place]], states)


def taken_out(reply: Message) -> dict[str, dict[str, Flat]]:
    """A reply's arrays, which it then has no longer."""
    content = {} if reply.has_error() else dict(reply.content.items())
    arrays = {key: pack(record) for key, record in content.items() if isinstance(record, ArrayRecord)}
    for key in arrays:
        del reply.content[key]
    return arrays


def pack(record: ArrayRecord) -> dict[str, Flat]:
    """A record's arrays as they are mapped."""
    return {
        name: Flat(array.dtype, tuple(array.shape), array.stype, np.frombuffer(array.data, dtype=np.uint8))
        for name, array in record.items()
    }


def unpack(flat: Mapping[str, Flat]) -> ArrayRecord:
    """The record of arrays that were mapped."""
    return ArrayRecord(
        {name: Array(each.dtype, each.shape, each.stype, each.data.tobytes()) for name, each in flat.items()}
    )


def arrays_of_state(state: State) -> dict[str, np.ndarray]:
    """A client's vectors as they are mapped."""
    return {name: vector.numpy() for name, vector in state.items()}


def tensors(state: Mapping[str, np.ndarray]) -> State:
    """A client's vectors that were mapped; without a copy."""
    import torch

    return {name: torch.from_numpy(array) for name, array in state.items()}


def _copied(state: Mapping[str, np.ndarray]) -> State:
    """A state that may be kept: what Ray maps would hold its place in the object store."""
    return tensors({name: array.copy() for name, array in state.items()})
