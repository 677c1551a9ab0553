"""Scikit-learn's embedded handwritten digits: 1,797 grey images of 8x8 pixels, ten classes.

Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository 1998: its test set.
Licence: CC BY 4.0 (UCI Machine Learning Repository).
"""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.errors import DataError


def digits(folders: Folders) -> Corpus:
    """The digits, pixels scaled from 0..16 to [0, 1]; no file is needed.

    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """
    pixels, labels = _embedded()
    return Corpus(
        name="digits",
        task="classification",
        x=pixels.reshape(-1, 1, 8, 8) / np.float32(16),
        y=labels,
        classes=tuple(str(digit) for digit in range(10)),
        preprocessing={"kind": "image", "divide_by": 16.0, "mean": [0.0], "std": [1.0]},
    )


def _embedded() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 64] and classes. The file is read where it lies: importing scikit-learn takes a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("data 'digits' come with scikit-learn: pip install scikit-learn")
    with gzip.open(Path(package.origin).parent / "datasets/data/digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :-1], table[:, -1].astype(np.int64)
