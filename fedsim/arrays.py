"""Flower's arrays without the bytes: values that stay a NumPy array until somebody asks for what Flower would send.

Between the processes of one simulation nobody asks, so a vector of millions is neither encoded nor decoded.
"""

import io
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict


class Values(Array):
    """A Flower array that holds its values as they are; equal, also in its bytes, to `Array` of them in C order.

    Attributes:
        values: read-only, C-contiguous. The memory is not copied, so it must not be written any more.
    """

    values: np.ndarray

    def __init__(self, values: np.ndarray) -> None:
        contiguous = np.asarray(values, order="C").view()
        contiguous.flags.writeable = False
        self.dtype, self.shape, self.stype = str(values.dtype), tuple(values.shape), "numpy.ndarray"
        self.values = contiguous

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """What Flower sends: the values in NumPy's file format."""
        return b"".join((_header(self.values.dtype, self.values.shape), self.values.reshape(-1).view(np.uint8).data))

    def numpy(self) -> np.ndarray:
        """A copy that may be written."""
        return self.values.copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        return self.dtype == other.dtype and self.stype == other.stype and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Values({self.dtype}, {self.shape})"


def encode(values: np.ndarray) -> Array:
    """A Flower array of values that nobody will write any more; they are not copied."""
    return Values(values)


def opened(array: Array) -> Values | None:
    """The array as values that share its memory; None where its bytes are not those that `Values` would give."""
    if isinstance(array, Values):
        return array
    data = array.data
    end = 10 + int.from_bytes(data[8:10], "little")
    kind = _kind(data[:end]) if array.stype == "numpy.ndarray" else None
    if kind is None or kind.shape != tuple(array.shape) or str(kind.dtype) != array.dtype:
        return None
    if len(data) != end + kind.dtype.itemsize * math.prod(kind.shape):
        return None
    return Values(np.frombuffer(data, kind.dtype, offset=end).reshape(kind.shape))


class _Kind(NamedTuple):
    """What the header of NumPy's file format says."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@lru_cache(maxsize=4096)
def _kind(header: bytes) -> _Kind | None:
    """What a header says; None for one that `Values` would not write."""
    try:
        content = io.BytesIO(header)
        np.lib.format.read_magic(content)
        shape, _, dtype = np.lib.format.read_array_header_1_0(content)
        same = not dtype.hasobject and _header(dtype, shape) == header
    except (ValueError, TypeError, SyntaxError):
        return None
    return _Kind(dtype, shape) if same else None


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """How NumPy's file format begins for an array in C order."""
    content = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, described)
    return content.getvalue()


def recorded(arrays: Mapping[str, Array]) -> ArrayRecord:
    """A record of these arrays as they are: `ArrayRecord(arrays)` would make new ones of their bytes."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def view(array: Array) -> np.ndarray:
    """The values of a Flower array, read-only and without the copies that `Array.numpy` makes."""
    if isinstance(array, Values):
        return array.values
    content = io.BytesIO(array.data)
    version = np.lib.format.read_magic(content)
    read_header: Any = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(content)
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.frombuffer(array.data, dtype, offset=content.tell()).reshape(shape, order=order)


def sendable(content: RecordDict) -> RecordDict:
    """The same records with Flower's own arrays, which alone it sends to other machines; records without are shared."""
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = dict(content.items())
    for name, arrays in content.array_records.items():
        records[name] = ArrayRecord(
            {key: Array(each.dtype, tuple(each.shape), each.stype, each.data) for key, each in arrays.items()}
        )
    return RecordDict(records)
