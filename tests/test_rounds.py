"""A run from the outside: who took part, what failed, what was spent, and when it ended."""

import math
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fedsim
from fedsim.engine.inline import InlineEngine
from fedsim.errors import Interrupted, RunFolderError, ScenarioError, StoppedByPolicy
from fedsim.planning import fast
from fedsim.progress import Silent
from fedsim.reading import Records
from fedsim.records import RoundRecord
from fedsim.rounds import run_job
from fedsim.stored import open_run
from tests import small

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

HUGE = 3e38
"""A feature so large that a float32 loss is not finite, though the data are."""
ACCURACY = "global/central-validation/rows/accuracy"
FATAL = """
import os
from torch import nn

class Fatal(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        self.layer = nn.Linear(3, classes)

    def forward(self, x):
        if self.training and x[:, 2].any():
            os._exit(1)
        return self.layer(x)
"""
BROKEN_SERVER = """
from fedsim.algorithm import Algorithm, Upload

def broken() -> Algorithm:
    def client(local):
        return Upload(local.train(local.received).params - local.received)

    def server(server, combined):
        return server._replace(params=server.shared["nothing"])

    return Algorithm("broken", client, server)
"""
RAISING = """
from torch import nn

class Raising(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, when: str):
        super().__init__()
        self.layer, self.when = nn.Linear(3, classes), when

    def forward(self, x):
        if x[:, 2].any() and self.training == (self.when == "training"):
            raise ValueError("this client's\\nrows are odd")
        return self.layer(x)
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def failures(records: Records, phase: str = "train") -> list[tuple[int, int, str]]:
    rows = [row for row in records.clients() if row.status == "failed" and row.phase == phase]
    return [(row.round, row.client, row.error or "") for row in rows]


def test_a_client_whose_loss_is_not_finite_is_a_recorded_failure(out: Path) -> None:
    """The others' rounds go on without it, and the record says where, who and why."""
    result = small.run(small.job(small.POINTS, data=small.points(HUGE)), out)
    records = open_run(out)
    failed = failures(records)
    assert [(round, client) for round, client, _ in failed] == [(number, small.ODD) for number in (1, 2, 3)]
    assert all(f"round {number}, client {small.ODD}: the loss is not finite" in text for number, _, text in failed)
    assert "train.learning_rate" in failed[0][2]
    assert [(row.cohort, row.failed) for row in records.rounds()] == [(4, 1)] * 3
    assert torch.isfinite(result.weights.vector).all()
    assert not records.events(), "a failure that the run survives is in the clients' rows"


def test_a_run_without_the_failing_client_is_the_same(out: Path, tmp_path: Path) -> None:
    """The mean is over those that answered: what the failing client holds changes nothing but its own row."""
    huge = small.run(small.job(small.POINTS, data=small.points(HUGE)), out)
    larger = small.run(small.job(small.POINTS, data=small.points(HUGE / 2)), tmp_path / "other")
    assert huge.fingerprint == larger.fingerprint


@pytest.mark.parametrize("when", ["training", "evaluating"])
def test_a_model_that_raises_fails_its_client_alone(when: str, out: Path, tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text(RAISING)
    changes = {**small.POINTS, "rounds": 1, "model": {"name": "raising.py:Raising", "when": when}}
    small.run(small.job(changes, tmp_path, data=small.points(1.0)), out)
    ((round, client, text),) = failures(open_run(out), "train" if when == "training" else "evaluate")
    assert (round, client) == (1, small.ODD)
    assert "ValueError: this client's rows are odd" in text
    assert f"client {small.ODD}" in text
    assert "\n" not in text


def test_a_worker_that_always_dies_fails_its_chunk_and_not_the_run(
    out: Path, tmp_path: Path, ray_engine: "RayEngine"
) -> None:
    (tmp_path / "fatal.py").write_text(FATAL)
    changes = {**small.POINTS, "rounds": 1, "model": {"name": "fatal.py:Fatal"}}
    result = small.run(small.job(changes, tmp_path, data=small.points(1.0)), out, ray_engine)
    ((_, client, text),) = failures(open_run(out))
    assert client == small.ODD
    assert "the worker died" in text
    assert result.values["rounds"] == 1


def test_on_client_error_fail_ends_the_run_and_keeps_what_was_committed(out: Path) -> None:
    """The odd client is not in the first cohorts: rounds before the one that it spoils stay."""
    changes = {**small.POINTS, "rounds": 50, "cohort": {"size": 1, "on_client_error": "fail"}, "seed": 3}
    with pytest.raises(StoppedByPolicy, match=rf"client {small.ODD}.*on_client_error") as stopped:
        small.run(small.job(changes, data=small.points(HUGE)), out)
    assert stopped.value.exit_code == 3
    records = open_run(out)
    committed = len(records.rounds())
    assert 0 < committed < 50
    assert str(stopped.value).endswith(f". {out} keeps {committed} committed rounds.")
    assert ".." not in str(stopped.value).replace(str(out), ""), "each sentence ends once"
    assert failures(records) == [], "the round that it spoiled is not committed"
    events = {event.kind: event.message for event in records.events()}
    assert f"client {small.ODD}" in events["client failed"]
    assert records.summary()["status"] == "stopped"
    assert len(load_file(out / "model/last.safetensors"))


@pytest.mark.parametrize("rule", ["skip", "fail"])
def test_a_round_in_which_everybody_fails_ends_the_run(rule: str, out: Path) -> None:
    changes = {"train.learning_rate": 1e30, "train.epochs": 5, "cohort.on_client_error": rule}
    with pytest.raises(StoppedByPolicy) as stopped:
        small.run(small.job(changes), out)
    assert stopped.value.exit_code == 3
    assert "\n" not in str(stopped.value)
    assert open_run(out).rounds() == []


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_participations_are_limited_and_every_one_is_paid_for(strategy: str, out: Path) -> None:
    """max_participations takes a client out of the population; the ledger in run.db counts what happened."""
    privacy = {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0, "max_participations": 2}
    changes = {"rounds": 20, "cohort.size": 2, "privacy.example": privacy, "strategy": {"name": strategy}}
    result = small.run(small.job(changes), out)
    records = open_run(out)
    took_part = Counter(row.client for row in records.clients() if row.phase == "train")
    assert set(took_part.values()) == {2}
    assert {row.client: row.participations for row in records.privacy()} == took_part
    assert result.values["stop"]["kind"] == "budget"
    assert len(records.rounds()) == 5, "five clients, two each, two a round"
    epsilons = {row.client: row.epsilon or 0.0 for row in records.privacy()}
    assert result.values["privacy"]["largest"] == max(epsilons.values()) == records.rounds()[-1].epsilon


def test_epsilon_of_the_summary_is_what_was_asked_for_at_most(out: Path) -> None:
    """And the largest in the privacy table, round by round."""
    result = small.run(small.job(small.PRIVATE), out)
    records = open_run(out)
    for row in records.rounds():
        assert row.epsilon == max(account.epsilon or 0.0 for account in records.privacy(row.number))
    assert 7.5 < result.values["privacy"]["largest"] <= 8.0
    printed = f"{math.ceil(result.values['privacy']['largest'] * 100) / 100:.2f}"
    assert any(f"epsilon {printed} at delta 0.001" in line for line in result.lines)


def test_clients_that_fail_have_spent_their_epsilon(out: Path, tmp_path: Path) -> None:
    """Rows may have been read before the failure; charging at selection is the safe side."""
    (tmp_path / "raising.py").write_text(RAISING)
    privacy = {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}
    model = {"name": "raising.py:Raising", "when": "training"}
    changes = {**small.POINTS, "privacy.example": privacy, "data.split.central": 0.2, "model": model}
    small.run(small.job(changes, tmp_path, data=small.points(1.0)), out)
    records = open_run(out)
    assert {client for _, client, _ in failures(records)} == {small.ODD}
    assert {row.client: row.participations for row in records.privacy()} == dict.fromkeys(range(4), 3)


@pytest.mark.parametrize("cohort", [{"size": 2}, {"fraction": 0.5}, {"poisson": 0.5}, {}])
def test_cohorts_follow_their_rule(cohort: dict[str, Any], out: Path) -> None:
    changes = {"cohort": cohort, "rounds": 12, "model.hidden": [4], "evaluate.every": 12, "evaluate.clients_every": 0}
    small.run(small.job(changes), out)
    sizes = [row.cohort for row in open_run(out).rounds()]
    if "poisson" in cohort:
        assert len(set(sizes)) > 1
        assert 0.2 < float(np.mean(sizes)) / 5 < 0.8
    else:
        assert set(sizes) == ({5} if not cohort else {2})


def test_a_target_ends_the_run(out: Path) -> None:
    changes = {"rounds": 40, "stop": {"metric": ACCURACY, "at_least": 0.5}}
    result = small.run(small.job(changes), out)
    series = open_run(out).metrics()[ACCURACY]
    assert result.values["stop"]["kind"] == "target"
    assert [value >= 0.5 for _, value in sorted(series.items())] == [False] * (len(series) - 1) + [True]
    assert len(series) < 40


def test_patience_ends_a_run_that_no_longer_improves(out: Path) -> None:
    """A rate that changes next to nothing: after the first evaluation nothing is better."""
    changes = {"rounds": 40, "train.learning_rate": 1e-9, "stop": {"patience": 3}}
    result = small.run(small.job(changes), out)
    assert result.values["stop"]["kind"] == "patience"
    assert result.values["rounds"] == 4
    assert result.values["best_round"] == 1


OVERTAKEN: dict[str, dict[str, Any]] = {
    "scaffold": {"strategy": {"name": "scaffold"}, "cohort": {"size": 2}},
    "ditto": {"strategy": {"name": "ditto"}, "evaluate.clients_every": 1, "cohort": {"size": 2}},
    "private": {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}},
    "client level": {
        "privacy.client": {"noise_multiplier": 1.0, "delta": 1e-3, "clip": 1.0},
        "cohort": {"poisson": 0.5},
        "strategy.weights": "uniform",
    },
}


@pytest.mark.parametrize("name", OVERTAKEN)
@pytest.mark.parametrize("on_ray", [False, True])
def test_nothing_is_left_of_a_round_that_a_stop_overtakes(
    name: str, on_ray: bool, out: Path, request: pytest.FixtureRequest
) -> None:
    """The next round trains while one is measured; if the run ends there, it is a run of that many rounds."""
    engine = request.getfixturevalue("ray_engine") if on_ray else InlineEngine()
    same = {**OVERTAKEN[name], "train.learning_rate": 1e-9}
    ended = small.run(small.job({**same, "rounds": 40, "stop": {"patience": 2}}), out / "ended", engine)
    rounds = ended.values["rounds"]
    whole = small.run(small.job({**same, "rounds": rounds}), out / "whole", engine)
    assert ended.values["stop"]["kind"] == "patience" and rounds < 40
    assert ended.fingerprint == whole.fingerprint
    assert ended.values["metrics_last_round"] == whole.values["metrics_last_round"]
    spent = [{key: each.values.get("privacy", {}).get(key) for key in ("largest", "median")} for each in (ended, whole)]
    assert spent[0] == spent[1]
    with closing(open_run(ended.folder)) as one, closing(open_run(whole.folder)) as other:
        untimed = [[replace(row, seconds=0.0) for row in records.clients()] for records in (one, other)]
        assert untimed[0] == untimed[1]
    last = [next((each.folder / "checkpoints").glob(f"round-{rounds:06d}*")).read_bytes() for each in (ended, whole)]
    assert last[0] == last[1]


def test_time_ends_a_run_after_the_round_in_progress(out: Path) -> None:
    result = small.run(small.job({"rounds": 40, "stop": {"max_seconds": 1e-6}}), out)
    assert (result.values["stop"]["kind"], result.values["rounds"]) == ("time", 1)


def test_a_spent_epsilon_ends_a_run_before_it_is_exceeded(out: Path) -> None:
    """The round that would go beyond is not begun, so nothing beyond the limit was ever computed."""
    privacy = {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}
    free = small.run(small.job({"rounds": 4, "privacy.example": privacy}), out)
    by_round = [row.epsilon for row in open_run(out).rounds()]
    limit = (by_round[1] + by_round[2]) / 2  # type: ignore[operator]
    changes = {"rounds": 4, "privacy.example": privacy, "stop": {"epsilon": limit}, "checkpoint.every": 100}
    limited = small.run(small.job(changes), out.with_name("limited"))
    assert list((limited.folder / "checkpoints").glob("round-000002*")), "clients' own models are put together of it"
    assert limited.values["stop"]["kind"] == "budget"
    assert limited.values["rounds"] == 2
    assert limited.values["privacy"]["largest"] == by_round[1]
    assert free.values["privacy"]["largest"] > limit


def test_divergence_ends_a_run_with_a_failure(out: Path) -> None:
    changes = {"rounds": 40, "stop": {"diverged_above": 1e-3}}
    with pytest.raises(StoppedByPolicy, match="diverged"):
        small.run(small.job(changes), out)
    records = open_run(out)
    assert len(records.rounds()) == 1, "the round is committed, so that it can be looked at"
    assert records.summary()["stop"]["kind"] == "diverged"


def test_the_best_round_is_chosen_on_validation_and_its_model_kept(out: Path) -> None:
    """Its test metrics are those of the weights in model/best.safetensors."""
    changes = {"rounds": 6, "train.learning_rate": 1.5}
    result = small.run(small.job(changes), out)
    records = open_run(out)
    series = records.metrics()[ACCURACY]
    best = min(number for number, value in series.items() if value == max(series.values()))
    assert result.values["best_round"] == best
    assert [row.number for row in records.rounds() if row.best][-1] == best
    assert (out / "model/best.safetensors").exists()


def test_client_rows_are_counted_from_the_federation(out: Path) -> None:
    """Rows, steps and bytes of the record are those that can be worked out from the scenario."""
    job = small.job()
    small.run(job, out)
    parameters = sum(parameter.numel() for parameter in job.build_model().parameters())
    for row in open_run(out).clients():
        rows = job.federation.rows(row.client, "train" if row.phase == "train" else "validation")
        assert row.rows == len(rows.x)
        assert row.bytes_down == 4 * parameters
        if row.phase == "train":
            assert row.steps == math.ceil(row.rows / 32)
            assert row.bytes_up == 4 * parameters


def test_without_any_held_out_rows_a_run_still_ends(out: Path) -> None:
    """Nothing can be measured then, and nothing is claimed."""
    split = {"central": 0.0, "train": 1.0, "validation": 0.0, "test": 0.0}
    result = small.run(small.job({"data.split": split}), out)
    assert result.values["rounds"] == 3
    assert result.values["metrics"] == {}


def test_rounds_without_evaluation_are_quiet(out: Path) -> None:
    """`every` thins evaluation out; the last round is always measured."""
    small.run(small.job({"rounds": 5, "evaluate": {"every": 2, "clients_every": 3}}), out)
    metrics = open_run(out).metrics()
    assert sorted(metrics[ACCURACY]) == [2, 4, 5]
    assert sorted(metrics["global/client-validation/rows/accuracy"]) == [3, 5]


def test_run_takes_python_objects(out: Path) -> None:
    """A notebook's way: values instead of a file, a class and a function instead of names."""

    class Net(torch.nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layer(x)
            return logits

    values = small.scenario(small.POINTS).model_dump(exclude_none=True)
    result = fedsim.run(values, model=Net, data=small.points(0.0), out=out)
    assert result.values["rounds"] == 3
    assert open_run(out).summary()["fingerprint"] == result.fingerprint


def test_a_private_run_has_its_price_beside_it(out: Path) -> None:
    """The same scenario without privacy runs into a folder of its own, and both are printed."""
    changes = {**small.PRIVATE, "privacy.without": {"train.learning_rate": 0.5}}
    result = fedsim.run(small.scenario(changes), out=out)
    assert open_run(out / "without-privacy").summary()["rounds"] == 3
    assert open_run(out / "without-privacy").privacy() == []
    assert result.lines


def test_an_existing_folder_is_left_alone(out: Path) -> None:
    out.mkdir()
    with pytest.raises(RunFolderError, match="exists already"):
        fedsim.run(small.scenario(), out=out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"stop": {"metric": "global/central-test/rows/accuracy", "at_least": 0.9}},
        {"evaluate.metric": "global/central-validation/rows/acuracy"},
    ],
)
def test_only_existing_validation_metrics_decide(changes: dict[str, Any], out: Path) -> None:
    with pytest.raises(ScenarioError):
        fedsim.run(small.scenario(changes), out=out)
    assert not out.exists()


def test_a_fast_check_is_one_round_of_two_clients(out: Path) -> None:
    changes = {**small.PRIVATE, "privacy.without": {}, "rounds": 100, "stop": {"max_seconds": 1e-9}}
    small.run(small.job(fast(small.scenario(changes)).model_dump(exclude_none=True)), out)
    ((number, cohort),) = [(row.number, row.cohort) for row in open_run(out).rounds()]
    assert (number, cohort) == (1, 2)
    assert {row.steps for row in open_run(out).clients() if row.phase == "train"} == {2}


class Interrupting(Silent):
    """A user who presses Ctrl-C once a round has been committed."""

    def round(self, record: RoundRecord, shown: Any) -> None:
        if record.number == 2:
            raise KeyboardInterrupt


def test_an_interrupted_run_says_what_stays(out: Path) -> None:
    with pytest.raises(Interrupted, match="keeps 2 committed rounds"):
        run_job(small.job({"rounds": 9}), InlineEngine(), out, Interrupting())
    assert [row.number for row in open_run(out).rounds()] == [1, 2]
    assert open_run(out).summary() == {}


class FailsWhenMeasured(nn.Module):
    """A net that learns, and cannot be evaluated once it has learned."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, classes)
        with torch.no_grad():
            self.layer.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and self.layer.bias.any():
            raise ValueError("boom")
        logits: torch.Tensor = self.layer(x.flatten(1))
        return logits


def test_a_model_that_cannot_be_measured_ends_the_run_as_a_failure(out: Path) -> None:
    """With a summary that says so, the failed round not committed, and the last committed model kept."""
    with pytest.raises(StoppedByPolicy, match="central validation set: evaluation failed: ValueError: boom"):
        small.run(small.job(model=FailsWhenMeasured), out)
    with closing(open_run(out)) as records:
        assert records.rounds() == []
        assert records.summary()["status"] == "stopped"


def test_a_server_half_that_fails_ends_the_run_as_a_failure(out: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(BROKEN_SERVER)
    with pytest.raises(StoppedByPolicy, match="round 1: the strategy's server half failed: KeyError: 'nothing'"):
        small.run(small.job({"strategy": {"name": "own.py:broken"}}, tmp_path), out)
    with closing(open_run(out)) as records:
        assert records.summary()["rounds"] == 0


def test_clients_without_train_rows_are_never_selected(out: Path) -> None:
    """`min_rows = 0` asks for such clients; nobody waits for them, and weights and epsilon ignore them."""
    uneven = {"kind": "quantity", "clients": 6, "alpha": 20.0}
    changes = {"data.partition": uneven, "data.min_rows": 0, "train.steps": 2, "rounds": 2}
    job = small.job(changes)
    empty = set(np.flatnonzero(job.federation.train_rows == 0).tolist())
    assert empty
    small.run(job, out)
    with closing(open_run(out)) as records:
        assert {row.client for row in records.clients() if row.phase == "train"} == set(range(6)) - empty
