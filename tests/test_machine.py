"""What a process may use, inside and outside of control groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim import machine


def system(folder: Path, files: dict[str, str]) -> Path:
    """A tree like / with these files in it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(("quota", "most"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", 10**6)])
def test_a_quota_bounds_the_cores(tmp_path: Path, quota: str, most: int) -> None:
    """Half a core still is one worker; no quota leaves what the affinity allows."""
    root = system(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota})
    assert machine.cores(root) == min(len(os.sched_getaffinity(0)), most)


def test_the_tightest_group_around_a_process_counts(tmp_path: Path) -> None:
    """A limit on any group holds for all groups inside it."""
    groups = {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n",
        "proc/self/cgroup": "0::/pod/box\n",
        "sys/fs/cgroup/pod/memory.max": "3000000",
        "sys/fs/cgroup/pod/memory.current": "1000000",
        "sys/fs/cgroup/pod/box/memory.max": "max",
        "sys/fs/cgroup/pod/box/memory.current": "500000",
    }
    assert machine.available_memory(system(tmp_path, groups)) == 2_000_000


def test_memory_without_groups_is_the_systems(tmp_path: Path) -> None:
    root = system(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"})
    assert machine.available_memory(root) == 8000 * 1024


def test_a_system_that_says_nothing_is_unknown(tmp_path: Path) -> None:
    """As on macOS."""
    assert machine.available_memory(tmp_path) is None
    assert machine.cores(tmp_path) >= 1


LIMITED = """
from fedsim.machine import limit_memory
limit_memory(0.2)
small = bytearray(100_000_000)
try:
    bytearray(300_000_000)
except MemoryError:
    print("refused")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux limits a process' own memory")
def test_a_process_gets_no_more_memory_than_its_limit() -> None:
    """What it had before does not count."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
