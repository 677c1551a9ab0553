"""Anomalies found by what a model cannot reconstruct.

A model that has seen normal rows alone gives them back well, and others badly: a row's score is its mean squared
reconstruction error. Hawkins et al., "Outlier Detection Using Replicator Neural Networks", DaWaK 2002. Training is on
normal rows: an anomalous one has loss 0 wherever it turns up, so it moves nothing.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.errors import DataError
from fedsim.metrics import Statistics
from fedsim.problem import Answer, Problem, floats_or_whole, one_tensor, ratio, same_shape, sum_of, tensor

BINS = 1024
DECADES = 8
"""Scores are counted in bins from 10^-8 to 10^8, 64 to a factor of ten; those beyond lie in the first or the last."""


def reconstruction(inputs: tuple[int, ...]) -> Problem:
    """Reconstruct normal rows.

    Args:
        inputs: shape of a row.
    """
    return Reconstruction(math.prod(inputs))


@dataclass(frozen=True)
class Reconstruction:
    """Rows of F values; the model's output is [B, F], or in the rows' own shape.

    y is float32 [N, F + 1]: the row flattened, and 1 if it is anomalous, else 0. Statistics: `loss` (sum over normal
    rows), `rows`, `normal` and `anomalous` [1024], how many scores lie in every bin.
    """

    outputs: int
    headline: ClassVar[str] = "auc"
    lower: ClassVar[frozenset[str]] = frozenset({"loss"})

    def check_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """See `Problem`."""
        width = self.outputs + 1
        if x.dtype != np.float32 or y.dtype != np.float32 or y.shape != (len(x), width):
            raise DataError(
                f"x of {x.dtype} and y of {y.dtype} and shape {list(y.shape)}; reconstruction needs two float32, and "
                f"in y each row of x flattened, with 1 behind it if it is anomalous, else 0: [rows, {width}]"
            )
        odd = (y[:, -1] != 0) & (y[:, -1] != 1)
        if odd.any():
            row = int(odd.argmax())
            raise DataError(f"{y[row, -1]:g} as the last value of row {row} of y; give 1 if it is anomalous, else 0")

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return floats_or_whole(x)

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return tensor(y)

    def scores(self, output: Tensor, targets: Tensor) -> Tensor:
        """[B] each row's mean squared error."""
        return (output.flatten(1) - targets[:, :-1]).square().mean(1)

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """[B] scores, 0 of anomalous rows."""
        return self.scores(output, targets).masked_fill(targets[:, -1] > 0, 0.0)

    def mean_loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """See `Problem`."""
        return self.losses(output, targets).mean()

    def zeros(self) -> Statistics:
        """See `Problem`."""
        sizes = {"loss": 1, "rows": 1, "normal": BINS, "anomalous": BINS}
        return {name: np.zeros(size) for name, size in sizes.items()}

    def statistics(self, output: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`; a score that is no number counts as the largest."""
        scores = self.scores(output, targets)
        places = (scores.double().log10().nan_to_num(math.inf) + DECADES) * (BINS / (2 * DECADES))
        bins, anomalous = places.clamp(0, BINS - 1).long(), targets[:, -1] > 0
        return {
            "loss": sum_of(self.losses(output, targets)),
            "rows": np.array([float(len(targets))]),
            "normal": torch.bincount(bins[~anomalous], minlength=BINS).double().numpy(),
            "anomalous": torch.bincount(bins[anomalous], minlength=BINS).double().numpy(),
        }

    def measure(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        return self.statistics(module(inputs), targets)

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """Loss of normal rows, and the area under the ROC curve; nan where one of the two kinds is absent.

        The area is the share of pairs of an anomalous and a normal row in which the anomalous one has the larger score
        (Fawcett, "An introduction to ROC analysis", 2006); pairs of one bin, closer than 3.7 %, count half.
        """
        normal, anomalous = statistics["normal"], statistics["anomalous"]
        below = np.cumsum(normal) - normal
        pairs = float((anomalous * (below + normal / 2)).sum())
        return {
            "loss": ratio(statistics["loss"][0], normal.sum()),
            "auc": ratio(pairs, float(normal.sum() * anomalous.sum())),
        }

    def metric_names(self) -> list[str]:
        """See `Problem`."""
        return ["loss", "auc"]

    def answer(self, x: Tensor, output: Tensor) -> Answer:
        """Each row's mean squared error: the larger, the less it is like what the model has seen."""
        scores = (output.flatten(1) - x.flatten(1).double()).square().mean(1)
        return Answer(["score"], [[score] for score in scores.tolist()])

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """See `Problem`."""
        given = one_tensor(output, f"[rows, {self.outputs}]", name)
        same_shape(given.flatten(1) if given.ndim > 1 else given, (len(targets), self.outputs), name)
