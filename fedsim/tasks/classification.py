"""One of several classes for every row."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import DataError, ModelError
from fedsim.metrics import Statistics
from fedsim.problem import Answer, Problem, floats_or_whole, one_tensor, ratio, same_shape, sum_of, tensor


def classification(classes: tuple[str, ...]) -> Problem:
    """Classify rows.

    Args:
        classes: names of the classes.
    """
    return Classification(classes)


@dataclass(frozen=True)
class Classification:
    """One of `classes` per row; the model's output is [B, C] logits.

    Statistics: `loss` (sum over rows, nats), `rows`, `confusion` [C * C] (true class times C plus the
    predicted one).
    """

    classes: tuple[str, ...]
    headline: ClassVar[str] = "accuracy"
    lower: ClassVar[frozenset[str]] = frozenset({"loss"})

    @property
    def outputs(self) -> int:
        """C."""
        return len(self.classes)

    def check_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """See `Problem`."""
        if y.dtype != np.int64 or y.ndim != 1:
            raise DataError(f"y of type {y.dtype} and shape {y.shape}; give one int64 class per row")

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return floats_or_whole(x)

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return tensor(y).long()

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy [B]."""
        return functional.cross_entropy(output, targets, reduction="none")

    def mean_loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """See `Problem`."""
        return functional.cross_entropy(output, targets)

    def zeros(self) -> Statistics:
        """See `Problem`."""
        return {"loss": np.zeros(1), "rows": np.zeros(1), "confusion": np.zeros(len(self.classes) ** 2)}

    def statistics(self, output: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        size = len(self.classes)
        cells = torch.bincount(targets * size + output.argmax(1), minlength=size * size)
        return {
            "loss": sum_of(self.losses(output, targets)),
            "rows": np.array([float(len(targets))]),
            "confusion": cells.double().numpy(),
        }

    def measure(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        return self.statistics(module(inputs), targets)

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """Loss, accuracy, macro F1 (mean over classes that occur or are predicted) and each class's recall."""
        confusion = statistics["confusion"].reshape(len(self.classes), len(self.classes))
        right, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        occurs = true + predicted > 0
        f1 = 2 * right[occurs] / (true + predicted)[occurs]
        rows = float(statistics["rows"][0])
        recalls = (ratio(*pair) for pair in zip(right, true, strict=True))
        values = (ratio(statistics["loss"][0], rows), ratio(right.sum(), rows), ratio(f1.sum(), len(f1)), *recalls)
        return dict(zip(self.metric_names(), values, strict=True))

    def metric_names(self) -> list[str]:
        """See `Problem`."""
        return ["loss", "accuracy", "macro-f1", *(f"recall/{name}" for name in self.classes)]

    def answer(self, x: Tensor, output: Tensor) -> Answer:
        """The likeliest class, and the probability of each."""
        odds = output.softmax(1)
        rows = [[self.classes[best], *each] for best, each in zip(odds.argmax(1).tolist(), odds.tolist(), strict=True)]
        return Answer(["prediction", *(f"p({name})" for name in self.classes)], rows)

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """See `Problem`."""
        logits = one_tensor(output, f"[rows, {len(self.classes)}]", name)
        if logits.ndim == 2 and logits.shape[1] != len(self.classes):
            raise ModelError(f"{name} gives {logits.shape[1]} outputs, the data has {len(self.classes)} classes")
        same_shape(logits, (len(targets), len(self.classes)), name)
