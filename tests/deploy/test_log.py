"""A node's log: whole lines in a chain, whatever killed its writer, and no change of a line goes unnoticed."""

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.deploy.node.log import FIRST, Log, entries, verify
from fedsim.errors import DeployError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A log of five entries."""
    log = Log(tmp_path / "log.jsonl")
    for number in range(5):
        log.write("answered", round=number, why="line\nbreak \x1b[31m")
    return tmp_path / "log.jsonl"


def test_the_chain_by_hand(file: Path) -> None:
    """Each line names the SHA-256 of the bytes of the one before, as any program can compute it."""
    previous = FIRST
    for number, line in enumerate(file.read_bytes().splitlines()):
        entry: dict[str, Any] = json.loads(line)
        assert entry["previous"] == previous and entry["round"] == number and entry["kind"] == "answered"
        previous = hashlib.sha256(line).hexdigest()
    assert verify(file) == [] and [each["round"] for each in entries(file)] == list(range(5))
    assert file.stat().st_mode & 0o777 == 0o600


@given(st.lists(st.dictionaries(st.from_regex(r"[a-z]{1,5}x", fullmatch=True), JSON, max_size=3), max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_written_is_read(tmp_path: Path, facts: list[dict[str, Any]]) -> None:
    """Line breaks, quotes and signs of any script are one line each."""
    file = tmp_path / f"{time.monotonic_ns()}.jsonl"
    for each in facts:
        Log(file).write("x", **each)
    assert verify(file) == []
    assert [
        {key: value for key, value in entry.items() if key in fact}
        for entry, fact in zip(entries(file), facts, strict=True)
    ] == facts


@pytest.mark.parametrize("line", range(4))
def test_a_changed_line_is_found(file: Path, line: int) -> None:
    """By the next one, which names it; of the last line nothing does."""
    lines = file.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"answered"', b'"rejected"')
    file.write_bytes(b"".join(lines))
    assert verify(file) == [
        f"{file}, line {line + 2}: does not follow the line before; one was changed, taken out or put in"
    ]


@pytest.mark.parametrize("line", range(4))
def test_a_line_that_was_taken_out_is_found(file: Path, line: int) -> None:
    """Or put in, or moved."""
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    assert len(verify(file)) == 1
    file.write_bytes(b"".join([*lines[: line + 1], *lines[line:]]))
    assert len(verify(file)) == 1
    file.write_bytes(b"".join([*lines[:line], lines[line + 1], lines[line], *lines[line + 2 :]]))
    assert verify(file)


def test_a_line_that_is_none(file: Path) -> None:
    """It is named, and the rest is still shown."""
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = b"\x00\xff not JSON\n"
    file.write_bytes(b"".join(lines))
    assert "line 3: is no entry" in verify(file)[0] and len(verify(file)) == 2
    assert [entry["kind"] for entry in entries(file)] == ["answered"] * 2 + ["damaged"] + ["answered"] * 2


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_a_cut_line_is_kept_aside_and_the_chain_goes_on(file: Path, keep: int) -> None:
    """A kill or a full disk leaves part of a line: it is told of, and lies in another file."""
    sound = file.read_bytes()
    line = sound.splitlines()[-1]
    file.write_bytes(sound + line[:keep])
    assert "bytes of a line that was cut" in verify(file)[0]
    assert len(list(entries(file))) == 5
    Log(file).write("answered", round=5)
    assert verify(file) == [] and file.read_bytes().startswith(sound)
    *_, cut, last = entries(file)
    assert cut["kind"] == "cut" and cut["sha256"] == hashlib.sha256(line[:keep]).hexdigest() and last["round"] == 5
    assert file.with_name("log.jsonl.cut").read_bytes() == line[:keep] + b"\n"


def test_a_log_that_is_one_cut_line(tmp_path: Path) -> None:
    """The very first write may be the one that is cut."""
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"time"')
    Log(file).write("answered")
    assert verify(file) == [] and [entry["kind"] for entry in entries(file)] == ["cut", "answered"]


def test_long_lines(tmp_path: Path) -> None:
    """The hash of the last line is found also where the line is longer than what is read at once."""
    file = tmp_path / "log.jsonl"
    for size in (10, 300_000, 65_400, 5):
        Log(file).write("x", text="y" * size)
    assert verify(file) == [] and len(list(entries(file))) == 4


def test_killed_at_any_time_and_written_by_two(tmp_path: Path) -> None:
    """Two processes that are killed again and again leave a chain without a fault."""
    file, rng = tmp_path / "log.jsonl", random.Random(2)
    for _ in range(12):
        child = os.fork()
        if child == 0:
            while True:
                Log(file).write("child", text="z" * 5000)
        for _ in range(3):
            Log(file).write("parent")
        time.sleep(rng.uniform(0.001, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    Log(file).write("parent")
    kinds = [entry["kind"] for entry in entries(file)]
    assert verify(file) == [] and kinds.count("parent") == 12 * 3 + 1 and "child" in kinds


def test_a_disk_that_does_not_take_it() -> None:
    """One line; /dev/full is Linux's full disk."""
    with pytest.raises(DeployError, match="No space left on device"):
        Log(Path("/dev/full")).write("answered")


def test_an_empty_log(tmp_path: Path) -> None:
    """Before the first request."""
    assert verify(tmp_path / "none") == [] and list(entries(tmp_path / "none")) == []
