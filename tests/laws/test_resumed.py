"""A resumed run is the run that was never interrupted, or is refused in one line that says why.

However it ended: by Ctrl-C, by a stop rule, by an exception, with files damaged since; and whatever somebody put into
its folder, nothing of it is executed. `test_killed.py` has the kills.
"""

import hashlib
import json
import pickle
import random
import shutil
import signal
import sqlite3
import struct
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

import fedsim
from fedsim.errors import FedsimError, Interrupted, RunFolderError, ScenarioError, StoppedByPolicy
from fedsim.progress import Silent
from fedsim.records import RoundRecord
from fedsim.resuming import resume
from fedsim.states import states_file
from fedsim.stored import open_run
from fedsim.summary import Result
from tests import small
from tests.laws.test_killed import ADAM, SCAFFOLD, contents, place
from tests.test_cli import Command

VERSION_1 = Path(__file__).parents[1] / "fixtures" / "run-v1"
HUGE = 3e38
"""A feature so large that a float32 loss is not finite, though the data are."""
SHORT: small.Changes = {**SCAFFOLD, "rounds": 8}
WEIGHT = "model/body.0.weight"
CONTROL = "server/shared/control"
"""A tensor of the model and one of the algorithm, as a checkpoint names them."""


class EnoughError(Exception):
    """What a user's own observer raises."""


class StopAfter:
    """An observer that ends runs, by an exception, once it has seen so many rounds."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds

    def round_finished(self, record: RoundRecord) -> None:
        self.left -= 1
        if not self.left:
            raise EnoughError

    def run_finished(self, result: Result) -> None:
        """Let it end."""


class Noted(Silent):
    """Remembers what a person would have been told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Pressing(Silent):
    """A person who presses Ctrl-C while a round trains."""

    def __init__(self, round: int, times: int) -> None:
        self.moment, self.times = f"round {round}: training", times

    def phase(self, text: str) -> None:
        if text == self.moment:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


def whole(changes: small.Changes, folder: Path, **objects: Any) -> Result:
    """The run that nothing interrupts."""
    out = place(made(folder / "whole"))
    return fedsim.run(small.scenario(changes, out.parent), out=out, **objects)


def stopped(changes: small.Changes, rounds: int, folder: Path, **objects: Any) -> Path:
    """The folder of a run that an observer ended after so many rounds."""
    out = place(made(folder / "part"))
    with pytest.raises(EnoughError):
        fedsim.run(small.scenario(changes, out.parent), out=out, observers=[StopAfter(rounds)], **objects)
    assert committed(out) == rounds
    return out


def made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def committed(out: Path) -> int:
    with closing(open_run(out)) as read:
        return len(read.rounds())


def events(out: Path, kind: str) -> list[str]:
    with closing(open_run(out)) as read:
        return [event.message for event in read.events() if event.kind == kind]


def check_same(out: Path, other: Path, *, ignoring: Sequence[str] = ()) -> None:
    """Everything but what is said of interruptions, and other parts that are named."""
    found, expected = contents(out), contents(other)
    for each in (found, expected):
        each["events"] = [row for row in each["events"] if row[1] != "warning"]
    different = [name for name in expected if found[name] != expected[name] and name not in ignoring]
    assert not different


def checkpoint(out: Path, round: int) -> Path:
    return out / "checkpoints" / f"round-{round:06d}.safetensors"


def states(out: Path, round: int) -> Path:
    return out / "checkpoints" / states_file(round)


# However it was interrupted


@pytest.mark.parametrize("times", [1, 2])
def test_after_ctrl_c_a_run_goes_on(times: int, tmp_path: Path) -> None:
    """The first press ends the round in progress, which is committed; the second ends at once, and it is lost."""
    out = place(tmp_path)
    with pytest.raises(Interrupted) as interrupted:
        fedsim.run(small.scenario(SHORT, tmp_path), out=out, progress=Pressing(4, times))
    kept = 4 if times == 1 else 3
    assert interrupted.value.exit_code == 130
    assert str(interrupted.value).endswith(f"keeps {kept} committed rounds; go on with: fedsim resume {out}")
    assert committed(out) == kept
    told = Noted()
    resume(out, progress=told)
    assert told.notes == [f"resumed after round {kept}"]
    check_same(out, whole(SHORT, tmp_path).folder)


@pytest.mark.parametrize("times", [1, 2])
def test_between_checkpoints_too(times: int, tmp_path: Path) -> None:
    """At which rounds checkpoints are made changes nothing else."""
    changes, out = {**SHORT, "checkpoint.every": 3}, place(tmp_path)
    with pytest.raises(Interrupted):
        fedsim.run(small.scenario(changes, tmp_path), out=out, progress=Pressing(5, times))
    resume(out)
    assert committed(out) == 8
    check_same(out, whole(changes, tmp_path).folder, ignoring=["rounds", "states", "checkpoints"])


def test_a_run_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    """Nothing was damaged, so nobody is warned."""
    changes = {**SHORT, "checkpoint.every": 5}
    out, told = stopped(changes, 3, tmp_path), Noted()
    resume(out, progress=told)
    assert events(out, "warning") == [] and not any("damaged" in note for note in told.notes)
    assert events(out, "resumed") == ["from round 0"]
    check_same(out, whole(changes, tmp_path).folder)


def test_a_run_can_be_interrupted_again_and_again(tmp_path: Path) -> None:
    """Once a round, on its way to the end."""
    changes = {**SHORT, "rounds": 5}
    out = stopped(changes, 1, tmp_path)
    for _ in range(3):
        with pytest.raises(EnoughError):
            resume(out, observers=[StopAfter(1)])
    resume(out)
    assert events(out, "resumed") == [f"from round {number}" for number in (1, 2, 3, 4)]
    check_same(out, whole(changes, tmp_path).folder)


@pytest.mark.parametrize("rounds", [2, 5])
def test_the_price_of_privacy_is_resumed_with_its_run(rounds: int, tmp_path: Path) -> None:
    """The run without privacy beside it is gone on with, or begun: interrupted in the first, or in the second."""
    privacy = {"epsilon": 8.0, "delta": 1e-3, "max_grad_norm": 1.0}
    changes = {"privacy.example": privacy, "privacy.without": {"train.learning_rate": 0.5}}
    out = place(made(tmp_path / "part"))
    with pytest.raises(EnoughError):
        fedsim.run(small.scenario(changes), out=out, observers=[StopAfter(rounds)])
    resumed, other = resume(out), whole(changes, tmp_path)
    for place_of in (Path(), Path("without-privacy")):
        check_same(out / place_of, other.folder / place_of)
    assert resumed.values["without_privacy"]["fingerprint"] == other.values["without_privacy"]["fingerprint"]
    with pytest.raises(ScenarioError, match="has finished"):
        resume(out)


@pytest.mark.parametrize("rounds", [2, 4, 8])
def test_references_are_resumed_with_their_run(rounds: int, tmp_path: Path) -> None:
    """Gone on with, or begun: interrupted in the run, in the first reference, or in the second."""
    changes = {"strategy.name": "ditto", "references": ["local", "central"]}
    out = place(made(tmp_path / "part"))
    with pytest.raises(EnoughError):
        fedsim.run(small.scenario(changes), out=out, observers=[StopAfter(rounds)])
    resumed, other = resume(out), whole(changes, tmp_path)
    for place_of in (Path(), Path("references/local"), Path("references/central")):
        check_same(out / place_of, other.folder / place_of)
    assert [*resumed.values["references"]] == ["local", "central"]
    assert resumed.values["gain_over_local"] == other.values["gain_over_local"]
    assert resumed.own_figures == other.own_figures
    with pytest.raises(ScenarioError, match="has finished"):
        resume(out)


def test_references_grow_with_their_run(tmp_path: Path) -> None:
    changes = {"rounds": 2, "references": ["local"]}
    out = whole(changes, made(tmp_path / "a")).folder
    resume(out, rounds=3)
    check_same(out / "references" / "local", whole({**changes, "rounds": 3}, tmp_path).folder / "references" / "local")


# Longer than it was to be


@pytest.mark.parametrize("ended", [True, False])
def test_a_longer_run_is_a_fresh_longer_run(ended: bool, tmp_path: Path) -> None:
    """Finished or interrupted; where the rounds that are always measured, the last ones, are measured anyway."""
    changes = {**SHORT, "rounds": 4, "evaluate": {"every": 2, "clients_every": 4}, "checkpoint.every": 2}
    out = whole(changes, made(tmp_path / "a")).folder if ended else stopped(changes, 3, tmp_path)
    result = resume(out, rounds=8)
    assert result.values["rounds"] == 8
    check_same(out, whole({**changes, "rounds": 8}, tmp_path).folder)


def test_a_longer_private_run_is_paid_for_from_the_start(tmp_path: Path) -> None:
    """With noise and limit given; noise that was solved for fewer rounds would promise too much."""
    privacy = {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0, "max_participations": 6}
    changes = {"rounds": 4, "cohort.size": 3, "privacy.example": privacy}
    out = whole(changes, made(tmp_path / "a")).folder
    longer, fresh = resume(out, rounds=8), whole({**changes, "rounds": 8}, tmp_path)
    assert longer.fingerprint == fresh.fingerprint
    with closing(open_run(out)) as read, closing(open_run(fresh.folder)) as other:
        assert read.privacy() == other.privacy() and read.privacy(6) == other.privacy(6)
    solved = whole({**changes, "privacy.example": {**small.PRIVATE["privacy.example"]}}, made(tmp_path / "b")).folder
    with pytest.raises(ScenarioError, match=r"solved for other rounds.*noise_multiplier and max_participations"):
        resume(solved, rounds=8)


def test_rounds_only_grow(tmp_path: Path) -> None:
    out = whole({"rounds": 3}, tmp_path).folder
    with pytest.raises(ScenarioError, match=r"has finished; for more rounds: fedsim resume \S+ --rounds 6$"):
        resume(out)
    with pytest.raises(ScenarioError, match=r"--rounds 2: \S+ has done 3 rounds already; give more"):
        resume(out, rounds=2)
    with pytest.raises(ScenarioError, match="has finished"):
        resume(out, rounds=3)


def test_a_rate_that_was_planned_for_its_rounds_keeps_them(tmp_path: Path) -> None:
    out = stopped({"rounds": 4, "train.schedule": {"kind": "cosine"}}, 2, tmp_path)
    with pytest.raises(ScenarioError, match="the cosine schedule"):
        resume(out, rounds=8)
    resume(out)


# Damage since it was interrupted


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {"flipped": flip, "cut": cut, "empty": empty, "deleted": Path.unlink}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SCAFFOLD, 5 of 8 rounds done."""
    return stopped(SHORT, 5, tmp_path_factory.mktemp("interrupted"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(SHORT, tmp_path_factory.mktemp("uninterrupted")).folder


@pytest.fixture
def out(interrupted: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(interrupted, tmp_path / "run")


@pytest.mark.parametrize("file", [checkpoint, states])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, file: Callable[[Path, int], Path], out: Path, uninterrupted: Path
) -> None:
    """It is told at once and in the records; the rounds since the one before it are run again, to the same bits."""
    DAMAGES[damage](file(out, 5))
    told = Noted()
    resume(out, progress=told)
    first, second = told.notes
    assert file(out, 5).name in first and first.endswith("the checkpoint before it is used")
    assert second == "resumed after round 4"
    assert events(out, "warning") == [first] and events(out, "resumed") == ["from round 4"]
    check_same(out, uninterrupted)


@pytest.mark.parametrize("damage", DAMAGES)
def test_when_all_are_damaged_nothing_is_forgotten(damage: str, out: Path) -> None:
    """To begin again would delete the records of what cannot be gone back to: that is for its owner to decide."""
    with closing(open_run(out)) as read:
        before = read.rounds(), read.clients()
    DAMAGES[damage](checkpoint(out, 5))
    DAMAGES[damage](states(out, 4))
    with pytest.raises(RunFolderError, match=r"^no checkpoint is sound \(.*\); restore .*, or begin anew$"):
        resume(out)
    with closing(open_run(out)) as read:
        assert (read.rounds(), read.clients()) == before


def test_checkpoints_that_were_kept_are_used_though_fewer_are_to_be(out: Path, uninterrupted: Path) -> None:
    flip(checkpoint(out, 5))
    told = Noted()
    resume(out, settings=["checkpoint.keep=1"], progress=told)
    assert told.notes[-1] == "resumed after round 4"
    assert contents(out)["metrics"] == contents(uninterrupted)["metrics"]


def test_a_best_rounds_checkpoint_is_no_way_back_without_its_states(tmp_path: Path) -> None:
    """It stays for its model, while states that only it used go: clients would begin anew."""
    changes = {
        **SHORT,
        "checkpoint.keep": 1,
        "evaluate.metric": "global/central-validation/rows/loss",
        "train.learning_rate": 2.0,
    }
    out = stopped(changes, 6, tmp_path)
    names = sorted(file.name for file in (out / "checkpoints").glob("round-*"))
    assert len(names) == 2 and names[0] < "round-000005", "the scenario is to get worse"
    flip(checkpoint(out, 6))
    with pytest.raises(RunFolderError, match=r"^no checkpoint is sound"):
        resume(out, settings=["checkpoint.keep=4"])


def alter(path: Path) -> None:
    tensors = load_file(path)
    path.write_bytes(save({**tensors, WEIGHT: tensors[WEIGHT] + 1}))


@pytest.mark.parametrize(("damage", "reason"), [(alter, "not the one that was recorded"), (cut, "no file of tensors")])
def test_a_lost_best_model_is_told(damage: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    """The run goes on, and says whose model stands for it."""
    changes = {**SHORT, "evaluate.metric": "global/central-validation/rows/loss", "train.learning_rate": 2.0}
    out = stopped(changes, 6, tmp_path)
    best = min(out.glob("checkpoints/round-*"))
    assert best.name < "round-000005", "the scenario is to get worse"
    damage(best)
    told = Noted()
    resume(out, progress=told)
    assert best.name in told.notes[0] and reason in told.notes[0]
    assert told.notes[1].endswith("is lost; that of round 6 stands for it")
    assert contents(out)["metrics"] == contents(whole(changes, tmp_path).folder)["metrics"]


# What must be the same, and what may change


def test_one_process_writes_a_run_at_a_time(tmp_path: Path) -> None:
    """A second one is refused while the first goes on, which does not notice."""
    said: list[str] = []

    class Resuming(StopAfter):
        def round_finished(self, record: RoundRecord) -> None:
            if record.number == 2:
                with pytest.raises(RunFolderError, match="is being written by another process") as refused:
                    resume(tmp_path / "run")
                said.append(str(refused.value))

    watched = fedsim.run(small.scenario(), out=place(tmp_path), observers=[Resuming(0)])
    assert len(said) == 1
    assert watched.fingerprint == whole(small.NOTHING, tmp_path).fingerprint


@pytest.mark.parametrize(
    "setting", ["rounds=9", "train.learning_rate=0.1", "seed=2", "cohort.size=2", "model.hidden=[4]"]
)
def test_what_bits_depend_on_cannot_be_set(setting: str, out: Path) -> None:
    before = (out / "scenario.toml").read_bytes()
    key = setting.partition("=")[0]
    with pytest.raises(
        ScenarioError, match=rf"--set {key}: .*only keys of engine, checkpoint, records, stop may change"
    ):
        resume(out, settings=[setting])
    assert (out / "scenario.toml").read_bytes() == before


def test_what_bits_do_not_depend_on_can_be_set(out: Path, uninterrupted: Path) -> None:
    """And is remembered: it is how the run goes on when it is resumed again."""
    settings = ["checkpoint.every=2", "checkpoint.keep=3", "records.clients=failed", "stop.patience=1000"]
    with pytest.raises(EnoughError):
        resume(out, settings=settings, observers=[StopAfter(1)])
    result = resume(out)
    found, expected = contents(out), contents(uninterrupted)
    assert all(found[name] == expected[name] for name in ("metrics", "models", "clients' states"))
    assert {row[0] for row in found["clients"]} == {1, 2, 3, 4, 5}, "later rounds record failures alone"
    assert result.values["stop"] is None
    with closing(open_run(out)) as read:
        assert [row.number for row in read.rounds() if row.checkpoint][-2:] == [6, 8]


@pytest.mark.parametrize("setting", ["engine.kind=rey", "checkpoint.evry=2", "records.clients=2.0", "stop.patience=0"])
def test_a_setting_that_cannot_be_is_refused(setting: str, out: Path) -> None:
    with pytest.raises(ScenarioError, match=setting.partition("=")[0].rpartition(".")[0]):
        resume(out, settings=[setting])


def test_other_data_make_another_run(tmp_path: Path) -> None:
    out = stopped(small.POINTS, 1, tmp_path, data=small.points(0.0))
    with pytest.raises(
        ScenarioError, match=r"was made with something else, the data: \w{12}\.\.\. then, \w{12}\.\.\. now"
    ):
        resume(out, data=small.points(1.0), settings=["engine.bits=not guaranteed"])


def test_an_own_file_that_has_changed_makes_another_run(tmp_path: Path) -> None:
    """The run's folder has the one that was used."""
    out = stopped(ADAM, 2, tmp_path)
    own = out.parent / "adam.py"
    own.write_text(own.read_text() + "# a remark\n")
    with pytest.raises(ScenarioError, match=r"own files: adam\.py has changed\. Its own files are in sources/"):
        resume(out, settings=["engine.bits=not guaranteed"])
    shutil.copy(out / "sources" / "adam.py", own)
    resume(out)
    check_same(out, whole(ADAM, tmp_path).folder)


class Net(nn.Module):
    """A model of a Python program."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        return logits


class Other(Net):
    """Another one, in the same file."""


def test_what_came_from_a_python_program_is_asked_for_again(tmp_path: Path) -> None:
    """The scenario cannot say what it was; the error says how to give it."""
    data = small.points(0.0)
    out = stopped(small.POINTS, 1, tmp_path, model=Net, data=data)
    with pytest.raises(
        ScenarioError, match=r"the model \S+:Net of a Python program; .* fedsim\.resume\(path, model=\.\.\.\)"
    ):
        resume(out, data=data)
    with pytest.raises(
        ScenarioError, match=r"the data \S+ of a Python program; .* fedsim\.resume\(path, data=\.\.\.\)"
    ):
        resume(out, model=Net)
    with pytest.raises(ScenarioError, match=r"the model: \S+:Net then, \S+:Other now"):
        resume(out, data=data, model=Other)
    resume(out, model=Net, data=data)
    check_same(out, whole(small.POINTS, tmp_path, model=Net, data=data).folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("packages", {"torch": "1.0.0"}),
        ("processor", "an abacus"),
        ("cpu_capability", "AVX9"),
        ("python", "2.7"),
        ("compiled", "otherwise"),
    ],
)
def test_what_may_change_the_last_bits_is_told(key: str, value: Any, out: Path, uninterrupted: Path) -> None:
    """And can be accepted; then nothing else is promised, though here all is the same."""
    file = out / "environment.json"
    made_with = json.loads(file.read_text())
    made_with[key] = {**made_with[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(made_with))
    then = "torch 1.0.0 then" if key == "packages" else f"{key} {value} then"
    with pytest.raises(ScenarioError, match=rf"{then}, .* now: .*--set 'engine\.bits=not guaranteed'$"):
        resume(out)
    resume(out, settings=["engine.bits=not guaranteed"])
    check_same(out, uninterrupted)


def test_a_run_of_an_earlier_schema_is_not_resumed(tmp_path: Path) -> None:
    out = shutil.copytree(VERSION_1, tmp_path / "run")
    with pytest.raises(FedsimError, match="schema 1; it can be read, not resumed"):
        resume(out)


# Rules that end a run


def test_patience_counts_what_was_before(tmp_path: Path) -> None:
    changes = {**SHORT, "rounds": 40, "train.learning_rate": 1e-9, "stop.patience": 4}
    out, other = stopped(changes, 3, tmp_path), whole(changes, tmp_path)
    result = resume(out)
    assert result.values["stop"] == other.values["stop"] and result.values["stop"]["kind"] == "patience"
    check_same(out, other.folder)


@pytest.mark.parametrize("share", [0.999, 1.5])
def test_seconds_count_what_was_before(share: float, out: Path) -> None:
    """A limit below what has been spent ends the run where it is; one above lets it go on."""
    with closing(open_run(out)) as read:
        spent = sum(row.seconds for row in read.rounds())
    result = resume(out, settings=[f"stop.max_seconds={spent * share if share < 1 else spent + 60}"])
    stop = result.values["stop"]
    assert (result.values["rounds"], stop and stop["kind"]) == ((5, "time") if share < 1 else (8, None))
    assert result.values["seconds"] > spent


def test_a_run_that_its_rules_ended_ends_there_again_or_goes_on_under_others(tmp_path: Path) -> None:
    """The model after round 1 is the same, and is judged anew."""
    changes = {"rounds": 4, "stop.diverged_above": 1e-3}
    out = place(made(tmp_path / "part"))
    with pytest.raises(StoppedByPolicy, match="diverged") as first:
        fedsim.run(small.scenario(changes), out=out)
    with pytest.raises(StoppedByPolicy) as again:
        resume(out)
    assert str(again.value).partition(".")[0] == str(first.value).partition(".")[0]
    resume(out, settings=["stop.diverged_above=1000.0"])
    assert contents(out)["metrics"] == contents(whole({"rounds": 4}, tmp_path).folder)["metrics"]


def test_divergence_names_the_clients_with_the_largest_updates(tmp_path: Path) -> None:
    """The odd client's rows are far away, so its update is; the median tells how far."""
    changes = {**small.POINTS, "stop.diverged_above": 1e-3, "evaluate.metric": "global/client-validation/rows/loss"}
    with pytest.raises(StoppedByPolicy, match="diverged") as stop:
        fedsim.run(small.scenario(changes), data=small.points(1000.0), model=Net, out=tmp_path / "run")
    with closing(open_run(tmp_path / "run")) as read:
        norms = {row.client: row.norm or 0.0 for row in read.clients(1) if row.phase == "train"}
    assert max(norms, key=lambda client: norms[client]) == small.ODD
    assert f"Largest updates: client {small.ODD} ({norms[small.ODD]:.3g}), client" in str(stop.value)
    assert "the median is" in str(stop.value) and "Lower train.learning_rate" in str(stop.value)


LOCKED = """
from pathlib import Path
from torch import nn

class Locked(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, key: str):
        super().__init__()
        self.key, self.layer = Path(key), nn.Linear(3, classes)

    def forward(self, x):
        if self.training and x[:, 2].any() and not self.key.exists():
            raise ValueError("no key")
        return self.layer(x)
"""


@pytest.mark.parametrize("rule", [{"min_replies": 4}, {"on_client_error": "fail"}])
def test_a_run_that_lacked_replies_goes_on_when_they_come(rule: dict[str, Any], tmp_path: Path) -> None:
    """What made clients fail may have passed; the failed round was not committed, and is run again."""
    for folder in (tmp_path, made(tmp_path / "whole")):
        (folder / "locked.py").write_text(LOCKED)
    changes = {**small.POINTS, "model": {"name": "locked.py:Locked", "key": str(tmp_path / "key")}, "cohort": rule}
    data, out = small.points(1.0), tmp_path / "run"
    with pytest.raises(StoppedByPolicy, match="no key") as stop:
        fedsim.run(small.scenario(changes, tmp_path), out=out, data=data)
    if "min_replies" in rule:
        assert "3 of 4 clients answered, cohort.min_replies is 4" in str(stop.value)
    assert stop.value.exit_code == 3 and committed(out) == 0
    (tmp_path / "key").touch()
    resume(out, data=data)
    check_same(out, whole(changes, tmp_path, data=data).folder, ignoring=["events"])


# Observers


class Watching:
    """Remembers its calls, and what of the run was on the disk by then."""

    def __init__(self, out: Path) -> None:
        self.out, self.calls = out, list[tuple[str, int, int, bool]]()

    def round_finished(self, record: RoundRecord) -> None:
        self._seen("round", record.number)

    def run_finished(self, result: Result) -> None:
        self._seen("run", int(result.values["rounds"]))

    def _seen(self, what: str, number: int) -> None:
        with closing(open_run(self.out)) as read:
            self.calls.append((what, number, len(read.rounds()), bool(read.summary())))


def test_observers_are_called_in_order_when_all_is_on_the_disk(out: Path, tmp_path: Path) -> None:
    """Once for each round of this process, then for the run; a resumed one begins where it goes on."""
    fresh, resumed = Watching(tmp_path / "fresh"), Watching(out)
    fedsim.run(small.scenario(), out=tmp_path / "fresh", observers=[fresh])
    assert fresh.calls == [*[("round", number, number, False) for number in (1, 2, 3)], ("run", 3, 3, True)]
    resume(out, observers=[resumed, resumed])
    rounds = [("round", number, number, False) for number in (6, 7, 8)]
    assert resumed.calls == [call for call in [*rounds, ("run", 8, 8, True)] for _ in range(2)]


def test_an_exception_at_the_end_leaves_a_finished_run(tmp_path: Path) -> None:
    class Late(StopAfter):
        def run_finished(self, result: Result) -> None:
            raise EnoughError

    out = tmp_path / "run"
    with pytest.raises(EnoughError):
        fedsim.run(small.scenario(), out=out, observers=[Late(0)])
    with pytest.raises(ScenarioError, match="has finished"):
        resume(out)


# What somebody else put into the folder


class Planted:
    """Pickled, it would write a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def check_refused(out: Path, trap: Path, *, may_go_on: bool = False) -> None:
    """One line for the user, or it goes on all the same; nothing was executed."""
    try:
        result = resume(out)
    except FedsimError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert may_go_on, "it went on as if nothing had been"
        assert result.values["rounds"] == 8
    assert not trap.exists()


def nested(opening: str) -> bytes:
    return (opening * 100_000).encode()


BYTES: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda trap: b"",
    "noise": lambda trap: random.Random(1).randbytes(5000),
    "a pickle": lambda trap: pickle.dumps(Planted(trap)),
    "a list": lambda trap: b"[1, 2, 3]\n",
    "deep lists": lambda trap: nested("["),
    "deep values": lambda trap: b"a = " + nested("["),
    "a long number": lambda trap: b"seed = " + b"9" * 10_000,
    "a huge header": lambda trap: struct.pack("<Q", 2**62) + b"{}",
    "an untrue header": lambda trap: header({"model/x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "a negative shape": lambda trap: (
        header({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}) + bytes(16)
    ),
    "an unknown type": lambda trap: header({"a": {"dtype": "F1", "shape": [4], "data_offsets": [0, 16]}}) + bytes(16),
}


def header(tensors: dict[str, Any]) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize("file", ["environment.json", "scenario.toml", "run.db"])
@pytest.mark.parametrize("content", BYTES)
def test_another_files_content_is_refused(content: str, file: str, out: Path, tmp_path: Path) -> None:
    (out / file).write_bytes(BYTES[content](tmp_path / "trap"))
    check_refused(out, tmp_path / "trap")


def replace(path: Path, content: bytes, column: str = "checkpoint_sha256", round: int = 5) -> None:
    """Put a file in the place of another, and its hash into the records, as one does who may write both."""
    path.write_bytes(content)
    change(
        path.parents[1], f"UPDATE rounds SET {column} = ? WHERE number = ?", hashlib.sha256(content).hexdigest(), round
    )


def change(out: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(out / "run.db")) as database, database:
        database.execute(statement, values)


@pytest.mark.parametrize("content", BYTES)
def test_a_checkpoint_that_is_none_is_passed_over(content: str, out: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """Its hash is right, so it is not damaged; it is no file of tensors."""
    trap = tmp_path / "trap"
    replace(checkpoint(out, 5), BYTES[content](trap))
    resume(out)
    assert not trap.exists()
    check_same(out, uninterrupted)


@pytest.mark.parametrize("content", BYTES)
def test_states_that_are_none_are_refused(content: str, out: Path, tmp_path: Path) -> None:
    """Wherever they are first looked at."""
    for round in (4, 5):
        replace(states(out, round), BYTES[content](tmp_path / "trap"), "states_sha256", round)
    check_refused(out, tmp_path / "trap")


Edit = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def without(name: str) -> Edit:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def with_(name: str, make: Callable[[Tensor], Tensor]) -> Edit:
    return lambda tensors: {**tensors, name: make(tensors.get(name, torch.zeros(3)))}


EDITS: dict[str, Edit] = {
    "no weight": without(WEIGHT),
    "a smaller weight": with_(WEIGHT, lambda weight: weight[:-1]),
    "a turned weight": with_(WEIGHT, lambda weight: weight.T),
    "a weight of one value": with_(WEIGHT, lambda weight: weight[:1, :1]),
    "double weights": with_(WEIGHT, Tensor.double),
    "half weights": with_(WEIGHT, Tensor.half),
    "whole weights": with_(WEIGHT, Tensor.int),
    "no control": without(CONTROL),
    "a smaller control": with_(CONTROL, lambda control: control[:-1]),
    "a control of one value": with_(CONTROL, lambda control: control[:1]),
    "a double control": with_(CONTROL, Tensor.double),
    "a whole control": with_(CONTROL, Tensor.int),
    "another vector": with_("server/state/momentum", Tensor.clone),
    "no counts": without("clients/accepted"),
    "counts of others": with_("clients/accepted", lambda counts: counts[:-1]),
    "long counts": with_("clients/participations", Tensor.long),
    "negative counts": with_("clients/participations", lambda counts: -counts - 1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_checkpoint_that_does_not_fit_is_refused(edit: str, out: Path, tmp_path: Path) -> None:
    """A value of another shape would be spread over the whole vector, and nobody would know."""
    path = checkpoint(out, 5)
    tensors = load_file(path)
    assert WEIGHT in tensors and CONTROL in tensors
    replace(path, save({name: tensor.contiguous() for name, tensor in EDITS[edit](tensors).items()}))
    check_refused(out, tmp_path / "trap")


@pytest.mark.parametrize(
    "changes", [{"model.hidden": [8]}, {"strategy": {"name": "fedavg"}}, {"data.partition.clients": 6}], ids=str
)
def test_another_runs_checkpoint_is_refused(changes: small.Changes, out: Path, tmp_path: Path) -> None:
    """Of another model, algorithm or federation."""
    other = stopped({**SHORT, **changes}, 5, tmp_path)
    replace(checkpoint(out, 5), checkpoint(other, 5).read_bytes())
    check_refused(out, tmp_path / "trap")


def test_more_participations_than_are_paid_for_are_refused(tmp_path: Path) -> None:
    privacy = {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0, "max_participations": 4}
    out = stopped({"rounds": 6, "cohort.size": 2, "privacy.example": privacy}, 3, tmp_path)
    path = checkpoint(out, 3)
    replace(path, save({**load_file(path), "clients/participations": torch.full((5,), 5, dtype=torch.int32)}), round=3)
    with pytest.raises(FedsimError, match="up to 5 participations, the plan 5 with up to 4"):
        resume(out)


STATEMENTS = [
    "DROP TABLE rounds",
    "DROP TABLE states",
    "DROP TABLE metrics",
    "DROP TABLE events",
    "DELETE FROM rounds WHERE number < 4",
    "UPDATE rounds SET number = number + 1000000000000",
    "UPDATE rounds SET checkpoint = x'00ff'",
    "UPDATE rounds SET checkpoint = 'a' || char(0) || 'b'",
    "UPDATE rounds SET checkpoint = '../../../../../../../../etc/hostname'",
    "UPDATE rounds SET checkpoint = '.'",
    "UPDATE rounds SET checkpoint_sha256 = 5",
    "UPDATE rounds SET checkpoint = NULL",
    "UPDATE rounds SET seconds = 'long'",
    "UPDATE rounds SET seconds = x'00'",
    "UPDATE rounds SET fingerprint = x'00'",
    "UPDATE rounds SET best = 'yes'",
    "UPDATE metrics SET value = 'good'",
    "UPDATE metrics SET name = x'00' WHERE round = 4 AND name LIKE '%central-validation/rows/loss'",
    "UPDATE metrics SET round = 'first' WHERE round = 4",
    "UPDATE states SET client = 1000000 WHERE client = (SELECT min(client) FROM states)",
    "UPDATE states SET client = 'you' WHERE client = (SELECT min(client) FROM states)",
    "UPDATE states SET client = -1 WHERE client = (SELECT min(client) FROM states)",
    "UPDATE states SET made = 'late'",
    "UPDATE states SET checkpoint = checkpoint - 1",
    "DELETE FROM states",
    "INSERT INTO summary VALUES ('status', 'not JSON')",
    "INSERT INTO summary VALUES ('status', x'ff')",
    "PRAGMA user_version = 77",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_records_that_nobody_wrote_are_refused(statement: str, out: Path, tmp_path: Path) -> None:
    """Or do not matter."""
    change(out, statement)
    check_refused(out, tmp_path / "trap", may_go_on=True)


def test_flipped_bits_in_the_records_are_refused_or_do_not_matter(out: Path, tmp_path: Path) -> None:
    """SQLite has no checksums: what is read may be anything, and still nothing worse than one line comes of it."""
    draw, content = random.Random(1), (out / "run.db").read_bytes()
    for trial in range(25):
        other, changed = shutil.copytree(out, tmp_path / f"{trial}"), bytearray(content)
        for _ in range(draw.choice([1, 10, 1000])):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        (other / "run.db").write_bytes(changed)
        check_refused(other, tmp_path / "trap", may_go_on=True)


VALUES: list[dict[str, Any]] = [
    {"packages": [1]},
    {"packages": None},
    {"sources": 3},
    {"scenario_folder": 5},
    {"scenario_folder": "a\0b"},
    {"noise": "loud"},
    {"model": ["mlp"]},
    {"data": None},
    {"data_sha256": 5},
    {"processor": {"a": 1}},
]


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_an_environment_that_nobody_wrote_is_refused(values: dict[str, Any], out: Path, tmp_path: Path) -> None:
    file = out / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    check_refused(out, tmp_path / "trap", may_go_on="scenario_folder" in values)


@pytest.mark.parametrize(
    "line",
    ['rounds = "many"', "engine = 3", "data = []", "stop = 1", "checkpoint.keep = 0", "model.name = 1", "unknown = 1"],
)
def test_a_scenario_that_nobody_wrote_is_refused(line: str, out: Path, tmp_path: Path) -> None:
    file = out / "scenario.toml"
    key = line.partition(" ")[0].partition(".")[0]
    kept = [part for part in file.read_text().split("\n\n") if not part.startswith(f"[{key}")]
    kept[0] = "\n".join([line, *(each for each in kept[0].split("\n") if not each.startswith(f"{key} "))])
    file.write_text("\n\n".join(kept))
    check_refused(out, tmp_path / "trap")


@pytest.mark.parametrize("name", ["scenario.toml", "environment.json", "run.db"])
def test_a_folder_without_a_part_is_no_run(name: str, out: Path) -> None:
    (out / name).unlink()
    with pytest.raises(RunFolderError, match=name.replace(".", r"\.")):
        resume(out)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        resume(out.parent)


def test_the_command_says_the_same(
    out: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage is a note among the lines, a refusal one line and status 2, a result JSON for programs."""
    command = Command(monkeypatch, capsys)
    flip(checkpoint(out, 5))
    refused = command("resume", str(out), "--set", "seed=2")
    assert refused.status == 2 and refused.err.startswith("error: --set seed") and refused.err.count("\n") == 1
    done = command("resume", str(out), "--json", "--set", "checkpoint.keep=3")
    assert (done.status, json.loads(done.out)["rounds"]) == (0, 8)
    assert "the checkpoint before it is used" in " ".join(done.err.split()) and "resumed after round 4" in done.err
    again = command("resume", str(out))
    assert again.status == 2 and again.err.count("\n") == 1 and "has finished" in again.err
    assert contents(out)["models"] == contents(uninterrupted)["models"]
