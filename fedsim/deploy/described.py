"""A federation whose rows lie elsewhere: what nodes say of their data, as the loop needs it.

Nodes declare types, shapes, classes and counts once, before the first round; they must agree on what a model depends
on. The server never has a row of theirs: where one is asked for, to try a model on, it is zeros.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedsim.data.federation import CentralPart, Federation, Rows
from fedsim.deploy.replies import plain
from fedsim.errors import DeployError

_TRIED = 4  # rows of zeros
_MOST_ROWS = 10**12
_KINDS = frozenset({"float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})
_COUNTS = ("rows-train", "rows-validation", "rows-test", "units")


@dataclass(frozen=True)
class Description:
    """What a node says of its rows.

    Attributes:
        fedsim, flwr: its versions.
        x, y: type and shape of a row and of its target.
        task, classes, vocabulary, preprocessing, group_name: as of a `Federation`.
        metrics: whether its owner lets what it measures leave.
        counter: how far its ledger has counted.
        train, validation, test, units: rows of each part, and different groups among the train rows; declared.
    """

    fedsim: str
    flwr: str
    x: tuple[str, tuple[int, ...]]
    y: tuple[str, tuple[int, ...]]
    task: str
    classes: tuple[str, ...]
    vocabulary: int | None
    preprocessing: str
    group_name: str
    metrics: bool
    counter: int
    train: int
    validation: int
    test: int
    units: int

    @classmethod
    def of(cls, content: RecordDict) -> "Description":
        """What a node's answer says.

        Raises:
            DeployError: it says it in another form.
        """
        try:
            return cls._of(content)
        except DeployError:
            raise
        except Exception as error:  # an answer may be made of anything
            raise DeployError(f"its description cannot be read ({type(error).__name__})") from error

    @classmethod
    def _of(cls, content: RecordDict) -> "Description":
        said, counts = content["description"], content["metrics"]
        if not isinstance(said, ConfigRecord) or not isinstance(counts, MetricRecord):
            raise DeployError("its description is of another form")
        texts = ("fedsim", "flwr", "x-type", "y-type", "task", "preprocessing", "group-name")
        if odd := [name for name in texts if not isinstance(said[name], str)]:
            raise DeployError(f"its description says {odd[0]} in another form")
        kinds = [str(said["x-type"]), str(said["y-type"])]
        shapes = [_shape(said[name]) for name in ("x-shape", "y-shape")]
        if odd_kind := [kind for kind in kinds if kind not in _KINDS]:
            raise DeployError(f"its rows are of type {plain(odd_kind[0])}, which no model takes")
        classes, vocabulary, metrics = said["classes"], said["vocabulary"], said["metrics"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise DeployError("its description names classes in another form")
        if not isinstance(json.loads(str(said["preprocessing"])), dict):
            raise DeployError("its description gives preprocessing in another form")
        numbers = [_whole(counts[name], name) for name in _COUNTS]
        size, counter = _whole(vocabulary, "vocabulary", -1), _whole(said["counter"], "counter")
        return cls(
            fedsim=plain(said["fedsim"]),
            flwr=plain(said["flwr"]),
            x=(kinds[0], shapes[0]),
            y=(kinds[1], shapes[1]),
            task=str(said["task"]),
            classes=tuple(map(str, classes)),
            vocabulary=None if size < 0 else size,
            preprocessing=str(said["preprocessing"]),
            group_name=str(said["group-name"]),
            metrics=metrics is True,
            counter=counter,
            train=numbers[0],
            validation=numbers[1],
            test=numbers[2],
            units=numbers[3],
        )

    @classmethod
    def again(cls, values: Mapping[str, Any]) -> "Description":
        """One that was kept as JSON."""
        rows = {name: (values[name][0], tuple(values[name][1])) for name in ("x", "y")}
        return cls(**{**values, **rows, "classes": tuple(values["classes"])})

    @property
    def decisive(self) -> dict[str, Any]:
        """What all nodes must have in common, in words."""
        return {
            "fedsim's version": ".".join(self.fedsim.split(".")[:2]),
            "Flower's version": ".".join(self.flwr.split(".")[:2]),
            "shape of rows": list(self.x[1]),
            "type of rows": self.x[0],
            "shape of targets": list(self.y[1]),
            "type of targets": self.y[0],
            "task": self.task,
            "classes": list(self.classes),
            "vocabulary": self.vocabulary,
            "preprocessing": json.loads(self.preprocessing),
            "name of groups": self.group_name,
        }


def federation_of(
    names: Sequence[str],
    described: Sequence[Description],
    central: Mapping[CentralPart, Rows] | None = None,
    *,
    corpus: str,
    measured: bool,
) -> Federation:
    """The federation of nodes that agree.

    Args:
        names: of the nodes, in the order of their numbers.
        described: what each says.
        central: the server's own validation and test rows, if it has any.
        corpus: what the data are called.
        measured: whether nodes measure models on their own rows; those whose owners keep it to themselves do not.

    Raises:
        DeployError: two nodes disagree, or the server's rows are others.
    """
    first = described[0]
    for name, each in zip(names, described, strict=True):
        for what, value in each.decisive.items():
            if value != first.decisive[what]:
                ours, theirs = plain(str(first.decisive[what])), plain(str(value))
                raise DeployError(f"nodes disagree on {what}: {names[0]} has {ours}, {name} has {theirs}")
    kept = [each.metrics and measured for each in described]
    held = [(each.validation, each.test) if keeps else (0, 0) for each, keeps in zip(described, kept, strict=True)]
    train, validation = np.array([each.train for each in described]), np.array([part[0] for part in held])
    rows = train + validation + np.array([part[1] for part in held])
    offsets = np.concatenate([[0], np.cumsum(rows)])
    blank = _Blank(first.x, first.y)
    sets = _central(central, first)
    digest = hashlib.sha256(json.dumps([list(names), [each.decisive for each in described]]).encode())
    digest.update(rows.tobytes())
    return Federation(
        x=blank(0, 0, 0).x,
        y=blank(0, 0, 0).y,
        offsets=offsets,
        train_ends=offsets[:-1] + train,
        validation_ends=offsets[:-1] + train + validation,
        central=sets,
        names=tuple(names),
        corpus=corpus,
        task=first.task,
        classes=first.classes,
        preprocessing=json.loads(first.preprocessing),
        group_name=first.group_name,
        source=blank,
        known_digest=digest.hexdigest(),
        known_units=np.array([each.units for each in described]),
        vocabulary=first.vocabulary,
    )


@dataclass(frozen=True)
class _Blank:
    """Rows of zeros in the place of a node's: (client, start, stop) -> a few of them at most."""

    x: tuple[str, tuple[int, ...]]
    y: tuple[str, tuple[int, ...]]

    def __call__(self, client: int, start: int, stop: int) -> Rows:
        rows = min(stop - start, _TRIED)
        return Rows(*(np.zeros((rows, *shape), dtype=kind) for kind, shape in (self.x, self.y)))


def _central(central: Mapping[CentralPart, Rows] | None, first: Description) -> dict[CentralPart, Rows]:
    """The server's rows, which must be of the nodes' kind; none where it has none."""
    none = _Blank(first.x, first.y)(0, 0, 0)
    sets: dict[CentralPart, Rows] = {"validation": none, "test": none, **(central or {})}
    for part, both in sets.items():
        for what, array, (kind, shape) in (("rows", both.x, first.x), ("targets", both.y, first.y)):
            if (str(array.dtype), array.shape[1:]) != (kind, shape):
                has = f"{array.dtype} {list(array.shape[1:])}"
                raise DeployError(f"--central: its {part} {what} are {has}, those of nodes {kind} {list(shape)}")
    return sets


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 8:
        raise DeployError("its description gives a shape in another form")
    shape = tuple(_whole(each, "shape") for each in value)
    if int(np.prod(shape, dtype=float)) > 10**8:
        raise DeployError("its description gives a shape that no model takes")
    return shape


def _whole(value: object, name: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST_ROWS:
        raise DeployError(f"its description gives {name} in another form")
    return value
