"""Is this machine ready? Each thing a run needs is looked at, and what is amiss comes with a remedy."""

import importlib.metadata
import inspect
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from packaging.requirements import Requirement

from fedsim import machine
from fedsim.data.corpus import Folders
from fedsim.errors import FedsimError
from fedsim.registry import find, members

GIB = 2**30
WORKER_MEMORY = GIB // 2  # a worker with torch loaded
SHARED_MEMORY = GIB // 2  # MNIST as float32 is 220 MB; the model and a round's sums lie beside it
DISK = 2 * GIB  # Ray's session files and some hundred small runs
SOURCES = "fedsim.data.sources"

State = Literal["ok", "warning", "missing"]


class Finding(NamedTuple):
    """What was looked at and found.

    Attributes:
        name: what was looked at.
        state: "ok"; "warning", some runs will fail or be slow; "missing", no run will work.
        found: what is there.
        remedy: what to do about it; empty when the state is "ok".
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(data_dir: Path | None = None) -> list[Finding]:
    """Look at everything a run needs.

    Args:
        data_dir: folder of data sets, looked into before `FEDSIM_DATA` and the user's cache.

    Returns:
        Findings in the order in which they should be mended. Data sets are really read, which takes seconds.
    """
    packages = [_package(name) for name in ("torch", "ray", "flwr", "opacus")]
    hardware = [_threads(), _gpu(), _cores(), _memory(), _shared_memory(), _disk(Path.cwd())]
    return [_python(), *packages, *hardware, *_data_sets(Folders.of(data_dir, Path.cwd()))]


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _package(name: str) -> Finding:
    """An installed package against the range of versions that fedsim was tested with."""
    wanted = _tested_versions().get(name, Requirement(name))
    remedy = f'pip install "{wanted}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", "not installed", remedy)
    if not wanted.specifier.contains(version, prereleases=True):
        return Finding(name, "warning", f"{version}, tested with {wanted.specifier}", remedy)
    return Finding(name, "ok", version)


def _tested_versions() -> dict[str, Requirement]:
    """What fedsim's own metadata ask for, by package name."""
    wanted = (Requirement(line) for line in importlib.metadata.requires("fedsim") or ())
    return {requirement.name: requirement for requirement in wanted if requirement.marker is None}


def _threads() -> Finding:
    return Finding("torch threads", "ok", f"{torch.get_num_threads()} here; a run uses one in each worker")


def _gpu() -> Finding:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if names:
        return Finding("GPU", "ok", f"{', '.join(names)}; this version trains on the CPU")
    if shutil.which("nvidia-smi"):
        found = f"an NVIDIA driver, but torch {torch.__version__} cannot use it"
        return Finding("GPU", "warning", found, "Install a CUDA build of torch that fits the driver: pytorch.org.")
    return Finding("GPU", "ok", "none; clients train on the CPU")


def _cores() -> Finding:
    count = machine.cores()
    if count == 1:
        return Finding("cores", "warning", "1", "Run with --engine inline: Ray has nothing to spread over one core.")
    return Finding("cores", "ok", str(count))


def _memory() -> Finding:
    available, workers = machine.available_memory(), machine.cores()
    if available is None:
        return Finding("memory", "ok", "unknown on this system")
    if available < GIB + workers * WORKER_MEMORY:
        fitting = max(1, (available - GIB) // WORKER_MEMORY)
        remedy = f"Close other programs, or run with --set engine.workers={fitting}."
        return Finding("memory", "warning", f"{_gib(available)} available for {workers} workers", remedy)
    return Finding("memory", "ok", f"{_gib(available)} available")


def _shared_memory() -> Finding:
    free = machine.free_shared_memory()
    if free is None:
        return Finding("shared memory", "ok", "unknown on this system")
    if free < SHARED_MEMORY:
        remedy = "Start the container with --shm-size=1g, or run with --engine inline."
        return Finding("shared memory", "warning", f"{_gib(free)} free in /dev/shm", remedy)
    return Finding("shared memory", "ok", f"{_gib(free)} free in /dev/shm")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if free < DISK:
        return Finding("disk", "warning", f"{_gib(free)} free in {folder}", "Free some, or run in another folder.")
    return Finding("disk", "ok", f"{_gib(free)} free in {folder}")


def _data_sets(folders: Folders) -> Iterator[Finding]:
    """Every data set that needs no more than its name, really read."""
    for name in members(SOURCES):
        source = find(SOURCES, name, folders.scenario, "data.name")
        _, *settings = inspect.signature(source).parameters.values()
        if any(setting.default is setting.empty for setting in settings):
            continue
        try:
            yield Finding(f"data: {name}", "ok", f"{len(source(folders)):,} rows")
        except FedsimError as error:  # also a package that the set needs
            yield Finding(f"data: {name}", "warning", "cannot be used", str(error))


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
