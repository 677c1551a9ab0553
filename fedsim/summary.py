"""What a run says of itself: the heading, the live figures, the closing block, and the model's card."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.evaluation import headline
from fedsim.local import Work
from fedsim.metrics import counted, worst_tenth_by_chance
from fedsim.model import model_reference
from fedsim.parameters import Weights, fingerprint
from fedsim.privacy.ledger import Ledger, statement
from fedsim.stopping import Stop, Watch

Metrics = Mapping[str, float]
SHORT_NAMES = {"bits-per-character": "bits/char"}


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: the run's folder.
        weights: the last model.
        values: the summary, plain values by name, as in `run.db` and `--json`; under "without_privacy" those of
            the same run without privacy, which `run.db` leaves to the folder of that run.
        lines: the closing block for people, at most 80 columns.
    """

    folder: Path
    weights: Weights
    values: dict[str, Any]
    lines: list[str]

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
    """

    stop: Stop | None
    rounds: int
    seconds: float
    weights: Weights
    last: Metrics
    best: Metrics


def notes(work: Work) -> tuple[str, ...]:
    """What the user should know before the run."""
    return work.job.privacy.warnings if work.job.privacy is not None else ()


def heading(work: Work, engine: str) -> list[str]:
    """The facts after a run's title."""
    scenario, federation = work.job.scenario, work.federation
    return [
        f"{federation.clients} clients",
        f"{work.job.model_title}, {work.layout.size:,} parameters",
        work.algorithm.name,
        f"weights by {work.algorithm.weights}" if work.algorithm.weights == "examples" else "uniform weights",
        engine,
        f"seed {scenario.seed}",
        legend(work),
    ]


def live_figures(work: Work, metrics: Metrics) -> dict[str, float | None]:
    """The columns of a round's line: short names of validation metrics."""
    name = headline(work.federation.task)
    place = _validation_set(work)
    shown = {
        "loss": metrics.get(f"global/{place}/rows/loss"),
        SHORT_NAMES.get(name, name): metrics.get(f"global/{place}/rows/{name}"),
    }
    if work.job.scenario.evaluate.clients_every:
        shown["worst 10%"] = metrics.get(f"global/client-validation/worst-10%/{name}")
    return shown


def legend(work: Work) -> str:
    """Full names of the live columns."""
    name = headline(work.federation.task)
    text = f"live: global/{_validation_set(work)}/rows/..."
    return f"{text}, client-validation/worst-10%/{name}" if work.job.scenario.evaluate.clients_every else text


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
    stop, rounds = ending.stop, ending.rounds
    values: dict[str, Any] = {
        "title": work.job.scenario.title,
        "status": "stopped" if stop is not None and stop.failed else "done",
        "stop": {"kind": stop.kind, "reason": stop.reason} if stop is not None else None,
        "rounds": rounds,
        "seconds": ending.seconds,
        "seconds_per_round": ending.seconds / rounds if rounds else math.nan,
        "chosen_by": watch.metric,
        "best_round": watch.best_round,
        "best_validation": watch.best_value,
        "metrics": dict(ending.best),
        "metrics_last_round": dict(ending.last),
        "fingerprint": fingerprint(ending.weights),
        "folder": str(folder),
    }
    if ledger is not None:
        spent, plan = ledger.spent(), ledger.plan
        values["privacy"] = {
            **spent._asdict(),
            "accountant": plan.accountant,
            "noise_multiplier": plan.noise_multiplier,
            "max_grad_norm": plan.max_grad_norm,
            "max_participations": plan.max_participations,
            "statement": statement(plan, spent),
        }
    return Result(folder, ending.weights, values, _closing_block(work, values, ledger))


def _closing_block(work: Work, values: Mapping[str, Any], ledger: Ledger | None) -> list[str]:
    lines = [
        f"done in {values['seconds']:.0f} s · {values['rounds']} rounds · {values['seconds_per_round']:.2f} s/round"
    ]
    if values["stop"] is not None:
        lines.append(f"ended early: {values['stop']['reason']}")
    name, value = headline_figure(work, values["metrics"])
    how = "chosen on validation" if values["chosen_by"] is not None else "last round; nothing chose"
    figure = "not measured" if math.isnan(value) else f"{value:.4f}"
    lines.append(f"{name} (round {values['best_round']}, {how}): {figure}")
    lines += _worst_lines(work, values["metrics"])
    if ledger is not None:
        lines += statement(ledger.plan, ledger.spent())
    lines += [f"fingerprint {values['fingerprint']}", f"{_short(Path(values['folder']))}/   run.db   model/"]
    return lines


def _worst_lines(work: Work, figures: Metrics) -> list[str]:
    """The worst tenth of clients, and what it would be if all clients were equal."""
    name = headline(work.federation.task)
    worst = figures.get(f"global/client-test/worst-10%/{name}")
    if worst is None:
        return []
    sizes = work.federation.offsets[1:] - work.federation.validation_ends
    trials = sizes[counted(sizes, work.job.scenario.evaluate.min_rows)]
    line = f"global/client-test/worst-10%/{name}: {worst:.4f} over {len(trials)} clients"
    if name != "accuracy":
        return [line]
    chance = worst_tenth_by_chance(figures["global/client-test/rows/accuracy"], trials, work.job.scenario.seed)
    return [line, f"  {chance:.4f} by chance, were all clients equal"]


def headline_figure(work: Work, metrics: Metrics) -> tuple[str, float]:
    """Full name and value of the test metric that a person wants to know first."""
    name = headline(work.federation.task)
    place = "central-test" if len(work.federation.central["test"].x) else "client-test"
    full = f"global/{place}/rows/{name}"
    return full, metrics.get(full, math.nan)


def with_price(private: Result, plain: Result) -> Result:
    """A private run's result with that of the same run without privacy beside it, for people and for programs."""
    values = {**private.values, "without_privacy": plain.values}
    return replace(private, values=values, lines=_price_lines(private, plain))


def model_card(work: Work, result: Result) -> dict[str, Any]:
    """`model.json`: what a user of the weights needs to know."""
    job = work.job
    return {
        "architecture": {
            "model": model_reference(job.model),
            "settings": job.scenario.model.settings if isinstance(job.model, str) else {},
            "input_shape": list(work.federation.x.shape[1:]),
            "parameters": work.layout.size,
        },
        "task": work.federation.task,
        "classes": list(work.federation.classes),
        "preprocessing": dict(work.federation.preprocessing),
        "metrics": {
            "protocol": "model/data/weighting/metric",
            "round_chosen_by": result.values["chosen_by"],
            **result.values["metrics"],
        },
        "best_round": result.values["best_round"],
        "privacy": result.values.get("privacy"),
        "fingerprint": result.values["fingerprint"],
    }


def _price_lines(private: Result, plain: Result) -> list[str]:
    pairs = [
        (name, private.values["metrics"][name], plain.values["metrics"].get(name, math.nan))
        for name in private.values["metrics"]
        if name.startswith(("global/central-test/rows", "global/client-test/rows")) and "/recall/" not in name
    ]
    table = [f"{'the price of privacy (test)':<40}{'private':>10}{'without':>10}"]
    table += [f"  {name:<38}{mine:>10.4f}{other:>10.4f}" for name, mine, other in pairs]
    return [*table, "", *private.lines]


def _short(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
