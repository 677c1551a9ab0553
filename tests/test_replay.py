"""A client's work of a past round comes out again: the bits that were recorded, from whatever a run keeps."""

import io
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
import torch
from torch import nn

from fedsim.engine.inline import InlineEngine
from fedsim.errors import Interrupted, RunFolderError, ScenarioError, StoppedByPolicy
from fedsim.job import Job
from fedsim.local import Received, Work
from fedsim.past import cohorts, ranges
from fedsim.progress import WIDTH, Silent
from fedsim.records import ClientRow, RoundRecord
from fedsim.replay import Replay, as_data, replay, replay_lines
from fedsim.rounds import run_job
from fedsim.stored import open_run
from fedsim.summary import Result
from fedsim.training import Step
from tests import small
from tests.test_cli import Command

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

VERSION_1 = Path(__file__).parent / "fixtures" / "run-v1"
HUGE = 3e38
"""A feature so large that a float32 loss is not finite, though the data are."""
NOISE = {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}
COMMON: small.Changes = {"rounds": 4, "cohort.size": 3}
KINDS: dict[str, small.Changes] = {
    "plain": {},
    "momentum": {"train.momentum": 0.9},
    "adam": {"train.optimizer": "adam", "train.learning_rate": 0.01},
    "clipped": {"train.clip": 0.1, "train.weight_decay": 0.01, "train.schedule": {"kind": "cosine"}},
    "scaffold": {"strategy": {"name": "scaffold"}},
    "ditto": {"strategy": {"name": "ditto"}},
    "fedrep": {"strategy": {"name": "fedrep"}, "train.momentum": 0.5},
    "private": {"privacy.example": NOISE},
    "private scaffold": {"privacy.example": NOISE, "strategy": {"name": "scaffold"}},
}
OWN = """
from pathlib import Path
from fedsim.algorithm import Algorithm, Local, Upload, add_update

def failing(mark: str) -> Algorithm:
    def client(local: Local) -> Upload:
        trained = local.train(local.received)
        if local.number == 2 and local.round == 2 and Path(mark).exists():
            raise ValueError("the mark is there")
        return Upload(trained.params - local.received)

    return Algorithm("failing", client, add_update)
"""


class Telling(Silent):
    """Remembers what it is told, and is called after every committed round."""

    def __init__(self, look: Callable[[int], None] = lambda number: None) -> None:
        self.notes: list[str] = []
        self.phases: list[str] = []
        self._look = look

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def round(self, record: RoundRecord, shown: Mapping[str, float | None]) -> None:
        self._look(record.number)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def kept(folder: Path) -> list[int]:
    return sorted(int(file.stem.split("-")[1]) for file in (folder / "checkpoints").glob("round-*"))


def trained(folder: Path) -> Iterator[ClientRow]:
    """Rows of training, as they are recorded."""
    with closing(open_run(folder)) as read:
        yield from (row for row in read.clients() if row.phase == "train")


def change(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "run.db")) as database:
        database.execute(statement)
        database.commit()


def lines_of(done: Replay) -> list[str]:
    lines = replay_lines(done)
    assert max(map(len, lines)) <= WIDTH
    assert json.loads(json.dumps(as_data(done)))["verdict"] == done.verdict.text
    return lines


def check_same(folder: Path, row: ClientRow, **given: Any) -> Replay:
    """A replay is what was recorded, and came from the nearest checkpoint that is there."""
    done = replay(folder, row.round, row.client, **given)
    assert (done.verdict.same, done.recorded) == (True, row), done.verdict.text
    assert done.contribution is not None and done.update is not None
    assert (done.contribution.norm, done.contribution.loss) == (row.norm, row.loss), "float64, to the bit"
    assert len(done.steps) == done.contribution.steps == row.steps
    lines_of(done)
    return done


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rounds of FedAvg, three of five clients in each, a checkpoint every third, one kept."""
    changes = {**COMMON, "rounds": 7, "checkpoint": {"every": 3, "keep": 1}}
    return small.run(small.job(changes), tmp_path_factory.mktemp("runs") / "plain").folder


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "copy")


@pytest.fixture
def fedsim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


# The same bits


@pytest.mark.parametrize("kind", KINDS)
def test_every_round_of_every_client_comes_out_again(kind: str, tmp_path: Path) -> None:
    """With clients' states, several trainings a round, noise and dropout; and nothing is written."""
    folder = small.run(small.job({**COMMON, **KINDS[kind]}), tmp_path / "run").folder
    before = contents(folder)
    for row in trained(folder):
        done = check_same(folder, row)
        usable = [number for number in kept(folder) if number < row.round]
        assert done.start in (max(usable, default=0), 0), "0 where the best round's states are no longer kept"
        assert {step.training for step in done.steps} == ({1, 2} if kind in ("ditto", "fedrep") else {1})
        assert done.private == kind.startswith("private")
    assert contents(folder) == before


class Dropping(nn.Module):
    """A net that draws from torch's global generator, and counts in buffers what it sees."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.3), nn.Linear(64, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x)
        return logits


def test_a_model_given_from_python_is_given_again(tmp_path: Path) -> None:
    """One with dropout and floating buffers."""
    folder = small.run(small.job({**COMMON, "checkpoint.keep": 1}, model=Dropping), tmp_path / "run").folder
    state = torch.get_rng_state()
    for row in trained(folder):
        check_same(folder, row, model=Dropping)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ScenarioError, match="of a Python program"):
        replay(folder, 1, 0)


def test_what_ray_trained_comes_out_of_this_process(ray_engine: "RayEngine", tmp_path: Path) -> None:
    changes = {**COMMON, **KINDS["scaffold"]}
    folder = small.run(small.job(changes), tmp_path / "run", ray_engine).folder
    for row in trained(folder):
        check_same(folder, row)


@pytest.mark.parametrize("kind", ["clipped", "ditto", "private scaffold"])
def test_a_client_of_a_stack_comes_out_again_with_the_others(kind: str, tmp_path: Path) -> None:
    """Two at once, and a third beside an empty place: all of the stack is trained, and one of it looked at."""
    changes = {**COMMON, **KINDS[kind], "engine.stack": 2, "checkpoint.keep": 1}
    folder = small.run(small.job(changes), tmp_path / "run").folder
    assert {row.stack for row in trained(folder)} == {1, 2}
    for row in trained(folder):
        check_same(folder, row)


def test_who_failed_in_a_stack_keeps_its_place(tmp_path: Path) -> None:
    """In the rounds in between too, in which nobody asks it again."""
    changes = {**small.POINTS, "engine.stack": 3, "checkpoint.keep": 1}
    folder = small.run(small.job(changes, data=small.points(HUGE)), tmp_path / "run").folder
    for row in trained(folder):
        done = replay(folder, row.round, row.client, data=small.points(HUGE))
        assert done.verdict.same and done.error == row.error, done.verdict.text
        assert (done.contribution is None) == (row.client == small.ODD)


def test_rounds_between_checkpoints_are_run_again(plain: Path) -> None:
    """From the last checkpoint before the round; with one kept, the best round's besides."""
    assert len(kept(plain)) <= 2 and kept(plain)[-1] == 7
    for row in trained(plain):
        told = Telling()
        done = check_same(plain, row, progress=told)
        assert done.start == max((number for number in kept(plain) if number < row.round), default=0)
        between = row.round - 1 - done.start
        assert len(told.notes) == (between > 0)
        if between > 1:
            assert told.notes[0].startswith(f"{between} rounds, {done.start + 1} to {row.round - 1}, are run again")


def test_a_long_replay_says_how_long_it_takes(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in trained(plain) if row.round == 3)
    quick, slow = Telling(), Telling()
    check_same(plain, row, progress=quick)
    monkeypatch.setattr("fedsim.past.PATIENCE", 0.0)
    check_same(plain, row, progress=slow)
    assert set(quick.phases) == {"loading the data", ""}
    assert "round 2 of 1 to 2: about 0 s left" in slow.phases


def test_a_state_that_is_no_longer_kept_is_made_again(tmp_path: Path) -> None:
    """The best round's checkpoint stays for its model, but not the clients' states beside it."""
    changes = {
        **KINDS["scaffold"],
        "rounds": 5,
        "checkpoint.keep": 1,
        "evaluate.metric": "global/central-validation/rows/loss",
        "train.learning_rate": 3.0,
    }
    folder = small.run(small.job(changes), tmp_path / "run").folder
    best, last = kept(folder)
    assert best < 4 < last == 5, "the scenario is to get worse"
    told = Telling()
    row = next(row for row in trained(folder) if row.round == best + 1)
    assert check_same(folder, row, progress=told).start == 0
    assert "is no longer kept" in told.notes[0]


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    folder = small.run(small.job(COMMON), tmp_path / "run").folder
    file = folder / "checkpoints" / "round-000003.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    told = Telling()
    row = next(row for row in trained(folder) if row.round == 4)
    done = check_same(folder, row, progress=told)
    assert done.start < 3 and "round-000003.safetensors is damaged" in told.notes[0]


def test_a_run_is_replayed_while_it_goes_on(tmp_path: Path) -> None:
    """Its lock is not taken, its checkpoints come and go, and its own bits stay what they were."""
    seen: list[int] = []

    class Replaying:
        def round_finished(self, record: RoundRecord) -> None:
            row = [row for row in trained(tmp_path / "run") if row.round == record.number][-1]
            check_same(tmp_path / "run", row)
            seen.append(record.number)

        def run_finished(self, result: Result) -> None:
            seen.append(0)

    job = small.job({**COMMON, "checkpoint.keep": 1})
    watched = run_job(job, InlineEngine(), tmp_path / "run", Silent(), [Replaying()])
    assert seen == [1, 2, 3, 4, 0]
    assert watched.fingerprint == small.run(job, tmp_path / "alone").fingerprint


def test_a_resumed_run_is_replayed_from_its_start(tmp_path: Path) -> None:
    """By the cohorts that it had: rounds that were forgotten do not count."""
    from fedsim.resuming import resume

    def interrupt(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run_job(small.job({**COMMON, "checkpoint.every": 2}), InlineEngine(), tmp_path / "run", Telling(interrupt))
    resume(tmp_path / "run", settings=["checkpoint.keep=1"])
    for row in trained(tmp_path / "run"):
        check_same(tmp_path / "run", row)


def test_the_first_round_that_is_not_committed_can_be_replayed(plain: Path, tmp_path: Path) -> None:
    from fedsim.resuming import resume

    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run_job(small.job(COMMON), InlineEngine(), tmp_path / "run", Telling(interrupt))
    client = list(cohorts(small.job(COMMON), 3))[2][0]
    early = replay(tmp_path / "run", 3, client)
    assert early.verdict.same is None and "round 3 has not been committed" in early.verdict.text
    resume(tmp_path / "run")
    late = replay(tmp_path / "run", 3, client)
    assert early.update is not None and late.update is not None
    assert late.verdict.same and torch.equal(early.update, late.update)


# Steps


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [1024]}, {"name": "cnn", "preset": "small"}])
def test_who_is_observed_takes_the_same_steps(model: dict[str, Any]) -> None:
    """Plain SGD adds the gradients of large weights as products, also when somebody wants to see them whole."""
    work, steps = Work(small.job({"model": model})), list[Step]()
    received = Received(work.initial, {})
    alone, seen = work.train(0, 1, received, None), work.train(0, 1, received, None, steps)
    assert torch.equal(alone.vector, seen.vector) and (alone.loss, alone.norm) == (seen.loss, seen.norm)
    assert len(steps) == alone.steps > 1


@pytest.mark.parametrize("kind", ["plain", "clipped", "scaffold", "private", "private scaffold"])
def test_a_gradient_is_the_one_that_the_step_took(kind: str, tmp_path: Path) -> None:
    """After one step of plain SGD the update is the learning rate times that gradient: noised, corrected, clipped."""
    changes = {**KINDS[kind], "train.steps": 1, "train.weight_decay": 0.0, "rounds": 2}
    folder = small.run(small.job(changes), tmp_path / "run").folder
    for client in range(5):
        done = replay(folder, 2, client)
        (step,) = done.steps
        assert done.update is not None
        assert float(done.update.norm()) == pytest.approx(step.learning_rate * step.norm, rel=1e-4)
        assert done.contribution is not None and step.loss == pytest.approx(done.contribution.loss)
        if kind == "clipped":
            assert step.norm <= 0.1 * (1 + 1e-6) and step.learning_rate == pytest.approx(0.1)


def test_a_poisson_batch_without_rows_has_no_loss() -> None:
    changes = {"privacy.example": NOISE, "train.batch_size": 1, "rounds": 1}
    work, steps = Work(small.job(changes)), list[Step]()
    done = work.train(0, 1, Received(work.initial, {}), None, steps)
    losses = [step.loss for step in steps]
    known = [loss for loss in losses if loss is not None]
    assert None in losses and sum(known) / len(known) == pytest.approx(done.loss)
    assert all(step.norm > 0 for step in steps), "noise all the same"


def test_two_trainings_are_told_apart(tmp_path: Path) -> None:
    folder = small.run(small.job(KINDS["ditto"]), tmp_path / "run").folder
    lines = lines_of(replay(folder, 1, 0))
    assert lines[2].split() == ["step", "training", "loss", "gradient", "rate"]


# Failures


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in whose every round client 2 fails."""
    job = small.job(small.POINTS, data=small.points(HUGE))
    return small.run(job, tmp_path_factory.mktemp("runs") / "failing").folder


def test_a_failure_comes_out_again(failing: Path) -> None:
    """In the recorded words, with the steps before it; and the others' rounds without it."""
    for row in trained(failing):
        done = replay(failing, row.round, row.client, data=small.points(HUGE))
        assert done.verdict.same and done.error == row.error
        assert (done.contribution is None) == (done.update is None) == (row.client == small.ODD)
        text = "\n".join(lines_of(done))
        if row.client == small.ODD:
            assert "failed: round" in text and "the loss is not finite in step" in text
            assert text.endswith("failed as recorded, in the same words")


def test_a_failure_that_ended_the_run_comes_out_again(tmp_path: Path) -> None:
    """Its round is not committed; its events say what happened."""
    job = small.job({**small.POINTS, "cohort.on_client_error": "fail"}, data=small.points(HUGE))
    with pytest.raises(StoppedByPolicy):
        small.run(job, tmp_path / "run")
    done = replay(tmp_path / "run", 1, small.ODD, data=small.points(HUGE))
    assert done.verdict.same and done.recorded is None and done.error is not None


def own(folder: Path, **changes: Any) -> Job:
    """A strategy of the user's own whose client 2 fails in round 2 while there is a mark."""
    (folder / "own.py").write_text(OWN)
    (folder / "mark").touch()
    strategy = {"name": "own.py:failing", "mark": str(folder / "mark")}
    return small.job({"strategy": strategy, **changes}, folder)


def test_who_failed_then_and_would_not_now_is_left_out_of_the_rounds_in_between(tmp_path: Path) -> None:
    """Perhaps its worker had died, or it was late; the model went on without it."""
    folder = small.run(own(tmp_path, **{"checkpoint.keep": 1}), tmp_path / "run").folder
    (tmp_path / "mark").unlink()
    done = replay(folder, 2, 2)
    assert done.verdict.same is False and "then it failed, round 2, client 2: ValueError" in done.verdict.text
    row = next(row for row in trained(folder) if row.round == 3)
    assert check_same(folder, row).start == 0


def test_who_fails_now_and_did_not_then_is_told(tmp_path: Path) -> None:
    job = own(tmp_path)
    (tmp_path / "mark").unlink()
    folder = small.run(job, tmp_path / "run").folder
    (tmp_path / "mark").touch()
    done = replay(folder, 2, 2)
    assert done.verdict == (False, "not as recorded: then it did not fail")


# Not the run


def test_what_differs_is_said(copy: Path) -> None:
    row = next(row for row in trained(copy) if row.round == 1)
    change(copy, f"UPDATE clients SET norm = 0.25, steps = 99 WHERE round = 1 AND client = {row.client}")
    told = f"not as recorded: norm 0.25 then, {row.norm!r} now; steps 99 then, {row.steps} now"
    assert replay(copy, 1, row.client).verdict == (False, told)


def test_rounds_in_between_that_come_out_otherwise_are_not_the_run(copy: Path) -> None:
    """Where bits are promised nothing more is done; otherwise it is said."""
    change(copy, f"UPDATE rounds SET fingerprint = '{'0' * 64}' WHERE number = 1")
    row = next(row for row in trained(copy) if row.round == 2)
    with pytest.raises(ScenarioError, match=r"^the replay is not the run: after round 1 its fingerprint is .* 0{12}\."):
        replay(copy, 2, row.client)
    told = Telling()
    assert check_same(copy, row, settings=["engine.bits=not guaranteed"], progress=told)
    assert "the replay is not the run" in told.notes[-1]


def test_other_versions_are_refused_as_they_are_for_resume(copy: Path) -> None:
    made = json.loads((copy / "environment.json").read_text())
    made["packages"]["torch"] = "1.0"
    (copy / "environment.json").write_text(json.dumps(made))
    row = next(iter(trained(copy)))
    with pytest.raises(ScenarioError, match=r"torch 1\.0 then, .*engine\.bits=not guaranteed"):
        replay(copy, row.round, row.client)
    check_same(copy, row, settings=["engine.bits=not guaranteed"])


def test_without_a_record_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    folder = small.run(small.job({"rounds": 1, "records.clients": "failed"}), tmp_path / "run").folder
    verdict = replay(folder, 1, 0).verdict
    assert verdict == (None, "nothing to compare with: records.clients = 'failed' left this client's row out")


# Mistakes


def test_a_client_outside_the_cohort_is_told_when_it_was_in_one(plain: Path) -> None:
    took_part = {client: [row.round for row in trained(plain) if row.client == client] for client in range(5)}
    client, rounds = next((client, rounds) for client, rounds in took_part.items() if len(rounds) < 7)
    absent = next(number for number in range(1, 8) if number not in rounds)
    expected = f"round {absent}, client {client}: it was not in the cohort; it was in {ranges('round', rounds)}"
    with pytest.raises(ScenarioError) as error:
        replay(plain, absent, client)
    assert str(error.value) == expected


def test_cohorts_are_those_of_the_run(plain: Path) -> None:
    found = list(cohorts(small.job({**COMMON, "rounds": 7}), 7))
    assert found == [sorted(row.client for row in trained(plain) if row.round == number) for number in range(1, 8)]


def test_a_client_that_was_never_drawn(tmp_path: Path) -> None:
    folder = small.run(small.job({"rounds": 1, "cohort.size": 1}), tmp_path / "run").folder
    (row,) = trained(folder)
    with pytest.raises(ScenarioError, match=r"it was not in the cohort; nor in that of any other round$"):
        replay(folder, 1, (row.client + 1) % 5)


@pytest.mark.parametrize(
    ("round", "client", "hint"),
    [
        (0, 0, "round 0: {run} has 7 committed rounds; 1 to 7 can be done again"),
        (8, 0, "round 8: {run} has 7 committed rounds"),
        (1, 5, "client 5: {run} has 5 clients, 0 to 4"),
        (1, -1, "client -1: {run} has 5 clients"),
    ],
)
def test_numbers_that_there_are_not(fedsim: Command, copy: Path, round: int, client: int, hint: str) -> None:
    status, out, err = fedsim("replay", "copy", "--round", str(round), "--client", str(client))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: " + hint.format(run="copy"))


def test_a_run_of_version_1_is_refused(fedsim: Command, tmp_path: Path) -> None:
    shutil.copytree(VERSION_1, tmp_path / "old")
    status, out, err = fedsim("replay", "old", "--round", "1", "--client", "0")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "was written by an earlier fedsim, with schema 1" in err
    with pytest.raises(RunFolderError, match="is not a run folder"):
        replay(tmp_path / "nowhere", 1, 0)


def test_ranges() -> None:
    assert ranges("round", [3]) == "round 3"
    assert ranges("round", [1, 2, 5, 6, 7, 9]) == "rounds 1, 2, 5 to 7, 9"
    assert ranges("round", list(range(1, 99, 2))).endswith("21, 23, ...")


# The command


def test_the_command_prints_what_the_function_gives(fedsim: Command, copy: Path) -> None:
    row = next(row for row in trained(copy) if row.round == 1)
    status, out, err = fedsim("replay", "copy", "--round", "1", "--client", str(row.client))
    done = replay(Path("copy"), 1, row.client)
    assert (status, out.splitlines(), err) == (0, replay_lines(done), "")
    told = fedsim("replay", "copy", "--round", "1", "--client", str(row.client), "--json")
    assert (told.status, json.loads(told.out)) == (0, as_data(done))
    assert json.loads(told.out)["steps"][0]["loss"] == done.steps[0].loss
    change(copy, f"UPDATE clients SET steps = 99 WHERE round = 1 AND client = {row.client}")
    assert fedsim("replay", "copy", "--round", "1", "--client", str(row.client)).status == 1


ODD_DATA = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from tests import small

points = small.points({HUGE})
"""


def debugged(folder: Path, client: int, typed: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with what a person types."""
    program = "from fedsim.cli import main; main()"
    command = [sys.executable, "-c", program, "replay", "run", "--round", "1", "--client", str(client), "--pdb"]
    return subprocess.run(command, input=typed, capture_output=True, text=True, cwd=folder, check=False)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a scenario file, in which client 2 fails."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd.py").write_text(ODD_DATA)
    changes = {**small.POINTS, "rounds": 1, "data.name": "odd.py:points"}
    (folder / "odd.toml").write_text(tomli_w.dumps(small.scenario(changes).model_dump(exclude_none=True)))
    small.run(small.job(changes, folder), folder / "run")
    return folder


def test_the_debugger_stops_at_the_client_half(odd: Path) -> None:
    done = debugged(odd, 0, "p local.number, local.round\nc\n")
    assert done.returncode == 0, done.stderr
    assert "local_update" in done.stdout and "(0, 1)" in done.stdout
    assert done.stdout.endswith("same as recorded, to the bit: norm, loss and steps\n")


def test_the_debugger_stops_at_the_failure(odd: Path) -> None:
    done = debugged(odd, small.ODD, "c\np self.number, loss\nq\n")
    assert done.returncode == 0, done.stderr
    assert "(2, nan)" in done.stdout or "(2, inf)" in done.stdout
    assert done.stdout.endswith("failed as recorded, in the same words\n")


@pytest.mark.parametrize("typed", ["q\n", ""])
def test_who_quits_the_debugger_is_told_so(odd: Path, typed: str) -> None:
    done = debugged(odd, 0, typed)
    assert (done.returncode, done.stderr) == (130, "error: the debugger was quit before the client's work was done\n")


def test_a_debugger_leaves_the_strategy_as_it_was(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python too, where the same process goes on."""
    row = next(row for row in trained(plain) if row.round == 1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("q\n"))
    with pytest.raises(Interrupted):
        replay(plain, 1, row.client, debug=True)
    assert sys.gettrace() is None
    check_same(plain, row)


def test_json_and_a_debugger_do_not_go_together(fedsim: Command, copy: Path) -> None:
    status, out, err = fedsim("replay", "copy", "--round", "1", "--client", "0", "--pdb", "--json")
    assert (status, out) == (2, "") and err.startswith("error: give --pdb or --json")
