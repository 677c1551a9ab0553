"""Statistics add in any grouping, survive Flower's record to the bit, and metrics have one name."""

import itertools
import math

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim import metrics
from fedsim.errors import ClientError, ScenarioError
from fedsim.metrics import Statistics

counts = st.lists(st.integers(0, 2**40), min_size=3, max_size=3)


def statistics_of(numbers: list[int]) -> Statistics:
    return {"rows": np.array(numbers[:1], dtype=np.float64), "confusion": np.array(numbers[1:], dtype=np.float64)}


@given(st.lists(counts, min_size=1, max_size=8), st.data())
def test_counts_add_the_same_however_they_are_grouped(many: list[list[int]], data: st.DataObject) -> None:
    """What makes it right to add in a worker, in a chunk or in the driver."""
    each = [statistics_of(numbers) for numbers in many]
    cut = data.draw(st.integers(0, len(each)))
    grouped = metrics.add([part for part in (metrics.add(each[:cut]), metrics.add(each[cut:])) if part])
    whole = metrics.add(each)
    for name, column in zip(("rows", "confusion"), (slice(0, 1), slice(1, 3)), strict=True):
        assert whole[name].tolist() == np.sum(many, axis=0)[column].tolist() == grouped[name].tolist()


def test_adding_leaves_its_terms_alone() -> None:
    first = statistics_of([1, 2, 3])
    metrics.add([first, first])
    assert first["confusion"].tolist() == [2.0, 3.0]


def test_adding_is_a_left_fold() -> None:
    """0.1 + 0.2 + 0.3 has other bits than 0.1 + (0.2 + 0.3)."""
    total = metrics.add([{"loss": np.array([value])} for value in (0.1, 0.2, 0.3)])
    assert total["loss"][0] == (0.1 + 0.2) + 0.3 != 0.1 + (0.2 + 0.3)


def test_statistics_of_another_problem_do_not_add() -> None:
    with pytest.raises(ClientError, match="rows"):
        metrics.add([statistics_of([1, 2, 3]), {"rows": np.ones(1)}])
    with pytest.raises(ClientError, match="confusion"):
        metrics.add([statistics_of([1, 2, 3]), statistics_of([1, 2, 3, 4])])


@given(st.lists(st.floats(allow_nan=False), max_size=5), st.floats(allow_nan=False))
def test_a_record_keeps_every_bit_and_other_keys_apart(values: list[float], other: float) -> None:
    sent: Statistics = {"loss": np.array(values, dtype=np.float64), "rows": np.array([3.0])}
    record = metrics.to_record(sent)
    record["seconds"] = other
    received = metrics.from_record(RecordDict({"metrics": record}).metric_records["metrics"])
    assert {name: array.tobytes() for name, array in received.items()} == {
        name: array.tobytes() for name, array in sent.items()
    }


def test_statistics_survive_the_wire() -> None:
    sent = statistics_of([1, 2, 3])
    received = metrics.from_record(MetricRecord.inflate(metrics.to_record(sent).deflate()))
    assert {name: array.tolist() for name, array in received.items()} == {"rows": [1.0], "confusion": [2.0, 3.0]}


def test_every_full_name_parses_to_itself() -> None:
    """Also where a class's own name has a slash in it."""
    own = ["loss", "accuracy", "recall/and/or"]
    names = metrics.full_names(own)
    assert len(set(map(str, names))) == len(names)
    for name in names:
        assert metrics.parse_name(str(name), own, "stop.metric") == name
    known = [str(name) for name in names]
    for expected in (
        "global/central-test/rows/accuracy",
        "global/client-validation/clients/accuracy",
        "global/client-validation/worst-10%/accuracy",
        "personal/client-test/clients/recall/and/or",
    ):
        assert expected in known


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("global/central-validation/rows/acuracy", "global/central-validation/rows/accuracy"),
        ("global/central-validation/worst-10%/accuracy", "global/client-validation/worst-10%/accuracy"),
        ("personal/central-test/rows/accuracy", "personal/client-test/rows/accuracy"),
        ("central-test/rows/accuracy", "global/central-test/rows/accuracy"),
    ],
)
def test_a_bad_name_is_answered_with_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(ScenarioError) as error:
        metrics.parse_name(wrong, ["loss", "accuracy"], "stop.metric")
    assert str(error.value) == f"stop.metric: there is no metric {wrong!r}. Did you mean {nearest}?"


def test_values_get_their_full_names() -> None:
    named = metrics.with_full_names("personal", "client-test", "clients", {"loss": 1.0, "recall/a": 0.5})
    assert named == {"personal/client-test/clients/loss": 1.0, "personal/client-test/clients/recall/a": 0.5}


def test_mean_over_clients_takes_those_where_a_metric_is_defined() -> None:
    """A class that a client has no rows of has no recall there."""
    means = metrics.mean_over_clients([{"a": 1.0, "b": math.nan}, {"a": 0.0, "b": math.nan}, {"a": math.nan, "b": 3.0}])
    assert means == {"a": 0.5, "b": 3.0}
    assert math.isnan(metrics.mean_over_clients([{"a": math.nan}])["a"])
    assert metrics.mean_over_clients([]) == {}


@given(st.permutations(range(23)))
def test_the_worst_tenth_are_the_lowest_accuracies_and_the_highest_losses(order: list[int]) -> None:
    values = [{"accuracy": number / 100, "loss": float(number)} for number in order]
    worst = metrics.worst_tenth(values, [9] * 23, 5, {"loss"})
    assert worst["accuracy"] == pytest.approx((0 + 1) / 2 / 100)
    assert worst["loss"] == pytest.approx((22 + 21) / 2)


def test_clients_with_few_rows_do_not_count_in_the_worst_tenth() -> None:
    values = [{"accuracy": 0.0}] + [{"accuracy": 0.5 + number / 100} for number in range(10)]
    rows = [4] + [5] * 10
    assert metrics.counted(rows, 5).sum() == 10
    assert metrics.worst_tenth(values, rows, 5, {"loss"}) == {"accuracy": 0.5}
    assert metrics.worst_tenth(values[:10], rows[:10], 5, {"loss"}) == {}


def test_a_metric_undefined_at_too_many_clients_has_no_worst_tenth() -> None:
    values = [{"accuracy": 0.5, "recall/a": math.nan if number else 1.0} for number in range(10)]
    assert metrics.worst_tenth(values, [5] * 10, 5, {"loss"}) == {"accuracy": 0.5}


@pytest.mark.parametrize("accuracy", [0.3, 0.8])
@pytest.mark.parametrize("rows", [5, 40])
def test_chance_is_the_expected_minimum_of_ten_binomials(accuracy: float, rows: int) -> None:
    """For ten equal clients it has a closed form: E[min] = sum over k >= 1 of P(X >= k)^10."""
    exact = sum(stats.binom.sf(k - 1, rows, accuracy) ** 10 for k in range(1, rows + 1)) / rows
    drawn = metrics.worst_tenth_by_chance(accuracy, [rows] * 10, seed=3)
    assert drawn == pytest.approx(exact, abs=0.02)


def test_chance_takes_each_clients_own_rows_and_the_seed() -> None:
    few, many = ([*itertools.repeat(size, 20)] for size in (10, 1000))
    by_chance = {len(rows): metrics.worst_tenth_by_chance(0.9, rows, 1) for rows in (few, many, few + many)}
    assert by_chance[20] == metrics.worst_tenth_by_chance(0.9, many, 1)
    lowest, mixed, highest = metrics.worst_tenth_by_chance(0.9, few, 1), by_chance[40], by_chance[20]
    assert lowest is not None and mixed is not None and highest is not None
    assert lowest - 0.05 < mixed < highest < 0.9
    assert metrics.worst_tenth_by_chance(0.9, few[:9], 1) is None
    assert metrics.worst_tenth_by_chance(1.0, few, 1) == 1.0
