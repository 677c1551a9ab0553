"""The list of what leaves a node, as a table for people and as values for programs."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsim.data.corpus import Folders
from fedsim.deploy.disclosure import SEEN, WITHHELD, Field, summaries
from fedsim.deploy.node import holding
from fedsim.deploy.node.summing import summarised
from fedsim.deploy.node.work import Place, job_of
from fedsim.job import prepare
from fedsim.local import Work
from fedsim.scenario import Scenario

_WIDTH = 80
_NAME, _KIND, _SIZE = 25, 17, 9  # columns of a field's path, type and bytes


def work_on(scenario: Scenario, data: Path | None, nodes: int, data_dir: Path | None) -> Work:
    """A scenario's job, on its own data or on a node's.

    Args:
        scenario: what is asked of nodes.
        data: a node's rows; None for the scenario's own data.
        nodes: with `data`: how many nodes take part.
        data_dir: where data sets are looked for first.
    """
    if data is None:
        return Work(prepare(scenario, Folders.of(data_dir, scenario.folder)))
    return Work(job_of(scenario, holding.load(data, scenario), Place(0, nodes)))


def asked_of(scenario: Scenario, statistics: bool) -> tuple[Field, ...]:
    """What nodes tell besides runs, where an owner answers `fedsim deploy statistics` and the data are a table."""
    if not statistics or scenario.data.name != "csv" or "schema" not in scenario.data.settings:
        return ()
    return summaries(summarised(scenario))


def as_data(work: Work, listed: Sequence[Field]) -> dict[str, Any]:
    """The list for programs."""
    return {
        "title": work.job.scenario.title,
        "strategy": work.algorithm.name,
        "privacy": None if work.job.privacy is None else work.job.privacy.level,
        "rounds": work.job.scenario.rounds,
        "most": _most(work),
        "fields": [field._asdict() | {"bytes": field.bytes} for field in listed],
        "withheld": [{"message": kind, "name": name, "why": why} for kind, name, why in _withheld(listed)],
        "seen": list(SEEN),
    }


def lines(work: Work, listed: Sequence[Field]) -> list[str]:
    """The list for people, in lines of at most 80 columns, by what protects each field."""
    plan = work.job.privacy
    level = "no privacy" if plan is None else f"{plan.level}-level privacy"
    found = [*_wrapped(f"{work.job.scenario.title}: what leaves a node · {work.algorithm.name} · {level}", "")]
    found.append(f"{work.job.scenario.rounds} rounds; a node trains in at most {_most(work)} of them")
    for by in dict.fromkeys(field.protection for field in listed):
        found += ["", *_wrapped(f"protected by {by}" if by[0] != "f" else by, "")]
        found += [line for field in listed if field.protection == by for line in _line(field)]
    if kept := _withheld(listed):
        found += ["", "stays at the node"]
        found += [line for kind, name, why in kept for line in _wrapped(f"{kind:<8} metrics/{name}: {why}", "  ")]
    found += ["", "the coordinator also sees"]
    return [*found, *(line for text in SEEN for line in _wrapped(text, "  "))]


def _most(work: Work) -> int:
    """Rounds in which a node can be asked to train."""
    plan, rounds = work.job.privacy, work.job.scenario.rounds
    return rounds if plan is None else min(rounds, plan.most)


def _line(field: Field) -> Iterator[str]:
    """A field; one whose name is long on two lines, so that no name is cut."""
    start, shape = f"  {field.message:<8} ", ", ".join("any" if length < 0 else str(length) for length in field.shape)
    kind, size = f"{field.type} [{shape}]" if field.shape else field.type, field.bytes
    rest = f"{kind:<{_KIND}} {'' if size is None else f'{size:,}':>{_SIZE}} {field.often}"
    if len(field.path) <= _NAME:
        yield f"{start}{field.path:<{_NAME}} {rest}"
        return
    yield f"{start}{field.path}"
    yield f"{' ' * len(start)}{'':<{_NAME}} {rest}"


def _withheld(listed: Sequence[Field]) -> list[tuple[str, str, str]]:
    """Message, name and reason of what work gives and the list does not hold."""
    there = {(field.message, field.name) for field in listed}
    return [
        (kind, name, why)
        for kind, reasons in WITHHELD.items()
        for name, why in reasons.items()
        if (kind, name) not in there
    ]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)
