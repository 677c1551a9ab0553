"""How much a difference depends on which rows the server held out: a paired bootstrap over the central test rows.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13. Rows are drawn anew with replacement,
as many as there are, and a metric is made of the drawn rows' sums: statistics add, so any metric resamples. Draws
depend on the seed and the number of rows alone. Runs of one seed, which share their test rows, thus share their draws,
and what is hard in a draw is hard for all of them.

Rows are drawn one by one, also where several are of one person: an interval is then a little too narrow.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import checkpoints, seeds
from fedsim.comparison.statistics import LEVEL, Interval
from fedsim.data.federation import Rows
from fedsim.errors import RunFolderError
from fedsim.evaluation import CENTRAL_SETS
from fedsim.images import prefer_channels_last
from fedsim.job import Job
from fedsim.local import one_thread
from fedsim.metrics import Statistics, add, with_full_names
from fedsim.parameters import FlatModule
from fedsim.problem import Problem, evaluating

FILE = "resampled.npz"
DRAWS = 2_000
_MOST_VALUES = 1 << 22  # of the counts and sums that are held at once, 32 MB each
_TRIED = 8  # rows on which it is found out whether outputs say all


class Resampled(NamedTuple):
    """A run's metrics on drawn test rows.

    Attributes:
        rows: of the central test set.
        values: [1 + DRAWS] by full name: of the rows as they are, then of each draw; nan where none defines it.
    """

    rows: int
    values: Mapping[str, np.ndarray]


@one_thread()
def save_resampled(job: Job, folder: Path) -> None:
    """Measure the last model of a finished run on drawn test rows, and leave that in its folder.

    Without rows held out by the server, or without a global model, what is left has no metric. Metrics of one class are
    left out, unless it is the task's headline.

    Args:
        job: of the run.
        folder: of the run.

    Raises:
        RunFolderError: its model cannot be read, or the disk is full.
    """
    rows, problem = job.federation.central["test"], job.build_problem()
    measured = len(rows.x) > 0 and not job.build_algorithm().alone
    names = [name for name in problem.metric_names() if measured and ("/" not in name or name == problem.headline)]
    full = list(with_full_names("global", CENTRAL_SETS["test"], "rows", dict.fromkeys(names, 0.0)))
    values = _measured(job, problem, names, folder / "model" / "last.safetensors") if measured else np.empty((0, 0))
    content = io.BytesIO()
    np.savez(content, rows=np.int64(len(rows.x)), names=np.array(full, dtype=np.str_), values=values)
    try:
        checkpoints.write(folder / FILE, content.getvalue())
    except OSError as error:
        raise RunFolderError(f"{folder / FILE} cannot be written: {error.strerror}") from error


def _measured(job: Job, problem: Problem, names: Sequence[str], file: Path) -> np.ndarray:
    """[M, 1 + DRAWS] metrics of the model in a file."""
    flat = FlatModule(prefer_channels_last(job.build_model()))
    flat.load(checkpoints.weights_of(checkpoints.load(file), flat.layout, "", file))
    with seeds.scope(job.scenario.seed, "resampling"), torch.no_grad(), evaluating(flat.module):
        sums = row_sums(flat.module, problem, job.federation.central["test"], job.scenario.evaluate.batch_size)
    return resampled(sums, problem, names, seeds.numpy_generator(job.scenario.seed, "resampling"))


def read_resampled(folder: Path) -> Resampled | None:
    """What `save_resampled` left in a run's folder; None where it left nothing.

    Raises:
        RunFolderError: the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        with np.load(file) as content:
            values = dict(zip(content["names"].tolist(), content["values"], strict=True))
            return Resampled(int(content["rows"]), values)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunFolderError(f"{file} is damaged; remove it") from error


def paired_bootstrap(
    candidate: Mapping[int, Resampled], reference: Mapping[int, Resampled], metric: str, level: float = LEVEL
) -> Interval | None:
    """The percentile interval over test rows of a candidate's mean difference from the reference.

    Within each seed both are measured on the same drawn rows; the differences of a draw are averaged over seeds. The
    interval says what other rows could have shown of these very models, not what other seeds could.

    Args:
        candidate, reference: by seed; seeds that only one has are left out.
        metric: full name.
        level: 1 minus the coverage; for simultaneous intervals divided by their number.

    Returns:
        With the seeds as `n` and the bootstrap's standard error as `sd`; None where nothing was kept of the metric.
    """
    pairs = [(candidate[seed], reference[seed]) for seed in candidate if seed in reference]
    each = [
        ours.values[metric] - theirs.values[metric]
        for ours, theirs in pairs
        if metric in ours.values and metric in theirs.values and ours.rows == theirs.rows
    ]
    if not each:
        return None
    whole, *draws = np.mean(each, axis=0)
    finite = np.array(draws)[np.isfinite(draws)]
    if len(finite) < 2:
        return Interval(len(each), float(whole), np.nan, np.nan, np.nan)
    low, high = np.quantile(finite, [level / 2, 1 - level / 2])
    return Interval(len(each), float(whole), float(finite.std(ddof=1)), float(low), float(high))


class RowSums(NamedTuple):
    """Each row's statistics, of which most are 0 where there are many classes.

    Attributes:
        sums: [N, P] sparse, all statistics of a row beside each other.
        lengths: of the statistics by name, in that order; together P.
    """

    sums: Any
    lengths: Mapping[str, int]


def row_sums(module: nn.Module, problem: Problem, rows: Rows, batch_size: int) -> RowSums:
    """Every row's own statistics of a model in evaluation mode."""
    from scipy.sparse import csr_matrix

    lengths = {name: len(values) for name, values in problem.zeros().items()}
    places: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for statistics in _each_row(module, problem, rows, batch_size):
        row = np.concatenate([statistics[name] for name in lengths])
        places.append(np.flatnonzero(row))
        values.append(row[places[-1]])
    ends = np.cumsum([0, *map(len, places)])
    shape = (len(rows.x), sum(lengths.values()))
    return RowSums(csr_matrix((np.concatenate(values), np.concatenate(places), ends), shape=shape), lengths)


def _each_row(module: nn.Module, problem: Problem, rows: Rows, batch_size: int) -> Iterator[Statistics]:
    """Rows go through the model in blocks where its output says all that is measured, else one by one."""

    def block(start: int, stop: int) -> tuple[Tensor, Tensor]:
        return problem.inputs(rows.x[start:stop]).clone(), problem.targets(rows.y[start:stop])

    if not _outputs_say_all(module, problem, *block(0, _TRIED)):
        for number in range(len(rows.x)):
            yield problem.measure(module, *block(number, number + 1))
        return
    for start in range(0, len(rows.x), batch_size):
        inputs, targets = block(start, start + batch_size)
        output = module(inputs)
        for number in range(len(targets)):
            yield problem.statistics(output[number : number + 1], targets[number : number + 1])


def _outputs_say_all(module: nn.Module, problem: Problem, inputs: Tensor, targets: Tensor) -> bool:
    """Whether `measure` sums no more than is in one tensor of outputs; a task that has the model write does."""
    output = module(inputs.clone())
    if not isinstance(output, Tensor) or len(output) != len(targets):
        return False
    each = add(problem.statistics(output[row : row + 1], targets[row : row + 1]) for row in range(len(targets)))
    whole = problem.measure(module, inputs.clone(), targets)
    return all(np.allclose(each[name], whole[name], rtol=1e-3, equal_nan=True) for name in whole)


def resampled(rows: RowSums, problem: Problem, names: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """[M, 1 + DRAWS] metrics of the rows as they are, then of each draw.

    Args:
        rows: N of them.
        problem: makes metrics of sums.
        names: the M metrics.
        rng: for the draws.
    """
    cuts = np.cumsum(list(rows.lengths.values()))[:-1]
    values = []
    for counts in _drawn(rows.sums.shape[0], max(rows.sums.shape), rng):
        for sums in np.ascontiguousarray((rows.sums.T @ counts.T).T):
            found = problem.metrics(dict(zip(rows.lengths, np.split(sums, cuts), strict=True)))
            values.append([found[name] for name in names])
    return np.array(values).T


def _drawn(rows: int, width: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """[b, rows] how often each row counts: once, and in each draw; as many draws together as memory should hold."""
    yield np.ones((1, rows))
    most, left = max(1, _MOST_VALUES // width), DRAWS
    while left:
        drawn = rng.integers(rows, size=(min(most, left), rows))
        left -= len(drawn)
        yield np.stack([np.bincount(each, minlength=rows) for each in drawn]).astype(np.float64)
