"""A model that looks at nothing: one answer for every row, or for the next byte one for every byte before it.

For the strategy `constant`, which counts its logits; they start at 0, where all classes are as likely.
"""

import torch
from torch import Tensor, nn

from fedsim.errors import ModelError

BYTES = 256


def constant(shape: tuple[int, ...], outputs: int, task: str) -> nn.Module:
    """Logits that depend on no input, or on the previous byte alone.

    Args:
        shape: of one row.
        outputs: values that it gives for every row, or for every place.
        task: "classification" has logits [C], "next-token" [256, 256].

    Raises:
        ModelError: the next of rows that are not bytes is asked for.
    """
    if task == "classification":
        return Constant(outputs)
    if len(shape) != 1:
        raise ModelError(f"model 'constant' predicts the next of rows [L] of bytes, not of rows {list(shape)}")
    return Bigram()


class Constant(nn.Module):
    """Rows [B, ...] to the same logits [B, outputs]."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, outputs]."""
        return self.logits.expand(len(x), -1)


class Bigram(nn.Module):
    """Bytes [B, L] to the logits [B, L, 256] of the byte before."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(BYTES, BYTES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, L, 256]."""
        return self.logits[x]
