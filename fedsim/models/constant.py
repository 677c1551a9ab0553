"""A model that looks at nothing: one answer for every row, or for the next byte one for every byte before it.

For the strategy `constant`, which counts its logits or takes means; they start at 0, where all answers are as likely.
"""

import torch
from torch import Tensor, nn

from fedsim.data.corpus import BYTES, PREDICTS_NEXT
from fedsim.errors import ModelError

_MEANS = ("regression", "reconstruction")


def constant(shape: tuple[int, ...], outputs: int, task: str) -> nn.Module:
    """Answers that depend on no input, or on the previous byte alone.

    Args:
        shape: of one row.
        outputs: values that it gives for every row, or for every place.
        task: "classification" has logits [C], "multi-label" [C, 2], the next of a text [256, 256]; "regression" and
            "reconstruction" have one number for every output.

    Raises:
        ModelError: the next of rows that are not bytes is asked for, or an answer to another task.
    """
    if task in PREDICTS_NEXT:
        if len(shape) != 1:
            raise ModelError(f"model 'constant' predicts the next of rows [L] of bytes, not of rows {list(shape)}")
        return Bigram()
    if task == "multi-label":
        return Odds(outputs)
    if task == "classification" or task in _MEANS:
        return Constant(outputs)
    raise ModelError(f"model 'constant' has no answer for task {task!r}")


class Constant(nn.Module):
    """Rows [B, ...] to the same values [B, outputs]."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or numbers, [B, outputs]."""
        return self.logits.expand(len(x), -1)


class Odds(nn.Module):
    """Rows [B, ...] to the same log odds [B, labels], from one logit for a label's absence and one for its presence."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(labels, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Log odds [B, labels]."""
        absent, present = self.logits.unbind(1)
        return (present - absent).expand(len(x), -1)


class Bigram(nn.Module):
    """Bytes [B, L] to the logits [B, L, 256] of the byte before."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(BYTES, BYTES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, L, 256]."""
        return self.logits[x]
