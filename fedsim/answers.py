"""What a model's output says, from what its card says of the task."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedsim.errors import ModelError
from fedsim.problem import Answer, problem_for


def check_answers(task: str) -> None:
    """Refuse to ask a model of rows, where it answers none.

    Raises:
        ModelError: it does not.
    """
    if task == "control":
        raise ModelError("a policy acts in its environment and answers no rows; load it with fedsim.load")


def answer(task: str, classes: Sequence[str], target: Mapping[str, Any], x: Tensor, output: Any) -> Answer:
    """What a model says of rows.

    Args:
        task: by which its output is read; of a user's own task the numbers come as they are.
        classes: names of the classes or labels; none where there are none.
        target: what was declared of numbers to be predicted: "names", "mean", "std", "range".
        x: [B, ...] the rows as the model took them.
        output: [B, ...] of the model.

    Raises:
        ModelError: it is no tensor with a row for each, or the task has no answer to a row.
    """
    if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != len(x):
        raise ModelError(f"the model gives no tensor of {len(x)} rows; predict and export need one")
    values = output.double() if output.is_floating_point() else output
    if ":" in task:
        return _as_they_are(values)
    shapes = tuple(x.shape[1:]), tuple(values.shape[1:])
    return problem_for(task, classes, *shapes, target=target).answer(x, values)


def _as_they_are(output: Tensor) -> Answer:
    values = output.reshape(len(output), -1)
    return Answer([f"output-{place}" for place in range(1, values.shape[1] + 1)], values.tolist())
