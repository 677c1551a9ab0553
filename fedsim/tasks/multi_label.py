"""Any number of labels for every row, each there or not."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import DataError
from fedsim.metrics import Statistics
from fedsim.problem import Answer, Problem, floats_or_whole, one_tensor, ratio, same_shape, sum_of, tensor


def multi_label(classes: tuple[str, ...]) -> Problem:
    """Say of each label whether a row has it.

    Args:
        classes: names of the labels.
    """
    return MultiLabel(classes)


@dataclass(frozen=True)
class MultiLabel:
    """y is [B, C] of 0 and 1; the model's output is [B, C] logits, a label is predicted where its logit is above 0.

    Statistics: `loss` (sum over rows of the mean over labels, nats), `rows`, `exact` (rows with all labels right);
    per label [C] `hits` (predicted and there), `predicted`, `there`.
    """

    classes: tuple[str, ...]
    headline: ClassVar[str] = "micro-f1"
    lower: ClassVar[frozenset[str]] = frozenset({"loss"})

    @property
    def outputs(self) -> int:
        """C."""
        return len(self.classes)

    def check_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """See `Problem`."""
        if y.ndim != 2 or y.shape[1] != self.outputs:
            raise DataError(f"y of shape {y.shape}; multi-label needs [N, {self.outputs}], a 0 or 1 for each label")
        odd = ((y != 0) & (y != 1)).any(axis=1)
        if odd.any():
            row = int(np.argmax(odd))
            raise DataError(f"labels other than 0 and 1 in row {row} of y: {y[row].tolist()}")

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return floats_or_whole(x)

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """[B, C] as floats."""
        return tensor(y).float()

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy [B], the mean over labels."""
        return functional.binary_cross_entropy_with_logits(output, targets, reduction="none").mean(1)

    def mean_loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """See `Problem`."""
        return functional.binary_cross_entropy_with_logits(output, targets)

    def zeros(self) -> Statistics:
        """See `Problem`."""
        labels = {name: np.zeros(self.outputs) for name in ("hits", "predicted", "there")}
        return {"loss": np.zeros(1), "rows": np.zeros(1), "exact": np.zeros(1), **labels}

    def statistics(self, output: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        predicted, there = output > 0, targets > 0.5
        counts = {"hits": predicted & there, "predicted": predicted, "there": there}
        return {
            "loss": sum_of(self.losses(output, targets)),
            "rows": np.array([float(len(targets))]),
            "exact": sum_of((predicted == there).all(1)),
            **{name: values.sum(0).double().numpy() for name, values in counts.items()},
        }

    def measure(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        return self.statistics(module(inputs), targets)

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """Loss; F1 over all labels of all rows; the mean of F1 over labels that occur or are predicted; exact matches.

        nan where no label occurs or is predicted.
        """
        hits, either = statistics["hits"], statistics["predicted"] + statistics["there"]
        occurs, rows = either > 0, float(statistics["rows"][0])
        return {
            "loss": ratio(float(statistics["loss"][0]), rows),
            "micro-f1": ratio(2 * float(hits.sum()), float(either.sum())),
            "macro-f1": ratio(float((2 * hits[occurs] / either[occurs]).sum()), int(occurs.sum())),
            "exact-match": ratio(float(statistics["exact"][0]), rows),
        }

    def metric_names(self) -> list[str]:
        """See `Problem`."""
        return ["loss", "micro-f1", "macro-f1", "exact-match"]

    def answer(self, x: Tensor, output: Tensor) -> Answer:
        """The labels that are likelier than not, and the probability of each."""
        odds = output.sigmoid().tolist()
        found = [[name for name, odd in zip(self.classes, each, strict=True) if odd > 0.5] for each in odds]
        rows = [["|".join(names), *each] for names, each in zip(found, odds, strict=True)]
        return Answer(["prediction", *(f"p({name})" for name in self.classes)], rows)

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """See `Problem`."""
        same_shape(one_tensor(output, f"[rows, {self.outputs}]", name), tuple(targets.shape), name)
