"""One client's rows in a folder: what is written, read and put back into a federation are the same rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.dealt import central_of, federation_of, holding_of, is_holding, read, write, write_central
from fedsim.data.federation import Federation, Part, federate
from fedsim.errors import DataError
from fedsim.federating import federate as of_scenario
from fedsim.job import prepare
from fedsim.scenario import load
from tests import small

PARTS: tuple[Part, ...] = ("train", "validation", "test")


def same_rows(one: Federation, other: Federation, client: int) -> None:
    """Fail where a client's rows differ, bit for bit and in type, or in what is said of them."""
    for part in PARTS:
        for ours, theirs in zip(one.rows(client, part), other.rows(client, part), strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            assert ours.tobytes() == theirs.tobytes()
    assert np.array_equal(one.units(client), other.units(client))
    for name in ("task", "corpus", "vocabulary", "group_name"):
        assert getattr(one, name) == getattr(other, name)
    assert tuple(one.classes) == tuple(other.classes)


def round_trip(federation: Federation, client: int, folder: Path) -> Federation:
    """The federation of what was written of one client."""
    write(federation, client, folder)
    return federation_of(read(folder), client, federation.clients)


def plain(value: Any) -> Any:
    """A value as JSON keeps it."""
    return json.loads(json.dumps(value))


@st.composite
def federations(draw: st.DrawFn) -> Federation:
    """Few clients of images, features or tokens, perhaps in groups, some without rows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=4))
    rows = sum(map(sum, sizes))
    tokens = draw(st.booleans())
    shape = draw(st.sampled_from([(3,), (1, 4, 4), (2, 5)]))
    x = rng.integers(0, 50, (rows, 6), dtype=np.uint16) if tokens else rng.normal(size=(rows, *shape))
    grouped = draw(st.booleans())
    corpus = Corpus(
        name="drawn",
        task="classification",
        x=x if tokens else x.astype(np.float32),
        y=rng.integers(0, 3, rows),
        classes=("a", "b", "c"),
        preprocessing={"kind": "none", "low": -1.5},
        groups=rng.integers(0, 4, rows) if grouped else None,
        group_name="person" if grouped else "",
        vocabulary=50 if tokens else None,
    )
    ends = np.cumsum(np.array(sizes).ravel())
    cuts = np.split(np.arange(rows), ends[:-1])
    parts = [dict(zip(PARTS, cuts[3 * k : 3 * k + 3], strict=True)) for k in range(len(sizes))]
    none = np.zeros(0, dtype=np.int64)
    return federate(corpus, {"validation": none, "test": none}, parts)


@given(federation=federations())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_written_and_read_is_the_same(tmp_path: Path, federation: Federation) -> None:
    """A node's client half must see what the simulation's sees, whatever the rows are."""
    for client in range(federation.clients):
        again = round_trip(federation, client, tmp_path / str(client))
        same_rows(federation, again, client)
        assert plain(again.preprocessing) == plain(federation.preprocessing)
        assert again.train_rows[client] == federation.train_rows[client]
        assert sum(map(int, again.train_rows)) == int(federation.train_rows[client])  # nobody else has rows
        if federation.groups is not None:
            assert again.train_units()[client] == federation.train_units()[client]


REAL: dict[str, dict[str, Any]] = {
    "heart-disease": {"data.split.central": 0.0, "data.preprocess": {"kind": "per-client"}},
    "shakespeare-lstm": {},
    "parkinsons": {},
}


@pytest.mark.parametrize("name", REAL)
def test_real_rows(tmp_path: Path, name: str, data_dir: Path) -> None:
    """The same of tables, texts and groups that people use; the others' scales stay with their owners."""
    federation = of_scenario(load(name).changed(REAL[name]), Folders.of(data_dir, Path()))
    client = federation.clients - 1
    again = round_trip(federation, client, tmp_path)
    same_rows(federation, again, client)
    if name == "heart-disease":
        assert list(again.preprocessing["scales"]) == [federation.names[client]]
    assert is_holding(tmp_path) and not is_holding(tmp_path.parent)


def test_central_sets(tmp_path: Path) -> None:
    """A server has the two sets without anybody's train rows."""
    federation = prepare(load("quickstart"), Folders.of(None, Path())).federation
    write_central(federation, tmp_path)
    found = read(tmp_path)
    assert found.train == 0
    for part, rows in central_of(found).items():
        assert rows.x.tobytes() == federation.central[part].x.tobytes() and len(rows.x) > 0
        assert rows.y.tobytes() == federation.central[part].y.tobytes()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A sound folder of one client."""
    write(small.job().federation, 1, tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", [0.05, 0.3, 0.6, 0.95])
def test_a_changed_byte_is_found(written: Path, place: float) -> None:
    """Rows that were damaged on disk are never trained on as if they were sound."""
    file = written / "rows.npz"
    before, data = read(written), bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 0xFF
    file.write_bytes(bytes(data))
    try:
        after = read(written)
    except DataError as error:
        assert "rows.npz" in str(error) and "\n" not in str(error)
    else:  # a byte that says nothing of the arrays
        assert before.x.tobytes() == after.x.tobytes() and before.y.tobytes() == after.y.tobytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train": 10**6}, "parts end at rows"),
        ({"train": -1}, "train"),
        ({"classes": ["one"]}, "names 1"),
        ({"group_name": "person"}, "groups"),
        ({"version": 2}, "version"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_does_not_fit_is_one_line(written: Path, change: dict[str, Any], told: str) -> None:
    """Two files that belong together say so when they do not."""
    file = written / "rows.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=told):
        read(written)


def test_missing_files(written: Path) -> None:
    """What is not there is named."""
    (written / "rows.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"rows\.npz: is damaged"):
        read(written)
    (written / "rows.npz").unlink()
    with pytest.raises(DataError, match=r"rows\.npz: cannot be read"):
        read(written)
    (written / "rows.json").write_text("{")
    with pytest.raises(DataError, match=r"rows\.json"):
        read(written)
    (written / "rows.json").unlink()
    with pytest.raises(DataError, match=r"rows\.json: cannot be read"):
        read(written)


def test_objects_are_not_loaded(written: Path) -> None:
    """A pickle in an archive is code of whoever wrote it."""
    holding = holding_of(small.job().federation, 1)
    odd: Any = np.array([object()] * len(holding.x))
    np.savez(written / "rows.npz", x=holding.x, y=odd)
    with pytest.raises(DataError, match="is damaged"):
        read(written)
