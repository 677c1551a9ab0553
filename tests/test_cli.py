"""The `fedsim` command: what it prints, its exit status, and that a mistake costs one line and nothing else."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import tomli_w

from fedsim import cli, registry
from fedsim.scenario_files import shipped
from fedsim.stored import open_run
from tests import small


class Printed(NamedTuple):
    status: int
    out: str
    err: str


class Command:
    """The command in this process: `fedsim(...)` gives its exit status and what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._printed = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Printed:
        self._patch.setattr(sys, "argv", ["fedsim", *arguments])
        self._printed.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Printed(int(ended.value.code or 0), *self._printed.readouterr())


@pytest.fixture
def fedsim(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Command:
    """The command, in an empty folder without data sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    (tmp_path / "small.toml").write_text(tomli_w.dumps(small.SMALL))
    return Command(monkeypatch, capsys)


def everything(folder: Path) -> set[tuple[str, bytes]]:
    files = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {(str(path), path.read_bytes() if path.is_file() else b"") for path in files}


WRONG_NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, x):
        return self.layer(x.flatten(1))

five = 5

def raising():
    return {}["missing"]
"""
PRIVACY = ("privacy.example.noise_multiplier=1.0", "privacy.example.max_grad_norm=1.0")
BAD_SETTINGS: list[tuple[tuple[str, ...], str]] = [
    (("train.learning_rat=1",), "Did you mean learning_rate?"),
    (("trian.epochs=1",), "Did you mean train?"),
    (("strategy.name=fedavgg",), "Did you mean fedavg?"),
    (("strategy.sever_lr=1", "strategy.name=scaffold"), "Did you mean server_lr?"),
    (("model.name=ccn",), "Did you mean cnn?"),
    (("data.name=digit",), "Did you mean digits?"),
    (("data.partition.kind=dirichlett",), "Did you mean dirichlet?"),
    (("model.hiden=[4]",), "Did you mean hidden?"),
    (("rounds=many",), "rounds"),
    (("model.hidden=wide",), "model.hidden"),
    (("rounds=0",), "rounds"),
    (("cohort.fraction=0",), "cohort.fraction"),
    (("cohort.size=2", "cohort.fraction=0.5"), "cohort"),
    (("data.partition={kind='shards',clients=900,shards=9}",), "rows"),
    (("data.min_rows=1000",), "min_rows"),
    (("data.partition={kind='iid',clients=100000}",), "client"),
    ((*PRIVACY, "privacy.example.delta=0.5"), "delta"),
    (("privacy.example.epsilon=8",), "privacy.example"),
    ((*PRIVACY, "privacy.example.delta=1e-5", "strategy.name=moon"), "no private form"),
    (
        (*PRIVACY, "privacy.example.delta=1e-5", "model={name='cnn',norm='batch'}"),
        'Use GroupNorm, or set model.norm = "group"',
    ),
    (("strategy.name=scaffold", "train.optimizer=adam"), "theory covers"),
    (("model={name='wrong.py:Net'}",), "3 outputs, the data has 10 classes"),
    (("model={name='wrong.py:Nett'}",), "Did you mean Net?"),
    (("model={name='absent.py:Net'}",), "absent.py"),
    (("data={name='mnist',partition={kind='iid',clients=3}}", "model={name='mlp'}"), "not found; put the files into"),
    (("data={name='npz',path='broken.npz',partition={kind='iid',clients=3}}",), "broken.npz"),
    (("data={name='npz',path='absent.npz',partition={kind='iid',clients=3}}",), "absent.npz"),
    (("stop.metric=global/central-test/rows/accuracy", "stop.at_least=0.9"), "validation"),
    (("stop.metric=global/central-validation/rows/accurancy", "stop.at_least=0.9"), "accuracy"),
    (("seed",), "--set seed: write it as key=value"),
    (("title.first=x",), "title"),
    (("strategy.name=wrong.py:five",), "'wrong.py:five' is of type int; name a function or class"),
    (("data={name='wrong.py:five',partition={kind='iid',clients=3}}",), "is of type int"),
    (("strategy.name=wrong.py:raising",), "strategy wrong.py:raising: KeyError"),
    (("strategy.name=leaving.py:any",), "SystemExit: 3"),
    (("data.min_row=3",), "Did you mean min_rows?"),
    (("model={nam='mlp'}",), "model.nam is not known. Did you mean name?"),
    (("model.nmae='mlp'",), "Did you mean name?"),
    (("data.partition.clients='10'",), "data.partition.clients = '10'"),
    (("stop.metric=accuracy",), "small.toml: stop.metric: there is no metric 'accuracy'. Did you mean global/"),
    (("cohort.size=500",), "small.toml: cohort.size = 500: the number of clients is 5"),
    (
        (*PRIVACY, "privacy.example.delta=1e-3", "privacy.without={train={learning_rat=1}}"),
        "Did you mean learning_rate?",
    ),
    ((*PRIVACY, "privacy.example.delta=1e-3", "privacy.without={'data.min_rows'=1}"), "without cannot change data"),
    (("engine.kind=rai",), "engine.kind"),
]


@pytest.mark.parametrize(("settings", "hint"), BAD_SETTINGS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_costs_one_line(settings: tuple[str, ...], hint: str, fedsim: Command, tmp_path: Path) -> None:
    """Exit status 2, one line that says what to change, and nothing on the disk."""
    (tmp_path / "wrong.py").write_text(WRONG_NET)
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 this is no archive")
    before = everything(tmp_path)
    sets = [part for setting in settings for part in ("--set", setting)]
    status, out, err = fedsim("run", "small.toml", *sets, "--out", "deep/run")
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert hint in err
    assert "Traceback" not in out + err
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("run", "quikstart"), "Did you mean quickstart?"),
        (("run", "absent.toml"), "there is no such file"),
        (("run", "garbage.toml"), "not valid TOML"),
        (("run", "small.toml", "--out", "taken"), "exists already"),
        (("run", "small.toml", "--out", "small.toml"), "exists already"),
        (("run", "small.toml", "--out", "small.toml/run"), "cannot be written"),
        (("run", "small.toml", "--engine", "rey"), "engine.kind"),
        (("run", "small.toml", "--dry-run", "--set", "rounds=0"), "rounds"),
        (("list", "strategie"), "Did you mean strategies?"),
        (("list", "foo"), "Known: adversaries, data, models, papers, partitions, runs, scenarios, strategies."),
        (("run", "small.toml", "--dry-run", "--set", "stop.metric=accuracy"), "Did you mean global/"),
        (("run", "small.toml", "--fast-check", "--out", "mine"), "give one of --dry-run, --fast-check and --out"),
        (("run", "small.toml", "--dry-run", "--out", "mine"), "give one of --dry-run, --fast-check and --out"),
        (("partition", "small.toml", "--set", "data.partition.clients=0"), "small.toml: data.partition.clients = 0"),
        (("partition", "small.toml", "--picture", "picture.doc"), "picture"),
        (("partition", "small.toml", "--picture", "absent/picture.svg"), "picture"),
        (("new", "small.toml"), "exists already"),
        (("new", "mine"), ".toml"),
        (("new", "--strategy", "my-own"), "give the name of a Python function"),
        (("new", "--strategy", "mine", "--folder"), "give one of --folder, --strategy and --flower"),
        (("new", "--flower", "my_app"), "--flower my_app: Flower's names of apps are"),
    ],
)
def test_other_mistakes_cost_one_line_too(
    arguments: tuple[str, ...], hint: str, fedsim: Command, tmp_path: Path
) -> None:
    (tmp_path / "garbage.toml").write_text("title = ")
    (tmp_path / "taken").mkdir()
    before = everything(tmp_path)
    status, out, err = fedsim(*arguments)
    assert (status, err.count("\n")) == (2, 1), err
    assert hint in err
    assert "Traceback" not in out + err
    assert everything(tmp_path) == before


def test_an_unknown_option_shows_the_usage(fedsim: Command) -> None:
    status, _, err = fedsim("run", "small.toml", "--rounds", "3")
    assert status == 2
    assert "--rounds" in err


def listed_in(text: str) -> list[str]:
    """The commands that a help names."""
    return re.findall(r"^  (\w+)  ", text.partition("Commands:")[2], flags=re.MULTILINE)


def test_every_command_helps_with_its_arguments_and_an_example(fedsim: Command) -> None:
    listed = [(name,) for name in listed_in(fedsim("--help").out) if name != "deploy"]
    assert {("run",), ("list",), ("partition",), ("doctor",), ("new",)} <= set(listed)
    deploying = listed_in(fedsim("deploy", "--help").out)
    assert {"init", "join", "server", "node", "run", "rehearse"} <= set(deploying)
    for command in [*listed, *(("deploy", name) for name in deploying)]:
        status, out, _ = fedsim(*command, "--help")
        assert status == 0
        assert f"Example: fedsim {' '.join(command)}" in out
        assert max(map(len, out.splitlines())) <= 80
        assert "\\[" not in out
        usage = re.findall(r"[A-Z|]+", out.partition("\n")[0].partition("[OPTIONS]")[2])
        section = out.partition("Arguments:\n")[2].partition("\n\n")[0]
        assert re.findall(r"^  \[?([A-Z|]+)(?:\.\.\.)?\]?  +[a-z]", section, flags=re.MULTILINE) == usage, out
        assert out.count("rguments:\n") == bool(usage)


def test_a_run_prints_its_rounds_and_where_it_lies(fedsim: Command, tmp_path: Path) -> None:
    status, out, _ = fedsim("run", "small.toml", "--out", "mine")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if re.match(r" +\d+ ", line)] == ["1", "2", "3"]
    assert max(map(len, out.splitlines())) <= 80
    records = open_run(tmp_path / "mine")
    assert records.summary()["fingerprint"] in out
    assert "mine/   run.db   model/" in out
    for part in ("scenario.toml", "environment.json", "model/last.safetensors", "model/model.json"):
        assert (tmp_path / "mine" / part).is_file()


def test_json_is_for_programs(fedsim: Command) -> None:
    """Nothing but JSON on the standard output; the rounds go where people look."""
    status, out, err = fedsim("run", "small.toml", "--out", "mine", "--json")
    assert status == 0
    summary = json.loads(out)
    assert summary["rounds"] == 3
    assert 0 < summary["metrics"]["global/central-test/rows/accuracy"] <= 1
    assert "round" in err


def test_json_holds_the_run_without_privacy(fedsim: Command) -> None:
    """The price of privacy is a private run's first figure, for programs too."""
    keys = (*PRIVACY, "privacy.example.delta=1e-3", "privacy.without={rounds=2}")
    settings = [part for key in keys for part in ("--set", key)]
    summary = json.loads(fedsim("run", "small.toml", *settings, "--out", "mine", "--json").out)
    assert (summary["rounds"], summary["without_privacy"]["rounds"]) == (3, 2)
    assert summary["privacy"]["statement"]
    assert "privacy" not in summary["without_privacy"]


def test_the_snapshot_of_a_run_gives_the_run_again(fedsim: Command) -> None:
    """`scenario.toml` in the run folder is resolved: it stands alone."""
    first = json.loads(fedsim("run", "small.toml", "--set", "seed=7", "--out", "one", "--json").out)
    second = json.loads(fedsim("run", "one/scenario.toml", "--out", "two", "--json").out)
    assert first["fingerprint"] == second["fingerprint"]
    assert first["folder"] != second["folder"]


def test_a_run_that_fails_by_its_rules_has_status_3(fedsim: Command, tmp_path: Path) -> None:
    settings = ("--set", "train.learning_rate=1e30", "--set", "train.epochs=5")
    status, out, err = fedsim("run", "small.toml", "--out", "mine", *settings)
    assert (status, err.count("\n")) == (3, 1), err
    assert "clients failed" in err
    assert "Traceback" not in out + err
    assert open_run(tmp_path / "mine").rounds() == []


@pytest.mark.parametrize("private", [False, True])
def test_a_dry_run_writes_nothing(private: bool, fedsim: Command, tmp_path: Path) -> None:
    before = everything(tmp_path)
    settings = [part for key in (*PRIVACY, "privacy.example.delta=1e-3") for part in ("--set", key)] if private else []
    status, out, _ = fedsim("run", "small.toml", "--dry-run", *settings)
    assert status == 0
    assert {"clients", "cohort", "parameters", "bytes_down", "memory", "disk", "seconds"} <= set(out.split())
    assert ("epsilon" in out) == private
    assert max(map(len, out.splitlines())) <= 80
    assert json.loads(fedsim("run", "small.toml", "--dry-run", "--json").out)["clients"] == 5
    assert everything(tmp_path) == before


def test_a_fast_check_writes_nothing_and_says_that_all_is_well(fedsim: Command, tmp_path: Path) -> None:
    before = everything(tmp_path)
    status, out, _ = fedsim("run", "small.toml", "--fast-check", "--set", "rounds=1000")
    assert (status, out.splitlines()[-1]) == (0, "the scenario runs")
    assert "run.db" not in out
    assert json.loads(fedsim("run", "small.toml", "--fast-check", "--json").out)["ok"] is True
    assert everything(tmp_path) == before


@pytest.mark.parametrize("what", ["scenarios", "strategies", "adversaries", "models", "data", "partitions", "papers"])
def test_list_names_what_a_scenario_can_name(what: str, fedsim: Command) -> None:
    entries = json.loads(fedsim("list", what, "--json").out)
    names = [entry["name"] for entry in entries]
    assert all(entry["summary"] for entry in entries)
    assert all(name in fedsim("list", what).out for name in names)
    expected = {"scenarios": shipped(), "strategies": registry.members("fedsim.strategies")}
    assert names == expected.get(what, names)


def test_partition_prints_a_table_and_draws_a_picture(fedsim: Command, tmp_path: Path) -> None:
    status, out, _ = fedsim("partition", "small.toml", "--picture", "clients.png")
    assert status == 0
    assert "clients.png" in out
    assert (tmp_path / "clients.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(fedsim("partition", "small.toml", "--json").out)
    assert len(found["clients"]) == 5
    assert (tmp_path / "partition.svg").exists()


def test_doctor_reports_and_its_json_parses(fedsim: Command) -> None:
    findings = {finding["name"]: finding for finding in json.loads(fedsim("doctor", "--json").out)}
    assert any("torch" in name.lower() for name in findings)
    assert all(finding["remedy"] for finding in findings.values() if finding["state"] == "missing")


@pytest.mark.parametrize("arguments", [("mine.toml",), ("mine", "--folder")])
def test_what_new_writes_runs_as_it_is(arguments: tuple[str, ...], fedsim: Command, tmp_path: Path) -> None:
    """The command that it advises next, shortened."""
    status, out, _ = fedsim("new", *arguments)
    assert status == 0
    advised = out.splitlines()[-1].removeprefix("next: fedsim ").split()
    status, _, err = fedsim(*advised, "--engine", "inline", "--set", "rounds=1", "--out", "first")
    assert status == 0, err
    assert len(open_run(tmp_path / "first").rounds()) == 1


@pytest.mark.parametrize("path", ["mine", "my own/mine"])
def test_the_strategy_that_new_writes_runs_as_it_is(path: str, fedsim: Command, tmp_path: Path) -> None:
    """The command that it advises next, pasted into a shell of the folder where it was written, shortened."""
    (tmp_path / "my own").mkdir()
    status, out, _ = fedsim("new", "--strategy", path)
    assert status == 0
    assert out.splitlines()[:2] == [f"{path}.py", f"{path.replace('mine', 'test_mine')}.py"]
    advised = shlex.split(out.splitlines()[-1].removeprefix("next: fedsim "))
    status, printed, err = fedsim(*advised, "--engine", "inline", "--set", "rounds=2", "--out", "first")
    assert status == 0, err
    assert printed.splitlines()[0].endswith(" mine")
    assert [file.name for file in (tmp_path / "first/sources").iterdir()] == ["mine.py"]
    assert fedsim("resume", "first", "--rounds", "3").status == 0


def test_the_line_that_new_prints_names_the_strategy_in_a_scenario(fedsim: Command, tmp_path: Path) -> None:
    (line,) = [line for line in fedsim("new", "--strategy", "mine").out.splitlines() if "[strategy]" in line]
    table = line[line.index("[strategy]") :].replace("] ", "]\n")
    (tmp_path / "own.toml").write_text(f'extends = "small.toml"\n{table}')
    assert fedsim("run", "own.toml", "--fast-check").out.splitlines()[-1] == "the scenario runs"


def test_strategies_are_listed_with_paper_and_parameters_in_80_columns(fedsim: Command) -> None:
    """And at the end the names of Flower's own."""
    lines = fedsim("list", "strategies").out.splitlines()
    assert max(map(len, lines)) <= 80
    start = lines.index("scaffold           Stochastic controlled averaging (SCAFFOLD).")
    assert lines[start + 1].startswith('    Karimireddy et al., "SCAFFOLD: ')
    assert "    server_lr = 1.0  weights = 'uniform'" in lines
    assert re.search(r"Flower.*\bflower:FedAdam, .*\bflower:Krum\b", " ".join(lines[-6:]))
    entries = json.loads(fedsim("list", "strategies", "--json").out)
    assert all(list(entry) == ["name", "paper", "summary", "parameters", "runs", "private"] for entry in entries)
    levels = {entry["name"]: sorted(entry["private"]) for entry in entries}
    assert levels["scaffold"] == ["client", "example", "local"]
    assert (levels["krum"], levels["qfedavg"], levels["moon"]) == (["example", "local"], [], ["client", "local"])
    assert "    private forms: example, client, local" in lines


def test_the_installed_command_is_this_one(tmp_path: Path) -> None:
    """Through a real process: status and one line, not a traceback."""
    command = Path(sys.executable).parent / "fedsim"
    done = subprocess.run([command, "run", "nowhere"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no scenario 'nowhere'")
    assert done.stderr.count("\n") == 1
