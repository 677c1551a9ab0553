"""Federated statistics of tables: right, of enough rows each, told once, and only where an owner allows it."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsim.data import preprocess
from fedsim.data.schema import columns_of
from fedsim.deploy import disclosure
from fedsim.deploy.assignment import Assignment
from fedsim.deploy.node import holding
from fedsim.deploy.node.handling import Node, version
from fedsim.deploy.node.rules import Rules
from fedsim.deploy.node.summing import TOLD, _large, summarised, summed, train_rows
from fedsim.deploy.statistics import Summary, as_data, lines, together
from fedsim.deploy.submission import deployable
from fedsim.errors import DataError, DeployError, FedsimError, Refused
from fedsim.grid import begin_run, stamp
from fedsim.scenario import Scenario
from tests import small
from tests.deploy.node_messages import RUN, bundle
from tests.deploy.owners import node_folder

SCHEMA: dict[str, Any] = {
    "age": {"kind": "number", "unit": "years"},
    "dose": {"kind": "number", "log": True, "missing": ["?"], "rule": "mean"},
    "far": {"kind": "number"},
    "sex": {"kind": "category", "categories": ["female", "male"]},
    "blood": {"kind": "category", "categories": ["0", "A", "B", "AB"], "rule": "indicator"},
    "ill": {"kind": "label", "categories": ["no", "yes"]},
}
ALLOWED = Rules(statistics=True, smallest_count=1)


def scenario(changes: Mapping[str, Any] = small.NOTHING, schema: Mapping[str, Any] = SCHEMA) -> Scenario:
    """A scenario of tables at nodes."""
    data = {"name": "csv", "schema": dict(schema), "path": "rows.csv", "preprocess": {"kind": "constants"}}
    return small.scenario({"data": {**data, "partition": {"kind": "natural"}}, **changes})


def table(file: Path, seed: int, rows: int = 120, **columns: list[str]) -> Path:
    """A node's table, with some columns as they are given."""
    draw = np.random.default_rng(abs(seed))
    made = {
        "age": [f"{value:.2f}" for value in draw.normal(40 + 10 * seed, 5, rows)],
        "dose": ["?" if draw.random() < 0.2 else f"{value:.3f}" for value in draw.exponential(2, rows)],
        "far": [f"{value:.6f}" for value in 1e6 + draw.normal(seed, 0.01, rows)],
        "sex": draw.choice(["female", "male"], rows).tolist(),
        "blood": ["" if draw.random() < 0.1 else str(draw.choice(["0", "A", "B", "AB"])) for _ in range(rows)],
        "ill": draw.choice(["no", "yes"], rows).tolist(),
        **columns,
    }
    lines_ = [",".join(made), *(",".join(row) for row in zip(*made.values(), strict=True))]
    file.write_text("\n".join(lines_) + "\n")
    return file


def told(at: Path, data: Path, asked: Scenario, least: int = 1, rules: Rules = ALLOWED) -> RecordDict:
    at.mkdir(exist_ok=True)
    return summed(at, data, asked, rules, least)


def figures(content: RecordDict) -> dict[str, Any]:
    record = content["metrics"]
    assert isinstance(record, MetricRecord)
    return dict(record)


def test_sums_of_nodes_are_those_of_all_rows_in_one_place(tmp_path: Path) -> None:
    """Scales as federated preprocessing fits them, counts as they are; also of values far from zero."""
    asked, tables = scenario(), [table(tmp_path / f"{seed}.csv", seed) for seed in range(3)]
    columns = summarised(asked)
    answers = {file.stem: told(tmp_path / f"node {file.stem}", file, asked) for file in tables}
    found = together(columns, answers, {})
    rows = [train_rows(file, asked, columns) for file in tables]
    fitted = preprocess.federated(columns, True, rows).scales[preprocess.EVERYBODY]
    assert found.numbers.keys() == fitted.keys() == {"age", "dose", "far"}
    for name, scale in fitted.items():
        got = found.numbers[name].scale
        assert got is not None
        np.testing.assert_allclose(got, scale, rtol=1e-9)
    whole = np.concatenate(rows)
    for name, place in {"sex": 3, "blood": 4, "ill": 5}.items():
        categories = columns[name].categories
        assert categories is not None
        assert found.categories[name].counts == {
            value: int((whole[:, place] == number).sum()) for number, value in enumerate(categories)
        }


def test_rows_are_those_that_a_run_would_train_on(tmp_path: Path) -> None:
    """Held-out rows enter no constant."""
    asked, file = scenario(), table(tmp_path / "rows.csv", 1)
    held = holding.load(file, asked)
    rows = train_rows(file, asked, summarised(asked))
    assert len(rows) == held.train < 120
    np.testing.assert_allclose(rows[:, 0], held.x[: held.train, 0], rtol=1e-6)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(0, 40), st.integers(1, 30))
def test_no_count_that_is_told_or_left_over_is_of_few_rows(counts: list[int], missing: int, fewest: int) -> None:
    """Who knows the number of rows knows how many the categories that are withheld have together."""
    rows, there = sum(counts) + missing, np.array(counts)
    shown = _large(there, rows, fewest)
    assert (there[shown] >= fewest).all()
    rest = rows - int(there[shown].sum())
    assert rest == 0 or rest >= fewest or not shown.any()


def test_statistics_of_few_rows_are_withheld(tmp_path: Path) -> None:
    """A rare category and the one that would tell it; a number that few rows have, and one that few lack."""
    few: dict[str, Any] = {
        "sex": ["male"] * 3 + ["female"] * 117,
        "dose": ["1.5"] * 8 + ["?"] * 112,
        "blood": ["A"] * 50 + ["B"] * 50 + ["0"] * 20,
    }
    schema = {**SCHEMA, "age": {"kind": "number", "missing": ["?"], "rule": "mean"}}
    ages = ["?", "?", *(f"{40 + place % 7}" for place in range(118))]
    asked = scenario({"data.split": {"train": 1.0, "validation": 0.0, "test": 0.0, "central": 0.0}}, schema)
    file = table(tmp_path / "rows.csv", 1, age=ages, **few)
    content = figures(told(tmp_path / "node", file, asked, rules=Rules(statistics=True, smallest_count=10)))
    assert content["category/sex"] == [disclosure.WITHHELD_COUNT] * 2
    assert content["category/blood"] == [20, 50, 50, disclosure.WITHHELD_COUNT]
    assert [content[f"number/dose/{name}"] for name in ("count", "mean", "variance")] == [0, 0.0, 0.0]
    told_of_age = [content[f"number/age/{name}"] for name in ("count", "mean", "variance")]
    assert told_of_age == [0, 0.0, 0.0], "a mean of whole numbers over 118 rows tells that two lack it"
    with pytest.raises(Refused, match="fewer train rows than 200"):
        told(tmp_path / "other", file, asked, least=200)


def test_a_question_is_answered_once_and_another_one_not(tmp_path: Path) -> None:
    """The difference of two statistics over sets that differ by one row is that row."""
    asked, file, at = scenario(), table(tmp_path / "rows.csv", 1), tmp_path / "node"
    first = told(at, file, asked)
    assert (at / TOLD).stat().st_mode & 0o777 == 0o600
    table(file, 1, rows=119)
    assert told(at, file, asked) == first, "also where the rows have changed since"
    without_one = {**SCHEMA, "age": {"kind": "number", "missing": ["48.66"], "rule": "drop"}}
    others = [
        scenario({"data.split.train": 0.71, "data.split.test": 0.14}),
        scenario(schema=without_one),
    ]
    assert told(at, file, scenario({"seed": 2})) == first, "which chooses no rows"
    for other in others:
        with pytest.raises(Refused, match=r"other statistics .* were asked for before.* removing statistics\.json"):
            told(at, file, other)
    with pytest.raises(Refused, match="were asked for before"):
        told(at, file, asked, least=2)
    (at / TOLD).write_text("{")
    with pytest.raises(DeployError, match="what was told before is not known"):
        told(at, file, asked)
    (at / TOLD).unlink()
    assert told(at, file, others[0]) != first


def test_what_does_not_fit_is_asked_once_too(tmp_path: Path) -> None:
    """Else a coordinator would find the largest age by asking whether all are below 100, 50, 75, ..."""
    file, at = table(tmp_path / "rows.csv", 1), tmp_path / "node"

    def below(most: float) -> Scenario:
        return scenario(schema={**SCHEMA, "age": {"kind": "number", "range": [0, most]}})

    for _ in range(2):
        with pytest.raises(DataError, match="outside 0 to 50"):
            told(at, file, below(50.0))
    with pytest.raises(Refused, match="were asked for before"):
        told(at, file, below(100.0))
    table(file, -1)
    assert figures(told(at, file, below(50.0)))["number/age/count"] > 0, "once its owner has mended the table"


def test_without_the_owners_word_no_row_is_read(tmp_path: Path) -> None:
    """The rule is asked before the table is opened, which is not there."""
    with pytest.raises(Refused, match=r"rules\.toml statistics: the owner lets no sums"):
        told(tmp_path, tmp_path / "none.csv", scenario(), rules=Rules())
    with pytest.raises(Refused, match="statistics are of tables"):
        told(tmp_path, tmp_path / "none.csv", small.scenario())


def test_a_node_answers_what_is_listed_and_writes_it_down(tmp_path: Path) -> None:
    """Through the node's own handling: figures of the listed names, or a neutral line where the table does not fit."""
    asked = deployable(scenario()).assignment
    fab = bundle(asked, tmp_path / "app")
    allowed = "smallest_cohort = 1\nstatistics = true\nsmallest_count = 5\n"
    data = table(tmp_path / "rows.csv", 1)
    node = Node.open(node_folder(tmp_path / "node", allowed).folder, data)
    reply = node.answer(_message(asked), fab).reply
    listed = disclosure.summaries(summarised(scenario()))
    assert not reply.has_error(), reply.error
    assert {f"metrics/{name}" for name in figures(reply.content)} == {field.path for field in listed}
    last = json.loads((tmp_path / "node" / "log.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "answered" and last["asked"] == "query.statistics"
    odd = Node.open(node_folder(tmp_path / "odd", allowed).folder, table(tmp_path / "odd.csv", 1, age=["Jane"] * 120))
    told_ = str(odd.answer(_message(asked), fab).reply.error.reason)
    assert "Jane" not in told_ and holding.UNFIT in told_
    closed = Node.open(node_folder(tmp_path / "closed", "smallest_cohort = 1\n").folder, data)
    assert "rules.toml statistics" in str(closed.answer(_message(asked), fab).reply.error.reason)


def _message(asked: Assignment) -> Message:
    begin_run()
    said: dict[str, Any] = {"assignment": asked.digest, "run": RUN, "number": 0, "clients": 2, "counter": 0}
    config = ConfigRecord({**said, "fedsim": version("fedsim"), "least": 5})
    message = Message(RecordDict({"config": config}), 2, "query.statistics")
    stamp(message, "a message")
    return message


SOUND = {
    "number/age/count": 10,
    "number/age/mean": 1.0,
    "number/age/variance": 2.0,
    "category/sex": [5, 5],
}
TWO = columns_of({name: SCHEMA[name] for name in ("age", "sex")})


def _answer(values: Mapping[str, Any]) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({**values})})


VALUES = st.one_of(st.integers(-(2**40), 2**62), st.floats(), st.lists(st.integers(-3, 5), max_size=3))


@settings(deadline=None)
@example({"number/age/mean": 1e300}, True)
@example({"number/age/variance": float("nan")}, True)
@example({"number/age/count": 2**62}, True)
@given(st.dictionaries(st.sampled_from([*SOUND, "more"]), VALUES), st.booleans())
def test_a_hostile_answer_is_left_out_or_possible(odd: dict[str, Any], whole: bool) -> None:
    """Whatever a node sends, the others' statistics are told; what counts of it is a figure that rows can have."""
    hostile = _answer({**(SOUND if whole else {}), **odd})
    found = together(TWO, {"north": _answer(SOUND), "south": hostile}, {"west": "refused"})
    assert "north" in found.nodes and set(found.nodes) | set(found.reasons) == {"north", "south", "west"}
    number = found.numbers["age"]
    assert number.scale is not None and np.isfinite(number.scale).all() and number.scale.std > 0
    assert "south" in found.nodes or number == together(TWO, {"north": _answer(SOUND)}, {}).numbers["age"]


@pytest.mark.parametrize("record", [RecordDict(), RecordDict({"metrics": ArrayRecord()})])
def test_nobody_who_tells_is_an_error_that_says_why(record: RecordDict) -> None:
    with pytest.raises(DeployError, match="no node tells statistics: west: its owner does not; south: its answer"):
        together(TWO, {"south": record}, {"west": "its owner does not"})


def test_what_is_printed_can_be_pasted(tmp_path: Path) -> None:
    """TOML with the schema's own keys and the constants, which then standardise the rows; nothing without a warning."""
    asked, columns = scenario(), summarised(scenario())
    answers = {str(seed): told(tmp_path / f"{seed}", table(tmp_path / f"{seed}.csv", seed), asked) for seed in range(2)}
    found = Summary.model_validate_json(together(columns, answers, {"west": "refused"}).model_dump_json())
    text = lines(found, SCHEMA, 20)
    assert text[0].startswith("# no epsilon covers") and "20 rows" in text[0]
    assert "# not by west: refused" in text
    pasted = tomllib.loads("\n".join(text))["data"]["schema"]
    assert {name: {key: pasted[name][key] for key in table_} for name, table_ in SCHEMA.items()} == SCHEMA
    made = columns_of(pasted)
    assert list(made) == list(SCHEMA)
    for name in ("age", "dose", "far"):
        assert made[name].constants == found.numbers[name].scale
    values = as_data(found, 20)
    assert values["numbers"]["age"]["mean"] == made["age"].mean and values["left_out"] == {"west": "refused"}


def test_a_scenario_without_constants_can_be_asked() -> None:
    """It is what statistics are for; a run of it is refused."""
    asked = scenario({"data.preprocess": {"kind": "federated"}})
    with pytest.raises(FedsimError, match=r"data\.preprocess"):
        deployable(asked)
    deployable(asked.changed({"data.preprocess": {"kind": "constants"}}))
