"""My model. fedsim calls `Net` once for each worker; its random start follows from the scenario's seed."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A net with one hidden layer.

    Args:
        shape: of one input row, filled in by fedsim from the data.
        classes: number of classes, filled in by fedsim from the data.
        hidden: width of the hidden layer; a key of `[model]` in scenario.toml.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, hidden: int = 32) -> None:
        super().__init__()
        (features,) = shape
        self.body = nn.Linear(features, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Scores [B, classes] of rows [B, features]."""
        scores: Tensor = self.head(torch.relu(self.body(rows)))
        return scores
