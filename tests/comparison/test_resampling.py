"""Metrics on drawn test rows: sums row by row, what a run leaves behind, and intervals against plain formulas."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.comparison.resampling import (
    DRAWS,
    FILE,
    Resampled,
    paired_bootstrap,
    read_resampled,
    resampled,
    row_sums,
    save_resampled,
)
from fedsim.data.federation import Rows
from fedsim.errors import RunFolderError
from fedsim.job import Job
from fedsim.own import Metric, Own, with_own
from fedsim.parameters import FlatModule
from fedsim.problem import Problem, evaluate
from fedsim.summary import Result
from fedsim.tasks.classification import Classification
from fedsim.tasks.control import Control
from fedsim.tasks.generation import Generation
from fedsim.tasks.multi_label import MultiLabel
from fedsim.tasks.next_token import NextToken
from fedsim.tasks.reconstruction import Reconstruction
from fedsim.tasks.regression import Regression
from tests import small

ACCURACY = "global/central-test/rows/accuracy"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 4)).astype(np.float32)
TEXT = RNG.integers(97, 123, (11, 9)).astype(np.uint8)
CLASSES = ("a", "b", "c")
SQUARES = Metric(
    "squares",
    sums=lambda output, targets: {"total": output.square().sum()},
    value=lambda sums: float(sums["total"][0]),
)
OWN = with_own(Classification(CLASSES), Own(metrics=[SQUARES]), None, Path(), {"own/squares/total": 1})
LABELS = RNG.integers(0, 3, 11)


class Bytes(nn.Module):
    """Logits of the next byte by the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.table(x)
        return found


CASES: dict[str, tuple[Problem, nn.Module, np.ndarray, np.ndarray]] = {
    "classification": (Classification(CLASSES), nn.Linear(4, 3), X, LABELS),
    "own metric": (OWN, nn.Linear(4, 3), X, LABELS),
    "multi-label": (MultiLabel(CLASSES), nn.Linear(4, 3), X, RNG.integers(0, 2, (11, 3))),
    "regression": (Regression.of(2, {}), nn.Linear(4, 2), X, X[:, :2] + 1),
    "reconstruction": (Reconstruction(4), nn.Linear(4, 4), X, np.c_[X, LABELS > 1].astype(np.float32)),
    "next-token": (NextToken(), Bytes(), TEXT[:, :-1], TEXT[:, 1:]),
    "generation": (Generation(), Bytes(), TEXT[:, :-1], TEXT[:, 1:]),
    "control": (Control(), nn.Linear(4, 2), X, np.zeros(11)),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Result]:
    """A small run that has left its metrics on drawn rows."""
    job = small.job()
    result = small.run(job, tmp_path_factory.mktemp("runs") / "small")
    save_resampled(job, result.folder)
    return job, result


def right(job: Job, result: Result) -> np.ndarray:
    """[N] 1 for each central test row that the last model is right on, else 0."""
    flat, (x, y) = FlatModule(job.build_model()), job.federation.central["test"]
    flat.load(result.weights)
    with torch.no_grad():
        said = flat.module.eval()(torch.from_numpy(x)).argmax(1).numpy()
    return np.asarray(said == y, dtype=np.float64)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_sums_of_rows_are_the_sums_of_all(name: str) -> None:
    """For every task: also where the model writes, so that its output on a row does not say all."""
    problem, module, x, y = CASES[name]
    found = row_sums(module.eval(), problem, Rows(x, y), batch_size=4)
    whole = evaluate(module, problem, x, y)
    assert list(found.lengths) == list(whole)
    total = np.asarray(found.sums.sum(axis=0)).ravel()
    np.testing.assert_allclose(total, np.concatenate(list(whole.values())), rtol=1e-5)
    last = evaluate(module, problem, x[-1:], y[-1:])
    np.testing.assert_allclose(found.sums[[10]].toarray()[0], np.concatenate(list(last.values())), rtol=1e-5)


@torch.no_grad()
def test_many_classes_take_little_room() -> None:
    """A row touches one of the 250,000 confusion counts."""
    problem = Classification(tuple(map(str, range(500))))
    found = row_sums(nn.Linear(4, 500), problem, Rows(X, LABELS), batch_size=4)
    assert found.sums.shape == (11, 250_002) and found.sums.nnz <= 3 * 11


def test_a_run_leaves_its_metrics_on_drawn_rows(trained: tuple[Job, Result]) -> None:
    """First those of the rows as they are, which the summary has too; then as binomial counts would spread."""
    job, result = trained
    kept = read_resampled(result.folder)
    assert kept is not None and kept.rows == len(job.federation.central["test"].x)
    for name, values in kept.values.items():
        assert values.shape == (1 + DRAWS,)
        assert values[0] == pytest.approx(result.values["metrics_last_round"][name], rel=1e-5)
    accuracy = kept.values[ACCURACY]
    share = accuracy[0]
    assert accuracy[1:].std() == pytest.approx(math.sqrt(share * (1 - share) / kept.rows), rel=0.1)
    assert accuracy[1:].mean() == pytest.approx(share, abs=0.01)
    assert not any("recall" in name for name in kept.values)


def test_what_is_left_does_not_change(trained: tuple[Job, Result]) -> None:
    """The same bytes when it is made again, and the global generators as they were."""
    job, result = trained
    before, state = (result.folder / FILE).read_bytes(), torch.get_rng_state()
    save_resampled(job, result.folder)
    assert (result.folder / FILE).read_bytes() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_pairs_share_their_draws(trained: tuple[Job, Result], tmp_path: Path) -> None:
    """The interval is that of the rows' differences, far narrower than of two runs drawn apart."""
    job, result = trained
    other_job = small.job({"train.learning_rate": 0.15})
    other = small.run(other_job, tmp_path / "other")
    save_resampled(other_job, other.folder)
    one, two = read_resampled(result.folder), read_resampled(other.folder)
    assert one is not None and two is not None
    found = paired_bootstrap({1: two}, {1: one}, ACCURACY)
    each = right(other_job, other) - right(job, result)
    assert found is not None and found.n == 1
    assert found.mean == pytest.approx(each.mean())
    assert found.sd == pytest.approx(each.std() / math.sqrt(len(each)), rel=0.1)
    assert found.low <= found.mean <= found.high
    assert [found.low, found.high] == pytest.approx(
        [found.mean - 1.96 * found.sd, found.mean + 1.96 * found.sd], abs=0.5 * found.sd
    )


def test_nothing_differs_from_itself(trained: tuple[Job, Result]) -> None:
    kept = read_resampled(trained[1].folder)
    assert kept is not None
    found = paired_bootstrap({1: kept, 2: kept}, {1: kept, 2: kept}, ACCURACY)
    assert found is not None and (found.n, found.mean, found.sd, found.low, found.high) == (2, 0, 0, 0, 0)


def test_differences_are_averaged_over_seeds() -> None:
    """Two seeds with as many rows drawn apart: the standard error falls by the square root of two."""
    rng = np.random.default_rng(1)
    runs = [Resampled(50, {ACCURACY: np.append(0.5, rng.normal(0.5, 0.1, DRAWS))}) for _ in range(2)]
    still = Resampled(50, {ACCURACY: np.full(1 + DRAWS, 0.4)})
    one = paired_bootstrap({1: runs[0]}, {1: still}, ACCURACY)
    two = paired_bootstrap(dict(enumerate(runs)), {0: still, 1: still}, ACCURACY)
    assert one is not None and two is not None and two.mean == pytest.approx(0.1)
    assert two.sd == pytest.approx(one.sd / math.sqrt(2), rel=0.1)
    wider = paired_bootstrap({1: runs[0]}, {1: still}, ACCURACY, level=0.01)
    assert wider is not None and wider.low < one.low and wider.high > one.high


def test_only_the_same_rows_are_compared() -> None:
    """Another seed, another number of rows or another metric is no pair."""
    kept = Resampled(50, {ACCURACY: np.zeros(1 + DRAWS)})
    assert paired_bootstrap({1: kept}, {2: kept}, ACCURACY) is None
    assert paired_bootstrap({1: kept}, {1: kept._replace(rows=51)}, ACCURACY) is None
    assert paired_bootstrap({1: kept}, {1: kept}, "global/central-test/rows/loss") is None


@torch.no_grad()
def test_a_metric_that_some_draws_leave_undefined() -> None:
    """One anomalous row is missing from a third of the draws, which then have no AUC; the others are used."""
    y = np.c_[X, np.arange(11) == 0].astype(np.float32)
    problem = Reconstruction(4)
    sums = row_sums(nn.Linear(4, 4), problem, Rows(X, y), batch_size=4)
    values = resampled(sums, problem, ["auc"], np.random.default_rng(0))
    assert float(np.isnan(values[0]).mean()) == pytest.approx((10 / 11) ** 11, abs=0.05)
    one, still = Resampled(11, {"auc": values[0]}), Resampled(11, {"auc": np.zeros(1 + DRAWS)})
    found = paired_bootstrap({1: one}, {1: still}, "auc")
    assert found is not None and 0 <= found.low <= found.high <= 1


@pytest.mark.parametrize("changes", [{"data.split.central": 0.0}, {"strategy.name": "local"}])
def test_without_test_rows_or_a_global_model_no_metric_is_left(changes: small.Changes, tmp_path: Path) -> None:
    job = small.job({"rounds": 1, **changes})
    result = small.run(job, tmp_path / "run")
    assert read_resampled(result.folder) is None
    save_resampled(job, result.folder)
    kept = read_resampled(result.folder)
    assert kept is not None and not kept.values
    assert paired_bootstrap({1: kept}, {1: kept}, ACCURACY) is None


def test_a_damaged_file_is_named(trained: tuple[Job, Result], tmp_path: Path) -> None:
    content = (trained[1].folder / FILE).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not an archive"):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(RunFolderError, match=FILE):
            read_resampled(tmp_path)
