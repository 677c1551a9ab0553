"""A user's own texts with classes: a file with a row a line, its columns apart by tabs.

    ann	spam	Free entry in 2 a weekly competition
    bob	ham	Go until jurong point

Nothing is quoted, so a text may hold anything but a line's end. What the classes are is said in the scenario.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents
from fedsim.data.sources._words import Tokens, encoded
from fedsim.errors import DataError, ScenarioError
from fedsim.registry import nearest

Column = Literal["text", "label", "client", "ignore"]


class Lines(NamedTuple):
    """What stands in the lines of a file, one entry per line that is not blank."""

    texts: list[str]
    labels: list[str]
    clients: list[str]


def labelled_text(
    folders: Folders,
    *,
    path: str,
    classes: tuple[str, ...],
    columns: tuple[Column, ...] = ("label", "text"),
    tokens: Tokens = "words",
    buckets: int = 4096,
    length: int = 32,
) -> Corpus:
    """Texts of a file, to be classified.

    Args:
        folders: the path is taken against the scenario's folder.
        path: of the file, in UTF-8.
        classes: what may stand under "label", in the order in which classes are numbered.
        columns: what stands between the tabs of a line: "text" and "label", once each, perhaps "client", whose values
            name natural clients, and "ignore". Tabs beyond these belong to the text.
        tokens: "words" or "bytes".
        buckets: numbers that words share.
        length: tokens of a row; what is longer is cut.

    Raises:
        ScenarioError: columns or classes cannot be read so.
        DataError: the file is missing or no UTF-8; a line has too few columns, no text, no client or another class.
    """
    for column in ("text", "label"):
        if columns.count(column) != 1:
            raise ScenarioError(f'data.columns = {list(columns)} should name "{column}" once')
    if columns.count("client") > 1:
        raise ScenarioError(f'data.columns = {list(columns)} should name "client" once at most')
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise ScenarioError(f"data.classes = {list(classes)} should be two different names at least")
    file = folders.scenario / path
    lines = read_lines(file, contents(file), columns, classes)
    rows, vocabulary, done = encoded(lines.texts, tokens, buckets, length)
    names, owners = np.unique(lines.clients, return_inverse=True)
    return Corpus(
        name="labelled-text",
        task="classification",
        x=rows,
        y=numbered(lines.labels, classes),
        classes=classes,
        preprocessing=done,
        clients=owners if "client" in columns else None,
        client_names=tuple(names.tolist()),
        vocabulary=vocabulary,
    )


def read_lines(path: Path, data: bytes, columns: Sequence[Column], classes: Sequence[str]) -> Lines:
    r"""The columns of every line that is not blank. Lines end at \n or \r\n alone, not at what Unicode also calls one.

    Raises:
        DataError: bytes that are no UTF-8, too few columns, no text, no client, a class that is not known, or no lines;
            names the line.
    """
    lines = Lines([], [], [])
    place, tabs = columns.index("text"), len(columns) - 1
    for number, line in enumerate(decoded(path, data).split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.removesuffix("\r").split("\t")
        if len(fields) <= tabs:
            _refuse(path, number, f"has {len(fields)} columns and should have {tabs + 1}, apart by tabs")
        end = len(fields) - (tabs - place)
        row = dict(zip(columns, [*fields[:place], "\t".join(fields[place:end]), *fields[end:]], strict=True))
        if not row["text"].strip():
            _refuse(path, number, "has an empty text; drop the line")
        if not row.get("client", "nobody's").strip():
            _refuse(path, number, "has no client; name whose text it is")
        if row["label"] not in classes:
            _refuse(path, number, f"has the class {row['label']!r}.{nearest(row['label'], classes)}")
        lines.texts.append(row["text"])
        lines.labels.append(row["label"])
        lines.clients.append(row.get("client", ""))
    if not lines.texts:
        raise DataError(f"{path}: has no lines")
    return lines


def decoded(path: Path, data: bytes) -> str:
    """The text of a file's bytes.

    Raises:
        DataError: they are no UTF-8; names the line.
    """
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise DataError(f"{path}: line {line}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def numbered(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """[N] int64 the number of every row's class."""
    number = {name: place for place, name in enumerate(classes)}
    return np.array([number[label] for label in labels], np.int64)


def _refuse(path: Path, line: int, reason: str) -> None:
    raise DataError(f"{path}: line {line} {reason}")
