"""What an object keeps, as named tensors and back: of a Flower Strategy, whose state is its attributes.

Arrays become tensors whose names say where they were, such as "m_t/head.weight". One more tensor, `TREE`, is a JSON
text that says what stood where, and holds numbers and texts. Nothing of it is code, and all of it comes back to the
bit, in its own type. Functions are no state: the object that is restored has its own.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim.arrays import encode, view

TREE = "tree.json"
"""No attribute has a dot in its name."""
_PLAIN = (type(None), bool, int, float, str)
_SEQUENCES: Mapping[str, Callable[..., Any]] = {"list": list, "tuple": tuple}
_TABLES: Mapping[str, Callable[..., Any]] = {
    each.__name__: each for each in (dict, ArrayRecord, MetricRecord, ConfigRecord, RecordDict)
}
_ARRAYS: Mapping[str, Callable[[Tensor], Any]] = {
    "ndarray": lambda tensor: tensor.numpy().copy(),
    "number": lambda tensor: tensor.numpy()[()],
    "Tensor": lambda tensor: tensor.clone(),
    "Array": lambda tensor: encode(tensor.numpy()),
}


def tensors_of(owner: object) -> dict[str, Tensor]:
    """An object's attributes; the tensors share no memory with it.

    Raises:
        ValueError: names an attribute of a type that cannot be kept.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_attributes(owner, "", tensors)).encode()
    return {TREE: torch.frombuffer(bytearray(text), dtype=torch.uint8), **tensors}


def restore(owner: object, tensors: Mapping[str, Tensor]) -> None:
    """Give an object of the same class the attributes in `tensors`.

    Raises:
        ValueError: `tensors` are not what `tensors_of` gives.
    """
    try:
        _set_attributes(owner, json.loads(tensors[TREE].numpy().tobytes()), tensors)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"no attributes of {type(owner).__name__}: {error}") from error


def _attributes(owner: object, prefix: str, tensors: dict[str, Tensor]) -> list[list[Any]]:
    kept = {name: value for name, value in vars(owner).items() if not callable(value)}
    return [[name, _packed(value, prefix + name, tensors)] for name, value in kept.items()]


def _set_attributes(owner: object, packed: list[list[Any]], tensors: Mapping[str, Tensor]) -> None:
    for name, value in packed:
        setattr(owner, name, _unpacked(value, tensors, getattr(owner, name, None)))


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON has it: a plain one itself, another as {kind: content}, where an array's content is a name."""
    kind = type(value).__name__
    if type(value) in _PLAIN:
        return value
    if type(value) is _SEQUENCES.get(kind):
        return {kind: [_packed(part, f"{name}/{place}", tensors) for place, part in enumerate(value)]}
    if type(value) is _TABLES.get(kind):
        return {kind: [[_plain(key, name), _packed(part, f"{name}/{key}", tensors)] for key, part in value.items()]}
    if isinstance(value, Strategy):
        return {"Strategy": _attributes(value, f"{name}/", tensors)}
    while name in tensors:
        name += "'"
    if isinstance(value, Array):
        tensors[name] = _tensor(view(value), name)
    elif isinstance(value, Tensor):
        kind, tensors[name] = "Tensor", value.detach().cpu().clone()
    elif type(value) is np.ndarray or isinstance(value, np.generic):
        kind = "number" if isinstance(value, np.generic) else kind
        tensors[name] = _tensor(value, name)
    else:
        raise ValueError(f"{name} is of type {kind}, which no checkpoint keeps")
    return {kind: name}


def _plain(key: Any, name: str) -> Any:
    if type(key) not in _PLAIN:
        raise ValueError(f"{name} has a key of type {type(key).__name__}, which no checkpoint keeps")
    return key


def _tensor(values: np.ndarray | np.generic, name: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(values, order="C"))
    except TypeError:
        raise ValueError(f"{name} is an array of {values.dtype}, which no checkpoint keeps") from None


def _unpacked(packed: Any, tensors: Mapping[str, Tensor], before: Any) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind in _ARRAYS:
        return _ARRAYS[kind](tensors[content])
    if kind in _SEQUENCES:
        return _SEQUENCES[kind]([_unpacked(part, tensors, None) for part in content])
    if kind in _TABLES:
        return _TABLES[kind]({key: _unpacked(part, tensors, None) for key, part in content})
    if kind != "Strategy" or not isinstance(before, Strategy):
        raise ValueError(f"there is no {kind} to restore")
    _set_attributes(before, content, tensors)
    return before
