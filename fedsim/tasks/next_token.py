"""The next byte at every place of a text."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data.corpus import BYTES
from fedsim.errors import DataError
from fedsim.metrics import Statistics
from fedsim.problem import Answer, Problem, floats_or_whole, one_tensor, ratio, same_shape, sum_of, tensor


def next_token(classes: tuple[str, ...]) -> Problem:
    """Predict the next byte; `classes` is what people call each."""
    return NextToken(classes)


@dataclass(frozen=True)
class NextToken:
    """The next byte at every place of a window; the model's output is [B, L, 256] logits.

    Statistics: `loss` (sum over windows of their mean, nats), `rows` (windows), `tokens`, `correct`, `nats`
    (sum over bytes).
    """

    classes: tuple[str, ...] = ()
    headline: ClassVar[str] = "bits-per-character"
    lower: ClassVar[frozenset[str]] = frozenset({"loss", "perplexity", "bits-per-character"})
    outputs: ClassVar[int] = BYTES

    def check_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """See `Problem`."""
        if x.dtype != np.uint8 or y.dtype != np.uint8 or x.shape != y.shape:
            raise DataError(f"x of {x.dtype} and y of {y.dtype}; next-token needs two uint8 [N, L]")

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return floats_or_whole(x)

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return tensor(y).long()

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy [B], the mean over each window's bytes."""
        return self._nats(output, targets).mean(1)

    def mean_loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """See `Problem`; windows are equally long, so the mean over them is that over all bytes."""
        return functional.cross_entropy(output.flatten(0, 1), targets.flatten())

    def _nats(self, output: Tensor, targets: Tensor) -> Tensor:
        each = functional.cross_entropy(output.flatten(0, 1), targets.flatten(), reduction="none")
        return each.view_as(targets)

    def zeros(self) -> Statistics:
        """See `Problem`."""
        return {name: np.zeros(1) for name in ("loss", "rows", "tokens", "correct", "nats")}

    def statistics(self, output: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        nats = self._nats(output, targets)
        return {
            "loss": sum_of(nats.mean(1)),
            "rows": np.array([float(len(targets))]),
            "tokens": np.array([float(targets.numel())]),
            "correct": sum_of(output.argmax(2) == targets),
            "nats": sum_of(nats),
        }

    def measure(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        return self.statistics(module(inputs), targets)

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """Loss, accuracy and perplexity per byte, and bits per character (of one byte)."""
        sums = {name: float(values[0]) for name, values in statistics.items()}
        nats = ratio(sums["nats"], sums["tokens"])
        return {
            "loss": ratio(sums["loss"], sums["rows"]),
            "accuracy": ratio(sums["correct"], sums["tokens"]),
            "perplexity": math.inf if nats > 700 else math.exp(nats),  # e^710 is no float
            "bits-per-character": nats / math.log(2),
        }

    def metric_names(self) -> list[str]:
        """See `Problem`."""
        return ["loss", "accuracy", "perplexity", "bits-per-character"]

    def answer(self, x: Tensor, output: Tensor) -> Answer:
        """The likeliest byte after a text, and its probability."""
        odds = output[:, -1].softmax(1)
        best, likely = odds.argmax(1).tolist(), odds.max(1).values.tolist()
        names = self.classes or tuple(map(str, range(BYTES)))
        rows = [[names[byte], odd] for byte, odd in zip(best, likely, strict=True)]
        return Answer(["next", "probability"], rows)

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """See `Problem`."""
        logits = one_tensor(output, f"[rows, {targets.shape[1]}, {BYTES}]", name)
        same_shape(logits, (*targets.shape, BYTES), name)
