"""An autoencoder: dense layers down to a narrow one and up again.

Rumelhart, Hinton, Williams, "Learning internal representations by error propagation", 1986, section "The encoding
problem": what passes through the narrow layer is what rows have in common.
"""

import math
from itertools import pairwise

from torch import Tensor, nn

from fedsim.errors import ModelError
from fedsim.models._fit import at_least_one, not_too_many


def autoencoder(shape: tuple[int, ...], task: str, *, hidden: tuple[int, ...] = (32, 8)) -> nn.Module:
    """An autoencoder for rows of floats of any shape, which it flattens.

    Args:
        shape: of one row.
        task: reconstruction.
        hidden: sizes from the first hidden layer to the narrowest; the way up has the same ones backwards.

    Raises:
        ModelError: the task is another, or a size is impossible.
    """
    if task != "reconstruction":
        raise ModelError(f"model 'autoencoder' gives rows back, which is the task reconstruction and not {task}")
    if not hidden:
        raise ModelError("model 'autoencoder': hidden = [] leaves nothing narrow; give at least one size")
    at_least_one("autoencoder", hidden=min(hidden))
    not_too_many("autoencoder", "layers in hidden", len(hidden))
    return Autoencoder(math.prod(shape), hidden)


class Autoencoder(nn.Module):
    """Rows [B, ...] of `inputs` floats to their reconstruction [B, inputs]."""

    def __init__(self, inputs: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        down = (inputs, *hidden)
        self.encoder = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(down))
        self.decoder = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(down[:0:-1]))
        self.head = nn.Linear(hidden[0], inputs)

    def features(self, x: Tensor) -> Tensor:
        """What the narrow layer holds: [B, last hidden size]."""
        x = x.flatten(1)
        for layer in self.encoder:
            x = layer(x).relu()
        return x

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction [B, inputs]."""
        x = self.features(x)
        for layer in self.decoder:
            x = layer(x).relu()
        whole: Tensor = self.head(x)
        return whole
