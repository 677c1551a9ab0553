"""Anomalies by reconstruction error: the area is scikit-learn's, and an anomalous row teaches nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedsim.errors import DataError, ModelError
from fedsim.metrics import add
from fedsim.models.autoencoder import Autoencoder, autoencoder
from fedsim.problem import evaluate, problem_for
from fedsim.tasks.reconstruction import Reconstruction

PROBLEM = Reconstruction(5)


def rows(seed: int, marks: list[bool]) -> tuple[Tensor, Tensor]:
    """Outputs [n, 5] and targets [n, 6]; anomalous rows are somewhat farther off."""
    draws = torch.Generator().manual_seed(seed)
    x, output = torch.randn(2, len(marks), 5, generator=draws)
    marked = torch.tensor(marks).float()[:, None]
    return output * (1 + marked), torch.cat([x, marked], dim=1)


def marks() -> st.SearchStrategy[list[bool]]:
    return st.lists(st.booleans(), min_size=1, max_size=60)


@given(marks(), st.integers(0, 10**6))
@settings(deadline=None)
def test_the_area_is_scikit_learns_but_for_pairs_of_one_bin(anomalous: list[bool], seed: int) -> None:
    """Scores are rounded down to their bin first, so both count the same ties."""
    output, targets = rows(seed, anomalous)
    measured = PROBLEM.metrics(PROBLEM.statistics(output, targets))
    scores = PROBLEM.scores(output, targets)
    assert measured["loss"] == pytest.approx(float(scores[targets[:, -1] == 0].double().mean()), nan_ok=True)
    if len(set(anomalous)) == 1:
        assert math.isnan(measured["auc"])
    else:
        binned = np.floor(np.log10(scores.double().numpy()) * 64)
        assert measured["auc"] == pytest.approx(roc_auc_score(anomalous, binned))


def test_bins_cost_little() -> None:
    """2,000 scores of which no two are alike: the area differs from the exact one in the third digit at most."""
    output, targets = rows(0, [number % 4 == 0 for number in range(2000)])
    exact = roc_auc_score(targets[:, -1].numpy(), PROBLEM.scores(output, targets).numpy())
    assert PROBLEM.metrics(PROBLEM.statistics(output, targets))["auc"] == pytest.approx(exact, abs=1e-3)


@given(marks(), st.integers(1, 59), st.integers(0, 10**6))
@settings(deadline=None)
def test_statistics_of_parts_add_to_those_of_the_whole(anomalous: list[bool], cut: int, seed: int) -> None:
    output, targets = rows(seed, anomalous)
    parts = [PROBLEM.statistics(output[part], targets[part]) for part in (slice(cut), slice(cut, None))]
    added, whole = add([PROBLEM.zeros(), *parts]), PROBLEM.statistics(output, targets)
    assert list(added) == list(whole)
    for name, values in whole.items():
        np.testing.assert_allclose(added[name], values, rtol=1e-6)


def test_no_rows_have_no_metrics() -> None:
    assert all(math.isnan(value) for value in PROBLEM.metrics(PROBLEM.zeros()).values())


def test_a_perfect_and_an_infinite_score_lie_in_the_outer_bins() -> None:
    """Without them in the count, the area would be of the other rows alone."""
    targets = torch.zeros(3, 6)
    targets[1:, -1] = 1
    output = torch.zeros(3, 5)
    output[1], output[2] = torch.inf, torch.nan
    statistics = PROBLEM.statistics(output, targets)
    assert statistics["normal"][0] == 1 and statistics["anomalous"][-1] == 2
    metrics = PROBLEM.metrics(statistics)
    assert metrics["auc"] == 1.0 and metrics["loss"] == 0.0  # whatever becomes of anomalous rows


def test_an_anomalous_row_has_no_gradient() -> None:
    """Training is on normal rows alone, whatever a client has."""
    torch.manual_seed(0)
    model = Autoencoder(5, (3,))
    _, targets = rows(1, [False, True, False, True])
    losses = PROBLEM.losses(model(targets[:, :-1]), targets)
    assert losses[[1, 3]].tolist() == [0.0, 0.0] and (losses[[0, 2]] > 0).all()
    torch.testing.assert_close(PROBLEM.mean_loss(model(targets[:, :-1]), targets), losses.mean())
    gradients = torch.autograd.grad(losses[[1, 3]].sum(), list(model.parameters()))
    assert not any(gradient.any() for gradient in gradients)


def test_rows_of_any_shape_are_given_back() -> None:
    """Images in their own shape or flattened: the same metrics."""
    problem = problem_for("reconstruction", (), (1, 2, 3), (7,))
    x = np.random.default_rng(0).normal(size=(4, 1, 2, 3)).astype(np.float32)
    y = np.concatenate([x.reshape(4, -1), [[0], [1], [0], [1]]], axis=1).astype(np.float32)
    problem.check_rows(x, y)
    torch.manual_seed(0)
    model = autoencoder((1, 2, 3), "reconstruction", hidden=(4, 2))
    problem.check(model(torch.from_numpy(x)), torch.from_numpy(y))
    problem.check(torch.from_numpy(x), torch.from_numpy(y))
    assert problem.metrics(evaluate(model, problem, x, y))["loss"] > 0


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros((3, 5), np.float32), r"\[rows, 6\]"),
        (np.zeros((3, 6), np.float64), r"\[rows, 6\]"),
        (np.zeros(3, np.float32), r"\[rows, 6\]"),
        (np.full((3, 6), 0.5, np.float32), "0.5 as the last value of row 0 of y; give 1 if it is anomalous, else 0"),
    ],
)
def test_targets_that_are_no_rows_with_a_mark_are_refused(y: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PROBLEM.check_rows(np.zeros((3, 5), np.float32), y)


def test_a_model_that_gives_something_else_is_refused() -> None:
    with pytest.raises(ModelError, match=r"mine gives outputs of shape \[2, 4\], the data needs \[2, 5\]"):
        PROBLEM.check(torch.zeros(2, 4), torch.zeros(2, 6), "mine")


@pytest.mark.parametrize(
    ("task", "hidden", "message"),
    [
        ("classification", (4,), "the task reconstruction and not classification"),
        ("reconstruction", (), "leaves nothing narrow"),
        ("reconstruction", (4, 0), "hidden = 0 should be at least 1"),
    ],
)
def test_an_autoencoder_that_cannot_be_is_refused(task: str, hidden: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        autoencoder((5,), task, hidden=hidden)
