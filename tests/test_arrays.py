"""Flower's arrays opened: the same values and bytes without a copy, or left as they are."""

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from fedsim.arrays import Values, opened

ARRAYS = st.one_of(drawn.scalar_dtypes(), drawn.byte_string_dtypes(), drawn.unicode_string_dtypes()).flatmap(
    lambda dtype: drawn.arrays(dtype, drawn.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(ARRAYS)
def test_opened_arrays_are_the_same(values: np.ndarray) -> None:
    """Whatever the type and the shape; Flower's own array is the oracle."""
    array = Array(values)
    found = opened(array)
    assert found is not None
    assert (found.dtype, found.shape, found.stype, found.data) == (array.dtype, array.shape, array.stype, array.data)
    assert found.numpy().tobytes() == array.numpy().tobytes()
    assert not values.size or not values.itemsize or found.values.base is not None  # a view of the array's bytes
    assert opened(found) is found


def changed(array: Array, **fields: object) -> Array:
    """An array that says something else of itself."""
    made = Array(array.dtype, array.shape, array.stype, array.data)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


PLAIN = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
ODD = {
    "in Fortran's order": Array(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    "of another kind": changed(PLAIN, stype="pickled"),
    "of another type": changed(PLAIN, dtype="float64"),
    "of another shape": changed(PLAIN, shape=(3, 2)),
    "cut short": changed(PLAIN, data=PLAIN.data[:-1]),
    "with something after it": changed(PLAIN, data=PLAIN.data + b"x"),
    "with objects": changed(PLAIN, data=PLAIN.data.replace(b"'<f4'", b"'|O' ")),
    "with code in its header": changed(PLAIN, data=PLAIN.data.replace(b"'<f4'", b"exit()")),
    "without a header": changed(PLAIN, data=b"some bytes"),
    "empty": changed(PLAIN, data=b""),
    "of a later format": changed(PLAIN, data=PLAIN.data[:6] + b"\x02" + PLAIN.data[7:]),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_not_plain_is_left_as_it_is(what: str) -> None:
    """What `Values` would send for it would be something else."""
    assert opened(ODD[what]) is None


def test_opening_copies_nothing() -> None:
    """A model of millions is opened for every client."""
    found = opened(PLAIN)
    assert isinstance(found, Values)
    assert np.shares_memory(found.values, np.frombuffer(PLAIN.data, np.uint8))
    assert not found.values.flags.writeable
