"""A corpus split over clients: arrays in which every client is one slice."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from fedsim.data.corpus import Corpus, labelled
from fedsim.errors import DataError

Part = Literal["train", "validation", "test"]
CentralPart = Literal["validation", "test"]


class Rows(NamedTuple):
    """Rows of one part: x [n, ...] and y [n, ...], views that are never written."""

    x: np.ndarray
    y: np.ndarray


class Numbered(Sequence[str]):
    """Clients' numbers as their names, made when they are asked for."""

    def __init__(self, clients: int, numbers: np.ndarray | None = None) -> None:
        """Names of so many clients: these numbers [K], or from 0 on."""
        self._numbers: Sequence[int] | np.ndarray = range(clients) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return tuple(map(str, self._numbers[index])) if isinstance(index, slice) else str(self._numbers[index])


@dataclass(frozen=True)
class Federation:
    """Every client's rows, and one central validation and test set.

    Attributes:
        x, y: rows ordered by client, and within a client by part: train, validation, test. No rows, but their types
            and shapes, where `source` has them.
        offsets: [K + 1] client k owns rows offsets[k] to offsets[k + 1].
        train_ends, validation_ends: [K] where a client's train and validation parts end.
        central: the rows of the two central sets.
        names: of the clients.
        groups: [N] number of the person (or other unit) that a row belongs to, alike at all clients; None where rows
            have none.
        group_name: what a group is called; empty where there is none.
        task, classes, preprocessing, vocabulary: from the corpus.
        source: (client, start, stop) -> its rows from one place to another; None where they are in x and y.
        numbers: [K] by which `source` knows clients; None where it counts as the federation does.
        known_digest: of a source's rows, which nobody reads all; else None.
        known_units: [K] number of different groups among train rows that a source keeps to itself; else None.
    """

    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray
    train_ends: np.ndarray
    validation_ends: np.ndarray
    central: Mapping[CentralPart, Rows]
    names: Sequence[str]
    corpus: str
    task: str
    classes: Sequence[str]
    preprocessing: Mapping[str, Any]
    groups: np.ndarray | None = None
    group_name: str = ""
    source: Callable[[int, int, int], Rows] | None = None
    numbers: np.ndarray | None = None
    known_digest: str | None = None
    known_units: np.ndarray | None = None
    vocabulary: int | None = None

    @property
    def labelled(self) -> bool:
        """Whether every row has one class."""
        return labelled(self.classes, self.y)

    @property
    def clients(self) -> int:
        """K, the number of clients."""
        return len(self.offsets) - 1

    @cached_property
    def train_rows(self) -> np.ndarray:
        """[K] number of train rows of every client."""
        return np.asarray(self.train_ends - self.offsets[:-1])

    def sizes(self, part: Part) -> np.ndarray:
        """[K] number of rows of one part of every client."""
        ends = {"train": self.train_ends, "validation": self.validation_ends, "test": self.offsets[1:]}
        starts = {"train": self.offsets[:-1], "validation": self.train_ends, "test": self.validation_ends}
        return np.asarray(ends[part] - starts[part])

    def rows(self, client: int, part: Part) -> Rows:
        """One client's rows of one part."""
        start, stop = {
            "train": (self.offsets[client], self.train_ends[client]),
            "validation": (self.train_ends[client], self.validation_ends[client]),
            "test": (self.validation_ends[client], self.offsets[client + 1]),
        }[part]
        if self.source is None:
            return Rows(self.x[start:stop], self.y[start:stop])
        number, first = client if self.numbers is None else int(self.numbers[client]), self.offsets[client]
        return self.source(number, int(start - first), int(stop - first))

    @property
    def first_rows(self) -> Rows:
        """A few rows, for trying a model."""
        if self.source is None:
            return Rows(self.x[:2], self.y[:2])
        return self.rows(int(np.argmax(self.train_rows > 0)), "train")

    def at_once(self, purpose: str) -> Rows:
        """All rows of clients.

        Raises:
            DataError: there are too many to be had at once; `purpose` says who asks.
        """
        if self.source is not None:
            raise DataError(f"{purpose} reads all rows at once, and data {self.corpus!r} come client by client")
        return Rows(self.x, self.y)

    def units(self, client: int) -> np.ndarray:
        """[n] the group of each of a client's train rows, counted from 0; every row is its own where there is none."""
        start, stop = self.offsets[client], self.train_ends[client]
        if self.groups is None:
            return np.arange(stop - start)
        return np.unique(self.groups[start:stop], return_inverse=True)[1]

    def train_units(self) -> np.ndarray:
        """[K] number of different groups among every client's train rows; of rows where there are no groups."""
        if self.known_units is not None:
            return self.known_units
        if self.groups is None:
            return self.train_rows
        places = np.arange(len(self.groups))
        owner = np.searchsorted(self.offsets, places, side="right") - 1
        train = places < self.train_ends[owner]
        pairs = np.unique(np.stack([owner[train], self.groups[train]]), axis=1)
        return np.bincount(pairs[0], minlength=self.clients)

    def pooled(self) -> "Federation":
        """Everybody's train rows with one more client, the last; the others keep what they measure models on.

        Raises:
            DataError: there are too many.
        """
        train = np.zeros(len(self.at_once("a strategy on pooled rows").x), dtype=bool)
        for start, stop in zip(self.offsets[:-1], self.train_ends, strict=True):
            train[start:stop] = True
        order = np.concatenate([np.flatnonzero(~train), np.flatnonzero(train)])
        validation, test = self.sizes("validation"), self.sizes("test")
        offsets = np.concatenate([[0], np.cumsum(validation + test), [len(self.x)]])
        return replace(
            self,
            x=self.x[order],
            y=self.y[order],
            groups=self.groups[order] if self.groups is not None else None,
            offsets=offsets,
            train_ends=np.append(offsets[:-2], len(self.x)),
            validation_ends=np.append(offsets[:-2] + validation, len(self.x)),
            names=(*self.names, "all clients"),
        )

    def emptied(self) -> "Federation":
        """The federation's description alone, of nobody's rows."""
        none = self.offsets[:0]
        return replace(
            self,
            x=self.x[:0],
            y=self.y[:0],
            offsets=self.offsets[:1],
            train_ends=none,
            validation_ends=none,
            central={},
            names=(),
            groups=None,
            source=None,
            numbers=None,
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all rows and where they lie; two runs with the same digest saw the same data.

        Of a `source` over the rows of some clients and where all lie.
        """
        total = hashlib.sha256()
        central = [array for part in ("validation", "test") for array in self.central[part]]
        groups = [self.groups] if self.groups is not None else []
        total.update((self.known_digest or "").encode())
        for array in (self.offsets, self.train_ends, self.validation_ends, self.x, self.y, *central, *groups):
            total.update(f"{array.dtype}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


def federate(
    corpus: Corpus,
    central: Mapping[CentralPart, np.ndarray],
    parts: Sequence[Mapping[Part, np.ndarray]],
    names: Sequence[str] = (),
) -> Federation:
    """Order a corpus' rows by client and part.

    Args:
        corpus: the data set.
        central: row numbers of the central validation and test set.
        parts: for every client the row numbers of its train, validation and test part.
        names: of the clients; their numbers by default.
    """
    sizes = np.array([[len(client[part]) for part in ("train", "validation", "test")] for client in parts])
    ends = np.cumsum(sizes.ravel()).reshape(sizes.shape)
    order = np.concatenate([client[part] for client in parts for part in ("train", "validation", "test")])
    sets: dict[CentralPart, Rows] = {part: _picked(corpus, rows) for part, rows in central.items()}
    all_rows = _picked(corpus, order)
    return Federation(
        x=all_rows.x,
        y=all_rows.y,
        offsets=np.concatenate([[0], ends[:, 2]]),
        train_ends=ends[:, 0],
        validation_ends=ends[:, 1],
        central=sets,
        names=tuple(names) or Numbered(len(parts)),
        corpus=corpus.name,
        task=corpus.task,
        classes=tuple(corpus.classes),
        preprocessing=corpus.preprocessing,
        groups=np.unique(corpus.groups, return_inverse=True)[1][order] if corpus.groups is not None else None,
        group_name=corpus.group_name or "group" if corpus.groups is not None else "",
        vocabulary=corpus.vocabulary,
    )


def _picked(corpus: Corpus, rows: np.ndarray) -> Rows:
    """Rows of a corpus in memory in their own order, as they are in workers too: bits depend on how rows lie."""
    return Rows(np.ascontiguousarray(corpus.x[rows]), np.ascontiguousarray(corpus.y[rows]))
