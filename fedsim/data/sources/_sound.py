"""Sound files as samples: plain WAV by the standard library, whatever else libsndfile reads (float WAV, FLAC, OGG)."""

import io
import wave

import numpy as np

from fedsim.errors import DataError
from fedsim.extras import needed


def samples(data: bytes, name: str, rate: int) -> np.ndarray:
    """A sound of one channel, the mean of those of the file.

    Args:
        data: the file's bytes.
        name: of the file, for messages.
        rate: samples a second that it must have.

    Returns:
        [n] float32 in [-1, 1].

    Raises:
        DataError: it is no audio, is cut short, has no samples or another rate.
        FedsimError: it is no plain WAV and soundfile is not installed.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            found, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            frames, promised = file.readframes(file.getnframes()), file.getnframes()
    except (wave.Error, EOFError):
        found, values = _by_soundfile(data, name)
    else:
        if len(frames) != promised * width * channels:
            raise DataError(f"{name}: ends before the {promised} samples that its header promises; fetch it again")
        values = _numbers(frames, width).reshape(-1, channels)
    if found != rate:
        raise DataError(f"{name}: has {found} samples a second, data.rate says {rate}; convert it, or change the key")
    if not len(values):
        raise DataError(f"{name}: holds no samples; take it out")
    mono: np.ndarray = values.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DataError(f"{name}: a sample is not finite; take it out")
    return mono


def _numbers(frames: bytes, width: int) -> np.ndarray:
    """Samples of 1 to 4 bytes, from -1 to 1; those of one byte count from 0 up."""
    if width == 1:
        return (np.frombuffer(frames, np.uint8).astype(np.float32) - 128) / 128
    whole = np.zeros((len(frames) // width, 4), np.uint8)
    whole[:, 4 - width :] = np.frombuffer(frames, np.uint8).reshape(-1, width)
    return whole.view("<i4").ravel().astype(np.float32) / np.float32(2**31)


def _by_soundfile(data: bytes, name: str) -> tuple[int, np.ndarray]:
    """Rate and samples [n, channels]."""
    soundfile = needed("soundfile", "media", f"{name}: a file that is no plain WAV")
    try:
        values, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise DataError(f"{name}: is no audio that soundfile knows; take it out") from error
    return int(rate), values
