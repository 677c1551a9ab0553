"""IDX files, and the data sets of the MNIST family, which come as four of them.

The format: two zero bytes, the type of a value, the number of dimensions; each dimension as a big-endian
unsigned 32-bit integer; then the values, big-endian, in row-major order.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.data.corpus import Folders
from fedsim.data.sources._files import contents, verify
from fedsim.errors import DataError

_TYPES: Mapping[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}
_TRAIN, _TEST = 60_000, 10_000
IMAGES = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
LABELS = ("train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


class Images(NamedTuple):
    """Train rows, then test rows: x [70000, 1, 28, 28] float32, y [70000] int64, own_test [70000] bool."""

    x: np.ndarray
    y: np.ndarray
    own_test: np.ndarray
    preprocessing: Mapping[str, Any]


def mnist_like(folders: Folders, name: str, md5: Mapping[str, str], mean: float, std: float) -> Images:
    """A data set laid out as MNIST is, its pixels scaled to [0, 1] and normalised.

    Args:
        folders: where the files are looked for.
        name: of the data set and of its folder.
        md5: digests of the four files.
        mean: of the train pixels in [0, 1].
        std: of the train pixels in [0, 1].

    Raises:
        DataError: a file is missing, damaged or not the expected one.
    """
    paths = folders.find(name, (*IMAGES, *LABELS))
    sizes = (_TRAIN, _TEST)
    pixels = [read(paths[file], (rows, 28, 28), md5[file]) for file, rows in zip(IMAGES, sizes, strict=True)]
    labels = [read(paths[file], (rows,), md5[file]) for file, rows in zip(LABELS, sizes, strict=True)]
    normalised = ((np.arange(256) / 255 - mean) / std).astype(np.float32)
    return Images(
        x=normalised[np.concatenate(pixels)[:, None]],
        y=np.concatenate(labels).astype(np.int64),
        own_test=np.arange(_TRAIN + _TEST) >= _TRAIN,
        preprocessing={"kind": "image", "divide_by": 255.0, "mean": [mean], "std": [std]},
    )


def read(path: Path, shape: Sequence[int], md5: str) -> np.ndarray:
    """The array of a gzipped IDX file.

    Args:
        path: of the file.
        shape: that its header must give.
        md5: of the compressed file.

    Raises:
        DataError: not a whole gzip file, another header, size or digest.
    """
    packed = contents(path)
    try:
        data = gzip.decompress(packed)
    except (EOFError, zlib.error, OSError, struct.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); fetch it again") from error
    array = _parse(path, data, shape)
    verify(path, packed, md5, "md5")
    return array


def _parse(path: Path, data: bytes, shape: Sequence[int]) -> np.ndarray:
    start = 4 * (1 + len(shape))
    kind = _TYPES.get(data[2]) if len(data) >= start and data[:2] == b"\0\0" else None
    if kind is None or data[3] != len(shape) or struct.unpack(f">{len(shape)}I", data[4:start]) != tuple(shape):
        raise DataError(f"{path}: its header is not that of an IDX file of shape {tuple(shape)}; fetch it again")
    expected = start + math.prod(shape) * kind.itemsize
    if len(data) != expected:
        raise DataError(f"{path}: holds {len(data)} bytes where its header promises {expected}; fetch it again")
    values: np.ndarray = np.frombuffer(data, kind, offset=start)
    return values.reshape(shape)
