"""MNIST as McMahan et al. 2017 may have had it: they say nothing of its pixels, so these are not normalised."""

import numpy as np

_MEAN, _SPREAD = 0.1307, 0.3081  # by which fedsim has normalised them


def pixels(x: np.ndarray) -> np.ndarray:
    """Images [N, 1, 28, 28] with pixels in [0, 1]."""
    return (x * _SPREAD + _MEAN).astype(np.float32)
