"""A multi-layer perceptron: dense layers with ReLU.

"2nn" is McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017: two hidden layers of 200, 199,210 parameters on 28x28 images and 10 classes.
"""

import math
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from fedsim.models._fit import at_least_one, not_too_many, one_output_a_row

Preset = Literal["64-64", "2nn"]
_HIDDEN: dict[Preset, tuple[int, ...]] = {"64-64": (64, 64), "2nn": (200, 200)}


def mlp(
    shape: tuple[int, ...], outputs: int, task: str, *, preset: Preset = "64-64", hidden: tuple[int, ...] | None = None
) -> nn.Module:
    """A perceptron for rows of any shape, which it flattens.

    Args:
        shape: of one row.
        outputs: values that it gives for every row: C logits, or as many numbers as a target has.
        task: any but the next of a text.
        preset: "64-64" or "2nn" (200-200).
        hidden: sizes of the hidden layers, instead of the preset's; () is logistic regression.

    Raises:
        ModelError: the task is another, or a size is impossible.
    """
    one_output_a_row("mlp", task)
    sizes = _HIDDEN[preset] if hidden is None else hidden
    at_least_one("mlp", hidden=min(sizes, default=1))
    not_too_many("mlp", "layers in hidden", len(sizes))
    return MLP(math.prod(shape), sizes, outputs)


class MLP(nn.Module):
    """Rows [B, ...] of `inputs` floats to logits [B, outputs]."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        widths = (inputs, *hidden)
        self.body = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.head = nn.Linear(widths[-1], outputs)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: [B, last hidden size]."""
        x = x.flatten(1)
        for layer in self.body:
            x = layer(x).relu()
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, outputs]."""
        logits: Tensor = self.head(self.features(x))
        return logits
