"""A run on a Ray cluster: somebody must answer at its address, machines be alike, and the user's code come along."""

import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from fedsim.environment import numerical_differences
from fedsim.errors import ScenarioError, one_line
from fedsim.job import Job
from fedsim.scenario import Scenario, parse

_JOIN = "join this machine to a cluster with: ray start --address=HOST:PORT, and give that address; or leave it out"


def no_cluster(address: str, error: BaseException) -> ScenarioError:
    """Why a run cannot work at an address, and what to do."""
    return ScenarioError(f"engine.address = {address!r}: {_JOIN} ({one_line(error)})")


def check_address(address: str) -> None:
    """Refuse an address at which nobody listens: Ray itself would end this process."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise no_cluster(address, error) from error


def check_alike(here: Mapping[str, Any], machines: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuse workers that would give other bits than this process.

    Args:
        here: what bits depend on in this process.
        machines: of each worker its machine's name, and the same there.
    """
    for name, there in machines:
        for text in numerical_differences(here, there, ("here", "there")):
            advice = 'use alike machines with the same packages, or set engine.bits = "not guaranteed"'
            raise ScenarioError(f"engine.address: on {name} bits would differ: {text}; {advice}")


def own_code(scenario: Scenario) -> dict[str, bytes]:
    """The user's Python files that a scenario names, by their place below its folder.

    Those that lie elsewhere do not travel: they must be on every machine.
    """
    below = [path.relative_to(scenario.folder) for path in scenario.own_files() if path.is_relative_to(scenario.folder)]
    names = [path for path in below if path.suffix == ".py" and ".." not in path.parts]
    return {str(name): (scenario.folder / name).read_bytes() for name in names}


def at_hand(job: Job, code: Mapping[str, bytes]) -> Job:
    """A job on a machine: as it is where its code is as it should be, else with the code in a new folder."""
    if all(_content(job.scenario.folder / name) == content for name, content in code.items()):
        return job
    folder = Path(mkdtemp(prefix="fedsim-"))  # it stays: workers are ended, and never end by themselves
    for name, content in code.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    scenario = job.scenario
    return replace(job, scenario=parse(scenario.model_dump(exclude_none=True), folder, scenario.origin))


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
