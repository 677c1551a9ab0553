"""Defence of the server: what nodes answer is checked before anything of it counts.

A node is somebody else's machine. Whatever it sends, the round goes on: a reply that is not exactly what was asked
for is that node's failure. What a sound reply says about itself counts only where it cannot be known here: rows are
those that the node has declared, and the norm is measured.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedsim import metrics
from fedsim.arrays import opened, recorded, view
from fedsim.data.federation import Part
from fedsim.errors import ClientError
from fedsim.grid import setting
from fedsim.local import Work
from fedsim.metrics import EvaluatedModel
from fedsim.parameters import is_finite, to_record
from fedsim.replies import arrays_of
from fedsim.worker import PARTS, Figure

COUNTER = "counter"
"""Under which a reply tells how far the node's ledger has counted."""
_LARGEST = 1e30  # of any figure: sums of a few of them still are numbers
_LARGEST_COUNT = 2**62
_LONGEST = 300


class Unsound(ClientError):
    """A reply that does not count, and why."""


@dataclass(frozen=True)
class Expected:
    """What sound replies of a run hold.

    Attributes:
        update: type and shape of a contribution.
        model: type and shape of every array of the model by name.
        scalars: the algorithm's.
        statistics: length of every sum that a model is measured by.
        sizes: [K] declared rows of each part.
        steps: [K] that clients take in a round, where they do not say it.
    """

    update: tuple[str, tuple[int, ...]]
    model: Mapping[str, tuple[str, tuple[int, ...]]]
    scalars: tuple[str, ...]
    statistics: Mapping[str, int]
    sizes: Mapping[Part, np.ndarray]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, work: Work) -> "Expected":
        """What replies in a run of this work hold."""
        kind = str(work.initial.vector.numpy().dtype)
        arrays = to_record(work.layout, work.initial)
        return cls(
            update=(kind, (work.contribution_size,)),
            model={name: (array.dtype, tuple(array.shape)) for name, array in arrays.items()},
            scalars=tuple(work.algorithm.scalars),
            statistics={name: len(values) for name, values in work.problem.zeros().items()},
            sizes={part: work.federation.sizes(part) for part in PARTS.values()},
            steps=tuple(work.job.local_steps(client) for client in range(work.federation.clients)),
        )

    def content(self, message: Message, number: int, reply: Message) -> RecordDict:
        """What counts of a reply: its arrays as they are, its figures as far as they are sound.

        Args:
            message: that it answers.
            number: the client's.
            reply: as it came, without an error.

        Raises:
            Unsound: it is not what was asked for, in one line.
        """
        try:
            return (
                self._training(message, number, reply.content)
                if _trains(message)
                else self._measured(message, number, reply.content)
            )
        except Unsound:
            raise
        except Exception as error:  # a reply may be made of anything
            raise Unsound(f"the reply cannot be read ({type(error).__name__})") from error

    def _training(self, message: Message, number: int, content: RecordDict) -> RecordDict:
        name = "update" if setting(message, "reply", "model") == "update" else "arrays"
        figures = _figures(content, {name})
        record = content[name]
        if not isinstance(record, ArrayRecord):
            raise Unsound(f"the reply's {name} are no arrays")
        wanted = {"vector": self.update} if name == "update" else self.model
        values = _arrays(record, wanted)
        known = {"num-examples", "loss", "norm", "steps", "seconds", "summed", COUNTER}
        told = _numbers(figures, known | {f"scalar/{scalar}" for scalar in self.scalars})
        if absent := [scalar for scalar in self.scalars if f"scalar/{scalar}" not in told]:
            raise Unsound(f"the reply has no scalar/{absent[0]}")
        if told.get("summed", 0):
            raise Unsound("the reply says that it is a sum of several clients'")
        kept: dict[str, Figure] = {
            "num-examples": self._declared(told, number, "train"),
            "loss": told.get("loss", math.nan),
            "norm": _norm(values, {} if name == "update" else arrays_of(message, "arrays")),
            "steps": _count(told.get("steps", self.steps[number]), "steps"),
            "seconds": max(0.0, told.get("seconds", 0.0)),
            "summed": 0,
            **{f"scalar/{scalar}": told[f"scalar/{scalar}"] for scalar in self.scalars},
        }
        return RecordDict({name: recorded(values), "metrics": MetricRecord(kept)})

    def _measured(self, message: Message, number: int, content: RecordDict) -> RecordDict:
        figures = _figures(content, set())
        part = PARTS[str(setting(message, "part", "validation"))]
        models: list[EvaluatedModel] = ["global", *(["personal"] if setting(message, "personal", False) else [])]  # type: ignore[list-item]
        sums = {name: length for model in models for name, length in self._lengths(model).items()}
        told = _numbers(
            {name: value for name, value in figures.items() if name not in sums}, {"num-examples", "seconds", COUNTER}
        )
        kept: dict[str, Figure] = {"num-examples": self._declared(told, number, part)}
        kept["seconds"] = max(0.0, told.get("seconds", 0.0))
        for name, length in sums.items():
            kept[name] = _sum(figures, name, length)
        for model in models:
            rows = metrics.from_record(MetricRecord({**kept}), model).get("rows")
            if rows is not None and rows.tolist() != [float(self.sizes[part][number])]:
                raise Unsound(f"the reply counts {rows.tolist()} rows, {self.sizes[part][number]} are declared")
        return RecordDict({"metrics": MetricRecord(kept)})

    def _lengths(self, model: EvaluatedModel) -> dict[str, int]:
        """Length of every sum under the key that it travels by."""
        sums = {name: np.zeros(length) for name, length in self.statistics.items()}
        return {key: len(values) for key, values in metrics.to_record(sums, model).items() if isinstance(values, list)}

    def _declared(self, told: Mapping[str, float], number: int, part: Part) -> int:
        """Rows that the node has declared; a reply that says another number is not sound."""
        rows = int(self.sizes[part][number])
        if told.get("num-examples", rows) != rows:
            raise Unsound(f"the reply says num-examples = {told['num-examples']:.6g}, {rows} are declared")
        return rows


def counter_of(reply: Message) -> int | None:
    """How far the node's ledger has counted, where a reply says so in a form that can be believed."""
    try:
        value = reply.content["metrics"][COUNTER]
    except Exception:
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_COUNT else None


def plain(text: object) -> str:
    """What a node says, as one short printable line."""
    shown = text if isinstance(text, str) else ""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in shown[: 4 * _LONGEST]).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _trains(message: Message) -> bool:
    return message.metadata.message_type == "train"


def _figures(content: RecordDict, others: Collection[str]) -> Mapping[str, object]:
    """The metrics of a reply that has these other records and no more."""
    if odd := sorted(set(content) ^ {"metrics", *others}):
        raise Unsound(
            f"the reply has {'no' if odd[0] in {'metrics', *others} else 'an unknown'} record {plain(odd[0])}"
        )
    figures = content["metrics"]
    if not isinstance(figures, MetricRecord):
        raise Unsound("the reply's metrics are no metrics")
    return figures


def _numbers(figures: Mapping[str, object], known: Collection[str]) -> dict[str, float]:
    """Figures that are one finite number each, of which none may be unknown."""
    told: dict[str, float] = {}
    for name, value in figures.items():
        if name not in known:
            raise Unsound(f"the reply's metrics have an unknown {plain(name)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise Unsound(f"the reply's {name} is not a finite number")
        told[name] = value
    return told


def _count(value: float, name: str) -> int:
    if not 0 <= value < _LARGEST_COUNT or value != int(value):
        raise Unsound(f"the reply's {name} is no count")
    return int(value)


def _sum(figures: Mapping[str, object], name: str, length: int) -> list[float]:
    """A statistic of the right length, of finite values."""
    value = figures.get(name)
    if not isinstance(value, list) or len(value) != length:
        raise Unsound(f"the reply's {name} is no list of {length} numbers")
    if not all(isinstance(each, int | float) and abs(each) <= _LARGEST for each in value):
        raise Unsound(f"the reply's {name} is not finite")
    return [float(each) for each in value]


def _arrays(record: ArrayRecord, wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Array]:
    """The arrays of a record that have exactly these names, types and shapes, and finite values."""
    if odd := sorted(set(record) ^ set(wanted)):
        raise Unsound(f"the reply has {'no' if odd[0] in wanted else 'an unknown'} array {plain(odd[0])}")
    found: dict[str, Array] = {}
    for name, (kind, shape) in wanted.items():
        values = opened(record[name])
        if values is None:
            raise Unsound(f"the reply's array {name} is not what its header says")
        if (values.dtype, tuple(values.shape)) != (kind, shape):
            what = plain(f"{values.dtype} {list(values.shape)}")
            raise Unsound(f"the reply's array {name} is {what}, not {kind} {list(shape)}")
        if not is_finite(torch.from_numpy(values.values)):
            raise Unsound(f"the reply's array {name} is not finite")
        found[name] = values
    return found


def _norm(values: Mapping[str, Array], start: Mapping[str, Array]) -> float:
    """Euclidean norm of an update, or of what a model became of `start`; in float64, where no square overflows."""
    total = 0.0
    for name, array in values.items():
        change = view(array).astype(np.float64).ravel()
        if name in start:
            change -= view(start[name]).ravel()
        total += float(change @ change)
    return math.sqrt(total)
