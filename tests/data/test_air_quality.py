"""Windows of Beijing's stations, against the published tables read line by line."""

import csv
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.build import build
from fedsim.data.check import check
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources.air_quality import air_quality
from fedsim.errors import DataError, ScenarioError
from fedsim.raw_rows import Preprocessing, Read

STATIONS = ["Aotizhongxin", "Shunyi"]
WINDS = ["N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW"]
FILE = "PRSA_Data_{}_20130301-20170228.csv.gz"


def load(folder: Path, **given: object) -> Corpus:
    corpus = air_quality(Folders((folder,), Path()), **given)  # type: ignore[arg-type]
    check(corpus)
    return corpus


def table(folder: Path, station: str) -> list[dict[str, str]]:
    with gzip.open(folder / "air-quality" / FILE.format(station), "rt") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def corpus(data_dir: Path) -> Corpus:
    return load(data_dir, stations=STATIONS)


def test_windows_are_those_of_a_plain_loop_over_the_file(data_dir: Path, corpus: Corpus) -> None:
    """Short gaps carried, long ones left out, all in one month; dust, rain and wind as declared."""
    rows = table(data_dir, STATIONS[0])
    columns = ["PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "wd", "WSPM"]
    seen: dict[str, tuple[int, str]] = {}
    filled: list[dict[str, str | None]] = []
    for hour, row in enumerate(rows):
        seen |= {name: (hour, row[name]) for name in columns if row[name] != "NA"}
        filled.append({name: seen[name][1] if name in seen and hour - seen[name][0] <= 6 else None for name in columns})
    expected = []
    for first in range(0, len(rows) - 29, 11):
        window, target = filled[first : first + 24], rows[first + 29]
        same_month = rows[first]["month"] == target["month"]
        if same_month and target["PM2.5"] != "NA" and all(None not in hour.values() for hour in window):
            expected.append((window, float(target["PM2.5"])))
    assert corpus.clients is not None
    own = corpus.clients == 0
    assert corpus.y[own].tolist() == [target for _, target in expected]
    for chosen in (0, 100, 1000, len(expected) - 1):
        got = corpus.x[own][chosen]
        for step, values in enumerate(expected[chosen][0]):
            wind = math.radians(22.5 * WINDS.index(str(values["wd"])))
            number = {name: float(value) for name, value in values.items() if name != "wd" and value is not None}
            told = {0: math.log1p(number["PM2.5"]) - 4, 9: math.log1p(number["RAIN"]) / 0.3}
            told |= {7: (number["PRES"] - 1010) / 10, 10: (number["WSPM"] - 2) / 1.2}
            told |= {11: number["WSPM"] / 2 * math.cos(wind), 12: number["WSPM"] / 2 * math.sin(wind)}
            for column, value in told.items():
                assert got[step, column] == pytest.approx(value, abs=1e-4)


def test_the_last_year_is_the_test_set_and_months_stay_whole(corpus: Corpus) -> None:
    """At all stations: neighbouring windows overlap, and stations see the same air."""
    assert corpus.groups is not None and corpus.own_test is not None
    assert set(corpus.groups[corpus.own_test]) == {201603 + k for k in range(10)} | {201701, 201702}
    federation = build(corpus, 1, {"kind": "natural"})
    assert federation.names == tuple(STATIONS) and federation.groups is not None
    of_part: dict[str, set[int]] = {}
    for client in range(2):
        ends = (federation.offsets[client], federation.train_ends[client], federation.validation_ends[client])
        bounds = (*ends, federation.offsets[client + 1])
        for part, start, stop in zip(("train", "validation", "test"), bounds, bounds[1:], strict=False):
            of_part.setdefault(part, set()).update(federation.groups[start:stop].tolist())
    assert sum(map(len, of_part.values())) == 36 and len(set().union(*of_part.values())) == 36


def test_all_hours_of_the_day_are_forecast(corpus: Corpus) -> None:
    """11 hours from window to window share no factor with 24."""
    hours = np.arctan2(corpus.x[:, -1, 13], corpus.x[:, -1, 14]) / (2 * np.pi) * 24
    assert set(np.round(hours).astype(int) % 24) == set(range(24))


def test_the_present_value_forecasts_better_than_the_mean(corpus: Corpus) -> None:
    """Persistence, the reference that a forecast must beat; about half the error of the mean."""
    now = np.expm1(corpus.x[:, -1, 0].astype(np.float64) + 4)
    persistence = np.abs(now - corpus.y).mean()
    assert 25 < persistence < 40 and np.abs(corpus.y.mean() - corpus.y).mean() > 1.5 * persistence


def test_shorter_windows_are_the_ends_of_longer_ones(data_dir: Path) -> None:
    long = load(data_dir, stations=STATIONS[:1])
    short = load(data_dir, stations=STATIONS[:1], hours=6, stride=1)
    places = {window.tobytes() for window in short.x}
    assert all(np.ascontiguousarray(window[-6:]).tobytes() in places for window in long.x)


def test_a_station_that_is_none_is_named(data_dir: Path) -> None:
    with pytest.raises(ScenarioError, match=r"data\.stations = \['Shuny'\] should name stations.* Did you mean Shunyi"):
        load(data_dir, stations=["Shuny"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no gzip", "not a whole gzip file"),
        (gzip.compress(b"No,year\n1,2013\n"), r"SHA-256 is \w+ and should be a94fbcfc7170"),
    ],
)
def test_a_damaged_table_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "air-quality").mkdir()
    with pytest.raises(DataError, match=r"Aotizhongxin_20130301-20170228\.csv\.gz not found"):
        load(tmp_path, stations=STATIONS[:1])
    (tmp_path / "air-quality" / FILE.format(STATIONS[0])).write_bytes(data)
    with pytest.raises(DataError, match=rf"Aotizhongxin_20130301-20170228\.csv\.gz: {message}"):
        load(tmp_path, stations=STATIONS[:1])


# --- New hours


def new_rows(corpus: Corpus, path: Path) -> Read:
    """Rows of a file for a model that was trained on a corpus, whose preprocessing went through its card."""
    stored = json.loads(json.dumps(corpus.preprocessing))
    return Preprocessing(stored, corpus.x.shape[1:], False, None, corpus.task).read(path)


@pytest.fixture(scope="module")
def month(data_dir: Path) -> list[list[str]]:
    """The header and the first 1,000 hours of a station, in fields."""
    with gzip.open(data_dir / "air-quality" / FILE.format(STATIONS[0]), "rt") as file:
        return [row for row, _ in zip(csv.reader(file), range(1001), strict=False)]


def written(path: Path, rows: list[list[str]]) -> Path:
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return path


def test_new_hours_are_made_ready_as_those_of_training(corpus: Corpus, month: list[list[str]], tmp_path: Path) -> None:
    """Every window of training in these hours is there to the bit, and a row is called by the line of its last hour."""
    order = [*reversed(range(len(month[0])))]  # columns are found by name
    read = new_rows(corpus, written(tmp_path / "new.csv", [[row[place] for place in order] for row in month]))
    rows = {line: np.asarray(read.x)[place].tobytes() for place, line in enumerate(read.names)}
    own = corpus.x[corpus.clients == 0][:40]
    found = [line for line in range(25, 1002, 11) if rows.get(line) in {window.tobytes() for window in own}]
    assert len(found) == 40
    hour = np.array([int(month[line - 1][4]) for line in read.names if isinstance(line, int)])
    np.testing.assert_allclose(np.asarray(read.x)[:, -1, 13], np.sin(2 * np.pi * hour / 24), atol=1e-6)


def test_windows_with_a_long_gap_are_left_out(corpus: Corpus, month: list[list[str]], tmp_path: Path) -> None:
    rows = month[:41]
    whole = new_rows(corpus, written(tmp_path / "new.csv", rows))
    assert list(whole.names) == list(range(25, 42))
    for gap, left in ((6, range(25, 42)), (7, range(25, 40))):
        lacking = [*rows[: -gap - 1], *([*row[:5], "NA", *row[6:]] for row in rows[-gap - 1 : -1]), rows[-1]]
        assert list(new_rows(corpus, written(tmp_path / "new.csv", lacking)).names) == list(left)


def test_what_is_no_table_of_hours_is_named(corpus: Corpus, month: list[list[str]], tmp_path: Path) -> None:
    header, rows = month[0], month[1:60]
    cases = {
        "there is no column 'TEMP'": [[name.replace("TEMP", "T") for name in header], *rows],
        "line 12: is not one hour after the line before": [header, *rows[:10], *rows[11:]],
        "line 3: column 'wd' is 'UP', none of N, NNE": [header, rows[0], [*rows[1][:15], "UP", *rows[1][16:]]],
        "line 2: column 'PM10' is 'much', no finite number": [header, [*rows[0][:6], "much", *rows[0][7:]]],
        "line 2: column 'month' is 13, outside 1 to 12": [header, [rows[0][0], rows[0][1], "13", *rows[0][3:]]],
        "nowhere are 24 hours without a longer gap": [header, *rows[:20]],
    }
    for message, lines in cases.items():
        with pytest.raises(DataError, match=message):
            new_rows(corpus, written(tmp_path / "new.csv", lines))
