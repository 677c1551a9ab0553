"""Files in folders, one folder a class, as ImageNet is laid out.

    PATH/CLASS/FILE, or PATH/train/CLASS/FILE beside PATH/val/CLASS/FILE or PATH/test/CLASS/FILE

With clients, PATH/CLIENT/CLASS/FILE or PATH/CLASS/CLIENT/FILE; hidden files and folders are passed over.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.errors import DataError
from fedsim.machine import available_memory
from fedsim.registry import nearest

Layout = Literal["class", "client/class", "class/client"]
_LOG = logging.getLogger(__name__)
_TRAIN, _HELD = "train", ("val", "test")


class Tree(NamedTuple):
    """Files in the order of their paths, train before the others.

    Attributes:
        paths: [N] of the files.
        y: [N] int64 class of each.
        classes: their names.
        clients: [N] index into `client_names`, -1 for files of the test set; None where the layout has no clients.
        client_names: sorted.
        own_test: [N] whether a file lies in val or test; None where there is no such folder.
        declared: whether the scenario named the classes.
    """

    paths: list[Path]
    y: np.ndarray
    classes: tuple[str, ...]
    clients: np.ndarray | None
    client_names: tuple[str, ...]
    own_test: np.ndarray | None
    declared: bool

    def corpus(self, path: Path, x: np.ndarray, preprocessing: Mapping[str, Any]) -> Corpus:
        """The files' rows [N, ...] as a data set that is called as the folder is."""
        return Corpus(
            name=path.name,
            task="classification",
            x=x,
            y=self.y,
            classes=self.classes,
            preprocessing={**preprocessing, "declared": self.declared},
            clients=self.clients,
            client_names=self.client_names,
            own_test=self.own_test,
        )


class _Leaf(NamedTuple):
    path: Path
    label: str
    client: str
    held: bool


def tree(folders: Folders, path: str, layout: Layout, classes: Sequence[str] | None) -> Tree:
    """All files below a folder.

    Args:
        folders: `path` is relative to `folders.scenario`.
        path: of the folder.
        layout: which folder is the class and which the client. Files of a test set belong to no client, whatever
            folder they lie in.
        classes: names of the classes; those of the train folders by default.

    Raises:
        DataError: there is no such folder, a file lies elsewhere, a class is not known, or there are no files.
    """
    root = folders.scenario / path
    tops = {folder.name for folder in _listed(root) if folder.is_dir()}
    split = _TRAIN in tops and tops <= {_TRAIN, *_HELD}
    parts = [_TRAIN, *(held for held in _HELD if held in tops)] if split else [""]
    found = [leaf for part in parts for leaf in _leaves(root / part, layout, held=part in _HELD)]
    train = [leaf for leaf in found if not leaf.held]
    if not train:
        raise DataError(f"{root}: holds no files to train on; lay them out as {layout}/FILE, or change data.layout")
    names = tuple(classes) if classes is not None else tuple(sorted({leaf.label for leaf in train}))
    if classes is None:
        _LOG.warning("%s: its classes were taken from the names of folders; data.classes can declare them", root)
    owners = tuple(sorted({leaf.client for leaf in train}))
    return Tree(
        paths=[leaf.path for leaf in found],
        y=np.array([_class(leaf, names, root) for leaf in found], dtype=np.int64),
        classes=names,
        clients=np.array([-1 if leaf.held else owners.index(leaf.client) for leaf in found]) if owners[0] else None,
        client_names=owners if owners[0] else (),
        own_test=np.array([leaf.held for leaf in found]) if len(parts) > 1 else None,
        declared=classes is not None,
    )


def place_for(files: Tree, shape: tuple[int, ...], root: Path, remedy: str) -> np.ndarray:
    """An empty float32 array [N, *shape] for what the files hold.

    Raises:
        DataError: it does not fit into memory twice: as it is read, and ordered by client.
    """
    size, free = 4 * math.prod(shape) * len(files.paths), available_memory()
    if free is not None and 2 * size > free:
        raise DataError(
            f"{root}: the rows of {len(files.paths):,} files are {size / 1e9:.3g} GB and are held twice, "
            f"{free / 1e9:.3g} GB are free; {remedy}"
        )
    return np.empty((len(files.paths), *shape), np.float32)


def _leaves(root: Path, layout: Layout, held: bool) -> Iterator[_Leaf]:
    """Every file at the depth of the layout."""
    levels = layout.split("/")
    for path, folders in _walk(root, ()):
        if len(folders) != len(levels):
            raise DataError(f"{path}: data.layout = {layout!r} wants files as {layout}/FILE in {root}; move it")
        place = dict(zip(levels, folders, strict=True))
        yield _Leaf(path, place["class"], place.get("client", ""), held)


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    for entry in _listed(folder):
        if entry.is_dir():
            yield from _walk(entry, (*above, entry.name))
        else:
            yield entry, above


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{folder}: {reason}; name a folder in data.path") from error


def _class(leaf: _Leaf, names: tuple[str, ...], root: Path) -> int:
    if leaf.label not in names:
        known = nearest(leaf.label, names)
        raise DataError(f"{leaf.path}: its class {leaf.label!r} is none of data.classes or of the train part.{known}")
    return names.index(leaf.label)
