"""What a tuning tried and found: the trials of each candidate, as `tuning.json` has them and as people read them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.comparison.candidates import joined
from fedsim.comparison.spaces import RATE
from fedsim.progress import shortened, wrapped
from fedsim.ranges import Range, read


@dataclass(frozen=True)
class Trial:
    """Runs under some settings.

    Attributes:
        settings: values of the tuned keys; of trial 0 the candidate's own, as far as it has them.
        scores: [seeds] validation after the last round; nan where the run diverged or was ended by its failure rules.
        reason: why one of them ended so.
        steps: gradient steps of all clients, over all seeds.
        seconds: of the runs.
        whole: whether every client of every round trained, so that `steps` says what was asked for.
    """

    settings: Mapping[str, Any]
    scores: tuple[float, ...]
    reason: str | None
    steps: int
    seconds: float
    whole: bool

    @property
    def score(self) -> float:
        """The mean over seeds; nan, which counts as the worst, where one of them is nan."""
        return math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Tuned:
    """The trials of a candidate or reference under a condition.

    Attributes:
        condition, candidate: names, as in the comparison's cells.
        metric: full name of what is judged, on validation rows.
        lower: whether it is better when it is lower.
        ranges: of the tuned keys; empty where there is nothing to tune, and trial 0 the only one.
        trials: in order; trial 0 is the untuned one.
    """

    condition: str
    candidate: str
    metric: str
    lower: bool
    ranges: Mapping[str, Range]
    trials: tuple[Trial, ...]

    @property
    def key(self) -> tuple[str, str]:
        """Condition and candidate."""
        return self.condition, self.candidate

    @property
    def name(self) -> str:
        """For people."""
        return joined(*self.key)

    @property
    def best(self) -> int:
        """The number of the best trial, the first of equals; 0 where all have diverged."""
        scores = [trial.score if self.lower else -trial.score for trial in self.trials]
        finite = [(score, number) for number, score in enumerate(scores) if not math.isnan(score)]
        return min(finite, default=(math.nan, 0))[1]

    @property
    def best_so_far(self) -> list[float]:
        """[trials] the best score up to each trial; nan before the first that has one."""
        curve: list[float] = []
        for trial in self.trials:
            known = [score for score in (*curve[-1:], trial.score) if not math.isnan(score)]
            curve.append((min if self.lower else max)(known, default=math.nan))
        return curve

    @property
    def settled(self) -> Mapping[str, Any]:
        """The best trial's settings; empty where that is the untuned one, which stays as it is."""
        return self.trials[self.best].settings if self.best else {}

    @property
    def edges(self) -> dict[str, str]:
        """The settled keys whose value lies at the "lower" or "upper" end of its range."""
        found = {key: self.ranges[key].edge(value) for key, value in self.settled.items()}
        return {key: edge for key, edge in found.items() if edge is not None}

    @property
    def steps(self) -> int | None:
        """Gradient steps of each trial; None where none was whole."""
        return next((trial.steps for trial in self.trials if trial.whole), None)

    def values(self) -> dict[str, Any]:
        """As `tuning.json` has it; `tuned` reads it back."""
        return {
            "condition": self.condition,
            "candidate": self.candidate,
            "metric": self.metric,
            "lower_is_better": self.lower,
            "ranges": {key: each.table() for key, each in self.ranges.items()},
            "gradient_steps": self.steps,
            "trials": [{**vars(trial), "scores": list(trial.scores), "score": trial.score} for trial in self.trials],
            "best_so_far": self.best_so_far,
            "best": self.best,
            "settled": dict(self.settled),
            "edges": self.edges,
        }


def tuned(values: Mapping[str, Any]) -> Tuned:
    """The trials that `tuning.json` has of a candidate.

    Raises:
        LookupError, TypeError, ValueError: it is no such table.
    """
    return Tuned(
        condition=values["condition"],
        candidate=values["candidate"],
        metric=values["metric"],
        lower=values["lower_is_better"],
        ranges={key: read(table, key) for key, table in values["ranges"].items()},
        trials=tuple(_trial(each) for each in values["trials"]),
    )


def _trial(values: Mapping[str, Any]) -> Trial:
    scores = tuple(math.nan if score is None else float(score) for score in values["scores"])
    kept = {name: values[name] for name in ("settings", "reason", "steps", "seconds", "whole")}
    return Trial(scores=scores, **kept)


def lines(values: Mapping[str, Any]) -> list[str]:
    """What `tuning.json` says, for people: untuned beside tuned, and what was settled."""
    found = [tuned(each) for each in values["candidates"]]
    count = max((len(each.trials) for each in found), default=0)
    seeds = ", ".join(map(str, values["seeds"]))
    table = [f"tuned by {count} trials each, on validation rows of seed {seeds}"]
    table += [f"  {'':<38}{'untuned':>10}{'tuned':>10}"]
    for each in found:
        untuned, best = each.trials[0].score, each.trials[each.best].score
        table.append(f"  {shortened(each.name, 38):<38}{_figure(untuned):>10}{_figure(best):>10}")
        chosen = ", ".join(f"{key} = {_written(value)}" for key, value in each.settled.items())
        table += wrapped(chosen or "its own settings", 4)
    return [*table, *(line for note in values["notes"] for line in wrapped(f"note: {note}"))]


def notes(found: Sequence[Tuned], private: bool) -> list[str]:
    """What a reader should know of a tuning; `private` says whether the base promises privacy."""
    told = [note for each in found for note in _own_notes(each)]
    for condition in dict.fromkeys(each.condition for each in found):
        told += _unequal([each for each in found if each.condition == condition])
    if private:
        told.append(
            "epsilon is of each single run; the trials trained on the same people's rows, and what they spent and the "
            "choice among them are not in it"
        )
    return told


def _own_notes(each: Tuned) -> list[str]:
    if not each.ranges:
        return [f"{each.name} has nothing to tune"]
    if all(math.isnan(trial.score) for trial in each.trials):
        return [f"{each.name}: no trial came to a score, so its own settings stay: {each.trials[0].reason}"]
    ends = {"lower": lambda given: given.low, "upper": lambda given: given.high}
    return [
        f"{each.name}: {key} = {_written(each.settled[key])} lies at the {edge} end of its range, "
        f"{ends[edge](each.ranges[key]):g}; what lies beyond was not tried"
        for key, edge in each.edges.items()
    ]


def _unequal(found: Sequence[Tuned]) -> list[str]:
    """In what candidates under one condition were not tuned alike."""
    told, steps = [], {each.name: each.steps for each in found if each.steps is not None}
    if len(set(steps.values())) > 1:
        counts = ", ".join(f"{name} {count:,}" for name, count in steps.items())
        told.append(f"a trial's gradient steps are not the same for all, since their runs' are not: {counts}")
    without = [each.name for each in found if each.ranges and RATE not in each.ranges]
    if without and any(RATE in each.ranges for each in found):
        told.append(f"{RATE} is set, and not tuned, for {'; '.join(without)}, while it is for others")
    return told


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
