"""Figures and pictures of a federation."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.build import build
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.federation import Federation
from fedsim.data.picture import picture, summary, table, table_lines
from fedsim.data.sources.digits import digits
from fedsim.data.sources.python_source import python_source
from fedsim.errors import DataError


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return digits(Folders((), Path()))


@pytest.fixture(scope="module")
def uneven(corpus: Corpus) -> Federation:
    return build(corpus, 1, {"kind": "dirichlet", "clients": 10, "alpha": 0.3})


def test_the_table_counts_every_row(uneven: Federation) -> None:
    for client, row in enumerate(table(uneven)):
        parts = {part: len(uneven.rows(client, part).y) for part in ("train", "validation", "test")}
        assert {part: row[part] for part in parts} == parts
        assert row["rows"] == sum(parts.values())
        held = Counter(uneven.y[uneven.offsets[client] : uneven.offsets[client + 1]].tolist())
        assert row["labels"] == {str(label): held[label] for label in range(10)}


def test_skew_is_0_for_equal_clients_and_1_less_the_own_share_for_one_label_each(corpus: Corpus) -> None:
    """Ten clients with one of ten equal labels each differ from the whole by 0.9 in total variation."""
    equal = replace(corpus, x=corpus.x[:1000], y=np.arange(1000) % 10)
    apart = {"kind": "labels", "clients": 10, "labels_per_client": 1}
    assert summary(build(equal, 1, apart, central=0.0))["label_skew"] == pytest.approx(0.9)
    alike = replace(equal, clients=np.arange(1000) // 100, client_names=tuple("abcdefghij"))
    assert summary(build(alike, 1, {"kind": "natural"}, central=0.0))["label_skew"] == pytest.approx(0.0)


def test_summary_adds_up(uneven: Federation, corpus: Corpus) -> None:
    figures = summary(uneven)
    parts = ("train", "validation", "test")
    assert figures["rows"] == sum(figures[part] for part in parts)
    assert figures["rows"] + figures["central_validation"] + figures["central_test"] == len(corpus)
    assert figures["smallest"] <= figures["median"] <= figures["largest"]


def test_lines_align_and_hold_the_table(uneven: Federation) -> None:
    lines = table_lines(uneven)
    end = lines.index("")
    assert len({len(line) for line in lines[:end]}) == 1
    assert lines[0].split() == ["client", "train", "validation", "test", *uneven.classes]
    for line, row in zip(lines[1:end], table(uneven), strict=True):
        parts = [str(row[name]) for name in ("client", "train", "validation", "test")]
        assert line.split() == parts + [str(number) for number in row["labels"].values()]
    assert max(map(len, lines)) <= 80
    assert lines[end + 1] == "clients: 10"


@pytest.mark.parametrize("clients", [1, 10, 200])
@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_is_drawn(corpus: Corpus, clients: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clients{suffix}"
    picture(build(corpus, 1, {"kind": "iid", "clients": clients}), path)
    start = path.read_bytes()[:200]
    assert b"<?xml" in start if suffix == ".svg" else start.startswith(b"\x89PNG")


def test_the_same_federation_gives_the_same_svg(uneven: Federation, tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        picture(uneven, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_text_has_sizes_only(tmp_path: Path) -> None:
    text = python_source(Folders((), Path()), max_bytes=200_000)
    federation = build(text, 1, {"kind": "natural"})
    assert "labels" not in table(federation)[0]
    assert "label_skew" not in summary(federation)
    picture(federation, tmp_path / "text.png")


def numbers(clients: list[int], y: np.ndarray) -> Federation:
    """Rows with a number to be predicted, by natural client."""
    x = np.zeros((len(y), 2), np.float32)
    names = tuple(f"c{number}" for number in range(max(clients) + 1))
    corpus = Corpus("own", "regression", x, y.astype(np.float32), (), clients=np.array(clients), client_names=names)
    return build(corpus, 1, {"kind": "natural"}, central=0.0, min_rows=1)


def test_targets_are_shown_where_rows_have_no_classes(tmp_path: Path) -> None:
    """Two clients whose targets are 1 and 3 on average, with as much variance within as between."""
    federation = numbers([0] * 50 + [1] * 50, np.array([0.0, 2.0] * 25 + [2.0, 4.0] * 25))
    assert [row["target"] for row in table(federation)] == [1.0, 3.0]
    assert all("labels" not in row for row in table(federation))
    figures = summary(federation)
    assert (figures["target"], figures["target_between"]) == (2.0, 0.5)
    assert [line.split()[-1] for line in table_lines(federation)[:3]] == ["target", "1", "3"]
    for name in ("one.svg", "two.svg"):
        picture(federation, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize(("apart", "between"), [(False, 0.0), (True, 1.0)])
def test_targets_lie_all_between_clients_or_not_at_all(apart: bool, between: float) -> None:
    y = np.array([1.0] * 20 + [5.0] * 20) if apart else np.array([1.0, 5.0] * 20)
    assert summary(numbers([0] * 20 + [1] * 20, y))["target_between"] == pytest.approx(between)


def test_an_empty_client_can_be_shown(corpus: Corpus, tmp_path: Path) -> None:
    federation = build(corpus, 1, {"kind": "dirichlet", "clients": 30, "alpha": 0.01}, min_rows=0)
    assert summary(federation)["smallest"] == 0
    picture(federation, tmp_path / "empty.png")


@pytest.mark.parametrize("name", ["clients.gif", "nowhere/clients.png"])
def test_a_bad_path_is_one_clear_error(uneven: Federation, name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=name):
        picture(uneven, tmp_path / name)
