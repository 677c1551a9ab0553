"""Acting in an environment: a model plays the episodes that rows begin, and says what they came to."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from fedsim.errors import DataError, ModelError
from fedsim.metrics import Statistics
from fedsim.problem import Answer, Problem, floats_or_whole, one_tensor, ratio, same_shape, sum_of, tensor


def control() -> Problem:
    """Play for a high return."""
    return Control()


@dataclass(frozen=True)
class Control:
    """A row is where an episode begins; y is 0, since nobody knows the right answer.

    The model plays the episodes and gives [B, 2]: a loss whose gradient improves its policy, and the return.
    Statistics: `loss`, `rows`, `return`, sums over episodes.
    """

    outputs: ClassVar[int] = 2
    headline: ClassVar[str] = "return"
    lower: ClassVar[frozenset[str]] = frozenset({"loss"})

    def check_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """See `Problem`."""
        if y.ndim != 1 or y.any():
            raise DataError(f"y of type {y.dtype} and shape {list(y.shape)}; control has no targets, give a 0 per row")

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return floats_or_whole(x)

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return tensor(y)

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """[B] what the model says is to be made small."""
        return output[:, 0]

    def mean_loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """See `Problem`."""
        return output[:, 0].mean()

    def zeros(self) -> Statistics:
        """See `Problem`."""
        return {name: np.zeros(1) for name in ("loss", "rows", "return")}

    def statistics(self, output: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        return {
            "loss": sum_of(output[:, 0]),
            "rows": np.array([float(len(targets))]),
            "return": sum_of(output[:, 1]),
        }

    def measure(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        return self.statistics(module(inputs), targets)

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """Means over episodes."""
        rows = float(statistics["rows"][0])
        return {name: ratio(float(statistics[name][0]), rows) for name in self.metric_names()}

    def metric_names(self) -> list[str]:
        """See `Problem`."""
        return ["loss", "return"]

    def answer(self, x: Tensor, output: Tensor) -> Answer:
        """None: a policy acts in its environment."""
        raise ModelError("a policy answers its environment step by step, not rows; load it with fedsim.load")

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """See `Problem`."""
        same_shape(one_tensor(output, "[rows, 2] of losses and returns", name), (len(targets), 2), name)
