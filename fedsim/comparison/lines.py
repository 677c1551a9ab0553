"""Findings for people, in lines of at most 80 columns, and for programs, as plain values."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from fedsim.comparison import trials
from fedsim.comparison.findings import Findings, Key
from fedsim.comparison.plan import reference_name
from fedsim.comparison.standings import worst_gain_told, worst_told
from fedsim.comparison.statistics import Interval, Paired
from fedsim.overview import figure
from fedsim.privacy.accountant import rounded_up
from fedsim.progress import wrapped

_NAME = 19  # columns; longer names have a line of their own


def findings_lines(found: Findings) -> list[str]:
    """For people: what can be concluded first, then the figures it rests on."""
    lines = [*wrapped(found.title), *wrapped(_measured(found))]
    for text in found.sentences:
        lines += ["", *wrapped(text)]
    for condition in found.conditions:
        parts = [_scores(found, condition), _costs(found, condition), _targets(found, condition)]
        parts += [_gains(found, condition), _left_out(found, condition)]
        told = [part for part in map(list, parts) if part]
        for number, part in enumerate(told):
            lines += ["", *(wrapped(condition) if condition and not number else []), *part]
    if found.differing:
        lines += ["", "what differs between runs, with how many have it"]
        lines += [line for text in found.differing for line in wrapped(text, 2)]
    lines += ["", *trials.lines(found.tuning)] if found.tuning is not None else []
    notes = [line for text in found.notes for line in wrapped(f"note: {text}")]
    return [*lines, *([""] if notes else []), *notes]


def as_values(found: Findings) -> dict[str, Any]:
    """For programs: `findings.json`; numbers that are not finite become null when it is written."""
    return {
        "title": found.title,
        "metric": found.metric,
        "lower_is_better": found.lower,
        "seeds": list(found.seeds),
        "conditions": list(found.conditions),
        "reference": found.reference,
        "conclusions": list(found.sentences),
        "notes": list(found.notes),
        "differing": list(found.differing),
        "candidates": [_standing_values(found, key) for key in found.standings],
        "target": found.target._asdict() if found.target is not None else None,
        "left_out": [
            {"condition": condition, "client": client, "loses_without": interval._asdict()}
            for (condition, client), interval in found.left_out.items()
        ],
        "tuning": found.tuning,
        "runs": [
            {
                "condition": run.condition,
                "candidate": run.candidate,
                "seed": run.seed,
                "folder": str(run.folder),
                "status": run.status,
                "reason": run.reason,
                "fingerprint": run.fingerprint,
            }
            for run in found.runs
        ],
    }


def _standing_values(found: Findings, key: Key) -> dict[str, Any]:
    """A candidate, or a reference strategy, in a condition."""
    condition, candidate = key
    standing, pair, gain = found.standings[key], found.family.get(key), found.gains.get(key)
    spent = {unit: each[key] for unit, each in found.horizon.items() if key in each}
    return {
        "condition": condition,
        "candidate": candidate,
        "scores": {str(seed): score for seed, score in standing.scores.items()},
        "mean": standing.mean,
        "sd": standing.sd,
        "metrics": dict(standing.metrics),
        "worst_tenth": standing.worst,
        "worst_tenth_by_chance": standing.by_chance,
        "clients_counted": standing.clients,
        "epsilon": standing.epsilon,
        "delta": standing.delta,
        "rounds": standing.rounds,
        "seconds": standing.seconds,
        "bytes": standing.bytes,
        "ended": {str(seed): reason for seed, reason in standing.ended.items()},
        "difference": pair._asdict() if pair is not None else None,
        "paired_seeds": list(found.pairs.get(key, ())),
        "other_metrics": {name: each._asdict() for name, each in found.intervals.get(key, {}).items()},
        "over_test_rows": found.resampled[key]._asdict() if key in found.resampled else None,
        "to_target": {
            unit: {
                "horizon": each.horizon,
                "reached": each.reached,
                "runs": each.runs,
                "restricted_mean": each.spent._asdict(),
                "difference": each.difference._asdict() if each.difference is not None else None,
            }
            for unit, each in spent.items()
        },
        "gain_over_local": {
            "metric": gain.metric,
            "mean": gain.mean,
            "interval": gain.interval._asdict(),
            "share_gained": gain.share_gained,
            "worst_tenth": gain.worst_tenth,
            "seeds_without_worst_tenth": list(gain.too_few),
        }
        if gain is not None
        else None,
    }


def _measured(found: Findings) -> str:
    seeds = _seeds(found.seeds)
    if not found.metric:
        return f"{seeds}; no run has finished yet"
    better = "lower" if found.lower else "higher"
    return f"{found.metric} after the last round ({better} is better), {seeds}; intervals are over seeds, this test set"


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' if len(seeds) != 1 else ''} {', '.join(map(str, seeds))}"


def _named(name: str, cells: str) -> list[str]:
    fits = len(name) < _NAME + cells.startswith(" ")
    return [f"{name:<{_NAME}}{cells}"] if fits else [*wrapped(name), f"{'':<{_NAME}}{cells}"]


def _keys(found: Findings, condition: str) -> list[Key]:
    return [key for key in found.standings if key[0] == condition]


def _scores(found: Findings, condition: str) -> Iterator[str]:
    """Means, differences with the reference and verdicts."""
    if not found.metric:
        return
    yield f"{'':<{_NAME}}{'mean':>9}{'differs':>10}{'simultaneous 95 %':>21}  verdict"
    elsewhere: dict[str, str] = {}
    for key in _keys(found, condition):
        standing, pair = found.standings[key], found.family.get(key)
        value = standing.mean
        if math.isnan(value) and (other := _own_metric(found, key)) is not None:
            elsewhere[key[1]], value = other, standing.metrics[other]
        mean = "-" if math.isnan(value) else figure(value)
        verdict = "compared with" if key[1] == found.reference else ""
        cells = f"{mean:>9}"
        if pair is not None:
            cells += f"{_signed(pair.mean):>10}{_ends(pair):>21}  {pair.verdict}"
        elif verdict:
            cells += f"{'':>31}  {verdict}"
        yield from _named(key[1], cells)
    for name, metric in elsewhere.items():
        yield from wrapped(f"{name}: {metric}", 2)
    for key in _keys(found, condition):
        if key in found.resampled:
            yield from wrapped(f"{key[1]}: on other test rows, with these models, {_ends(found.resampled[key])}", 2)


def _own_metric(found: Findings, key: Key) -> str | None:
    """What judges a reference that has no global model."""
    headlines = (run.headline for run in found.of(*key) if run.status == "done" and run.headline)
    return next((name for name in headlines if name in found.standings[key].metrics), None)


def _costs(found: Findings, condition: str) -> Iterator[str]:
    keys = [key for key in _keys(found, condition) if found.of(*key)]
    if not keys:
        return
    heads = f"{'worst 10%':>11}{'by chance':>11}{'epsilon':>8}{'rounds':>7}{'MB':>9}{'seconds':>8}{'done':>7}"
    yield f"{'':<{_NAME}}{heads}"
    for key in keys:
        standing = found.standings[key]
        done = sum(run.status == "done" for run in found.of(*key))
        worst, chance = (figure(value) for value in (standing.worst, standing.by_chance))
        epsilon = rounded_up(standing.epsilon) if standing.epsilon is not None else "-"
        cells = f"{worst:>11}{chance:>11}{epsilon:>8}{_plain(standing.rounds):>7}{_plain(standing.bytes / 1e6):>9}"
        yield from _named(key[1], f"{cells}{_plain(standing.seconds):>8}{f'{done}/{len(found.seeds)}':>7}")
    yield from wrapped(worst_told([found.standings[key] for key in keys]), 2)


def _targets(found: Findings, condition: str) -> Iterator[str]:
    """Restricted means up to the horizons, and the share that got there."""
    target = found.target
    if target is None or not found.horizon:
        return
    value = f"at least {target.at_least:g}" if target.at_least is not None else f"at most {target.at_most:g}"
    yield from wrapped(f"until the mean of 3 evaluations of {target.metric} is {value}")
    units = list(found.horizon)
    yield f"{'':<{_NAME}}{'reached':>10}" + "".join(f"{_UNITS[unit][0]:>11}" for unit in units)
    for key in _keys(found, condition):
        spent = {unit: found.horizon[unit][key] for unit in units if key in found.horizon[unit]}
        if spent:
            first = next(iter(spent.values()))
            means = "".join(f"{_plain(each.spent.mean / _UNITS[unit][1]):>11}" for unit, each in spent.items())
            yield from _named(key[1], f"{f'{first.reached}/{first.runs}':>10}{means}")
    ends = [next(each.horizon for key, each in found.horizon[unit].items() if key[0] == condition) for unit in units]
    told = ", ".join(
        f"{_plain(end / _UNITS[unit][1])} {_UNITS[unit][0]}" for unit, end in zip(units, ends, strict=True)
    )
    yield from wrapped(f"who is not there by {told} counts as that", 2)
    for key in _keys(found, condition):
        paired = [f"{_UNITS[unit][0]} {_apart(each, _UNITS[unit][1])}" for unit, each in _differing(found, key)]
        if paired:
            yield from wrapped(f"{key[1]}, less {found.reference}: {', '.join(paired)}", 2)


def _differing(found: Findings, key: tuple[str, str]) -> Iterator[tuple[str, Interval]]:
    """What a candidate spent more than the reference, by unit; nothing of the reference itself."""
    for unit, spent in found.horizon.items():
        if key in spent and (difference := spent[key].difference) is not None and difference.n:
            yield unit, difference


def _apart(difference: Interval, scale: float) -> str:
    """A paired difference with its interval over seeds."""
    mean, low, high = (value / scale for value in (difference.mean, difference.low, difference.high))
    return f"{mean:+.3g} ({low:+.3g} to {high:+.3g})" if math.isfinite(low) else f"{mean:+.3g}"


_UNITS = {"rounds": ("rounds", 1.0), "bytes": ("MB", 1e6), "seconds": ("seconds", 1.0)}


def _gains(found: Findings, condition: str) -> Iterator[str]:
    gains = {name: gain for (where, name), gain in found.gains.items() if where == condition}
    if not gains:
        return
    metric = next(iter(gains.values())).metric
    yield from wrapped(f"gain of each client over {reference_name('local')}, in {metric} on its own test rows")
    yield f"{'':<{_NAME}}{'mean':>9}{'over seeds, 95 %':>22}{'gained':>10}{'worst 10%':>12}"
    for name, gain in gains.items():
        worst = _signed(gain.worst_tenth) if gain.worst_tenth is not None else "-"
        cells = f"{_signed(gain.mean):>9}{_ends(gain.interval):>22}{100 * gain.share_gained:>8.0f} %{worst:>12}"
        yield from _named(name, cells)
    yield from wrapped(worst_gain_told(gains.values()), 2)


def _left_out(found: Findings, condition: str) -> Iterator[str]:
    left = {client: interval for (where, client), interval in found.left_out.items() if where == condition}
    if not left:
        return
    yield from wrapped(f"what {found.reference} loses when a client has never come")
    yield f"{'client':<{_NAME}}{'mean':>9}{'over seeds, 95 %':>22}"
    order = sorted(
        left, key=lambda client: (-left[client].mean if math.isfinite(left[client].mean) else math.inf, client)
    )
    for client in order:
        yield f"{client:<{_NAME}}{_signed(left[client].mean):>9}{_ends(left[client]):>22}"


def _ends(interval: Interval | Paired) -> str:
    if not math.isfinite(interval.low):
        return "-"
    return f"{_signed(interval.low)} to {_signed(interval.high)}"


def _signed(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    if 1e3 <= abs(value) < 1e6:
        return f"{value:+.0f}"
    return f"{value:+.4f}" if value == 0 or 1e-3 <= abs(value) < 1e3 else f"{value:+.2g}"


def _plain(value: float) -> str:
    """A cost, in three figures."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.3g}"
