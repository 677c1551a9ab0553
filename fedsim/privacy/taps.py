"""Each row's gradient of every parameter from one backward pass that makes no parameter's gradient.

Every layer notes what it sees. The backward pass then goes no further than the outputs of layers, and the gradients
found there are paired with what was seen (`layers.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedsim.errors import ModelError
from fedsim.privacy import layers
from fedsim.privacy.rows import RowGradients, Whole


class PerRow(Protocol):
    """A model whose losses give each row's gradients.

    Attributes:
        parameters: those that are trained, by name.
    """

    parameters: Mapping[str, nn.Parameter]

    def __call__(self, losses: Tensor) -> list[RowGradients | None]:
        """The gradients of `losses` [B], of one forward pass, in the parameters' order; None where one was not used.

        Raises:
            ModelError: a layer was given something else than the batch's rows.
        """
        ...

    def forget(self) -> None:
        """Drop what is kept of a forward pass."""
        ...


class _Noted(NamedTuple):
    """One call of a layer: what it saw, in which version of that memory, and its output's place in the graph."""

    layer: nn.Module
    seen: Tensor
    version: int
    output: GradientEdge
    shape: torch.Size


class Taps:
    """`PerRow` of a model all of whose layers are known.

    A layer may be called several times and a parameter may belong to several layers: what they contribute to a row is
    added up. A parameter that is used past its layer has a gradient that is not found here; `trial` looks for that.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        """Have the layers of `module` note what they see whenever their output leads to a parameter."""
        self.parameters = parameters
        self._noted: list[_Noted] = []
        for layer in module.modules():
            if any(parameter is not None and parameter.requires_grad for parameter in layer._parameters.values()):
                layer.register_forward_hook(self._note, with_kwargs=True)

    def __call__(self, losses: Tensor) -> list[RowGradients | None]:
        """See `PerRow`."""
        noted, self._noted = self._noted, []
        calls: dict[nn.Module, list[layers.Call]] = {}
        for each, gradient in zip(noted, _differentiated(losses, noted), strict=True):
            if gradient is not None:
                _check(each, losses.shape[0])
                calls.setdefault(each.layer, []).append((each.seen, gradient.reshape(each.shape)))
        found: dict[nn.Parameter, RowGradients] = {}
        for layer, of_layer in calls.items():
            for parameter, rows in layers.row_gradients(layer, of_layer):
                known = found.get(parameter)
                found[parameter] = rows if known is None else Whole(known.each() + rows.each())
        return [found.get(parameter) for parameter in self.parameters.values()]

    def forget(self) -> None:
        """See `PerRow`."""
        self._noted = []

    def _note(self, layer: nn.Module, inputs: tuple[Any, ...], keys: dict[str, Any], output: Tensor) -> None:
        if output.requires_grad:
            (seen,) = (*inputs, *keys.values())
            # Work in place on a view (a dense layer's output is one of several places) goes past the view's own node.
            base = output if output._base is None else output._base
            self._noted.append(_Noted(layer, seen.detach(), seen._version, get_gradient_edge(base), output.shape))


def _differentiated(losses: Tensor, noted: list[_Noted]) -> tuple[Tensor | None, ...]:
    """What `torch.autograd.grad` gives, whose checks of its arguments take as long as a small layer."""
    if not noted:
        return ()
    run: Callable[..., tuple[Tensor | None, ...]] = Variable._execution_engine.run_backward
    ends, ones = tuple(each.output for each in noted), torch.ones_like(losses)
    return run((losses,), (ones,), False, False, ends, allow_unreachable=True, accumulate_grad=False)


def _check(noted: _Noted, rows: int) -> None:
    """Refuse what a layer saw where it is not the batch, or was changed in place afterwards."""
    kind = type(noted.layer).__name__
    if not layers.fits(noted.layer, noted.seen, rows):
        raise ModelError(
            f"a layer ({kind}) was given {list(noted.seen.shape)} in a batch of {rows} rows under privacy.example. "
            "Give every layer the batch as its first dimension."
        )
    if noted.seen._version != noted.version:
        raise ModelError(
            f"what a layer ({kind}) saw was changed in place afterwards, so privacy.example cannot use it. "
            "Change a copy."
        )
