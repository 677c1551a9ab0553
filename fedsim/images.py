"""Images in memory as [B, H, W, C], for convolutions and pooling on a CPU.

The numbers and their places are the same, `x[b, c, h, w]`; what lies beside what is not, and what convolution and
pooling make of it lies as their input did. On a CPU a step of a small convolutional network takes 0.55 to 0.85 of its
time so; the bits are others. Weights keep their layout.
"""

from typing import Any

import torch
from torch import Tensor, nn

_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Conv2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.ReLU,
    nn.Tanh,
    nn.GELU,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
    nn.Flatten,
    nn.Linear,
)
"""Layers that take any layout and are not slower for it."""


def channels_last(x: Tensor) -> Tensor:
    """The same images [B, C, H, W], on a CPU laid out as [B, H, W, C].

    `contiguous(memory_format=torch.channels_last)` would leave images of one channel as they are, and `vmap` has no
    rule for it.
    """
    if x.device.type != "cpu":
        return x
    return x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def prefer_channels_last(module: nn.Module) -> nn.Module:
    """Have a model of images take them so, where that is known to be right; another is left as it is.

    It is for a chain of well-known layers, convolutions among them, and for a model that says `any_layout = True`: its
    `forward` may reshape by `flatten` or `reshape`, not by `view`, which fails on this layout. Opacus' per-example
    gradients of convolutions are wrong on it, so twins for privacy are made before.
    """
    parts = [part for part in module.modules() if type(part).forward is not nn.Sequential.forward]
    chain = nn.Conv2d in map(type, parts) and all(type(part) in _LAYERS for part in parts)
    if chain or getattr(module, "any_layout", False):
        module.register_forward_pre_hook(_first_as_channels_last)
    return module


def _first_as_channels_last(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    x, *more = arguments
    return (channels_last(x), *more) if isinstance(x, Tensor) and x.ndim == 4 else None
