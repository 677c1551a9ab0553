"""Labels, each there or not: scikit-learn's figures out of sums."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss

from fedsim.errors import DataError, ModelError
from fedsim.metrics import add
from fedsim.problem import problem_for

NAMES = ("a", "b", "c")
PROBLEM = problem_for("multi-label", NAMES)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_sums_of_blocks_give_the_figures_of_all_rows(seed: int, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    y = (rng.random((40, 3)) < 0.4).astype(np.uint8)
    output = torch.tensor(rng.normal(size=(40, 3)) + y - 0.5, dtype=torch.float32)
    pieces = zip(torch.tensor_split(output, blocks), np.array_split(y, blocks), strict=True)
    total = add([PROBLEM.zeros(), *(PROBLEM.statistics(out, PROBLEM.targets(own)) for out, own in pieces)])
    found, predicted = PROBLEM.metrics(total), (output > 0).numpy()
    assert list(found) == PROBLEM.metric_names()
    assert found["micro-f1"] == pytest.approx(f1_score(y, predicted, average="micro"))
    assert found["macro-f1"] == pytest.approx(f1_score(y, predicted, average="macro"))
    assert found["exact-match"] == pytest.approx(accuracy_score(y, predicted))
    likely = torch.sigmoid(output.double()).numpy()
    each = [log_loss(y[:, label], likely[:, label], labels=[0, 1]) for label in range(3)]
    assert found["loss"] == pytest.approx(np.mean(each), rel=1e-5)


def test_a_step_descends_on_the_mean_of_the_losses() -> None:
    torch.manual_seed(0)
    output, targets = torch.randn(5, 3), PROBLEM.targets(np.eye(5, 3, dtype=np.uint8))
    torch.testing.assert_close(PROBLEM.mean_loss(output, targets), PROBLEM.losses(output, targets).mean())


def test_a_label_that_nobody_has_or_predicts_does_not_count() -> None:
    y, output = np.array([[1, 0, 0]], dtype=np.uint8), torch.tensor([[1.0, -1.0, -1.0]])
    found = PROBLEM.metrics(PROBLEM.statistics(output, PROBLEM.targets(y)))
    assert (found["macro-f1"], found["micro-f1"], found["exact-match"]) == (1, 1, 1)
    nothing = PROBLEM.metrics(PROBLEM.statistics(-output.abs(), PROBLEM.targets(0 * y)))
    assert math.isnan(nothing["micro-f1"]) and math.isnan(nothing["macro-f1"])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros((2, 2), dtype=np.uint8), r"needs \[N, 3\]"),
        (np.zeros(2, dtype=np.int64), r"needs \[N, 3\]"),
        (np.array([[0, 1, 0], [0, 2, 0]], dtype=np.uint8), r"labels other than 0 and 1 in row 1 of y: \[0, 2, 0\]"),
    ],
)
def test_rows_that_do_not_fit(y: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PROBLEM.check_rows(np.zeros((2, 4), dtype=np.float32), y)


def test_outputs_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match=r"outputs of shape \[2, 4\], the data needs \[2, 3\]"):
        PROBLEM.check(torch.zeros(2, 4), PROBLEM.targets(np.zeros((2, 3), dtype=np.uint8)))
