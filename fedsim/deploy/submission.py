"""From a scenario that could be simulated to what nodes are asked: changed where it must be, refused where it cannot.

What `[data]` says of rows is the nodes' own, what `[engine]` says of workers has no meaning there; whatever changes the
bits of a run is refused instead of being passed over.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedsim import origins
from fedsim import scenario as scenarios
from fedsim.composition import algorithm_of
from fedsim.data.federation import Federation
from fedsim.deploy.assignment import Assignment
from fedsim.deploy.node.work import of_the_hub
from fedsim.errors import DeployError, ScenarioError, named
from fedsim.job import prepare_on
from fedsim.scenario import Scenario
from fedsim.scenario_files import named_files, renamed
from fedsim.stock import TREES

_SOLVED = ("example", "local")
"""Levels whose noise follows from what all nodes have, and of which each node plans with what it has alone."""


class Deployable(NamedTuple):
    """A scenario as it is deployed.

    Attributes:
        assignment: what nodes are asked.
        notes: what its user should know of the changes.
    """

    assignment: Assignment
    notes: tuple[str, ...]


def deployable(scenario: Scenario) -> Deployable:
    """What nodes are asked for a scenario.

    Raises:
        ScenarioError: it cannot be deployed; the line says why.
        DeployError: the user's own files cannot travel.
    """
    with named(scenario.origin):
        _refuse(scenario)
        changed, notes = _changed(scenario)
        return Deployable(_assigned(changed), tuple(notes))


def solved(assignment: Assignment, federation: Federation, folder: Path, origin: str) -> Assignment:
    """The assignment with the noise that meets its epsilon, where that depends on all nodes' rows.

    Args:
        assignment: which may name an epsilon.
        federation: what nodes declare.
        folder: where its sources are.
        origin: what errors call it.
    """
    scenario = parsed(assignment, folder, origin)
    level = scenario.privacy.level
    if level not in _SOLVED or getattr(scenario.privacy, level).epsilon is None:
        return assignment
    plan = prepare_on(federation, scenario).privacy
    assert plan is not None
    noise = {"noise_multiplier": plan.noise_multiplier, "max_participations": plan.max_participations}
    changed = scenario.changed({f"privacy.{level}.{key}": value for key, value in noise.items()})
    return Assignment(changed.to_toml(), assignment.sources)


def parsed(assignment: Assignment, folder: Path, origin: str) -> Scenario:
    """The scenario of an assignment whose sources are in a folder."""
    import tomllib

    return scenarios.parse(tomllib.loads(assignment.scenario), folder, origin)


def write_sources(assignment: Assignment, folder: Path) -> None:
    """Write the user's own files where a scenario finds them.

    Raises:
        DeployError: they cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in assignment.sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DeployError(f"{folder} cannot be written: {error.strerror}") from error


def _refuse(scenario: Scenario) -> None:
    """Refuse what only a simulation has, each with the reason."""
    engine, data = scenario.engine, scenario.data
    algorithm = algorithm_of(scenario) if scenario.model.name != TREES else None
    name = scenario.strategy.name
    reasons = {
        "adversary: attacks are simulated; nobody asks a real node for one": scenario.adversary is not None,
        "references: they run on all rows in one place, or on none; simulate them": bool(scenario.references),
        f"model.name = {TREES!r}: trees are grown in a simulation alone": algorithm is None,
        "engine.compile: its last bits are another computation's; set engine.compile = false": engine.compile,
        "engine.stack: nodes train one client each; leave it out, or set it to 1": (engine.stack or 1) > 1,
        "model.pretrained names a folder, and folders do not travel to nodes; name a model of the hub": not of_the_hub(
            scenario.model.settings.get("pretrained"), scenario.folder
        ),
        "data.without: a node that is not to take part is revoked; leave it out": bool(data.without),
        "data.preprocess: no node knows the scales of all rows; declare ranges or mean and std in data.schema and set "
        'data.preprocess.kind = "constants"': data.preprocess is not None and data.preprocess.kind == "federated",
        "privacy.client.mechanism = 'tree' takes noise of earlier rounds off again, so it would have to be kept with "
        "the models; use mechanism = 'gaussian'": scenario.privacy.client is not None
        and scenario.privacy.client.mechanism == "tree",
    }
    if algorithm is not None:
        reasons |= {
            f"strategy.name = {name!r} trains on everybody's rows in one place": algorithm.pooled,
            f"strategy.name = {name!r} trains every client alone; nothing is to be deployed": algorithm.alone,
            f"strategy.name = {name!r} brings a model of its own, which is a reference": bool(algorithm.model),
        }
    if found := next((reason for reason, holds in reasons.items() if holds), None):
        raise ScenarioError(found)


def _changed(scenario: Scenario) -> tuple[Scenario, list[str]]:
    """The scenario without what is a simulation's alone, and notes of what is missed."""
    notes, level = [], scenario.privacy.level
    content = scenario.model_dump(exclude_none=True)
    content["engine"] = {"kind": "inline", "bits": scenario.engine.bits}
    content["data"]["partition"] = {"kind": "natural"}
    content["data"].pop("path", None)
    content["checkpoint"]["every"] = 1
    if scenario.privacy.without is not None:
        del content["privacy"]["without"]
        notes.append("privacy.without is left out: nodes' rows are used under privacy alone")
    if level is not None and scenario.evaluate.clients_every:
        content["evaluate"]["clients_every"] = 0
        notes.append(f"nothing is measured on nodes' own rows: privacy.{level} does not cover it")
    if level in _SOLVED and getattr(scenario.privacy, level).max_participations is None:
        content["privacy"][level]["max_participations"] = scenario.rounds
        notes.append(f"privacy.{level}.max_participations = {scenario.rounds}, one for every round")
    if scenario.cohort.client_timeout is None:
        notes.append("a node that has not answered in an hour has failed; cohort.client_timeout says otherwise")
    return scenarios.parse(content, scenario.folder, scenario.origin), notes


def _assigned(scenario: Scenario) -> Assignment:
    """A scenario and the files that it names, which have plain names in it from now on."""
    content = scenario.model_dump(exclude_none=True)
    files = {value.partition(":")[0]: key for key, value in named_files(content) if not key.endswith("path")}
    places = {name: (scenario.folder / name).resolve() for name in files}
    if absent := [name for name, place in places.items() if not place.is_file()]:
        raise ScenarioError(f"{files[absent[0]]}: there is no file {absent[0]}")
    plain = origins.names(list(places.values()))
    text = scenarios.parse(renamed(content, lambda file: plain[places[file]]), scenario.folder, scenario.origin)
    return Assignment(text.to_toml(), {plain[place]: _text(place) for place in places.values()})


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"{file} cannot travel to nodes: it is no text in UTF-8 that can be read") from error


def named_nodes(names: Sequence[str], most: int = 5) -> str:
    """Names for a line of text."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
