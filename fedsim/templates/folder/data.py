"""My data: a function that returns a corpus, all rows in one place. fedsim spreads them over clients."""

import numpy as np

from fedsim import seeds
from fedsim.data.corpus import Corpus, Folders


def mine(folders: Folders, *, rows: int = 1200) -> Corpus:
    """Two interleaved half circles in the plane.

    To read a file instead, take it from beside the scenario: `np.load(folders.scenario / "mine.npy")`.

    Args:
        folders: where files are looked for.
        rows: how many points; a key of `[data]` in scenario.toml.
    """
    rng = seeds.numpy_generator(0, "my data")
    y = rng.integers(0, 2, rows)
    angle = rng.uniform(0, np.pi, rows)
    circles = np.stack([np.cos(angle) + y, np.sin(angle) * (1 - 2 * y) + 0.25 * y], axis=1)
    x = (circles + rng.normal(0, 0.1, circles.shape)).astype(np.float32)
    return Corpus(name="half-circles", task="classification", x=x, y=y, classes=("upper", "lower"))
