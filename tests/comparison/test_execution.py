"""Laws of running a comparison: its runs are ordinary runs, it goes on wherever it ended, and nothing aborts it."""

import itertools
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import fedsim
from fedsim import comparing
from fedsim.comparing import compare, forecast, plan
from fedsim.comparison import execution, written
from fedsim.comparison.execution import claimed, summary
from fedsim.comparison.findings import Findings
from fedsim.comparison.plan import Comparison
from fedsim.comparison.view import View
from fedsim.data.build import build
from fedsim.data.corpus import Corpus
from fedsim.data.federation import Federation
from fedsim.errors import Interrupted, RunFolderError, ScenarioError
from fedsim.progress import Silent
from tests import small

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

TWO: dict[str, Any] = {"strategy.name": ["fedavg", "fedadam"]}
"""Two strategies whose results differ."""


class Told(Silent):
    """Remembers what a person is told, and may press Ctrl-C at a passing line."""

    def __init__(self, press_at: str | None = None) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []
        self._press_at = press_at

    def phase(self, text: str) -> None:
        if self._press_at is not None and text.startswith(self._press_at):
            self._press_at = None
            signal.raise_signal(signal.SIGINT)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self, lines: Sequence[str]) -> None:
        self.lines += lines

    @property
    def runs(self) -> list[str]:
        """What was run, in order."""
        return [line[11:49].rstrip() for line in self.lines if line.lstrip()[:1].isdigit() and "/" in line[:9]]


def asked(changes: small.Changes = small.NOTHING, **content: Any) -> Comparison:
    base = small.scenario({"rounds": 2, **changes})
    return plan(base, {"vary": TWO, "seeds": 2, "references": [], **content})


def fingerprints(comparison: Comparison, folder: Path) -> dict[str, Any]:
    return {str(cell.folder): summary(folder / cell.folder).get("fingerprint") for cell in comparison.cells()}


def test_a_cell_is_the_run_of_its_scenario(tmp_path: Path) -> None:
    """Nothing of a run depends on those before it, though data, engine and jobs are shared."""
    comparison = asked(references=["local"])
    compare(comparison, out=tmp_path / "both")
    found = fingerprints(comparison, tmp_path / "both")
    assert len(set(found.values())) == len(found) == 6
    for cell in comparison.cells()[3:5]:
        alone = fedsim.run(cell.scenario, out=tmp_path / cell.candidate)
        assert alone.fingerprint == found[str(cell.folder)]
    stored = written.load(tmp_path / "both")
    assert stored.digest == comparison.digest


def test_one_that_has_ended_says_so_again_and_runs_nothing(tmp_path: Path) -> None:
    asks = itertools.count()

    def counting(folders: object) -> Corpus:
        next(asks)
        found = small.points(0.0)(folders=folders)
        assert isinstance(found, Corpus)
        return found

    def again(progress: Told) -> Findings:
        base = small.scenario({**small.POINTS, "rounds": 2, "data.split.central": 0.2})
        vary: Any = {"train.learning_rate": [0.1, 0.2, 0.3]}
        return compare(base, vary=vary, seeds=2, references=[], data=counting, out=tmp_path / "runs", progress=progress)

    first, told = again(Told()), Told()
    page, kept = tmp_path / "runs" / comparing.REPORT, tmp_path / "runs" / comparing.FINDINGS
    page.unlink()
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "notes": ["one was left out"]}), encoding="utf-8")
    loads = next(asks)
    assert loads == 2, "once for each seed"
    second = again(told)
    assert next(asks) == loads + 1
    assert told.runs == []
    assert second.sentences == first.sentences
    assert second.notes == (*first.notes, "one was left out") and "one was left out" in page.read_text(), "the page too"
    assert [run.fingerprint for run in second.runs] == [run.fingerprint for run in first.runs]


SCRIPT = """
import os, signal, sys
from pathlib import Path
from fedsim.comparing import compare
from fedsim.comparison.written import load
from fedsim.progress import Silent

class Killer(Silent):
    def phase(self, text):
        if text.startswith(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

compare(load(sys.argv[1]), out=Path(sys.argv[2]), progress=Killer())
"""


def test_killed_and_repeated_it_is_the_one_that_was_never_interrupted(tmp_path: Path) -> None:
    """SIGKILL in the middle of the second of four runs."""
    comparison = asked({"rounds": 4})
    file, out = tmp_path / "mine.toml", tmp_path / "killed"
    file.write_text(comparison.to_toml(), encoding="utf-8")
    at = "fedadam, seed 1: round 2 of 4"
    ended = subprocess.run([sys.executable, "-c", SCRIPT, file, out, at], check=False)
    assert ended.returncode == -signal.SIGKILL
    done = [bool(summary(out / cell.folder)) for cell in comparison.cells()]
    assert done == [True, False, False, False]
    told = Told()
    again = compare(written.load(file), out=out, progress=told)
    assert told.runs == ["fedadam, seed 1", "fedavg, seed 2", "fedadam, seed 2"]
    assert any("resumed after round" in note for note in told.notes)
    whole = compare(comparison, out=tmp_path / "whole")
    assert fingerprints(comparison, out) == fingerprints(comparison, tmp_path / "whole")
    assert again.family == whole.family


@pytest.mark.parametrize("at", ["fedavg, seed 1: round 1 of 2", "fedavg, seed 1: testing", "checking", "loading"])
def test_ctrl_c_begins_no_other_run_and_the_same_call_goes_on(tmp_path: Path, at: str) -> None:
    """Also when it comes as a run ends, which then is whole."""
    comparison = asked()
    with pytest.raises(Interrupted, match="the same command goes on with it"):
        compare(comparison, out=tmp_path / "runs", progress=Told(at))
    assert not any(summary(tmp_path / "runs" / cell.folder) for cell in comparison.cells()[1:])
    compare(comparison, out=tmp_path / "runs")
    compare(comparison, out=tmp_path / "whole")
    assert fingerprints(comparison, tmp_path / "runs") == fingerprints(comparison, tmp_path / "whole")


def test_what_is_wrong_with_any_run_is_said_before_anything_trains(tmp_path: Path) -> None:
    candidates: list[dict[str, Any]] = [
        {"name": "sound"},
        {"name": "wrong", "set": {"strategy.name": "fedprox", "strategy.mu": -1.0}},
    ]
    comparison = plan(small.scenario(), {"candidate": candidates, "references": []})
    with pytest.raises(ScenarioError, match=r"small: candidate 'wrong': .*mu = -1"):
        compare(comparison, out=tmp_path / "runs")
    assert not (tmp_path / "runs" / "runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metric": "global/central-test/rows/acuracy"}, "Did you mean global/central-test/rows/accuracy"),
        ({"metric": "global/central-validation/rows/accuracy"}, "verdicts rest on test rows"),
        ({"metric": "personal/client-test/clients/accuracy"}, "gives clients no model of their own"),
        ({"target": {"metric": "global/central-test/rows/accuracy", "at_least": 0.5}}, "for reporting"),
        ({"leave_one_out": True, "condition": [{"name": "", "set": {"data.partition.clients": 30}}]}, "there are 30"),
    ],
)
def test_what_is_never_measured_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        compare(asked(**content), out=tmp_path / "runs")
    assert not (tmp_path / "runs" / "runs").exists()


def test_a_run_that_diverges_is_a_fact_and_the_others_are_run(tmp_path: Path) -> None:
    comparison = plan(small.scenario({"rounds": 2}), {"vary": {"train.learning_rate": [0.1, 1e30]}, "references": []})
    told = Told()
    found = compare(comparison, out=tmp_path / "runs", progress=told)
    assert len(told.runs) == 10
    ways = {(run.candidate, run.status) for run in found.runs}
    assert ("learning_rate=0.1", "done") in ways
    assert all(way != "done" for name, way in ways if name == "learning_rate=1e+30")


def test_a_reference_that_does_not_fit_is_left_out_with_a_word(tmp_path: Path) -> None:
    """A comparison is not to fail because nobody can be measured alone."""
    comparison = asked({"evaluate": {"clients_every": 0}}, references=["local", "constant"], seeds=1)
    found = compare(comparison, out=tmp_path / "runs")
    assert {run.candidate for run in found.runs} == {"fedavg", "fedadam", "reference: constant"}
    assert any("reference: local is left out" in note for note in found.notes)
    told = Told()
    compare(comparison, out=tmp_path / "runs", progress=told)
    assert told.runs == []


def test_findings_of_fewer_seeds_are_not_taken_for_all_of_them(tmp_path: Path) -> None:
    """As a budget leaves them, where the later runs were made and the process was killed before they were told."""
    compare(asked(), out=tmp_path / "runs")
    file = tmp_path / "runs" / "findings.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "seeds": [1], "notes": ["the budget was enough for 1 of 2 seeds"]}))
    again = compare(asked(), out=tmp_path / "runs")
    assert not any("budget" in note for note in again.notes)
    assert json.loads(file.read_text()) == told


def test_what_is_given_beside_a_planned_comparison_is_refused(tmp_path: Path) -> None:
    """It would be ignored: fewer seeds asked for and all of them run."""
    with pytest.raises(ScenarioError, match="small: seeds, metric: a planned comparison says that itself"):
        compare(asked(), seeds=1, metric="global/central-test/rows/loss", out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_planned_comparison_of_other_data_is_another(tmp_path: Path) -> None:
    """Else the same call with other rows would find what it has done with the first."""
    rng = np.random.default_rng(1)
    x, y, owners = rng.normal(size=(80, 3)).astype(np.float32), np.arange(80) % 2, np.repeat(np.arange(4), 20)
    planned = asked({"data.partition": {"kind": "natural"}}, seeds=1)
    found = compare(planned, data=(x, y, owners), out=tmp_path / "runs")
    again = compare(planned, data=(x.copy(), y, owners), out=tmp_path / "runs")
    assert [run.fingerprint for run in again.runs] == [run.fingerprint for run in found.runs]
    for other in ((x + 1, y, owners), None):
        with pytest.raises(RunFolderError, match="has another comparison"):
            compare(planned, data=other, out=tmp_path / "runs")


def test_a_folder_has_one_comparison_and_one_process(tmp_path: Path) -> None:
    compare(asked(seeds=1), out=tmp_path / "runs")
    with pytest.raises(RunFolderError, match="has another comparison"):
        compare(asked(seeds=3), out=tmp_path / "runs")
    with pytest.raises(RunFolderError, match="no comparison's"):
        compare(asked(), out=tmp_path)
    with claimed(tmp_path / "runs"), pytest.raises(RunFolderError, match="another process"):
        compare(asked(seeds=1), out=tmp_path / "runs")


def test_a_budget_takes_whole_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is a minute on whenever it is looked at, once before each seed and twice about its runs."""
    clock = itertools.count(0, 60)
    monkeypatch.setattr(comparing, "_first", lambda *_: 60.0)
    monkeypatch.setattr(execution, "monotonic", lambda: float(next(clock)))
    comparison = asked(seeds=5)
    found = compare(comparison, out=tmp_path / "runs", budget=500.0)
    assert found.seeds == (1, 2, 3)
    done = [cell.seed for cell in comparison.cells() if summary(tmp_path / "runs" / cell.folder)]
    assert done == [1, 1, 2, 2, 3, 3]
    assert any("the budget was enough for 3 of 5 seeds" in note for note in found.notes)
    assert compare(comparison, out=tmp_path / "runs").seeds == (1, 2, 3, 4, 5)


def test_less_than_one_seed_is_refused_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="more than the budget"):
        compare(asked({"rounds": 1000}), out=tmp_path / "runs", budget=0.5)
    assert not (tmp_path / "runs" / "runs").exists()


def test_a_dry_run_counts_what_is_left_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the epsilon that it says is what the runs then spend."""
    monkeypatch.chdir(tmp_path)
    private = {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}}
    comparison = asked(private, references=["local"])
    estimates = forecast(comparison)
    assert not list(tmp_path.iterdir())
    assert {each.candidate: each.runs for each in estimates} == {"fedavg": 2, "fedadam": 2, "reference: local": 2}
    found = compare(comparison)
    spent = {(run.candidate, run.epsilon) for run in found.runs if run.seed == 1}
    assert {(each.candidate, each.epsilon) for each in estimates} == spent
    assert ("reference: local", None) in spent
    assert forecast(comparison) == []
    (folder,) = (tmp_path / "comparisons").iterdir()
    assert json.loads((folder / "findings.json").read_text())["seeds"] == [1, 2]
    assert (folder / "compare.html").stat().st_size > 10_000


def test_a_dry_run_counts_trials_and_the_runs_before_tuning(tmp_path: Path) -> None:
    """As many as the tuned comparison then has, where every candidate is changed."""
    comparison = asked(references=["local"], tune={"trials": 3, "seeds": [9]})
    estimates = {each.candidate: each.runs for each in forecast(comparison, tmp_path / "runs")}
    plain = {"fedavg": 2, "fedadam": 2, "reference: local": 2}
    trials = {f"tuning {name}": 3 for name in plain}
    assert estimates == {**plain, **trials, "untuned: fedavg": 2, "untuned: fedadam": 2}
    tuned = {("", name): {"train.learning_rate": 0.3} for name in plain}
    cells = Counter(cell.candidate for cell in replace(comparison, tuned=tuned).cells())
    assert {name: runs for name, runs in estimates.items() if name not in trials} == cells


def federation(without: Sequence[int] = (), last: int = 4) -> Federation:
    corpus = small.points(1.0)(folders=None)
    assert isinstance(corpus, Corpus)
    kept = corpus.clients < last  # type: ignore[operator]
    few = Corpus(
        name="points",
        task="classification",
        x=corpus.x[kept],
        y=corpus.y[kept],
        classes=corpus.classes,
        clients=corpus.clients[kept],  # type: ignore[index]
        client_names=corpus.client_names[:last],
    )
    return build(few, 1, {"kind": "natural"}, central=0.0, without=without)


def test_a_client_that_is_left_out_has_no_rows_and_the_others_keep_theirs() -> None:
    """Its number stays, so that the others draw what they drew with it."""
    whole, left = federation(), federation(without=[1])
    assert left.clients == whole.clients
    for client, part in itertools.product(range(4), ("train", "validation", "test")):
        rows, before = left.rows(client, part), whole.rows(client, part)  # type: ignore[arg-type]
        if client == 1:
            assert len(rows.x) == 0
        else:
            np.testing.assert_array_equal(rows.x, before.x)
            np.testing.assert_array_equal(rows.y, before.y)


def test_a_run_without_the_last_client_is_that_of_data_that_never_had_it(tmp_path: Path) -> None:
    def three(folders: object) -> Corpus:
        corpus = small.points(1.0)(folders=folders)
        assert isinstance(corpus, Corpus)
        assert corpus.clients is not None
        kept = corpus.clients < 3
        return Corpus(
            name="points",
            task="classification",
            x=corpus.x[kept],
            y=corpus.y[kept],
            classes=corpus.classes,
            clients=corpus.clients[kept],
            client_names=corpus.client_names[:3],
        )

    base = small.scenario({**small.POINTS, "data.without": [3]})
    without = fedsim.run(base, data=small.points(1.0), out=tmp_path / "without")
    never = fedsim.run(base.changed({"data.without": []}), data=three, out=tmp_path / "never")
    assert without.fingerprint == never.fingerprint


@pytest.mark.parametrize(("without", "message"), [([9], "there is no client 9"), ([0, 1, 2, 3, 4], "nobody is left")])
def test_clients_that_cannot_be_left_out_are_named(tmp_path: Path, without: list[int], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        fedsim.run(small.scenario({"data.without": without}), out=tmp_path / "run")


def test_what_each_client_adds_is_found_by_runs_without_it(tmp_path: Path) -> None:
    comparison = asked({"data.partition": {"kind": "iid", "clients": 2}}, seeds=1, leave_one_out=True)
    found = compare(comparison, out=tmp_path / "runs")
    assert {run.candidate for run in found.runs} >= {"without client 0", "without client 1"}
    assert set(found.left_out) == {("", 0), ("", 1)}


def test_on_ray_the_bits_are_the_same(ray_engine: "RayEngine", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = asked(references=["local", "central"], seeds=1)
    compare(comparison, out=tmp_path / "inline")
    on_ray = asked({"engine": {"kind": "ray", "workers": 2}}, references=["local", "central"], seeds=1)
    assert on_ray.digest == comparison.digest
    started = nullcontext(lambda: small.with_workers(ray_engine, 2))  # a second Ray would wait for the session's
    monkeypatch.setattr(comparing, "starting", lambda settings, tell: started)
    compare(on_ray, out=tmp_path / "ray")
    assert fingerprints(on_ray, tmp_path / "ray") == fingerprints(comparison, tmp_path / "inline")


def test_what_several_runs_say_with_other_numbers_is_said_once() -> None:
    told = Told()
    view = View(told)
    for text in ("3 of 10 clients have few rows", "7 of 10 clients have few rows", "Ray waits"):
        view.note(text)
    assert told.notes == ["3 of 10 clients have few rows", "Ray waits"]
