"""What this machine lets a process use: cores, memory, shared memory; and what is on its disk.

Inside a container the limits are those of its control groups (version 2), not the host's.
"""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

SYSTEM = Path("/")
"""Where `proc` and `sys` hang."""


def cores(system: Path = SYSTEM) -> int:
    """Whole cores that this process may keep busy: its affinity, or less where a control group has a quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [allowed]
    for text in _control_group_values("cpu.max", system):
        quota, _, period = text.partition(" ")
        if quota != "max":
            shares.append(math.ceil(int(quota) / int(period)))
    return max(1, min(shares))


def processor_lines(system: Path = SYSTEM) -> list[str]:
    """What Linux tells of every core's processor; nothing elsewhere."""
    listing = system / "proc/cpuinfo"
    return listing.read_text(errors="replace").splitlines() if listing.is_file() else []


def user_cache() -> Path:
    """Where files are kept that this user can have again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim"


def available_memory(system: Path = SYSTEM) -> int | None:
    """Bytes that can still be allocated, or None where the system does not say (macOS)."""
    free = [bytes_free for bytes_free in (_memory_information(system), *_memory_left_in_groups(system)) if bytes_free]
    return min(free, default=None)


def free_shared_memory() -> int | None:
    """Free bytes of /dev/shm, where Ray keeps what its workers share, or None where there is no such folder."""
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def limit_memory(gigabytes: float) -> None:
    """Let this process use so much memory of its own, beside what it has: what asks for more gets an error.

    Files and memory that it shares with others do not count. Where the system knows no such limit there is none.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return
    import resource  # not everywhere

    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    reserved, used = (1024 * int(fields[name].split()[0]) for name in ("VmData", "RssAnon"))
    limit = max(0, reserved - used) + int(gigabytes * 1e9)  # stacks of threads are reserved and hardly used
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _memory_information(system: Path) -> int | None:
    listing = system / "proc/meminfo"
    lines = listing.read_text().splitlines() if listing.is_file() else []
    kibibytes = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return next((1024 * value for value in kibibytes), None)


def _memory_left_in_groups(system: Path) -> Iterator[int]:
    limits = _control_group_values("memory.max", system)
    used = _control_group_values("memory.current", system)
    for limit, current in zip(limits, used, strict=True):
        if limit != "max":
            yield int(limit) - int(current)


def _control_group_values(file: str, system: Path) -> Iterator[str]:
    """A file's content in this process' control group and in every group around it that has the file."""
    listing = system / "proc/self/cgroup"
    lines = listing.read_text().splitlines() if listing.is_file() else []
    root = system / "sys/fs/cgroup"
    for path in (line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")):
        for group in (root / path, *(root / parent for parent in Path(path).parents)):
            if (group / file).is_file():
                yield (group / file).read_text().strip()


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
