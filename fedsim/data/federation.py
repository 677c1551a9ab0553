"""A corpus split over clients: arrays in which every client is one slice."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from fedsim.data.corpus import Corpus, Task

Part = Literal["train", "validation", "test"]
CentralPart = Literal["validation", "test"]


class Rows(NamedTuple):
    """Rows of one part: x [n, ...] and y [n, ...], views that are never written."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Federation:
    """Every client's rows, and one central validation and test set.

    Attributes:
        x, y: rows ordered by client, and within a client by part: train, validation, test.
        offsets: [K + 1] client k owns rows offsets[k] to offsets[k + 1].
        train_ends, validation_ends: [K] where a client's train and validation parts end.
        central: the rows of the two central sets.
        names: of the clients.
        groups: [N] number of the person (or other unit) that a row belongs to, alike at all clients; None where rows
            have none.
        group_name: what a group is called; empty where there is none.
        task, classes, preprocessing: from the corpus.
    """

    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray
    train_ends: np.ndarray
    validation_ends: np.ndarray
    central: Mapping[CentralPart, Rows]
    names: Sequence[str]
    corpus: str
    task: Task
    classes: Sequence[str]
    preprocessing: Mapping[str, Any]
    groups: np.ndarray | None = None
    group_name: str = ""

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
        return Rows(self.x[start:stop], self.y[start:stop])

    def units(self, client: int) -> np.ndarray:
        """[n] the group of each of a client's train rows, counted from 0; every row is its own where there is none."""
        start, stop = self.offsets[client], self.train_ends[client]
        if self.groups is None:
            return np.arange(stop - start)
        return np.unique(self.groups[start:stop], return_inverse=True)[1]

    def train_units(self) -> np.ndarray:
        """[K] number of different groups among every client's train rows; of rows where there are no groups."""
        if self.groups is None:
            return self.train_rows
        places = np.arange(len(self.groups))
        owner = np.searchsorted(self.offsets, places, side="right") - 1
        train = places < self.train_ends[owner]
        pairs = np.unique(np.stack([owner[train], self.groups[train]]), axis=1)
        return np.bincount(pairs[0], minlength=self.clients)

    def pooled(self) -> "Federation":
        """Everybody's train rows with one more client, the last; the others keep what they measure models on."""
        train = np.zeros(len(self.x), dtype=bool)
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

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all rows and where they lie; two runs with the same digest saw the same data."""
        total = hashlib.sha256()
        central = [array for part in ("validation", "test") for array in self.central[part]]
        groups = [self.groups] if self.groups is not None else []
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
    sets: dict[CentralPart, Rows] = {part: Rows(corpus.x[rows], corpus.y[rows]) for part, rows in central.items()}
    return Federation(
        x=corpus.x[order],
        y=corpus.y[order],
        offsets=np.concatenate([[0], ends[:, 2]]),
        train_ends=ends[:, 0],
        validation_ends=ends[:, 1],
        central=sets,
        names=tuple(names) or tuple(str(number) for number in range(len(parts))),
        corpus=corpus.name,
        task=corpus.task,
        classes=tuple(corpus.classes),
        preprocessing=corpus.preprocessing,
        groups=np.unique(corpus.groups, return_inverse=True)[1][order] if corpus.groups is not None else None,
        group_name=corpus.group_name or "group" if corpus.groups is not None else "",
    )
