"""What a grid sees of an app's run: batches of messages as they are answered, and rounds made of them.

Flower's rounds are the ServerApp's own affair. Here a batch with train messages begins a round, unless nothing but
queries came before it; so does a batch that asks for evaluation again. Under Flower's strategies that is their round.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from fedsim.apps.grid import Batch
from fedsim.arrays import opened
from fedsim.grid import client_number
from fedsim.records import ClientRow, Phase, RoundRecord, cohort_digest

WEIGHTS = ("num-examples", "num_examples")
"""Metrics by which clients are weighted; the first is that of Flower's strategies."""
PLACES: Mapping[str, str] = {"train": "trained/client-train", "evaluate": "global/client-validation"}
"""How the full names of clients' metrics begin, by what clients were asked for."""
CENTRAL = "global/central-validation"
"""The same for what the ServerApp measures."""


@dataclass
class _Round:
    """A round that goes on."""

    number: int
    began: float
    phases: set[str] = field(default_factory=set)
    rows: dict[tuple[int, str], ClientRow] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)


class History:
    """Batches in, rounds out.

    Attributes:
        arrays: the last that were sent, of the first message; at the end those that the run came to.
        messages, failures: so far.
        metrics: of the last round that has any, by full name.
        rounds: closed so far.
    """

    def __init__(self, commit: Callable[[RoundRecord], None]) -> None:
        """Nothing has happened; `commit` is given every round that is over."""
        self._commit = commit
        self._open: _Round | None = None
        self._began = time.perf_counter()
        self._digest: tuple[ArrayRecord, str] | None = None
        self.arrays: ArrayRecord | None = None
        self.rounds, self.messages, self.failures = 0, 0, 0
        self.metrics: dict[str, float] = {}

    def sent(self, messages: Sequence[Message]) -> None:
        """Messages go out; a round that they do not belong to is over."""
        found = (record for message in messages[:1] for record in message.content.values())
        self.arrays = next((record for record in found if isinstance(record, ArrayRecord) and record), self.arrays)
        if self._open is not None and self._over({_phase(message) for message in messages}):
            self.close()

    def _over(self, phases: set[str]) -> bool:
        assert self._open is not None
        if "train" in phases:
            return bool(self._open.phases - {"query"})
        return "evaluate" in phases and "evaluate" in self._open.phases

    def received(self, batch: Batch) -> dict[str, float]:
        """A batch is answered.

        Returns:
            Means over its sound replies of their scalar metrics, by name.
        """
        if self._open is None:
            self._open = _Round(self.rounds + 1, self._began)
        round, sizes = self._open, dict[int, int]()
        self.messages += len(batch.messages)
        self.failures += sum(reply.has_error() for reply in batch.replies)
        for message, reply, seconds in zip(batch.messages, batch.replies, batch.seconds, strict=True):
            phase = _phase(message)
            round.phases.add(phase)
            round.asked |= {client_number(message)} if phase == "train" else set()
            if phase in PLACES:
                row = _row(round.number, "train" if phase == "train" else "evaluate", message, reply, seconds, sizes)
                round.rows[row.client, row.phase] = row
        for phase, place in PLACES.items():
            within = [reply for reply in batch.replies if reply.has_content() and _phase(reply) == phase]
            round.metrics |= {f"{place}/rows/{name}": value for name, value in means(within).items()}
        return means(reply for reply in batch.replies if reply.has_content())

    def measured(self, metrics: Mapping[str, float], arrays: ArrayRecord) -> None:
        """The ServerApp has measured a model after a round."""
        self.arrays = arrays
        if self._open is not None:
            self._open.metrics |= {f"{CENTRAL}/rows/{name}": value for name, value in metrics.items()}

    def close(self) -> None:
        """The round that goes on, if any, is over; the arrays are what came of it."""
        round, self._open, now = self._open, None, time.perf_counter()
        if round is None:
            return
        rows = [round.rows[key] for key in sorted(round.rows)]
        failed = sum(row.status == "failed" for row in rows if row.phase == "train")
        self.rounds, self._began = round.number, now
        self.metrics = round.metrics or self.metrics
        self._commit(
            RoundRecord(
                number=round.number,
                seconds=now - round.began,
                cohort=len(round.asked),
                failed=failed,
                metrics=round.metrics,
                epsilon=None,
                fingerprint=self.fingerprint,
                clients=rows,
                cohort_sha256=cohort_digest(round.asked),
            )
        )

    @property
    def fingerprint(self) -> str:
        """Of the arrays; they are hashed once."""
        if self.arrays is None:
            return fingerprint(ArrayRecord())
        if self._digest is None or self._digest[0] is not self.arrays:
            self._digest = self.arrays, fingerprint(self.arrays)
        return self._digest[1]


def fingerprint(arrays: ArrayRecord) -> str:
    """SHA-256 of the values of all arrays in the record's order, little-endian; of the bytes of others as they are."""
    digest = hashlib.sha256()
    for array in arrays.values():
        values = values_of(array)
        digest.update(array.data if values is None else _little(values))
    return digest.hexdigest()


def values_of(array: Array) -> np.ndarray | None:
    """The values of an array that holds numbers; None for anything else."""
    found = opened(array)
    return None if found is None else found.values


def _little(values: np.ndarray) -> memoryview:
    plain = values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)
    return plain.reshape(-1).view(np.uint8).data


def means(replies: Iterable[Message]) -> dict[str, float]:
    """Means of the scalar metrics of replies, over those that have one; weighted by examples where all tell them."""
    told = [_scalars(reply) for reply in replies]
    weights = [next((each[name] for name in WEIGHTS if name in each), -1.0) for each in told]
    if min(weights, default=-1.0) < 0 or not sum(weights):
        weights = [1.0] * len(told)
    sums: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for each, weight in zip(told, weights, strict=True):
        for name, value in each.items():
            sums[name] += value * weight  # type: ignore[assignment]
            totals[name] += weight  # type: ignore[assignment]
    return {name: sums[name] / totals[name] for name in sums if name not in WEIGHTS and totals[name]}


def scalars(record: MetricRecord) -> dict[str, float]:
    """The single numbers among metrics."""
    return {name: float(value) for name, value in record.items() if isinstance(value, int | float)}


def _scalars(reply: Message) -> dict[str, float]:
    found: dict[str, float] = {}
    for record in reply.content.values():
        if isinstance(record, MetricRecord):
            found |= scalars(record)
    return found


def _phase(message: Message) -> str:
    """What a message asks for: train, evaluate or query."""
    return message.metadata.message_type.partition(".")[0]


def _row(
    number: int, phase: Phase, message: Message, reply: Message, seconds: float, sizes: dict[int, int]
) -> ClientRow:
    """A client's part; its loss is the first of its metrics whose name ends so."""
    told = _scalars(reply) if reply.has_content() else {}
    examples = next((told.pop(name) for name in WEIGHTS if name in told), 0.0)
    return ClientRow(
        round=number,
        client=client_number(message),
        phase=phase,
        status="ok" if reply.has_content() else "failed",
        rows=int(examples),
        loss=next((value for name, value in told.items() if name.endswith("loss")), None),
        steps=0,
        seconds=seconds,
        bytes_down=_bytes(message, sizes),
        bytes_up=_bytes(reply, sizes) if reply.has_content() else 0,
        error=f"{reply.error.reason} (Flower's error {reply.error.code})" if reply.has_error() else None,
        metrics=told,
    )


def _bytes(message: Message, sizes: dict[int, int]) -> int:
    """Bytes of the values of all arrays; `sizes` has those of records that were met before, by their `id`."""
    total = 0
    for record in message.content.values():
        if isinstance(record, ArrayRecord):
            if id(record) not in sizes:
                sizes[id(record)] = sum(map(_size, record.values()))
            total += sizes[id(record)]
    return total


def _size(array: Array) -> int:
    values = values_of(array)
    return len(array.data) if values is None else values.nbytes
