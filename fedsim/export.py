"""What `fedsim export` writes: one table of a run as CSV, JSON or Parquet, row by row, however long it is."""

import csv
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import IO, Any, TextIO

from fedsim.errors import RunFolderError
from fedsim.reading import Records
from fedsim.records import HOLD_JSON, schema, to_json
from fedsim.registry import nearest

FORMATS = ("csv", "json", "parquet")
ROWS_AT_ONCE = 50_000
"""A row group of a Parquet file, and the most rows that are held in memory."""


def export(folder: Path, table: str, format: str, out: Path | None, stream: TextIO) -> int:
    """Write a table.

    CSV leaves NULL empty. JSON is a list of objects, in which the columns that hold JSON are objects too.

    Args:
        folder: of the run, which may still be going on.
        table: of docs/run-folder.md, or its view `failures`.
        format: of `FORMATS`.
        out: a new file; None for `stream`.
        stream: takes text where there is no file.

    Returns:
        How many rows were written.

    Raises:
        RunFolderError: no run, no such table or format, a file that is there or cannot be written, no pyarrow.
    """
    for what, name, known in (("table", table, list(schema())), ("format", format, list(FORMATS))):
        if name not in known:
            raise RunFolderError(f"there is no {what} {name!r}.{nearest(name, known)}")
    if format == "parquet" and out is None:
        raise RunFolderError("parquet is no text; name a file with --out")
    pyarrow = _pyarrow() if format == "parquet" else None
    with closing(Records(folder / "run.db")) as records:
        rows = records.select(f"SELECT {', '.join(schema()[table])} FROM {table}")
        if out is None:
            return _write_text(rows, table, format, stream)
        with _new_file(out, binary=pyarrow is not None) as file:
            if pyarrow is not None:
                return _write_parquet(rows, table, file, pyarrow)
            return _write_text(rows, table, format, file)


def _write_text(rows: Iterator[sqlite3.Row], table: str, format: str, file: IO[str]) -> int:
    return (_write_csv if format == "csv" else _write_json)(rows, table, file)


def _write_csv(rows: Iterator[sqlite3.Row], table: str, file: IO[str]) -> int:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(schema()[table])
    count = 0
    for row in rows:
        writer.writerow(row)
        count += 1
    return count


def _write_json(rows: Iterator[sqlite3.Row], table: str, file: IO[str]) -> int:
    parsed = HOLD_JSON.get(table, ())
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
    count = 0
    file.write("[")
    for count, row in enumerate(rows, 1):
        values = dict(row) | {name: json.loads(row[name]) for name in parsed}
        try:
            text = encoder.encode(values)
        except ValueError:  # an infinite number; looking for them in every row would take most of the time
            text = to_json(values)
        file.write(f"{',' if count > 1 else ''}\n{text}")
    file.write("\n]\n")
    return count


def _write_parquet(rows: Iterator[sqlite3.Row], table: str, file: IO[Any], pyarrow: ModuleType) -> int:
    types = {"INTEGER": pyarrow.int64(), "REAL": pyarrow.float64(), "TEXT": pyarrow.string()}
    fields = pyarrow.schema([(name, types[kind]) for name, kind in schema()[table].items()])
    count = 0
    with pyarrow.parquet.ParquetWriter(file, fields) as writer:
        while group := list(islice(rows, ROWS_AT_ONCE)):
            columns = [pyarrow.array([row[field.name] for row in group], field.type) for field in fields]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=fields))
            count += len(group)
    return count


def _pyarrow() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError:
        raise RunFolderError("Parquet needs pyarrow: pip install 'fedsim[parquet]'") from None
    module: ModuleType = pyarrow
    return module


@contextmanager
def _new_file(path: Path, *, binary: bool) -> Iterator[IO[Any]]:
    """A file that was not there before; it goes again if it cannot be written to its end."""
    settings: Mapping[str, Any] = {"mode": "xb"} if binary else {"mode": "x", "encoding": "utf-8", "newline": ""}
    try:
        with path.open(**settings) as file:
            try:
                yield file
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError as error:
        raise RunFolderError(f"{path} exists already; choose another with --out, or remove it") from error
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error.strerror or error}; choose another with --out"
        ) from error
