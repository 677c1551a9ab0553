"""Own arrays in a folder, ordered by client; never read whole."""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.data.corpus import Folders
from fedsim.data.federation import Rows
from fedsim.data.population import Population
from fedsim.errors import DataError

Classes = Annotated[int, Field(ge=2)] | Annotated[list[str], Field(min_length=2)]


def arrays(
    folders: Folders,
    *,
    path: str,
    classes: Classes | None = None,
    vocabulary: Annotated[int, Field(ge=1)] | None = None,
) -> Population:
    """The population in the files x.npy, y.npy and offsets.npy of a folder.

    * x [N, ...] numbers become float32, y [N] are integers from 0 on. When both are uint8 [N, L], they are windows of
      bytes and their next bytes. With a vocabulary x [N, L] are integers, each a token.
    * offsets [K + 1] integers: client k has rows offsets[k] to offsets[k + 1]; the first is 0, the last N.
    * test_x and test_y, where they are, hold the rows of the two central sets; these are read whole.

    Write them with numpy.save, or piece by piece into numpy.lib.format.open_memmap.

    Args:
        folders: `path` is relative to `folders.scenario`.
        path: of the folder.
        classes: how many there are, or their names; not for bytes.
        vocabulary: how many tokens there are, where rows are tokens and no bytes.

    Raises:
        DataError: a file is missing, no sound .npy, or does not fit the others.
    """
    folder = folders.scenario / path
    x, y, offsets = (_mapped(folder / f"{name}.npy") for name in ("x", "y", "offsets"))
    text = vocabulary is None and x.dtype == y.dtype == np.uint8 and x.ndim == 2 and x.shape == y.shape
    if not text and classes is None:
        raise DataError(f"{folder}: data.classes is missing; say how many classes y counts, or name them")
    _check(folder, x, y, text)
    if vocabulary is not None and x.dtype.kind not in "iu":
        raise DataError(f"{folder / 'x.npy'}: has type {x.dtype}; give integers, the tokens of data.vocabulary")
    as_it_is = text or vocabulary is not None
    _check_offsets(folder / "offsets.npy", offsets, len(x))

    def rows(client: int) -> Rows:
        own = slice(int(offsets[client]), int(offsets[client + 1]))
        return _typed(x[own], y[own], as_it_is)

    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes or ())
    return Population(
        name=folder.name,
        task="next-token" if text else "classification",
        sizes=np.diff(offsets),
        rows=rows,
        classes=tuple(map(str, range(256))) if text else names,
        preprocessing={"kind": "none"},
        test=_test(folder, x, as_it_is),
        vocabulary=vocabulary,
    )


def _mapped(path: Path) -> np.ndarray:
    """A file's array, which is read where it is looked at."""
    if not path.is_file():
        raise DataError(f"{path}: not found; name in data.path a folder with x.npy, y.npy and offsets.npy")
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        # Without NumPy's own words, which advise to allow pickles: loading one runs what its author put in.
        raise DataError(f"{path}: not a sound .npy of numbers; write it with numpy.save") from error
    return array


def _typed(x: np.ndarray, y: np.ndarray, as_it_is: bool) -> Rows:
    """Rows as models take them, x perhaps as it is; read from the disk now."""
    text = as_it_is and y.ndim == 2
    return Rows(np.array(x, None if as_it_is else np.float32), np.array(y, None if text else np.int64))


def _check(folder: Path, x: np.ndarray, y: np.ndarray, text: bool) -> None:
    if not text and x.dtype.kind not in "fiub":
        raise DataError(f"{folder / 'x.npy'}: has type {x.dtype}; give numbers")
    if not text and (y.ndim != 1 or y.dtype.kind not in "iu"):
        raise DataError(f"{folder / 'y.npy'}: has type {y.dtype} and shape {y.shape}; give one integer class per row")
    if x.ndim < 2 or len(x) != len(y):
        raise DataError(f"{folder}: x has shape {x.shape} and y {y.shape}; give as many rows of values as classes")


def _check_offsets(path: Path, offsets: np.ndarray, rows: int) -> None:
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        raise DataError(f"{path}: has type {offsets.dtype} and shape {offsets.shape}; give [clients + 1] integers")
    if offsets[0] != 0 or offsets[-1] != rows or (offsets[1:] < offsets[:-1]).any():
        raise DataError(f"{path}: goes from {offsets[0]} to {offsets[-1]}; it must rise from 0 to the {rows} rows of x")


def _test(folder: Path, x: np.ndarray, as_it_is: bool) -> Rows | None:
    if not (folder / "test_x.npy").exists():
        return None
    test_x, test_y = _mapped(folder / "test_x.npy"), _mapped(folder / "test_y.npy")
    if test_x.dtype.kind not in "fiub" or test_x.shape[1:] != x.shape[1:] or len(test_x) != len(test_y):
        raise DataError(
            f"{folder}: test_x has shape {test_x.shape} and test_y {test_y.shape}; give rows like those of x"
        )
    return _typed(test_x, test_y, as_it_is)
