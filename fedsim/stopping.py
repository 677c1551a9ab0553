"""When a run ends before its last round. Only validation metrics, time and spent budgets decide."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedsim.data.federation import Federation
from fedsim.errors import ScenarioError, named
from fedsim.evaluation import better, check_choosing, default_metric
from fedsim.problem import Problem
from fedsim.records import ClientRow
from fedsim.scenario import Scenario
from fedsim.tables import Cohort

ADVICE = "Lower train.learning_rate or set train.clip."


@dataclass(frozen=True)
class Stop:
    """Why a run ended. `failed` ends it with the exit status of a policy."""

    kind: str
    reason: str
    failed: bool = False


@dataclass
class Watch:
    """Follows a run's metrics: the best round so far, and whether to go on.

    Attributes:
        metric: full name of the metric that chooses the best round; None where nothing is measured on validation
            rows, and the last round is taken.
        lower: names of metrics that are better when they are lower.
        best_round, best_value: so far; round 0 is the model before training.
        spent: seconds of the run before this process resumed it.
    """

    scenario: Scenario
    metric: str | None
    lower: frozenset[str]
    best_round: int = 0
    best_value: float = math.nan
    spent: float = 0.0
    _evaluations_since: int = 0
    _started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, scenario: Scenario, problem: Problem, federation: Federation) -> "Watch":
        """Watch the scenario's metrics.

        Args:
            scenario: its `stop` and `evaluate` tables.
            problem: whose metrics there are.
            federation: with a central validation set, or clients' own rows choose.

        Raises:
            ScenarioError: a metric that does not exist, is not a validation metric or is never measured.
            PrivacyError: a metric on clients' own rows under privacy.
        """
        stop = scenario.stop
        chosen = scenario.evaluate.metric or stop.metric or default_metric(scenario, problem, federation)
        with named(scenario.origin):
            for key, name in (("stop.metric", stop.metric), ("evaluate.metric", chosen)):
                if name is not None:
                    check_choosing(name, key, scenario, problem, federation)
            for key in ("patience", "diverged_above"):
                if chosen is None and getattr(stop, key) is not None:
                    raise ScenarioError(
                        f"stop.{key} needs a validation metric, and nothing is measured; raise data.split.central or "
                        "evaluate.clients_every"
                    )
        return cls(scenario, chosen, problem.lower)

    def after(self, round: int, metrics: Mapping[str, float], clients: Sequence[ClientRow] = ()) -> Stop | None:
        """Look at a round's metrics; a reason to stop, or None.

        Args:
            round: the round.
            metrics: of the model after it, by full name.
            clients: who took part; of a run that has diverged those with the largest updates are named.
        """
        stop = self.scenario.stop
        self._update_best(round, metrics)
        loss = metrics.get("/".join([*self.metric.split("/")[:3], "loss"])) if self.metric is not None else None
        if loss is not None and (not math.isfinite(loss) or loss > (stop.diverged_above or math.inf)):
            text = f"round {round}: validation loss {loss:.4g}, diverged.{largest_updates(clients)} {ADVICE}"
            return Stop("diverged", text, failed=True)
        value = metrics.get(stop.metric) if stop.metric else None
        if value is not None and stop.at_least is not None and value >= stop.at_least:
            return Stop("target", f"{stop.metric} reached {value:.4f}, at least {stop.at_least}")
        if value is not None and stop.at_most is not None and value <= stop.at_most:
            return Stop("target", f"{stop.metric} reached {value:.4f}, at most {stop.at_most}")
        if stop.patience is not None and self._evaluations_since >= stop.patience:
            return Stop("patience", f"{self.metric} has not improved in {stop.patience} evaluations")
        if stop.max_seconds is not None and self.spent + time.perf_counter() - self._started >= stop.max_seconds:
            return Stop("time", f"{stop.max_seconds:g} s are over")
        return None

    def _update_best(self, round: int, metrics: Mapping[str, float]) -> None:
        if self.metric is None:
            self.best_round = round
            return
        value = metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            return
        if better(self.metric, value, self.best_value, self.lower):
            self.best_round, self.best_value, self._evaluations_since = round, value, 0
        else:
            self._evaluations_since += 1


def after_replies(round: int, reasons: Sequence[str], asked: int, cohort: Cohort, dropped: int = 0) -> Stop | None:
    """A reason to end the run because of what a cohort answered, by the rules of `[cohort]`.

    Args:
        round: the round.
        reasons: why clients failed, one each; those that dropped out are not among them.
        asked: clients of the cohort.
        cohort: the rules.
        dropped: clients that dropped out, which is no error; but they are missed where replies are counted.
    """
    if not asked:
        return None
    sound, needed = asked - len(reasons) - dropped, cohort.min_replies
    example = f", e.g. {reasons[0]}" if reasons else ""
    if not sound and reasons:
        return Stop("failure", f"round {round}: all {asked} clients failed{example}", failed=True)
    if reasons and cohort.on_client_error == "fail":
        return Stop("failure", f"{reasons[0]} (cohort.on_client_error is fail)", failed=True)
    if needed is not None and sound < needed:
        text = f"round {round}: {sound} of {asked} clients answered, cohort.min_replies is {needed}{example}"
        return Stop("failure", text, failed=True)
    return None


def largest_updates(clients: Sequence[ClientRow], count: int = 3) -> str:
    """A sentence that names the clients whose updates were largest, beside the median; empty without norms."""
    norms = sorted(((row.norm, row.client) for row in clients if row.norm is not None), reverse=True)
    if not norms:
        return ""
    named = ", ".join(f"client {client} ({norm:.3g})" for norm, client in norms[:count])
    return f" Largest updates: {named}; the median is {statistics.median(norm for norm, _ in norms):.3g}."
