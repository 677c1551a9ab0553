"""Beijing's air: windows of 24 hours at 12 stations, and the fine dust six hours later. A station is a client.

Zhang et al., "Cautionary Tales on Air-Quality Improvement in Beijing", Proceedings of the Royal Society A, 2017:
PM2.5 and ten other quantities every hour from March 2013 to February 2017. The last year is the test set.
Licence: CC BY 4.0 (UCI Machine Learning Repository).
"""

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.schema import Column, values
from fedsim.data.sources._files import contents, verify
from fedsim.data.table import Table, read, there
from fedsim.errors import DataError, ScenarioError
from fedsim.registry import nearest

_STATIONS = {  # the first digits of the SHA-256 of each table, unpacked
    "Aotizhongxin": "a94fbcfc7170",
    "Changping": "a2e21402a6d9",
    "Dingling": "3d8dff81f18a",
    "Dongsi": "9c0020214425",
    "Guanyuan": "59390fee3b03",
    "Gucheng": "10ae48801ea5",
    "Huairou": "812dcbe848b3",
    "Nongzhanguan": "572cf87b65ef",
    "Shunyi": "520b59e4ead3",
    "Tiantan": "0743e34799cf",
    "Wanliu": "0b1a6d754a07",
    "Wanshouxigong": "ab1d6a356d69",
}
_WINDS = ("N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW")


class _Quantity(NamedTuple):
    """A column of the table, as (v - mean) / std of v, or of log(1 + v); the numbers are round and declared."""

    column: int
    log: bool
    mean: float
    std: float


_QUANTITIES = {
    "PM2.5": _Quantity(5, True, 4.0, 1.0),
    "PM10": _Quantity(6, True, 4.3, 1.0),
    "SO2": _Quantity(7, True, 2.3, 1.0),
    "NO2": _Quantity(8, True, 3.6, 0.8),
    "CO": _Quantity(9, True, 6.8, 0.8),
    "O3": _Quantity(10, True, 3.5, 1.2),
    "TEMP": _Quantity(11, False, 13.0, 11.0),
    "PRES": _Quantity(12, False, 1010.0, 10.0),
    "DEWP": _Quantity(13, False, 2.0, 14.0),
    "RAIN": _Quantity(14, True, 0.0, 0.3),
    "WSPM": _Quantity(16, False, 2.0, 1.2),
}
_TIME = {"year": (1900.0, 2999.0), "month": (1.0, 12.0), "day": (1.0, 31.0), "hour": (0.0, 23.0)}  # columns 1 to 4
_WIDTH = 17
_WIND, _CARRIED = 15, 6  # the column of the wind's direction; hours over which a missing value is the last one seen
_TURN = 360 / len(_WINDS)
_TARGET = {"names": ["PM2.5"], "mean": 80.0, "std": 80.0, "range": [0.0, 1000.0], "unit": "ug/m3"}
_FIRST_TEST_MONTH = 201603


def air_quality(
    folders: Folders,
    *,
    stations: list[str] | None = None,
    hours: Annotated[int, Field(ge=1, le=240)] = 24,
    ahead: Annotated[int, Field(ge=1, le=240)] = 6,
    stride: Annotated[int, Field(ge=1, le=1000)] = 11,
) -> Corpus:
    """Windows [hours, 15] of a station's quantities, the wind as a vector and the hour of the day; target PM2.5.

    A value that is missing is the last one of at most six hours before; a window with a longer gap is left out, and one
    whose target is missing. A window and its target lie in one month, and a month lies in one part, at all stations:
    neighbouring windows are alike, and so are stations in the same hour.

    Args:
        folders: where the folder `air-quality` with a gzipped table for each station is looked for.
        stations: names of those that take part; all 12 by default.
        hours: of a window.
        ahead: hours from a window's last to its target.
        stride: hours from one window to the next; one that shares no factor with 24 meets every hour of the day.

    Raises:
        ScenarioError: there is no such station.
        DataError: a file is missing, damaged or not the expected one.
    """
    names = tuple(dict.fromkeys(stations if stations is not None else _STATIONS))
    unknown = [name for name in names if name not in _STATIONS]
    if unknown or not names:
        known = nearest(unknown[0] if unknown else "", _STATIONS)
        raise ScenarioError(f"data.stations = {list(names)} should name stations.{known}")
    files = {name: f"PRSA_Data_{name}_20130301-20170228.csv.gz" for name in names}
    paths = folders.find("air-quality", list(files.values()))
    found = [_windows(_table(paths[files[name]], _STATIONS[name]), hours, ahead, stride) for name in names]
    x, y, month = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    columns = {name: {"log": q.log, "mean": q.mean, "std": q.std} for name, q in _QUANTITIES.items()}
    return Corpus(
        name="air-quality",
        task="regression",
        x=x,
        y=y,
        classes=(),
        preprocessing={
            "kind": "series",
            "hours": hours,
            "ahead": ahead,
            "columns": columns,
            "target": _TARGET,
            "overlapping": True,
        },
        clients=np.repeat(np.arange(len(names)), [len(windows.y) for windows in found]),
        client_names=names,
        groups=month,
        group_name="month",
        own_test=month >= _FIRST_TEST_MONTH,
    )


def new_windows(path: Path, stored: Mapping[str, Any]) -> tuple[np.ndarray, list[int]]:
    """Every window [n, hours, 15] of a new table that lacks nothing, and the line of its last hour.

    Args:
        path: CSV with the columns of the published tables, an hour a row in the order of time; others are passed over.
        stored: `preprocessing` of the corpus that a model was trained on, whose hours and scales are used.

    Raises:
        DataError: no such table, a value is none, an hour is left out, or no window is whole.
    """
    hours = int(stored["hours"])
    scales = {name: _QUANTITIES[name]._replace(**scale) for name, scale in stored["columns"].items()}
    names = (*_TIME, *_QUANTITIES, "wd")
    table = there(read(path), names)
    absent: dict[str, Any] = {"missing": ["NA"], "rule": "drop"}
    columns = {
        **{name: Column(kind="number", range=bounds) for name, bounds in _TIME.items()},
        **{name: Column(kind="number", log=quantity.log, **absent) for name, quantity in _QUANTITIES.items()},
        "wd": Column(kind="category", categories=list(_WINDS), **absent),
    }
    raw = np.full((len(table), _WIDTH), np.nan)
    places = [*range(1, 5), *(quantity.column for quantity in _QUANTITIES.values()), _WIND]
    raw[:, places] = values(table, columns)
    raw[:, _WIND] *= _TURN
    _check_hours(table, raw)
    lacks = np.concatenate([[0], np.cumsum(np.isnan(features := _features(raw, scales)).any(axis=1))])
    first = np.arange(max(len(table) - hours + 1, 0))
    first = first[lacks[first + hours] == lacks[first]]
    if not len(first):
        raise DataError(f"{path}: nowhere are {hours} hours without a longer gap; give such")
    return features[first[:, None] + np.arange(hours)].astype(np.float32), [
        table.lines[row + hours - 1] for row in first
    ]


def _check_hours(table: Table, raw: np.ndarray) -> None:
    """Refuse a table in which an hour does not follow the one before."""
    texts = [f"{year:04.0f}-{month:02.0f}-{day:02.0f}T{hour:02.0f}" for _, year, month, day, hour in raw[:, :5]]
    try:
        moments = np.array(texts, dtype="datetime64[h]")
    except ValueError as error:
        raise DataError(f"{table.path}: there is no such day: {error}") from error
    if (odd := np.diff(moments) != np.timedelta64(1, "h")).any():
        line = table.lines[int(np.argmax(odd)) + 1]
        raise DataError(f"{table.path}, line {line}: is not one hour after the line before; fill hours up with NA")


class _Windows(NamedTuple):
    """x [n, hours, 15] and y [n] float32, and the month of each, such as 201303."""

    x: np.ndarray
    y: np.ndarray
    month: np.ndarray


def _windows(table: np.ndarray, hours: int, ahead: int, stride: int) -> _Windows:
    """Of one station's table [hours in all, 17]."""
    month = (100 * table[:, 1] + table[:, 2]).astype(np.int64)
    features = _features(table, _QUANTITIES)
    first = np.arange(0, len(table) - hours - ahead + 1, stride)
    target = first + hours - 1 + ahead
    gaps = np.concatenate([[0], np.cumsum(np.isnan(features).any(axis=1))])
    whole = (gaps[first + hours] == gaps[first]) & ~np.isnan(table[target, _QUANTITIES["PM2.5"].column])
    kept = whole & (month[first] == month[target])
    x = features[first[kept, None] + np.arange(hours)]
    y = table[target[kept], _QUANTITIES["PM2.5"].column]
    return _Windows(x.astype(np.float32), y.astype(np.float32), month[target[kept]])


def _features(table: np.ndarray, quantities: Mapping[str, _Quantity]) -> np.ndarray:
    """[hours in all, 15] scaled quantities, wind from the north and east, sine and cosine of the hour."""
    filled = _carried(table)
    scaled = []
    for quantity in quantities.values():
        values = filled[:, quantity.column]
        scaled.append(((np.log1p(values) if quantity.log else values) - quantity.mean) / quantity.std)
    angle, speed = np.radians(filled[:, _WIND]), filled[:, quantities["WSPM"].column] / 2
    hour = 2 * np.pi * table[:, 4] / 24
    return np.stack([*scaled, speed * np.cos(angle), speed * np.sin(angle), np.sin(hour), np.cos(hour)], axis=1)


def _carried(table: np.ndarray) -> np.ndarray:
    """The table with short gaps filled by the last value before them."""
    there = ~np.isnan(table)
    place = np.arange(len(table))[:, None]
    last = np.maximum.accumulate(np.where(there, place, -1), axis=0)
    filled = np.take_along_axis(table, np.maximum(last, 0), axis=0)
    return np.where((last >= 0) & (place - last <= _CARRIED), filled, np.nan)


def _table(path: Path, digest: str) -> np.ndarray:
    """[35064, 17] float64, an hour a row, in the file's columns but for the station's name; the wind in degrees."""
    packed = contents(path)
    try:
        data = gzip.decompress(packed)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); fetch it again") from error
    verify(path, data, digest, "sha256")
    data = data.replace(b",NA", b",nan")
    for number, wind in enumerate(_WINDS):
        data = data.replace(f',"{wind}",'.encode(), f",{_TURN * number},".encode())
    lines = data.decode("ascii").splitlines()
    table: np.ndarray = np.loadtxt(lines, delimiter=",", skiprows=1, usecols=range(_WIDTH))
    return table
