"""Statistics of an owner's table for `fedsim deploy statistics`, of which no epsilon says anything.

What is told are sums over train rows, of at least so many rows each. Two statistics of rows that differ by one would
tell that one, and whether rows fit one range and not another would too. So one question is answered, again with the
same answer, and no other one. It is written down before the table is opened.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import MetricRecord, RecordDict

from fedsim.data import preprocess, split
from fedsim.data.corpus import Folders
from fedsim.data.dealt import is_holding
from fedsim.data.schema import Column, Columns, columns_of, kept, named, values
from fedsim.data.sources.csv import csv
from fedsim.data.table import read
from fedsim.deploy import private_files
from fedsim.deploy.disclosure import WITHHELD_COUNT
from fedsim.deploy.node.holding import of_one
from fedsim.deploy.node.rules import Rules
from fedsim.errors import DeployError, Refused
from fedsim.scenario import Scenario

TOLD = "statistics.json"
"""In a node's folder: what was asked, and what was told."""


def summed(folder: Path, data: Path, scenario: Scenario, rules: Rules, least: int) -> RecordDict:
    """What a node tells of its table, as `disclosure.summaries` lists it.

    Args:
        folder: of the node.
        data: the owner's table.
        scenario: whose schema and split count.
        rules: of the owner.
        least: rows of which a statistic is told, as the coordinator asks; the owner's rule may ask for more.

    Raises:
        Refused: the owner does not allow it, there are too few rows, or something else was asked before.
        FedsimError: the table does not fit; the text is for its owner alone.
    """
    if not rules.statistics:
        raise Refused("rules.toml statistics: the owner lets no sums over columns leave")
    if is_holding(data):
        raise Refused("statistics are of tables, and the node's rows were made ready elsewhere")
    columns = summarised(scenario)
    fewest = max(rules.smallest_count, least)
    question, file = _digest(scenario, fewest), folder / TOLD
    before = _told(file)
    if before is not None and before["question"] != question:
        raise Refused(
            "other statistics of these rows were asked for before, and two may differ by a single row; the node's "
            f"owner allows more by removing {TOLD}"
        )
    if before is not None and before["answer"] is not None:
        return RecordDict({"metrics": MetricRecord(before["answer"])})
    private_files.replace(file, json.dumps({"question": question, "answer": None}).encode())
    rows = train_rows(data, scenario, columns)
    if len(rows) < fewest:
        raise Refused(f"rules.toml smallest_count: the node has fewer train rows than {fewest}")
    answer: dict[str, Any] = {**_numbers(columns, rows, fewest), **_categories(columns, rows, fewest)}
    private_files.replace(file, json.dumps({"question": question, "answer": answer}).encode())
    return RecordDict({"metrics": MetricRecord(answer)})


def summarised(scenario: Scenario) -> dict[str, Column]:
    """The columns of which statistics are told: numbers and categories, labels among them.

    Raises:
        Refused: the scenario describes no table.
    """
    schema = scenario.data.settings.get("schema")
    if scenario.data.name != "csv" or not schema:
        raise Refused('statistics are of tables: data.name = "csv" and data.schema are needed')
    found = {}
    for name, column in columns_of(schema).items():
        if column.kind in ("number", "category"):
            found[name] = column
        elif column.kind == "label":
            found[name] = column.model_copy(update={"kind": "category" if column.categories else "number"})
    return found


def train_rows(data: Path, scenario: Scenario, columns: Columns) -> np.ndarray:
    """[n, C] raw values of the train rows, split as in every run at this node."""
    alone = of_one(data, scenario)
    settings, shares = alone.data.settings, alone.data.split
    folders = Folders.of(None, scenario.folder)
    corpus = csv(folders, **settings)
    whole = [np.arange(len(corpus))]
    parts = split.clients(corpus, whole, ["rows"], alone.seed, (shares.train, shares.validation, shares.test))
    schema = columns_of(settings["schema"])
    table = kept(named(read(data.resolve(), settings.get("delimiter", ",")), schema), schema)
    raw: np.ndarray = values(table, columns)[parts[0]["train"]]
    return raw


def _numbers(columns: Columns, rows: np.ndarray, fewest: int) -> dict[str, int | float]:
    """Count, mean and variance of each number; zeros where too few rows have it.

    Where a few rows lack it, too: of whole numbers the mean alone tells how many there are.
    """
    counts, means, variances = preprocess.moments(columns, [rows])
    found: dict[str, int | float] = {}
    for place, (name, column) in enumerate(columns.items()):
        if column.kind != "number":
            continue
        there, mean, variance = int(counts[place]), float(means[place]), float(variances[place])
        if there < fewest or 0 < len(rows) - there < fewest:
            there, mean, variance = 0, 0.0, 0.0
        found |= {f"number/{name}/count": there, f"number/{name}/mean": mean, f"number/{name}/variance": variance}
    return found


def _categories(columns: Columns, rows: np.ndarray, fewest: int) -> dict[str, list[int]]:
    """How often each category is there; `WITHHELD_COUNT` where it is too seldom."""
    found: dict[str, list[int]] = {}
    for place, (name, column) in enumerate(columns.items()):
        if column.categories is None:
            continue
        there = rows[:, place]
        counts = np.bincount(there[~np.isnan(there)].astype(np.int64), minlength=len(column.categories))
        found[f"category/{name}"] = np.where(_large(counts, len(rows), fewest), counts, WITHHELD_COUNT).tolist()
    return found


def _large(counts: np.ndarray, rows: int, fewest: int) -> np.ndarray:
    """[V] bool: which counts may be told, so that what is left of all rows is of enough rows too, or of none."""
    shown = counts >= fewest
    while shown.any() and 0 < rows - counts[shown].sum() < fewest:
        shown[np.flatnonzero(shown)[np.argmin(counts[shown])]] = False
    return shown


def _digest(scenario: Scenario, fewest: int) -> str:
    """Of all that decides which rows are counted, and what is told of them."""
    asked: dict[str, Any] = {
        "data": {key: value for key, value in scenario.data.settings.items() if key != "path"},
        "split": scenario.data.split.model_dump(),
        "fewest": fewest,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _told(file: Path) -> dict[str, Any] | None:
    """What was asked before, and what was told; None for nothing."""
    try:
        found = json.loads(file.read_bytes())
        answer = found["answer"]
        return {"question": str(found["question"]), "answer": None if answer is None else dict(answer)}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeployError(f"{file} cannot be read, so what was told before is not known") from error
