"""What a comparison starts from: the reference that only counts, on real rows, and its model."""

from pathlib import Path

import numpy as np
import pytest
import torch

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
