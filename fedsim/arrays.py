"""Flower's arrays without the bytes: values that stay a NumPy array until somebody asks for what Flower would send.

Between the processes of one simulation nobody asks, so a vector of millions is neither encoded nor decoded.
"""

import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord


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
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, np.lib.format.header_data_from_array_1_0(self.values))
        return b"".join((content.getvalue(), self.values.reshape(-1).view(np.uint8).data))

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
