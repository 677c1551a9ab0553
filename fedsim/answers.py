"""What a model's output says, in words and units of its task."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fedsim.errors import ModelError
from fedsim.tasks.regression import Regression


class Answer(NamedTuple):
    """Of a block of rows.

    Attributes:
        columns: names of what is said.
        rows: one list of values for every row.
    """

    columns: list[str]
    rows: list[list[Any]]


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
    if task == "control":
        raise ModelError("a policy answers its environment step by step, not rows; load it with fedsim.load")
    return _ANSWERS.get(task, _plain)(classes, target, x, output.double() if output.is_floating_point() else output)


def _classes(classes: Sequence[str], target: Mapping[str, Any], x: Tensor, output: Tensor) -> Answer:
    """The likeliest class, and the probability of each."""
    odds = output.softmax(1)
    rows = [[classes[int(best)], *each] for best, each in zip(odds.argmax(1), odds.tolist(), strict=True)]
    return Answer(["prediction", *(f"p({name})" for name in classes)], rows)


def _labels(classes: Sequence[str], target: Mapping[str, Any], x: Tensor, output: Tensor) -> Answer:
    """The labels that are likelier than not, and the probability of each."""
    odds = output.sigmoid()
    rows = [
        ["|".join(name for name, odd in zip(classes, each, strict=True) if odd > 0.5), *each] for each in odds.tolist()
    ]
    return Answer(["prediction", *(f"p({name})" for name in classes)], rows)


def _numbers(classes: Sequence[str], target: Mapping[str, Any], x: Tensor, output: Tensor) -> Answer:
    """Numbers in the data's units, inside their declared range."""
    count = output[0].numel()
    units = Regression.of(count, target).predictions(output)
    return Answer(_numbered(target.get("names", ()), count), units.tolist())


def _next(classes: Sequence[str], target: Mapping[str, Any], x: Tensor, output: Tensor) -> Answer:
    """The likeliest byte after a text, and its probability."""
    odds = output[:, -1].softmax(1)
    best, likely = odds.argmax(1).tolist(), odds.max(1).values.tolist()
    return Answer(["next", "probability"], [[classes[byte], odd] for byte, odd in zip(best, likely, strict=True)])


def _score(classes: Sequence[str], target: Mapping[str, Any], x: Tensor, output: Tensor) -> Answer:
    """The mean squared error of a row's reconstruction: the larger, the less it is like what the model has seen."""
    scores = (output.flatten(1) - x.flatten(1).double()).square().mean(1)
    return Answer(["score"], [[score] for score in scores.tolist()])


def _plain(classes: Sequence[str], target: Mapping[str, Any], x: Tensor, output: Tensor) -> Answer:
    values = output.reshape(len(output), -1)
    return Answer([f"output-{place}" for place in range(1, values.shape[1] + 1)], values.tolist())


def _numbered(names: Sequence[str], count: int) -> list[str]:
    if len(names) == count:
        return list(names)
    return ["prediction"] if count == 1 else [f"prediction-{place}" for place in range(1, count + 1)]


_ANSWERS: Mapping[str, Callable[[Sequence[str], Mapping[str, Any], Tensor, Tensor], Answer]] = {
    "classification": _classes,
    "multi-label": _labels,
    "regression": _numbers,
    "next-token": _next,
    "generation": _next,
    "reconstruction": _score,
}
