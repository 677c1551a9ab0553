"""Sources: the real files give what their authors publish, and a damaged one gives one clear error."""

import __future__

import gzip
import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import registry
from fedsim.data.build import build
from fedsim.data.check import check
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources import _idx
from fedsim.data.sources._text import next_byte_corpus
from fedsim.errors import DataError, FedsimError, ScenarioError

DATA = os.environ.get("FEDSIM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FEDSIM_DATA names no folder with data sets")


def load(name: str, folder: Path | str = "", scenario: Path | str = "", **settings: Any) -> Corpus:
    """A corpus as a scenario gets it."""
    source = registry.find("fedsim.data.sources", name, Path(), "data.name")
    bound = registry.bind(source, settings, "data", reserved=("folders",))
    corpus: Corpus = source(Folders((Path(folder),), Path(scenario)), **bound)
    check(corpus)
    return corpus


def shared(folder: str) -> Path:
    assert DATA is not None
    return Path(DATA) / folder


def test_every_source_is_found_by_name() -> None:
    known = registry.members("fedsim.data.sources")
    assert known == [
        "adult",
        "air-quality",
        "arrays",
        "audio",
        "cartpole",
        "clinc150",
        "csv",
        "digits",
        "fashion-mnist",
        "fsdd",
        "heart-disease",
        "hugging-face",
        "images",
        "kdd99",
        "labelled-text",
        "mnist",
        "movietweetings",
        "nab",
        "npz",
        "parkinsons",
        "python-source",
        "sentiment",
        "shakespeare",
        "sms-spam",
        "synthetic",
        "wikitext2",
        "wisdm",
    ]


def test_digits() -> None:
    corpus = load("digits")
    assert corpus.x.shape == (1797, 1, 8, 8)
    assert (corpus.x.min(), corpus.x.max()) == (0, 1)
    assert np.bincount(corpus.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


# --- text


def test_windows_do_not_overlap_and_targets_are_the_next_bytes() -> None:
    """Glued together again the windows are the text, but for the tail of each client."""
    texts = {"a": bytes(range(23)), "short": b"abc", "b": b"hello world"}
    corpus = next_byte_corpus("toy", texts, 5)
    assert corpus.client_names == ("a", "b")
    assert corpus.clients is not None
    assert corpus.clients.tolist() == [0, 0, 0, 0, 1, 1]
    whole = np.concatenate([corpus.x, corpus.y[:, -1:]], axis=1)
    assert whole[:4].tobytes() == bytes(range(20))
    assert whole[4:].tobytes() == b"hello worl"
    assert np.array_equal(corpus.x[:, 1:], corpus.y[:, :-1])
    assert len(corpus.classes) == len(set(corpus.classes)) == 256


def test_a_window_must_fit() -> None:
    with pytest.raises(ScenarioError, match=r"data\.window = 1"):
        next_byte_corpus("toy", {"a": b"abc"}, 1)
    with pytest.raises(DataError, match="no client has 9 bytes"):
        next_byte_corpus("toy", {"a": b"abc"}, 9)


def test_python_source_is_this_interpreters_library() -> None:
    corpus = load("python-source", max_bytes=300_000)
    names = list(corpus.client_names)
    assert names == sorted(names)
    assert "__future__" in names
    assert not {"test", "tests", "idlelib", "site-packages"} & set(names)
    bytes_used = len(corpus) * 80
    assert 300_000 - 80 * len(names) - 5_000 < bytes_used <= 300_000
    own = corpus.x[corpus.clients == names.index("__future__")]
    assert Path(__future__.__file__).read_bytes().startswith(own[0].tobytes())
    with pytest.raises(DataError, match=r"raise data\.max_bytes"):
        load("python-source", max_bytes=0)


@needs_data
def test_shakespeare_has_a_client_per_part() -> None:
    corpus = load("shakespeare", str(DATA))
    assert len(corpus.client_names) == 628
    assert not any("SCENE" in name or ": ACT" in name for name in corpus.client_names)
    whole = corpus.x.tobytes()
    assert not any(mark in whole for mark in (b"[", b"|", b"Exeunt", b"DRAMATIS"))
    hamlet = corpus.x[corpus.clients == list(corpus.client_names).index("hamlet: HAMLET")]
    assert hamlet[0].tobytes().startswith(b"A little more than kin, and less than kind.\n")
    assert len(set(load("shakespeare", str(DATA), min_characters=5000).client_names)) < 300
    with pytest.raises(DataError, match=r"lower data\.min_characters"):
        load("shakespeare", str(DATA), min_characters=10**6)


@needs_data
def test_a_changed_play_is_named(tmp_path: Path) -> None:
    shutil.copytree(shared("shakespeare/plays"), tmp_path / "shakespeare/plays", copy_function=shutil.copyfile)
    play = tmp_path / "shakespeare/plays/macbeth.txt"
    play.write_bytes(play.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"macbeth\.txt: SHA-256 is \w+ and should be 339afa674ac5"):
        load("shakespeare", tmp_path)
    play.unlink()
    with pytest.raises(DataError, match=r"plays/macbeth\.txt not found; put the files into"):
        load("shakespeare", tmp_path)


# --- images


@pytest.fixture(scope="module")
def mnist() -> Corpus:
    return load("mnist", str(DATA), writers=True)


@needs_data
def test_mnist_is_the_published_set(mnist: Corpus) -> None:
    assert mnist.own_test is not None
    train = ~mnist.own_test
    assert mnist.x.shape == (70_000, 1, 28, 28)
    published = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.y[train]).tolist() == published
    assert np.bincount(mnist.y[~train]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(mnist.x[train].mean()) < 1e-3
    assert abs(mnist.x[train].std() - 1) < 1e-3


@needs_data
def test_preprocessing_says_enough_to_do_it_again(mnist: Corpus) -> None:
    raw = gzip.decompress((shared("mnist") / "train-images-idx3-ubyte.gz").read_bytes())[16 : 16 + 28 * 28]
    done = mnist.preprocessing
    again = (np.frombuffer(raw, np.uint8) / done["divide_by"] - done["mean"][0]) / done["std"][0]
    np.testing.assert_allclose(mnist.x[0].ravel(), again, rtol=1e-6)


@needs_data
def test_mnist_by_writer(mnist: Corpus) -> None:
    """539 writers wrote 19 to 131 train images each; nothing of the test set is partitioned."""
    assert mnist.clients is not None
    assert mnist.own_test is not None
    sizes = np.bincount(mnist.clients[~mnist.own_test])
    assert [len(sizes), *np.quantile(sizes, [0, 0.5, 1])] == [539, 19, 116, 131]
    assert (mnist.clients[mnist.own_test] == -1).all()
    federation = build(mnist, 1, {"kind": "natural"})
    assert federation.clients == 539
    assert len(federation.x) == 60_000
    assert sum(len(rows.x) for rows in federation.central.values()) == 10_000
    assert federation.train_rows.min() > 0


@needs_data
def test_fashion_mnist_is_the_published_set() -> None:
    corpus = load("fashion-mnist", str(DATA))
    assert np.bincount(corpus.y).tolist() == [7000] * 10
    assert corpus.classes[9] == "Ankle boot"
    assert corpus.own_test is not None
    assert abs(corpus.x[~corpus.own_test].std() - 1) < 1e-3


@needs_data
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "not a whole gzip file"),
        (lambda data: b"", "its header is not that of an IDX file"),
        (lambda data: b"<html>not found</html>", "not a whole gzip file"),
        (lambda data: gzip.compress(gzip.decompress(data), 1), r"MD5 is \w+ and should be ec29112d"),
    ],
)
def test_a_damaged_file_is_named(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for file in (*_idx.IMAGES, *_idx.LABELS):
        (folder / file).symlink_to(shared("mnist") / file)
    broken = folder / "t10k-labels-idx1-ubyte.gz"
    data = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(damage(data))
    with pytest.raises(DataError, match=rf"t10k-labels-idx1-ubyte\.gz: {message}"):
        load("mnist", tmp_path)


def test_missing_files_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz.* not found; put the files into .*mnist"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack(">4B2I", 0, 0, 8, 2, 2, 3) + bytes(6), None),
        (struct.pack(">4B2I", 0, 0, 8, 2, 2, 3) + bytes(5), "holds 17 bytes where its header promises 18"),
        (struct.pack(">4B2I", 0, 0, 8, 2, 3, 2) + bytes(6), r"not that of an IDX file of shape \(2, 3\)"),
        (struct.pack(">4BI", 0, 0, 8, 1, 6) + bytes(6), "not that of an IDX file"),
        (struct.pack(">4B2I", 0, 0, 9, 2, 2, 3) + bytes(6), "not that of an IDX file"),
        (struct.pack(">4B", 0, 0, 8, 2), "not that of an IDX file"),
    ],
)
def test_idx_header_and_size_are_checked(data: bytes, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / "array.gz"
    path.write_bytes(gzip.compress(data))
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if message is None:
        assert _idx.read(path, (2, 3), md5).shape == (2, 3)
    else:
        with pytest.raises(DataError, match=message):
            _idx.read(path, (2, 3), md5)


# --- a user's own arrays


def test_npz_of_classes_clients_and_groups(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "own.npz",
        x=np.arange(12).reshape(4, 3),
        y=np.array(["cat", "ant", "cat", "bee"]),
        clients=np.array(["b", "a", "b", "b"]),
        groups=np.array([7, 8, 7, 9]),
    )
    corpus = load("npz", scenario=tmp_path, path="own.npz")
    assert corpus.x.dtype == np.float32
    assert (corpus.classes, corpus.y.tolist()) == (("ant", "bee", "cat"), [2, 0, 2, 1])
    assert corpus.clients is not None
    assert (corpus.client_names, corpus.clients.tolist()) == (("a", "b"), [1, 0, 1, 1])
    assert load("npz", scenario=tmp_path, path="own.npz", group="pet").group_name == "pet"


def test_npz_of_bytes_is_text(tmp_path: Path) -> None:
    windows = np.frombuffer(b"abcdefgh", np.uint8).reshape(2, 4)
    np.savez(
        tmp_path / "own.npz", x=windows[:, :-1], y=windows[:, 1:], clients=np.array([1, 0]), names=np.array(["p", "q"])
    )
    corpus = load("npz", scenario=tmp_path, path="own.npz")
    assert corpus.task == "next-token"
    assert len(corpus.classes) == 256
    assert corpus.client_names == ("p", "q")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 1))}, "there is no array 'y'"),
        ({"x": np.zeros((2, 1)), "y": np.zeros(2, int), "client": np.zeros(2)}, "'client' is not known. Did you mean"),
        ({"x": np.zeros((2, 1)), "y": np.zeros((2, 2), int)}, r"array y has type int64 and shape \[2, 2\]"),
        ({"x": np.array([["a"], ["b"]]), "y": np.zeros(2, int)}, "array x has type"),
        ({"x": np.array([{}, {}]), "y": np.zeros(2, int)}, "not a sound .npz of plain arrays"),
        ({"x": np.zeros((2, 1)), "y": np.zeros(2, int), "names": np.array(["a"])}, "there is no array clients"),
        ({"x": np.zeros((3, 1)), "y": np.zeros(2, int)}, r"x has 3 rows and y has shape \[2\]"),
        (
            {"x": np.zeros((1, 1)), "y": np.zeros(1, int), "clients": np.array(["a"]), "names": np.array(["a"])},
            "must hold integers",
        ),
    ],
)
def test_npz_errors_name_file_or_array(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load("npz", scenario=tmp_path, path="own.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"plain text"])
def test_npz_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"own\.npz: not a sound \.npz"):
        load("npz", scenario=tmp_path, path="own.npz")
    with pytest.raises(DataError, match=r"other\.npz: No such file"):
        load("npz", scenario=tmp_path, path="other.npz")


def test_npz_with_pickles_is_no_reason_to_allow_them(tmp_path: Path) -> None:
    """NumPy's own message advises just that."""
    np.savez(tmp_path / "own.npz", x=np.array([{}, {}]), y=np.zeros(2, int))
    with pytest.raises(DataError) as caught:
        load("npz", scenario=tmp_path, path="own.npz")
    assert "allow_pickle" not in str(caught.value)


def test_npz_cut_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).random((100, 5)), y=np.zeros(100, dtype=int))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"own\.npz: not a sound \.npz"):
        load("npz", scenario=tmp_path, path="own.npz")


def test_an_npy_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"own\.npy: not a sound \.npz"):
        load("npz", scenario=tmp_path, path="own.npy")


# --- a user's own table


TABLE = """\ufeffage, "city", income, who\r
30,"Bern, old",high,ann\r
40, Rome ,low,bob\r
\r
50,"a ""b""\r
c",high,ann\r
"""


def write(folder: Path, text: str, encoding: str = "utf-8") -> None:
    (folder / "table.csv").write_bytes(text.encode(encoding))


def table(folder: Path, **settings: Any) -> Corpus:
    return load("csv", scenario=folder, path="table.csv", **({"label": "income"} | settings))


def test_csv_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    """Byte order mark, CRLF, quotes, a line break in a field, an empty line, space after commas."""
    write(tmp_path, TABLE)
    corpus = table(tmp_path, client="who", group="who")
    np.testing.assert_array_equal(corpus.x, [[30, 0], [40, 1], [50, 2]])
    assert {name: (column.kind, column.categories) for name, column in corpus.columns.items()} == {
        "age": ("number", None),
        "city": ("category", ["Bern, old", "Rome", 'a "b"\r\nc']),
    }
    assert (corpus.classes, corpus.y.tolist()) == (("high", "low"), [0, 1, 0])
    assert corpus.clients is not None
    assert (corpus.client_names, corpus.clients.tolist()) == (("ann", "bob"), [0, 1, 0])
    assert corpus.groups is not None
    assert (corpus.group_name, corpus.groups.tolist()) == ("who", ["ann", "bob", "ann"])


def test_csv_classes_sort_as_numbers_where_they_are(tmp_path: Path) -> None:
    write(tmp_path, "x;y\n1;10\n1;9\n1;2\n")
    corpus = table(tmp_path, label="y", delimiter=";")
    assert corpus.classes == ("2", "9", "10")
    federation = build(corpus, 1, {"kind": "iid", "clients": 1}, central=0.0, min_rows=1)
    assert (federation.x == 0).all()  # a constant column says nothing, and divides by nothing


def test_csv_na_is_a_value_among_texts(tmp_path: Path) -> None:
    write(tmp_path, "country,income\nNA,low\nDE,high\n")
    assert table(tmp_path).columns["country"].categories == ["DE", "NA"]


def test_csv_tells_what_it_took_from_clients_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "age,country,income\n1,NA,low\n2,DE,high\n")
    with caplog.at_level("WARNING"):
        seen = table(tmp_path)
    assert "values of 'country', 'income' were taken from the rows of all clients" in caplog.text
    caplog.clear()
    column = {"kind": "category", "categories": ["DE", "NA"]}
    schema = {"age": {"kind": "number"}, "country": column, "income": {"kind": "label", "categories": ["high", "low"]}}
    declared = table(tmp_path, label=None, schema=schema)
    assert not caplog.text
    assert (seen.preprocessing["declared"], declared.preprocessing["declared"]) == (False, True)
    assert np.array_equal(seen.x, declared.x)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("age,income\n1,low\n,high\n", {}, "line 3: column 'age' is missing; fill it in, drop the row, or give"),
        ("age,income\n1,low\nNA,high\n", {}, r"line 3: column 'age' is missing \('NA'\)"),
        ("age,income\n1,low\n2,\n3,high\n", {}, "line 3: column 'income' is missing"),
        ("age,income\n1,low\ninf,high\n", {}, "line 3: column 'age' is 'inf', no finite number"),
        ("age,income\n1,low\n2\n", {}, "line 3: 1 fields where the header has 2"),
        ('age,income\n1,"low\n', {}, "line 2: unexpected end of data; check the quotes"),
        ('age,income\n1,"low"er\n', {}, "line 2: .* check the quotes"),
        ("age;income\n1;low\n", {}, r"set data\.delimiter = ';'"),
        ("age,age,income\n1,2,low\n", {}, "the header names 'age' twice"),
        ("age,,income\n1,2,low\n", {}, "the header leaves column 2 without a name"),
        ("age,income\n", {}, "no rows under a header line"),
        ("", {}, "no rows under a header line"),
        ("age,income\n1,low\n2,low\n", {}, "column 'income' is 'low' in every row; there is nothing to learn"),
        ("income\nlow\nhigh\n", {}, "no column is left for features"),
        ("age,income\n1,low\n", {"label": "incom"}, "has no column 'incom'. Did you mean income?"),
        ("age,income\n1,low\n", {"client": "bank"}, r"data\.client: .* has no column 'bank'"),
        ("age,income\n1,low\n", {"client": "income"}, "cannot also be the client"),
        ("age,income\n1,low\n", {"delimiter": ",,"}, "give one character"),
        ("age,income\n1,low\n", {"label": None}, r"data\.label is missing; name the column to be learned"),
        ("age,income\n1,low\n", {"schema": {"age": {"kind": "number"}}}, r"data\.label: data\.schema is there too"),
        ("age,income\n1,low\n2,high\n", {"task": "regression"}, "line 2: column 'income' is 'low', no finite number"),
        (
            "age,income\n" + "".join(f"{n},{n}\n" for n in range(1500)),
            {},
            "column 'income' has 1500 different values, more than 1000",
        ),
    ],
)
def test_csv_errors_say_where(text: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, text)
    with pytest.raises(FedsimError, match=message) as caught:
        table(tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_csv_that_is_not_utf8(tmp_path: Path) -> None:
    write(tmp_path, "größe,income\n1,low\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"table\.csv: byte 2 is not UTF-8; save the table as UTF-8"):
        table(tmp_path)


def test_csv_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv: No such file"):
        table(tmp_path)
