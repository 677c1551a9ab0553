"""Losses, statistics and metrics against scikit-learn and plain sums."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score
from torch import Tensor, nn

from fedsim import seeds
from fedsim.errors import DataError, ModelError, ScenarioError
from fedsim.metrics import Statistics, add
from fedsim.problem import Problem, evaluate, evaluating, problem_for
from fedsim.tasks.classification import Classification
from fedsim.tasks.next_token import NextToken

NAMES = ("a", "b", "c", "d")
CLASSES = Classification(NAMES)


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_task_decides_the_problem() -> None:
    assert problem_for("classification", ["a", "b"]) == Classification(("a", "b"))
    names = tuple(str(byte) for byte in range(256))
    assert problem_for("next-token", names) == NextToken(names)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(0, 10**6))
def test_classification_metrics_are_scikit_learns(true: list[int], seed: int) -> None:
    """Class d never occurs; now and then it is predicted, and then it counts in macro F1."""
    output, targets = logits(seed, len(true), 4), torch.tensor(true)
    measured = CLASSES.metrics(CLASSES.statistics(output, targets))
    predicted = output.argmax(1).tolist()
    assert list(measured) == CLASSES.metric_names()
    assert measured["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert measured["macro-f1"] == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0))
    assert measured["loss"] == pytest.approx(log_loss(true, output.softmax(1).numpy(), labels=range(4)))
    recalls = recall_score(true, predicted, labels=range(4), average=None, zero_division=np.nan)
    np.testing.assert_allclose([measured[f"recall/{name}"] for name in NAMES], recalls)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10**6))
@settings(deadline=None)
def test_next_token_metrics_are_plain_sums(windows: int, length: int, seed: int) -> None:
    problem, output = NextToken(), logits(seed, windows, length, 256)
    targets = torch.randint(256, (windows, length), generator=torch.Generator().manual_seed(seed))
    measured = problem.metrics(problem.statistics(output, targets))
    nats = -np.log(np.take_along_axis(output.softmax(2).numpy(), targets.numpy()[:, :, None], 2))[:, :, 0]
    assert list(measured) == problem.metric_names()
    assert measured["loss"] == pytest.approx(nats.mean())
    assert measured["perplexity"] == pytest.approx(np.exp(nats.mean()))
    assert measured["bits-per-character"] == pytest.approx(np.log2(np.exp(nats)).mean())
    assert measured["accuracy"] == np.mean(output.numpy().argmax(2) == targets.numpy())
    np.testing.assert_allclose(problem.losses(output, targets).numpy(), nats.mean(1))


def test_a_uniform_guess_of_bytes_costs_eight_bits() -> None:
    problem = NextToken()
    measured = problem.metrics(problem.statistics(torch.zeros(2, 3, 256), torch.zeros(2, 3, dtype=torch.int64)))
    assert measured["bits-per-character"] == pytest.approx(8.0)
    assert measured["perplexity"] == pytest.approx(256.0)


def test_a_diverged_text_model_has_infinite_perplexity() -> None:
    problem = NextToken()
    output = torch.zeros(1, 1, 256)
    output[0, 0, 1] = 1000.0
    assert problem.metrics(problem.statistics(output, torch.zeros(1, 1, dtype=torch.int64)))["perplexity"] == math.inf


@pytest.mark.parametrize("problem", [CLASSES, NextToken()])
def test_no_rows_have_no_metrics(problem: Problem) -> None:
    assert all(math.isnan(value) for value in problem.metrics(problem.zeros()).values())


def batches() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 6), min_size=1, max_size=4)


@given(batches(), st.integers(0, 10**6), st.booleans())
@settings(deadline=None)
def test_statistics_of_parts_add_to_those_of_the_whole(sizes: list[int], seed: int, text: bool) -> None:
    """Counts exactly, sums of losses to rounding."""
    problem: Problem = NextToken() if text else CLASSES
    places = (3,) if text else ()
    output = logits(seed, sum(sizes), *places, 256 if text else 4)
    targets = torch.randint(4, (sum(sizes), *places), generator=torch.Generator().manual_seed(seed))
    parts = [
        problem.statistics(*pair) for pair in zip(torch.split(output, sizes), torch.split(targets, sizes), strict=True)
    ]
    whole, added = problem.statistics(output, targets), add([problem.zeros(), *parts])
    assert list(whole) == list(added)
    for name in whole:
        if name in ("loss", "nats"):
            np.testing.assert_allclose(added[name], whole[name], rtol=1e-12)
        else:
            assert added[name].tolist() == whole[name].tolist()


def test_read_only_floats_are_taken_without_a_copy() -> None:
    x = np.ones((3, 2), dtype=np.float32)
    x.setflags(write=False)
    taken = CLASSES.inputs(x)
    assert taken.data_ptr() == x.ctypes.data and taken.dtype == torch.float32


def test_bytes_become_indices() -> None:
    text = np.frombuffer(b"\x00\xff", dtype=np.uint8).reshape(1, 2)
    for indices in (NextToken().inputs(text), NextToken().targets(text), CLASSES.inputs(text)):
        assert indices.dtype == torch.int64 and indices.tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(2, 5), "model 'mine.py:Net' gives 5 outputs, the data has 4 classes"),
        (torch.zeros(4), "model 'mine.py:Net' gives outputs of shape [4], the data needs [2, 4]"),
        (torch.zeros(1, 4), "model 'mine.py:Net' gives outputs of shape [1, 4], the data needs [2, 4]"),
        ((torch.zeros(2, 4), None), "model 'mine.py:Net' gives a tuple; return one tensor of logits [rows, 4]"),
    ],
)
def test_an_output_that_does_not_fit_the_classes_is_refused(output: object, message: str) -> None:
    with pytest.raises(ModelError) as error:
        CLASSES.check(output, torch.zeros(2, dtype=torch.int64), "model 'mine.py:Net'")
    assert str(error.value) == message


def test_an_output_that_does_not_fit_the_text_is_refused() -> None:
    with pytest.raises(ModelError, match=r"gives outputs of shape \[2, 256\], the data needs \[2, 7, 256\]"):
        NextToken().check(torch.zeros(2, 256), torch.zeros(2, 7, dtype=torch.int64))
    NextToken().check(torch.zeros(2, 7, 256), torch.zeros(2, 7, dtype=torch.int64))


def network() -> nn.Module:
    with seeds.scope(1, "network"):
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))


def same(one: Statistics, other: Statistics) -> bool:
    return {name: values.tobytes() for name, values in one.items()} == {
        name: values.tobytes() for name, values in other.items()
    }


def test_evaluation_repeats_to_the_bit_and_leaves_the_model_alone() -> None:
    """Dropout and batch statistics are off; modes (one part frozen) and buffers stay as they were."""
    module = network()
    module[1].eval()  # type: ignore[index]
    modes = [part.training for part in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = logits(1, 25, 3).float().numpy()
    y = np.arange(25) % 4
    first = evaluate(module, CLASSES, x, y, batch_size=10)
    assert same(first, evaluate(module, CLASSES, torch.from_numpy(x), torch.from_numpy(y), batch_size=10))
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    with evaluating(module), torch.no_grad():
        whole = CLASSES.statistics(module(torch.from_numpy(x)), torch.from_numpy(y))
    assert first["rows"][0] == 25 and first["confusion"].tolist() == whole["confusion"].tolist()
    np.testing.assert_allclose(first["loss"], whole["loss"], rtol=1e-6)


class InPlace(nn.Linear):
    """Centres its rows in the memory that it was given."""

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return super().forward(x)


def test_a_model_that_works_in_place_leaves_the_rows_alone() -> None:
    """Under Ray they are memory that all workers share."""
    x, y = np.ones((5, 3), dtype=np.float32), np.zeros(5, dtype=np.int64)
    x.setflags(write=False)
    module = InPlace(3, 4)
    first = evaluate(module, CLASSES, x, y, batch_size=2)
    assert (x == 1.0).all()
    assert same(first, evaluate(module, CLASSES, torch.from_numpy(x), torch.from_numpy(y), batch_size=2))


def test_no_rows_evaluate_to_zeros() -> None:
    nothing = evaluate(network(), CLASSES, np.zeros((0, 3), dtype=np.float32), np.zeros(0, dtype=np.int64))
    assert same(nothing, CLASSES.zeros())


@pytest.mark.parametrize(
    ("problem", "x", "y", "message"),
    [
        (CLASSES, np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int64), r"y of type int64 and shape \(2, 3\)"),
        (CLASSES, np.zeros((2, 3), np.float32), np.zeros(2, np.float32), "y of type float32"),
        (NextToken(), np.zeros((2, 3), np.float32), np.zeros((2, 3), np.uint8), "next-token needs two uint8"),
        (NextToken(), np.zeros((2, 3), np.uint8), np.zeros((2, 4), np.uint8), "next-token needs two uint8"),
    ],
)
def test_rows_that_a_task_cannot_use_are_refused(problem: Problem, x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        problem.check_rows(x, y)


def test_a_users_task_is_a_file(tmp_path: Path) -> None:
    """Its function is given what it has parameters for."""
    (tmp_path / "own.py").write_text("def task(inputs, targets):\n    return inputs, targets\n")
    made: object = problem_for("own.py:task", (), (3, 2), (5,), tmp_path)
    assert made == ((3, 2), (5,))
    with pytest.raises(ScenarioError, match="Did you mean next-token"):
        problem_for("next-tokens", ())
