"""A table of a run goes to other programs and comes back as it was, however long, and while the run goes on."""

import csv
import io
import json
import math
import shutil
import sys
import tracemalloc
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fedsim import records
from fedsim.engine.inline import InlineEngine
from fedsim.errors import RunFolderError
from fedsim.export import export
from fedsim.progress import Silent
from fedsim.reading import Records
from fedsim.records import ClientRow, Event, LedgerRow, RoundRecord, StateRow, schema
from fedsim.rounds import run_job
from fedsim.tags import set_tag
from tests import small
from tests.test_cli import Command

VERSION_1 = Path(__file__).parent / "fixtures" / "run-v1"
ODD = 'round 1, client 7: odd, "quoted",\nand é'
HELD = {("clients", "metrics"), ("summary", "value")}
"""Columns whose text is JSON."""


def commit(folder: Path, number: int, rows: list[ClientRow], metrics: Mapping[str, float]) -> None:
    database = records.connect(folder / "run.db")
    states = [StateRow(row.client, number, number) for row in rows]
    record = RoundRecord(number, 1.5, len(rows), 1, metrics, 0.1 * number, "print", rows)
    ledger = [LedgerRow(row.client, number, None if row.client else 0.1) for row in rows]
    records.insert_round(database, record, None, best=True, ledger=ledger, states=states)
    records.insert_event(database, Event("resumed", ODD))
    records.disconnect(database)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every table has rows, and text that a careless writer breaks."""
    folder = tmp_path_factory.mktemp("run")
    records.create_tables(folder / "run.db")
    values = {"a/b": 0.1, "other": math.nan}
    for number in (1, 2):
        sound = ClientRow(number, 0, "train", "ok", 9, 1 / 3, 5, 0.25, 8, 9, None, values, 2.5, 4, 0.75)
        failed = ClientRow(number, 7, "train", "failed", 9, None, 0, 0.0, 8, 0, ODD, {})
        commit(
            folder,
            number,
            [sound, failed],
            {"global/central-test/rows/loss": 0.1 + 0.2, "nan": math.nan, "inf": math.inf},
        )
    database = records.connect(folder / "run.db")
    records.insert_summary(database, {"title": ODD, "stop": None, "deep": {"a": [1, None]}}, ledger=[], events=[])
    records.disconnect(database)
    set_tag(folder, "paper", "figure 2, left")
    return folder


@pytest.fixture(scope="module")
def versions(folder: Path) -> dict[str, Path]:
    return {"new": folder, "old": VERSION_1}


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    with closing(Records(folder / "run.db")) as read:
        return [dict(row) for row in read.select(f"SELECT * FROM {table}")]


def text_of(folder: Path, table: str, format: str) -> str:
    stream = io.StringIO()
    count = export(folder, table, format, None, stream)
    assert count == len(rows_of(folder, table))
    return stream.getvalue()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(VERSION_1, tmp_path / "old")


EVERY = pytest.mark.parametrize("table", list(schema()))
BOTH = pytest.mark.parametrize("version", ["new", "old"])


@EVERY
@BOTH
def test_csv_gives_the_table_back(table: str, version: str, versions: dict[str, Path]) -> None:
    """To the bit; NULL is an empty field, and no field of ours is an empty text."""
    text = text_of(versions[version], table, "csv")
    kinds = {"INTEGER": int, "REAL": float, "TEXT": str}
    read = [
        {name: kinds[kind](row[name]) if row[name] else None for name, kind in schema()[table].items()}
        for row in csv.DictReader(io.StringIO(text, newline=""))
    ]
    assert text.partition("\n")[0].split(",") == list(schema()[table])
    assert read == rows_of(versions[version], table)


@EVERY
@BOTH
def test_json_gives_the_table_back(table: str, version: str, versions: dict[str, Path]) -> None:
    """Text that is JSON becomes the value it holds; JSON has no infinite numbers."""
    expected = [
        {
            name: json.loads(value) if (table, name) in HELD else None if value == math.inf else value
            for name, value in row.items()
        }
        for row in rows_of(versions[version], table)
    ]
    assert json.loads(text_of(versions[version], table, "json")) == expected


@EVERY
@BOTH
def test_parquet_gives_the_table_back(table: str, version: str, versions: dict[str, Path], tmp_path: Path) -> None:
    count = export(versions[version], table, "parquet", tmp_path / "table.parquet", io.StringIO())
    read = pyarrow.parquet.read_table(tmp_path / "table.parquet")
    assert read.to_pylist() == rows_of(versions[version], table) and count == read.num_rows
    types = {"INTEGER": pyarrow.int64(), "REAL": pyarrow.float64(), "TEXT": pyarrow.string()}
    assert read.schema.types == [types[kind] for kind in schema()[table].values()], "also where all is NULL"


@pytest.mark.parametrize("format", ["csv", "json"])
def test_a_file_holds_what_the_screen_shows(folder: Path, format: str, tmp_path: Path) -> None:
    export(folder, "clients", format, tmp_path / "file", io.StringIO())
    assert (tmp_path / "file").read_bytes() == text_of(folder, "clients", format).encode()


class Nowhere(io.StringIO):
    """Forgets what it is told."""

    def write(self, text: str) -> int:
        return len(text)


@pytest.mark.parametrize("format", ["csv", "json"])
def test_a_long_table_is_not_held_in_memory(format: str, tmp_path: Path) -> None:
    records.create_tables(tmp_path / "run.db")
    rows = [ClientRow(1, client, "train", "ok", 9, 0.5, 5, 0.25, 8, 9, None, {}) for client in range(20_000)]
    commit(tmp_path, 1, rows, {})
    tracemalloc.start()
    assert export(tmp_path, "clients", format, None, Nowhere()) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_parquet_is_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Four rows, three at once."""
    monkeypatch.setattr("fedsim.export.ROWS_AT_ONCE", 3)
    export(folder, "clients", "parquet", tmp_path / "file", io.StringIO())
    assert pyarrow.parquet.ParquetFile(tmp_path / "file").num_row_groups == 2
    assert pyarrow.parquet.read_table(tmp_path / "file").to_pylist() == rows_of(folder, "clients")


def test_a_run_is_exported_while_it_goes_on(tmp_path: Path) -> None:
    seen: list[int] = []

    class Exporting(Silent):
        def round(self, record: RoundRecord, shown: Mapping[str, float | None]) -> None:
            seen.append(len(json.loads(text_of(tmp_path / "run", "rounds", "json"))))

    run_job(small.job(), InlineEngine(), tmp_path / "run", Exporting())
    assert seen == [1, 2, 3]


# Mistakes


def test_an_existing_file_is_refused_and_untouched(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.csv"
    out.write_text("mine")
    for format in ("csv", "json", "parquet"):
        with pytest.raises(RunFolderError, match=r"mine\.csv exists already; choose another with --out, or remove it$"):
            export(folder, "rounds", format, out, io.StringIO())
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("table", "format", "out", "message"),
    [
        ("client", "csv", None, r"^there is no table 'client'\. Did you mean clients\?$"),
        ("rounds", "xml", None, r"^there is no format 'xml'\. Known: csv, json, parquet\.$"),
        ("rounds", "parquet", None, r"^parquet is no text; name a file with --out$"),
        ("rounds", "csv", "nowhere/a.csv", r"a\.csv cannot be written: No such file or directory; choose another"),
    ],
)
def test_a_mistake_is_told(
    folder: Path, tmp_path: Path, table: str, format: str, out: str | None, message: str
) -> None:
    with pytest.raises(RunFolderError, match=message):
        export(folder, table, format, tmp_path / out if out else None, io.StringIO())
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_it_is_said_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    with pytest.raises(RunFolderError, match=r"^Parquet needs pyarrow: pip install 'fedsim\[parquet\]'$"):
        export(folder, "rounds", "parquet", tmp_path / "a.parquet", io.StringIO())
    assert not (tmp_path / "a.parquet").exists()


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_a_table_that_breaks_off_leaves_no_file(old: Path, tmp_path: Path, format: str) -> None:
    content = (old / "run.db").read_bytes()
    (old / "run.db").write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(RunFolderError, match="cannot be read as the records of a run"):
        export(old, "clients", format, tmp_path / "out", io.StringIO())
    assert not (tmp_path / "out").exists()


# The command


@pytest.fixture
def fedsim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], old: Path) -> Command:
    """The command, beside an old run."""
    monkeypatch.chdir(old.parent)
    return Command(monkeypatch, capsys)


def test_the_command_prints_or_writes(fedsim: Command, old: Path, tmp_path: Path) -> None:
    assert fedsim("export", "old", "--table", "rounds") == (0, text_of(old, "rounds", "csv"), "")
    assert fedsim("export", "old", "--table", "rounds", "--json").out == text_of(old, "rounds", "json")
    assert fedsim("export", "old", "--table", "clients", "--out", "a.csv") == (0, "40 rows in a.csv\n", "")
    told = fedsim("export", "old", "--table", "clients", "--out", "a.parquet", "--json")
    assert json.loads(told.out) == {"file": "a.parquet", "rows": 40}
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").num_rows == 40
    fedsim("export", "old", "--table", "clients", "--out", "a.txt", "--format", "json")
    assert len(json.loads((tmp_path / "a.txt").read_text())) == 40
    status, out, err = fedsim("export", "old", "--table", "clients", "--out", "a.csv")
    assert (status, out, err) == (2, "", "error: a.csv exists already; choose another with --out, or remove it\n")
