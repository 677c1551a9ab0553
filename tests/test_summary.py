"""What a run says at its end, for people and for programs, and what it leaves of the code that it used."""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fedsim
from fedsim.companions import WITHOUT_PRIVACY, compared
from fedsim.engine.inline import InlineEngine
from fedsim.local import Work
from fedsim.parameters import Weights, fingerprint
from fedsim.progress import WIDTH, Lines, Silent
from fedsim.records import RoundRecord, to_json
from fedsim.rounds import run_job
from fedsim.stopping import Stop, Watch
from fedsim.stored import open_run
from fedsim.summary import Ending, Result, legend, live_figures, model_card, summarise
from tests import small

ACCURACY = "global/central-test/rows/accuracy"


class Net(nn.Sequential):
    """A model that a caller gives in the scenario's place."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(math.prod(shape), classes))


@pytest.fixture(scope="module")
def work() -> Work:
    return Work(small.job())


def ended(work: Work, stop: Stop | None = None, rounds: int = 4) -> Result:
    watch = Watch(
        work.job.scenario, "global/central-validation/rows/accuracy", work.problem.lower, best_round=3, best_value=0.5
    )
    weights = Weights(torch.ones(2), torch.zeros(0))
    ending = Ending(stop, rounds, 2.0, weights, last={ACCURACY: 0.25}, best={ACCURACY: 0.75})
    return summarise(work, Path("run"), watch, None, ending)


def test_a_run_that_measures_nothing_has_no_columns_for_it(tmp_path: Path) -> None:
    """As a deployed one with privacy and no central rows: the line names no figure that never comes."""
    changes = {"data.split.central": 0.0, "evaluate.clients_every": 0}
    work = Work(small.job(changes))
    assert (legend(work), live_figures(work, {})) == ([], {})
    (text,) = legend(Work(small.job({**changes, "evaluate.clients_every": 1})))
    assert text.startswith("live: global/client-validation/rows/...")
    printed = io.StringIO()
    run_job(small.job({**changes, "rounds": 2}), InlineEngine(), tmp_path / "run", Lines(printed))
    assert printed.getvalue().count(" round  failed   s/round    left\n") == 1


def test_the_best_model_is_reported_and_the_last_one_kept(work: Work) -> None:
    result = ended(work)
    assert (result.values["metrics"], result.values["metrics_last_round"]) == ({ACCURACY: 0.75}, {ACCURACY: 0.25})
    assert result.values["seconds_per_round"] == 0.5
    assert result.values["status"] == "done" and result.values["stop"] is None
    assert result.fingerprint == fingerprint(result.weights)
    assert f"{ACCURACY} (round 3, chosen on validation): 0.7500" in result.lines


def test_a_run_that_was_stopped_says_why(work: Work) -> None:
    result = ended(work, Stop("failure", "all 5 clients failed", failed=True), rounds=0)
    assert result.values["status"] == "stopped"
    assert result.values["stop"] == {"kind": "failure", "reason": "all 5 clients failed"}
    assert math.isnan(result.values["seconds_per_round"])
    assert "ended early: all 5 clients failed" in result.lines
    assert ended(work, Stop("target", "reached")).values["status"] == "done"


def test_programs_see_the_price_of_privacy_too(work: Work) -> None:
    """`--json` prints `values`: the run without privacy is half of what was asked for."""
    private, plain = ended(work), ended(work, rounds=5)
    both = compared(private, {WITHOUT_PRIVACY: plain})
    assert both.values == {**private.values, "without_privacy": plain.values}
    assert json.loads(to_json(both.values))["without_privacy"]["metrics"] == {ACCURACY: 0.75}
    assert re.fullmatch(rf"  {ACCURACY} +0\.7500 +0\.7500", both.lines[1])
    assert both.lines[-len(private.lines) :] == private.lines
    assert "without_privacy" not in private.values


# Models of clients' own, and clients that attack

TWELVE: small.Changes = {"data.partition": {"kind": "iid", "clients": 12}, "rounds": 2}
BACKDOOR: small.Changes = {"adversary": {"name": "backdoor", "clients": [1, 4], "target": 3, "size": 2}}


class Told(Silent):
    """What a person is told."""

    def __init__(self) -> None:
        self.facts: list[str] = []
        self.shown: list[Mapping[str, float | None]] = []

    def begin(self, title: str, facts: Sequence[str], notes: Sequence[str], rounds: int) -> None:
        self.facts += facts

    def round(self, record: RoundRecord, shown: Mapping[str, float | None]) -> None:
        self.shown.append(shown)


def told(changes: small.Changes, folder: Path) -> tuple[Told, Result]:
    saying = Told()
    return saying, fedsim.run(small.scenario({**TWELVE, **changes}), out=folder / "run", progress=saying)


def test_both_models_of_a_personalised_run_are_shown(tmp_path: Path) -> None:
    saying, result = told({"strategy.name": "ditto"}, tmp_path)
    last = result.values["metrics_last_round"]
    table = result.lines[result.lines.index(f"{'client-test, round 2, the last':<40}    global  personal") :]
    for line, weighting in zip(table[1:4], ("clients", "worst-10%", "spread"), strict=True):
        pair = [f"{last[f'{model}/client-test/{weighting}/accuracy']:.4f}" for model in ("global", "personal")]
        assert line.split() == [f"{weighting}/accuracy", *pair]
    assert table[4] == "  worst 10 % and spread over 12 clients"
    assert (
        list(saying.shown[0]) == ["loss", "accuracy", "worst 10%", "personal"] and None not in saying.shown[-1].values()
    )
    assert "personal: personal/client-validation/clients/accuracy" in saying.facts


def test_of_clients_that_learn_alone_their_own_models_are_shown(tmp_path: Path) -> None:
    """The global model is the initial one for ever; nothing chooses among its rounds."""
    saying, result = told({"strategy.name": "local"}, tmp_path)
    full = "personal/client-test/clients/accuracy"
    value = result.values["metrics_last_round"][full]
    assert result.values["headline"] == {"metric": full, "value": value, "lower_is_better": False}
    assert (result.values["chosen_by"], result.values["best_round"]) == (None, 2)
    assert f"{full} (round 2, the last): {result.values['headline']['value']:.4f}" in result.lines
    assert not any("global/" in line for line in [*result.lines, *saying.facts])
    with closing(open_run(result.folder)) as read:
        measured = {name: values[1] for name, values in read.metrics().items()}
    own = [f"personal/client-validation/{name}" for name in ("clients/loss", "clients/accuracy", "worst-10%/accuracy")]
    assert [*saying.shown[0].values()] == [measured[name] for name in own]


def test_every_run_says_how_unequal_it_is_to_clients(tmp_path: Path) -> None:
    _, result = told({}, tmp_path)
    spread = result.values["metrics"]["global/client-test/spread/accuracy"]
    assert f"global/client-test/spread/accuracy: {spread:.4f} over 12 clients" in result.lines


def test_who_attacks_is_said_and_what_they_achieve(tmp_path: Path) -> None:
    """Figures over clients leave attackers out, whose rows say nothing of the model's worth to honest people."""
    saying, result = told(BACKDOOR, tmp_path)
    assert "2 of 12 clients attack: backdoor" in saying.facts
    assert result.values["adversary"] == {"name": "backdoor", "clients": [1, 4]}
    success = result.values["metrics"]["global/central-test/rows/attack-success"]
    assert f"global/central-test/rows/attack-success (the same round): {success:.4f}" in result.lines
    assert "figures over clients are over the 10 honest ones" in result.lines
    assert result.values["clients_counted"] == 10
    assert any(line.startswith("global/client-test/worst-10%") and "over 10 clients" in line for line in result.lines)
    assert all(len(line) <= WIDTH for line in [*result.lines[:-1], *saying.facts])


def test_the_records_name_the_model_that_was_used(tmp_path: Path) -> None:
    """scenario.toml still names the one whose place it took."""
    fedsim.run(small.scenario({"rounds": 1}), model=Net, out=tmp_path / "run")
    kept: dict[str, Any] = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert kept["model"] == f"{__name__}:Net" and kept["corpus"] == "digits"
    assert list(kept["sources"]) == [Path(__file__).name]
    assert (tmp_path / "run" / "sources" / Path(__file__).name).read_bytes() == Path(__file__).read_bytes()
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert card["architecture"]["model"] == f"{__name__}:Net" and card["architecture"]["settings"] == {}


def test_a_scenarios_model_is_described_with_its_settings(work: Work) -> None:
    architecture = model_card(work, ended(work))["architecture"]
    assert (architecture["model"], architecture["settings"]) == ("mlp", {"hidden": [16]})


def test_a_run_folder_is_named_after_the_scenarios_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "My first.toml").write_text(small.scenario({"rounds": 1}).to_toml())
    result = fedsim.run("mine/My first.toml")
    assert re.fullmatch(r"\d{8}-\d{4}-my-first-[0-9a-f]{4}", result.folder.name)


def test_a_frozen_layer_is_saved_with_the_model(tmp_path: Path) -> None:
    def half_frozen(shape: tuple[int, ...], classes: int) -> nn.Module:
        made = nn.Sequential(Net(shape, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))
        return made.requires_grad_(False).append(nn.Linear(classes, classes))

    result = small.run(small.job({"rounds": 1}, model=half_frozen), tmp_path / "run")
    assert result.values["rounds"] == 1
    for file in ("best", "last"):
        made = half_frozen((8, 8, 1), 10)
        made.load_state_dict(load_file(tmp_path / "run" / "model" / f"{file}.safetensors"), strict=True)
