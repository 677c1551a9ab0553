"""Runs made beside a run: each as it would be alone, and what they tell of the run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fedsim
from fedsim import companions, planning
from fedsim.companions import LOCAL, Place, compared
from fedsim.data.corpus import Folders
from fedsim.errors import FedsimError, ScenarioError
from fedsim.overview import beside, run_lines, runs
from fedsim.parameters import Weights
from fedsim.planning import jobs
from fedsim.progress import WIDTH
from fedsim.records import to_json
from fedsim.resuming import resume
from fedsim.scenario import load
from fedsim.scenario_files import override
from fedsim.show import as_data, show, show_lines
from fedsim.stored import open_run
from fedsim.summary import Result
from tests import small

REFERENCES = ["local", "central", "constant", "fedavg"]
MANY: small.Changes = {"data.partition": {"kind": "iid", "clients": 12}, "rounds": 2}
OWN = '''
"""Strategies of a user's own: one that works, and one whose server half does not."""

from fedsim.algorithm import Algorithm, add_update, local_update


def plain() -> Algorithm:
    """FedAvg."""
    return Algorithm("plain", local_update, add_update)


def broken() -> Algorithm:
    """Divides by zero."""
    return Algorithm("broken", local_update, lambda server, combined: server._replace(params=server.params / (1 // 0)))
'''


def run(changes: small.Changes, out: Path, folder: Path = Path()) -> Result:
    return fedsim.run(small.scenario(changes, folder), out=out)


def jobs_beside(changes: small.Changes, folder: Path = Path()) -> Mapping[Place, Any]:
    return dict(jobs(small.scenario(changes, folder), Folders.of(None, folder))[1])


@pytest.fixture(scope="module")
def personal(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A personalised run among attackers, beside all references."""
    adversary = {"name": "sign-flip", "clients": [1]}
    changes = {**MANY, "strategy.name": "ditto", "adversary": adversary, "references": REFERENCES}
    return run(changes, tmp_path_factory.mktemp("personal") / "run")


# Each is the run that it would be alone


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_is_the_same_run_with_another_strategy(name: str, personal: Result, tmp_path: Path) -> None:
    """To the bit: partition, initial model and cohorts are the scenario's; its parameters and attackers are not."""
    alone = run({**MANY, "strategy": {"name": name}}, tmp_path / "alone")
    reference = open_run(personal.folder / "references" / name).summary()
    assert reference["fingerprint"] == alone.fingerprint == personal.values["references"][name]["fingerprint"]
    assert reference["metrics_last_round"] == alone.values["metrics_last_round"]
    assert "adversary" in personal.values and "adversary" not in reference


def test_a_reference_may_be_ones_own(tmp_path: Path) -> None:
    """Its file is kept with the run's sources, as all that bits depend on."""
    (tmp_path / "mine.py").write_text(OWN)
    result = run(
        {"rounds": 1, "strategy.name": "scaffold", "references": ["mine.py:plain", "fedavg"]},
        tmp_path / "run",
        tmp_path,
    )
    mine, theirs = (result.values["references"][name]["fingerprint"] for name in ("mine.py:plain", "fedavg"))
    assert mine == theirs
    assert sorted(path.name for path in (result.folder / "references").iterdir()) == ["fedavg", "mine.py-plain"]
    assert (result.folder / "sources" / "mine.py").read_text() == OWN


def test_a_derived_scenario_finds_the_references_of_its_base(tmp_path: Path) -> None:
    """Files that a base names lie beside the base."""
    for folder in ("base", "derived"):
        (tmp_path / folder).mkdir()
    (tmp_path / "base" / "mine.py").write_text(OWN)
    base = small.scenario({"strategy.name": "scaffold", "references": ["mine.py:plain", "local"]}, tmp_path / "base")
    (tmp_path / "base" / "base.toml").write_text(base.to_toml())
    (tmp_path / "derived" / "new.toml").write_text('extends = "../base/base.toml"\nseed = 2\n')
    derived = load(str(tmp_path / "derived" / "new.toml"))
    assert derived.references == ["../base/mine.py:plain", "local"]
    assert [path.resolve() for path in derived.own_files()] == [(tmp_path / "base" / "mine.py").resolve()]


def test_a_reference_keeps_the_rules_that_it_can_follow() -> None:
    """A personal metric judges no global model, nor a global one what clients learn alone; time counts for all."""
    stop = {"metric": "global/central-validation/rows/accuracy", "at_least": 0.9, "patience": 2, "max_seconds": 60.0}
    found = jobs_beside({"references": ["local", "central"], "stop": stop})
    assert found["references", "central"].scenario.stop.at_least == 0.9
    assert found[LOCAL].scenario.stop.model_dump(exclude_none=True) == {"max_seconds": 60.0}
    metric = {"evaluate.metric": "personal/client-validation/clients/accuracy", "strategy.name": "ditto"}
    found = jobs_beside({"references": ["local", "constant"], **metric})
    assert found[LOCAL].scenario.evaluate.metric is not None
    assert found["references", "constant"].scenario.evaluate.metric is None


def test_the_run_without_privacy_is_one_of_them(tmp_path: Path) -> None:
    result = run({**small.PRIVATE, "rounds": 1, "privacy.without": {}}, tmp_path / "run")
    plain = open_run(tmp_path / "run" / "without-privacy").summary()
    assert result.values["without_privacy"]["fingerprint"] == plain["fingerprint"] != result.fingerprint
    assert "references" not in result.values
    assert result.lines[0].split() == ["the", "price", "of", "privacy", "(test)", "private", "without"]


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": ["lokal"]}, r"small: references: there is no strategy 'lokal'\. Did you mean local\?"),
        ({"references": ["mine.py:none"]}, r"small: references: .*there is no file"),
        ({"references": ["fedavg"]}, r"small: references name 'fedavg', which is strategy\.name itself; leave it out"),
        ({"references": ["local", "local"]}, "small: references name 'local' twice; name each once"),
        ({"references": "local"}, r"small: references = 'local': .*list"),
        ({"references": ["local"], "evaluate.clients_every": 0}, r"references: 'local' .* set evaluate\.clients_every"),
        (
            {"references": ["local"], **small.PRIVATE},
            r"small: references promise no privacy, .*privacy\.example; privacy\.without runs",
        ),
        (
            {"references": ["scaffold"], "train.optimizer": "adam"},
            "small: references: train.optimizer = 'adam' does not go",
        ),
    ],
)
def test_what_cannot_be_a_reference_is_told_before_anything_starts(
    changes: small.Changes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ScenarioError, match=message) as refusal:
        run(changes, tmp_path / "run")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_an_unknown_reference_is_told_before_data_are_loaded() -> None:
    def data(folders: Folders) -> Any:
        raise AssertionError("data were loaded")

    with pytest.raises(ScenarioError, match="Did you mean central"):
        jobs(small.scenario({"references": ["centrl"]}), Folders.of(None, Path()), data=data)


def test_the_same_strategy_with_its_defaults_is_no_refusal_for_one_with_keys() -> None:
    """Uniform weights against weights by examples is a comparison."""
    found = jobs_beside({"strategy": {"name": "fedavg", "weights": "uniform"}, "references": ["fedavg"]})
    assert found["references", "fedavg"].scenario.strategy.settings == {}


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ({"train.learning_rat": 1.0}, r"train\.learning_rat is not known\. Did you mean learning_rate\?"),
        ({"train.optimizer": "adam", "train.momentum": 0.5}, "momentum belongs to sgd"),
        (
            {"evaluate.clients_every": 0, "stop.metric": "global/client-validation/rows/accuracy"},
            "is never measured",
        ),
        ({"stop.epsilon": 3.0}, r"stop\.epsilon needs privacy\.example"),
    ],
)
def test_what_the_run_without_privacy_changes_is_checked_too(without: dict[str, Any], message: str) -> None:
    """All of it before anything starts: `test_cli.py` has the command write nothing."""
    with pytest.raises(FedsimError, match=rf"^small: privacy\.without: .*{message}"):
        jobs_beside({**small.PRIVATE, "privacy.without": without})


def test_the_run_without_privacy_keeps_the_other_rules() -> None:
    """Of its stop rules it loses the one that it could not follow."""
    private = {**small.PRIVATE, "stop": {"epsilon": 4.0, "max_seconds": 9.0}, "privacy.without": {"rounds": 2}}
    plain = jobs_beside(private)[companions.WITHOUT_PRIVACY].scenario
    assert (plain.stop.epsilon, plain.stop.max_seconds, plain.rounds) == (None, 9.0, 2)
    assert plain.privacy.example is None


# Run, checked, forecast, listed


def test_a_reference_that_its_rules_end_does_not_end_the_run(tmp_path: Path) -> None:
    """What was asked for has been run; the closing block says what happened to the other."""
    (tmp_path / "mine.py").write_text(OWN)
    result = run({"rounds": 2, "references": ["mine.py:broken", "central"]}, tmp_path / "run", tmp_path)
    broken, central = result.values["references"].values()
    assert (broken["status"], broken["rounds"], central["rounds"]) == ("stopped", 0, 2)
    assert any(
        line.startswith("  mine.py:broken ended early: round 1: the strategy's server half") for line in result.lines
    )
    with pytest.raises(ScenarioError, match="has finished"):
        resume(tmp_path / "run")


def test_a_fast_check_runs_them_too_cut_down(tmp_path: Path) -> None:
    for number, changes in enumerate(
        [
            {"references": ["local", "central"], "strategy.name": "ditto"},
            {**small.PRIVATE, "privacy.without": {"rounds": 50, "train.epochs": 9, "train.learning_rate": 0.5}},
        ]
    ):
        out = tmp_path / str(number)
        fedsim.run(planning.fast(small.scenario({**changes, "rounds": 100})), out=out)
        summaries = [open_run(Path(each.folder)).summary() for each in beside(out)]
        assert [summary["rounds"] for summary in summaries] == [1] * (2 - number)


def test_a_forecast_counts_them() -> None:
    alone, both = (
        {line.name: line for line in planning.forecast(small.scenario(changes), None)}
        for changes in (MANY, {**MANY, "references": ["local", "constant", "central"]})
    )
    assert both["beside"].value == ["references/local", "references/constant", "references/central"]
    assert "beside" not in alone
    assert both["disk"].value > 3 * alone["disk"].value
    assert "for runs beside it" in both["seconds"].text and "beside" not in alone["seconds"].text


def test_no_more_disk_than_forecast_is_taken(personal: Result) -> None:
    scenario = small.scenario({**MANY, "strategy.name": "ditto", "references": REFERENCES})
    disk = next(line.value for line in planning.forecast(scenario, None) if line.name == "disk")
    taken = sum(path.stat().st_size for path in [personal.folder, *personal.folder.rglob("*")])
    assert taken <= disk <= 3 * taken


def test_they_belong_to_their_run(personal: Result) -> None:
    """A list of runs has the run; a look into its folder has those beside it."""
    found, unreadable = runs(personal.folder.parent)
    assert ([run.folder for run in found], unreadable) == ([str(personal.folder)], {})
    assert [Path(run.folder).name for run in beside(personal.folder)] == REFERENCES


def test_show_tells_of_both_models_and_of_the_runs_beside(personal: Result) -> None:
    shown = show(personal.folder)
    own = "personal/client-test/clients/accuracy"
    assert shown.overview.metric == "global/central-test/rows/accuracy"
    assert shown.overview.personal == personal.values["metrics_last_round"][own]
    assert list(shown.last_rounds[0]["metrics"])[-1] == "personal/client-validation/clients/accuracy"
    assert all(row["personal"] is not None for row in shown.worst)
    assert [Path(run.folder).name for run in shown.beside] == REFERENCES
    local = personal.values["references"]["local"]["headline"]
    lines = show_lines(shown)
    assert f"    {local['metric']} {local['value']:.4f}" in lines and local["metric"] == own
    assert max(map(len, lines)) <= WIDTH
    json.loads(to_json(as_data(shown)))


def test_show_and_list_judge_a_run_of_clients_alone_by_their_own_models(personal: Result) -> None:
    folder = personal.folder / "references" / "local"
    shown = show(folder)
    value = personal.values["references"]["local"]["headline"]["value"]
    assert (shown.overview.metric, shown.overview.value) == ("personal/client-test/clients/accuracy", value)
    assert all(name.startswith("personal/client-validation/") for name in shown.last_rounds[0]["metrics"])
    assert run_lines([shown.overview], {})[-1] == f"    Small, reference local · personal {value:.4f}"


# What they tell


def test_programs_see_them(personal: Result) -> None:
    values = json.loads(to_json(personal.values))
    assert list(values["references"]) == REFERENCES
    gain = values["gain_over_local"]
    assert (gain["metric"], gain["clients"]) == ("accuracy", 11) and 0 <= gain["share_gained"] <= 1
    assert values["adversary"] == {"name": "sign-flip", "clients": [1]}
    assert values["clients_counted"] == 11


def test_people_see_all_runs_in_one_table(personal: Result) -> None:
    """The global model where there is one, clients' own where they have one."""
    table = {line[:32].strip(): line[32:].split() for line in personal.lines[1 : 3 + len(REFERENCES)]}
    assert list(table) == ["this run", "this run, personal", "local, personal", "central", "constant", "fedavg"]
    central = personal.values["references"]["central"]["metrics"]
    assert table["central"] == [
        "2",
        f"{central['global/central-test/rows/accuracy']:.4f}",
        f"{central['global/client-test/clients/accuracy']:.4f}",
    ]
    local = personal.values["references"]["local"]["metrics_last_round"]["personal/client-test/clients/accuracy"]
    assert table["local, personal"] == ["2", "-", f"{local:.4f}"]
    assert max(map(len, personal.lines)) <= WIDTH


def result(metric: str, own: Mapping[int, float]) -> Result:
    values = {
        "headline": {
            "metric": f"global/central-test/rows/{metric}",
            "value": 0.5,
            "lower_is_better": metric != "accuracy",
        },
        "metrics": {},
        "metrics_last_round": {},
        "status": "done",
        "rounds": 1,
    }
    return Result(Path("run"), Weights(torch.zeros(1), torch.zeros(0)), values, ["done"], own)


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("bits-per-character", -1)])
def test_gain_over_local_is_what_each_client_has_more_of(metric: str, sign: int) -> None:
    """By hand: eleven clients in both, of which three gain; the worst tenth of eleven is the one that loses most."""
    gains = {1: 0.25, 2: 0.5, 3: 0.125, 4: -0.25, 5: -0.5, **dict.fromkeys(range(6, 12), 0.0)}
    alone = dict.fromkeys(range(20), 0.5)
    both = compared(result(metric, {n: 0.5 + sign * gain for n, gain in gains.items()}), {LOCAL: result(metric, alone)})
    gain = both.values["gain_over_local"]
    assert gain == {
        "metric": metric,
        "clients": 11,
        "mean": pytest.approx(0.125 / 11),
        "share_gained": pytest.approx(3 / 11),
        "worst_tenth": -0.5,
    }
    assert "mean +0.0114; 27 % gained; worst 10 %: -0.5000" in " ".join(line.strip() for line in both.lines)


def test_of_few_clients_a_tenth_is_nobody_and_of_none_there_is_no_gain() -> None:
    one = compared(result("accuracy", {0: 1.0}), {LOCAL: result("accuracy", {0: 0.5})})
    assert one.values["gain_over_local"]["worst_tenth"] is None
    none = compared(result("accuracy", {}), {LOCAL: result("accuracy", {0: 0.5})})
    assert none.values["gain_over_local"]["clients"] == 0 and math.isnan(none.values["gain_over_local"]["mean"])
    assert not any("gain" in line for line in none.lines)


def test_own_figures_are_those_of_the_last_model(tmp_path: Path) -> None:
    """Against the model as it is kept, applied to every client's test rows."""
    job = small.job(override({**MANY}, {"evaluate.min_rows": 6}))
    ended = small.run(job, tmp_path / "run")
    model = job.build_model()
    model.load_state_dict(load_file(tmp_path / "run" / "model" / "last.safetensors"))
    model.eval()
    expected = {}
    for client in range(job.federation.clients):
        rows = job.federation.rows(client, "test")
        if len(rows.x) >= 6:
            right = model(torch.from_numpy(np.array(rows.x))).argmax(1).numpy() == rows.y
            expected[client] = pytest.approx(right.mean())
    assert expected and ended.own_figures == expected
