"""A user's own loss, metrics and transform of inputs, around the problem that the data pose.

In a scenario they are `file.py:name`, to `fedsim.run` they may be Python objects. A job carries them as they were
given, and every process finds them by itself: what was loaded from a file is known in that process alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from fedsim import registry
from fedsim.data.transform import Transform
from fedsim.errors import FedsimError, ScenarioError, one_line
from fedsim.metrics import Statistics
from fedsim.origins import reference
from fedsim.problem import Answer, Problem, ratio, sum_of

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> [B] each row's loss; a step descends on the mean."""


@dataclass(frozen=True)
class Metric:
    """A metric of one's own. Clients send sums, which are added over all of them before a value is made of them.

    Attributes:
        name: in reports.
        sums: (output, target) of a block of rows -> sums over these rows by name, each a number or a vector.
        value: the added sums, as float64 arrays of at least one number -> the metric; nan where they define none.
        lower: whether it is better when lower.
    """

    name: str
    sums: Callable[[Tensor, Tensor], Mapping[str, Tensor]]
    value: Callable[[Mapping[str, np.ndarray]], float]
    lower: bool = False


class Own(NamedTuple):
    """What takes the place of a task's loss or stands beside its metrics, and what is done to inputs first.

    Attributes:
        loss: instead of the task's.
        metrics: beside the task's.
        transform: of inputs.
    """

    loss: str | Loss | None = None
    metrics: Sequence[str | Metric] = ()
    transform: str | Transform | None = None

    def references(self) -> dict[str, Any]:
        """Where each is to be found again; None where there is none."""
        return {
            "loss": reference(self.loss) if self.loss is not None else None,
            "metrics": [_named(each) for each in self.metrics] or None,
            "transform": reference(self.transform) if self.transform is not None else None,
        }

    def parts(self) -> list[tuple[str, object]]:
        """Everything that was written for it, with its reference."""
        whole = [(reference(each), each) for each in (self.loss, self.transform) if each is not None]
        sums = [(_named(each), each.sums if isinstance(each, Metric) else each) for each in self.metrics]
        return [*whole, *sums]


NOTHING = Own()


def _named(metric: str | Metric) -> str:
    return reference(metric.sums) if isinstance(metric, Metric) else metric


@dataclass(frozen=True)
class OwnProblem:
    """A problem with another loss, with further metrics, or judged by another one.

    Statistics: those of `inner`, of which `loss` is the sum of this loss; and a metric's own under `own/METRIC/SUM`.

    Attributes:
        inner: the task's problem.
        loss: instead of its loss.
        measures: beside its metrics.
        headline: one of all metrics.
        lengths: of every sum of the measures, by its name in the statistics.
    """

    inner: Problem
    loss: Loss | None
    measures: tuple[Metric, ...]
    headline: str
    lengths: Mapping[str, int]

    @property
    def lower(self) -> frozenset[str]:
        """See `Problem`."""
        return self.inner.lower | {metric.name for metric in self.measures if metric.lower}

    @property
    def outputs(self) -> int:
        """See `Problem`."""
        return self.inner.outputs

    def check_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """See `Problem`."""
        self.inner.check_rows(x, y)

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return self.inner.inputs(x)

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return self.inner.targets(y)

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """See `Problem`."""
        return self.loss(output, targets) if self.loss is not None else self.inner.losses(output, targets)

    def mean_loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """See `Problem`."""
        return self.loss(output, targets).mean() if self.loss is not None else self.inner.mean_loss(output, targets)

    def zeros(self) -> Statistics:
        """See `Problem`."""
        return {**self.inner.zeros(), **{name: np.zeros(length) for name, length in self.lengths.items()}}

    def statistics(self, output: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        return self._with_own(self.inner.statistics(output, targets), output, targets)

    def measure(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        with _outputs_on(module, inputs) as outputs:
            statistics = self.inner.measure(module, inputs, targets)
        return self._with_own(statistics, outputs[0] if outputs else module(inputs), targets)

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """See `Problem`."""
        inner = {name: sums for name, sums in statistics.items() if not name.startswith("own/")}
        found = self.inner.metrics(inner)
        if self.loss is not None:  # of every row, where a task's own may be of some
            found["loss"] = ratio(float(statistics["loss"][0]), float(statistics["rows"][0]))
        return {**found, **{each.name: value_of(each, statistics) for each in self.measures}}

    def metric_names(self) -> list[str]:
        """See `Problem`."""
        return [*self.inner.metric_names(), *(metric.name for metric in self.measures)]

    def answer(self, x: Tensor, output: Tensor) -> Answer:
        """See `Problem`."""
        return self.inner.answer(x, output)

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """See `Problem`."""
        self.inner.check(output, targets, name)

    def _with_own(self, statistics: Statistics, output: Tensor, targets: Tensor) -> Statistics:
        own = {name: sums for metric in self.measures for name, sums in sums_of(metric, output, targets).items()}
        if self.loss is not None:
            own["loss"] = sum_of(self.loss(output, targets))
        return {**statistics, **own}


def with_own(
    problem: Problem, own: Own, headline: str | None, folder: Path, lengths: Mapping[str, int] | None = None
) -> Problem:
    """A problem with a user's loss and metrics; the problem itself where there are none.

    Args:
        problem: of the task.
        own: as given.
        headline: the metric to judge by, instead of the task's.
        folder: where files are looked for.
        lengths: from `check_own`; without them nothing can be measured.

    Raises:
        ScenarioError: something is not there, is of another type, or bears a name that is taken.
    """
    if own.loss is None and not own.metrics and headline is None:
        return problem
    loss = own.loss
    if isinstance(loss, str):
        loss = registry.from_file(loss, folder, "task.loss")
    measures = tuple(_metric(each, folder) for each in own.metrics)
    known = list(problem.metric_names())
    for metric in measures:
        if not metric.name or metric.name in known:
            raise ScenarioError(f"task.metrics: {metric.name!r} is the name of another metric; give yours its own")
        known.append(metric.name)
    if headline is not None and headline not in known:
        raise ScenarioError(f"task.headline: there is no metric {headline!r}.{registry.nearest(headline, known)}")
    return OwnProblem(problem, loss, measures, headline or problem.headline, dict(lengths or {}))


def _metric(given: str | Metric, folder: Path) -> Metric:
    found = registry.written_in(given, folder, "task.metrics") if isinstance(given, str) else given
    if not isinstance(found, Metric):
        raise ScenarioError(f"task.metrics: {given!r} is of type {type(found).__name__}; give a fedsim.Metric")
    return found


@contextmanager
def _outputs_on(module: nn.Module, inputs: Tensor) -> Iterator[list[Tensor]]:
    """What a module gives on these very inputs inside the block, so that it need not run again for it."""
    outputs: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if given and given[0] is inputs:
            outputs.append(output)

    handle = module.register_forward_hook(note)
    try:
        yield outputs
    finally:
        handle.remove()


def sums_of(metric: Metric, output: Tensor, targets: Tensor) -> Statistics:
    """A metric's sums over rows, as statistics have them.

    Raises:
        ScenarioError: they are none.
    """
    try:
        found = metric.sums(output, targets)
        return {f"own/{metric.name}/{key}": _vector(value) for key, value in found.items()}
    except FedsimError:
        raise
    except Exception as error:
        raise ScenarioError(f"task.metrics: metric {metric.name!r} fails in its sums: {one_line(error)}") from error


def _vector(value: Any) -> np.ndarray:
    """[n] float64."""
    plain = value.detach().double().cpu().numpy() if isinstance(value, Tensor) else value
    return np.array(plain, dtype=np.float64).reshape(-1)


def value_of(metric: Metric, statistics: Statistics) -> float:
    """A metric of summed statistics; nan of no rows, and where it divides by nothing."""
    if not statistics["rows"][0]:
        return float("nan")
    prefix = f"own/{metric.name}/"
    sums = {name.removeprefix(prefix): value for name, value in statistics.items() if name.startswith(prefix)}
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.asarray(metric.value(sums)).item())
    except ZeroDivisionError:
        return float("nan")
    except Exception as error:
        raise ScenarioError(f"task.metrics: metric {metric.name!r} fails in its value: {one_line(error)}") from error
