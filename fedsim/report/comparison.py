"""A comparison's report: `compare.html`, what can be concluded first, then all that it rests on."""

import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from fedsim.comparison.candidates import joined
from fedsim.comparison.findings import Findings, Key
from fedsim.comparison.pairing import differing
from fedsim.comparison.standings import worst_gain_told, worst_told
from fedsim.comparison.statistics import FEWEST, FEWEST_FLIPS, Interval
from fedsim.privacy.accountant import rounded_up
from fedsim.report import contrasts, courses
from fedsim.report.candidates import better, names, score, short
from fedsim.report.page import (
    Cell,
    Section,
    Table,
    amount,
    folded,
    lasting,
    page,
    paragraph,
    preformatted,
    table,
    text,
    write,
)
from fedsim.report.picture import html

FILE = "compare.html"
_BESIDE = ("Learning", "Differences", "Clients", "Gain over training alone", "Without one client")
"""Sections whose pictures stand beside each other, one for each condition."""
_UNITS: Mapping[str, tuple[str, float]] = {"rounds": ("rounds", 1.0), "bytes": ("MB", 1e6), "seconds": ("seconds", 1.0)}


def report(found: Findings, out: Path) -> None:
    """Write a comparison's report.

    Args:
        found: of all its runs, or of those that are there.
        out: the file; links to runs are relative to its folder.

    Raises:
        RunFolderError: it cannot be written.
    """
    write(out, comparison_page(found, out.parent))


def comparison_page(found: Findings, place: Path) -> str:
    """The page, as HTML; `place` is the folder in which it will lie."""
    parts: list[tuple[str, Callable[[Findings, str], str]]] = [
        ("Result", _result),
        ("Learning", lambda found, where: html(courses.learning(found, where))),
        ("Differences", _differences),
        ("Cost", _cost),
        ("Target", _target),
        ("Clients", _clients),
        ("Gain over training alone", _gains),
        ("Without one client", lambda found, where: html(contrasts.left_out(found, where))),
        ("Tuning", _tuning),
        ("Other metrics", _others),
    ]
    sections = [Section(heading, _by_condition(found, part, heading in _BESIDE)) for heading, part in parts]
    sections += [
        Section("Runs", _runs(found, place)),
        Section("What differs", _differing(found)),
        Section("How it was judged", _judged(found)),
        Section("Repeat it", _repeat(found)),
    ]
    return page(found.title, sections, lead=_lead(found))


def _by_condition(found: Findings, part: Callable[[Findings, str], str], beside: bool) -> str:
    """A part for each condition, under its name where there are several, beside each other where there is room."""
    told = {condition: part(found, condition) for condition in found.conditions}
    if len(told) == 1:
        return "".join(told.values())
    parts = "".join(f"<div><h3>{text(condition)}</h3>{body}</div>" for condition, body in told.items() if body)
    return f'<div class="pair">{parts}</div>' if beside and parts else parts


def _lead(found: Findings) -> str:
    done = sum(run.status == "done" for run in found.runs)
    facts = [
        f"{len(found.candidates)} candidates",
        *([f"{len(found.conditions)} conditions"] if len(found.conditions) > 1 else []),
        f"seeds {', '.join(map(str, found.seeds))}",
        f"{done} of {len(found.runs)} runs finished",
        *([str(found.folder)] if found.folder is not None else []),
    ]
    concluded = "".join(map(paragraph, found.sentences))
    return paragraph(" · ".join(facts)) + (f'<div class="note">{concluded}</div>' if concluded else "")


def _result(found: Findings, condition: str) -> str:
    keys = [(condition, name) for name in names(found, condition)]
    if not keys:
        return paragraph("No run has finished yet.")
    columns = ["candidate", "mean", "sd", "difference", "low", "high", "verdict", "worst 10 %", "by chance", "epsilon"]
    columns.append("finished")
    caption = (
        f"{found.metric} after the last round ({better(found)}), over seeds; differences from {found.reference}, whose "
        "intervals hold together at 95 %"
    )
    elsewhere = {key[1]: metric for key in keys if (metric := score(found, key)[0]) != found.metric}
    notes = [f"{name} shares no model, so its figure is {metric}." for name, metric in elsewhere.items()]
    if told := worst_told([found.standings[key] for key in keys]):
        notes.append(f"{told[:1].upper()}{told[1:]}.")
    private = [standing for key in keys if (standing := found.standings[key]).epsilon is not None]
    if private:
        notes.append(
            f"Epsilon is that of the client that spent most, at delta {private[0].delta:g}, the largest over seeds."
        )
    return table(Table(columns, [_row(found, key) for key in keys]), caption) + "".join(map(paragraph, notes))


def _row(found: Findings, key: Key) -> Sequence[Cell]:
    standing, pair = found.standings[key], found.family.get(key)
    compared: Sequence[Cell] = [None, None, None, "compared with" if key[1] == found.reference else ""]
    if pair is not None:
        compared = [pair.mean, pair.low, pair.high, pair.verdict]
    epsilon = rounded_up(standing.epsilon) if standing.epsilon is not None else "–"
    done = sum(run.status == "done" for run in found.of(*key))
    metric, mean = score(found, key)
    spread = standing.sd if metric == found.metric else None
    return [key[1], mean, spread, *compared, standing.worst, standing.by_chance, epsilon, f"{done}/{len(found.seeds)}"]


def _differences(found: Findings, condition: str) -> str:
    mine = {name: found.family[condition, name] for name in found.candidates if (condition, name) in found.family}
    told = [f"{name}: {pair.why}." for name, pair in mine.items() if pair.why]
    rows: list[Sequence[Cell]] = [
        [name, each.mean, each.low, each.high, each.n]
        for name in mine
        if (each := found.resampled.get((condition, name))) is not None
    ]
    columns = ["candidate", "difference", "low", "high", "seeds"]
    beside = (
        table(
            Table(columns, rows),
            "The same models on other test rows: a paired bootstrap; intervals hold together at 95 %",
        )
        if rows
        else ""
    )
    return html(contrasts.differences(found, condition)) + "".join(map(paragraph, told)) + beside


def _cost(found: Findings, condition: str) -> str:
    rows: list[Sequence[Cell]] = [
        [name, _plain(each.rounds), lasting(each.seconds) if math.isfinite(each.seconds) else "–", _amount(each.bytes)]
        for name in names(found, condition)
        if (each := found.standings[condition, name])
    ]
    shown = table(
        Table(["candidate", "rounds", "time", "bytes"], rows),
        "What a run took, mean over seeds; bytes both ways, for training",
    )
    kinds = (contrasts.against_bytes, courses.learning_by_bytes, contrasts.against_epsilon)
    return (shown if rows else "") + "".join(html(kind(found, condition)) for kind in kinds)


def _target(found: Findings, condition: str) -> str:
    target = found.target
    units = {unit: each for unit, each in found.horizon.items() if any(key[0] == condition for key in each)}
    if target is None or not units:
        return ""
    value = f"at least {target.at_least:g}" if target.at_least is not None else f"at most {target.at_most:g}"
    told, tables = [f"Reached when the mean of three evaluations of {target.metric} is {value}."], []
    for unit, each in units.items():
        called, size = _UNITS[unit]
        spent = {name: each[condition, name] for name in names(found, condition) if (condition, name) in each}
        rows: list[Sequence[Cell]] = [
            [name, f"{one.reached}/{one.runs}", *_ends(one.spent, size), *_ends(one.difference, size)]
            for name, one in spent.items()
        ]
        end = next(iter(spent.values())).horizon / size
        columns = ["candidate", "reached", "mean", "low", "high", "difference", "low", "high"]
        caption = (
            f"{called} to the target; who is not there by {end:.4g} counts as that; intervals over seeds, each at 95 %"
        )
        tables.append(table(Table(columns, rows), caption))
    return "".join(map(paragraph, told)) + "".join(tables)


def _ends(interval: Interval | None, size: float) -> Sequence[Cell]:
    if interval is None:
        return [None, None, None]
    return [_plain(end / size) for end in (interval.mean, interval.low, interval.high)]


def _clients(found: Findings, condition: str) -> str:
    return html(contrasts.worst(found, condition)) + html(contrasts.over_clients(found, condition))


def _gains(found: Findings, condition: str) -> str:
    gains = {name: found.gains[condition, name] for name in names(found, condition) if (condition, name) in found.gains}
    rows: list[Sequence[Cell]] = [
        [name, gain.mean, gain.interval.low, gain.interval.high, f"{100 * gain.share_gained:.0f} %", gain.worst_tenth]
        for name, gain in gains.items()
    ]
    if not rows:
        return ""
    columns = ["candidate", "mean", "low", "high", "clients that gain", "worst 10 %"]
    caption = "Mean gain of a client over training alone, with its interval over seeds at 95 %"
    few = paragraph(f"{told[:1].upper()}{told[1:]}.") if (told := worst_gain_told(gains.values())) else ""
    return html(contrasts.gains(found, condition)) + table(Table(columns, rows), caption) + few


def _tuning(found: Findings, condition: str) -> str:
    shown = courses.tuned(found, condition)
    if not shown or found.tuning is None:
        return ""
    rows: list[Sequence[Cell]] = [
        [
            each.candidate,
            len(each.trials),
            each.trials[0].score,
            each.trials[each.best].score,
            ", ".join(f"{key} = {_short(value)}" for key, value in each.settled.items()) or "its own settings",
            ", ".join(f"{key}: {edge} end" for key, edge in each.edges.items()),
        ]
        for each in shown
    ]
    columns = ["candidate", "trials", "untuned", "tuned", "settled", "at the edge of its range"]
    seeds = ", ".join(map(str, found.tuning["seeds"]))
    caption = f"{shown[0].metric} untuned and tuned, on seed {seeds}, which the comparison does not use"
    notes = "".join(f"<li>{text(note)}</li>" for note in found.tuning.get("notes", ()))
    return (
        html(courses.tuning(found, condition))
        + table(Table(columns, rows), caption)
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _others(found: Findings, condition: str) -> str:
    """Differences in what nobody named beforehand, without verdicts."""
    rows: list[Sequence[Cell]] = [
        [metric, name, found.standings[condition, name].metrics.get(metric), each.mean, each.low, each.high]
        for name in found.candidates
        for metric, each in found.intervals.get((condition, name), {}).items()
        if each.n
    ]
    rows.sort(key=lambda row: str(row[0]))
    columns = ["metric", "candidate", "mean", "difference", "low", "high"]
    caption = f"Differences from {found.reference}, each at 95 % by itself, without a verdict"
    if not rows:
        return ""
    listed = folded(f"{len(rows)} differences in other test metrics", table(Table(columns, rows), caption))
    return paragraph("Nobody named these beforehand, so they have no verdict.") + listed


def _runs(found: Findings, place: Path) -> str:
    judged = {key: score(found, key)[0] for key in found.standings}
    rows: list[Sequence[Cell]] = [
        [
            joined(run.condition, run.candidate),
            run.seed,
            run.status if run.reason is None else f"{run.status}: {run.reason}",
            f"{len(run.rounds)}/{run.rounds_planned}",
            run.score(judged.get((run.condition, run.candidate), found.metric)),
            lasting(float(run.seconds[-1])) if len(run.seconds) else "–",
            run.fingerprint[:12],
        ]
        for run in found.runs
    ]
    links = [
        f'<li><a href="{text(quote(os.path.relpath(run.folder / "report.html", place)))}">'
        f"{text(joined(run.condition, run.candidate))}, seed {run.seed}</a></li>"
        for run in found.runs
        if (run.folder / "report.html").is_file()
    ]
    columns = ["run", "seed", "status", "rounds", short(found.metric), "time", "fingerprint"]
    listed = folded(f"reports of {len(links)} runs", f"<ul>{''.join(links)}</ul>") if links else ""
    others = dict.fromkeys(metric for metric in judged.values() if metric != found.metric)
    notes = [paragraph(f"Of runs that share no model: {metric}.") for metric in others]
    return table(Table(columns, rows), "Every run") + "".join(notes) + listed if rows else ""


def _differing(found: Findings) -> str:
    """Keys that tell candidates and conditions apart."""
    first = {(run.condition, run.candidate): run for run in reversed(found.runs) if run.candidate in found.candidates}
    keys = [key for key in found.standings if key in first]
    columns = differing([first[key] for key in keys])
    if not columns:
        return ""
    rows: list[Sequence[Cell]] = [
        [
            ", ".join(filter(None, key)),
            *("–" if values[place] is None else str(values[place]) for values in columns.values()),
        ]
        for place, key in enumerate(keys)
    ]
    return table(Table(["candidate", *columns], rows), "Settings that are not the same in all runs")


def _judged(found: Findings) -> str:
    comparisons = len(found.family)
    lines = [
        f"One metric was named for verdicts, and none chosen afterwards: {found.metric}, after the last round.",
        "Differences are taken within a seed, where candidate and reference have the same partition, initial model and "
        "cohorts; whether they do was read from the runs.",
        f"The family is all {comparisons} comparison{'s' if comparisons != 1 else ''} with {found.reference}: paired "
        "t-tests with Holm's correction leave a chance of at most 5 % of any false verdict among them. Intervals are "
        "Bonferroni's, so that all hold together.",
        f"Fewer than {FEWEST} seeds give no verdict. Where differences do not look normal, or a run failed, a verdict "
        f"needs {FEWEST_FLIPS} seeds and the exact sign-flip test.",
        "Intervals are over seeds, for this test set: they say what other draws of partition, initial model and "
        "batches would give, not other rows. What other rows would give is said by the bootstrap over test rows.",
        "Seconds depend on the machine and on what else it did.",
    ]
    notes = "".join(f"<li>{text(note)}</li>" for note in found.notes)
    known = f"<h3>To be known of these runs</h3><ul>{notes}</ul>" if notes else ""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>{known}"


def _repeat(found: Findings) -> str:
    if found.folder is None:
        runs = " ".join(shlex.quote(str(run.folder)) for run in found.runs if run.candidate in found.candidates)
        return preformatted(f"fedsim compare {runs}", "command")
    file = found.folder / "comparison.toml"
    command = f"fedsim compare {shlex.quote(str(file))} --out again"
    try:
        written = preformatted(file.read_text(encoding="utf-8"), "comparison.toml")
    except OSError:
        written = ""
    return preformatted(command, "command") + (folded("the comparison, resolved", written) if written else "")


def _plain(value: float) -> float:
    """A whole number as such, so that it is shown without a point."""
    return int(value) if math.isfinite(value) and value == round(value) else value


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _amount(count: float) -> str:
    return amount(count) if math.isfinite(count) else "–"
