"""What a comparison starts from: the reference that only counts, on real rows, and its model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data.corpus import Corpus
from fedsim.errors import ModelError
from fedsim.job import Job
from fedsim.model import Known, make_model
from tests import small

TEXT: small.Changes = {
    "data": {"name": "python-source", "max_bytes": 20_000, "window": 20, "partition": {"kind": "natural"}},
    "model": {"name": "lstm", "layers": 1, "width": 8},
}


def counting(changes: small.Changes = small.NOTHING) -> Job:
    return small.job({"strategy": {"name": "constant", "smoothing": 0.5}, "rounds": 2, **changes})


def rows(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """All clients' train rows."""
    parts = [job.federation.rows(number, "train") for number in range(job.federation.clients)]
    return np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])


def test_constant_knows_the_frequency_of_every_class(tmp_path: Path) -> None:
    """Of the rows of all clients, each counted once in two rounds."""
    job = counting()
    logits = small.run(job, tmp_path / "run").weights.vector
    np.testing.assert_allclose(logits.numpy(), np.log(np.bincount(rows(job)[1], minlength=10) + 0.5), rtol=1e-5)


def test_constant_knows_the_frequency_of_every_byte_after_every_other(tmp_path: Path) -> None:
    job = counting(TEXT)
    counts = np.full((256, 256), 0.5)
    x, y = rows(job)
    np.add.at(counts, (x.flatten(), y.flatten()), 1)
    logits = small.run(job, tmp_path / "run").weights.vector.view(256, 256)
    np.testing.assert_allclose(logits.numpy(), np.log(counts), rtol=1e-5)


def made_up(task: str, y: np.ndarray, classes: tuple[str, ...] = ()) -> Job:
    """Three clients with rows of two numbers and these targets [60, ...]."""
    x = np.random.default_rng(1).normal(size=(len(y), 2)).astype(np.float32)
    corpus = Corpus(
        name="made up",
        task=task,
        x=x,
        y=np.concatenate([x, y], axis=1) if task == "reconstruction" else y,
        classes=classes,
        clients=np.arange(len(y)) % 3,
        client_names=("a", "b", "c"),
    )
    changes = {"data.partition": {"kind": "natural"}, "strategy": {"name": "constant", "smoothing": 0.5}, "rounds": 2}
    return small.job(changes, data=lambda folders: corpus)


@pytest.mark.parametrize("shape", [(60,), (60, 2)])
def test_constant_knows_the_mean_of_numbers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    job = made_up("regression", np.random.default_rng(0).normal(3, 2, shape).astype(np.float32))
    means = small.run(job, tmp_path / "run").weights.vector
    np.testing.assert_allclose(means.numpy(), np.atleast_1d(rows(job)[1].mean(axis=0)), rtol=1e-5)


def test_constant_knows_the_mean_of_normal_rows(tmp_path: Path) -> None:
    """Where rows are to be reconstructed; what is anomalous counts as little as in training."""
    job = made_up("reconstruction", (np.arange(60) % 4 == 0).astype(np.float32)[:, None])
    means, (x, y) = small.run(job, tmp_path / "run").weights.vector, rows(job)
    np.testing.assert_allclose(means.numpy(), x[y[:, -1] == 0].mean(axis=0), rtol=1e-5)


def test_constant_knows_how_likely_every_label_is(tmp_path: Path) -> None:
    """Each by itself: log odds from the rows that have it and those that have not, both with the smoothing."""
    labels = (np.random.default_rng(0).random((60, 3)) < (0.1, 0.5, 0.8)).astype(np.uint8)
    job = made_up("multi-label", labels, ("rare", "even", "usual"))
    vector, there = small.run(job, tmp_path / "run").weights.vector, rows(job)[1].sum(axis=0)
    model = job.build_model()
    torch.nn.utils.vector_to_parameters(vector, model.parameters())
    odds = (there + 0.5) / (len(rows(job)[1]) - there + 0.5)
    np.testing.assert_allclose(model(torch.zeros(2, 2)).detach().numpy(), np.log([odds, odds]), rtol=1e-4, atol=1e-6)


def test_there_is_no_constant_answer_to_a_task_of_another_kind() -> None:
    with pytest.raises(ModelError, match="model 'constant' has no answer for task 'control'"):
        make_model("constant", {}, Known((7,), 2, "control"), Path(), seed=1)


def test_the_model_looks_at_no_row_but_for_the_byte_before() -> None:
    images, text = torch.randn(3, 1, 8, 8), torch.tensor([list(b"abab"), list(b"bbba")])
    classifier = make_model("constant", {}, Known((1, 8, 8), 10, "classification"), Path(), seed=1)
    bigram = make_model("constant", {}, Known((4,), 256, "next-token"), Path(), seed=1)
    with torch.no_grad():
        for model in (classifier, bigram):
            next(model.parameters()).normal_(generator=torch.Generator().manual_seed(0))
        assert torch.equal(classifier(images), classifier(torch.zeros(1, 1, 8, 8)).repeat(3, 1))
        logits = bigram(text)
    assert logits.shape == (2, 4, 256)
    assert torch.equal(logits[text == ord("a")], logits[0, 0].expand(3, 256))
    assert not torch.equal(logits[0, 0], logits[0, 1])


def test_the_next_of_floats_is_not_counted() -> None:
    with pytest.raises(ModelError, match=r"rows \[L\] of bytes, not of rows \[9, 5\]"):
        make_model("constant", {}, Known((9, 5), 256, "next-token"), Path(), seed=1)
