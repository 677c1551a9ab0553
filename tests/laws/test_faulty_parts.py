"""A user's strategy or adversary that goes wrong: a client's failure, or one line that says which part and why."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fedsim.engine.inline import InlineEngine
from fedsim.errors import ScenarioError
from fedsim.progress import Silent
from fedsim.rounds import create_folder, execute
from fedsim.stored import open_run
from tests import small

PARTS = """
import torch
from fedsim.adversaries import Adversary
from fedsim.algorithm import Algorithm, Upload, add_update, local_update
from fedsim.combiners import Combiner


def scalar(value=float("nan"), odd=2):
    def client(local):
        upload = local_update(local)
        return upload._replace(scalars={"size": torch.tensor(value if local.number == odd else 1.0)})
    return Algorithm("scalar", client, add_update, scalars=("size",))

def undeclared():
    more = lambda local: local_update(local)._replace(scalars={"other": torch.ones(())})
    return Algorithm("undeclared", more, add_update)

def owner(wrong=False):
    return Algorithm("owner", local_update, add_update, own_model=lambda local: local.received[:1] if wrong else 1 / 0)

def late():
    own = lambda local: local.received if local.round < 2 else 1 / 0
    return Algorithm("late", local_update, add_update, own_model=own)

def drawing():
    return Algorithm("drawing", local_update, add_update, own_model=lambda local: torch.randn_like(local.received))

def combining(wrong=False):
    rule = lambda updates, weights, previous: updates[0, :1] if wrong else 1 / 0
    return Algorithm("combining", local_update, add_update, combine=Combiner("broken", rule))

def weighing(weight=float("nan"), short=False):
    weights = lambda server, numbers: torch.full((1 if short else len(numbers),), weight)
    return Algorithm("weighing", local_update, add_update, weights)

def serving(kind="none"):
    def server(server, combined):
        gives = {
            "none": None,
            "short": server._replace(params=server.params[:1]),
            "nan": server._replace(params=server.params * float("nan")),
            "more": server._replace(state={"extra": server.params}),
        }
        return gives[kind]
    return Algorithm("serving", local_update, server)

def colluding(wrong=False):
    return Adversary("colluding", collude=lambda own, others: own[0, :1] if wrong else 1 / 0)

def triggering(target=0):
    return Adversary("triggering", trigger=lambda inputs: 1 / 0, target=target)
"""
CROWD: small.Changes = {"data.partition": {"kind": "iid", "clients": 40}, "rounds": 2, "data.min_rows": 2}


def ended(changes: small.Changes, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """A run's summary, and the errors of its clients."""
    (folder / "parts.py").write_text(PARTS)
    job = small.job({"rounds": 2, **changes}, folder)
    with create_folder(job, folder / "run") as place:
        result = execute(job, InlineEngine(), place, Silent())
    with closing(open_run(folder / "run")) as records:
        return result.values, [str(row.error) for row in records.clients() if row.status == "failed"]


@pytest.mark.parametrize("crowd", [{}, CROWD])
def test_a_scalar_that_is_not_finite_is_its_clients_failure(crowd: small.Changes, tmp_path: Path) -> None:
    """Also where workers sum: the others of its chunk still count."""
    _, errors = ended({**crowd, "strategy": {"name": "parts.py:scalar"}}, tmp_path)
    assert errors == [f"round {number}, client 2: the strategy's scalar size is not finite" for number in (1, 2)]


def test_scalars_are_the_declared_ones(tmp_path: Path) -> None:
    values, _ = ended({"strategy": {"name": "parts.py:undeclared"}}, tmp_path)
    assert "the strategy's scalars are other, declared are none" in values["stop"]["reason"]


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ({"name": "combining"}, "the combiner broken failed: ZeroDivisionError"),
        ({"name": "combining", "wrong": True}, "the combiner broken should give a vector"),
        ({"name": "weighing"}, "the strategy's weight of client 0 is nan"),
        ({"name": "weighing", "weight": -1.0}, "the strategy's weight of client 0 is -1.0"),
        ({"name": "weighing", "weight": 1.0, "short": True}, "the strategy's weights failed"),
        ({"name": "serving"}, "gave a NoneType, not a Server"),
        ({"name": "serving", "kind": "short"}, "made params"),
        ({"name": "serving", "kind": "nan"}, "made a model that is not finite"),
        ({"name": "serving", "kind": "more"}, "made state"),
    ],
)
def test_the_servers_side_ends_the_run_in_one_line(strategy: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Nothing of the round is committed."""
    values, _ = ended({"strategy": {**strategy, "name": f"parts.py:{strategy['name']}"}}, tmp_path)
    assert values["status"] == "stopped"
    assert values["rounds"] == 0
    assert reason in values["stop"]["reason"]
    assert "\n" not in values["stop"]["reason"]


@pytest.mark.parametrize("wrong", [False, True])
def test_an_own_model_that_fails_is_its_clients_failure(wrong: bool, tmp_path: Path) -> None:
    values, errors = ended({"strategy": {"name": "parts.py:owner", "wrong": wrong}}, tmp_path)
    assert values["status"] == "done"
    assert len(errors) == 10 and all("own_model" in error for error in errors)


def test_a_round_that_was_not_committed_leaves_no_personal_figures(tmp_path: Path) -> None:
    """Clients' states are then of a later round than the last committed model."""
    changes = {"strategy": {"name": "parts.py:late"}, "cohort.on_client_error": "fail"}
    values, _ = ended(changes, tmp_path)
    assert values["rounds"] == 1 and values["status"] == "stopped"
    names = values["metrics_last_round"]
    assert any(name.startswith("global/client-test/") for name in names)
    assert not any(name.startswith("personal/") for name in names)


def test_draws_of_an_own_model_repeat(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        found.append(ended({"strategy": {"name": "parts.py:drawing"}}, tmp_path / name)[0]["metrics_last_round"])
    assert found[0] == found[1]


@pytest.mark.parametrize("strategy", ["fedavg", "median", "flower:FedAvg"])
@pytest.mark.parametrize("wrong", [False, True])
def test_a_collusion_that_fails_ends_the_run_in_one_line(strategy: str, wrong: bool, tmp_path: Path) -> None:
    adversary = {"name": "parts.py:colluding", "clients": [1], "wrong": wrong}
    values, _ = ended({"strategy": {"name": strategy}, "adversary": adversary}, tmp_path)
    assert values["status"] == "stopped"
    assert "the adversary's collude" in values["stop"]["reason"]


def test_a_trigger_that_fails_ends_the_run_in_one_line(tmp_path: Path) -> None:
    values, _ = ended({"adversary": {"name": "parts.py:triggering", "clients": [1]}}, tmp_path)
    assert "its trigger failed: ZeroDivisionError" in values["stop"]["reason"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversary": {"name": "parts.py:triggering", "clients": [1], "target": 10}}, "target = 10: there are 10 cl"),
        ({"strategy": {"name": "fedavg", "combine": {"name": "rfa", "weights": "uniform"}}}, "strategy.weights"),
        ({"strategy": {"name": "local", "combine": {"name": "median"}}}, "local is taken as it is"),
        ({"strategy": {"name": "local"}, "evaluate.clients_every": 0}, "set evaluate.clients_every"),
        (
            {
                "adversary": {"name": "label-flip", "fraction": 0.2},
                "data.partition": {"kind": "iid", "clients": 10},
                "evaluate.metric": "global/client-validation/worst-10%/accuracy",
            },
            "ten clients need",
        ),
    ],
)
def test_refused_before_anything_trains(changes: small.Changes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=message):
        ended(changes, tmp_path)
