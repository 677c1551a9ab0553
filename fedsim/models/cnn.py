"""A convolutional network: convolution, 2x2 max-pooling and activation in each stage, then dense layers.

"mcmahan" is the CNN of McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017: 1,663,370 parameters on 28x28 grey images and 10 classes. "small" is for tiny images
and for private training: few parameters, as the noise grows with their number, and tanh, which keeps
gradients below the clip (Papernot et al., "Tempered Sigmoid Activations for Deep Learning with Differential
Privacy", AAAI 2021).
"""

import math
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import ModelError
from fedsim.models._fit import at_least_one, one_output_a_row

Preset = Literal["small", "32-64-128", "mcmahan"]
Norm = Literal["none", "group", "batch"]
Activation = Literal["relu", "tanh"]


class Design(NamedTuple):
    """What a convolutional network is made of; see `cnn`."""

    channels: tuple[int, ...]
    kernel: int
    dense: int
    activation: Activation
    norm: Norm


_PRESETS: dict[Preset, Design] = {
    "small": Design((16, 16), 3, 0, "tanh", "none"),
    "32-64-128": Design((32, 64), 3, 128, "relu", "none"),
    "mcmahan": Design((32, 64), 5, 512, "relu", "none"),
}


def cnn(
    shape: tuple[int, ...],
    outputs: int,
    task: str,
    *,
    preset: Preset = "small",
    channels: tuple[int, ...] | None = None,
    kernel: int | None = None,
    dense: int | None = None,
    activation: Activation | None = None,
    norm: Norm | None = None,
) -> nn.Module:
    """A convolutional network for images.

    Args:
        shape: of one row, (channels, height, width).
        outputs: values that it gives for every row: C logits, or as many numbers as a target has.
        task: any but the next of a text.
        preset: "small" (16-16), "32-64-128" or "mcmahan"; the keys below replace what it sets.
        channels: of each stage; a stage halves height and width.
        kernel: width of the convolutions, odd; they keep height and width.
        dense: size of the dense layer before the head, 0 for none.
        activation: "relu" or "tanh".
        norm: after each convolution: "none" (all presets), "group" (fits private training) or "batch".

    Raises:
        ModelError: rows are no images, images are too small for the stages, or a size is impossible.
    """
    one_output_a_row("cnn", task)
    given: dict[str, Any] = {
        "channels": channels,
        "kernel": kernel,
        "dense": dense,
        "activation": activation,
        "norm": norm,
    }
    design = _PRESETS[preset]._replace(**{key: value for key, value in given.items() if value is not None})
    _check(shape, design)
    return CNN((shape[0], shape[1], shape[2]), design, outputs)


def _check(shape: tuple[int, ...], design: Design) -> None:
    if len(shape) != 3:
        raise ModelError(f"model 'cnn' takes images [channels, height, width], not rows {list(shape)}; use mlp")
    at_least_one("cnn", channels=min(design.channels, default=0), kernel=design.kernel)
    if design.kernel % 2 == 0 or design.dense < 0:
        raise ModelError(f"model 'cnn': kernel = {design.kernel} should be odd and dense = {design.dense} at least 0")
    least = 2 ** len(design.channels)
    if min(shape[1:]) < least:
        raise ModelError(
            f"model 'cnn': {len(design.channels)} poolings need images of at least {least}x{least}, "
            f"these are {shape[1]}x{shape[2]}; give model.channels fewer stages"
        )


class CNN(nn.Module):
    """Images [B, channels, height, width] to logits [B, outputs]."""

    any_layout = True  # see `fedsim.images`

    def __init__(self, image: tuple[int, int, int], design: Design, outputs: int) -> None:
        super().__init__()
        stages = list(pairwise((image[0], *design.channels)))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(*pair, design.kernel, padding=design.kernel // 2) for pair in stages
        )
        self.norms = nn.ModuleList(_norm(design.norm, size) for size in design.channels)
        self.activation = torch.relu if design.activation == "relu" else torch.tanh
        width = design.channels[-1] * (image[1] >> len(stages)) * (image[2] >> len(stages))
        self.dense = nn.Linear(width, design.dense) if design.dense else None
        self.head = nn.Linear(design.dense or width, outputs)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: [B, dense] or, without a dense layer, all pooled channels."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = self.activation(functional.max_pool2d(norm(convolution(x)), 2))
        x = x.flatten(1)
        return x if self.dense is None else self.activation(self.dense(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, outputs]."""
        logits: Tensor = self.head(self.features(x))
        return logits


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()
