"""An owner's rules: each key says no to what it is there for and to nothing else, and a mistake in them is named."""

import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.composition import algorithm_of
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.rules import DEFAULT, Rules, answers_at, check, check_counts, check_reply, read
from fedsim.errors import DeployError, Refused
from fedsim.privacy.plan import Plan
from fedsim.scenario import Scenario
from tests import small
from tests.deploy.owners import node_folder

NOON = datetime(2026, 11, 30, 12, 0)  # a Monday
EXAMPLE = {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-5, "max_grad_norm": 1.0}}
CLIENT = {"privacy.client": {"epsilon": 8.0, "delta": 1e-3, "clip": 1.0}, "cohort.poisson": 0.9}
LOCAL = {"privacy.local": {"noise_multiplier": 50.0, "delta": 1e-5, "clip": 1.0}}


def plan_of(changes: dict[str, Any]) -> Plan:
    """The promise of a small run."""
    private = {"model": {"name": "cnn", "preset": "small"}} if "privacy.example" in changes else {}
    plan = small.job({**private, "strategy.weights": "uniform", **changes}).privacy
    assert plan is not None
    return plan


def allowed(rules: Rules, scenario: Scenario, plan: Plan | None = None, clients: int = 5, now: datetime = NOON) -> None:
    """Fail where a run is refused."""
    check(rules, scenario, plan, clients, now)


def test_the_written_default_is_the_default() -> None:
    """What `join` writes, with every comment taken away, is what a node without keys would do."""
    assert Rules.model_validate(tomllib.loads(DEFAULT)) == Rules()
    named = {line.lstrip("# ").partition(" =")[0] for line in DEFAULT.splitlines() if " = " in line}
    assert named == set(Rules.model_fields)


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("levels", {"levels": ["example", "local"]}, {}, {}),
    ("levels", {"levels": ["none"]}, EXAMPLE, {}),
    ("levels", {"levels": ["example", "none"]}, CLIENT, {}),
    ("strategies", {"strategies": ["fedprox"]}, {}, {}),
    ("strategies", {"strategies": ["fedavg"]}, {"strategy.combine": {"name": "krum", "byzantine": 1}}, {}),
    ("strategies", {"strategies": ["fedavg"]}, {"strategy.server": {"name": "fedadam"}}, {}),
    ("own_code", {"own_code": False}, {"model": {"name": "mine.py:net"}}, {}),
    ("own_code", {"own_code": False}, {"task.metrics": ["mine.py:recall"]}, {}),
    ("own_code", {"own_code": False}, {"data.transform": "mine.py:turned"}, {}),
    ("hours", {"hours": "22:00-06:00"}, {}, {}),
    ("hours", {"days": ["tue"]}, {}, {}),
    ("smallest_cohort", {"smallest_cohort": 6}, {}, {}),
    ("smallest_cohort", {}, {"cohort.size": 1}, {}),
    ("smallest_cohort", {}, {"cohort.poisson": 0.3}, {}),
    ("smallest_cohort", {}, {}, {"clients": 1}),
]
ALLOWED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {}),
    ({"levels": ["local"]}, LOCAL, {}),
    ({"levels": ["client"]}, CLIENT, {}),
    ({"strategies": ["fedavg", "fedadam"]}, {"strategy.server": {"name": "fedadam"}}, {}),
    ({"strategies": ["trimmed_mean"]}, {"strategy.name": "trimmed-mean"}, {}),
    ({"own_code": False}, {"data": {"name": "csv", "path": "x.csv", "partition": {"kind": "natural"}}}, {}),
    ({"own_code": True}, {"model": {"name": "mine.py:net"}}, {}),
    ({"hours": "22:00-06:00"}, {}, {"now": NOON.replace(hour=23)}),
    ({"smallest_cohort": 5}, {}, {}),
    ({"smallest_cohort": 1}, {"cohort.size": 1}, {}),
]


@pytest.mark.parametrize(("key", "rules", "changes", "given"), REFUSED)
def test_what_a_rule_refuses(key: str, rules: dict[str, Any], changes: dict[str, Any], given: dict[str, Any]) -> None:
    """The coordinator is told which key of whose file says no; without the rule the run is let in."""
    with pytest.raises(Refused, match=rf"^rules\.toml {key}: "):
        allowed(Rules(**rules), small.scenario(changes), **given)
    if rules:
        lenient = {name: value for name, value in rules.items() if name != ("days" if "days" in rules else key)}
        allowed(Rules(**lenient), small.scenario(changes), **given)


@pytest.mark.parametrize(("rules", "changes", "given"), ALLOWED)
def test_what_a_rule_lets_in(rules: dict[str, Any], changes: dict[str, Any], given: dict[str, Any]) -> None:
    """A rule says no to what it is there for alone."""
    allowed(Rules(**rules), small.scenario(changes), **given)


UNIFORM = {"strategy": {"name": "fedavg", "weights": "uniform"}}


@pytest.mark.parametrize("changes", [UNIFORM, {**UNIFORM, **LOCAL}, {**UNIFORM, **CLIENT}], ids=["none", *"lc"])
def test_runs_that_need_no_counts(changes: dict[str, Any]) -> None:
    """All nodes weigh alike, and no promise rests on how many rows there are."""
    scenario = small.scenario(changes)
    check_counts(scenario, algorithm_of(scenario))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "weighs nodes by their rows"),
        ({"strategy": {"name": "flower:FedAvg"}}, "weighs nodes by their rows"),
        ({"strategy": {"name": "afl"}}, "needs each node's loss"),
        ({"strategy": {"name": "fednova"}}, "fednova"),
        ({**UNIFORM, **EXAMPLE}, "epsilon of privacy.example follows from them"),
    ],
)
def test_runs_that_need_counts(changes: dict[str, Any], told: str) -> None:
    """Each would do something else with a count that is none."""
    scenario = small.scenario(changes)
    with pytest.raises(Refused, match=rf"^rules\.toml counts: the owner lets no counts of rows leave, and .*{told}"):
        check_counts(scenario, algorithm_of(scenario))


@pytest.mark.parametrize("changes", [EXAMPLE, LOCAL])
def test_a_run_that_alone_spends_too_much(changes: dict[str, Any]) -> None:
    """It is refused before round 1, by what the node computes itself, at the owner's delta."""
    plan = plan_of(changes)
    asked = plan.epsilon_after(plan.most, 1e-6)
    scenario = small.scenario(changes)
    allowed(Rules(largest_epsilon=asked * 1.001, delta=1e-6), scenario, plan)
    with pytest.raises(Refused, match=r"rules\.toml largest_epsilon"):
        allowed(Rules(largest_epsilon=asked * 0.999, delta=1e-6), scenario, plan)


def test_the_servers_promise_is_not_the_nodes_budget() -> None:
    """At client level the coordinator adds the noise: nothing of it is charged here."""
    allowed(Rules(largest_epsilon=0.01), small.scenario(CLIENT), plan_of(CLIENT))


@given(
    start=st.integers(0, 23 * 60 + 59),
    minutes=st.integers(1, 24 * 60 - 1),
    days=st.sets(st.sampled_from(["mon", "tue", "wed", "thu", "fri", "sat", "sun"])),
    at=st.integers(0, 7 * 24 * 60 - 1),
)
def test_hours_against_a_walk_through_the_week(start: int, minutes: int, days: set[str], at: int) -> None:
    """Independent: mark each minute of a week, round and round, that lies within hours begun on an allowed day."""
    stop = (start + minutes) % (24 * 60)
    hours = f"{start // 60:02}:{start % 60:02}-{stop // 60:02}:{stop % 60:02}"
    rules = Rules.model_validate({"hours": hours, "days": sorted(days)})
    order = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    within = any(
        (at - (order.index(day) * 24 * 60 + start)) % (7 * 24 * 60) < minutes for day in days
    )  # minutes since that day's opening, modulo a week
    monday = datetime(2026, 11, 30)
    assert answers_at(rules, monday + timedelta(minutes=at)) == within


def test_a_reply_that_is_too_large() -> None:
    """To the byte."""
    check_reply(Rules(largest_reply=100), 100)
    with pytest.raises(Refused, match=r"rules\.toml largest_reply: .* 101"):
        check_reply(Rules(largest_reply=100), 101)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("largest_epsiln = 3.0", "largest_epsiln is not known. Did you mean largest_epsilon?"),
        ("largest_epsilon = 0", "largest_epsilon: input should be greater than 0"),
        ('largest_epsilon = "8"', "largest_epsilon: input should be a valid number"),
        ("largest_epsilon = inf", "largest_epsilon: input should be a finite number"),
        ('levels = ["examples"]', "levels: input should be 'none', 'example'"),
        ('hours = "22-6"', 'hours: write hours as "22:00-06:00"'),
        ('hours = "06:00-06:00"', "hours: write hours"),
        ('strategies = ["fedavgg"]', "there is no 'fedavgg'. Did you mean fedavg?"),
        ("counts = false", "counts = false needs metrics = false"),
        ("counts = false\nmetrics = false\nstatistics = true", "counts = false needs statistics = false"),
        ("delta = 1", "delta: input should be less than 1"),
        ("=", "is no TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    """One line with the file and the key; a node whose rules cannot be read must not fall back to others."""
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(DeployError) as error:
        read(file)
    assert told in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    """No rules is not any rules."""
    with pytest.raises(DeployError, match="a node without rules answers nothing"):
        read(tmp_path / "rules.toml")


def test_a_nodes_folder(tmp_path: Path) -> None:
    """Settings are checked like rules, and others must not read them."""
    home = node_folder(tmp_path / "node")
    assert (home.name, home.host, home.port, home.withdrawn) == ("north", "study.example", 8443, False)
    home.folder.chmod(0o755)
    with pytest.raises(DeployError, match="chmod 700"):
        NodeFolder.open(home.folder)
    home.folder.chmod(0o700)
    (home.folder / "node.toml").write_text('name = "north"\nhost = "h"\nprot = 1\n')
    with pytest.raises(DeployError, match=r"prot is not known\. Did you mean port"):
        NodeFolder.open(home.folder)
    (home.folder / "node.toml").write_text('name = "north"\nhost = "h"\nport = 0\n')
    with pytest.raises(DeployError, match="port: input should be greater"):
        NodeFolder.open(home.folder)
    with pytest.raises(DeployError, match="is no node"):
        NodeFolder.open(tmp_path)
