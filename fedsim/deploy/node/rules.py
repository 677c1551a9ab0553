"""What a node's owner allows: `rules.toml`, read anew for every message."""

import re
import tomllib
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from fedsim.algorithm import Algorithm
from fedsim.cohorts import expected_size
from fedsim.deploy.node.folder import reason
from fedsim.errors import DeployError, Refused
from fedsim.privacy.plan import Plan
from fedsim.registry import members, nearest
from fedsim.scenario import Scenario
from fedsim.scenario_files import named_files
from fedsim.tables import Table

Level = Literal["none", "example", "client", "local"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")

DEFAULT = """\
# What this node answers to. You, who own the data, decide; the coordinator cannot change it. Read anew for every
# request, so a change holds from the next one on. `fedsim deploy rules DIR` shows how it is understood.

# The most that all runs together may spend of your rows' privacy (levels example and local), and its delta.
largest_epsilon = 10.0
delta = 1e-5

# Which promises a run may make. "none": what is learned leaves as it is. "client": the coordinator adds the noise, and
# you trust it with what you send. "example", "local": noise is added here, before anything leaves.
levels = ["none", "client", "example", "local"]

# "built-in", or a list such as ["fedavg", "scaffold"].
strategies = "built-in"

# Whether code of the coordinator's own may run, every file after you approved it with `fedsim deploy review`.
own_code = true

# When, by this machine's clock; hours may pass midnight, and belong to the day on which they began.
# hours = "22:00-06:00"
# days = ["mon", "tue", "wed", "thu", "fri"]

# The fewest nodes whose updates are combined in a round.
smallest_cohort = 2

# Whether losses and metrics of your rows may leave where no privacy is promised.
metrics = true

# Whether counts of your rows may leave. If false, a run is told only that there are some: then no strategy weighs nodes
# by their rows, no run promises privacy.example, whose epsilon follows from counts, and metrics and statistics, which
# hold counts, must be false too.
counts = true

# Whether sums over columns may leave for `fedsim deploy statistics`, which no epsilon covers; and the fewest rows or
# rows of one category of which a sum or a count is told.
statistics = false
smallest_count = 10

# The largest reply, in bytes.
largest_reply = 1_000_000_000
"""
"""What `fedsim deploy join` writes."""


class Rules(Table):
    """An owner's rules; what is left out is as in `DEFAULT`."""

    largest_epsilon: float = Field(10.0, gt=0, description="over all runs, at levels example and local together")
    delta: float = Field(1e-5, gt=0, lt=1, description="of that epsilon")
    levels: list[Level] = Field(["none", "client", "example", "local"], description="promises that a run may make")
    strategies: Literal["built-in"] | list[str] = Field("built-in", description="names, or all that come with fedsim")
    own_code: bool = Field(True, description="whether code of the coordinator's may run once it was approved")
    hours: str | None = Field(None, description="22:00-06:00, when requests are answered; always if left out")
    days: list[Day] = Field(list(_DAYS), description="on which these hours begin")
    smallest_cohort: int = Field(2, ge=1, description="nodes whose updates are combined in a round")
    metrics: bool = Field(True, description="whether losses and metrics may leave where no privacy is promised")
    counts: bool = Field(True, description="whether counts of rows may leave")
    statistics: bool = Field(False, description="whether sums over columns may leave")
    smallest_count: int = Field(10, ge=1, description="rows of which such a sum or count is told")
    largest_reply: Annotated[int, Field(ge=1)] = Field(1_000_000_000, description="bytes of a reply")

    @field_validator("hours")
    @classmethod
    def _span(cls, value: str | None) -> str | None:
        if value is not None and (not _HOURS.fullmatch(value) or value[:5] == value[6:]):
            raise ValueError('write hours as "22:00-06:00"')
        return value

    @model_validator(mode="after")
    def _known(self) -> Self:
        known = {*members("fedsim.strategies")}
        for name in self.strategies if isinstance(self.strategies, list) else ():
            if ":" not in name and _plain(name) not in known:
                raise ValueError(f"strategies: there is no {name!r}.{nearest(name, known)}")
        if not self.counts and (telling := [name for name in ("metrics", "statistics") if getattr(self, name)]):
            raise ValueError(f"counts = false needs {telling[0]} = false, since {telling[0]} hold counts of rows")
        return self


def read(file: Path) -> Rules:
    """An owner's rules.

    Raises:
        DeployError: the file is missing, is no TOML, or has a key that is not known or not sound. A node without rules
            answers nothing.
    """
    try:
        return Rules.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise DeployError(f"{file} cannot be read: {error.strerror}; a node without rules answers nothing") from error
    except ValidationError as error:
        raise DeployError(f"{file}: {reason(error, Rules)}") from error
    except ValueError as error:
        raise DeployError(f"{file} is no TOML: {error}") from error


def check(rules: Rules, scenario: Scenario, plan: Plan | None, clients: int, now: datetime) -> None:
    """Make sure that a node's owner allows a run.

    Args:
        rules: the owner's.
        scenario: what is asked.
        plan: its promise as this node computes it; None without one, or before its noise is solved.
        clients: K, nodes in the run.
        now: by the node's clock.

    Raises:
        Refused: names the rule that says no.
    """
    _check_code(rules, scenario)
    _check_strategies(rules, scenario)
    level = scenario.privacy.level or "none"
    if level not in rules.levels:
        raise _refused("levels", f"allows {', '.join(rules.levels) or 'nothing'}, and the run is of level {level}")
    if plan is not None and plan.level != "client":
        _check_epsilon(rules, plan)
    if not answers_at(rules, now):
        hours = f"{rules.hours or '00:00-24:00'} on {', '.join(rules.days)}"
        raise _refused("hours", f"allows {hours}, and it is {_DAYS[now.weekday()]} {now:%H:%M} at the node")
    size = expected_size(scenario.cohort.rule, clients)
    if size < rules.smallest_cohort:
        raise _refused("smallest_cohort", f"asks for {rules.smallest_cohort} nodes a round, and the run has {size:g}")


def check_counts(scenario: Scenario, algorithm: Algorithm) -> None:
    """Make sure that a run can do without counts of rows, where the owner lets none leave.

    Raises:
        Refused: it cannot.
    """
    why = None
    if scenario.privacy.level == "example":
        why = "the epsilon of privacy.example follows from them"
    elif algorithm.weights == "examples" or algorithm.flower is not None:
        why = f"strategy {algorithm.name!r} weighs nodes by their rows (strategy.weights = 'uniform' does not)"
    elif algorithm.scalars:
        why = f"strategy {algorithm.name!r} needs each node's {', '.join(algorithm.scalars)}, which can tell them"
    if why is not None:
        raise _refused("counts", f"lets no counts of rows leave, and {why}")


def check_reply(rules: Rules, size: int) -> None:
    """Make sure that a reply of so many bytes may leave.

    Raises:
        Refused: it is too large.
    """
    if size > rules.largest_reply:
        raise _refused("largest_reply", f"allows {rules.largest_reply:,} bytes, and the reply has {size:,}")


def answers_at(rules: Rules, now: datetime) -> bool:
    """Whether requests are answered at this moment."""
    if rules.hours is None:
        return _DAYS[now.weekday()] in rules.days
    start, stop = (time.fromisoformat(part) for part in rules.hours.split("-"))
    if start < stop:
        return start <= now.time() < stop and _DAYS[now.weekday()] in rules.days
    begun = now if now.time() >= start else now - timedelta(days=1)  # hours that pass midnight
    return (now.time() >= start or now.time() < stop) and _DAYS[begun.weekday()] in rules.days


def _check_code(rules: Rules, scenario: Scenario) -> None:
    own = [f"{key} = {name!r}" for key, name in named_files(scenario.model_dump()) if not key.endswith("path")]
    if own and not rules.own_code:
        raise _refused("own_code", f"allows none, and the scenario has {own[0]}")


def _check_strategies(rules: Rules, scenario: Scenario) -> None:
    table = scenario.strategy
    names = [table.name, *(part.name for part in (table.combine, table.server) if part is not None)]
    if rules.strategies == "built-in":
        return  # own ones are code, which is approved by itself
    allowed = {_plain(name) for name in rules.strategies}
    for name in names:
        if _plain(name) not in allowed:
            raise _refused("strategies", f"allows {', '.join(rules.strategies) or 'none'}, and the run takes {name}")


def _check_epsilon(rules: Rules, plan: Plan) -> None:
    """Refuse a run that alone would spend too much, before it spends anything."""
    asked = plan.epsilon_after(plan.most, rules.delta)
    if asked > rules.largest_epsilon:
        raise _refused(
            "largest_epsilon",
            f"allows {rules.largest_epsilon:g} at delta {rules.delta:g} over all runs, and this one alone comes to "
            f"{asked:.3g}",
        )


def _plain(name: str) -> str:
    return name if ":" in name else name.replace("_", "-")


def _refused(key: str, why: str) -> Refused:
    return Refused(f"rules.toml {key}: the owner {why}")
