"""Numbers: what is summed block by block gives the figures of all rows at once, in the data's units."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from torch import nn

from fedsim.errors import DataError, ModelError
from fedsim.metrics import add
from fedsim.problem import Problem, problem_for

NOWHERE: dict[str, Any] = {}


def regression(targets: tuple[int, ...] = (), target: dict[str, Any] = NOWHERE) -> Problem:
    return problem_for("regression", (), (3,), targets, target=target)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4))
def test_sums_of_blocks_give_the_figures_of_all_rows(seed: int, count: int, blocks: int) -> None:
    """Scikit-learn is the oracle: RMSE and MAE over rows and targets, R^2 as the mean over targets."""
    rng = np.random.default_rng(seed)
    y = (rng.normal(size=(40, count)) * 10 + 1000).astype(np.float32)
    predicted = y + rng.normal(size=y.shape)
    problem = regression((count,), {"mean": 1000.0, "std": 10.0})
    output = torch.tensor((predicted - 1000) / 10)
    pieces = zip(torch.tensor_split(output, blocks), np.array_split(y, blocks), strict=True)
    total = add([problem.zeros(), *(problem.statistics(out, problem.targets(own)) for out, own in pieces)])
    found = problem.metrics(total)
    assert list(found) == problem.metric_names()
    assert found["mse"] == pytest.approx(mean_squared_error(y, predicted), rel=1e-3)
    assert found["rmse"] == pytest.approx(math.sqrt(found["mse"]))
    assert found["mae"] == pytest.approx(mean_absolute_error(y, predicted), rel=1e-3)
    assert found["r2"] == pytest.approx(r2_score(y, predicted), abs=1e-3)
    assert found["loss"] == pytest.approx(found["mse"] / 100, rel=1e-5)


def test_units_do_not_change_the_figures() -> None:
    """The same predictions, whatever the scale in which the model speaks."""
    y = np.array([1.0, 2.0, 4.0], dtype=np.float32)
    plain, scaled = regression(), regression(target={"mean": 2.0, "std": 0.5})
    output = torch.tensor([[1.5], [2.5], [3.0]])
    first = plain.metrics(plain.statistics(output, plain.targets(y)))
    second = scaled.metrics(scaled.statistics((output - 2) / 0.5, scaled.targets(y)))
    assert {name: first[name] for name in ("rmse", "mae", "r2")} == pytest.approx(
        {name: second[name] for name in ("rmse", "mae", "r2")}
    )


def test_a_step_descends_on_the_mean_of_the_losses() -> None:
    problem = regression((2,), {"mean": [0.0, 5.0], "std": [1.0, 2.0]})
    torch.manual_seed(0)
    output, targets = torch.randn(6, 2), problem.targets(np.random.default_rng(0).random((6, 2)).astype(np.float32))
    torch.testing.assert_close(problem.mean_loss(output, targets), problem.losses(output, targets).mean())
    assert problem.losses(output, targets).shape == (6,)


def test_one_number_a_row_may_come_with_or_without_its_axis() -> None:
    """[B] against [B, 1] would be broadcast to [B, B] unnoticed."""
    problem, y = regression(), np.arange(4, dtype=np.float32)
    for output in (torch.zeros(4), torch.zeros(4, 1)):
        problem.check(output, problem.targets(y))
        assert problem.losses(output, problem.targets(y)).tolist() == [0.0, 1.0, 4.0, 9.0]
    for shape in ((4, 2), (4, 4), (1, 4)):
        with pytest.raises(ModelError, match=r"outputs of shape .* the data needs \[4, 1\]"):
            problem.check(torch.zeros(shape), problem.targets(y))


def test_predictions_stay_inside_the_declared_range() -> None:
    """The loss still sees what the model said, so that it is drawn back."""
    problem = regression(target={"range": [0, 10], "mean": 5.0, "std": 5.0})
    y = np.array([10.0, 0.0], dtype=np.float32)
    statistics = problem.statistics(torch.tensor([[3.0], [-4.0]]), problem.targets(y))
    found = problem.metrics(statistics)
    assert found["rmse"] == found["mae"] == 0
    assert found["loss"] == pytest.approx((4 + 9) / 2)


def test_what_nothing_defines_is_no_number() -> None:
    problem = regression()
    assert all(math.isnan(value) for value in problem.metrics(problem.zeros()).values())
    same = problem.statistics(torch.zeros(3, 1), problem.targets(np.ones(3, dtype=np.float32)))
    assert math.isnan(problem.metrics(same)["r2"]) and problem.metrics(same)["rmse"] == 1


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(3), "y of type float64"),
        (np.zeros((3, 2, 2), dtype=np.float32), r"shape \(3, 2, 2\)"),
        (np.array([1.0, 2.0, 11.0], dtype=np.float32), "target outside its declared range in row 2: 11.0"),
    ],
)
def test_rows_that_do_not_fit(y: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        regression(target={"range": [0, 10]}).check_rows(np.zeros((3, 3), dtype=np.float32), y)


def test_declarations_that_do_not_fit() -> None:
    targets: list[dict[str, Any]] = [
        *({"mean": [1.0, 2.0]}, {"mean": None}, {"std": 0.0}, {"std": float("nan")}, {"std": "wide"}),
        *({"range": [[0, 1], [0, 1]]}, {"range": [0]}, {"range": []}, {"range": 5}, {"range": [5, 1]}),
    ]
    for target in targets:
        with pytest.raises(DataError, match="target"):
            regression(target=target)
    with pytest.raises(DataError, match="takes one number a row"):
        regression((2, 2))


def test_a_line_is_learned() -> None:
    """The whole of it: a linear model finds y = 3 x0 + 100 by the loss, and the figures say so."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    y = (3 * x[:, 0] + 100).astype(np.float32)
    problem = regression(target={"mean": 100.0, "std": 3.0})
    torch.manual_seed(0)
    model = nn.Linear(3, problem.outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        torch.autograd.backward(problem.mean_loss(model(problem.inputs(x)), problem.targets(y)))
        optimizer.step()
    with torch.no_grad():
        found = problem.metrics(problem.measure(model, problem.inputs(x), problem.targets(y)))
    assert found["rmse"] < 1e-3 and found["r2"] > 0.999
