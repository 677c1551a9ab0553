"""What travels between driver and workers: messages as bytes without their arrays, and arrays as they are mapped.

A model that many messages share is placed once; replies come with their arrays apart, so that they are mapped instead
of pickled. A chunk's messages are pickled together, arrays left out: of a cohort of thousands the driver pays a few
microseconds a message, where building a Flower record anew takes tens.
"""

import io
import pickle
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedsim.arrays import Values, opened, recorded
from fedsim.grid import Chunk, ChunkResult, client_number, with_content
from fedsim.states import State

Naming = Callable[[ArrayRecord], Hashable]
"""What a record is called whose arrays travel apart; None for one that stays in its message."""


class Flat(NamedTuple):
    """An array of bytes as Ray maps it without a copy: as a NumPy array."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: np.ndarray


Mapped = Values | Flat
"""An array on its way: Ray maps the memory of either."""


class Parcel(NamedTuple):
    """A chunk: its messages as bytes that name their records, and its clients' states."""

    messages: bytes
    states: Mapping[int, Mapping[str, np.ndarray] | None]

    def opened(self, records: Mapping[str, ArrayRecord]) -> Chunk:
        """The chunk, given a worker's records by name; the states are mapped, not copied."""
        states = {client: tensors(state) if state is not None else None for client, state in self.states.items()}
        return Chunk(_opened(self.messages, records.__getitem__), states)


class Returned(NamedTuple):
    """A chunk's result with its arrays apart, so that Ray maps them instead of pickling them."""

    replies: bytes
    records: list[dict[str, Mapped]]
    states: Mapping[int, Mapping[str, np.ndarray]]
    seconds: Sequence[float]

    @classmethod
    def of(cls, result: ChunkResult) -> "Returned":
        """A result on its way to the driver."""
        records: list[dict[str, Mapped]] = []

        def place(record: ArrayRecord) -> int | None:
            if not record:
                return None
            records.append(pack(record))
            return len(records) - 1

        replies = _packed(result.replies, place)
        states = {client: arrays_of_state(state) for client, state in result.states.items()}
        return cls(replies, records, states, result.seconds)

    def unpacked(self) -> ChunkResult:
        """The replies with their arrays back in place."""
        replies = _opened(self.replies, lambda place: unpack(self.records[place]))
        return ChunkResult(replies, {client: _copied(state) for client, state in self.states.items()}, self.seconds)


class Placed(NamedTuple):
    """A record, what it held, and where that lies in the object store; holding both keeps each `id` its own."""

    record: ArrayRecord
    arrays: Mapping[str, Array]
    ref: Any

    @property
    def current(self) -> bool:
        """Whether the record still holds the same; whoever made it may have put other arrays into it."""
        held = zip(self.record.items(), self.arrays.items(), strict=False)
        return len(self.record) == len(self.arrays) and all(a[0] == b[0] and a[1] is b[1] for a, b in held)


class Store:
    """Records in Ray's object store, each placed once for as long as calls go on naming it."""

    def __init__(self, put: Callable[[Any], Any]) -> None:
        """Nothing is placed yet; `put` places a value and gives the reference to it."""
        self._put = put
        self._placed: dict[int, Placed] = {}

    def parcels(self, chunks: Sequence[Chunk]) -> list[Parcel]:
        """Chunks without their arrays; what the last call placed and this one does not name is let go."""
        used: dict[int, Placed] = {}

        def name(record: ArrayRecord) -> str | None:
            if not record:  # costs less as it is
                return None
            placed = used.get(id(record)) or self._placed.get(id(record))
            if placed is None or not placed.current:
                placed = Placed(record, dict(record.items()), self._put(pack(record)))
            used[id(record)] = placed
            return str(placed.ref.hex())

        parcels = [Parcel(_packed(chunk.messages, name), _states(chunk)) for chunk in chunks]
        self._placed = used
        return parcels

    @property
    def refs(self) -> dict[str, Any]:
        """What the last call placed or found placed, by the names that its parcels use."""
        return {placed.ref.hex(): placed.ref for placed in self._placed.values()}


def alone(parcel: Parcel, place: int) -> Parcel:
    """One client of a parcel; instead of a sum it gives its update, and the driver folds as the worker would have.

    It is told who else was in the chunk, so that in a stack it keeps its place.
    """
    stand_ins: dict[Any, ArrayRecord] = defaultdict(ArrayRecord)
    messages = _opened(parcel.messages, stand_ins.__getitem__)
    message = messages[place]
    names = {id(record): name for name, record in stand_ins.items()}
    config = message.content.get("config")
    if isinstance(config, ConfigRecord):
        reply = {"reply": "update"} if config.get("reply") == "sum" else {}
        told = ConfigRecord({**config, **reply, "beside": [client_number(each) for each in messages]})
        message = with_content(message, RecordDict({**message.content, "config": told}))
    states = {client: state for client, state in parcel.states.items() if client == client_number(message)}
    return Parcel(_packed([message], lambda record: names.get(id(record))), states)


def pack(record: ArrayRecord) -> dict[str, Mapped]:
    """A record's arrays as they are mapped."""
    return {name: opened(array) or _flat(array) for name, array in record.items()}


def unpack(mapped: Mapping[str, Mapped]) -> ArrayRecord:
    """The record of arrays that were mapped."""
    return recorded({name: each if isinstance(each, Values) else _array(each) for name, each in mapped.items()})


def _flat(array: Array) -> Flat:
    return Flat(array.dtype, tuple(array.shape), array.stype, np.frombuffer(array.data, dtype=np.uint8))


def _array(flat: Flat) -> Array:
    return Array(flat.dtype, flat.shape, flat.stype, flat.data.tobytes())


def arrays_of_state(state: State) -> dict[str, np.ndarray]:
    """A client's vectors as they are mapped."""
    return {name: vector.numpy() for name, vector in state.items()}


def tensors(state: Mapping[str, np.ndarray]) -> State:
    """A client's vectors that were mapped; without a copy."""
    import torch

    return {name: torch.from_numpy(array) for name, array in state.items()}


def _states(chunk: Chunk) -> dict[int, dict[str, np.ndarray] | None]:
    return {client: arrays_of_state(state) if state is not None else None for client, state in chunk.states.items()}


def _copied(state: Mapping[str, np.ndarray]) -> State:
    """A state that may be kept: what Ray maps would hold its place in the object store."""
    return tensors({name: array.copy() for name, array in state.items()})


def _record(name: Hashable) -> ArrayRecord:
    """What stands in the bytes of messages for a record of that name; whoever opens them gives the record."""
    raise LookupError(f"record {name} came apart from its message")


def _packed(messages: Sequence[Message], naming: Naming) -> bytes:
    """Messages as bytes, in which a record is its name; it is named once, however many messages share it."""

    def reduced(record: ArrayRecord) -> Any:
        name = naming(record)
        return record.__reduce_ex__(pickle.HIGHEST_PROTOCOL) if name is None else (_record, (name,))

    content = io.BytesIO()
    pickler = pickle.Pickler(content, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = {ArrayRecord: reduced}  # unlike `persistent_id` not asked about every number and text
    pickler.dump(list(messages))
    return content.getvalue()


class _Unpickler(pickle.Unpickler):
    """Reads what `_packed` wrote."""

    def __init__(self, content: bytes, record: Callable[[Any], ArrayRecord]) -> None:
        super().__init__(io.BytesIO(content))
        self._record = record

    def find_class(self, module: str, name: str) -> Any:
        return self._record if (module, name) == (__name__, _record.__name__) else super().find_class(module, name)


def _opened(content: bytes, record: Callable[[Any], ArrayRecord]) -> list[Message]:
    """The messages of which `content` was made, given the record of every name."""
    return cast(list[Message], _Unpickler(content, record).load())
