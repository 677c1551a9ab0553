"""A table of texts: columns by name, and where each row stands in its file."""

from collections.abc import Iterable, Mapping, Sequence
from csv import Error, reader
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from fedsim.data.sources._files import contents
from fedsim.errors import DataError, ScenarioError
from fedsim.registry import nearest


@dataclass(frozen=True)
class Table:
    """Rows of texts.

    Attributes:
        path: of the file, for messages.
        columns: name -> the values of its N rows, without space around them.
        lines: [N] the line of the file on which every row ends.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)


def read(path: Path, delimiter: str = ",", header: Sequence[str] | None = None, skip: int = 0) -> Table:
    """A table from a file: UTF-8 with or without a byte order mark, quoted fields allowed, empty lines left out.

    Args:
        path: of the file.
        delimiter: between fields, one character.
        header: names of the columns; taken from the first line where they are not given.
        skip: lines before the table.

    Raises:
        DataError: no such file, or not such a table; names the line.
        ScenarioError: the delimiter is not one character.
    """
    try:
        text = contents(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the table as UTF-8") from error
    if len(delimiter) != 1:
        raise ScenarioError(f"data.delimiter = {delimiter!r}: give one character")
    names = list(header or [])
    rows, lines = [], []
    stream = StringIO(text, newline="")
    for _ in range(skip):
        stream.readline()
    parser = reader(stream, delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for fields in parser:
            values = [field.strip() for field in fields]
            if not any(values):
                continue
            if not names:
                names = _header(path, values)
                continue
            line = skip + parser.line_num
            if len(values) != len(names):
                raise DataError(
                    f"{path}, line {line}: {len(values)} fields where {_wanted(header, names)}; mend the line"
                )
            rows.append(values)
            lines.append(line)
    except Error as error:
        raise DataError(f"{path}, line {skip + parser.line_num}: {error}; check the quotes there") from error
    if not rows:
        raise DataError(f"{path}: no rows under a header line; the first line must name the columns")
    return Table(path, dict(zip(names, zip(*rows, strict=True), strict=True)), lines)


def there(table: Table, names: Iterable[str]) -> Table:
    """The table's columns of these names.

    Raises:
        DataError: one is missing.
    """
    wanted = list(names)
    for name in wanted:
        if name not in table.columns:
            raise DataError(f"{table.path}: there is no column {name!r}.{nearest(name, table.columns)}")
    return Table(table.path, {name: table.columns[name] for name in wanted}, table.lines)


def _wanted(header: Sequence[str] | None, names: Sequence[str]) -> str:
    return f"the header has {len(names)}" if header is None else f"the data set has {len(names)}"


def _header(path: Path, names: list[str]) -> list[str]:
    twice = [name for position, name in enumerate(names) if name in names[:position]]
    if "" in names or twice:
        reason = f"names {twice[0]!r} twice" if twice else f"leaves column {names.index('') + 1} without a name"
        raise DataError(f"{path}: the header {reason}; give every column one name of its own")
    other = [mark for mark in ";\t|" if len(names) == 1 and mark in names[0]]
    if other:
        raise DataError(f"{path}: the header is one field; set data.delimiter = {other[0]!r}")
    return names
