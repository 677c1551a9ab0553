"""The Free Spoken Digit Dataset: 3,000 spoken digits of six speakers, each of whom is a client.

Jackson et al., "Free Spoken Digit Dataset", github.com/Jakobovski/free-spoken-digit-dataset, 2016: 50 takes of every
digit by every speaker, 8,000 samples a second. Its own split: takes 0 to 4 are the test set.
Licence: CC BY-SA 4.0.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents, verify
from fedsim.data.sources._sound import samples
from fedsim.data.sources._spectrogram import Spectrogram
from fedsim.errors import DataError, ScenarioError
from fedsim.registry import nearest

_FILE = "recordings.zip"
_SHA256 = "7e653241b4d3"
_SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
_SPECTROGRAM = Spectrogram(rate=8000, seconds=1.0, window=256, hop=122, bands=64)
_TEST_TAKES = 5


def fsdd(folders: Folders, *, unseen: list[str] | None = None) -> Corpus:
    """Spoken digits as pictures [1, 64, 64] of the first second.

    Args:
        folders: where the folder `fsdd` with recordings.zip is looked for.
        unseen: speakers whose recordings are the test set, in place of everybody's takes 0 to 4; the others are the
            clients. A new voice is the harder question.

    Raises:
        ScenarioError: there is no such speaker, or none is left.
        DataError: the file is missing, damaged or not the expected one.
    """
    unseen = unseen or []
    unknown = [name for name in unseen if name not in _SPEAKERS]
    if unknown:
        raise ScenarioError(f"data.unseen: there is no speaker {unknown[0]!r}.{nearest(unknown[0], _SPEAKERS)}")
    names = tuple(name for name in _SPEAKERS if name not in unseen)
    if not names:
        raise ScenarioError("data.unseen names all speakers; leave one to train on")
    path = folders.find("fsdd", [_FILE])[_FILE]
    recordings = list(_recordings(path))
    x = np.stack([_SPECTROGRAM.picture(sound) for *_, sound in recordings])
    held = [speaker in unseen if unseen else take < _TEST_TAKES for _, speaker, take, _ in recordings]
    return Corpus(
        name="fsdd",
        task="classification",
        x=x,
        y=np.array([digit for digit, *_ in recordings], dtype=np.int64),
        classes=tuple(map(str, range(10))),
        preprocessing={"kind": "spectrogram", **_SPECTROGRAM._asdict(), "declared": True},
        clients=np.array([names.index(speaker) if speaker in names else -1 for _, speaker, *_ in recordings]),
        client_names=names,
        own_test=np.array(held),
        test_units=np.array([speaker for _, speaker, *_ in recordings]) if unseen else None,
    )


def _recordings(path: Path) -> Iterator[tuple[int, str, int, np.ndarray]]:
    """Digit, speaker, take and samples of every file, in the order of their names."""
    data = contents(path)
    verify(path, data, _SHA256, "sha256")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in sorted(archive.namelist()):
                digit, speaker, take = Path(name).stem.split("_")
                yield int(digit), speaker, int(take), samples(archive.read(name), f"{path}: {name}", _SPECTROGRAM.rate)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole zip file ({error}); fetch it again") from error
