"""Beijing's air: windows of 24 hours at 12 stations, and the fine dust six hours later. A station is a client.

Zhang et al., "Cautionary Tales on Air-Quality Improvement in Beijing", Proceedings of the Royal Society A, 2017:
PM2.5 and ten other quantities every hour from March 2013 to February 2017. The last year is the test set.
"""

import gzip
import zlib
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents, verify
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
_WIND, _CARRIED = 15, 6  # the column of the wind's direction; hours over which a missing value is the last one seen
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


class _Windows(NamedTuple):
    """x [n, hours, 15] and y [n] float32, and the month of each, such as 201303."""

    x: np.ndarray
    y: np.ndarray
    month: np.ndarray


def _windows(table: np.ndarray, hours: int, ahead: int, stride: int) -> _Windows:
    """Of one station's table [hours in all, 17]."""
    month = (100 * table[:, 1] + table[:, 2]).astype(np.int64)
    features = _features(table)
    first = np.arange(0, len(table) - hours - ahead + 1, stride)
    target = first + hours - 1 + ahead
    gaps = np.concatenate([[0], np.cumsum(np.isnan(features).any(axis=1))])
    whole = (gaps[first + hours] == gaps[first]) & ~np.isnan(table[target, _QUANTITIES["PM2.5"].column])
    kept = whole & (month[first] == month[target])
    x = features[first[kept, None] + np.arange(hours)]
    y = table[target[kept], _QUANTITIES["PM2.5"].column]
    return _Windows(x.astype(np.float32), y.astype(np.float32), month[target[kept]])


def _features(table: np.ndarray) -> np.ndarray:
    """[hours in all, 15] scaled quantities, wind from the north and east, sine and cosine of the hour."""
    filled = _carried(table)
    scaled = []
    for quantity in _QUANTITIES.values():
        values = filled[:, quantity.column]
        scaled.append(((np.log1p(values) if quantity.log else values) - quantity.mean) / quantity.std)
    angle, speed = np.radians(filled[:, _WIND]), filled[:, _QUANTITIES["WSPM"].column] / 2
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
        data = data.replace(f',"{wind}",'.encode(), f",{360 / len(_WINDS) * number},".encode())
    lines = data.decode("ascii").splitlines()
    table: np.ndarray = np.loadtxt(lines, delimiter=",", skiprows=1, usecols=range(17))
    return table
