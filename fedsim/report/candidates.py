"""Candidates in pictures and tables: their order, names, looks and scores, the same in all of them."""

import math

from fedsim.comparison.findings import Findings, Key
from fedsim.comparison.plan import reference_name
from fedsim.registry import as_path
from fedsim.report.charts import BESIDE, Look, look


def short(metric: str) -> str:
    """The last part of a metric's full name."""
    return metric.split("/", 3)[-1]


def better(found: Findings) -> str:
    """Which values of the primary metric are."""
    return "less is better" if found.lower else "more is better"


def names(found: Findings, condition: str) -> list[str]:
    """Candidates of a condition of which there are runs, and then what is shown beside them."""
    known = [*found.candidates, *_beside(found)]
    return [name for name in known if (condition, name) in found.standings]


def score(found: Findings, key: Key) -> tuple[str, float]:
    """What judges a candidate, and its mean: the primary metric, or that of a reference whose clients are alone."""
    standing = found.standings[key]
    if key[1] not in found.candidates and alone(found, key):
        own = next((run.headline for run in found.of(*key) if run.headline in standing.metrics), None)
        return (own, standing.metrics[own]) if own is not None else (found.metric, math.nan)
    return found.metric, standing.mean


def alone(found: Findings, key: Key) -> bool:
    """Whether clients' own models are what judges it: its global one, which nobody trains, is measured all the same."""
    judged = [run.headline for run in found.of(*key) if run.headline]
    return bool(judged) and all(name.startswith("personal/") for name in judged)


def style(found: Findings, name: str) -> Look:
    """How a candidate is drawn, the same in all pictures; references are grey."""
    if name in found.candidates:
        return look(found.candidates.index(name))
    return look(_beside(found).index(name) + 1)._replace(colour=BESIDE.colour)


def within(condition: str) -> str:
    """What a caption says of the condition."""
    return f", {condition}" if condition else ""


def file_name(kind: str, condition: str) -> str:
    """Of a picture's still, without a suffix."""
    return "-".join(filter(None, (kind, as_path(condition).strip("-"))))


def _beside(found: Findings) -> list[str]:
    """References, and whatever else there is that is no candidate, such as candidates before they were tuned."""
    references = [reference_name(reference) for reference in found.references]
    others = [name for _, name in found.standings if name not in (*found.candidates, *references)]
    return list(dict.fromkeys([*references, *others]))
