"""What a task asks of a model: its loss, its statistics and its metrics.

A `Problem` turns arrays into what the model takes, gives each example's loss, and sums what its metrics are
made of. `evaluate` runs a model over rows.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data.corpus import Task
from fedsim.errors import ModelError
from fedsim.metrics import Statistics, add

BYTES = 256
"""Values of a byte: the classes of next-token prediction."""

# A federation's rows are read-only on purpose; torch would warn of it once in every process.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Problem(Protocol):
    """A task's loss, statistics and metrics."""

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """[B, ...] as the model takes them: floats as they are (without a copy), whole numbers as int64."""
        ...

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """[B] classes or [B, L] bytes as int64."""
        ...

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """Each example's loss [B], in nats."""
        ...

    def mean_loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """The mean [] of `losses`: what a step descends on. In one operation, since small nets feel a second."""
        ...

    def zeros(self) -> Statistics:
        """The statistics of no rows."""
        ...

    def statistics(self, output: Tensor, targets: Tensor) -> Statistics:
        """What a block of rows adds to the sums."""
        ...

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """The metrics of summed statistics, one for each of `metric_names`; nan where no row defines it."""
        ...

    def metric_names(self) -> list[str]:
        """Names of the metrics, in the order of reports."""
        ...

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """Raise ModelError, one line that starts with `name`, when a model's output does not fit."""
        ...


def problem_for(task: Task, classes: Sequence[str]) -> Problem:
    """The problem of a corpus."""
    return NextToken() if task == "next-token" else Classification(tuple(classes))


@dataclass(frozen=True)
class Classification:
    """One of `classes` per row; the model's output is [B, C] logits.

    Statistics: `loss` (sum over rows, nats), `rows`, `confusion` [C * C] (true class times C plus the
    predicted one).
    """

    classes: tuple[str, ...]

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return _floats_or_whole(x)

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return _tensor(y).long()

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
            "loss": _sum(self.losses(output, targets)),
            "rows": np.array([float(len(targets))]),
            "confusion": cells.double().numpy(),
        }

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """Loss, accuracy, macro F1 (mean over classes that occur or are predicted) and each class's recall."""
        confusion = statistics["confusion"].reshape(len(self.classes), len(self.classes))
        right, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        occurs = true + predicted > 0
        f1 = 2 * right[occurs] / (true + predicted)[occurs]
        rows = float(statistics["rows"][0])
        recalls = (_ratio(*pair) for pair in zip(right, true, strict=True))
        values = (_ratio(statistics["loss"][0], rows), _ratio(right.sum(), rows), _ratio(f1.sum(), len(f1)), *recalls)
        return dict(zip(self.metric_names(), values, strict=True))

    def metric_names(self) -> list[str]:
        """See `Problem`."""
        return ["loss", "accuracy", "macro-f1", *(f"recall/{name}" for name in self.classes)]

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """See `Problem`."""
        logits = _logits(output, f"[rows, {len(self.classes)}]", name)
        if logits.ndim == 2 and logits.shape[1] != len(self.classes):
            raise ModelError(f"{name} gives {logits.shape[1]} outputs, the data has {len(self.classes)} classes")
        _same_shape(logits, (len(targets), len(self.classes)), name)


@dataclass(frozen=True)
class NextToken:
    """The next byte at every place of a window; the model's output is [B, L, 256] logits.

    Statistics: `loss` (sum over windows of their mean, nats), `rows` (windows), `tokens`, `correct`, `nats`
    (sum over bytes).
    """

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return _floats_or_whole(x)

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return _tensor(y).long()

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
            "loss": _sum(nats.mean(1)),
            "rows": np.array([float(len(targets))]),
            "tokens": np.array([float(targets.numel())]),
            "correct": _sum(output.argmax(2) == targets),
            "nats": _sum(nats),
        }

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """Loss, accuracy and perplexity per byte, and bits per character (of one byte)."""
        sums = {name: float(values[0]) for name, values in statistics.items()}
        nats = _ratio(sums["nats"], sums["tokens"])
        return {
            "loss": _ratio(sums["loss"], sums["rows"]),
            "accuracy": _ratio(sums["correct"], sums["tokens"]),
            "perplexity": math.inf if nats > 700 else math.exp(nats),  # e^710 is no float
            "bits-per-character": nats / math.log(2),
        }

    def metric_names(self) -> list[str]:
        """See `Problem`."""
        return ["loss", "accuracy", "perplexity", "bits-per-character"]

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """See `Problem`."""
        logits = _logits(output, f"[rows, {targets.shape[1]}, {BYTES}]", name)
        _same_shape(logits, (*targets.shape, BYTES), name)


def evaluate(
    module: nn.Module, problem: Problem, x: np.ndarray | Tensor, y: np.ndarray | Tensor, batch_size: int = 256
) -> Statistics:
    """Sum a model's statistics over rows, without gradients and with dropout and the like switched off.

    Rows go through in blocks of `batch_size` from the first on: the bits of a block's output depend on its
    size, so that two callers get the same bits for the same rows and block size. The model gets a copy of
    each block, so that one that works in place leaves the rows alone.
    """
    total = problem.zeros()
    with torch.no_grad(), evaluating(module):
        for start in range(0, len(x), batch_size):
            output = module(problem.inputs(x[start : start + batch_size]).clone())
            block = problem.statistics(output, problem.targets(y[start : start + batch_size]))
            total = add([total, block])
    return total


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside the block, and each of its parts back into its own after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _tensor(values: np.ndarray | Tensor) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(values)


def _floats_or_whole(x: np.ndarray | Tensor) -> Tensor:
    values = _tensor(x)
    return values if values.is_floating_point() else values.long()


def _sum(values: Tensor) -> np.ndarray:
    return values.sum(dtype=torch.float64).view(1).numpy()


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _logits(output: object, wanted: str, name: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise ModelError(f"{name} gives a {type(output).__name__}; return one tensor of logits {wanted}")
    return output


def _same_shape(logits: Tensor, wanted: tuple[int, ...], name: str) -> None:
    if tuple(logits.shape) != wanted:
        raise ModelError(f"{name} gives outputs of shape {list(logits.shape)}, the data needs {list(wanted)}")
