"""The next byte at every place of a text, and the second half of it written and compared with the true one.

Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002, by sacrebleu; Lin, "ROUGE:
A Package for Automatic Evaluation of Summaries", 2004, its ROUGE-L, by rouge-score.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.data.corpus import BYTES
from fedsim.errors import DataError
from fedsim.extras import needed
from fedsim.metrics import Statistics
from fedsim.problem import Answer, Problem, ratio
from fedsim.tasks.next_token import NextToken

_ORDERS = 4
"""BLEU counts runs of 1 to 4 words."""


def generation(classes: tuple[str, ...]) -> Problem:
    """Learn the next byte, and write; `classes` is what people call each."""
    return Generation(NextToken(classes))


@dataclass(frozen=True)
class Generation:
    """What `NextToken` measures, and how near the most likely second half of a window comes to the true one.

    A window's first half is read; byte by byte the model writes the one that it finds most likely. Words are compared,
    of which the first and the last may be cut.

    Statistics: those of `NextToken`, `bleu-hits` [4] and `bleu-runs` [4] (runs of 1 to 4 words that are right, and
    all), `bleu-written` and `bleu-true` (words), `rouge-l` (sum over windows of ROUGE-L's F).
    """

    text: NextToken = field(default_factory=NextToken)
    headline: ClassVar[str] = NextToken.headline
    lower: ClassVar[frozenset[str]] = NextToken.lower
    outputs: ClassVar[int] = BYTES

    def check_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """See `Problem`."""
        self.text.check_rows(x, y)
        if x.shape[1] < 3:
            raise DataError(f"windows of {x.shape[1] + 1} bytes; generation needs at least 4")
        _bleu(), _rouge()

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return self.text.inputs(x)

    def targets(self, y: np.ndarray | Tensor) -> Tensor:
        """See `Problem`."""
        return self.text.targets(y)

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """See `NextToken`."""
        return self.text.losses(output, targets)

    def mean_loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """See `Problem`."""
        return self.text.mean_loss(output, targets)

    def zeros(self) -> Statistics:
        """See `Problem`."""
        one, four = ("bleu-written", "bleu-true", "rouge-l"), ("bleu-hits", "bleu-runs")
        return {
            **self.text.zeros(),
            **{name: np.zeros(_ORDERS) for name in four},
            **{name: np.zeros(1) for name in one},
        }

    def statistics(self, output: Tensor, targets: Tensor) -> Statistics:
        """Of an output alone, which has nothing written."""
        return self.zeros() | self.text.statistics(output, targets)

    def measure(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Statistics:
        """See `Problem`."""
        told = self.text.statistics(module(inputs.clone()), targets)
        start = (inputs.shape[1] + 1) // 2
        written = [_decoded(row) for row in continued(module, inputs, start)]
        return told | compared(written, [_decoded(row) for row in targets[:, start - 1 :]])

    def metrics(self, statistics: Statistics) -> dict[str, float]:
        """Those of `NextToken`, corpus BLEU of 0 to 100 and the mean ROUGE-L of 0 to 1."""
        own = {name: values for name, values in statistics.items() if not name.startswith(("bleu-", "rouge-"))}
        compared_rows = statistics["rows"][0] if statistics["bleu-true"][0] else 0.0
        return {
            **self.text.metrics(own),
            "bleu": _corpus_bleu(statistics) if compared_rows else float("nan"),
            "rouge-l": ratio(statistics["rouge-l"][0], compared_rows),
        }

    def metric_names(self) -> list[str]:
        """See `Problem`."""
        return [*self.text.metric_names(), "bleu", "rouge-l"]

    def answer(self, x: Tensor, output: Tensor) -> Answer:
        """See `NextToken`."""
        return self.text.answer(x, output)

    def check(self, output: object, targets: Tensor, name: str = "the model") -> None:
        """See `Problem`."""
        self.text.check(output, targets, name)


def continued(module: nn.Module, inputs: Tensor, start: int) -> Tensor:
    """[B, L + 1 - start] the bytes that a model finds most likely one after the other.

    Args:
        module: gives [B, L, 256] logits; those of a place depend on what stands up to it, so that the rest can be 0.
        inputs: [B, L] bytes.
        start: how many of them are read.
    """
    text = torch.zeros_like(torch.cat([inputs, inputs[:, :1]], dim=1))
    text[:, :start] = inputs[:, :start]
    for place in range(start, text.shape[1]):
        text[:, place] = module(text[:, :-1].clone())[:, place - 1].argmax(1)
    return text[:, start:]


def compared(written: list[str], true: list[str]) -> Statistics:
    """What texts that were written add to the sums, beside the true ones."""
    told, scorer = _bleu().corpus_score(written, [true]), _rouge()
    return {
        "bleu-hits": np.array(told.counts, np.float64),
        "bleu-runs": np.array(told.totals, np.float64),
        "bleu-written": np.array([float(told.sys_len)]),
        "bleu-true": np.array([float(told.ref_len)]),
        "rouge-l": np.array([sum(scorer.score(*pair)["rougeL"].fmeasure for pair in zip(true, written, strict=True))]),
    }


def _corpus_bleu(sums: Statistics) -> float:
    told = _bleu().compute_bleu(
        correct=sums["bleu-hits"].tolist(),
        total=sums["bleu-runs"].tolist(),
        sys_len=int(sums["bleu-written"][0]),
        ref_len=int(sums["bleu-true"][0]),
        smooth_method="exp",
    )
    return float(told.score)


def _bleu() -> Any:
    # "force": no warning of texts that come with spaces between words and marks
    return needed("sacrebleu.metrics", "text", "task 'generation'").BLEU(force=True)


def _rouge() -> Any:
    return needed("rouge_score.rouge_scorer", "text", "task 'generation'").RougeScorer(["rougeL"])


def _decoded(row: Tensor) -> str:
    return bytes(row.tolist()).decode(errors="replace")
