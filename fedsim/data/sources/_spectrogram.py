"""Sound as a picture: log power of frequency bands over time.

Short-time Fourier transform with a Hann window (Oppenheim and Schafer, "Discrete-Time Signal Processing", chapter 10).
Every row is scaled by itself, so that nothing is fitted and loud and quiet speakers look alike.
"""

from typing import Any, NamedTuple, Self

import numpy as np

from fedsim.errors import ScenarioError

_MOST_SECONDS, _MOST_RATE = 600, 1_000_000
_RANGE = 1e-8  # of power under the loudest place: 80 dB, about what 16 bits can tell


class Spectrogram(NamedTuple):
    """How samples become a picture [1, frames, bands].

    Attributes:
        rate: samples a second.
        seconds: of sound that are looked at, from its beginning; what is shorter is followed by silence.
        window, hop: samples of a frame, and from one frame to the next.
        bands: groups of neighbouring frequencies whose power is averaged; they divide window / 2.
    """

    rate: int
    seconds: float
    window: int
    hop: int
    bands: int

    @classmethod
    def of(cls, preprocessing: Any) -> Self:
        """That of a corpus' `preprocessing`."""
        return cls(**{name: preprocessing[name] for name in cls._fields})

    @property
    def length(self) -> int:
        """Samples that are looked at."""
        return round(self.rate * self.seconds)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a picture."""
        return 1, 1 + (self.length - self.window) // self.hop, self.bands

    def check(self) -> None:
        """Raise ScenarioError where the sizes do not go together."""
        if not (0 < self.seconds <= _MOST_SECONDS and self.rate <= _MOST_RATE):
            raise ScenarioError(
                f"data.seconds = {self.seconds} should be above 0 and at most {_MOST_SECONDS}, and data.rate = "
                f"{self.rate} at most {_MOST_RATE}"
            )
        if self.rate < 1 or self.hop < 1 or self.bands < 1 or self.window < 2:
            raise ScenarioError("data.rate, data.hop, data.bands should be at least 1 and data.window at least 2")
        if self.length < self.window:
            raise ScenarioError(f"data.window = {self.window}: {self.seconds} s have only {self.length} samples")
        if self.window // 2 % self.bands:
            raise ScenarioError(f"data.bands = {self.bands} does not divide half of data.window = {self.window}")

    def picture(self, samples: np.ndarray) -> np.ndarray:
        """The picture [1, frames, bands] of samples [n], float32 of mean 0 and deviation 1; of silence all 0."""
        sound = np.zeros(self.length)
        sound[: min(len(samples), self.length)] = samples[: self.length]
        frames = np.lib.stride_tricks.sliding_window_view(sound, self.window)[:: self.hop]
        hann = np.sin(np.pi * np.arange(self.window) / self.window) ** 2
        power = np.abs(np.fft.rfft(frames * hann)[:, 1 : self.window // 2 + 1]) ** 2  # without the mean
        banded = power.reshape(len(frames), self.bands, -1).mean(axis=2)
        if not banded.max():
            return np.zeros(self.shape, np.float32)
        decades = np.log10(np.maximum(banded / banded.max(), _RANGE))
        spread = decades.std() or 1.0
        picture: np.ndarray = ((decades - decades.mean()) / spread).astype(np.float32)
        return picture[None]
