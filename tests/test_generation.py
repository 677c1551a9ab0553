"""Text that is written: what is read, what is chosen, and how it is compared with the true text."""

import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.errors import DataError, FedsimError
from fedsim.metrics import Statistics, add
from fedsim.model import Known, make_model
from fedsim.problem import evaluate, problem_for
from fedsim.rounds import run
from fedsim.scenario import load
from fedsim.tasks.generation import Generation, compared, continued
from fedsim.tasks.next_token import NextToken

PROBLEM = Generation()
SENTENCES = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "dog"]), min_size=1, max_size=9)


class Alphabet(nn.Module):
    """Finds the byte after the last one most likely: b after a."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot((x + 1) % 256, 256).double()


def windows(*texts: bytes) -> tuple[Tensor, Tensor]:
    """x and y of whole windows."""
    whole = torch.tensor([list(text) for text in texts])
    return whole[:, :-1], whole[:, 1:]


def told(written: list[str], true: list[str]) -> dict[str, float]:
    """The metrics of texts alone."""
    sums = PROBLEM.zeros() | compared(written, true) | {"rows": np.array([float(len(true))])}
    return PROBLEM.metrics(sums)


def test_the_task_is_found_by_name_and_judged_as_next_token() -> None:
    """BLEU of small models is next to nothing and jumps, so the best round is not chosen by it."""
    names = tuple(str(byte) for byte in range(256))
    assert problem_for("generation", names) == Generation(NextToken(names))
    assert (PROBLEM.headline, PROBLEM.lower) == (NextToken.headline, NextToken.lower)


def test_the_first_half_is_read_and_the_rest_written() -> None:
    """Of windows of even and odd length; what stands in the second half is not looked at."""
    x, y = windows(b"abcdZZZZ", b"klmnYYYY")
    assert [bytes(row.tolist()) for row in continued(Alphabet(), x, 4)] == [b"efgh", b"opqr"]
    assert [bytes(row.tolist()) for row in continued(Alphabet(), windows(b"abZZZ")[0], 2)] == [b"cde"]
    other = x.clone()
    other[:, 4:] = 0
    same = PROBLEM.measure(Alphabet(), other, y), PROBLEM.measure(Alphabet(), x, y)
    assert all(np.array_equal(same[0][name], same[1][name]) for name in PROBLEM.zeros() if name[:4] in ("bleu", "roug"))


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_written_bytes_are_the_most_likely_one_after_the_other(name: str) -> None:
    """What the families write byte by byte from a text cut where it ends, without what fills it up."""
    module = make_model(name, {"width": 16}, Known((9,), 256, "generation"), Path(), seed=1).eval()
    x = torch.randint(256, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text = x[:, :5]
        while text.shape[1] < 10:
            text = torch.cat([text, module(text)[:, -1:].argmax(2)], dim=1)
        assert torch.equal(continued(module, x, 5), text[:, 5:])


def test_a_model_that_knows_the_text_has_all_points() -> None:
    """ROUGE-L knows letters and digits alone, BLEU counts runs of four words."""

    class Knows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(y, 256).double()

    x, y = windows(b"one two three four FIVE six 7 8 nine", b"the cat sat on the mat the dog sat 1")
    measured = PROBLEM.metrics(PROBLEM.measure(Knows(), x, y))
    assert list(measured) == PROBLEM.metric_names()
    assert measured["bleu"] == pytest.approx(100)
    assert measured["rouge-l"] == measured["accuracy"] == 1.0


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=5))
@settings(deadline=None)
def test_bleu_and_rouge_are_their_definitions(pairs: list[tuple[list[str], list[str]]]) -> None:
    """Papineni et al. 2002, equations 1 to 3, without smoothing where all orders hit; Lin 2004, equation 4 with the
    longest common subsequence of words."""
    measured = told([" ".join(one) for one, _ in pairs], [" ".join(other) for _, other in pairs])
    hits, runs = np.zeros(4), np.zeros(4)
    for written, true in pairs:
        for order in range(4):
            mine, theirs = _runs(written, order + 1), _runs(true, order + 1)
            hits[order] += (mine & theirs).total()
            runs[order] += mine.total()
    if hits.all():
        lengths = sum(len(one) for one, _ in pairs), sum(len(other) for _, other in pairs)
        short = min(1.0, math.exp(1 - lengths[1] / lengths[0]))
        assert measured["bleu"] == pytest.approx(100 * short * math.exp(np.log(hits / runs).mean()))
    scores = []
    for written, true in pairs:
        common = _common(written, true)
        scores.append(2 * common / (len(written) + len(true)))
    assert measured["rouge-l"] == pytest.approx(np.mean(scores))


def _runs(words: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def _common(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence."""
    table = np.zeros((len(one) + 1, len(other) + 1), int)
    for row, word in enumerate(one):
        for column, theirs in enumerate(other):
            best = max(table[row, column + 1], table[row + 1, column])
            table[row + 1, column + 1] = table[row, column] + 1 if word == theirs else best
    return int(table[-1, -1])


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=2, max_size=6), st.integers(1, 5))
@settings(deadline=None)
def test_sums_of_parts_are_the_sum_of_the_whole(pairs: list[tuple[list[str], list[str]]], cut: int) -> None:
    """So clients' BLEU is that of all their texts, not a mean of theirs."""

    def sums(some: list[tuple[list[str], list[str]]]) -> Statistics:
        return compared([" ".join(one) for one, _ in some], [" ".join(other) for _, other in some])

    parts = [sums(part) for part in (pairs[:cut], pairs[cut:]) if part]
    whole, added = sums(pairs), add(parts)
    assert list(whole) == list(added)
    for name in whole:
        np.testing.assert_allclose(added[name], whole[name], rtol=1e-12)


def test_what_next_token_measures_stays() -> None:
    """The same figures beside; and none of a text that was not written."""
    x = np.random.default_rng(1).integers(0, 256, (5, 10), dtype=np.uint8)
    y = np.random.default_rng(2).integers(0, 256, (5, 10), dtype=np.uint8)
    plain = NextToken().metrics(evaluate(Alphabet(), NextToken(), x, y, 2))
    measured = PROBLEM.metrics(evaluate(Alphabet(), PROBLEM, x, y, 2))
    assert {name: measured[name] for name in plain} == plain
    output = Alphabet()(torch.from_numpy(x).long())
    alone = PROBLEM.metrics(PROBLEM.statistics(output, torch.from_numpy(y).long()))
    assert math.isnan(alone["bleu"]) and math.isnan(alone["rouge-l"]) and math.isfinite(alone["loss"])


def test_rows_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(DataError, match="windows of 3 bytes; generation needs at least 4"):
        PROBLEM.check_rows(np.zeros((1, 2), np.uint8), np.zeros((1, 2), np.uint8))
    with pytest.raises(DataError, match="needs two uint8"):
        PROBLEM.check_rows(np.zeros((1, 9), np.float32), np.zeros((1, 9), np.uint8))


@pytest.mark.parametrize("package", ["sacrebleu.metrics", "rouge_score.rouge_scorer"])
def test_a_package_that_is_not_there_is_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FedsimError, match=r"task 'generation' needs .*: pip install 'fedsim\[text\]'"):
        PROBLEM.check_rows(np.zeros((1, 9), np.uint8), np.zeros((1, 9), np.uint8))


def test_a_federation_learns_to_write(tmp_path: Path) -> None:
    """A run from the shipped scenario of Python's source, much smaller, has both figures of the held-out windows."""
    smaller = ["data.max_bytes=60_000", "data.task=generation", "model.width=16", "rounds=1", "train.steps=2"]
    scenario = load("text-lstm", [*smaller, "cohort.size=2", "engine.kind=inline"])
    metrics = run(scenario, out=tmp_path / "run").values["metrics"]
    assert 0 <= metrics["global/central-test/rows/bleu"] <= 100
    assert 0 <= metrics["global/central-test/rows/rouge-l"] <= 1
    assert metrics["global/central-test/rows/bits-per-character"] < 8.1
