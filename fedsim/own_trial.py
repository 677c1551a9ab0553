"""Whether a user's own loss and metrics are what is relied on, tried on a few rows before anything trains.

A step descends on the mean of a batch's losses and privacy bounds those of single rows, so a loss must give one for
each. Clients' sums are added, so a metric's must be those of the parts, whatever the parts. Rows are paired with other
rows' targets and outputs moved a little: a model that has learned nothing may give a wrong metric the right sums.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.errors import FedsimError, ScenarioError, one_line
from fedsim.origins import reference
from fedsim.own import Loss, Metric, Own, OwnProblem, sums_of, value_of
from fedsim.problem import evaluating

_ROWS = 7
_CUT = 3
_TRIALS = 20


def check_own(problem: OwnProblem, own: Own, module: nn.Module, x: np.ndarray, y: np.ndarray) -> dict[str, int]:
    """Try a loss and metrics on the outputs of a model.

    Args:
        problem: with them.
        own: as the user gave them, for messages.
        module: takes these rows.
        x, y: [N, ...] some rows and targets; the more they differ, the more is seen.

    Returns:
        The length of every sum of the metrics, by its name in the statistics.

    Raises:
        ScenarioError: the loss is not one finite value for each row, has no gradient or mixes rows; a metric's sums do
            not add up or make no number.
    """
    places = np.arange(max(len(x), _ROWS)) % len(x)
    inputs, targets = problem.inputs(x[places]), problem.targets(y[places])
    with torch.no_grad(), evaluating(module):
        output = module(inputs.clone())
    if problem.loss is not None:
        _check_loss(problem.loss, reference(own.loss), output, targets)
    lengths: dict[str, int] = {}
    with torch.no_grad(), seeds.scope(0, "trial of metrics"):
        for metric in problem.measures:
            lengths |= _check_metric(metric, output, targets)
    return lengths


def _check_loss(loss: Loss, name: str, output: Tensor, targets: Tensor) -> None:
    leaf = output.detach().clone().requires_grad_()
    alone = torch.cat([_losses(loss, name, leaf[row : row + 1], targets[row : row + 1]) for row in range(3)])
    for rows in (2, 3):
        each = _losses(loss, name, leaf[:rows], targets[:rows])
        if not each.requires_grad:
            raise ScenarioError(f"task.loss: {name} has no gradient; compute it from `output`, with torch alone")
        if not bool(each.isfinite().all()):
            raise ScenarioError(f"task.loss: {name} is not finite on the first rows, before anything is trained")
        if not torch.allclose(each, alone[:rows], rtol=1e-4, atol=1e-6):
            raise ScenarioError(
                f"task.loss: {name} gives a row another loss alone than beside others; use no mean, sum or order over "
                "rows"
            )


def _losses(loss: Loss, name: str, output: Tensor, targets: Tensor) -> Tensor:
    """[B] floats."""
    rows = len(output)
    try:
        each = loss(output, targets)
    except FedsimError:
        raise
    except Exception as error:
        shapes = f"outputs {list(output.shape)} and targets {list(targets.shape)}"
        raise ScenarioError(f"task.loss: {name} fails on {shapes}: {one_line(error)}") from error
    if not isinstance(each, Tensor) or tuple(each.shape) != (rows,):
        found = f"shape {list(each.shape)}" if isinstance(each, Tensor) else f"a {type(each).__name__}"
        raise ScenarioError(
            f"task.loss: {name} gives {found} for {rows} row{'s' if rows > 1 else ''}; return a tensor of one value "
            f'per row, [{rows}], and no mean over rows (in torch: reduction="none")'
        )
    return each


def _check_metric(metric: Metric, output: Tensor, targets: Tensor) -> dict[str, int]:
    whole = sums_of(metric, output, targets)
    lengths = {name: len(values) for name, values in whole.items()}
    for trial in range(_TRIALS):
        rows, others = torch.randperm(len(output))[:_ROWS], torch.randperm(len(output))[:_ROWS]
        if trial == 0:
            rows = others = torch.arange(_ROWS)
        given = output[rows]
        if trial % 2:
            given = given + torch.randn_like(given)
        whole = sums_of(metric, given, targets[others])
        parts = [sums_of(metric, given[part], targets[others][part]) for part in (slice(0, _CUT), slice(_CUT, _ROWS))]
        _check_additive(metric, whole, parts, made_up=trial > 0)
    value_of(metric, {**whole, "rows": np.ones(1)})
    return lengths


def _check_additive(
    metric: Metric, whole: Mapping[str, np.ndarray], parts: list[dict[str, np.ndarray]], *, made_up: bool
) -> None:
    shapes = [{name: len(values) for name, values in each.items()} for each in (whole, *parts)]
    if any(shape != shapes[0] for shape in shapes):
        raise ScenarioError(
            f"task.metrics: metric {metric.name!r} has sums {shapes[0]} of {_ROWS} rows and {shapes[1]} of {_CUT}; "
            "give the same names and lengths, however many rows there are"
        )
    for name, values in whole.items():
        added = parts[0][name] + parts[1][name]
        if made_up and not (np.isfinite(values).all() and np.isfinite(added).all()):
            continue  # outputs that the model would not give
        close = np.isclose(values, added, rtol=1e-4, atol=1e-5, equal_nan=True)
        if not close.all():
            place = int(np.argmin(close))
            raise ScenarioError(
                f"task.metrics: metric {metric.name!r} is not additive: {name.rpartition('/')[2]!r} of {_ROWS} rows is "
                f"{values[place]:.6g}, and of {_CUT} and {_ROWS - _CUT} of them together {added[place]:.6g}; give sums "
                "over rows, and divide in `value`"
            )
