"""`fedsim check` against models of which it is known what is trained, sent and refused."""

import json
import sys
from pathlib import Path

import pytest
import tomli_w

from fedsim import cli
from fedsim.checking import ANEW, AVERAGED, FROZEN, STAYS, STILL, TRAINED, UNUSED, as_data, check, check_lines
from fedsim.errors import ModelError, ScenarioError
from tests import small

NETS = '''
"""Models and a loss of which something is to be said."""

import torch
from torch import nn
from torch.nn import functional

from fedsim import Metric


class Odd(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.frozen, self.unused = nn.Linear(64, 8), nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.norm, self.still, self.head = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, x):
        hidden = self.norm(self.frozen(x.flatten(1)))
        return self.head(hidden + 0 * self.still(hidden))


class Drawing(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, x):
        return self.layer(x.flatten(1)) * (1 + torch.rand(()) * self.training)


class Fails(Drawing):
    def forward(self, x):
        if self.training:
            raise KeyError("only in training")
        return self.layer(x.flatten(1))


def doubled(output, target):
    return 2 * functional.cross_entropy(output, target, reduction="none")


rows = Metric("half-rows", lambda output, target: {"n": len(target)}, lambda sums: sums["n"] / 2)
'''
DIGITS = ("data.name=digits",)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_value_of_a_model_is_accounted_for() -> None:
    found = check("nets.py:Odd", DIGITS)
    assert {each.name: each.what for each in found.parameters} == {
        "frozen.weight": FROZEN,
        "frozen.bias": FROZEN,
        "unused.weight": UNUSED,
        "unused.bias": UNUSED,
        "norm.weight": TRAINED,
        "norm.bias": TRAINED,
        "still.weight": STILL,
        "still.bias": STILL,
        "head.weight": TRAINED,
        "head.bias": TRAINED,
    }
    assert {each.name: each.what for each in found.buffers} == {
        "norm.running_mean": AVERAGED,
        "norm.running_var": AVERAGED,
        "norm.num_batches_tracked": ANEW,
    }
    assert (found.rows, found.clients, found.inputs) == (32, 1, "[32, 1, 8, 8] float32")
    assert (found.targets, found.output) == ("[32] int64", "[32, 10] float32")
    assert "BatchNorm" in found.private


def test_what_stays_with_clients_is_the_strategys_to_say() -> None:
    found = check("nets.py:Odd", (*DIGITS, "strategy.name=fedbn"))
    stay = {each.name for each in (*found.parameters, *found.buffers) if STAYS in each.what}
    assert stay == {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}


def test_what_cannot_be_done_has_its_reason() -> None:
    found = check("nets.py:Drawing", DIGITS)
    assert found.stacked == "the model draws while it trains"
    assert found.compiled == "model 'nets.py:Drawing' draws numbers while it trains (aten.rand.default)"


def test_a_scenario_is_checked_with_its_own_loss_and_metrics(folder: Path) -> None:
    table = {"loss": "nets.py:doubled", "metrics": ["nets.py:rows"], "headline": "half-rows"}
    (folder / "small.toml").write_text(tomli_w.dumps({**small.SMALL, "task": table}))
    found, plain = check("small.toml"), check("small.toml", ["task={}"])
    assert (found.loss, found.headline, plain.loss, plain.headline) == (
        "nets.py:doubled",
        "half-rows",
        "classification",
        "accuracy",
    )
    assert found.metrics["loss"] == pytest.approx(2 * plain.metrics["loss"], rel=1e-6)
    assert found.metrics["half-rows"] == found.rows / 2
    assert not (found.private or found.stacked or found.compiled)
    assert json.loads(json.dumps(as_data(found)))["parameters"][0]["what"] == TRAINED
    assert all(len(line) <= 80 for line in check_lines(found))
    assert set(folder.iterdir()) == {folder / "small.toml", folder / "nets.py"} | set(folder.glob("__pycache__"))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_it(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--json"] if as_json else []
    monkeypatch.setattr(sys, "argv", ["fedsim", "check", "nets.py:Drawing", "--set", *DIGITS, *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed, found = capsys.readouterr().out, check("nets.py:Drawing", DIGITS)
    assert not ended.value.code
    if as_json:
        assert json.loads(printed) == json.loads(json.dumps(as_data(found)))
    else:
        assert printed.splitlines() == check_lines(found)


def test_what_cannot_be_checked_is_one_line() -> None:
    with pytest.raises(ScenarioError, match=r"name the class or function in it, as nets\.py:Net"):
        check("nets.py")
    for named in ([], ["data=5"]):
        with pytest.raises(ScenarioError, match=r"name the data that it is for, such as --set data\.name=digits"):
            check("nets.py:Odd", named)
    with pytest.raises(ScenarioError, match=r"nets\.py defines no 'Ood'\. Did you mean Odd\?"):
        check("nets.py:Ood", DIGITS)
    with pytest.raises(ModelError, match=r"model 'nets\.py:Fails' fails in training: KeyError: 'only in training'"):
        check("nets.py:Fails", DIGITS)
