"""Opacus' hooks, which leave each row's gradient of every parameter behind: how they are set, read and cleared."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from fedsim.privacy.rows import Lookups, Products, RowGradients, Whole, costs_less

Gradients = Literal["hooks", "ghost"]


def set_hooks(module: nn.Module, gradients: Gradients) -> None:
    """Have every backward pass of a sum of rows' losses leave what `row_gradients` reads.

    Args:
        module: in training mode, of layers that Opacus knows.
        gradients: "hooks" keeps them whole, "ghost" as factors where those are smaller.
    """
    {"hooks": WholeHooks, "ghost": GhostHooks}[gradients](module, loss_reduction="sum")


def row_gradients(parameter: nn.Parameter) -> RowGradients | None:
    """What the last backward pass left of a parameter; None where it was not used."""
    left: Tensor | RowGradients | None = parameter.grad_sample  # type: ignore[attr-defined]
    return Whole(left.flatten(1)) if isinstance(left, Tensor) else left


class WholeHooks(GradSampleHooks):  # type: ignore[misc]
    """Opacus' hooks, under which an embedding's padding has no gradient, as it has none under autograd."""

    def capture_backprops_hook(self, module: nn.Module, inputs: Any, outputs: tuple[Tensor, ...], **keys: Any) -> None:
        """Leave each row's gradient of a layer's parameters."""
        super().capture_backprops_hook(module, inputs, (_without_padding(module, outputs[0]),), **keys)


class GhostHooks(WholeHooks):
    """Keeps the weights of dense layers and embeddings as factors, where these are smaller than the gradients.

    Only of a layer whose exact type is known, that was called once and whose parameters no other layer has. Anything
    else is left to Opacus' hooks, which add up what several calls and layers contribute to a row.
    """

    def capture_backprops_hook(self, module: nn.Module, inputs: Any, outputs: tuple[Tensor, ...], **keys: Any) -> None:
        """Leave each row's gradient of a layer's parameters."""
        if not (isinstance(module, nn.Linear | nn.Embedding) and _in_factors(module, outputs[0])):
            super().capture_backprops_hook(module, inputs, outputs, **keys)
            return
        (seen, *_), given = self.rearrange_grad_samples(
            module=module, backprops=_without_padding(module, outputs[0]).detach(), **keys
        )
        given = given.reshape(len(given), -1, given.shape[-1])
        if isinstance(module, nn.Linear):
            _leave(module.weight, Products(seen.reshape(*given.shape[:2], -1).to(given.dtype), given))
            if module.bias is not None and module.bias.requires_grad:
                _leave(module.bias, given.sum(1))
        else:
            _leave(module.weight, Lookups(seen.reshape(given.shape[:2]), given, module.num_embeddings))


def _in_factors(layer: nn.Linear | nn.Embedding, outputs: Tensor) -> bool:
    """Whether a layer's weight is kept as factors, given the gradient [B, ..., O] at its output."""
    trainable = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return (
        type(layer) in (nn.Linear, nn.Embedding)
        and layer.weight.requires_grad
        and all(_used_once(parameter) for parameter in trainable)
        and costs_less(outputs[0].numel() // outputs.shape[-1], layer.weight.numel())
    )


def _used_once(parameter: Tensor) -> bool:
    """Whether one call of one layer is all that this backward pass finds of a parameter."""
    kept = vars(parameter)
    return kept["_forward_counter"] == 1 and "_current_grad_sample" not in kept


def _leave(parameter: Tensor, left: Tensor | RowGradients) -> None:
    parameter.grad_sample, parameter._forward_counter = left, 0  # type: ignore[attr-defined]


def _without_padding(layer: nn.Module, outputs: Tensor) -> Tensor:
    """The gradient at a layer's output; zero where an embedding looked up its padding."""
    if type(layer) is not nn.Embedding or layer.padding_idx is None:
        return outputs
    tokens = vars(layer)["activations"][-1][0]
    return outputs.masked_fill((tokens == layer.padding_idx)[..., None], 0.0)


def clear(module: nn.Module) -> None:
    """Drop the per-example gradients, counters and activations that the hooks left on a module."""
    for parameter in module.parameters():
        parameter.grad_sample, parameter._forward_counter = None, 0  # type: ignore[attr-defined]
        vars(parameter).pop("_current_grad_sample", None)
    for layer in module.modules():
        vars(layer).pop("activations", None)
        vars(layer).pop("max_batch_len", None)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's note that a layer on integer inputs (an embedding) has no input gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="In CPU autocast")
        yield
