"""What each candidate came to by itself: means over its seeds, and what its clients gain over training alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.comparison import statistics
from fedsim.comparison.facts import RunFacts
from fedsim.comparison.plan import reference_name
from fedsim.comparison.statistics import Interval
from fedsim.metrics import worst_tenth, worst_tenth_by_chance

_WORST = "client-test/worst-10%"

Key = tuple[str, str]
"""(condition, candidate)."""


@dataclass(frozen=True)
class Standing:
    """What a candidate came to in a condition: means over its seeds, of test metrics after the last round.

    Attributes:
        scores: seed -> the primary metric; nan where the run diverged, was stopped, or has not finished.
        mean, sd: of the finite scores; nan of none, sd of fewer than two.
        metrics: every test metric's mean over the seeds that measured it, by full name.
        worst: the worst 10 % of clients by the primary metric, mean over the seeds that had ten to count; None where
            none had, or it was not measured.
        by_chance: what it would be, were all these clients equal; None where the metric is not accuracy.
        clients: how many clients count in it, the least over those seeds; over all where there are none.
        too_few: the other seeds, of runs that did not fail.
        epsilon: the largest over seeds; None without privacy.
        delta: that it is at.
        rounds, seconds, bytes: means of whole runs.
        ended: seed -> why, of runs that did not do all that was asked for.
    """

    scores: Mapping[int, float]
    mean: float
    sd: float
    metrics: Mapping[str, float]
    worst: float | None
    by_chance: float | None
    clients: int
    too_few: tuple[int, ...]
    epsilon: float | None
    delta: float | None
    rounds: float
    seconds: float
    bytes: float
    ended: Mapping[int, str]


@dataclass(frozen=True)
class Gain:
    """What clients gain over training alone: own figure less that of `local`, positive when better.

    Attributes:
        metric: the last part of its name.
        each: seed -> client -> gain; clients are the same over seeds only where a partition is.
        mean: over clients, then over seeds; `interval` of it over seeds.
        share_gained: of clients, mean over seeds.
        worst_tenth: mean gain of the worst 10 % of clients, mean over the seeds with ten clients or more; None of none.
        too_few: the other seeds; empty where there is no worst tenth.
    """

    metric: str
    each: Mapping[int, Mapping[int, float]]
    mean: float
    interval: Interval
    share_gained: float
    worst_tenth: float | None
    too_few: tuple[int, ...]


def standing(runs: Sequence[RunFacts], metric: str) -> Standing:
    """What the runs of a candidate in a condition came to, one for each seed; `metric` is the primary one."""
    scores = {run.seed: run.score(metric) for run in runs}
    ended = [run for run in runs if run.status != "unfinished"]
    done = [run for run in runs if run.status == "done"]
    names = dict.fromkeys(name for run in done for name in run.last)
    means = {name: _mean(run.last[name] for run in done if name in run.last) for name in names}
    over, worst = statistics.interval(scores.values()), _worst(means, metric)
    counted = {
        run.seed: len(run.own_rows)
        for run in done
        if worst is not None and math.isfinite(run.last.get(worst, math.nan))
    }
    epsilons = [run.epsilon for run in runs if run.epsilon is not None]
    return Standing(
        scores=scores,
        mean=over.mean,
        sd=over.sd,
        metrics=means,
        worst=means[worst] if worst is not None else None,
        by_chance=_by_chance(done, worst),
        clients=min(counted.values() or (len(run.own_rows) for run in done), default=0),
        too_few=tuple(run.seed for run in done if run.seed not in counted) if counted else (),
        epsilon=max(epsilons, default=None),
        delta=next((run.delta for run in runs if run.epsilon is not None), None),
        rounds=_mean(len(run.rounds) for run in ended),
        seconds=_mean(run.seconds[-1] for run in ended if len(run.seconds)),
        bytes=_mean(run.bytes[-1] for run in ended if len(run.bytes)),
        ended={run.seed: run.reason for run in ended if run.reason is not None},
    )


def worst_told(standings: Iterable[Standing]) -> str:
    """For people, of how many clients and seeds the worst 10 % of a condition are; empty where nobody has them."""
    with_worst = [each for each in standings if each.worst is not None]
    if not with_worst:
        return ""
    clients = min(each.clients for each in with_worst)
    without = _without(seed for each in with_worst for seed in each.too_few)
    but = f"{without}, where fewer than ten have" if without else ""
    return f"worst 10 % over {clients} clients with enough test rows{but}; by chance: were all of them equal"


def worst_gain_told(gains: Iterable[Gain]) -> str:
    """For people, the seeds that the worst 10 % of gains leave out; empty where they are of all."""
    without = _without(seed for each in gains for seed in each.too_few)
    return f"worst 10 %{without}, where fewer than ten clients have figures of both" if without else ""


def _without(seeds: Iterable[int]) -> str:
    """For people, seeds that are left out."""
    few = sorted(set(seeds))
    return f", without seed{'s' if len(few) > 1 else ''} {', '.join(map(str, few))}" if few else ""


def _worst(means: Mapping[str, float], metric: str) -> str | None:
    """The full name of the worst 10 % by the primary metric: of the model that it judges, or else of clients' own."""
    model, _, _, name = metric.split("/", 3) if metric.count("/") >= 3 else ("global", "", "", metric)
    places = dict.fromkeys([f"{model}/{_WORST}/{name}", f"personal/{_WORST}/{name}"])
    return next((place for place in places if place in means), None)


def _by_chance(runs: Sequence[RunFacts], worst: str | None) -> float | None:
    """Of equal clients, each with its own number of test rows."""
    if worst is None or not worst.endswith("/accuracy"):
        return None
    pooled = worst.replace("/worst-10%/", "/rows/")
    known = [(run.last[pooled], list(run.own_rows.values()), run.seed) for run in runs if pooled in run.last]
    values = [worst_tenth_by_chance(accuracy, rows, seed) for accuracy, rows, seed in known if 0 <= accuracy <= 1]
    told = [value for value in values if value is not None]
    return _mean(told) if told else None


def gains(runs: Mapping[Key, Sequence[RunFacts]]) -> dict[Key, Gain]:
    """Over the reference `local`, of every other candidate and `central`, where both were run on the same rows."""
    found: dict[Key, Gain] = {}
    for (condition, name), mine in runs.items():
        alone = {run.seed: run for run in runs.get((condition, reference_name("local")), ())}
        both = [(run, alone[run.seed]) for run in mine if run.seed in alone and run.status == "done"]
        each = {run.seed: gained for run, local in both if (gained := _gained(run, local))}
        if each and name not in (reference_name("local"), reference_name("constant")):
            found[condition, name] = _gain(_judged_by(both[0][0]), each)
    return found


def _gained(run: RunFacts, local: RunFacts) -> dict[int, float]:
    """Client -> gain, of the clients that both runs have measured; `central` has the same rows ordered otherwise."""
    if run.federation != local.federation and run.candidate != reference_name("central"):
        return {}
    sign = -1.0 if _judged_by(run) in run.lower else 1.0
    both = sorted(run.own_figures.keys() & local.own_figures.keys())
    return {client: sign * (run.own_figures[client] - local.own_figures[client]) for client in both}


def _judged_by(run: RunFacts) -> str:
    """The task's first metric, of which clients' own figures are."""
    return (run.headline or "").split("/", 3)[-1]


def _gain(metric: str, each: Mapping[int, Mapping[int, float]]) -> Gain:
    values = [np.array(list(clients.values())) for clients in each.values()]
    worst = [worst_tenth([{"": gain} for gain in gains], np.ones(len(gains)), 1, ()) for gains in values]
    tenths = {seed: found[""] for seed, found in zip(each, worst, strict=True) if found}
    means = [float(gains.mean()) for gains in values]
    return Gain(
        metric=metric,
        each=each,
        mean=_mean(means),
        interval=statistics.interval(means),
        share_gained=_mean(float((gains > 0).mean()) for gains in values),
        worst_tenth=_mean(tenths.values()) if tenths else None,
        too_few=tuple(seed for seed in each if seed not in tenths) if tenths else (),
    )


def _mean(values: Iterable[float]) -> float:
    """Of what is finite; nan of nothing."""
    finite = [float(value) for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
