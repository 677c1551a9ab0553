"""Populations: clients' rows found on demand are what the same rows in arrays would be."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

from fedsim import registry
from fedsim.data.corpus import Folders
from fedsim.data.federation import CentralPart, Federation, Part, Rows
from fedsim.data.population import Population, spread
from fedsim.data.schema import Column
from fedsim.data.sources.synthetic import synthetic
from fedsim.data.transform import of_population
from fedsim.errors import DataError, ModelError, ScenarioError
from fedsim.federating import federate
from tests import small

NOWHERE = Folders((), Path())


def numbered(sizes: list[int], **more: Any) -> Population:
    """Every row is [client, place]."""

    def rows(client: int) -> Rows:
        places = np.arange(sizes[client])
        return Rows(np.stack([np.full_like(places, client), places], axis=1).astype(np.float32), places % 2)

    return Population("numbered", "classification", np.array(sizes), rows, ("even", "odd"), **more)


def federation(population: Population, seed: int = 1, **more: Any) -> Federation:
    given = {"central": 0.0, "shares": (0.6, 0.2, 0.2), "min_rows": 0, **more}
    return spread(lambda: population, seed, **given)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any),
    st.integers(0, 5),
    st.sampled_from([(0.6, 0.2, 0.2), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.1, 0.0, 0.9)]),
    st.integers(0, 1000),
)
def test_parts_are_disjoint_cover_a_client_and_have_the_sizes_that_are_announced(
    sizes: list[int], min_rows: int, shares: tuple[float, float, float], seed: int
) -> None:
    """Cohorts, weights and privacy go by sizes alone, long before a worker looks at a row."""
    if max(sizes) < min_rows:
        return
    made = federation(numbered(sizes), seed, shares=shares, min_rows=min_rows)
    kept = [client for client, size in enumerate(sizes) if size >= max(min_rows, 1)]
    assert list(made.names) == list(map(str, kept))
    for client, number in enumerate(kept):
        parts = {part: made.rows(client, part).x for part in get_args(Part)}
        assert {part: len(x) for part, x in parts.items()} == {
            part: made.sizes(part)[client] for part in get_args(Part)
        }
        assert len(parts["train"]) >= 1
        assert all(
            abs(len(parts[part]) - share * sizes[number]) <= 1 for part, share in zip(parts, shares, strict=True)
        )
        together = np.concatenate(list(parts.values()))
        assert sorted(map(tuple, together)) == [(number, place) for place in range(sizes[number])]
        assert all((np.diff(x[:, 1]) > 0).all() for x in parts.values())


def test_shares_are_exact_over_many_clients() -> None:
    """Of five rows a fifth is one: rounding down or up every time would leave clients without validation rows."""
    made = federation(numbered([5] * 20_000), shares=(0.7, 0.15, 0.15))
    totals = np.array([made.sizes(part).sum() for part in get_args(Part)])
    assert np.abs(totals / totals.sum() - [0.7, 0.15, 0.15]).max() < 0.005


def test_which_rows_a_client_trains_on_depends_on_seed_and_client_alone() -> None:
    first, other = (federation(numbered([32] * clients)) for clients in (30, 50))
    assert np.array_equal(first.rows(1, "train").x, other.rows(1, "train").x)
    without = federation(numbered([1] + [32] * 29), min_rows=5)  # who is left out is nobody else's affair
    assert all(np.array_equal(without.rows(k - 1, "train").x, first.rows(k, "train").x) for k in range(1, 30))
    assert not np.array_equal(first.rows(1, "train").x, federation(numbered([30] * 3), seed=2).rows(1, "train").x)
    assert not np.array_equal(first.rows(0, "train").x[:, 1], first.rows(1, "train").x[:, 1])


def test_a_workers_copy_has_the_same_rows_and_carries_none() -> None:
    """What is pickled is how to open the population."""
    made = spread(partial(synthetic, NOWHERE, clients=9), 1, central=0.2, shares=(0.6, 0.2, 0.2), min_rows=0)
    sent = pickle.dumps(made)
    copy = pickle.loads(sent)
    assert all(map(np.array_equal, copy.rows(8, "train"), made.rows(8, "train")))
    assert len(sent) < 20_000 + sum(array.nbytes for rows in made.central.values() for array in rows)


def test_own_test_rows_are_halved_into_the_central_sets() -> None:
    test = Rows(np.arange(200, dtype=np.float32).reshape(100, 2), np.zeros(100, dtype=np.int64))
    made = federation(numbered([3, 4], test=test), central=0.2)
    halves = [made.central[part].x for part in get_args(CentralPart)]
    assert sorted(np.concatenate(halves)[:, 0]) == sorted(test.x[:, 0])
    assert all(20 < len(half) < 80 for half in halves)


def test_a_digest_tells_populations_apart() -> None:
    base = numbered([3, 4, 5])
    digests = {
        federation(population).digest
        for population in (
            base,
            numbered([3, 5, 4]),
            replace(base, rows=lambda client: Rows(base.rows(client).x + 1, base.rows(client).y)),
            replace(base, test=base.rows(1)),
        )
    }
    assert len(digests) == 4
    assert federation(base).digest == federation(numbered([3, 4, 5])).digest


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda rows: Rows(rows.x[1:], rows.y[1:]), "client 1' has 3 rows, and 4 were declared"),
        (lambda rows: Rows(rows.x, rows.y + 2), "client 1' has classes"),
        (lambda rows: Rows(rows.x + np.inf, rows.y), "client 1' has a value in row 0 of x that is not finite"),
        (lambda rows: Rows(rows.x.astype(np.float64), rows.y), "client 1' has x of type float64"),
        (lambda rows: Rows(rows.x, rows.y.tolist()), "client 1': its rows are ndarray and list; give NumPy arrays"),
        (lambda rows: 1 / 0, "client 1': its rows cannot be had: ZeroDivisionError"),
    ],
)
def test_rows_that_are_not_what_was_declared_are_their_clients_fault(
    broken: Callable[[Rows], Rows], message: str
) -> None:
    sound = numbered([3, 4] + [2] * 200)
    made = federation(replace(sound, rows=lambda client: (broken if client == 1 else Rows._make)(sound.rows(client))))
    assert len(made.rows(0, "train").x)
    with pytest.raises(DataError, match=message):
        made.rows(1, "train")


@pytest.mark.parametrize(
    ("population", "settings", "error", "message"),
    [
        (numbered([3, 4]), {"min_rows": 5}, ScenarioError, "no client of 'numbered' has as many rows"),
        (numbered([3, 4]), {"central": 0.2}, ScenarioError, r"data\.split\.central = 0\.2: .* set it to 0"),
        (numbered([3, -4]), {}, DataError, "client 1 has -4 rows"),
        (replace(numbered([3]), sizes=np.array([[3]])), {}, DataError, r"give \[K\] integers"),
        (replace(numbered([3]), sizes=np.array([3.0])), {}, DataError, r"give \[K\] integers"),
        (numbered([]), {}, DataError, r"give \[K\] integers"),
    ],
)
def test_settings_that_a_population_cannot_meet(
    population: Population, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        federation(population, **settings)


# --- tables and tokens


COLUMNS = {
    "age": Column(kind="number", range=(0, 120)),
    "dose": Column(kind="number", missing=["?"], rule="indicator"),
    "sex": Column(kind="category", categories=["f", "m"]),
}


def patients(clients: int = 40, **more: Any) -> Population:
    """Raw values of 12 patients each, of which some have no dose."""

    def rows(client: int) -> Rows:
        draws = np.random.default_rng(client)
        age, dose, sex = draws.uniform(1, 99, 12), draws.normal(1e9, 2, 12), draws.integers(0, 2, 12)
        dose[draws.random(12) < 0.3] = np.nan
        return Rows(np.stack([age, dose, sex], axis=1), (age > 50).astype(np.int64))

    given = {"columns": COLUMNS, "test": rows(10_000), **more}
    return Population("patients", "classification", np.full(clients, 12), rows, ("no", "yes"), **given)


def of_scenario(population: Population, **changes: Any) -> Federation:
    """As a scenario has it, which makes a table ready."""
    keys = {"data": {"partition": {"kind": "natural"}, "split": {"central": 0.0}, "name": "population"}, **changes}
    return federate(small.scenario(keys), NOWHERE, lambda: population)


def test_a_tables_scales_are_those_of_all_train_rows_and_no_others() -> None:
    """Whatever lies in held-out rows; and the same in a worker, to whom the rows do not travel."""
    made = of_scenario(patients())
    train = np.concatenate([made.rows(client, "train").x for client in range(40)])
    held = np.concatenate([made.rows(client, part).x for client in range(40) for part in get_args(Part)[1:]])
    there = train[:, 2] == 0
    for column in (train[:, 0], train[there, 1]):
        np.testing.assert_allclose([column.mean(), column.std()], [0, 1], atol=1e-4)
    assert not train[~there, 1].any() and 0.5 < there.mean() < 0.9
    assert np.array_equal(train[:, 3:].sum(axis=1), np.ones(len(train))) and train.dtype == np.float32
    assert abs(held[:, 0].mean()) > 1e-4  # those of other rows are not 0
    assert made.preprocessing["fitted_on_rows"] and sum(len(rows.x) for rows in made.central.values()) == 12


def test_a_tables_constants_are_the_schemas() -> None:
    population = patients()
    made = of_scenario(population, **{"data.preprocess": {"kind": "constants"}})
    raw, ready = population.rows(3).x, np.concatenate([made.rows(3, part).x for part in get_args(Part)])
    assert sorted(ready[:, 0].tolist()) == sorted(((raw[:, 0] - 60) / 60).astype(np.float32).tolist())
    assert not made.preprocessing["fitted_on_rows"]
    with pytest.raises(
        ScenarioError, match=r"per-client.*come client by client, and the scales of all of them are not"
    ):
        of_scenario(population, **{"data.preprocess": {"kind": "per-client"}})
    with pytest.raises(ScenarioError, match=r"data\.preprocess: data 'numbered' are no table"):
        of_scenario(numbered([9] * 4), **{"data.preprocess": {"kind": "constants"}})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((12, 3), 2.0), "client 1' has 2 in row 0 of column 'sex', the place of no category"),
        (np.full((12, 3), np.inf), "client 1' has inf in row 0 of column 'age', no finite number"),
        (np.zeros((12, 2)), r"client 1' has x of type float64 and shape \[12, 2\]; give float64 \[rows, 3\]"),
        (np.zeros((12, 3), np.float32), "client 1' has x of type float32"),
    ],
)
def test_raw_values_that_are_none_are_their_clients_fault(x: np.ndarray, message: str) -> None:
    sound = patients(200)
    broken = replace(sound, rows=lambda client: Rows(x, sound.rows(client).y) if client == 1 else sound.rows(client))
    made = of_scenario(broken, **{"data.preprocess": {"kind": "constants"}})
    assert len(made.rows(0, "train").x)
    with pytest.raises(DataError, match=message):
        made.rows(1, "train")


def sentences(vocabulary: int = 30) -> Population:
    """Texts of 6 tokens, of one class those below 15."""

    def rows(client: int) -> Rows:
        y = np.arange(20) % 2
        return Rows(np.random.default_rng(client).integers(1, 15, (20, 6)) + 15 * y[:, None], y)

    return Population("sentences", "classification", np.full(9, 20), rows, ("low", "high"), vocabulary=vocabulary)


def test_a_population_of_tokens_is_learned(tmp_path: Path) -> None:
    data = {"data": {"partition": {"kind": "natural"}, "split": {"central": 0.0}, "name": "population"}}
    train = {"optimizer": "adam", "learning_rate": 0.05, "batch_size": 8, "epochs": 2}
    job = small.job({**data, "model": {"name": "lstm", "width": 8}, "rounds": 4, "train": train}, data=sentences)
    assert job.federation.vocabulary == 30
    figures = small.run(job, tmp_path / "run").values["metrics"]
    assert figures["global/client-test/rows/accuracy"] > 0.9
    with pytest.raises(DataError, match=r"has tokens .* and a vocabulary of 20"):
        of_scenario(sentences(20)).rows(0, "train")


def test_a_model_that_lacks_tokens_fails_before_the_run() -> None:
    """Not at the client that has the largest."""

    def few(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Embedding(29, 4), nn.Flatten(), nn.Linear(24, classes))

    data = {"data": {"partition": {"kind": "natural"}, "split": {"central": 0.0}, "name": "population"}}
    with pytest.raises(ModelError, match=r"model 'few' fails on rows \[6\] of int64: IndexError"):
        small.job(data, data=sentences, model=few)


def test_transformed_tokens_are_tokens_no_more() -> None:
    counts = of_population(
        sentences(), lambda x: (x[..., None] == np.arange(30)).sum(1).astype(float), "mine.py:counts"
    )
    assert counts.vocabulary is None and federation(counts).rows(0, "train").x.shape[1:] == (30,)
    moved = of_population(sentences(), lambda x: x - 1, "mine.py:moved")
    assert federation(moved).vocabulary == 30
    with pytest.raises(DataError, match=r"mine\.py:beyond gives tokens .* of a vocabulary of 30"):
        of_population(sentences(), lambda x: x + 1, "mine.py:beyond")


# --- arrays in a folder


def folder(place: Path, **changed: np.ndarray) -> Path:
    """Three clients of 4, 0 and 2 rows."""
    x, y = np.arange(12, dtype=np.int16).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)
    arrays: dict[str, np.ndarray] = {"x": x, "y": y, "offsets": np.array([0, 4, 4, 6]), **changed}
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    return place


def load(place: Path, **settings: Any) -> Population:
    source = registry.find("fedsim.data.sources", "arrays", Path(), "data.name")
    bound = registry.bind(source, {"path": place.name, **settings}, "data", reserved=("folders",))
    population: Population = source(Folders((), place.parent), **bound)
    return population


def test_a_folder_of_arrays_is_a_population(tmp_path: Path) -> None:
    population = load(folder(tmp_path), classes=["a", "b", "c"])
    assert (population.sizes.tolist(), population.classes, len(population)) == ([4, 0, 2], ("a", "b", "c"), 6)
    assert population.rows(2).x.tolist() == [[8, 9], [10, 11]] and population.rows(2).y.tolist() == [1, 2]
    made = federation(population)
    assert made.clients == 2 and list(made.names) == ["0", "2"]
    assert made.rows(1, "train").x.dtype == np.float32


def test_a_folder_of_bytes_is_text(tmp_path: Path) -> None:
    windows = np.arange(60, dtype=np.uint8).reshape(6, 10)
    population = load(folder(tmp_path, x=windows[:, :-1], y=windows[:, 1:]))
    assert population.task == "next-token" and len(population.classes) == 256
    assert federation(population, shares=(1.0, 0.0, 0.0)).rows(0, "train").y.tolist() == windows[:4, 1:].tolist()


def test_a_folder_of_tokens_has_a_vocabulary(tmp_path: Path) -> None:
    tokens = np.arange(60, dtype=np.uint8).reshape(6, 10)
    place = folder(tmp_path, x=tokens, test_x=tokens[:2], test_y=np.zeros(2, int))
    population = load(place, classes=3, vocabulary=60)
    made = federation(population, shares=(1.0, 0.0, 0.0))
    assert made.vocabulary == 60 and made.rows(0, "train").x.tolist() == tokens[:4].tolist()
    assert made.x.dtype.kind == "u" and made.y.dtype == np.int64
    with pytest.raises(DataError, match="has tokens 0 to 39 and a vocabulary of 39"):
        federation(load(place, classes=3, vocabulary=39))
    with pytest.raises(DataError, match=r"x\.npy: has type float64; give integers, the tokens of data\.vocabulary"):
        load(folder(tmp_path, x=tokens.astype(float)), classes=3, vocabulary=60)


def test_test_files_become_the_central_sets(tmp_path: Path) -> None:
    place = folder(tmp_path, test_x=np.zeros((50, 2)), test_y=np.zeros(50, np.int64))
    made = federation(load(place, classes=3), central=0.2)
    assert sum(len(rows.x) for rows in made.central.values()) == 50


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offsets": np.array([0, 4, 3, 6])}, r"offsets\.npy: goes from 0 to 6; it must rise from 0 to the 6 rows"),
        ({"offsets": np.array([0, 4])}, r"offsets\.npy: goes from 0 to 4"),
        ({"offsets": np.array([0.0, 6.0])}, r"offsets\.npy: has type float64"),
        ({"x": np.array([["a", "b"]] * 6)}, r"x\.npy: has type <U1"),
        ({"x": np.array([[{}]] * 6)}, r"x\.npy: not a sound \.npy of numbers"),
        ({"y": np.zeros(6)}, r"y\.npy: has type float64"),
        ({"y": np.zeros(5, int)}, r"x has shape \(6, 2\) and y \(5,\)"),
        ({"test_x": np.zeros((5, 3)), "test_y": np.zeros(5, int)}, r"test_x has shape \(5, 3\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changed: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(folder(tmp_path, **changed), classes=3)


def test_files_that_are_missing_or_no_arrays(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.npy: not found; name in data\.path a folder"):
        load(tmp_path, classes=3)
    (folder(tmp_path) / "y.npy").write_bytes(b"\x93NUMPY cut")
    with pytest.raises(DataError, match=r"y\.npy: not a sound"):
        load(tmp_path, classes=3)
    with pytest.raises(DataError, match=r"data\.classes is missing"):
        load(folder(tmp_path))


# --- synthetic


def test_synthetic_clients_share_a_task_and_differ() -> None:
    """With alpha = 0 one linear rule explains clients that it has not seen; with a large one each has its own."""
    same, apart = (synthetic(NOWHERE, clients=800, rows=5, alpha=alpha, beta=0.0) for alpha in (0.0, 9.0))
    assert explained(same) > 0.8
    assert explained(apart) < 0.5
    assert not np.array_equal(same.rows(0).x, same.rows(1).x)


def explained(population: Population) -> float:
    """Accuracy on some clients of a linear rule fitted on others."""
    fitted, judged = (
        [np.concatenate(part) for part in zip(*map(population.rows, clients), strict=True)]
        for clients in (range(600), range(600, 800))
    )
    return float(LogisticRegression(C=100.0, max_iter=500).fit(*fitted).score(*judged))
