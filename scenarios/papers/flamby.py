"""Data and model of FLamby's benchmark on heart disease: Ogier du Terrail et al., "FLamby", NeurIPS 2022.

Patients of four hospitals without the three attributes that are mostly missing, and without those who lack another;
which of them are test patients is drawn once, as FLamby's own code draws it, and is the same for every seed.
"""

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources.heart_disease import heart_disease
from fedsim.data.table import read
from fedsim.errors import DataError

_FILES = [f"processed.{hospital}.data" for hospital in ("cleveland", "hungarian", "switzerland", "va")]
_COLUMNS = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"]
_LEFT_OUT = ["slope", "ca", "thal"]
_DUMMIES = {"cp": (2, 3, 4), "restecg": (1, 2)}  # without the first category
_PATIENTS = 740


def hospitals(folders: Folders) -> Corpus:
    """The four hospitals' patients, each hospital's attributes standardised by its own train patients.

    A third of every hospital's patients is the set's own test set, stratified by disease where enough are healthy. An
    attribute that is the same for all train patients of a hospital is divided by 1e-9, as FLamby divides it.

    Args:
        folders: where the folder `heart-disease` with the four processed files is looked for.
    """
    heart_disease(folders)  # looks whether the files are the known ones
    paths = folders.find("heart-disease", _FILES)
    inputs, targets, tests = [], [], []
    for file in _FILES:
        table = read(paths[file], header=[*_COLUMNS, *_LEFT_OUT, "disease"])
        texts = np.array([table.columns[name] for name in [*_COLUMNS, "disease"]]).T
        values = texts[(texts != "?").all(1)].astype(np.float64)
        y = (values[:, -1] > 0).astype(np.int64)
        _, test = train_test_split(
            np.arange(len(y)), test_size=1.0 - 0.66, train_size=0.66, random_state=43, stratify=_strata(y)
        )
        held = np.isin(np.arange(len(y)), test)
        x = _features(values[:, :-1])
        mean, spread = x[~held].mean(0), x[~held].std(0, ddof=1)
        inputs.append((x - mean) / (spread + np.float32(1e-9)))
        targets.append(y)
        tests.append(held)
    lengths = [len(y) for y in targets]
    if sum(lengths) != _PATIENTS:
        raise DataError(f"heart-disease: {sum(lengths)} patients lack nothing, FLamby has {_PATIENTS}")
    return Corpus(
        name="flamby-heart-disease",
        task="classification",
        x=np.concatenate(inputs).astype(np.float32),
        y=np.concatenate(targets),
        classes=("healthy", "ill"),
        preprocessing={"kind": "none", "fitted_on_rows": True},
        clients=np.repeat(np.arange(len(_FILES)), lengths),
        client_names=tuple(file.split(".")[1] for file in _FILES),
        own_test=np.concatenate(tests),
    )


def _strata(y: np.ndarray) -> np.ndarray | None:
    """What a hospital's split keeps the shares of: its classes, where both have at least three patients."""
    return y if np.bincount(y, minlength=2).min() > 2 else None


def _features(values: np.ndarray) -> np.ndarray:
    """[N, 13] of the ten attributes: categories as columns of ones and zeros, behind the numbers."""
    numbers = [values[:, place] for place, name in enumerate(_COLUMNS) if name not in _DUMMIES]
    ones = [values[:, _COLUMNS.index(name)] == value for name, known in _DUMMIES.items() for value in known]
    return np.stack([*numbers, *ones], axis=1).astype(np.float32)


class OneLogit(nn.Module):
    """Logistic regression with one output z: as logits (0, z), whose cross-entropy is the binary one of sigmoid(z)."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 2]."""
        z: Tensor = self.linear(x)
        return torch.cat([torch.zeros_like(z), z], dim=1)
