"""Tables with a schema: what is fitted sees train rows alone, what is saved does it again, what is wrong is named."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.build import build
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.federation import Federation
from fedsim.data.preprocess import Fit, Preparation, federated
from fedsim.data.schema import Column, columns_of
from fedsim.data.sources.csv import csv
from fedsim.data.sources.digits import digits
from fedsim.data.table import read
from fedsim.errors import DataError, FedsimError, ScenarioError

SCHEMA: dict[str, dict[str, Any]] = {
    "site": {"kind": "client"},
    "age": {"kind": "number", "unit": "years", "range": [0, 120]},
    "chol": {"kind": "number", "missing": ["0"], "rule": "indicator", "log": True},
    "sex": {"kind": "category", "categories": ["f", "m"], "missing": ["?"], "rule": "indicator"},
    "note": {"kind": "ignore"},
    "ill": {"kind": "label", "categories": ["no", "yes"]},
}
NATURAL = {"kind": "natural"}


def rows_of(rng: np.random.Generator, count: int, sites: int = 3) -> list[list[str]]:
    """Rows of three sites, with values missing."""
    return [
        [
            f"s{row % sites}",
            f"{rng.normal(50, 10):.2f}",
            "0" if rng.random() < 0.3 else f"{rng.lognormal(5, 0.3):.1f}",
            str(rng.choice(["f", "m", "?"])),
            "free, text",
            str(rng.choice(["no", "yes"])),
        ]
        for row in range(count)
    ]


def write(folder: Path, rows: list[list[str]], header: str = "site,age,chol,sex,note,ill") -> Path:
    lines = [",".join(f'"{value}"' if "," in value else value for value in row) for row in rows]
    (folder / "t.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


def load(folder: Path, schema: Mapping[str, Any] = SCHEMA, **settings: Any) -> Corpus:
    return csv(Folders((), folder), path="t.csv", schema=dict(schema), **settings)


def federation_of(corpus: Corpus, fit: Fit, central: float = 0.0) -> Federation:
    return build(corpus, 1, NATURAL, central=central, fit=fit)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load(write(tmp_path_factory.mktemp("table"), rows_of(np.random.default_rng(0), 150)))


def train(federation: Federation) -> np.ndarray:
    return np.concatenate([federation.rows(client, "train").x for client in range(federation.clients)])


def test_features_are_those_of_the_schema(corpus: Corpus) -> None:
    made = Preparation.of(federation_of(corpus, "federated").preprocessing)
    assert made.features == ["age", "chol", "chol is missing", "sex = f", "sex = m", "sex is missing"]
    assert (corpus.classes, corpus.client_names) == (("no", "yes"), ("s0", "s1", "s2"))


def test_federated_scales_are_those_of_all_train_rows(corpus: Corpus) -> None:
    """Sums of clients' sums: what one would get who saw all train rows at once, and no other."""
    x = train(federation_of(corpus, "federated"))
    present = x[:, 2] == 0
    for column in (x[:, 0], x[present, 1]):
        np.testing.assert_allclose([column.mean(), column.std()], [0, 1], atol=1e-5)
    assert (x[~present, 1] == 0).all() and 0 < present.sum() < len(x)
    assert np.array_equal(x[:, 3:].sum(axis=1), np.ones(len(x)))


def test_per_client_scales_are_those_of_its_own_train_rows(corpus: Corpus) -> None:
    federation = federation_of(corpus, "per-client")
    for client in range(3):
        x = federation.rows(client, "train").x
        for column in (x[:, 0], x[x[:, 2] == 0, 1]):
            np.testing.assert_allclose([column.mean(), column.std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize("fit", ["constants", "per-client", "federated"])
def test_rows_that_are_held_out_move_nothing(corpus: Corpus, fit: Fit) -> None:
    """Whatever stands in validation, test and central rows, train rows keep their bits."""
    central = 0.0 if fit == "per-client" else 0.3
    before = federation_of(corpus, fit, central)
    marked = replace(corpus, x=np.concatenate([corpus.x, np.arange(150.0)[:, None]], axis=1))
    columns = {**corpus.columns, "row": Column(kind="number", mean=0.0, std=1.0)}
    kept = train(build(replace(marked, columns=columns), 1, NATURAL, central=central, fit="constants"))[:, -1].astype(
        int
    )
    other = np.setdiff1d(np.arange(150), kept)
    x = corpus.x.copy()
    x[other, 0], x[other, 1] = 119.0, 1e9
    after = federation_of(replace(corpus, x=x), fit, central)
    assert np.array_equal(train(before), train(after))
    assert before.digest != after.digest and len(other) > 20


def test_another_clients_rows_move_nothing_of_a_client_with_scales_of_its_own(corpus: Corpus) -> None:
    assert corpus.clients is not None
    x = corpus.x.copy()
    x[corpus.clients != 1, 0] /= 2
    before, after = (federation_of(each, "per-client") for each in (corpus, replace(corpus, x=x)))
    for part in ("train", "validation", "test"):
        assert np.array_equal(before.rows(1, part).x, after.rows(1, part).x)


def test_constants_come_from_the_schema(corpus: Corpus) -> None:
    """A range becomes -1 to 1; what declares nothing stays as it is."""
    made = Preparation.of(federation_of(corpus, "constants").preprocessing)
    x = made.apply(np.array([[0.0, 0.0, 0.0], [120.0, np.e - 1, np.nan]]))
    np.testing.assert_allclose(x, [[-1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1]], atol=1e-7)


@pytest.mark.parametrize("fit", ["constants", "per-client", "federated"])
def test_what_is_saved_does_it_again_to_the_bit(corpus: Corpus, fit: Fit, tmp_path: Path) -> None:
    """New rows, read from a file of another order and without a label, become what training saw."""
    federation = federation_of(corpus, fit)
    again = Preparation.of(json.loads(json.dumps(federation.preprocessing)))
    write(
        tmp_path, [[row[3], row[2], row[1]] for row in rows_of(np.random.default_rng(0), 150)], "sex,chol,age [years]"
    )
    raw = again.read(read(tmp_path / "t.csv"))
    assert np.array_equal(raw, corpus.x, equal_nan=True)
    assert corpus.clients is not None
    for client, name in enumerate(federation.names):
        mine = again.apply(raw[corpus.clients == client], name)
        start, stop = federation.offsets[client : client + 2]
        theirs = federation.x[start:stop]
        assert np.array_equal(mine[np.lexsort(mine.T)], theirs[np.lexsort(theirs.T)])
    if fit == "per-client":
        with pytest.raises(DataError, match="there are none for no client 's9'; name one"):
            again.apply(raw, "s9")


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=60),
    st.sampled_from([0.0, 1.0, -5e6, 1e9, 1e12]),
    st.integers(1, 5),
)
@settings(max_examples=100, deadline=None)
def test_sums_of_parts_give_the_scale_of_the_whole(numbers: list[float], offset: float, parts: int) -> None:
    """However far from 0 the values lie: a year, a time in seconds, a height in millimetres."""
    column = {"a": Column(kind="number")}
    whole = np.array(numbers)[:, None] + offset
    mean, std = federated(column, True, np.array_split(whole, parts)).scales[""]["a"]
    centre = whole[0, 0] + np.mean(whole - whole[0, 0])
    expected = np.std(whole - whole[0, 0])
    np.testing.assert_allclose(mean, centre, rtol=1e-12, atol=1e-9)
    if expected > 1e-13 * abs(centre) and expected > 1e-90:
        np.testing.assert_allclose(std, expected, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-5, 1e9 + 0.1, 1e300])
def test_a_column_that_is_always_the_same_has_the_schemas_deviation(value: float) -> None:
    column = {"a": Column(kind="number", std=3.0)}
    parts = [np.full((count, 1), value) for count in (7, 11, 101)]
    if value == 1e300:
        with pytest.raises(DataError, match="too large to be standardised"):
            federated(column, True, parts)
        return
    assert federated(column, True, parts).scales[""]["a"] == pytest.approx((value, 3.0), rel=1e-15)


def test_what_is_missing_follows_its_rule(tmp_path: Path) -> None:
    write(tmp_path, [["1", "no"], ["", "yes"], ["5", "no"]], "a,ill")
    for rule, expected in (("mean", [-1, 0, 1]), (7, [-1, 2, 1])):
        constants = {"kind": "number", "mean": 3.0, "std": 2.0, "rule": rule}
        corpus = load(tmp_path, {"a": constants, "ill": SCHEMA["ill"]})
        made = build(corpus, 1, {"kind": "iid", "clients": 1}, central=0.0, min_rows=1, fit="constants")
        assert sorted(made.x[:, 0].tolist()) == sorted(expected)
    dropping = load(tmp_path, {"a": {"kind": "number", "rule": "drop"}, "ill": SCHEMA["ill"]})
    assert (dropping.x.tolist(), dropping.y.tolist()) == ([[1.0], [5.0]], [0, 0])


def test_categories_that_are_numbers_are_compared_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, [["1.0", "no"], ["2", "yes"], [" 01 ", "no"]], "a,ill")
    corpus = load(tmp_path, {"a": {"kind": "category", "categories": ["1", "2"]}, "ill": SCHEMA["ill"]})
    assert corpus.x.tolist() == [[0], [1], [0]]


def test_tasks_of_a_table(tmp_path: Path) -> None:
    write(tmp_path, [["1", "no", "3.5"], ["2", "yes", "-1"]], "a,ill,score")
    label, score = SCHEMA["ill"], {"kind": "label", "range": [-10, 30], "unit": "points"}
    one = load(tmp_path, {"a": {"kind": "number"}, "ill": {"kind": "ignore"}, "score": score}, task="regression")
    assert (one.y.tolist(), str(one.y.dtype), len(one.classes)) == ([3.5, -1.0], "float32", 0)
    target = {"names": ["score"], "units": ["points"], "mean": [10.0], "std": [20.0], "range": [[-10.0, 30.0]]}
    assert one.preprocessing["target"] == target
    levels = {"kind": "label", "categories": ["-1", "3.5"]}
    many = load(tmp_path, {"a": {"kind": "number"}, "ill": label, "score": levels}, task="multi-label")
    assert (many.y.tolist(), many.classes, many.labelled) == ([[0, 1], [1, 0]], ("ill", "score"), False)
    for schema, task, message in (
        ({"a": {"kind": "number"}, "ill": label, "score": score}, "classification", "needs one label with categories"),
        (
            {"a": {"kind": "number"}, "ill": label, "score": {"kind": "ignore"}},
            "regression",
            "needs labels that are numbers",
        ),
        ({"a": {"kind": "number"}, "ill": label, "score": {"kind": "ignore"}}, "multi-label", "two labels or more"),
    ):
        with pytest.raises(ScenarioError, match=message):
            load(tmp_path, schema, task=task)


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("site,age,chol,sex,ill", "s0,50,100,f,no", r"t\.csv: there is no column 'note'|^$"),
        ("site,ages,chol,sex,note,ill", "s0,50,100,f,x,no", r"column 'ages' is not in data\.schema\. Did you mean age"),
        ("site,chol,sex,note,ill", "s0,100,f,x,no", r"t\.csv: there is no column 'age'"),
        ("site,age [months],chol,sex,note,ill", "s0,50,100,f,x,no", "column 'age' is in 'months', .* declares 'years'"),
        ("", "s0,190,100,f,x,no", r"t\.csv, line 3: column 'age' is 190, outside 0 to 120 years; .* \(client 's0'\)$"),
        ("", "s0,50,100,X,x,no", r"line 3: column 'sex' is 'X', none of f, m; mend it .* \(client 's0'\)$"),
        ("", "s0,50,100,f,x,maybe", r"line 3: column 'ill' is 'maybe', none of no, yes.* \(client 's0'\)$"),
        ("", "s0,nan,100,f,x,no", r"line 3: column 'age' is 'nan', no finite number.* \(client 's0'\)$"),
        ("", "s0,?,100,f,x,no", r"line 3: column 'age' is '\?', no finite number; .* declare it as missing"),
        ("", "s0,,100,f,x,no", r"line 3: column 'age' is missing; fill it in, drop .* \(client 's0'\)$"),
        ("", "s0,50,-3,f,x,no", r"line 3: column 'chol' is -3, outside -1 to inf"),
        ("", ",50,100,f,x,no", r"line 3: column 'site' is missing"),
        ("site,age,age [years],chol,sex,note,ill", "s0,50,60,100,f,x,no", "two columns are 'age' for data.schema"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(header: str, row: str, message: str, tmp_path: Path) -> None:
    header = header or "site,age,chol,sex,note,ill"
    sound = {"site": "s1", "age": "50", "chol": "100", "sex": "f", "note": "x", "ill": "yes"}
    first = ",".join(sound.get(name.split(" ")[0], "0") for name in header.split(","))
    (tmp_path / "t.csv").write_text(f"{header}\n{first}\n{row}\n")
    if "note" not in header:  # what is ignored need not be there
        assert len(load(tmp_path)) == 2
        return
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"kind": "number", "unti": "m"}, r"^data\.schema\.a\.unti is not known\. Did you mean unit\?$"),
        ({"kind": "nmber"}, r"^data\.schema\.a\.kind: "),
        ({}, r"^data\.schema\.a\.kind: field required"),
        ({"kind": "category"}, r"^data\.schema\.a: name its categories"),
        ({"kind": "client", "range": [0, 1]}, r"range belongs to numbers"),
        ({"kind": "number", "categories": ["a"]}, "categories belong to a category or a label"),
        ({"kind": "category", "categories": ["a", "a"]}, "one value twice"),
        ({"kind": "category", "categories": ["a"], "rule": "mean"}, "categories have no mean"),
        ({"kind": "label", "rule": "indicator"}, "only features can be filled in"),
        ({"kind": "number", "range": [3, 1]}, "should be .least, greatest."),
        ({"kind": "number", "rule": "guess"}, r"^data\.schema\.a\.rule: "),
        ({"kind": "number", "range": [1, "x"]}, r"^data\.schema\.a\.range: "),
        ({"kind": "number", "std": 0}, r"data\.schema\.a\.std: "),
        ({"kind": "number", "log": True, "range": [-2, 1]}, "log needs values above -1"),
        ({"kind": "number", "log": True, "rule": -1}, "log needs a value above -1 for what is missing"),
        ({"kind": "client"}, "a and b are both of kind client"),
    ],
)
def test_a_schema_that_is_none(column: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        columns_of({"a": column, "b": {"kind": "client"}})
    assert "\n" not in str(caught.value)


def test_what_a_schema_says_holds_for_every_kind(tmp_path: Path) -> None:
    """A label's unit, a client's codes that mean missing; what is ignored need not be there to be dropped for."""
    write(tmp_path, [[f"{row}", "?", f"{row % 2}"] for row in range(6)], "a,site,y [kg]")
    number, label = {"kind": "number"}, {"kind": "label", "unit": "g"}
    with pytest.raises(DataError, match=r"column 'y' is in 'kg', data\.schema declares 'g'"):
        load(tmp_path, {"a": number, "site": {"kind": "ignore"}, "y": label}, task="regression")
    label["unit"] = "kg"
    for kind in ("client", "group"):
        with pytest.raises(DataError, match=r"t\.csv, line 2: column 'site' is missing"):
            load(tmp_path, {"a": number, "site": {"kind": kind, "missing": ["?"]}, "y": label}, task="regression")
    ignored = {"site": {"kind": "ignore"}, "gone": {"kind": "ignore", "rule": "drop"}}
    assert len(load(tmp_path, {"a": number, **ignored, "y": label}, task="regression")) == 6


def test_numbers_that_nothing_can_be_made_of(tmp_path: Path) -> None:
    """Their squares overflow, or there are none: the column is named."""
    write(tmp_path, [[f"{row}e300", "", f"{row % 2}"] for row in range(20)], "a,b,y")
    with pytest.raises(DataError, match="column 'b' is empty in every row; leave it out"):
        csv(Folders((), tmp_path), path="t.csv", label="y")
    schema = {"a": {"kind": "number"}, "b": {"kind": "ignore"}, "y": {"kind": "label", "categories": ["0", "1"]}}
    with pytest.raises(DataError, match="'t': column 'a': values are too large to be standardised"):
        build(load(tmp_path, schema), 1, {"kind": "iid", "clients": 2})


def test_what_does_not_fit_together_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ScenarioError, match=r"central rows are no client's .*data\.split\.central = 0"):
        federation_of(corpus, "per-client", central=0.2)
    with pytest.raises(ScenarioError, match=r"data\.preprocess: data 'digits' are no table"):
        build(digits(Folders((), Path())), 1, {"kind": "iid", "clients": 2}, fit="federated")
    huge = replace(corpus, x=np.where(np.arange(3) == 0, 1e300, corpus.x))
    with pytest.raises(FedsimError, match="too large"):
        federation_of(huge, "constants")
