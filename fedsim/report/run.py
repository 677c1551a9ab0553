"""A run's report: `report.html` in its folder, or the page while it goes on."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsim.overview import Overview, Values, figure, moment, rounds_of
from fedsim.privacy.accountant import rounded_up
from fedsim.report import clients, curves
from fedsim.report.chronicle import Chronicle, chronicle
from fedsim.report.page import (
    Cell,
    Section,
    Table,
    amount,
    figures,
    folded,
    lasting,
    page,
    paragraph,
    preformatted,
    table,
    text,
    write,
)
from fedsim.report.picture import Picture, html
from fedsim.stored import DEPLOYMENT

_PACKAGES = ("fedsim", "torch", "numpy", "flwr", "ray", "opacus")
"""Named beside the rest."""
TYPICAL_BYTES = 2_100_000
"""Of a report: plotly.js is 1.9 MB of it, and what is shown of many clients and rounds is limited."""


def report(folder: Path, out: Path | None = None, *, reload_seconds: float | None = None) -> Chronicle:
    """Write a run's report; what it tells.

    Args:
        folder: of the run, which may go on.
        out: the file, `report.html` in the folder if not given.
        reload_seconds: after which the page reads its file again, as long as the run goes on.

    Raises:
        RunFolderError: not a run folder, or the file cannot be written.
    """
    told = chronicle(folder)
    write(out or folder / "report.html", run_page(told, reload_seconds=reload_seconds if told.going_on else None))
    return told


def run_page(told: Chronicle, *, reload_seconds: float | None = None) -> str:
    """The page, as HTML."""
    sections = [
        Section("Result", _result(told)),
        Section("Learning", html(_learning(told)) + _metrics(told)),
        Section("Runs beside it", _beside(told)),
        Section("Clients", _clients(told)),
        Section("Data", _data(told)),
        Section("Updates", html(_updates(told))),
        Section("Cost", _cost(told)),
        Section("Privacy", _privacy(told)),
        Section("Failures", _failures(told)),
        Section("Scenario", preformatted(told.scenario_text, "scenario.toml") if told.scenario_text else ""),
        Section("Environment", _environment(told.environment)),
        Section("Repeat it", _repeat(told)),
    ]
    return page(told.overview.title, sections, lead=_lead(told), reload_seconds=reload_seconds)


def _lead(told: Chronicle) -> str:
    run = told.overview
    facts = [run.status, f"{rounds_of(run)} rounds", lasting(run.seconds), f"started {moment(run.started)}", run.folder]
    lines = [paragraph(" · ".join(facts))]
    if run.reason:
        lines.append(paragraph(f"Ended early: {run.reason}"))
    lines += [paragraph(f"#{tag['name']}" + (f": {tag['note']}" if tag["note"] else "")) for tag in run.tags]
    if run.epsilon is not None:
        lines.append(
            '<p class="note">For the curator alone: this page shows losses, counts and single clients, which '
            "epsilon does not cover. What it covers, and may be given away, is written by "
            "<code>fedsim export --public</code>.</p>"
        )
    return "".join(lines)


def _result(told: Chronicle) -> str:
    run, found = told.overview, []
    if run.metric is not None:
        rows = "validation" if "-validation/" in run.metric else "test"  # of a Flower app the figure that it gives
        found.append((f"{rows} {told.judged}", figure(run.value), _of_round(told)))
    elif run.chosen_by is not None and run.best_value is not None:
        found.append(
            (
                f"validation {told.judged}",
                figure(run.best_value),
                f"{run.chosen_by}, round {run.best_round}, the best so far",
            )
        )
    tests = told.summary.get("metrics_last_round" if (run.metric or "").startswith("personal/") else "metrics") or {}
    model = (run.metric or "global/").partition("/")[0]
    worst = f"{model}/client-test/worst-10%/{told.judged}"
    if tests.get(worst) is not None:
        chance = told.summary.get("worst_tenth_by_chance")
        also = f"; {figure(chance)} by chance, were all clients equal" if chance is not None else ""
        about = f"{worst}, {told.summary.get('clients_counted')} clients{also}"
        found.append((f"worst 10 % of clients, {told.judged}", figure(tests[worst]), about))
    if run.personal is not None and not (run.metric or "").startswith("personal/"):
        found.append((f"clients' own models, {told.judged}", figure(run.personal), "mean over clients, last round"))
    if run.epsilon is not None:
        found.append(
            ("epsilon", rounded_up(run.epsilon), f"at delta {run.delta:g}, of the largest client" if run.delta else "")
        )
    found.append(("time", lasting(run.seconds), f"{lasting(run.seconds / run.rounds)} a round" if run.rounds else ""))
    if told.going_on and run.planned and 0 < run.rounds < run.planned:
        found.append(
            ("left", lasting(run.seconds / run.rounds * (run.planned - run.rounds)), "about, at the same pace")
        )
    moved = sum((row["down"] or 0) + (row["up"] or 0) for row in told.rounds)
    if moved:
        found.append(("bytes", amount(moved), "both ways, for training"))
    attack = told.summary.get("adversary")
    notes = (
        [
            paragraph(
                f"{len(attack['clients'])} clients attack: {attack['name']}. Figures over clients are of honest ones."
            )
        ]
        if attack
        else []
    )
    if run.fingerprint:
        notes.append(f"<p>Fingerprint of the last model: <code>{text(run.fingerprint)}</code></p>")
    return figures(found) + "".join(notes)


def _of_round(told: Chronicle) -> str:
    run = told.overview
    if (run.metric or "").startswith("personal/") or run.best_round is None:
        return f"{run.metric}, after the last round"
    how = "chosen on validation" if run.chosen_by else "the last; nothing chose"
    return f"{run.metric}, round {run.best_round}, {how}"


def _metrics(told: Chronicle) -> str:
    """Every figure that the run measured, for who looks for one."""
    best, last = (told.summary.get(key) or {} for key in ("metrics", "metrics_last_round"))
    rows: list[Sequence[Cell]] = []
    for name in sorted({*told.metrics, *best, *last}):
        series = [value for value in told.metrics.get(name, {}).values() if math.isfinite(value)]
        first, end = (series[0], series[-1]) if series else (None, None)
        rows.append([name, first, end, best.get(name), last.get(name)])
    columns = ["metric", "first validation", "last validation", "test, best round", "test, last round"]
    caption = "Every metric, by its full name: model/data/weighting/metric"
    return folded(f"all {len(rows)} metrics", table(Table(columns, rows), caption)) if rows else ""


def pictures(told: Chronicle) -> list[Picture]:
    """All that the page shows, in its order."""
    kinds = (_learning, _gains, _of_clients, _of_data, _updates, curves.cost, curves.epsilon, curves.failures)
    return [picture for kind in kinds for picture in kind(told)]


def _learning(told: Chronicle) -> list[Picture]:
    return [*curves.learning(told), *curves.loss(told)]


def _gains(told: Chronicle) -> list[Picture]:
    local = next((run for run in told.beside if run.title == "references/local"), None)
    return clients.gains(str(told.judged), told.tests, local.own, lower=told.lower) if local is not None else []


def _of_clients(told: Chronicle) -> list[Picture]:
    return [*clients.over_clients(told.own), *clients.by_client(told.own)] if told.own is not None else []


def _of_data(told: Chronicle) -> list[Picture]:
    return clients.partition(told.partition) if told.partition is not None else []


def _updates(told: Chronicle) -> list[Picture]:
    return clients.similarity(told.sketches, told.own) if told.sketches is not None else []


def _beside(told: Chronicle) -> str:
    if not told.beside:
        return ""
    rows = [_line("this run", told.overview), *(_line(run.title, run.overview) for run in told.beside)]
    changed = (told.scenario.get("privacy") or {}).get("without") or {}
    also = (
        f" Without privacy, also {', '.join(f'{key} = {value}' for key, value in changed.items())}." if changed else ""
    )
    columns = ["run", "status", "rounds", "test metric", "value", "epsilon", "seconds"]
    return (
        paragraph(f"Made on the same data, from the same seed.{also}")
        + table(Table(columns, rows), "The run and those made beside it")
        + html(_gains(told))
    )


def _line(name: str, run: Overview) -> Sequence[Cell]:
    spent = rounded_up(run.epsilon) if run.epsilon is not None else "none promised"
    return [name, run.status, rounds_of(run), run.metric or "not measured", run.value, spent, run.seconds]


def _clients(told: Chronicle) -> str:
    if told.own is None:
        return paragraph("No figures of single clients are recorded: see evaluate.clients_every and records.clients.")
    shown = told.shown
    parts = [html(_of_clients(told))]
    if shown.recorded != "all":
        parts.insert(0, paragraph(f"Only some clients are recorded: records.clients = {shown.recorded!r}."))
    if shown.slowest:
        rows: list[Sequence[Cell]] = [
            [row["client"], row["seconds"], row["rounds"], round(row["rows"])] for row in shown.slowest
        ]
        parts.append(table(Table(["client", "seconds a round", "rounds", "rows"], rows), "Slowest clients"))
    if shown.largest:
        rows = [[row["client"], row["norm"], row["round"]] for row in shown.largest]
        parts.append(table(Table(["client", "norm", "round"], rows), "Largest updates (Euclidean norm)"))
    parts.append(
        f"<p>One client, with rows and history: <code>fedsim client {text(_named(told.folder))} NUMBER</code></p>"
    )
    return "".join(parts)


def _data(told: Chronicle) -> str:
    if told.partition is None:
        return paragraph("This run keeps no record of its partition; `fedsim partition` draws it from the data.")
    kept = told.partition
    central = ", ".join(f"{rows} central {part}" for part, rows in kept["central"].items())
    facts = (
        f"{kept['corpus']}: {kept['clients']} clients with {kept['rows']:,} rows"
        f"{f'; {central} rows' if central else ''}."
    )
    return paragraph(facts) + html(clients.partition(kept))


def _cost(told: Chronicle) -> str:
    if not told.rounds:
        return ""
    seconds = sorted(row["seconds"] for row in told.rounds)
    down, up = (sum(row[way] or 0 for row in told.rounds) for way in ("down", "up"))
    trained = sum(row["cohort"] for row in told.rounds)
    facts = [
        (
            "time of all rounds",
            lasting(sum(seconds)),
            f"median {lasting(seconds[len(seconds) // 2])}, longest {lasting(seconds[-1])}",
        ),
        ("clients asked to train", f"{trained:,}", f"{trained / len(seconds):.3g} a round"),
        ("bytes to clients", amount(down), f"{amount(down / len(seconds))} a round"),
        ("bytes from clients", amount(up), f"{amount(up / len(seconds))} a round"),
    ]
    return figures(facts) + f'<div class="pair">{html(curves.cost(told))}</div>'


def _privacy(told: Chronicle) -> str:
    private = told.summary.get("privacy")
    if private is None and told.overview.epsilon is None:
        return paragraph(
            "This run promises nothing: it has no epsilon, and whoever sees its models may learn of single rows."
        )
    said = "What the figure covers is said here when the run has ended; `fedsim privacy` says it of the scenario now."
    lines = _unwrapped(private["statement"]) if private is not None and private.get("statement") else [said]
    return html(curves.epsilon(told)) + "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def _unwrapped(lines: Sequence[str]) -> list[str]:
    """Lines of at most 80 columns as whole ones: what goes on is indented."""
    whole: list[str] = []
    for line in lines:
        if line.startswith("  ") and whole:
            whole[-1] += f" {line.strip()}"
        else:
            whole.append(line)
    return whole


def _failures(told: Chronicle) -> str:
    shown = told.shown
    parts = [html(curves.failures(told))]
    if shown.failures:
        rows: list[Sequence[Cell]] = [
            [cause.cause, cause.count, _some(cause.rounds), _some(cause.clients)] for cause in shown.failures
        ]
        parts.append(
            table(Table(["cause", "times", "rounds", "clients"], rows), "Failures of clients by cause; N is a number")
        )
    else:
        parts.append(paragraph("No client failed."))
    if shown.events:
        rows = [[event["round"], event["kind"], event["message"]] for event in shown.events]
        parts.append(table(Table(["after round", "what", "message"], rows), "What else happened to the run"))
    return "".join(parts)


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


def _environment(made: Values) -> str:
    if not made:
        return ""
    packages: Mapping[str, str] = made.get("packages") or {}
    keys = {
        "Python": made.get("python"),
        "platform": made.get("platform"),
        "processor": made.get("processor"),
        "vector instructions": made.get("cpu_capability"),
        "GPUs": ", ".join(made.get("gpus") or []) or "none",
        "model": made.get("model"),
        "data": made.get("data"),
        "SHA-256 of the data": made.get("data_sha256"),
        **{name: packages.get(name) for name in _PACKAGES},
    }
    rows: list[Sequence[Cell]] = [[name, str(value)] for name, value in keys.items() if value]
    every = preformatted("\n".join(f"{name}=={version}" for name, version in packages.items()), "packages")
    return table(Table(["what", "is"], rows), "What the run was made with") + folded(
        f"all {len(packages)} packages", every
    )


def _repeat(told: Chronicle) -> str:
    named, made = _named(told.folder), told.environment
    if "app" in told.summary:
        return _repeat_app(told.summary)
    if DEPLOYMENT in made:
        resume = preformatted(f"fedsim resume {named}", "commands") if told.overview.status == "interrupted" else ""
        return resume + paragraph("It was deployed: nodes keep their rows, so nothing of it can be done again here.")
    own = sorted(made.get("sources") or {})
    words = []
    for part in ("model", "data"):
        if made.get(part) not in (None, (told.scenario.get(part) or {}).get("name")):
            words.append(f"Its {part} came from Python, as {made[part]}: repeat the run from there.")
    if own:
        words.append(
            f"Its own files are kept in sources/ ({', '.join(own)}); the scenario finds them where it named them."
        )
    commands = [
        f"fedsim run {named}/scenario.toml --out again",
        f"fedsim replay {named} --round {max(1, told.overview.rounds)} --client 0    # one client's work again",
        *([f"fedsim resume {named}"] if told.overview.status == "interrupted" else []),
    ]
    words.append(
        "With the versions and the kind of processor above the fingerprint is the same, with any number of workers: "
        "the same model to the bit."
    )
    return preformatted("\n".join(commands), "commands") + "".join(map(paragraph, words))


def _repeat_app(summary: Values) -> str:
    """The command that runs a Flower app as it was run."""
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in summary["run_config"].items())
    settings = f" --run-config {shlex.quote(config)}" if config else ""
    app = f"{_named(Path(summary['app']))} --nodes {summary['nodes']} --seed {summary['seed']}"
    words = "With the app's files, versions and the kind of processor as they were the fingerprint is the same."
    return preformatted(f"fedsim flower {app}{settings}", "commands") + paragraph(words)


def _named(folder: Path) -> str:
    return shlex.quote(str(folder))
