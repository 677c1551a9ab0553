"""`fedsim deploy statistics`: constants for `[data.schema]` from sums that nodes tell of their tables' train rows.

Counts, means and variances of nodes are put together as if all rows had lain in one place: Chan, Golub and LeVeque,
"Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979. No epsilon covers any of it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import RecordDict
from pydantic import BaseModel

from fedsim.data.preprocess import Scale, scale_of
from fedsim.data.schema import Columns
from fedsim.deploy import disclosure
from fedsim.deploy.disclosure import WITHHELD_COUNT
from fedsim.deploy.replies import COUNTER, plain
from fedsim.errors import DataError, DeployError

NOT_COVERED = "no epsilon covers these figures: they are sums over nodes' train rows, each of at least {least} rows"
_LIMITS: Mapping[str, tuple[float, float]] = {
    "count": (0, 1e12),
    "mean": (-1e30, 1e30),
    "variance": (-1e-6, 1e60),
    "category": (WITHHELD_COUNT, 1e12),
}
"""Of what a node can tell: so that sums over nodes stay numbers, and one node cannot end the others' statistics."""


class Numbers(BaseModel):
    """A number over all nodes that told of it: how many values, and its scale; None where nobody told."""

    count: int
    scale: Scale | None
    nodes: int


class Counts(BaseModel):
    """How often each category is there, among nodes that told of it; None where none did."""

    counts: dict[str, int | None]
    withheld: int


class Summary(BaseModel):
    """What nodes know together.

    Attributes:
        numbers: by column.
        categories: by column.
        nodes: who has told.
        reasons: why others have not.
    """

    numbers: dict[str, Numbers]
    categories: dict[str, Counts]
    nodes: list[str]
    reasons: dict[str, str]


def together(columns: Columns, told: Mapping[str, RecordDict], reasons: Mapping[str, str]) -> Summary:
    """What nodes' answers come to.

    Args:
        columns: of which statistics were asked.
        told: answers by the names of nodes; one that is not as it should be is left out, with the reason.
        reasons: why other nodes gave none.

    Raises:
        DeployError: nobody has told anything.
    """
    sound: dict[str, Mapping[str, Any]] = {}
    odd = dict(reasons)
    for name, content in told.items():
        try:
            sound[name] = _sound(columns, content)
        except DeployError as error:
            odd[name] = str(error)
    if not sound:
        raise DeployError("no node tells statistics: " + "; ".join(f"{name}: {why}" for name, why in odd.items()))
    answers = list(sound.values())
    return Summary(
        numbers={name: _number(name, columns, answers) for name, column in columns.items() if column.kind == "number"},
        categories={
            name: _counts(name, column.categories, answers)
            for name, column in columns.items()
            if column.categories is not None
        },
        nodes=list(sound),
        reasons=odd,
    )


def as_data(summary: Summary, least: int) -> dict[str, Any]:
    """A summary for programs."""
    return {
        "numbers": {
            name: {
                "count": number.count,
                "mean": None if number.scale is None else number.scale.mean,
                "std": None if number.scale is None else number.scale.std,
                "nodes": number.nodes,
            }
            for name, number in summary.numbers.items()
        },
        "categories": {name: each.counts for name, each in summary.categories.items()},
        "nodes": summary.nodes,
        "left_out": summary.reasons,
        "covered": NOT_COVERED.format(least=least),
    }


def lines(summary: Summary, schema: Mapping[str, Mapping[str, Any]], least: int) -> list[str]:
    """A summary for people: a `[data.schema]` to paste, and what was withheld as its comments.

    Args:
        summary: of nodes.
        schema: the scenario's, whose other keys stay.
        least: rows of each statistic.
    """
    found = [f"# {NOT_COVERED.format(least=least)}", f"# told by {', '.join(summary.nodes)}"]
    found += [f"# not by {name}: {why}" for name, why in summary.reasons.items()]
    found.append("[data.schema]")
    for name, table in schema.items():
        found += _comments(name, summary)
        number, constants = summary.numbers.get(name), {}
        if number is not None and number.scale is not None:
            constants = {"mean": number.scale.mean, "std": number.scale.std}
        pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in {**table, **constants}.items())
        found.append(f"{_key(name)} = {{ {pairs} }}")
    return found


def _comments(name: str, summary: Summary) -> list[str]:
    number, counts = summary.numbers.get(name), summary.categories.get(name)
    if number is not None and number.scale is None:
        return [f"# {name}: every node has fewer values than it tells of"]
    if number is not None:
        return [f"# {name}: {number.count} values at {number.nodes} node{'' if number.nodes == 1 else 's'}"]
    if counts is not None:
        shown = ", ".join(f"{value} {'withheld' if count is None else count}" for value, count in counts.counts.items())
        withheld = f"; at some of {len(summary.nodes)} nodes more, withheld" if counts.withheld else ""
        return [f"# {name}: {shown}{withheld}"]
    return []


def _sound(columns: Columns, content: RecordDict) -> Mapping[str, Any]:
    """A node's figures, which are somebody else's: of the listed form, finite, and possible.

    Raises:
        DeployError: they are not.
    """
    listed = disclosure.summaries(columns)
    try:
        record = disclosure.filtered(content, "statistics", listed)["metrics"]
    except Exception as error:  # an answer may be made of anything
        raise DeployError(f"its answer is of another form ({type(error).__name__})") from error
    figures: dict[str, Any] = dict(record)
    figures.pop(COUNTER, None)
    if absent := [field.name for field in listed if field.name not in {*figures, COUNTER}]:
        raise DeployError(f"its answer lacks {plain(absent[0])}")
    for name, value in figures.items():
        values = value if isinstance(value, list) else [value]
        least, most = _LIMITS[name.partition("/")[0] if isinstance(value, list) else name.rpartition("/")[2]]
        if not all(least <= each <= most for each in values):
            raise DeployError(f"its {plain(name)} is no such figure")
    return figures


def _number(name: str, columns: Columns, answers: Sequence[Mapping[str, Any]]) -> Numbers:
    """A number over all nodes."""
    known = [
        (each[f"number/{name}/count"], each[f"number/{name}/mean"], each[f"number/{name}/variance"])
        for each in answers
        if each[f"number/{name}/count"]
    ]
    if not known:
        return Numbers(count=0, scale=None, nodes=0)
    total = sum(count for count, _, _ in known)
    mean = math.fsum(count * each for count, each, _ in known) / total
    variance = math.fsum(count * (own + (each - mean) ** 2) for count, each, own in known) / total
    try:
        scale = scale_of(name, columns[name], total, mean, variance)
    except DataError as error:
        raise DeployError(str(error)) from error
    return Numbers(count=total, scale=scale, nodes=len(known))


def _counts(name: str, categories: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> Counts:
    """How often each category is there, as far as nodes tell."""
    found: dict[str, int | None] = {}
    withheld = 0
    for place, value in enumerate(categories):
        told = [each[f"category/{name}"][place] for each in answers]
        known = [count for count in told if count != WITHHELD_COUNT]
        withheld += len(told) - len(known)
        found[value] = sum(known) if known else None
    return Counts(counts=found, withheld=withheld)


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)
