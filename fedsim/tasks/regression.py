"""One number for every row, or several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import DataError, ModelError
from fedsim.metrics import Statistics
from fedsim.problem import Answer, Problem, floats_or_whole, one_tensor, ratio, sum_of, tensor


def regression(targets: tuple[int, ...], target: Mapping[str, Any]) -> Problem:
    """Predict numbers.

    Args:
        targets: shape of a row's target: () for one number, (T,) for several.
        target: what the data declare of it, all optional: "mean" and "std", by which a model's outputs are scaled, and
            "range", outside which no prediction lies, each one value (a pair for "range") or one for each of the T; and
            "names".

    Raises:
        DataError: a target has another shape, or what is declared of it does not fit.
    """
    if len(targets) > 1:
        raise DataError(f"targets of shape {list(targets)}: regression takes one number a row, or a list of them")
    return Regression.of(targets[0] if targets else 1, target)


@dataclass(frozen=True)
class Regression:
    """`outputs` = T numbers a row; y is [B] or [B, T] float32 in the data's units.

    A model's output is [B, T] (or [B] for one) in units of its own, (y - mean) / std with declared numbers; so are
    `targets`, and the loss, the mean over T of squared errors. Metrics are in the data's units, of predictions clamped
    to the declared range, and are means over rows and over T.

    Statistics: `loss` (sum over rows), `rows`; sums over rows `squared` [T] and `absolute` [T] of errors in the data's
    units, `sum` [T] and `squares` [T] of scaled targets.
    """

    outputs: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    names: tuple[str, ...] = ()
    headline: ClassVar[str] = "rmse"
    lower: ClassVar[frozenset[str]] = frozenset({"loss", "rmse", "mae", "mse"})

    @classmethod
    def of(cls, count: int, target: Mapping[str, Any]) -> "Regression":
        """Of T numbers a row; `target` and what is raised as of `regression`."""
        try:
            low, high = _range(target.get("range"), count)
            mean, std = _each(target.get("mean", 0.0), count), _each(target.get("std", 1.0), count)
        except (TypeError, ValueError, IndexError) as error:
            raise DataError(
                "target: mean and std should be numbers, one or one for each target, and range [least, greatest]"
            ) from error
        if not all(0 < each < math.inf for each in std):
            raise DataError("target std: should be above 0 and finite")
        if not all(pair[0] < pair[1] for pair in zip(low, high, strict=True)):
            raise DataError("target range: should be [least, greatest]")
        return cls(count, mean, std, low, high, tuple(target.get("names", ())))

    def check_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """See `Problem`."""
        if y.dtype != np.float32 or y.ndim not in (1, 2):
            raise DataError(f"y of type {y.dtype} and shape {y.shape}; regression needs float32 [N] or [N, T]")
        columns = y.reshape(len(y), self.outputs)
        outside = ((columns < np.array(self.low, np.float32)) | (columns > np.array(self.high, np.float32))).any(axis=1)
        if outside.any():
            row = int(np.argmax(outside))
            raise DataError(f"a target outside its declared range in row {row}: {y[row].tolist()}")

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return floats_or_whole(x)

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """[B, T], scaled."""
        values = tensor(y).reshape(len(y), self.outputs)
        return (values - values.new_tensor(self.mean)) / values.new_tensor(self.std)

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """Squared error of scaled values [B], the mean over T."""
        return functional.mse_loss(output.reshape(targets.shape), targets, reduction="none").mean(1)

    def mean_loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """See `Problem`."""
        return functional.mse_loss(output.reshape(targets.shape), targets)

    def predictions(self, output: Tensor) -> Tensor:
        """[B, T] what a model's output says, in the data's units and inside the declared range."""
        values = output.reshape(len(output), self.outputs).double()
        units = values * values.new_tensor(self.std) + values.new_tensor(self.mean)
        return torch.clamp(units, values.new_tensor(self.low), values.new_tensor(self.high))

    def zeros(self) -> Statistics:
        """See `Problem`."""
        sums = {name: np.zeros(self.outputs) for name in ("squared", "absolute", "sum", "squares")}
        return {"loss": np.zeros(1), "rows": np.zeros(1), **sums}

    def statistics(self, output: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        scaled = targets.double()
        errors = self.predictions(output) - (scaled * scaled.new_tensor(self.std) + scaled.new_tensor(self.mean))
        sums = {"squared": errors**2, "absolute": errors.abs(), "sum": scaled, "squares": scaled**2}
        return {
            "loss": sum_of(self.losses(output, targets)),
            "rows": np.array([float(len(targets))]),
            **{name: values.sum(0).numpy() for name, values in sums.items()},
        }

    def measure(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        return self.statistics(module(inputs), targets)

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """Loss (scaled), RMSE, MAE and MSE in the data's units, and R^2, the mean over T of 1 - errors / variance."""
        rows = float(statistics["rows"][0])
        mse = ratio(float(statistics["squared"].mean()), rows)
        return {
            "loss": ratio(float(statistics["loss"][0]), rows),
            "rmse": math.sqrt(mse),
            "mae": ratio(float(statistics["absolute"].mean()), rows),
            "mse": mse,
            "r2": self._r2(statistics, rows),
        }

    def _r2(self, statistics: Statistics, rows: float) -> float:
        """nan where a target is the same in all rows: nothing could be explained there."""
        if not rows:
            return math.nan
        # Scaled values lie near 0, so that little is lost in the difference.
        spread = statistics["squares"] - statistics["sum"] ** 2 / rows
        if (spread <= 1e-9 * statistics["squares"]).any():
            return math.nan
        return float(np.mean(1 - statistics["squared"] / (spread * np.square(self.std))))

    def metric_names(self) -> list[str]:
        """See `Problem`."""
        return ["loss", "rmse", "mae", "mse", "r2"]

    def answer(self, x: Tensor, output: Tensor) -> Answer:
        """Numbers in the data's units, inside their declared range."""
        names = list(self.names)
        if len(names) != self.outputs:
            several = [f"prediction-{place}" for place in range(1, self.outputs + 1)]
            names = several if self.outputs > 1 else ["prediction"]
        return Answer(names, self.predictions(output).tolist())

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """See `Problem`."""
        numbers, wanted = one_tensor(output, f"[rows, {self.outputs}]", name), tuple(targets.shape)
        if tuple(numbers.shape) != wanted and not (self.outputs == 1 and tuple(numbers.shape) == wanted[:1]):
            raise ModelError(f"{name} gives outputs of shape {list(numbers.shape)}, the data needs {list(wanted)}")


def _each(value: float | Sequence[float], count: int) -> tuple[float, ...]:
    values = (float(value),) * count if isinstance(value, int | float) else tuple(map(float, value))
    if len(values) != count:
        raise DataError(f"target: {len(values)} numbers are declared of {count} targets; give one, or one for each")
    return values


def _range(given: Sequence[Any] | None, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if given is None:
        return (-math.inf,) * count, (math.inf,) * count
    pairs = [given] * count if not isinstance(given[0], list | tuple) else list(given)
    low, high = zip(*((float(low), float(high)) for low, high in pairs), strict=True)
    return _each(low, count), _each(high, count)
