"""A data set before it is split and partitioned, and where its files are looked for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import DataError
from fedsim.machine import user_cache

if TYPE_CHECKING:  # models import this file, and run where pydantic is not
    from fedsim.data.schema import Columns

BYTES = 256
"""Values of a byte: the tokens of text where no vocabulary is declared."""
PREDICTS_NEXT = frozenset({"next-token", "generation"})
"""Tasks whose models give an output for every place of a text, made of what stands before it."""


@dataclass(frozen=True)
class Corpus:
    """A data set before partition.

    Attributes:
        name: as in scenarios.
        task: what is learned from it: one of `fedsim.tasks`, or a user's own `file.py:name`.
        x: [N, ...] inputs as the model takes them: float32 (images [N, channels, height, width], features [N, F],
            series [N, T, F]) or tokens [N, L] of any integer type. Where there are `columns`, raw float64 [N, C].
        y: [N, ...] targets as the task takes them: int64 classes [N], bytes [N, L], float32 numbers.
        classes: names of the classes; for next-token tasks the 256 byte values; none where rows have none.
        preprocessing: what was done to raw values, enough to do it again to new ones; under "fitted_on_rows" whether
            numbers for it were taken from the rows, which privacy does not cover; under "overlapping" whether rows
            share values, so that none is protected alone.
        clients: [N] natural client of every row as index into `client_names`, where the set has one.
        client_names: names of natural clients.
        groups: [N] the person (or other unit) a row belongs to; rows of a group stay in one part.
        group_name: what a group is called, such as "patient_id"; "group" where it is not said.
        own_test: [N] bool, rows of the test set that the corpus itself defines.
        test_units: [N] the person (or other unit) that a row of the own test set belongs to, where none of them trains:
            each has all its rows in one of the two central sets. For other rows it says nothing.
        vocabulary: how many tokens there are, where rows are tokens and no bytes.
        columns: of a table whose rows are made ready once they are split: what the columns of x are.
    """

    name: str
    task: str
    x: np.ndarray
    y: np.ndarray
    classes: Sequence[str]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    clients: np.ndarray | None = None
    client_names: Sequence[str] = ()
    groups: np.ndarray | None = None
    group_name: str = ""
    own_test: np.ndarray | None = None
    test_units: np.ndarray | None = None
    vocabulary: int | None = None
    columns: "Columns" = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether every row has one class."""
        return labelled(self.classes, self.y)

    def __len__(self) -> int:
        return len(self.x)


def labelled(classes: Sequence[str], y: np.ndarray) -> bool:
    """Whether targets are one of these classes a row."""
    return len(classes) > 0 and y.ndim == 1 and y.dtype.kind in "iu"


@dataclass(frozen=True)
class Folders:
    """Where files are looked for, in this order: `--data-dir`, `FEDSIM_DATA`, the user's cache.

    Attributes:
        data: folders with one subfolder per data set.
        scenario: folder of the scenario, against which `data.path` is taken.
    """

    data: tuple[Path, ...]
    scenario: Path

    @classmethod
    def of(cls, data_dir: Path | None, scenario: Path) -> "Folders":
        """The folders of this machine."""
        named = [data_dir, Path(os.environ["FEDSIM_DATA"]) if os.environ.get("FEDSIM_DATA") else None, user_cache()]
        return cls(tuple(folder for folder in named if folder is not None), scenario)

    def find(self, name: str, files: Sequence[str]) -> dict[str, Path]:
        """Paths of a data set's files, from the first folder that has them all.

        Raises:
            DataError: names the files that are missing and the folders where they may be put.
        """
        missing: list[str] = list(files)
        for folder in self.data:
            absent = [file for file in files if not (folder / name / file).is_file()]
            if not absent:
                return {file: folder / name / file for file in files}
            missing = min(missing, absent, key=len)
        places = " or ".join(str(folder / name) for folder in self.data)
        raise DataError(f"data set {name!r}: {', '.join(missing)} not found; put the files into {places}")
