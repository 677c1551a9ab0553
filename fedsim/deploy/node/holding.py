"""An owner's rows as a scenario wants them, and what keeps them from it.

What is wrong with rows is told to their owner alone: it names columns, lines and values.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from fedsim import registry
from fedsim.data.corpus import Folders
from fedsim.data.dealt import Holding, holding_of, is_holding, read
from fedsim.data.population import Population
from fedsim.data.schema import Column, columns_of, named, texts, values
from fedsim.data.table import Table
from fedsim.data.table import read as read_table
from fedsim.errors import DataError, FedsimError, ScenarioError
from fedsim.federating import federate
from fedsim.scenario import Scenario

UNFIT = "the node's rows do not fit the scenario; its owner sees why with `fedsim deploy node DIR --check SCENARIO`"
"""What a coordinator is told, whatever is wrong with them."""
_SPLIT_SEED = 0
_CONSTANTS = 'declare ranges or mean and std in data.schema and set data.preprocess.kind = "constants"'


def load(path: Path, scenario: Scenario) -> Holding:
    """The rows in a folder that `fedsim.data.dealt` wrote, or read by the scenario's own data source and split by it.

    Args:
        path: of the rows; it takes the place of `data.path`.
        scenario: what is asked; its partition, central sets, left out clients and seed are a simulation's and play no
            role.

    Raises:
        FedsimError: the rows do not fit; the text is for their owner alone.
    """
    if is_holding(path):
        return read(path)
    _check_alone(scenario)
    federation = federate(of_one(path, scenario), Folders.of(None, scenario.folder))
    fitted = federation.preprocessing.get("fit")
    if fitted == "federated":
        raise ScenarioError(f"data.preprocess: no node knows the scales of all rows; {_CONSTANTS}")
    return holding_of(federation, 0)


def check(path: Path, scenario: Scenario) -> list[str]:
    """What keeps an owner's rows from a scenario: of a table each column that differs; nothing where they fit."""
    found = _columns_that_differ(path, scenario)
    if not found:
        try:
            load(path, scenario)
        except FedsimError as error:
            found = [str(error)]
    return found


def _check_alone(scenario: Scenario) -> None:
    """Refuse what nobody can load by himself."""
    table = scenario.data
    if table.preprocess is not None and table.preprocess.kind == "federated":
        raise ScenarioError(f"data.preprocess: no node knows the scales of all rows; {_CONSTANTS}")
    source = registry.find("fedsim.data.sources", table.name, scenario.folder, "data.name")
    called = signature(source)
    parameters = called.parameters
    if "path" not in parameters:
        raise ScenarioError(
            f"data.name: {table.name!r} takes no path, so it reads no owner's rows; take csv, npz, images or audio, or "
            "a source of your own with a parameter path"
        )
    if called.return_annotation is Population:
        raise ScenarioError(f"data.name: {table.name!r} holds rows of many clients, and a node has one's; take npz")
    for key in ("schema", "classes"):
        if key in parameters and key not in table.settings:
            raise ScenarioError(f"data.{key} is missing: what is taken from one node's rows alone fits no other's")


def of_one(path: Path, scenario: Scenario) -> Scenario:
    """The scenario of one client who has all rows there are.

    They are split by a seed of the node's own. Were it the scenario's, whoever asks could have persons' rows dealt out
    anew as often as they like, and solve the counts of parts for what each person has; and one run would train on what
    another one is tested on.
    """
    changes: dict[str, Any] = {
        "seed": _SPLIT_SEED,
        "data.path": str(path.resolve()),
        "data.partition": {"kind": "iid", "clients": 1},
        "data.split.central": 0.0,
        "data.without": [],
    }
    if (schema := scenario.data.settings.get("schema")) is not None:
        changes["data.schema"] = _without_clients(schema)
    return scenario.changed(changes)


def _without_clients(schema: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A schema whose column of clients may be there or not: at a node all rows are one client's."""
    return {
        name: {"kind": "ignore"} if column.get("kind") == "client" else dict(column) for name, column in schema.items()
    }


def _columns_that_differ(path: Path, scenario: Scenario) -> list[str]:
    """A line for every column of a table that is not as the scenario's schema says."""
    schema = scenario.data.settings.get("schema")
    if scenario.data.name != "csv" or schema is None or is_holding(path):
        return []
    try:
        columns = columns_of(_without_clients(schema))
        table = read_table(path.resolve(), scenario.data.settings.get("delimiter", ","))
    except FedsimError as error:
        return [str(error)]
    found: list[str] = []
    there: dict[str, Sequence[str]] = {}
    for header, given in table.columns.items():
        name = header if header in columns else header.split("[")[0].strip()
        others = {other: column if other == name else Column(kind="ignore") for other, column in columns.items()}
        try:
            there |= named(Table(table.path, {header: given}, table.lines), others).columns
        except DataError as error:
            found.append(str(error))
    for name, column in columns.items():
        if name not in there and not any(header.split("[")[0].strip() == name for header in table.columns):
            found += [] if column.kind == "ignore" else [f"{table.path}: there is no column {name!r}; add it"]
        elif name in there:
            found += _values_that_differ(Table(table.path, {name: there[name]}, table.lines), name, column)
    return found


def _values_that_differ(table: Table, name: str, column: Column) -> list[str]:
    """A line for the first value of a column that the schema does not allow."""
    try:
        if column.kind == "group":
            texts(table, name, column)
        else:
            values(table, {name: column})
    except DataError as error:
        return [str(error)]
    return []
