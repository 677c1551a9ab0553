"""XGBoost's trees: one more tree on some rows, and what trees say of rows.

Chen, Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016. A forest is XGBoost's own JSON, which
`xgboost.Booster(model_file=...)` reads. One thread and the histogram method: the same rows give the same bytes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.data.federation import Rows
from fedsim.extras import needed

_HALF = 0.5
"""Where everybody's margins start from; XGBoost would take the first client's labels for it."""


class Model(Protocol):
    """What is learned."""

    @property
    def content(self) -> bytes:
        """As a JSON file."""
        ...

    def logits(self, x: np.ndarray) -> Tensor:
        """[N, C] for rows [N, ...]."""
        ...


class Grown(NamedTuple):
    """What a tree (one for each class, where there are more than two) makes of a forest.

    Attributes:
        forest: all of it, or the new tree alone.
        before: logits [N, C] of the forest without it on the rows that it was grown on.
    """

    forest: "Forest"
    before: Tensor


@dataclass(frozen=True)
class Forest:
    """Trees, as XGBoost has them.

    Attributes:
        content: XGBoost's JSON; nothing where there is no tree yet.
        classes: C.
    """

    content: bytes
    classes: int

    @cached_property
    def booster(self) -> Any:
        """XGBoost's object, on one thread."""
        booster = _xgboost().Booster({"nthread": 1, "verbosity": 0})
        booster.load_model(bytearray(self.content))
        return booster

    def logits(self, x: np.ndarray) -> Tensor:
        """[N, C] for rows [N, ...]: of two classes minus and plus half the margin, whose softmax is XGBoost's."""
        return self._logits(self.booster, _matrix(x)) if self.content else torch.zeros(len(x), self.classes)

    def _logits(self, booster: Any, matrix: Any) -> Tensor:
        margins = torch.from_numpy(booster.predict(matrix, output_margin=True))
        return torch.stack([-margins / 2, margins / 2], dim=1) if self.classes == 2 else margins

    def grow(self, rows: Rows, settings: Mapping[str, Any], eta: float, seed: int) -> Grown:
        """The forest with a tree for what it does not explain yet.

        Args:
            rows: to grow it on, with classes.
            settings: of `xgboost`.
            eta: the step: by what the tree's values are multiplied.
            seed: for the columns that are drawn.
        """
        matrix = _matrix(rows.x, rows.y)
        booster = self._booster(settings, eta, seed, matrix)
        before, trees = torch.zeros(len(rows.x), self.classes), 0
        if self.content:
            booster.load_model(bytearray(self.content))
            before, trees = self._logits(booster, matrix), booster.num_boosted_rounds()
        booster.update(matrix, trees)
        return Grown(Forest(_saved(booster), self.classes), before)

    def tree(self, rows: Rows, settings: Mapping[str, Any], eta: float, seed: int) -> Grown:
        """That tree alone, of two classes: grown on the forest's margins, so that nothing of the forest is copied."""
        before = self.logits(rows.x)
        matrix = _matrix(rows.x, rows.y, base_margin=(before[:, 1] - before[:, 0]).numpy())
        booster = self._booster(settings, eta, seed, matrix)
        booster.update(matrix, 0)
        return Grown(Forest(_saved(booster), self.classes), before)

    def _booster(self, settings: Mapping[str, Any], eta: float, seed: int, matrix: Any) -> Any:
        objective = {"objective": "binary:logistic"}
        if self.classes > 2:
            objective = {"objective": "multi:softprob", "num_class": str(self.classes)}
        fixed = {"tree_method": "hist", "nthread": 1, "verbosity": 0, "base_score": _HALF, "eta": eta, "seed": seed}
        return _xgboost().Booster({**settings, **objective, **fixed}, [matrix])


@dataclass(frozen=True)
class Frequencies:
    """The same answer for every row: how often classes occur. What any model must beat.

    Attributes:
        counts: [C] of the classes in everybody's train rows.
    """

    counts: np.ndarray

    @property
    def content(self) -> bytes:
        """The counts."""
        return json.dumps({"counts": self.counts.tolist()}).encode()

    def logits(self, x: np.ndarray) -> Tensor:
        """[N, C]; every count starts from 0.1, as strategy `constant` has it."""
        return torch.log(torch.from_numpy(self.counts) + 0.1).float().expand(len(x), -1)


def xgboost(
    max_depth: int = 6,
    min_child_weight: float = 1.0,
    reg_lambda: float = 1.0,
    gamma: float = 0.0,
    max_bin: int = 256,
    colsample_bytree: float = 1.0,
) -> dict[str, Any]:
    """How a tree is grown, in XGBoost's own words.

    Args:
        max_depth: levels of questions, >= 1.
        min_child_weight: least sum of second derivatives in a leaf, >= 0.
        reg_lambda: penalty on squared values of leaves, >= 0.
        gamma: least gain of a question, >= 0.
        max_bin: most values of a column that are told apart, >= 2.
        colsample_bytree: share of the columns that a tree sees, in (0, 1].
    """
    least = {"max_depth": 1, "min_child_weight": 0, "reg_lambda": 0, "gamma": 0, "max_bin": 2}
    given: dict[str, Any] = {
        "max_depth": max_depth,
        "min_child_weight": min_child_weight,
        "reg_lambda": reg_lambda,
        "gamma": gamma,
        "max_bin": max_bin,
        "colsample_bytree": colsample_bytree,
    }
    for name, value in given.items():
        if not least.get(name, 0) <= value < math.inf:
            raise ValueError(f"{name} = {value}: give a finite number of at least {least.get(name, 0)}")
    if not 0 < colsample_bytree <= 1:
        raise ValueError(f"colsample_bytree = {colsample_bytree}: give a share above 0 and at most 1")
    return given


def available() -> None:
    """Refuse to begin without XGBoost.

    Raises:
        FedsimError: it is not installed; says how to.
    """
    _xgboost()


def _xgboost() -> Any:
    return needed("xgboost", "trees", "model 'xgboost'")


def _matrix(x: np.ndarray, y: np.ndarray | None = None, **more: Any) -> Any:
    return _xgboost().DMatrix(x.reshape(len(x), -1), y, nthread=1, **more)


def _saved(booster: Any) -> bytes:
    return bytes(booster.save_raw("json"))
