"""KDD99, NAB and MovieTweetings: the real files give what their authors publish, in clients that are whole."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from fedsim.data.build import build
from fedsim.data.check import check
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources import kdd99 as kdd
from fedsim.data.sources import nab as numenta
from fedsim.data.sources.kdd99 import kdd99
from fedsim.data.sources.movietweetings import movietweetings
from fedsim.data.sources.nab import nab
from fedsim.errors import DataError, ScenarioError
from fedsim.raw_rows import Preprocessing, Read
from fedsim.tasks.reconstruction import Reconstruction

DATA = os.environ.get("FEDSIM_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="FEDSIM_DATA names no folder with data sets")
FOLDERS = Folders((Path(DATA),), Path())


def usable(corpus: Corpus) -> Corpus:
    check(corpus)
    if corpus.task == "reconstruction":
        Reconstruction(corpus.x.shape[1]).check_rows(corpus.x, corpus.y)
        assert np.array_equal(corpus.x, corpus.y[:, :-1])
    return corpus


@pytest.fixture(scope="module")
def connections() -> Corpus:
    return usable(kdd99(FOLDERS))


@pytest.fixture(scope="module")
def windows() -> Corpus:
    return usable(nab(FOLDERS))


# --- KDD99


def test_services_have_their_normal_connections_and_a_quarter_as_many_attacks(connections: Corpus) -> None:
    """Counted with a set, from the file's text."""
    assert connections.clients is not None
    lines = set(gzip.decompress(Path(DATA, "kdd99/kddcup.data_10_percent.gz").read_bytes()).decode().split("\n"))
    counted = Counter((line.split(",")[2], line.endswith("normal.")) for line in lines if line)
    expected = {service: count for (service, normal), count in counted.items() if normal and count >= 200}
    assert list(connections.client_names) == sorted(expected)
    for number, service in enumerate(connections.client_names):
        marks = connections.y[connections.clients == number, -1]
        assert (marks == 0).sum() == expected[service]
        assert (marks == 1).sum() == min(counted[service, False], expected[service] // 4)


def test_no_test_connection_was_in_the_training_file(connections: Corpus) -> None:
    """77,291 distinct ones, of which 7,276 were; and the test set has attacks and normal connections."""
    assert connections.own_test is not None and connections.own_test.sum() == 77_291 - 7_276
    assert 0.1 < connections.y[connections.own_test, -1].mean() < 0.5


def test_values_are_scaled_by_declared_numbers_and_can_be_scaled_back(connections: Corpus) -> None:
    """The first normal connection of service http in the file."""
    text = gzip.decompress(Path(DATA, "kdd99/kddcup.data_10_percent.gz").read_bytes()).decode()
    first = next(line for line in text.split("\n") if ",http," in line and line.endswith("normal."))
    fields = first.split(",")
    numbers = np.array([float(field) for place, field in enumerate(fields[:-1]) if place not in (1, 2, 3)])
    assert connections.clients is not None
    row = connections.x[connections.clients == list(connections.client_names).index("http")][0].astype(np.float64)
    columns, by = connections.preprocessing["columns"], connections.preprocessing["log1p_divided_by"]
    back = [np.expm1(value * by[name]) if name in by else value for name, value in zip(columns, row, strict=True)]
    np.testing.assert_allclose(back[:38], numbers, rtol=1e-4, atol=1e-4)
    assert [name for name, value in zip(columns[38:], row[38:], strict=True) if value] == [
        f"protocol {fields[1]}",
        f"flag {fields[3]}",
    ]
    assert np.abs(connections.x).max() < 10


def line(service: str, number: int, label: str) -> bytes:
    """A connection that no other is like."""
    return f"{number},tcp,{service},SF,{'0,' * 37}{label}.".encode()


def test_attacks_are_drawn_by_the_seed_and_never_more_than_the_share() -> None:
    lines = [line(service, number, "normal") for service in ("http", "smtp", "rare") for number in range(8)]
    attacks = [line("http", number, "neptune") for number in range(10, 50)]
    lines = lines[:-4] + attacks
    names, (http, smtp) = kdd._clients(lines, 8, 0.5, 1)
    assert names == ("http", "smtp") and smtp == lines[8:16]
    assert http[:8] == lines[:8] and len(set(http[8:])) == 4 and set(http[8:]) < set(attacks)
    assert kdd._clients(lines, 8, 0.5, 1)[1][0] == http != kdd._clients(lines, 8, 0.5, 2)[1][0]
    assert kdd._clients(lines, 8, 0.0, 1)[1][0] == lines[:8]


def test_no_service_is_that_normal() -> None:
    with pytest.raises(ScenarioError, match=r"data.min_normal = 100000: no service has as many"):
        kdd99(FOLDERS, min_normal=100_000)


@pytest.mark.parametrize(
    ("folder", "file"), [("kdd99", "corrected.gz"), ("nab", "nab.zip"), ("movietweetings", "movies.dat")]
)
def test_a_damaged_file_is_named(tmp_path: Path, folder: str, file: str) -> None:
    (tmp_path / folder).mkdir()
    for path in Path(DATA, folder).iterdir():
        if path.name != file:
            (tmp_path / folder / path.name).symlink_to(path)
    sources: dict[str, Callable[[Folders], Corpus]] = {"kdd99": kdd99, "nab": nab, "movietweetings": movietweetings}
    source = sources[folder]
    (tmp_path / folder / file).write_bytes(b"x" + Path(DATA, folder, file).read_bytes()[1:])
    with pytest.raises(DataError, match=rf"{file}: SHA-256 is \w+ and should be \w+; the file is damaged"):
        source(Folders((tmp_path,), Path()))
    (tmp_path / folder / file).unlink()
    with pytest.raises(DataError, match=f"data set '{folder}': {file} not found; put the files into"):
        source(Folders((tmp_path,), Path()))


# --- NAB


def test_every_series_is_a_client_and_a_block_lies_in_one_part(windows: Corpus) -> None:
    assert windows.x.shape[1] == 32 and len(windows.client_names) == 58
    assert windows.clients is not None and windows.groups is not None
    assert all(len(np.unique(windows.clients[windows.groups == group])) == 1 for group in range(0, 1200, 50))
    federation = build(windows, 1, {"kind": "natural"}, min_rows=1)
    assert federation.groups is not None and federation.clients == 58


def test_a_windows_values_and_mark_are_the_files(windows: Corpus) -> None:
    """The whole of one series, from its text and labels; the first 15 % scale the rest and are left out."""
    name = "realKnownCause/machine_temperature_system_failure"
    with ZipFile(BytesIO(Path(DATA, "nab/nab.zip").read_bytes())) as archive:
        lines = archive.read(f"data/{name}.csv").decode().split("\n")[1:]
        marked = json.loads(archive.read("labels/combined_windows.json"))[f"{name}.csv"]
    points = [line.strip().split(",") for line in lines if line.strip()]
    start = int(0.15 * len(points))
    known = np.array([float(value) for _, value in points[:start]])
    values = [np.clip((float(value) - known.mean()) / known.std(), -10, 10) for _, value in points[start:]]
    odd = [any(first[:19] <= time <= last[:19] for first, last in marked) for time, _ in points[start:]]
    mine = np.asarray(windows.clients) == list(windows.client_names).index(name)
    expected = [place for place in range(0, len(values) - 31, 4) if place // 256 == (place + 31) // 256]
    assert mine.sum() == len(expected) and any(odd)
    np.testing.assert_allclose(
        windows.x[mine], [values[place : place + 32] for place in expected], rtol=1e-5, atol=1e-5
    )
    assert windows.y[mine, -1].tolist() == [float(any(odd[place : place + 32])) for place in expected]


def test_a_series_that_never_moves_at_first_is_not_divided_by_zero() -> None:
    values = numenta._scaled(np.array([5.0, 5.0, 5.0, 7.0, 500.0]), 3)
    assert values.tolist() == [0.0, 0.0, 0.0, 2.0, 10.0]


def test_a_window_longer_than_a_block_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"data.window = 300 is longer than a block of data.block = 256"):
        nab(FOLDERS, window=300)


# --- MovieTweetings


def test_the_most_active_users_rate_films_of_the_catalogue() -> None:
    corpus = usable(movietweetings(FOLDERS, users=100))
    ratings = [line.split("::") for line in Path(DATA, "movietweetings/ratings.dat").read_text().splitlines()]
    films = [line.split("::")[0] for line in Path(DATA, "movietweetings/movies.dat").read_text().splitlines()]
    counts = Counter(row[0] for row in ratings)
    assert corpus.clients is not None and np.array_equal(corpus.x[:, 0], corpus.clients)
    assert sorted(np.bincount(corpus.clients), reverse=True) == sorted(counts.values(), reverse=True)[:100]
    names = [name.removeprefix("user ") for name in corpus.client_names]
    found = {
        (names[user], films[film - 100], float(rating)) for (user, film), rating in zip(corpus.x, corpus.y, strict=True)
    }
    assert found == {(user, film, float(rating)) for user, film, rating, _ in ratings if user in names}
    assert corpus.vocabulary == 100 + len(films)


def test_more_users_than_there_are_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"data.users = 20,000: there are 16,554; lower it"):
        movietweetings(FOLDERS, users=20_000)


# --- New rows of them


def new_rows(corpus: Corpus, path: Path) -> Read:
    """Rows of a file for a model that was trained on a corpus, whose preprocessing went through its card."""
    stored = json.loads(json.dumps(corpus.preprocessing))
    whole = corpus.x.dtype.kind in "iu"
    return Preprocessing(stored, corpus.x.shape[1:], whole, corpus.vocabulary, corpus.task).read(path)


def test_new_connections_are_made_ready_as_those_of_training(connections: Corpus, tmp_path: Path) -> None:
    """With their labels, or without, since nobody knows those of new ones."""
    text = gzip.decompress(Path(DATA, "kdd99/kddcup.data_10_percent.gz").read_bytes()).decode()
    lines = list(dict.fromkeys(line for line in text.split("\n") if ",http," in line and line.endswith("normal.")))[:40]
    (tmp_path / "new.txt").write_text("\n".join([*lines[:20], *(line.rpartition(",")[0] for line in lines[20:])]))
    assert connections.clients is not None
    known = connections.x[connections.clients == list(connections.client_names).index("http")][:40]
    read = new_rows(connections, tmp_path / "new.txt")
    assert np.array_equal(read.x, known) and read.names == list(range(1, 41))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0", r"line 2: 1 value; give the 41 of a connection, with its label or without"),
        ("0,tcp,http,SF,1,2", r"line 2: 6 values; give the 41 of a connection, with its label or without"),
        (f"0,tpc,http,SF,{'0,' * 36}0", r"line 2: protocol 'tpc' is none of icmp, tcp, udp"),
        (f"0,tcp,http,sf,{'0,' * 36}0", r"line 2: flag 'sf' is none of OTH, REJ"),
        (f"0,tcp,http,SF,-1,{'0,' * 35}0", r"line 2: src_bytes is '-1'; give a finite number from 0 on"),
        (f"0,tcp,http,SF,0,nan,{'0,' * 34}0", r"line 2: dst_bytes is 'nan'; give a finite number"),
        ("", r"line 2: 1 value; give"),
    ],
)
def test_what_is_no_connection_is_named(line: str, message: str, connections: Corpus, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text(f"0,tcp,http,SF,{'0,' * 36}0,normal.\n{line}\n0,")
    with pytest.raises(DataError, match=message):
        new_rows(connections, tmp_path / "new.txt")
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(DataError, match="is empty; write one connection a line"):
        new_rows(connections, tmp_path / "none.txt")


def test_a_new_series_is_cut_into_windows_as_those_of_training(windows: Corpus, tmp_path: Path) -> None:
    """At every point, where training took every fourth; a row is called by the line of its last point."""
    name = "realKnownCause/nyc_taxi"
    with ZipFile(BytesIO(Path(DATA, "nab/nab.zip").read_bytes())) as archive:
        (tmp_path / "taxi.csv").write_bytes(archive.read(f"data/{name}.csv"))
    points = len((tmp_path / "taxi.csv").read_text().splitlines()) - 1
    start = int(0.15 * points)
    read = new_rows(windows, tmp_path / "taxi.csv")
    assert len(read.x) == points - start - 31
    assert list(read.names) == list(range(start + 33, points + 2))  # under the header's line
    known = windows.x[np.asarray(windows.clients) == list(windows.client_names).index(name)]
    places = [place for place in range(0, points - start - 31, 4) if place // 256 == (place + 31) // 256]
    assert np.array_equal(np.asarray(read.x)[places], known)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,valu\n1,2\n", r"there is no column 'value'. Did you mean valu\?"),
        ("time,value\n1,2\n2,high\n", "line 3: column 'value' is 'high', no finite number"),
        ("value\n" + "1\n" * 36, "36 points are too few; the first 15 % scale the rest, of which a window has 32"),
    ],
)
def test_what_is_no_series_is_named(text: str, message: str, windows: Corpus, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        new_rows(windows, tmp_path / "new.csv")


def test_new_pairs_of_user_and_film_are_the_tokens_of_training(tmp_path: Path) -> None:
    corpus = movietweetings(FOLDERS, users=100)
    films = [line.split("::")[0] for line in Path(DATA, "movietweetings/movies.dat").read_text().splitlines()]
    rows = corpus.x[::500]
    lines = [f"{films[film - 100]},{user}" for user, film in rows]
    (tmp_path / "new.csv").write_text("\n".join(["film,user", *lines]))
    with pytest.raises(DataError, match=r"movies\.dat: is not there; put the catalogue"):
        new_rows(corpus, tmp_path / "new.csv")
    (tmp_path / "movies.dat").write_bytes(Path(DATA, "movietweetings/movies.dat").read_bytes())
    read = new_rows(corpus, tmp_path / "new.csv")
    assert np.array_equal(read.x, rows) and list(read.names) == list(range(2, len(rows) + 2))
    for line, message in (
        (f"{films[0]},100", "user '100' is no client's number, 0 to 99"),
        ("1,1", "film '1' is not in"),
    ):
        (tmp_path / "new.csv").write_text(f"film,user\n{films[0]},1\n{line}\n")
        with pytest.raises(DataError, match=f"line 3: {message}"):
            new_rows(corpus, tmp_path / "new.csv")


def test_rows_of_a_kind_that_is_only_called_so_are_refused(windows: Corpus, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("value\n1\n")
    with pytest.raises(DataError, match=r"how rows of kind 'series' were made was not kept; give an \.npz"):
        Preprocessing({"kind": "series"}, (32,), False, None, "regression").read(tmp_path / "new.csv")
