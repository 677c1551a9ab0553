"""What may choose a round or end a run: validation metrics that the run does compute, under the scenario's name."""

import math
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import PrivacyError, ScenarioError
from fedsim.stopping import Watch
from tests import small

CENTRAL = "global/central-validation/rows/accuracy"
CLIENTS = "global/client-validation/rows/accuracy"
WORST = "global/client-validation/worst-10%/accuracy"
NO_CENTRAL = {"data.split.central": 0.0}
NOTHING = {**NO_CENTRAL, "evaluate.clients_every": 0}
LOCAL = {"strategy.name": "local"}
MANY = {"data.partition": {"kind": "iid", "clients": 10}}


def watch(changes: dict[str, Any]) -> Watch:
    job = small.job(changes)
    return Watch.of(job.scenario, job.build_problem(), job.federation)


@pytest.mark.parametrize("key", ["stop.metric", "evaluate.metric"])
@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({}, "personal/client-validation/rows/accuracy", "gives clients no model of their own"),
        (LOCAL, CENTRAL, "trains no global model"),
        ({"evaluate.clients_every": 0}, CLIENTS, r"evaluate\.clients_every is 0"),
        ({"data.split": {"train": 0.8, "validation": 0.0, "test": 0.2}}, CLIENTS, r"raise data\.split\.validation"),
        (NO_CENTRAL, CENTRAL, r"raise data\.split\.central"),
        ({}, WORST, r"ten clients need evaluate\.min_rows = 5 validation rows, and 5 have them"),
        ({**MANY, "evaluate.min_rows": 999}, WORST, "and 0 have them"),
    ],
)
def test_a_metric_that_is_never_measured_cannot_decide(
    key: str, changes: dict[str, Any], name: str, reason: str
) -> None:
    with pytest.raises(ScenarioError, match=f"^small: {key} = '{name}' is never measured: .*{reason}"):
        watch({**changes, key: name})


@pytest.mark.parametrize(("changes", "name"), [({}, CENTRAL), ({}, CLIENTS), (MANY, WORST)])
def test_a_metric_that_is_measured_may_decide(changes: dict[str, Any], name: str, tmp_path: Path) -> None:
    """And is: the last round has a value for it."""
    job = small.job({**changes, "rounds": 1, "evaluate.metric": name})
    assert math.isfinite(small.run(job, tmp_path / "run").values["best_validation"])


@pytest.mark.parametrize(
    ("changes", "metric"),
    [({}, CENTRAL), (NO_CENTRAL, CLIENTS), (NOTHING, None), ({"evaluate.clients_every": 0}, CENTRAL), (LOCAL, None)],
)
def test_a_scenario_that_names_none_gets_the_first_that_is_measured(
    changes: dict[str, Any], metric: str | None
) -> None:
    assert watch(changes).metric == metric


def test_where_nothing_is_measured_the_last_round_is_reported(tmp_path: Path) -> None:
    """Not the untrained model."""
    result = small.run(small.job(NOTHING), tmp_path / "run")
    assert (result.values["best_round"], result.values["chosen_by"]) == (3, None)
    line = next(line for line in result.lines if "round 3" in line)
    assert line.endswith("(round 3, last round; nothing chose): not measured")


@pytest.mark.parametrize("key", ["patience", "diverged_above"])
def test_where_nothing_is_measured_nothing_can_be_waited_for(key: str) -> None:
    with pytest.raises(ScenarioError, match=rf"^small: stop\.{key} needs a validation metric"):
        watch({**NOTHING, f"stop.{key}": 3})


@pytest.mark.parametrize("name", ["accuracy", "acuracy"])
def test_the_last_part_alone_is_answered_with_the_full_name(name: str) -> None:
    with pytest.raises(ScenarioError, match=rf"small: stop\.metric: .*'{name}'\. Did you mean {CENTRAL}\?"):
        watch({"stop.metric": name})


def test_under_privacy_only_the_servers_rows_decide() -> None:
    with pytest.raises(PrivacyError, match=r"small: evaluate\.metric .* choose by central-validation"):
        watch({**small.PRIVATE, **NO_CENTRAL})


def test_the_best_round_is_the_best_value_and_never_the_untrained_model() -> None:
    following = watch({"rounds": 9})
    for round, value in enumerate([0.2, 0.5, math.nan, 0.4], start=1):
        assert following.after(round, {CENTRAL: value}) is None
    assert (following.best_round, following.best_value) == (2, 0.5)
