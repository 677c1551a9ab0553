"""A few rows of every kind, as people see them and as programs do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.build import build
from fedsim.data.corpus import Corpus
from fedsim.data.federation import Federation
from fedsim.examples import example_data, example_lines, examples, kind_of, picture
from fedsim.progress import WIDTH

ROWS = 40


def federation(x: np.ndarray, y: np.ndarray, task: str = "regression", **given: Any) -> Federation:
    """Two clients of given rows, all for training."""
    corpus = Corpus("own", task, x, y, **{"classes": (), **given})
    return build(corpus, 1, {"kind": "iid", "clients": 2}, central=0.0, shares=(1.0, 0.0, 0.0))


def series() -> Federation:
    """A ramp, with the step it begins at as target."""
    start = np.arange(ROWS, dtype=np.float32)
    x = np.stack([start[:, None] + np.arange(24), np.zeros((ROWS, 24))], axis=2).astype(np.float32)
    return federation(x, start, preprocessing={"kind": "series", "columns": {"dust": {}, "wind": {}}})


def spectrograms() -> Federation:
    """A loud low tone at the beginning, silence after it."""
    x = np.zeros((ROWS, 1, 20, 10), np.float32)
    x[:, :, :10, :5] = 1
    y = np.arange(ROWS) % 2
    return federation(x, y, "classification", classes=("no", "yes"), preprocessing={"kind": "spectrogram"})


def texts() -> Federation:
    """Bytes filled up with zeros, and a class."""
    x = np.zeros((ROWS, 20), np.uint8)
    x[:, :5] = np.frombuffer(b"hello", np.uint8)
    return federation(x, np.arange(ROWS) % 2, "classification", classes=("ham", "spam"))


def windows() -> Federation:
    x = np.tile(np.frombuffer(b"to be or not", np.uint8), (ROWS, 1))
    return federation(x, x, "next-token", classes=tuple(map(str, range(256))))


def tokens() -> Federation:
    x = np.arange(2 * ROWS).reshape(ROWS, 2)
    return federation(x, np.full(ROWS, 7.5, np.float32), vocabulary=100)


def images() -> Federation:
    """Targets of more numbers than anybody reads."""
    x = np.random.default_rng(0).random((ROWS, 1, 4, 4)).astype(np.float32)
    return federation(x, x.reshape(ROWS, -1), "reconstruction")


@pytest.mark.parametrize(
    ("make", "kind", "title"),
    [
        (series, "series", "train: target and dust over 24 steps of some rows"),
        (spectrograms, "spectrogram", "train: numbers and classes of some rows"),
        (texts, "text", "train: class and beginnings of some rows"),
        (windows, "text", "train: beginnings of some windows"),
        (tokens, "features", "train: target and features of some rows"),
        (images, "image", "train: numbers and targets of some rows"),
    ],
)
def test_rows_of_every_kind_are_shown(make: Callable[[], Federation], kind: str, title: str) -> None:
    made = make()
    shown = examples(made, 0)
    assert kind_of(made) == kind and shown
    lines = example_lines(made, shown)
    assert lines[0] == title and len(lines) > 1 and max(map(len, lines)) <= WIDTH
    rows = made.rows(0, "train")
    for each, told in zip(shown, example_data(made, shown), strict=True):
        np.testing.assert_array_equal(each.values, rows.x[each.row])
        assert (told["row"], told["label"]) == (each.row, each.label) and kind in told


def test_a_series_is_a_line_from_its_lowest_to_its_highest() -> None:
    made = series()
    first = examples(made, 0)[0]
    line = example_lines(made, [first])[1].strip()
    start = float(first.values[0, 0])
    assert line == f"{start:.4g}: ▁▁▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▆▇▇▇███ {start:.3g} to {start + 23:.3g}"


def test_a_series_is_told_in_its_own_units() -> None:
    """Declared logarithm, mean and deviation undone: a ramp from 0 to 9 of log(1 + v) = 2 z + 1."""
    dust = np.tile(np.arange(10.0), (ROWS, 1))
    x = ((np.log1p(dust) - 1) / 2).astype(np.float32)[:, :, None]
    columns = {"dust": {"log": True, "mean": 1.0, "std": 2.0}}
    made = federation(x, np.zeros(ROWS, np.float32), preprocessing={"kind": "series", "columns": columns})
    low, _, high = example_lines(made, examples(made, 0))[1].split()[-3:]
    assert [float(low), float(high)] == pytest.approx([0, 9], abs=1e-5)


def test_a_spectrogram_has_time_to_the_right_and_high_tones_on_top() -> None:
    made = spectrograms()
    drawn = example_lines(made, examples(made, 0)[:1])[1:-1]
    assert len(drawn) > 2
    top, bottom = drawn[0].strip(), drawn[-1].strip()
    assert not top and set(bottom) == {"█"}
    assert drawn[-1].rstrip() == "  " + "█" * (len(drawn[-1].rstrip()) - 2)


def test_labels_are_classes_numbers_or_nothing() -> None:
    assert {each.label for each in examples(texts(), 0)} == {"ham", "spam"}
    assert {each.label for each in examples(tokens(), 0)} == {"7.5"}
    assert {each.label for each in examples(images(), 0)} == {None}
    assert example_data(texts(), examples(texts(), 0))[0]["text"] == "hello"


@pytest.mark.parametrize("make", [series, spectrograms, images])
def test_what_can_be_drawn_is_drawn_the_same_each_time(make: Callable[[], Federation], tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        picture(make(), 1, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
