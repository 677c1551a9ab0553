"""What leaves a node: every field of every answer, and what protects it. Nothing else leaves.

The list is made of the job that a node works on (its vectors, statistics and promise), and the node filters each answer
by it (`filtered`): what may not leave is taken out, and an answer that holds what the list does not know is not sent at
all. With privacy only the vector that the promise covers and declared numbers leave: no loss, no norm, and no seconds,
since how long work takes depends on the rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from flwr.app import RecordDict

from fedsim import metrics
from fedsim.arrays import opened
from fedsim.data.schema import Columns
from fedsim.errors import FedsimError, Refused, one_line
from fedsim.local import Work
from fedsim.metrics import EvaluatedModel
from fedsim.parameters import to_record
from fedsim.privacy.accountant import rounded_up
from fedsim.privacy.plan import Plan

Kind = Literal["describe", "train", "evaluate", "statistics"]
Shape = tuple[int, ...]
"""() of one value, (-1,) of any number of them."""

NOTHING = "nothing"
DECLARED = "nothing: declared once, and taken as public"
_MADE_PUBLIC = "nothing: it follows from declared numbers alone"
_COUNTED = "nothing: it counts the charges of all runs at the node"
_SOME = "for some rows 1, for none 0"
_NEUTRAL = "the work failed; the node's owner sees why in the log"
_BYTES: Mapping[str, int] = {"int": 8, "float": 8, "bool": 1}
_PLAIN: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "text": (str,)}


class Field(NamedTuple):
    """One thing that leaves a node.

    Attributes:
        message: which it answers.
        record: of the answer: "update", "metrics", ...; "error" where the answer is a failure.
        name: in that record.
        type: of its values: "int", "float", "bool", "text", or NumPy's name for an array's.
        shape: of it.
        often: how often it leaves.
        protection: by what.
    """

    message: Kind
    record: str
    name: str
    type: str
    shape: Shape
    often: str
    protection: str

    @property
    def bytes(self) -> int | None:
        """Of its values; None for texts and lists of any length."""
        size = _BYTES.get(self.type) or (None if self.type == "text" else np.dtype(self.type).itemsize)
        if size is None or any(length < 0 for length in self.shape):
            return None
        return int(size * np.prod(self.shape, dtype=np.int64))

    @property
    def path(self) -> str:
        """Record and name."""
        return f"{self.record}/{self.name}"


def _once(record: str, name: str, kind: str, shape: Shape = ()) -> Field:
    return Field("describe", record, name, kind, shape, "once", DECLARED)


DESCRIBED: tuple[Field, ...] = (
    *(_once("description", name, "text") for name in ("fedsim", "flwr", "task", "x-type", "y-type", "group-name")),
    *(_once("description", name, "int", (-1,)) for name in ("x-shape", "y-shape")),
    _once("description", "classes", "text", (-1,)),
    _once("description", "preprocessing", "text"),
    _once("description", "vocabulary", "int"),
    _once("description", "metrics", "bool"),
    *(_once("metrics", f"rows-{part}", "int") for part in ("train", "validation", "test")),
    _once("metrics", "units", "int"),
    Field("describe", "description", "counter", "int", (), "once", _COUNTED),
)
"""What a node says of its rows before round 1, in every run; counts are 1 or 0 where its owner lets none leave."""
WITHHELD: Mapping[Kind, Mapping[str, str]] = {
    "train": {
        "loss": "it depends on the rows",
        "norm": "the coordinator measures it on what it gets",
        "seconds": "how long work takes depends on the rows",
        "num-examples": "it counts the rows",
        "steps": "they follow from the number of rows",
    }
}
"""What work gives besides, and why it stays at the node: figures under privacy, or where its owner lets no metrics
leave, and counts where its owner lets no counts leave."""
_FIGURES, _COUNTS = ("loss", "norm", "seconds"), ("num-examples", "steps")
WITHHELD_COUNT = -1
"""In place of how often a category is there, where that is of too few rows."""
_SUMS = "no epsilon: sums over enough train rows, told once"
SEEN: tuple[str, ...] = (
    "that an answer comes, and when: whether work fails and how long it takes may depend on the rows, and no epsilon "
    "covers either",
    "the node's address, its key's fingerprint, and Flower's own numbers on each message",
)
"""What a coordinator sees besides answers."""


def fields(work: Work, *, metrics: bool, counts: bool = True) -> tuple[Field, ...]:
    """Every field that leaves a node in a run.

    Args:
        work: of the job, on the node's rows or on a simulation's.
        metrics: whether the owner lets losses and metrics leave, where no privacy is promised.
        counts: whether the owner lets counts of rows leave.

    Raises:
        Refused: the strategy cannot do without figures that the owner keeps.
    """
    plan, scalars = work.job.privacy, work.algorithm.scalars
    if scalars and plan is None and not metrics:
        names = ", ".join(scalars)
        raise Refused(
            f"rules.toml metrics: the owner lets no figures of the rows leave, and strategy {work.algorithm.name!r} "
            f"needs each node's {names}"
        )
    shown = metrics and plan is None
    kept = () if counts else ("metrics",)
    return (
        *(field._replace(protection=_SOME) if field.record in kept else field for field in DESCRIBED),
        *_training(work, shown, counts),
        *(_evaluation(work) if shown and work.job.scenario.evaluate.clients_every else ()),
    )


def _training(work: Work, shown: bool, counts: bool) -> Iterable[Field]:
    """What answers a message to train."""
    plan, often = work.job.privacy, "each round"
    values, kind = to_record(work.layout, work.initial), str(work.initial.vector.numpy().dtype)
    if work.algorithm.flower is not None:  # Flower's own strategies take models
        for name, array in values.items():
            yield Field("train", "arrays", name, array.dtype, tuple(array.shape), often, protection(plan))
    else:
        yield Field("train", "update", "vector", kind, (work.contribution_size,), often, protection(plan))
    for name, by in zip(_COUNTS, (DECLARED, _MADE_PUBLIC), strict=True):
        if counts:
            yield Field("train", "metrics", name, "int", (), often, by)
    yield Field("train", "metrics", "summed", "int", (), often, _MADE_PUBLIC)
    yield Field("train", "metrics", "counter", "int", (), often, _COUNTED)
    for name in work.algorithm.scalars:
        by = NOTHING if plan is None else f"{NOTHING}: {work.algorithm.private}"
        yield Field("train", "metrics", f"scalar/{name}", "float", (), often, by)
    if shown:
        for name in _FIGURES:
            yield Field("train", "metrics", name, "float", (), often, NOTHING)
    by = f"{NOTHING}: it can quote the rows" if shown else "fixed words, whatever has failed"
    yield Field("train", "error", "reason", "text", (), "if it fails", by)


def _evaluation(work: Work) -> Iterable[Field]:
    """What answers a message to measure the model."""
    every = work.job.scenario.evaluate.clients_every
    often = "each round" if every == 1 else f"every {every} rounds"
    models: list[EvaluatedModel] = ["global", "personal"] if work.algorithm.personalised else ["global"]
    for model in models:
        for name, sums in metrics.to_record(work.problem.zeros(), model).items():
            assert isinstance(sums, list)
            yield Field("evaluate", "metrics", name, "float", (len(sums),), often, NOTHING)
    yield Field("evaluate", "metrics", "num-examples", "int", (), often, DECLARED)
    yield Field("evaluate", "metrics", "seconds", "float", (), often, NOTHING)
    yield Field("evaluate", "metrics", "counter", "int", (), often, _COUNTED)
    yield Field("evaluate", "error", "reason", "text", (), "if it fails", f"{NOTHING}: it can quote the rows")


def summaries(columns: Columns) -> tuple[Field, ...]:
    """What a node tells of a table's columns, where its owner answers `fedsim deploy statistics`.

    Args:
        columns: of which statistics are told, as `node.summing.summarised` finds them.
    """
    found: list[Field] = []
    for name, column in columns.items():
        kinds: Mapping[str, tuple[str, Shape]] = {
            f"number/{name}/count": ("int", ()),
            f"number/{name}/mean": ("float", ()),
            f"number/{name}/variance": ("float", ()),
        }
        if column.categories is not None:
            kinds = {f"category/{name}": ("int", (len(column.categories),))}
        found += [
            Field("statistics", "metrics", key, kind, shape, "once", _SUMS) for key, (kind, shape) in kinds.items()
        ]
    return (*found, Field("statistics", "metrics", "counter", "int", (), "once", _COUNTED))


def protection(plan: Plan | None) -> str:
    """What protects a node's update."""
    if plan is None:
        return NOTHING
    promise = f"epsilon {rounded_up(plan.epsilon)} at delta {plan.delta:g} ({plan.level} level)"
    if plan.level == "client":
        return f"the coordinator, whom the owner trusts with it: it clips and noises the sum, {promise}"
    what = "each step's gradients" if plan.level == "example" else "the vector"
    return f"{promise}: {what} clipped to {plan.clip:g} and noised here, {plan.noise_multiplier:.4g} times that"


def filtered(content: RecordDict, message: Kind, listed: Sequence[Field]) -> RecordDict:
    """What may leave of an answer.

    Args:
        content: of the answer.
        message: that it answers.
        listed: by `fields`, or `DESCRIBED`.

    Returns:
        The same without what is withheld.

    Raises:
        Refused: it holds what is neither listed nor known to be withheld, or holds it in another form.
    """
    known = {(field.record, field.name): field for field in listed if field.message == message}
    withheld = WITHHELD.get(message, {})
    kept = RecordDict()
    for record, values in content.items():
        if record not in {of for of, _ in known}:
            raise Refused(f"the answer has a record {record!r} that is not on the list of what leaves; it was not sent")
        here: Any = type(values)()
        for name, value in values.items():
            field = known.get((record, name))
            if field is None and record == "metrics" and name in withheld:
                continue
            if field is None or not _fits(field, value):
                form = "" if field is None else " in this form"
                raise Refused(f"the answer's {record}/{name} is not on the list of what leaves{form}; it was not sent")
            here[name] = value
        kept[record] = here
    return kept


def said(error: BaseException, listed: Sequence[Field]) -> str:
    """What may be told of a failure of the work itself.

    Its own words can quote rows, so they leave where losses do; a refusal's are about what was asked.

    Args:
        error: that ended the work.
        listed: by `fields`.
    """
    if isinstance(error, Refused):
        return str(error)
    if not any(field.path == "metrics/loss" for field in listed):
        return _NEUTRAL
    return str(error if isinstance(error, FedsimError) else FedsimError(one_line(error)))


def _fits(field: Field, value: Any) -> bool:
    """Whether a value is of its field's type and shape."""
    if field.type not in _PLAIN:
        values = opened(value) if hasattr(value, "stype") else None
        return values is not None and (str(values.dtype), tuple(values.shape)) == (field.type, field.shape)
    if not field.shape:
        return type(value) in _PLAIN[field.type]
    length = field.shape[0]
    if not isinstance(value, list) or (length >= 0 and len(value) != length):
        return False
    return all(type(each) in _PLAIN[field.type] for each in value)
