"""A model as one flat vector.

`Layout` says where each trainable parameter and each floating buffer lies; `FlatModule` makes a module's
parameters, gradients and buffers views of flat vectors, so that receiving a model is one copy and an update
one subtraction. Integer buffers (batch norm's counter) stay where they are and are never sent.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor, nn

from fedsim.arrays import encode, recorded
from fedsim.arrays import view as values_of
from fedsim.errors import ModelError
from fedsim.products import Gradient, Gradients, Product


class Slot(NamedTuple):
    """A named tensor's place in a flat vector, and the strides of a view of it."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where a model's parameters and floating buffers lie in their vectors, in the plain model's own order."""

    parameters: tuple[Slot, ...]
    buffers: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """D, the number of trainable parameters."""
        return self.parameters[-1].stop if self.parameters else 0

    @property
    def buffer_size(self) -> int:
        """Number of values in floating buffers."""
        return self.buffers[-1].stop if self.buffers else 0


class Weights(NamedTuple):
    """A model's values: `vector` [D] of parameters and `buffers` [E] of floating buffers."""

    vector: Tensor
    buffers: Tensor

    def clone(self) -> "Weights":
        """A copy that shares no memory."""
        return Weights(self.vector.clone(), self.buffers.clone())


def _slots(tensors: Mapping[str, Tensor]) -> tuple[Slot, ...]:
    slots, start = [], 0
    for name, tensor in tensors.items():
        strides = torch.empty(tensor.shape, device="meta").stride()
        slots.append(Slot(name, tuple(tensor.shape), start, start + tensor.numel(), strides))
        start += tensor.numel()
    return tuple(slots)


def views(slots: Iterable[Slot], vector: Tensor) -> list[Tensor]:
    """The tensors that lie in a contiguous flat vector, as views of it; half the time of a slice and a `view`."""
    first = vector.storage_offset()
    return [vector.as_strided(slot.shape, slot.strides, first + slot.start) for slot in slots]


def _floating_buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def layout_of(module: nn.Module) -> Layout:
    """The layout of a plain module's trainable parameters and floating buffers."""
    return Layout(_slots(_trainable(module)), _slots(_floating_buffers(module)))


class FlatModule:
    """A module that lives on flat vectors.

    Attributes:
        module: the module itself; call it as usual.
        vector: [D] its parameters; a new one after each `load`, so that who has taken the old one may keep it.
        gradient: [D] where `backward()` adds gradients; zero it before.
        buffers: [E] its floating buffers.
        constants: frozen parameters and integer buffers by name, as they were at first; never sent.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter] | None = None) -> None:
        """Move `module` onto flat vectors.

        Args:
            module: of one floating type throughout.
            parameters: the trainable parameters by the plain model's names and in its order, where the
                module names or orders them otherwise (the private LSTM does).
        """
        self.module = module
        self._parameters = dict(parameters) if parameters is not None else _trainable(module)
        self._buffers = _floating_buffers(module)
        if not self._parameters:
            raise ModelError("the model has no trainable parameter, so there is nothing to federate")
        kinds = {tensor.dtype for tensor in (*self._parameters.values(), *self._buffers.values())}
        if len(kinds) > 1:
            raise ModelError(f"the model mixes {', '.join(sorted(map(str, kinds)))}; use one floating type")
        self.layout = Layout(_slots(self._parameters), _slots(self._buffers))
        self._tensors = tuple(self._parameters.values())
        self._live_on(torch.cat([parameter.detach().reshape(-1) for parameter in self._tensors]))
        self.gradient = torch.zeros_like(self.vector)
        self.buffers = torch.empty(self.layout.buffer_size, dtype=self.vector.dtype)
        self._gradient_views = views(self.layout.parameters, self.gradient)
        for view, parameter in zip(self._gradient_views, self._tensors, strict=True):
            parameter.grad = view
        self._gradients = Gradients(self._tensors)
        self.constants = {
            name: tensor.detach().clone()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
            if not (tensor.requires_grad or name in self._buffers)
        }
        self._counters = [(buffer, buffer.clone()) for buffer in module.buffers() if not buffer.is_floating_point()]
        self._places = [_place(module, tensor) for tensor in (*self._tensors, *self._buffers.values())]
        for view, buffer in zip(views(self.layout.buffers, self.buffers), self._buffers.values(), strict=True):
            view.copy_(buffer)
            buffer.data = view

    def load(self, weights: Weights) -> None:
        """Take over `weights`, after making sure that nothing has detached the views.

        Integer buffers (batch norm's counter) start anew, so that no client sees what another one left behind.
        """
        self.check()
        self._live_on(torch.empty_like(self.vector).copy_(weights.vector))
        if len(self.buffers):
            self.buffers.copy_(weights.buffers)
        for counter, first in self._counters:
            counter.copy_(first)

    def reattach(self) -> None:
        """Make all parameters views of the vector again, after work that was interrupted anywhere."""
        self._live_on(self.vector)

    def _live_on(self, vector: Tensor) -> None:
        """Make every parameter a view of `vector` [D]: cheaper than a copy in and a copy out."""
        self.vector = vector
        self._views = views(self.layout.parameters, vector)
        for parameter, view in zip(self._tensors, self._views, strict=True):
            parameter.data = view

    @property
    def read(self) -> list[Tensor]:
        """What a pass may read besides the batch: all parameters and buffers, and the gradient of a loss by itself."""
        return [*self.module.parameters(), *self.module.buffers(), self._gradients.one]

    def gradients(self, loss: Tensor) -> Sequence[Gradient]:
        """Each parameter's gradient of a scalar loss, in the layout's order; None where one was not used."""
        return self._gradients(loss)

    def differentiate(self, loss: Tensor) -> Tensor:
        """The gradient [D] of a scalar loss, in `gradient`; zero where a parameter was not used.

        One pass over memory: faster than clearing `gradient` and letting `backward()` add to it.
        """
        return self.gathered(self.gradients(loss))

    def descend(
        self, gradients: Sequence[Gradient], rate: float, observe: Callable[[Tensor], None] | None = None
    ) -> None:
        """One step of plain gradient descent: `vector` -= rate * gradient.

        Products are added without being rounded first, so where weights are large the bits are not those of
        `gathered` and a step. `observe` is told the gradient [D] before the step, and changes nothing of it.
        """
        if observe is not None:
            observe(self.gathered(gradients))
        moved: list[Tensor] = []
        by: list[Tensor] = []
        for view, gradient in zip(self._views, gradients, strict=True):
            if isinstance(gradient, Product):
                view.addmm_(*gradient, alpha=-rate)
            elif gradient is not None:
                moved.append(view)
                by.append(gradient)
        if moved:
            torch._foreach_add_(moved, by, alpha=-rate)

    def gathered(self, gradients: Sequence[Gradient]) -> Tensor:
        """Parameters' gradients as one [D], in `gradient`."""
        taken: list[Tensor] = []
        whole: list[Tensor] = []
        for view, gradient in zip(self._gradient_views, gradients, strict=True):
            if isinstance(gradient, Product):
                torch.mm(*gradient, out=view)
            elif gradient is None:
                view.zero_()
            else:
                taken.append(view)
                whole.append(gradient)
        if taken:
            torch._foreach_copy_(taken, whole)
        return self.gradient

    def check(self) -> None:
        """Raise ModelError when a parameter, gradient or buffer no longer lies on its vector.

        `.to()`, `channels_last`, deepcopy and assignments in a user's model detach silently.
        """
        step, vector, gradient = self.vector.element_size(), self.vector.data_ptr(), self.gradient.data_ptr()
        places = iter(self._places)
        for slot, parameter in zip(self.layout.parameters, self._tensors, strict=True):
            grad, start = parameter.grad, slot.start * step
            on_vector = parameter.data_ptr() == vector + start
            on_gradient = grad is not None and grad.data_ptr() == gradient + start
            if not (on_vector and on_gradient and _at(self.module, next(places)) is parameter):
                raise ModelError(f"parameter {slot.name!r} left the flat vector; do not reassign it or its grad")
        for slot, buffer in zip(self.layout.buffers, self._buffers.values(), strict=True):
            on_vector = not buffer.numel() or buffer.data_ptr() == self.buffers.data_ptr() + slot.start * step
            if not (on_vector and _at(self.module, next(places)) is buffer):
                raise ModelError(f"buffer {slot.name!r} left the flat vector; update it in place")


def _place(module: nn.Module, tensor: Tensor) -> list[str]:
    """The path of attributes that leads from a module to one of its parameters or buffers."""
    named = (*module.named_parameters(), *module.named_buffers())
    return next(name.split(".") for name, each in named if each is tensor)


def _at(module: nn.Module, place: list[str]) -> Tensor | None:
    """What a module now has at that place; walking one path is cheaper than listing all that the module has."""
    *path, last = place
    owner: nn.Module | None = module
    for name in path:
        owner = owner._modules.get(name) if owner is not None else None
    return None if owner is None else owner._parameters.get(last, owner._buffers.get(last))


def to_record(layout: Layout, weights: Weights) -> ArrayRecord:
    """The model as Flower sends it: one array per parameter and floating buffer, by name."""
    record: dict[str, Array] = {}
    for slots, vector in ((layout.parameters, weights.vector), (layout.buffers, weights.buffers)):
        values = vector.detach().numpy()
        for slot in slots:
            record[slot.name] = encode(values[slot.start : slot.stop].reshape(slot.shape))
    return recorded(record)


def from_record(layout: Layout, record: ArrayRecord) -> Weights:
    """The flat vectors of a model that came as named arrays.

    Raises:
        ModelError: a name is missing or unknown, or a shape differs.
    """
    arrays = {name: values_of(array) for name, array in record.items()}
    expected = [slot.name for slot in (*layout.parameters, *layout.buffers)]
    if set(arrays) != set(expected):
        odd = sorted(set(arrays) ^ set(expected))
        raise ModelError(f"the model's arrays do not match its layout: {', '.join(odd[:3])}")
    parts = [_gather(layout.parameters, arrays), _gather(layout.buffers, arrays)]
    kind = parts[0].dtype
    return Weights(torch.from_numpy(parts[0]), torch.from_numpy(parts[1].astype(kind, copy=False)))


def _gather(slots: Iterable[Slot], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    for slot in slots:
        if tuple(arrays[slot.name].shape) != slot.shape:
            raise ModelError(f"array {slot.name!r} has shape {arrays[slot.name].shape}, the model needs {slot.shape}")
    pieces = [np.ravel(arrays[slot.name]) for slot in slots]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)


def is_finite(vector: Tensor) -> bool:
    """Whether all values are finite; a finite sum says so in one fast pass."""
    return math.isfinite(float(vector.sum())) or bool(torch.isfinite(vector).all())


def fingerprint(weights: Weights) -> str:
    """SHA-256 of the flat parameters, then the floating buffers, as little-endian float32 in layout order."""
    digest = hashlib.sha256()
    for vector in weights:
        digest.update(np.ascontiguousarray(vector.detach().numpy(), dtype="<f4").data)
    return digest.hexdigest()
