"""What a run says of itself: the heading, the live figures, the closing block, and the model's card."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import seeds
from fedsim.cohorts import expected_size
from fedsim.errors import StoppedByPolicy
from fedsim.evaluation import ATTACK_SUCCESS, asked
from fedsim.job import Job
from fedsim.local import Work
from fedsim.metrics import EvaluatedModel, counted, worst_tenth_by_chance
from fedsim.origins import names, reference
from fedsim.parameters import Weights, fingerprint
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.noise import LOUD, noise_over_clip
from fedsim.privacy.statement import statement
from fedsim.privacy.statement import values as privacy_values
from fedsim.progress import short_path
from fedsim.records import ClientRow
from fedsim.stopping import Stop, Watch

Metrics = Mapping[str, float]
SHORT_NAMES = {"bits-per-character": "bits/char"}


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: the run's folder.
        weights: the last model.
        values: the summary, plain values by name, as in `run.db` and `--json`; under "without_privacy" and
            "references" those of the runs made beside it, which `run.db` leaves to their folders.
        lines: the closing block for people, at most 80 columns.
        own_figures: of every client that counts, the task's first metric on its test rows: of its own model where it
            has one, else of the global, after the last round.
    """

    folder: Path
    weights: Weights
    values: dict[str, Any]
    lines: list[str]
    own_figures: Mapping[int, float] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the last model."""
        return str(self.values["fingerprint"])


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        stop: why it ended early, or None.
        rounds: committed.
        seconds: of the whole run, without starting the workers.
        weights: the last model.
        last, best: test metrics of the last and of the best model.
        clients: the last model, and each client's own, on clients' test rows.
    """

    stop: Stop | None
    rounds: int
    seconds: float
    weights: Weights
    last: Metrics
    best: Metrics
    clients: Sequence[ClientRow] = ()


def notes(work: Work) -> tuple[str, ...]:
    """What the user should know before the run."""
    plan, job = work.job.privacy, work.job
    if plan is None:
        return ()
    values = work.layout.size if plan.level == "example" else work.contribution_size
    noise = noise_over_clip(plan, values, expected_size(job.rule, job.federation.clients))
    if (loudness := noise.ratio if noise.mean is None else noise.mean) <= LOUD:
        return plan.warnings
    text = (
        f"the noise's norm is {loudness:.3g} times the clip's, and above {LOUD:g} hardly anything is learned: take a "
        "smaller model or larger cohorts; fedsim privacy says what would change it"
    )
    return (*plan.warnings, text)


def heading(work: Work, engine: str) -> list[str]:
    """The facts after a run's title."""
    job, clients = work.job, work.federation.clients
    attack = work.adversary and f"{len(job.attackers)} of {clients} clients attack: {work.adversary.name}"
    return [
        f"{clients} clients" if job.apart is None else f"rows of {len(job.apart)} clients pooled",
        f"{job.model_title}, {work.layout.size:,} parameters",
        work.algorithm.name,
        work.algorithm.weighting,
        *([f"{work.width} clients at once"] if work.width > 1 else []),
        *([attack] if attack else []),
        engine,
        f"seed {job.scenario.seed}",
        *legend(work),
    ]


def live_figures(work: Work, metrics: Metrics) -> dict[str, float | None]:
    """The columns of a round's line: short names of validation metrics."""
    return {short: metrics.get(full) for short, full in _live(work).items()}


def legend(work: Work) -> list[str]:
    """Full names of the live columns; nothing where nothing is measured."""
    columns, name = _live(work), work.problem.headline
    if not columns:
        return []
    if work.algorithm.alone:
        return [f"live: personal/client-validation/clients/..., worst-10%/{name}"]
    text = f"live: global/{_validation_set(work)}/rows/..."
    facts = [f"{text}, client-validation/worst-10%/{name}" if "worst 10%" in columns else text]
    return [*facts, f"personal: {columns['personal']}"] if "personal" in columns else facts


def _live(work: Work) -> dict[str, str]:
    """Full names of the metrics in a round's line, by column."""
    name, place, own = work.problem.headline, _validation_set(work), "client-validation"
    short, on_clients = SHORT_NAMES.get(name, name), work.job.scenario.evaluate.clients_every > 0
    if work.algorithm.alone:
        model, means = "personal", {"loss": f"personal/{own}/clients/loss", short: f"personal/{own}/clients/{name}"}
        means = means if on_clients else {}
    else:
        model, means = "global", {"loss": f"global/{place}/rows/loss", short: f"global/{place}/rows/{name}"}
        means = means if on_clients or place == "central-validation" else {}
    worst = {"worst 10%": f"{model}/{own}/worst-10%/{name}"} if on_clients else {}
    beside = work.algorithm.personalised and not work.algorithm.alone and on_clients
    return {**means, **worst, **({"personal": f"personal/{own}/clients/{name}"} if beside else {})}


def _validation_set(work: Work) -> str:
    """The central validation set, or clients' own where there is none."""
    return "central-validation" if len(work.federation.central["validation"].x) else "client-validation"


def summarise(work: Work, folder: Path, watch: Watch, ledger: Ledger | None, ending: Ending) -> Result:
    """The summary of a run that has ended.

    Args:
        work: the job's.
        folder: of the run.
        watch: knows the best round.
        ledger: what was spent, if privacy was asked for.
        ending: of the run.
    """
    digest, measured = fingerprint(ending.weights), (ending.best, ending.last)
    values = outcome(watch, folder, ending.stop, ending.rounds, ending.seconds, measured, digest)
    full, value, _ = headline_figure(work, values)
    values["headline"] = judged(full, value, watch)
    values["initial"] = fingerprint(work.initial)
    values["clients_counted"] = len(_counted_rows(work)) if work.job.scenario.evaluate.clients_every else 0
    values["clients_asked"] = work.job.scenario.evaluate.clients
    values["worst_tenth_by_chance"] = _by_chance(work, values)
    if work.adversary is not None:
        values["adversary"] = {"name": work.adversary.name, "clients": list(work.job.attackers)}
    if ledger is not None:
        spent, plan = ledger.spent(), ledger.plan
        secret = work.job.coins is seeds.secret
        lines = statement(plan, spent, work.algorithm.personalised, secret=secret)
        values["privacy"] = {**privacy_values(plan, spent), "secret_coins": secret, "statement": lines}
    lines, own = _lines(work, values, ledger), _own_figures(work, ending.clients)
    return Result(folder, ending.weights, values, lines, own)


def outcome(
    watch: Watch,
    folder: Path,
    stop: Stop | None,
    rounds: int,
    seconds: float,
    measured: tuple[Metrics, Metrics],
    digest: str,
) -> dict[str, Any]:
    """What every run's summary says, whatever kind of model it has.

    Args:
        watch: of the run.
        folder: of the run.
        stop: why it ended before its last round, if it did.
        rounds: done.
        seconds: that it took.
        measured: test metrics of the best round's model and of the last.
        digest: of the last model.
    """
    return {
        "title": watch.scenario.title,
        "status": "stopped" if stop is not None and stop.failed else "done",
        "stop": {"kind": stop.kind, "reason": stop.reason} if stop is not None else None,
        "rounds": rounds,
        "seconds": seconds,
        "seconds_per_round": seconds / rounds if rounds else math.nan,
        "chosen_by": watch.metric,
        "lower": sorted(watch.lower),
        "best_round": watch.best_round,
        "best_validation": watch.best_value,
        "metrics": dict(measured[0]),
        "metrics_last_round": dict(measured[1]),
        "fingerprint": digest,
        "folder": str(folder),
    }


def judged(full: str, value: float, watch: Watch) -> dict[str, Any]:
    """The figure that judges a run, by its full name, as its summary says it."""
    return {"metric": full, "value": value, "lower_is_better": full.split("/", 3)[-1] in watch.lower}


def closing_block(values: Mapping[str, Any], which: str, between: Sequence[str] = ()) -> list[str]:
    """The closing block of a run.

    Args:
        values: its summary.
        which: round the headline figure is of.
        between: what more there is to say.
    """
    name, value = values["headline"]["metric"], values["headline"]["value"]
    return [
        f"done in {values['seconds']:.0f} s · {values['rounds']} rounds · {values['seconds_per_round']:.2f} s/round",
        *([f"ended early: {values['stop']['reason']}"] if values["stop"] is not None else []),
        f"{name} ({which}): {'not measured' if math.isnan(value) else f'{value:.4f}'}",
        *between,
        f"fingerprint {values['fingerprint']}",
        f"{short_path(Path(values['folder']))}/   run.db   model/",
    ]


def succeeded(result: Result) -> Result:
    """A result, unless the run ended by its failure rules.

    Raises:
        StoppedByPolicy: it did.
    """
    if result.values["status"] == "stopped":
        reason, rounds = result.values["stop"]["reason"], result.values["rounds"]
        raise StoppedByPolicy(f"{reason.removesuffix('.')}. {result.folder} keeps {rounds} committed rounds.")
    return result


def _own_figures(work: Work, clients: Sequence[ClientRow]) -> dict[int, float]:
    name, least = work.problem.headline, work.job.scenario.evaluate.min_rows
    key = f"personal/{name}" if work.algorithm.personalised else name
    return {row.client: row.metrics[key] for row in clients if key in row.metrics and row.rows >= least}


def _lines(work: Work, values: Mapping[str, Any], ledger: Ledger | None) -> list[str]:
    _, _, which = headline_figure(work, values)
    between = [*_attack_lines(work, values), *(_personal_lines(work, values) or _client_lines(work, values))]
    if ledger is not None:
        between += values["privacy"]["statement"]
    return closing_block(values, which, between)


def headline_figure(work: Work, values: Mapping[str, Any]) -> tuple[str, float, str]:
    """Full name and value of the test metric that a person wants to know first, and of which round it is."""
    name = work.problem.headline
    if work.algorithm.alone:
        full = f"personal/client-test/clients/{name}"
        return full, values["metrics_last_round"].get(full, math.nan), f"round {values['rounds']}, the last"
    place = "central-test" if len(work.federation.central["test"].x) else "client-test"
    full = f"global/{place}/rows/{name}"
    how = "chosen on validation" if values["chosen_by"] is not None else "last round; nothing chose"
    return full, values["metrics"].get(full, math.nan), f"round {values['best_round']}, {how}"


def _attack_lines(work: Work, values: Mapping[str, Any]) -> list[str]:
    """How often a backdoor's trigger worked, and whom figures over clients leave out."""
    if work.adversary is None:
        return []
    full = f"global/central-test/rows/{ATTACK_SUCCESS}"
    success = values["metrics"].get(full)
    lines = [f"{full} (the same round): {success:.4f}"] if success is not None else []
    honest = work.federation.clients - len(work.job.attackers)
    return [*lines, f"figures over clients are over the {honest} honest ones"]


def _personal_lines(work: Work, values: Mapping[str, Any]) -> list[str]:
    """The global model beside clients' own, both after the last round; nothing where there are no two to compare."""
    name, figures = work.problem.headline, values["metrics_last_round"]
    if work.algorithm.alone or f"personal/client-test/clients/{name}" not in figures:
        return []
    title = f"client-test, round {values['rounds']}, the last"
    lines = [f"{title:<40}{'global':>10}{'personal':>10}"]
    for weighting in ("clients", "worst-10%", "spread"):
        pair = [figures.get(f"{model}/client-test/{weighting}/{name}") for model in ("global", "personal")]
        if any(value is not None for value in pair):
            cells = "".join(f"{'-' if value is None else f'{value:.4f}':>10}" for value in pair)
            lines.append(f"  {weighting + '/' + name:<38}{cells}")
    return [*lines, f"  worst 10 % and spread over {_counted_clients(values)}"]


def _client_lines(work: Work, values: Mapping[str, Any]) -> list[str]:
    """How unequal the model is to clients: the worst tenth, what it would be were they equal, and the spread."""
    name, lines = work.problem.headline, []
    model, figures = _told_over_clients(work, values)
    worst = figures.get(f"{model}/client-test/worst-10%/{name}")
    if worst is not None:
        lines.append(f"{model}/client-test/worst-10%/{name}: {worst:.4f} over {_counted_clients(values)}")
    if (chance := values["worst_tenth_by_chance"]) is not None:
        lines.append(f"  {chance:.4f} by chance, were all clients equal")
    if (spread := figures.get(f"{model}/client-test/spread/{name}")) is not None:
        lines.append(f"{model}/client-test/spread/{name}: {spread:.4f} over {_counted_clients(values)}")
    return lines


def _told_over_clients(work: Work, values: Mapping[str, Any]) -> tuple[EvaluatedModel, Metrics]:
    """The model that figures over clients are told of, and its test metrics."""
    alone = work.algorithm.alone
    return ("personal", values["metrics_last_round"]) if alone else ("global", values["metrics"])


def _by_chance(work: Work, values: Mapping[str, Any]) -> float | None:
    """What the worst tenth would be, were all clients equal; None where there is none, or the metric is another."""
    model, figures = _told_over_clients(work, values)
    if work.problem.headline != "accuracy" or f"{model}/client-test/worst-10%/accuracy" not in figures:
        return None
    pooled = figures[f"{model}/client-test/rows/accuracy"]
    return worst_tenth_by_chance(pooled, _counted_rows(work), work.job.scenario.seed)


def _counted_rows(work: Work) -> np.ndarray:
    """[n] test rows of the clients that count in the worst tenth and the spread: with enough rows, and honest."""
    sizes = work.federation.sizes("test")[asked(work.job.scenario, work.federation, "test", work.job.attackers)]
    enough: np.ndarray = sizes[counted(sizes, work.job.scenario.evaluate.min_rows)]
    return enough


def _counted_clients(values: Mapping[str, Any]) -> str:
    drawn = f" of {values['clients_asked']} drawn" if values["clients_asked"] is not None else ""
    return f"{values['clients_counted']}{drawn} clients"


def model_card(work: Work, result: Result) -> dict[str, Any]:
    """`model.json`: what a user of the weights needs to know, and `fedsim.load` to build the model again."""
    job, federation, values = work.job, work.federation, result.values
    own = isinstance(job.model, str) and job.model == job.scenario.model.name
    return {
        "format": 1,
        "title": job.scenario.title,
        "architecture": {
            "model": reference(job.model),
            "settings": job.scenario.model.settings if own else {},
            "input_shape": list(federation.x.shape[1:]),
            "input_type": str(federation.x.dtype),
            "outputs": work.problem.outputs,
            "vocabulary": federation.vocabulary,
            "parameters": work.layout.size,
        },
        "sources": _sources(job),
        "task": federation.task,
        "classes": list(federation.classes),
        "data": {
            "source": job.data,
            "name": federation.corpus,
            "clients": federation.clients if job.apart is None else len(job.apart),
            "train_rows": int(federation.train_rows.sum()),
        },
        "strategy": {
            "name": work.algorithm.name,
            "shares_a_model": not work.algorithm.alone,
            "own_models": work.algorithm.personalised,
        },
        "preprocessing": dict(federation.preprocessing),
        "metrics": {
            "protocol": "model/data/weighting/metric",
            "round_chosen_by": values["chosen_by"],
            **values["metrics"],
        },
        "headline": values["headline"]["metric"],
        "rounds": values["rounds"],
        "best_round": values["best_round"],
        "privacy": values.get("privacy"),
        "fingerprint": values["fingerprint"],
    }


def _sources(job: Job) -> dict[str, str]:
    """Reference to the user's own code -> its file in `sources/`, where it can be imported from there.

    A notebook's cell and a program would run again if they were imported.
    """
    named = names([*job.scenario.own_files(), *(origin for _, origin in job.origins)])
    files = {where: origin for where, origin in job.origins if isinstance(origin, Path)}
    return {where: named[file] for where, file in files.items() if not where.startswith("__main__:")}
