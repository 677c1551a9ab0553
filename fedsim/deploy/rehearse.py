"""A deployment rehearsed on one machine: server, proxy and nodes as real processes, compared with the simulation.

    OUT/site/ OUT/nodes/NAME/    what coordinator and owners would have, and their logs
    OUT/deployed/ OUT/simulated/    the two runs

Nodes have the parts that the scenario deals to its clients, as folders; all take part in each round, here and in the
simulation. Keys and copies of rows go when it has ended well.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from fedsim.data import dealt
from fedsim.data.corpus import Folders
from fedsim.data.federation import Federation
from fedsim.deploy import private_files, running
from fedsim.deploy.node.rules import read as read_rules
from fedsim.deploy.stage import staged
from fedsim.errors import DeployError, ScenarioError
from fedsim.federating import federate
from fedsim.job import prepare_on
from fedsim.progress import Progress
from fedsim.rounds import run as simulate
from fedsim.runs import default_path
from fedsim.scenario import Scenario
from fedsim.stopping import Watch

_WAIT = 180.0  # seconds in which all nodes must be there
_DRAWN = ("size", "fraction", "poisson")


class Rehearsed(NamedTuple):
    """What a rehearsal came to.

    Attributes:
        folder: of all that it left.
        deployed, simulated: fingerprints of the last models.
        apart: Euclidean distance of the two models.
        norm: of the simulated one.
        start, run: seconds until the server answered, and from then to the end of the deployed run.
        seconds_per_round: of it.
        comparable: whether both runs drew the same coins, so that they must be the same.
    """

    folder: Path
    deployed: str
    simulated: str
    apart: float
    norm: float
    start: float
    run: float
    seconds_per_round: float
    comparable: bool

    @property
    def same(self) -> bool:
        """Whether both models have the same bits."""
        return self.deployed == self.simulated

    @property
    def values(self) -> dict[str, Any]:
        """For programs."""
        return {**self._asdict(), "folder": str(self.folder), "same": self.same}


def rehearse(
    scenario: Scenario,
    nodes: int,
    *,
    progress: Progress,
    out: Path | None = None,
    data_dir: Path | None = None,
    rules: Path | None = None,
    seeded_coins: bool = False,
) -> Rehearsed:
    """Rehearse a scenario.

    Args:
        scenario: what is to be deployed.
        nodes: their number, and that of the simulation's clients.
        progress: is told what goes on.
        out: a new folder for all; runs/<time>-rehearsal-<scenario>-<id> by default.
        data_dir: where data sets are looked for first.
        rules: a rules.toml that all nodes get; by default they allow everything.
        seeded_coins: noise and batches of a promise of privacy come from the scenario's seed in both runs, instead of
            the operating system: then the models must be the same. No other deployment can ask for it.

    Raises:
        FedsimError: something does not start, or the run ends; the folder stays, with its logs.
    """
    scenario = everybody(scenario, nodes)
    folder = (out or default_path(f"rehearsal-{Path(scenario.origin).stem}")).absolute()
    if folder.exists():
        raise DeployError(f"{folder} exists already; choose another with --out, or remove it")
    if rules is not None:
        read_rules(rules)
    progress.phase("dealing the rows out")
    federation = federate(scenario, Folders.of(data_dir, scenario.folder))
    if federation.clients != nodes:
        raise ScenarioError(
            f"{scenario.origin}: data.partition gives {federation.clients} clients; use --nodes {federation.clients}"
        )
    job = prepare_on(federation, scenario)  # what is wrong with it is told before anything starts
    Watch.of(job.scenario, job.build_problem(), federation)
    folder.parent.mkdir(parents=True, exist_ok=True)
    private_files.folder(folder)  # it gets copies of rows, whose own files may be their owner's alone
    names = deal(federation, folder)
    begun = time.monotonic()
    progress.phase("starting server and nodes")
    with staged(folder, names, rules, seeded_coins=seeded_coins) as stage:
        started = time.monotonic()
        deployed = running.deploy(
            scenario,
            stage.site,
            nodes=nodes,
            wait=_WAIT,
            central=folder / "central" if (folder / "central").is_dir() else None,
            out=folder / "deployed",
            progress=progress,
            seeded_coins=seeded_coins,
        )
        ended = time.monotonic()
        for line in stage.ended():
            progress.note(line)
    progress.note("server and nodes have ended; now the same scenario as a simulation")
    result = simulate(scenario, data_dir=data_dir, out=folder / "simulated", progress=progress)
    apart, norm = _apart(folder / "deployed", folder / "simulated")
    comparable = seeded_coins or scenario.privacy.level is None
    found = Rehearsed(
        folder,
        deployed.fingerprint,
        result.fingerprint,
        apart,
        norm,
        started - begun,
        ended - started,
        float(deployed.values["seconds_per_round"]),
        comparable,
    )
    if found.same or not comparable:
        _tidy(folder)
    return found


def everybody(scenario: Scenario, nodes: int) -> Scenario:
    """The scenario with so many clients, all in every round, and no run beside it."""
    values = scenario.model_dump(exclude_none=True)
    privacy = {key: value for key, value in values["privacy"].items() if key != "without"}
    cohort = {key: value for key, value in values["cohort"].items() if key not in _DRAWN}
    changes: dict[str, Any] = {"privacy": privacy, "cohort": cohort, "references": []}
    if "clients" in scenario.data.partition:
        changes["data.partition.clients"] = nodes
    return scenario.changed(changes)


def deal(federation: Federation, folder: Path) -> list[str]:
    """Write every client's rows into a folder of its own, and the central sets into `central`; names of the nodes."""
    names = [f"node-{number}" for number in range(federation.clients)]
    for number, name in enumerate(names):
        dealt.write(federation, number, folder / "nodes" / name / "data")
    if all(len(rows.x) for rows in federation.central.values()):
        dealt.write_central(federation, folder / "central")
    return names


def lines(found: Rehearsed) -> list[str]:
    """What a rehearsal came to, for people."""
    told = [
        f"the server answered after {found.start:.0f} s; nodes, keys, TLS and all rounds took {found.run:.0f} s more, "
        f"{found.seconds_per_round:.1f} s a round",
        f"deployed   fingerprint {found.deployed[:16]}",
        f"simulated  fingerprint {found.simulated[:16]}",
    ]
    if found.same:
        return [*told, "the deployed model is the simulated one, to the bit"]
    share = f"the models are {found.apart:.3g} apart, of a norm of {found.norm:.3g}"
    if not found.comparable:
        return [*told, f"{share}: nodes drew their noise in secret; --seeded-coins compares to the bit"]
    return [*told, f"{share}, and they should be the same: see the logs in {found.folder}"]


def _apart(one: Path, other: Path) -> tuple[float, float]:
    """Distance of two runs' last models, and the norm of the second."""
    first, second = (load_file(folder / "model/last.safetensors") for folder in (one, other))
    return _norm({name: first[name].astype(np.float64) - second[name] for name in second}), _norm(second)


def _norm(tensors: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(tensor, dtype=np.float64).sum() for tensor in tensors.values())))


def _tidy(folder: Path) -> None:
    """Remove keys, and copies of rows; runs and logs stay."""
    homes = [folder / "site", *(home / "node" for home in (folder / "nodes").iterdir())]
    for place in (place for home in homes for place in home.iterdir() if place.name != "logs"):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()
    for copy in (folder / "central", *(home.parent / "data" for home in homes[1:])):
        shutil.rmtree(copy, ignore_errors=True)
