"""Numenta Anomaly Benchmark: 58 measured series, servers, traffic, prices of clicks, with windows marked as anomalous.

Lavin, Ahmad, "Evaluating Real-time Anomaly Detection Algorithms - the Numenta Anomaly Benchmark", ICMLA 2015. Its own
score rewards early detection; here every window is judged by itself, so figures are not comparable.
Licence: MIT.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Annotated, NamedTuple
from zipfile import ZipFile

import numpy as np
from pydantic import Field

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.schema import Column, values
from fedsim.data.sources._files import contents, verify
from fedsim.data.table import read, there
from fedsim.errors import DataError, ScenarioError

_FILE, _SHA256 = "nab.zip", "2e6c5150a7a1"
_PROBATION, _FARTHEST = 0.15, 10.0
_SECOND = 19  # characters of a time up to its second


class _Series(NamedTuple):
    """A series after its probation: its values [T], scaled, and which of them are anomalous."""

    values: np.ndarray
    anomalous: np.ndarray


def nab(
    folders: Folders,
    *,
    window: Annotated[int, Field(ge=2)] = 32,
    stride: Annotated[int, Field(ge=1)] = 4,
    block: Annotated[int, Field(ge=2)] = 256,
) -> Corpus:
    """Windows of every series for reconstruction; a series is a client.

    A window is anomalous if it holds a point that is marked so. As in the benchmark, the first 15 % of a series are for
    getting used to it: by their mean and standard deviation the rest is scaled, and they are left out. Windows that
    overlap have the same group, a block of the series, and so lie in one part.

    Args:
        folders: where the folder `nab` with `nab.zip` is looked for.
        window: points of a window.
        stride: points from one window of a block to the next.
        block: points of a group, at least a window.

    Raises:
        DataError: the file is missing or not the expected one.
        ScenarioError: the window is longer than a block.
    """
    if window > block:
        raise ScenarioError(f"data.window = {window} is longer than a block of data.block = {block}; lower it")
    path = folders.find("nab", [_FILE])[_FILE]
    data = contents(path)
    verify(path, data, _SHA256, "sha256")
    series = _series(data)
    x, anomalous, owners, groups = [], [], [], []
    first = 0  # number of the series' first block
    for owner, each in enumerate(series.values()):
        starts = np.arange(0, len(each.values) - window + 1, stride)
        starts = starts[starts % block + window <= block]
        places = starts[:, None] + np.arange(window)
        x.append(each.values[places])
        anomalous.append(each.anomalous[places].any(axis=1))
        owners.append(np.full(len(starts), owner))
        groups.append(first + starts // block)
        first += -(-len(each.values) // block)
    rows, marks = np.concatenate(x), np.concatenate(anomalous)[:, None]
    return Corpus(
        name="nab",
        task="reconstruction",
        x=rows,
        y=np.concatenate([rows, marks.astype(np.float32)], axis=1),
        classes=(),
        preprocessing={
            "kind": "windows",
            "length": window,
            "scaled": "by the first 15 % of its series",
            "overlapping": True,
        },
        clients=np.concatenate(owners),
        client_names=tuple(series),
        groups=np.concatenate(groups),
        group_name="block",
    )


def series(path: Path, window: int) -> tuple[np.ndarray, list[int]]:
    """Every window [n, window] of a new series after its first 15 %, and the line of its last point.

    Args:
        path: CSV with a column `value`, as in the benchmark, in the order of time.
        window: points of a window.

    Raises:
        DataError: no such table, a value is no finite number, or there are too few.
    """
    table = read(path)
    points = values(there(table, ["value"]), {"value": Column(kind="number")})[:, 0]
    start = int(len(points) * _PROBATION)
    if not start or len(points) - start < window:
        raise DataError(
            f"{path}: {len(points)} points are too few; the first 15 % scale the rest, of which a window has {window}"
        )
    found = np.lib.stride_tricks.sliding_window_view(_scaled(points, start)[start:], window)
    return np.ascontiguousarray(found), list(table.lines[start + window - 1 :])


def _series(data: bytes) -> dict[str, _Series]:
    """Every series by its name, in the order of names."""
    found = {}
    with ZipFile(BytesIO(data)) as archive:
        marked = json.loads(archive.read("labels/combined_windows.json"))
        for name in sorted(marked):
            lines = archive.read(f"data/{name}").decode().splitlines()[1:]
            times, texts = zip(*(line.split(",") for line in lines), strict=True)
            anomalous = np.zeros(len(lines), dtype=bool)
            moments = np.array(times)
            for first, last in marked[name]:
                anomalous |= (moments >= first[:_SECOND]) & (moments <= last[:_SECOND])
            start = int(len(lines) * _PROBATION)
            scaled = _scaled(np.array(texts, dtype=np.float64), start)
            found[name.removesuffix(".csv")] = _Series(scaled[start:], anomalous[start:])
    return found


def _scaled(values: np.ndarray, known: int) -> np.ndarray:
    """[T] float32, by mean and standard deviation of the first `known` values, and at most 10 from 0."""
    spread = float(values[:known].std()) or 1.0
    scaled: np.ndarray = np.clip((values - values[:known].mean()) / spread, -_FARTHEST, _FARTHEST)
    return scaled.astype(np.float32)
