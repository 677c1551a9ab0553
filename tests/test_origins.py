"""Where a user's objects were written: files, cells of a notebook, or nowhere."""

import functools
import linecache
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fedsim.origins import Cell, contents, names, origins, reference

CELL = """from torch import nn

class Net(nn.Module):
    def forward(self, x):
        return x

class Empty(Net):
    pass

def make(classes):
    return Net()

loss = lambda output, target: output
"""


class Written(nn.Linear):
    """A model that a caller gives as a Python object."""


@functools.cache
def cached() -> int:
    return 1


@pytest.mark.parametrize("model", [Written, functools.partial(Written, 3), Written(3, 2)])
def test_a_python_object_can_be_found_again(model: Any) -> None:
    assert reference(model) == f"{__name__}:Written"
    assert origins(model) == [Path(__file__)]


def test_what_is_wrapped_is_found_as_it_was_written() -> None:
    assert reference(cached) == f"{__name__}:cached" and origins(cached) == [Path(__file__)]


def test_what_is_in_no_file_has_no_source() -> None:
    typed: dict[str, Any] = {"__name__": "prompt"}
    exec("class Net: pass\ndef make(): return Net()", typed)
    assert reference(typed["Net"]) == "prompt:Net"
    unwritten: list[Any] = [typed["Net"], typed["make"], dict, "mlp", "mine.py:Net"]
    for model in unwritten:
        assert origins(model) == []
    assert reference("mine.py:Net") == "mine.py:Net"


@pytest.fixture
def cell() -> Iterator[dict[str, Any]]:
    """A cell as IPython runs it: compiled under a name that `linecache` knows, in a module without a file."""
    name = "/nowhere/1234.py"
    linecache.cache[name] = (len(CELL), None, CELL.splitlines(keepends=True), name)
    typed: dict[str, Any] = {"__name__": "cells"}
    exec(compile(CELL, name, "exec"), typed)
    yield typed
    del linecache.cache[name]


def test_of_a_cell_all_is_kept(cell: dict[str, Any]) -> None:
    found = [origins(cell[name]) for name in ("Net", "make", "loss")]
    assert found == [[Cell("cell-Net.py", CELL)], [Cell("cell-make.py", CELL)], [Cell("cell-lambda.py", CELL)]]
    assert origins(cell["Empty"]) == []  # it has no code of its own
    every = [each for one in found for each in one]
    assert contents(every) == {"cell-Net.py": CELL.encode()}
    assert names(every) == dict.fromkeys(every, "cell-Net.py")


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(place)
    first, second = tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py"
    again = tmp_path / "a" / ".." / "a" / "mine.py"
    assert contents([first, second, again]) == {"mine.py": b"a", "mine-2.py": b"b"}
    assert names([first, second, again]) == {first: "mine.py", second: "mine-2.py", again: "mine.py"}
