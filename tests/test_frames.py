"""A run's records as data frames."""

import json
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

import fedsim
from fedsim.errors import FedsimError, RunFolderError
from fedsim.records import schema
from tests import small

pandas = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("frames") / "run"
    small.run(small.job({"rounds": 2, "strategy.name": "ditto"}), out)
    return out


def test_every_table_has_its_rows(folder: Path) -> None:
    run = fedsim.Run(folder)
    with closing(sqlite3.connect(folder / "run.db")) as database:
        for table, columns in schema().items():
            frame = run.frame(table)
            (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
            if table == "metrics":
                assert frame.drop(columns="round").notna().sum().sum() == count > 0
            else:
                assert len(frame) == count and set(columns) - {"metrics"} <= set(frame.columns)


def test_clients_metrics_are_columns(folder: Path) -> None:
    frame = fedsim.Run(str(folder)).frame("clients")
    with closing(sqlite3.connect(folder / "run.db")) as database:
        rows = database.execute("SELECT round, client, phase, loss, metrics FROM clients").fetchall()
    for row, (round, client, phase, loss, metrics) in zip(frame.to_dict("records"), rows, strict=True):
        assert (row["round"], row["client"], row["phase"], row["loss"]) == (round, client, phase, loss)
        for name, value in json.loads(metrics).items():
            assert row[f"metric/{name}"] == value
    measured = frame[frame["phase"] == "evaluate"]
    assert measured["metric/personal/accuracy"].between(0, 1).all()


def test_metrics_are_one_row_a_round(folder: Path) -> None:
    frame = fedsim.Run(folder).frame("metrics")
    assert frame["round"].tolist() == [1, 2]
    assert frame["global/central-validation/rows/accuracy"].between(0, 1).all()
    assert fedsim.Run(folder).summary["rounds"] == 2


def test_a_run_that_has_just_begun_has_every_table(folder: Path, tmp_path: Path) -> None:
    """Without rows, but with the columns by which a program goes on."""
    shutil.copytree(folder, tmp_path / "run")
    with closing(sqlite3.connect(tmp_path / "run" / "run.db")) as database, database:
        for table in set(schema()) - {"failures"}:  # a view
            database.execute(f"DELETE FROM {table}")
    run = fedsim.Run(tmp_path / "run")
    assert {table: len(run.frame(table)) for table in schema()} == dict.fromkeys(schema(), 0)
    assert list(run.frame("metrics").columns) == ["round"] and run.summary == {}


@pytest.mark.parametrize(("table", "column"), [("clients", "metrics"), ("summary", "value")])
def test_damaged_records_are_one_line(table: str, column: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    with closing(sqlite3.connect(tmp_path / "run" / "run.db")) as database, database:
        database.execute(f"UPDATE {table} SET {column} = '{{'")
    run = fedsim.Run(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"run\.db cannot be read as the records of a run"):
        run.frame(table)
    if table == "summary":
        with pytest.raises(RunFolderError, match="cannot be read"):
            _ = run.summary


def test_what_is_not_there_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFolderError, match=r"no table 'client'\. Did you mean clients\?"):
        fedsim.Run(folder).frame("client")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        fedsim.Run(tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FedsimError, match=r"a data frame needs pandas: pip install 'fedsim\[frames\]'"):
        fedsim.Run(folder).frame("clients")
