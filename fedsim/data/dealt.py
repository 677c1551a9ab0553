"""One client's rows in a folder of their own, as its owner has them, and the federation of which they are a part.

`rows.npz` has the arrays x, y and, where rows have them, groups; `rows.json` says what they are. Rows are as models
take them: preprocessed, and split into train, validation and test.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsim.data.check import check
from fedsim.data.corpus import Corpus
from fedsim.data.federation import CentralPart, Federation, Numbered, Part, Rows
from fedsim.errors import DataError

_ARRAYS, _ABOUT = "rows.npz", "rows.json"
_PARTS: tuple[Part, ...] = ("train", "validation", "test")


class Holding(NamedTuple):
    """One client's rows, in the order train, validation, test.

    Attributes:
        x, y: [n, ...] its rows, as a federation has them.
        train, validation: where these parts end; the test part ends at n.
        groups: [n] number of the person (or other unit) that a row belongs to; None where rows have none.
        group_name: what a group is called; empty where there is none.
        task, classes, preprocessing, vocabulary, corpus: as of a federation.
    """

    x: np.ndarray
    y: np.ndarray
    train: int
    validation: int
    groups: np.ndarray | None
    group_name: str
    task: str
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    vocabulary: int | None
    corpus: str


class _About(BaseModel):
    """What `rows.json` says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    version: int = Field(1, ge=1, le=1)
    corpus: str
    task: str
    classes: list[str]
    preprocessing: dict[str, Any]
    vocabulary: int | None
    group_name: str
    train: int = Field(ge=0)
    validation: int = Field(ge=0)


def holding_of(federation: Federation, client: int) -> Holding:
    """One client's rows; of scales that every client has for itself, its own alone."""
    parts = [federation.rows(client, part) for part in _PARTS]
    start, stop = federation.offsets[client], federation.offsets[client + 1]
    return Holding(
        x=np.concatenate([rows.x for rows in parts]),
        y=np.concatenate([rows.y for rows in parts]),
        train=len(parts[0].x),
        validation=len(parts[0].x) + len(parts[1].x),
        groups=federation.groups[start:stop] if federation.groups is not None else None,
        group_name=federation.group_name,
        task=federation.task,
        classes=tuple(federation.classes),
        preprocessing=_of_one(federation.preprocessing, federation.names[client]),
        vocabulary=federation.vocabulary,
        corpus=federation.corpus,
    )


def write(federation: Federation, client: int, folder: Path) -> None:
    """Write one client's rows into a folder, which is made if it is not there.

    Raises:
        DataError: it cannot be written.
    """
    _written(holding_of(federation, client), folder)


def write_central(federation: Federation, folder: Path) -> None:
    """Write the two central sets likewise, as rows of nobody's who trains.

    Raises:
        DataError: it cannot be written.
    """
    validation, test = federation.central["validation"], federation.central["test"]
    held = Holding(
        x=np.concatenate([validation.x, test.x]),
        y=np.concatenate([validation.y, test.y]),
        train=0,
        validation=len(validation.x),
        groups=None,
        group_name="",
        task=federation.task,
        classes=tuple(federation.classes),
        preprocessing=federation.preprocessing,
        vocabulary=federation.vocabulary,
        corpus=federation.corpus,
    )
    _written(held, folder)


def is_holding(folder: Path) -> bool:
    """Whether a folder says that it holds rows which `read` can read."""
    return (folder / _ABOUT).is_file()


def read(folder: Path) -> Holding:
    """The rows that `write` or `write_central` wrote.

    Raises:
        DataError: a file is missing, damaged, or does not fit the other.
    """
    about = _about(folder / _ABOUT)
    file = folder / _ARRAYS
    arrays = _arrays(file)
    if unknown := sorted(arrays.keys() - {"x", "y", "groups"}):
        raise DataError(f"{file}: array {unknown[0]!r} is not known; write the folder again")
    if lacking := sorted({"x", "y"} - arrays.keys()):
        raise DataError(f"{file}: there is no array {lacking[0]!r}; write the folder again")
    x, y, groups = arrays["x"], arrays["y"], arrays.get("groups")
    if not x.ndim or not y.ndim or not about.train <= about.validation <= len(x):
        ends = f"parts end at rows {about.train} and {about.validation}"
        raise DataError(f"{folder}: {ends}, and {_ARRAYS} has {len(x) if x.ndim else 0}; write the folder again")
    if (groups is None) == bool(about.group_name):
        raise DataError(f"{folder}: {_ABOUT} and {_ARRAYS} differ on whether rows have groups; write the folder again")
    holding = Holding(
        x=x,
        y=y,
        train=about.train,
        validation=about.validation,
        groups=groups,
        group_name=about.group_name,
        task=about.task,
        classes=tuple(about.classes),
        preprocessing=about.preprocessing,
        vocabulary=about.vocabulary,
        corpus=about.corpus,
    )
    _check(holding, folder)
    return holding


def federation_of(holding: Holding, number: int, clients: int) -> Federation:
    """A federation of so many clients in which one, by its number, has these rows and the others have none."""
    rows = len(holding.x)
    offsets = np.zeros(clients + 1, dtype=np.int64)
    offsets[number + 1 :] = rows
    ends = offsets[1:].copy(), offsets[1:].copy()
    ends[0][number], ends[1][number] = holding.train, holding.validation
    none = Rows(holding.x[:0], holding.y[:0])
    return Federation(
        x=holding.x,
        y=holding.y,
        offsets=offsets,
        train_ends=ends[0],
        validation_ends=ends[1],
        central={"validation": none, "test": none},
        names=Numbered(clients),
        corpus=holding.corpus,
        task=holding.task,
        classes=holding.classes,
        preprocessing=holding.preprocessing,
        groups=holding.groups,
        group_name=holding.group_name,
        vocabulary=holding.vocabulary,
    )


def central_of(holding: Holding) -> dict[CentralPart, Rows]:
    """The two central sets that `write_central` wrote."""
    start, stop = holding.train, holding.validation
    return {
        "validation": Rows(holding.x[start:stop], holding.y[start:stop]),
        "test": Rows(holding.x[stop:], holding.y[stop:]),
    }


def _of_one(preprocessing: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What was done to one client's rows, without the scales of the others."""
    scales = preprocessing.get("scales")
    if preprocessing.get("fit") != "per-client" or not isinstance(scales, Mapping):
        return preprocessing
    return {**preprocessing, "scales": {name: scales[name]}}


def _written(holding: Holding, folder: Path) -> None:
    """Arrays first: a folder without `rows.json` is no holding."""
    about = _About(
        corpus=holding.corpus,
        task=holding.task,
        classes=list(holding.classes),
        preprocessing=dict(holding.preprocessing),
        vocabulary=holding.vocabulary,
        group_name=holding.group_name,
        train=holding.train,
        validation=holding.validation,
    )
    groups: dict[str, Any] = {"groups": holding.groups} if holding.groups is not None else {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / _ARRAYS, x=holding.x, y=holding.y, **groups)
        (folder / _ABOUT).write_text(json.dumps(about.model_dump(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); choose another place") from error


def _about(file: Path) -> _About:
    try:
        return _About.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); write the folder again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{file}: {where}: {first['msg'].lower()}; write the folder again") from error


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); write the folder again") from error
    except Exception as error:  # a damaged archive raises whatever its damage calls for
        raise DataError(f"{file}: is damaged, no sound .npz of plain arrays; write the folder again") from error


def _check(holding: Holding, folder: Path) -> None:
    """What must hold of every corpus, of these rows."""
    if not len(holding.x):
        return
    corpus = Corpus(
        name=str(folder),
        task=holding.task,
        x=holding.x,
        y=holding.y,
        classes=holding.classes,
        groups=holding.groups,
        group_name=holding.group_name,
        vocabulary=holding.vocabulary,
    )
    check(corpus)
