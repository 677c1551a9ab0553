"""A user's own arrays in a NumPy .npz file."""

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.given import corpus_of
from fedsim.data.sources._files import contents
from fedsim.errors import DataError
from fedsim.registry import nearest

_KNOWN = ("x", "y", "clients", "groups", "names")


def npz(folders: Folders, *, path: str, group: str | None = None) -> Corpus:
    """The corpus in the arrays x, y and, where there are such, clients, groups and names.

    * x [N, ...] numbers become float32. What y holds says what is learned: integers or texts [N] are classes in sorted
      order, floats [N] or [N, T] numbers to be predicted, booleans [N, C] labels. When both are uint8 [N, L], they are
      windows of bytes and their next bytes.
    * clients [N]: natural client of every row, as texts, numbers, or numbers into `names` (texts).
    * groups [N]: texts or integers; rows of a group stay in one part.

    Args:
        folders: `path` is relative to `folders.scenario`.
        path: of the file.
        group: what a group is called, as `privacy.example.unit` names it; "group" if not given.

    Raises:
        DataError: no such file, not an .npz, pickled objects in it, or an array missing or of a wrong kind.
    """
    file = folders.scenario / path
    arrays = _arrays(file)
    clients, names = _clients(file, arrays)
    corpus = corpus_of(arrays["x"], arrays["y"], name=file.stem, where=str(file))
    return replace(corpus, clients=clients, client_names=names, groups=arrays.get("groups"), group_name=group or "")


def _arrays(file: Path) -> dict[str, np.ndarray]:
    contents(file)  # so that a missing file has its own message
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        # Without NumPy's own words, which advise to allow pickles: loading one runs what its author put in.
        raise DataError(f"{file}: not a sound .npz of plain arrays; write numbers or texts with numpy.savez") from error
    for name in arrays:
        if name not in _KNOWN:
            raise DataError(f"{file}: array {name!r} is not known.{nearest(name, _KNOWN)}")
    for name in ("x", "y"):
        if name not in arrays:
            raise DataError(f"{file}: there is no array {name!r}; give at least x and y")
    return arrays


def _clients(file: Path, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """[N] number of every row's client, and the clients' names."""
    clients, names = arrays.get("clients"), arrays.get("names")
    if clients is None:
        if names is not None:
            raise DataError(f"{file}: array names names clients, but there is no array clients")
        return None, ()
    if names is not None:
        if clients.dtype.kind not in "iu":
            raise DataError(f"{file}: with names, array clients must hold integers into it, not {clients.dtype}")
        return clients.astype(np.int64), tuple(str(name) for name in names)
    values, numbers = np.unique(clients, return_inverse=True)
    return numbers, tuple(str(value) for value in values)
