"""Each row's gradient of every parameter by Opacus' hooks, for models with layers that `layers.py` does not know."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from fedsim.privacy.rows import RowGradients, Whole


class Hooks:
    """`taps.PerRow` of a model of layers that Opacus knows, in training mode."""

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        """Set the hooks on `module`."""
        self.parameters = parameters
        self._module = module
        _Sampling(module, loss_reduction="sum")

    def __call__(self, losses: Tensor) -> list[RowGradients | None]:
        """See `taps.PerRow`; parameters' own gradients are what autograd adds to them."""
        try:
            with _quiet():
                torch.autograd.backward(losses.sum())
            left = [parameter.grad_sample for parameter in self.parameters.values()]  # type: ignore[attr-defined]
            return [None if sample is None else Whole(sample.flatten(1)) for sample in left]
        finally:
            self.forget()

    def forget(self) -> None:
        """See `taps.PerRow`; otherwise activations would be paired with the next forward pass' gradients."""
        for parameter in self._module.parameters():
            parameter.grad_sample, parameter._forward_counter = None, 0  # type: ignore[attr-defined]
            vars(parameter).pop("_current_grad_sample", None)
        for layer in self._module.modules():
            vars(layer).pop("activations", None)
            vars(layer).pop("max_batch_len", None)


class _Sampling(GradSampleHooks):  # type: ignore[misc]
    """Opacus' hooks, under which an embedding's padding has no gradient, as it has none under autograd."""

    def capture_backprops_hook(self, module: nn.Module, inputs: Any, outputs: tuple[Tensor, ...], **keys: Any) -> None:
        """Leave each row's gradient of a layer's parameters."""
        super().capture_backprops_hook(module, inputs, (_without_padding(module, outputs[0]),), **keys)


def _without_padding(layer: nn.Module, outputs: Tensor) -> Tensor:
    """The gradient at a layer's output; zero where an embedding looked up its padding."""
    if type(layer) is not nn.Embedding or layer.padding_idx is None:
        return outputs
    tokens = vars(layer)["activations"][-1][0]
    return outputs.masked_fill((tokens == layer.padding_idx)[..., None], 0.0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's note that a layer on integer inputs (an embedding) has no input gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="In CPU autocast")
        yield
