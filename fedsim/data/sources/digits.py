"""Scikit-learn's embedded handwritten digits: 1,797 grey images of 8x8 pixels, ten classes."""

import numpy as np

from fedsim.data.corpus import Corpus, Folders


def digits(folders: Folders) -> Corpus:
    """The digits, pixels scaled from 0..16 to [0, 1]; no file is needed.

    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """
    from sklearn.datasets import load_digits

    embedded = load_digits()
    return Corpus(
        name="digits",
        task="classification",
        x=(embedded.images[:, None] / 16).astype(np.float32),
        y=embedded.target.astype(np.int64),
        classes=tuple(str(digit) for digit in range(10)),
        preprocessing={"kind": "image", "divide_by": 16.0, "mean": [0.0], "std": [1.0]},
    )
