"""A coordinator's scenario as a job on one node's own rows, kept in memory from one message to the next.

The node is one client of K, the only one with rows, so that everything that follows from the client's number (its
draws, its plan) is what a simulation's is.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.data.dealt import Holding, federation_of, is_holding, read
from fedsim.deploy.assignment import Assignment
from fedsim.deploy.node import holding as holdings
from fedsim.errors import FedsimError, Refused
from fedsim.job import Job, prepare_on, with_secret_coins
from fedsim.local import Work
from fedsim.scenario import Scenario, parse
from fedsim.scenario_files import named_files

_OF_DATA = ("data.name", "data.path")
"""Keys whose files a node does not need where its rows are ready."""
_HUB = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)


class Place(NamedTuple):
    """Which client of a run a node is."""

    number: int
    clients: int


class Bench:
    """Data, and the last job's work, as they stay in a process between messages."""

    def __init__(self, data: Path, *, seeded_coins: bool = False) -> None:
        """Nothing is loaded yet.

        Args:
            data: the owner's rows, a folder or a file.
            seeded_coins: draw a mechanism's noise from the scenario's seed, as a simulation does: for rehearsals alone.
        """
        self.data, self._seeded = data, seeded_coins
        self._held: tuple[object, Holding] | None = None
        self._work: tuple[object, Work] | None = None

    @property
    def ready_made(self) -> bool:
        """Whether the rows lie there as models take them, so that no scenario's loader is needed."""
        return is_holding(self.data)

    def load(self) -> None:
        """Load what can be before anybody asks: rows that are ready.

        Raises:
            DataError: they are damaged.
        """
        if self.ready_made:
            self._held = self._stamp(), read(self.data)

    def holding(self, scenario: Scenario) -> Holding:
        """The node's rows as a scenario wants them.

        Raises:
            FedsimError: they do not fit it; the text is for their owner alone.
        """
        key = self._stamp() if self.ready_made else (self._stamp(), scenario.data.model_dump_json(), scenario.folder)
        if self._held is None or self._held[0] != key:
            self._held = self._work = None  # two data sets might not fit into memory
            self._held = key, holdings.load(self.data, scenario)
        return self._held[1]

    def work(self, assignment: Assignment, scenario: Scenario, place: Place) -> Work:
        """What does the client's work.

        Raises:
            FedsimError: scenario and rows do not go together; the text is for their owner alone.
        """
        holding = self.holding(scenario)
        key = assignment.digest, place
        if self._work is None or self._work[0] != key:
            self._work = None
            self._work = key, Work(job_of(scenario, holding, place, seeded_coins=self._seeded))
        return self._work[1]

    def _stamp(self) -> object:
        """What changes when the owner puts other rows there."""
        with_rows = self.data / "rows.npz" if self.ready_made else self.data
        try:
            found = with_rows.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def job_of(scenario: Scenario, holding: Holding, place: Place, *, seeded_coins: bool = False) -> Job:
    """The scenario's job on one client's rows."""
    job = prepare_on(federation_of(holding, place.number, place.clients), scenario, draws_cohorts=False)
    return job if seeded_coins else with_secret_coins(job)


def scenario_of(assignment: Assignment, folder: Path, *, ready_made: bool) -> Scenario:
    """An assignment's scenario, as a node does it: one client after another, on a core, as it is installed here.

    Args:
        assignment: of a coordinator.
        folder: where its approved sources lie; of one without sources a folder without files.
        ready_made: whether the node's rows are, so that their source is not needed.

    Raises:
        Refused: it is no scenario, has what belongs to simulations, or names a file that is none of its sources, or a
            folder of this machine.
    """
    try:
        content = tomllib.loads(assignment.scenario)
        scenario = parse({**content, "engine": {"kind": "inline"}}, folder, "the assignment")
    except (FedsimError, ValueError, RecursionError) as error:
        raise Refused(f"its scenario cannot be read: {error}") from error
    if scenario.adversary is not None:
        raise Refused("its scenario has an adversary, and no node attacks")
    for key, value in named_files(content):
        if ready_made and key in _OF_DATA:
            continue
        if key != "data.path" and (file := value.partition(":")[0]) not in assignment.sources:
            raise Refused(f"its {key} names {file}, which is none of its sources")
    if not of_the_hub(scenario.model.settings.get("pretrained"), folder):
        raise Refused("its model.pretrained is no name of a model of the hub, and folders of a node are nobody else's")
    return scenario


def of_the_hub(pretrained: object, folder: Path) -> bool:
    """Whether what a scenario has as `model.pretrained`, if it is a name, is one of the hub's and of nothing here."""
    if not isinstance(pretrained, str):
        return True
    if _HUB.fullmatch(pretrained) is None:
        return False
    return not any((place / pretrained).exists() for place in (folder, Path()))


def level_of(scenario: Scenario) -> str:
    """At which level of privacy a scenario is, "none" included."""
    return scenario.privacy.level or "none"


def declared(holding: Holding, place: Place) -> dict[str, Any]:
    """What a node says of its rows before round 1: their shapes, types and counts, of which a run is made."""
    units = federation_of(holding, place.number, place.clients).train_units()
    return {
        "x-shape": list(holding.x.shape[1:]),
        "x-type": str(holding.x.dtype),
        "y-shape": list(holding.y.shape[1:]),
        "y-type": str(holding.y.dtype),
        "task": holding.task,
        "classes": list(holding.classes),
        "vocabulary": -1 if holding.vocabulary is None else int(holding.vocabulary),
        "group-name": holding.group_name,
        "preprocessing": json.dumps(constants(holding.preprocessing)),
        "rows-train": holding.train,
        "rows-validation": holding.validation - holding.train,
        "rows-test": len(holding.x) - holding.validation,
        "units": int(units[place.number]),
    }


def constants(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """What was done to rows, without what was learned from them: scales, and categories that no schema declares."""
    if not preprocessing.get("fitted_on_rows"):
        return dict(preprocessing)
    learned = {"scales"} | (set() if preprocessing.get("declared") else {"columns"})
    return {name: value for name, value in preprocessing.items() if name not in learned}
