"""The scenarios that come with fedsim: each runs, and reaches what its first lines claim."""

from pathlib import Path

import numpy as np
import pytest

from fedsim.data.corpus import Folders
from fedsim.errors import DataError
from fedsim.federating import federate
from fedsim.planning import fast
from fedsim.rounds import run
from fedsim.scenario import Scenario, load
from fedsim.scenario_files import shipped
from fedsim.summary import Result

ACCURACY = "global/central-validation/rows/accuracy"
BITS = "global/central-test/rows/bits-per-character"
AT_HAND = {"cartpole", "digits", "python-source", "synthetic"}
"""Data that need no files."""
REMOTE = ("bert-sst2",)
"""Scenarios that download."""
NEEDS_NONE = tuple(name for name in shipped() if load(name).data.name in AT_HAND)
NEEDS_FILES = tuple(name for name in shipped() if name not in (*NEEDS_NONE, *REMOTE))
WITH_REFERENCES = ("heart-disease", "adult-trees")
SMALL_TEXT = [
    "data.max_bytes=300_000",
    "cohort.size=10",
    "train.learning_rate=0.01",
    "train.batch_size=8",
    "train.steps=30",
    "engine.kind=inline",
]
LSTM = ["rounds=6", "evaluate.every=6", "model.width=64", "model.layers=1", "model.embedding=16"]
TRANSFORMER = ["rounds=10", "evaluate.every=10", "model.width=32", "model.layers=1", "model.heads=2"]


@pytest.mark.parametrize("name", NEEDS_NONE)
def test_a_scenario_without_files_runs_everywhere(name: str, tmp_path: Path) -> None:
    """`--fast-check` of it, on less text."""
    less = ["data.max_bytes=300_000"] if load(name).data.name == "python-source" else []
    assert_runs(load(name, ["engine.kind=inline", *less]), None, tmp_path)


@pytest.mark.parametrize("name", NEEDS_FILES)
def test_a_scenario_of_real_files_runs(name: str, data_dir: Path, tmp_path: Path) -> None:
    """`--fast-check` of it, of most without its references."""
    alone = [] if name in WITH_REFERENCES else ["references=[]"]
    assert_runs(load(name, ["engine.kind=inline", *alone]), data_dir, tmp_path)


@pytest.mark.parametrize("name", REMOTE)
def test_a_scenario_that_downloads_says_so_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and nothing trained."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="not in the cache"):
        run(fast(load(name)), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def assert_runs(scenario: Scenario, data_dir: Path | None, place: Path) -> None:
    result = run(fast(scenario), data_dir=data_dir, out=place / "run")
    assert result.values["status"] == "done"
    assert all(np.isfinite(value) for value in result.values["metrics"].values())


@pytest.mark.parametrize(
    ("name", "smaller"), [("text-lstm", LSTM), ("text-transformer", TRANSFORMER)], ids=["lstm", "transformer"]
)
def test_a_small_text_model_knows_more_than_pairs_of_bytes(name: str, smaller: list[str], tmp_path: Path) -> None:
    """The claim of the next test, on a sixteenth of the text with fewer parameters."""
    scenario = load(name, [*SMALL_TEXT, *smaller])
    assert bits(run(scenario, out=tmp_path / "run")) < bigram_bits(scenario)


@pytest.mark.proof
@pytest.mark.parametrize("name", ["text-lstm", "text-transformer"])
def test_text_models_know_more_than_pairs_of_bytes(name: str, tmp_path: Path) -> None:
    """Fewer bits per character than counts of byte pairs in the same train rows, on the same test rows."""
    assert bits(run(name, out=tmp_path / "run")) < bigram_bits(load(name))


@pytest.mark.proof
@pytest.mark.parametrize(
    ("partition", "target", "rounds"), [("shards", 0.95, 60), ("iid", 0.985, 30)], ids=["shards", "iid"]
)
def test_fedavg_learns_mnist_in_the_papers_number_of_rounds(
    data_dir: Path, tmp_path: Path, partition: str, target: float, rounds: int
) -> None:
    """McMahan et al. 2017: two digits a client cost rounds, and FedAvg still gets there."""
    settings = [f"data.partition.kind={partition}", f"stop.metric={ACCURACY}", f"stop.at_least={target}"]
    values = run(load("mnist-fedavg", settings), data_dir=data_dir, out=tmp_path / "run").values
    assert values["stop"]["kind"] == "target"
    assert values["rounds"] <= rounds


def bits(result: Result) -> float:
    """Test bits per character of the model that validation chose."""
    return float(result.values["metrics"][BITS])


def bigram_bits(scenario: Scenario) -> float:
    """Bits per character on the central test rows of a count model of byte pairs in all clients' train rows.

    One is added to each of the 256 x 256 counts, so that no pair is impossible.
    """
    federation = federate(scenario, Folders((), Path()))
    train = [federation.rows(client, "train") for client in range(federation.clients)]
    pairs = np.concatenate([(256 * rows.x.astype(np.int64) + rows.y).ravel() for rows in train])
    counts = 1 + np.bincount(pairs, minlength=256**2).reshape(256, 256)
    likelihood = counts / counts.sum(axis=1, keepdims=True)
    test = federation.central["test"]
    return float(-np.log2(likelihood[test.x.ravel(), test.y.ravel()]).mean())
