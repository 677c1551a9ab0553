"""A full disk ends a run with one line, and costs nothing: after room is made it goes on to the same bits."""

import gc
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedsim.errors import RunFolderError
from fedsim.reading import Records
from fedsim.resuming import resume
from fedsim.stored import open_run
from tests import small
from tests.laws.test_killed import contents

SCENARIO: dict[str, Any] = {
    **small.SMALL,
    "rounds": 6,
    "model": {"name": "mlp", "hidden": [2048]},
    "strategy": {"name": "scaffold"},
    "cohort": {"size": 3},
}
"""Every round writes three megabytes: model and control, and the controls of three clients."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for the beginning of a run, without a disk under it."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def tables(records: Records) -> list[object]:
    return [
        [(row.number, row.cohort, row.failed, row.fingerprint, row.best) for row in records.rounds()],
        [(row.round, row.client, row.phase, row.status, row.loss, row.norm) for row in records.clients()],
        records.metrics(),
    ]


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path, disk: Path) -> None:
    (tmp_path / "full.toml").write_text(tomli_w.dumps(SCENARIO))
    command: list[str | Path] = [Path(sys.executable).parent / "fedsim", "run", "full.toml", "--out"]
    stopped = subprocess.run([*command, disk / "run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert stopped.returncode == 2, stopped
    assert stopped.stderr.count("\n") == 1, stopped.stderr
    assert stopped.stderr.startswith(f"error: run folder {disk}/run cannot be written (")
    assert "No space left on device" in stopped.stderr or "full" in stopped.stderr
    assert f"fedsim resume {disk}/run" in stopped.stderr
    with closing(open_run(disk / "run")) as records:
        assert 0 < len(records.rounds()) < SCENARIO["rounds"]
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    resumed = resume(disk / "run")
    whole = small.run(small.job({**SCENARIO}), tmp_path / "whole")
    assert resumed.fingerprint == whole.fingerprint
    with closing(open_run(disk / "run")) as one, closing(open_run(tmp_path / "whole")) as other:
        assert tables(one) == tables(other)
    assert not list((disk / "run").rglob("*.tmp"))


def test_wherever_it_fills_up(tmp_path: Path, disk: Path) -> None:
    """In a file of states or a checkpoint, in the database, as the run begins, ends or is resumed: nothing is lost."""
    whole = small.run(small.job({**SCENARIO}), tmp_path / "whole").folder
    draw, ended = random.Random(1), {"begun": 0, "committed": 0, "resumed": 0}
    for trial in range(12):
        out, kilobytes = disk / f"run-{trial}", draw.randint(20, 11_000)
        size(disk, kilobytes)
        try:
            small.run(small.job({**SCENARIO}), out)
        except RunFolderError as error:
            assert "cannot be written" in str(error)
            ended["committed" if out.exists() and rounds(out) else "begun"] += 1
        for more in (0, 300, 3_000, 60_000):
            size(disk, kilobytes + more)
            if out.exists() and not summary(out):
                with suppress(RunFolderError):
                    resume(out)
                    ended["resumed"] += 1
        if out.exists():
            assert contents(out) == contents(whole)
            shutil.rmtree(out)
        gc.collect()  # a file of states that is still mapped takes its place on the disk
    assert all(ended.values()), ended


def size(disk: Path, kilobytes: int) -> None:
    """Make the disk larger or smaller; no smaller than what lies on it."""
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)


def rounds(out: Path) -> int:
    with closing(open_run(out)) as read:
        return len(read.rounds())


def summary(out: Path) -> dict[str, Any]:
    with closing(open_run(out)) as read:
        return read.summary()
