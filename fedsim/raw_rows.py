"""Rows for a trained model, made of new files and raw values as those were that it was trained on.

What was done is saved with the model (`preprocessing` in model.json). Nothing is fitted here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from fedsim.data.corpus import BYTES, PREDICTS_NEXT
from fedsim.data.preprocess import Preparation
from fedsim.data.sources._files import contents
from fedsim.data.table import Table
from fedsim.data.table import read as read_table
from fedsim.errors import DataError, one_line

_PREPARED = "prepared"


class Read(NamedTuple):
    """Rows of a file.

    Attributes:
        x: as the model takes them; arrays of one shape, but texts whose next byte is wanted may differ in length.
        names: what each row is called: its line, its place from 0, or its file.
    """

    x: np.ndarray | Sequence[np.ndarray]
    names: Sequence[int | str]


@dataclass(frozen=True)
class Preprocessing:
    """From raw values to what a model takes.

    Attributes:
        stored: what was done to the rows that it was trained on; "kind" says how new ones come.
        shape: of a row as the model takes it.
        whole: whether rows are whole numbers, each a token or a byte.
        vocabulary: how many tokens there are; None where rows are bytes or no tokens.
        task: of the model.
        client: name of whose rows they are, where every client has scales of its own.
        transform: of the user, of rows that are ready otherwise: x [N, ...] -> x [N, ...].
    """

    stored: Mapping[str, Any]
    shape: tuple[int, ...]
    whole: bool
    vocabulary: int | None
    task: str
    client: str | None = None
    transform: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def kind(self) -> str:
        """How raw values come: "image", "table", "bytes", "hashed-words", "spectrogram", "none" for as they are, or in
        files of a published data set: "kdd99", "windows" (NAB), "series" (Beijing's air), "movietweetings".
        """
        return str(self.stored.get("kind", "none"))

    @cached_property
    def preparation(self) -> Preparation:
        """How the columns of a table become features."""
        try:
            return Preparation.of(self.stored)
        except ValidationError as error:
            raise DataError(f"the model's preprocessing is damaged: {error.errors()[0]['msg']}") from error

    def __call__(self, raw: Any) -> np.ndarray:
        """Rows [N, ...] of raw values in memory.

        Args:
            raw: pixels [N, channels, height, width] as they come, for "image"; a mapping from column to its N values,
                for "table"; N texts, for "bytes" and "hashed-words"; sounds of samples in [-1, 1], for "spectrogram";
                rows as the model takes them, for "none".

        Raises:
            DataError: values that the model was not trained on; names row, column or what is wrong.
        """
        make = _OF_VALUES.get(self.kind)
        if make is None:
            raise DataError(f"rows of kind {self.kind!r} cannot be made of raw values; give the model those it takes")
        return self.finished(make(self, raw), "row")

    def read(self, path: Path) -> Read:
        """Rows of a file, or of a folder of files.

        Args:
            path: CSV with a header (commas, semicolons, tabs or bars between fields) for "table"; a file of UTF-8 with
                a text a line for "bytes" and "hashed-words"; an image or sound file, or a folder of such, for "image"
                and "spectrogram"; for those of a published data set a file as that has them. For every kind an .npz
                with the array `prepared`, rows as the model takes them; for "image" and "none" one with raw values `x`.

        Raises:
            DataError: no such file, or rows that the model was not trained on; names file, line or column.
        """
        if path.suffix == ".npz":
            return _arrays(self, path)
        read = _OF_FILES.get(self.kind)
        if read is None:
            raise DataError(f"{path}: rows of kind {self.kind!r} come as .npz with the array {_PREPARED!r}")
        try:
            found = read(self, path)
        except KeyError as error:  # of a kind that a user's own data have called so
            raise DataError(
                f"{path}: how rows of kind {self.kind!r} were made was not kept; give an .npz with {_PREPARED!r}"
            ) from error
        if isinstance(found.x, list):
            return Read([self._transformed(row[None])[0] for row in found.x], found.names)
        return Read(self.finished(np.asarray(found.x), f"{path}, row"), found.names)

    def finished(self, x: np.ndarray, where: str) -> np.ndarray:
        """Rows after the user's transform, checked; `where` comes before a row's place in messages."""
        return self.checked(self._transformed(x), where)

    def _transformed(self, x: np.ndarray) -> np.ndarray:
        """Rows after the user's transform, if there is one; floats are float32, as in training."""
        if "transform" not in self.stored:
            return x
        name = self.stored["transform"]
        if self.transform is None:
            raise DataError(
                f"the rows went through {name!r}, whose code is not here; apply it, and give an .npz with the array "
                f"{_PREPARED!r}, rows as the model takes them"
            )
        try:
            made = np.asarray(self.transform(x))
        except Exception as error:
            shape = list(x.shape[1:])
            raise DataError(f"data.transform: {name} fails on rows {shape} of {x.dtype}: {one_line(error)}") from error
        if made.ndim < 2 or len(made) != len(x) or made.dtype.kind not in "fiu":
            raise DataError(f"data.transform: {name} gives {list(made.shape)} of {made.dtype} for {len(x)} rows")
        with np.errstate(over="ignore"):  # what float32 cannot hold is told with its row
            return made.astype(np.float32) if made.dtype.kind == "f" else made

    def checked(self, x: np.ndarray, where: str) -> np.ndarray:
        """Rows of the model's shape whose values it can take."""
        if x.shape[1:] != self.shape:
            found, wanted = list(x.shape[1:]), list(self.shape)
            raise DataError(f"{where.removesuffix(', row')}: rows have shape {found}, the model takes {wanted}")
        flat = x.reshape(len(x), math.prod(self.shape))
        if x.dtype.kind == "f":
            odd, what = ~np.isfinite(flat), "a value that is not finite"
        else:
            most = self.vocabulary or BYTES
            odd, what = (flat < 0) | (flat >= most), f"a token outside 0 to {most - 1}"
        if odd.any():
            raise DataError(f"{where} {int(np.argmax(odd.any(axis=1)))}: has {what}")
        return x


def _arrays(preprocessing: Preprocessing, path: Path) -> Read:
    """An .npz of rows as the model takes them, or of raw ones."""
    contents(path)  # so that a missing file has its own message
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name in (_PREPARED, "x")}
    except Exception as error:  # without NumPy's own words, which advise to allow pickles
        raise DataError(f"{path}: not a sound .npz of plain arrays; write numbers with numpy.savez") from error
    where = f"{path}, row"
    if _PREPARED in arrays:
        done = preprocessing.checked(_as_they_are(preprocessing, arrays[_PREPARED]), where)
        return Read(done, range(len(done)))
    raw_kind = preprocessing.kind in ("none", "image")
    if "x" not in arrays or not raw_kind:
        wanted = f"no array {_PREPARED!r}, rows as the model takes them" + (", and no raw 'x'" if raw_kind else "")
        raise DataError(f"{path}: holds {wanted}")
    try:
        made = _OF_VALUES[preprocessing.kind](preprocessing, arrays["x"])
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return Read(preprocessing.finished(made, where), range(len(made)))


def _as_they_are(preprocessing: Preprocessing, raw: Any) -> np.ndarray:
    """Rows as the model takes them: tokens as they are, anything else as float32."""
    values = np.asarray(raw)
    if values.ndim < 1 or values.dtype.kind not in "fiub":
        raise DataError(f"rows of type {values.dtype}; give numbers")
    return values if preprocessing.whole and values.dtype.kind in "iu" else values.astype(np.float32)


def _pixels(preprocessing: Preprocessing, raw: Any) -> np.ndarray:
    """[N, channels, height, width] pixels as they come, divided and normalised."""
    stored, values = preprocessing.stored, np.asarray(raw)
    if values.dtype.kind not in "fiub":
        raise DataError(f"pixels of type {values.dtype}; give numbers")
    if values.ndim == 3:  # of one channel, which is left out
        values = values[:, None]
    if not {"divide_by", "mean", "std"} <= stored.keys():
        raise DataError(
            f"how pixels were normalised was not kept; give the array {_PREPARED!r}, rows as the model takes them"
        )
    largest = float(stored["divide_by"])
    if values.size and not (values.min() >= 0 and values.max() <= largest):
        raise DataError(f"pixels from {values.min():g} to {values.max():g}; the model's go from 0 to {largest:g}")
    mean, std = (np.reshape(np.array(stored[key], float), (-1, 1, 1)) for key in ("mean", "std"))
    return ((values / largest - mean) / std).astype(np.float32)


def _cells(preprocessing: Preprocessing, raw: Any) -> np.ndarray:
    """[N, F] features of columns by name, their values numbers or texts; None and nan are missing."""
    if not isinstance(raw, Mapping) or len({len(values) for values in raw.values()}) != 1:
        raise DataError("rows of a table are a mapping from column to values, as many for every column")
    columns = {name: ["" if _lacks(value) else str(value).strip() for value in raw[name]] for name in raw}
    return _features(preprocessing, Table(Path("rows"), columns, range(len(next(iter(columns.values()))))))


def _lacks(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _features(preprocessing: Preprocessing, table: Table) -> np.ndarray:
    preparation = preprocessing.preparation
    raw = preparation.read(table)
    for place, (name, column) in enumerate(preparation.columns.items()):
        if column.rule == "drop" and (lacks := np.isnan(raw[:, place])).any():
            line = table.lines[int(np.argmax(lacks))]
            raise DataError(
                f"{table.path}, line {line}: column {name!r} is missing; the model was trained without such"
            )
    return preparation.apply(raw, preprocessing.client)


def _texts(preprocessing: Preprocessing, raw: Any) -> np.ndarray:
    """[N, L] tokens of texts; where the next byte is asked for their last bytes, as many of each."""
    texts = [raw] if isinstance(raw, str) else list(raw)
    if preprocessing.task in PREDICTS_NEXT:
        return np.stack([_last_bytes(preprocessing, text) for text in texts])
    from fedsim.data.sources._words import encode

    return encode(texts, preprocessing.stored)


def _last_bytes(preprocessing: Preprocessing, text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)[-preprocessing.shape[0] :]


def _sounds(preprocessing: Preprocessing, raw: Any) -> np.ndarray:
    from fedsim.data.sources._spectrogram import Spectrogram

    spectrogram = Spectrogram.of(preprocessing.stored)
    return np.stack([spectrogram.picture(np.asarray(sound, np.float32)) for sound in raw])


def _lines(preprocessing: Preprocessing, path: Path) -> Read:
    """A text a line. Next-byte models read the last bytes of each, as many as it has and as they were trained on."""
    try:
        lines = contents(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the text as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"{path}, line {number}: is empty; write one text a line")
    if not lines:
        raise DataError(f"{path}: is empty; write one text a line")
    numbers = range(1, len(lines) + 1)
    if preprocessing.task in PREDICTS_NEXT:
        return Read([_last_bytes(preprocessing, line) for line in lines], numbers)
    return Read(_texts(preprocessing, lines), numbers)


def _rows_of_table(preprocessing: Preprocessing, path: Path) -> Read:
    first = contents(path).partition(b"\n")[0]
    table = read_table(path, max(",;\t|", key=lambda mark: first.count(mark.encode())))
    return Read(_features(preprocessing, table), table.lines)


def _images(preprocessing: Preprocessing, path: Path) -> Read:
    from fedsim.data.sources.images import pixels

    stored, files = preprocessing.stored, _files(path)
    size = (stored.get("height", preprocessing.shape[-2]), stored.get("width", preprocessing.shape[-1]))
    colour = stored.get("colour", preprocessing.shape[0] == 3)
    raw = np.stack([pixels(file, size, colour, stored.get("resize", False)) for file in files])
    try:
        return Read(_pixels(preprocessing, raw), [file.name for file in files])
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _recordings(preprocessing: Preprocessing, path: Path) -> Read:
    from fedsim.data.sources._sound import samples

    rate, files = preprocessing.stored["rate"], _files(path)
    sounds = [samples(contents(file), str(file), rate) for file in files]
    return Read(_sounds(preprocessing, sounds), [file.name for file in files])


def _files(path: Path) -> list[Path]:
    """The file, or those of a folder in the order of their names; hidden ones are passed over."""
    if not path.is_dir():
        return [path]
    if not (files := sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))):
        raise DataError(f"{path}: holds no files")
    return files


def _connections(preprocessing: Preprocessing, path: Path) -> Read:
    from fedsim.data.sources.kdd99 import connections

    return Read(*connections(path))


def _series(preprocessing: Preprocessing, path: Path) -> Read:
    from fedsim.data.sources.nab import series

    return Read(*series(path, preprocessing.shape[0]))


def _hours(preprocessing: Preprocessing, path: Path) -> Read:
    from fedsim.data.sources.air_quality import new_windows

    return Read(*new_windows(path, preprocessing.stored))


def _pairs(preprocessing: Preprocessing, path: Path) -> Read:
    from fedsim.data.sources.movietweetings import pairs

    return Read(*pairs(path, preprocessing.stored))


_OF_VALUES: Mapping[str, Callable[[Preprocessing, Any], np.ndarray]] = {
    "none": _as_they_are,
    "image": _pixels,
    "table": _cells,
    "bytes": _texts,
    "hashed-words": _texts,
    "spectrogram": _sounds,
}
_OF_FILES: Mapping[str, Callable[[Preprocessing, Path], Read]] = {
    "table": _rows_of_table,
    "bytes": _lines,
    "hashed-words": _lines,
    "image": _images,
    "spectrogram": _recordings,
    "kdd99": _connections,
    "windows": _series,
    "series": _hours,
    "movietweetings": _pairs,
}
