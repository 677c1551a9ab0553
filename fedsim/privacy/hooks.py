"""What Opacus' hooks keep of a forward pass, and the warnings they cause."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
