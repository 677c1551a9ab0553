"""An owner's rows under a scenario: loaded as a simulation would load them, and every column that differs is named."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.corpus import Folders
from fedsim.data.dealt import federation_of, holding_of, write
from fedsim.deploy.node import holding
from fedsim.deploy.node.holding import UNFIT, check, load
from fedsim.deploy.node.work import Bench
from fedsim.errors import FedsimError, ScenarioError
from fedsim.federating import federate
from fedsim.job import prepare_on
from fedsim.scenario import Scenario, parse
from fedsim.scenario import load as shipped
from fedsim.scenario_files import override
from tests import small

SCHEMA: dict[str, Any] = {
    "hospital": {"kind": "client"},
    "patient": {"kind": "group"},
    "age": {"kind": "number", "unit": "years", "range": [0, 120]},
    "chol": {"kind": "number", "unit": "mg/dl", "range": [0, 700], "missing": ["?"], "rule": "indicator"},
    "sex": {"kind": "category", "categories": ["f", "m"]},
    "note": {"kind": "ignore"},
    "ill": {"kind": "label", "categories": ["no", "yes"]},
}
NOTHING: Mapping[str, Any] = {}
HEADER = ["patient", "age [years]", "chol", "sex", "ill"]


def study(changes: Mapping[str, Any] = NOTHING, folder: Path = Path()) -> Scenario:
    """A scenario over a table with a schema; nodes get it without a path."""
    data: dict[str, Any] = {
        "name": "csv",
        "schema": SCHEMA,
        "partition": {"kind": "natural"},
        "preprocess": {"kind": "constants"},
    }
    return parse(override(small.SMALL, {"data": data, **changes}), folder, "study")


def rows(number: int = 60) -> list[list[str]]:
    """Rows of one hospital that fit."""
    rng = np.random.default_rng(3)
    return [
        [
            f"p{row // 2}",
            str(rng.integers(20, 90)),
            str(rng.choice(["?", "210", "180"])),
            "fm"[row % 2],
            ["no", "yes"][row % 2],
        ]
        for row in range(number)
    ]


def written(file: Path, header: list[str], table: list[list[str]]) -> Path:
    """A CSV file."""
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([header, *table])
    return file


def test_a_table_is_loaded_as_a_client_of_a_simulation(tmp_path: Path) -> None:
    """With the column of clients in one file of all, and the same rows alone at a node: the same features."""
    table = rows()
    node = written(tmp_path / "node.csv", HEADER, table)
    other = [[f"q{row}", "50", "200", "f", "no"] for row in range(20)]
    both = [["north", *row] for row in table] + [["south", *row] for row in other]
    written(tmp_path / "all.csv", ["hospital", *HEADER], both)
    central = {"data.split.central": 0.0}
    simulated = federate(study({"data.path": "all.csv", "seed": 0, **central}, tmp_path), Folders.of(None, tmp_path))
    held, client = load(node, study(central)), list(simulated.names).index("north")
    again = federation_of(held, 4, 7)
    for part in ("train", "validation", "test"):
        ours, theirs = again.rows(4, part), simulated.rows(client, part)
        assert np.array_equal(np.sort(ours.x, axis=0), np.sort(theirs.x, axis=0))
    assert (held.group_name, held.classes) == ("patient", simulated.classes)
    assert dict(held.preprocessing) == dict(simulated.preprocessing)
    assert not held.preprocessing["fitted_on_rows"]
    assert check(node, study()) == []
    prepare_on(again, study())  # a job can be made of it


def test_whoever_asks_does_not_choose_the_split(tmp_path: Path) -> None:
    """Counts of parts over many seeds would be equations for how many rows each person has."""
    uneven = [[f"p{int(row**0.6)}", *rest] for row, (_, *rest) in enumerate(rows(80))]
    file = written(tmp_path / "x.csv", HEADER, uneven)
    bench, first = Bench(file), load(file, study())
    for seed in range(2, 8):
        for held in (load(file, study({"seed": seed})), bench.holding(study({"seed": seed}))):
            assert (held.train, held.validation) == (first.train, first.validation)
            assert np.array_equal(held.x, first.x)


def test_a_folder_that_got_another_file_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once otherwise, whatever is asked of it."""
    calls: list[object] = []
    monkeypatch.setattr(holding, "load", lambda *given: calls.append(given))
    bench = Bench(tmp_path)
    for _ in range(2):
        bench.holding(study())
    assert len(calls) == 1
    (tmp_path / "more.png").touch()
    bench.holding(study())
    assert len(calls) == 2


def test_the_column_of_clients_may_be_there(tmp_path: Path) -> None:
    """At a node all rows are one client's, whatever it says."""
    file = written(tmp_path / "x.csv", ["hospital", *HEADER], [["north", *row] for row in rows()])
    assert check(file, study()) == [] and len(load(file, study()).x) == 60


def test_every_column_that_differs_is_named(tmp_path: Path) -> None:
    """All at once: missing, additional, unit, category, range, no number; a line each, on the node only."""
    table = [[*row, "1"] for row in rows()]
    table[3][1], table[5][1] = "x", "999"
    table[4][3], table[7][4] = "d", "maybe"
    header = ["patient", "age [years]", "cholesterol", "sex", "ill", "chol [mmol/l]"]
    found = check(written(tmp_path / "x.csv", header, table), study())
    told = [
        "column 'cholesterol' is not in data.schema. Did you mean chol?",
        "column 'chol' is in 'mmol/l', data.schema declares 'mg/dl'",
        "line 5: column 'age' is 'x', no finite number",
        "line 6: column 'sex' is 'd', none of f, m",
        "line 9: column 'ill' is 'maybe', none of no, yes",
    ]
    assert len(found) == len(told)
    for line, words in zip(found, told, strict=True):
        assert words in line
    table[3][1] = "50"
    found = check(written(tmp_path / "x.csv", ["patient2", *header[1:5], "chol"], table), study())
    assert any("there is no column 'patient'" in line for line in found)
    assert any("column 'age' is 999, outside 0 to 120 years" in line for line in found)


def test_what_the_coordinator_is_told_names_nothing() -> None:
    """Neither columns nor values: it is one text, whatever is wrong."""
    assert not any(name in UNFIT.split() for name in SCHEMA)


def test_missing_groups_are_told(tmp_path: Path) -> None:
    """A row without its person cannot be kept in one part."""
    table = rows()
    table[8][0] = ""
    (line,) = check(written(tmp_path / "x.csv", HEADER, table), study())
    assert "line 10: column 'patient' is missing" in line


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.preprocess": {"kind": "federated"}}, 'data.preprocess.kind = "constants"'),
        ({"data.preprocess": None}, 'data.preprocess.kind = "constants"'),
        (
            {
                "data": {
                    "name": "csv",
                    "label": "ill",
                    "partition": {"kind": "natural"},
                    "preprocess": {"kind": "constants"},
                }
            },
            "data.schema is missing",
        ),
        ({"data": {"name": "arrays", "classes": 2, "partition": {"kind": "natural"}}}, "'arrays' holds rows of many"),
        ({"data": {"name": "digits", "partition": {"kind": "iid", "clients": 2}}}, "'digits' takes no path"),
    ],
    ids=["federated", "default", "schema", "many", "path"],
)
def test_what_no_node_can_do_alone(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """Refused with what to do instead, by the load and by the check."""
    file = written(tmp_path / "x.csv", HEADER, rows())
    with pytest.raises(ScenarioError, match=told):
        load(file, study(changes))
    assert told in check(file, study(changes))[0]


def test_each_clients_own_scales(tmp_path: Path) -> None:
    """A node can fit those, since nobody else needs them; they say that they were fitted."""
    held = load(written(tmp_path / "x.csv", HEADER, rows()), study({"data.preprocess": {"kind": "per-client"}}))
    assert held.preprocessing["fitted_on_rows"] and len(held.preprocessing["scales"]) == 1
    train = held.x[: held.train, 0]
    assert abs(float(train.mean())) < 1e-5 and abs(float(train.std()) - 1) < 1e-3


def test_a_written_folder_is_read_as_it_is(tmp_path: Path) -> None:
    """Whatever the scenario's source is: the rows are ready."""
    job = small.job()
    write(job.federation, 2, tmp_path)
    held, same = load(tmp_path, study()), holding_of(job.federation, 2)
    assert held.x.tobytes() == same.x.tobytes() and held.train == same.train
    assert check(tmp_path, study()) == []
    (tmp_path / "rows.npz").write_bytes(b"no")
    assert len(check(tmp_path, study())) == 1


def test_arrays(tmp_path: Path) -> None:
    """Any source that takes a path is a node's source, too."""
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(40, 3)), y=rng.integers(0, 2, 40))
    scenario = study({"data": {"name": "npz", "path": "elsewhere.npz", "partition": {"kind": "natural"}}})
    assert load(tmp_path / "x.npz", scenario).x.shape == (40, 3)
    (line,) = check(tmp_path / "none.npz", scenario)
    assert "none.npz" in line


@pytest.mark.parametrize("size", [(6, 6), (8, 8)])
def test_images_of_another_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """Named with both sizes."""
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            image.new("L", size).save(tmp_path / name / f"{number}.png")
    data = {"name": "images", "height": 8, "width": 8, "colour": False, "partition": {"kind": "natural"}}
    assert (
        "data.classes is missing" in check(tmp_path, study({"data": data}))[0]
    )  # one node's folders name them otherwise
    data["classes"] = ["cat", "dog", "horse"]
    found = check(tmp_path, study({"data": data}))
    assert found == [] if size == (8, 8) else "is 6x6, data says 8x8" in found[0]
    if size == (8, 8):
        held = load(tmp_path, study({"data": data}))
        assert held.classes == ("cat", "dog", "horse") and held.x.shape == (10, 1, 8, 8)


def test_too_few_rows(tmp_path: Path) -> None:
    """As in a simulation, one that has fewer than `data.min_rows` takes no part."""
    (line,) = check(written(tmp_path / "x.csv", HEADER, rows(3)), study())
    assert "min_rows" in line


def test_hospitals_of_the_real_set(tmp_path: Path, data_dir: Path) -> None:
    """UCI Heart Disease as four hospitals would have it: one schema for all, and each hospital's rows as simulated."""
    from fedsim.data.sources.heart_disease import SCHEMA as HEART

    columns = list(HEART)
    names = {"Cleveland": "cleveland", "Hungary": "hungarian", "Switzerland": "switzerland", "Long Beach": "va"}
    schema = {**{name: dict(column) for name, column in HEART.items()}}
    simulated = federate(
        shipped("heart-disease").changed({"data.preprocess": {"kind": "constants"}, "data.split.central": 0.0}),
        Folders.of(data_dir, Path()),
    )
    scenario = study({"data.schema": schema, "seed": shipped("heart-disease").seed})
    for client, name in enumerate(simulated.names):
        lines = (data_dir / "heart-disease" / f"processed.{names.get(name, name)}.data").read_text().splitlines()
        grades = [[*line.split(",")[:-1], "healthy" if line.split(",")[-1] == "0" else "ill"] for line in lines if line]
        file = written(tmp_path / f"{client}.csv", columns, grades)
        assert check(file, scenario) == []
        held = load(file, scenario)
        everything = np.concatenate([simulated.rows(client, part).x for part in ("train", "validation", "test")])
        assert np.array_equal(np.sort(held.x, axis=0), np.sort(everything, axis=0))


def test_failures_of_an_own_source_are_errors_of_ours(tmp_path: Path) -> None:
    """So that a node can put its neutral line in the place of whatever they quote."""
    (tmp_path / "mine.py").write_text("def rows(folders, *, path: str):\n    raise KeyError('patient 7')\n")
    with pytest.raises(FedsimError, match="patient 7"):
        load(tmp_path, study({"data": {"name": "mine.py:rows", "partition": {"kind": "natural"}}}, tmp_path))
