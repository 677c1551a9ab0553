"""What a task asks of a model: its loss, its statistics and its metrics.

A `Problem` turns arrays into what the model takes, gives each example's loss, and sums what its metrics are
made of. `evaluate` runs a model over rows.
"""

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import registry
from fedsim.errors import ModelError
from fedsim.metrics import Statistics, add

# A federation's rows are read-only on purpose; torch would warn of it once in every process.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Answer(NamedTuple):
    """What a model says of a block of rows.

    Attributes:
        columns: names of what is said.
        rows: one list of values for every row.
    """

    columns: list[str]
    rows: list[list[Any]]


class Problem(Protocol):
    """A task's loss, statistics and metrics."""

    @property
    def headline(self) -> str:
        """The metric by which the task is usually judged, and the best round chosen."""
        ...

    @property
    def lower(self) -> frozenset[str]:
        """Those of the metrics that are better when they are lower."""
        ...

    @property
    def outputs(self) -> int:
        """How many values a model gives for every row, or for every place of a text."""
        ...

    def check_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """Raise DataError where rows [N, ...] are of a type, shape or range that the task cannot use.

        The message is what a sentence goes on with that begins "data set ... has".
        """
        ...

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """[B, ...] as the model takes them: floats as they are (without a copy), whole numbers as int64."""
        ...

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """[B, ...] as the loss takes them: classes and bytes as int64."""
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
        """What the model's output on a block of rows adds to the sums."""
        ...

    def measure(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Statistics:
        """What a block of rows adds to the sums: `statistics` of a module that is in evaluation mode."""
        ...

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """The metrics of summed statistics, one for each of `metric_names`; nan where no row defines it."""
        ...

    def metric_names(self) -> list[str]:
        """Names of the metrics, in the order of reports."""
        ...

    def answer(self, x: Tensor, output: Tensor) -> Answer:
        """What a model's output says of rows, in words and units.

        Args:
            x: [B, ...] the rows as the model took them.
            output: [B, ...] its output, float64.

        Raises:
            ModelError: the task has no answer to a row.
        """
        ...

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """Raise ModelError, one line that starts with `name`, when a model's output does not fit."""
        ...


def problem_for(
    task: str,
    classes: Sequence[str],
    inputs: tuple[int, ...] = (),
    targets: tuple[int, ...] = (),
    folder: Path = Path(),
    target: Mapping[str, Any] | None = None,
) -> Problem:
    """The problem of a task: one of `fedsim.tasks`, or a user's own `file.py:name`.

    Args:
        task: its name. The function of that name is given those of the following that it has parameters for.
        classes: names of the classes; none where rows have none.
        inputs, targets: shapes of one row and of its target.
        folder: where a user's file is looked for.
        target: what the data declare of a number to be predicted: "mean", "std", "range".

    Raises:
        ScenarioError: there is no such task.
    """
    make = registry.find("fedsim.tasks", task, folder, "task")
    known = {"classes": tuple(classes), "inputs": inputs, "targets": targets, "target": target or {}}
    wanted = inspect.signature(make).parameters
    return cast(Problem, make(**{name: value for name, value in known.items() if name in wanted}))


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
            inputs, targets = problem.inputs(x[start : start + batch_size]), y[start : start + batch_size]
            total = add([total, problem.measure(module, inputs.clone(), problem.targets(targets))])
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


def tensor(values: np.ndarray | Tensor) -> Tensor:
    """An array as a tensor, without a copy."""
    return values if isinstance(values, Tensor) else torch.from_numpy(values)


def floats_or_whole(x: np.ndarray | Tensor) -> Tensor:
    """Inputs as models take them: floats as they are, without a copy; whole numbers as int64."""
    values = tensor(x)
    return values if values.is_floating_point() else values.long()


def sum_of(values: Tensor) -> np.ndarray:
    """[1] a sum in float64, as statistics have it."""
    return values.sum(dtype=torch.float64).view(1).numpy()


def ratio(part: float, whole: float) -> float:
    """part / whole; nan where there is nothing to divide by."""
    return float(part / whole) if whole else math.nan


def one_tensor(output: object, wanted: str, name: str) -> Tensor:
    """A model's output, which must be one tensor.

    Args:
        output: of the model.
        wanted: its shape in words.
        name: of the model in messages.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(output, Tensor):
        raise ModelError(f"{name} gives a {type(output).__name__}; return one tensor of logits {wanted}")
    return output


def same_shape(output: Tensor, wanted: tuple[int, ...], name: str) -> None:
    """Raise ModelError where a model's output has another shape."""
    if tuple(output.shape) != wanted:
        raise ModelError(f"{name} gives outputs of shape {list(output.shape)}, the data needs {list(wanted)}")
