"""Own sound files in folders, one folder a class, as pictures of frequencies over time."""

from typing import Annotated

from pydantic import Field

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents
from fedsim.data.sources._sound import samples
from fedsim.data.sources._spectrogram import Spectrogram
from fedsim.data.sources._tree import Layout, place_for, tree


def audio(
    folders: Folders,
    *,
    path: str,
    rate: int,
    seconds: float = 1.0,
    window: int = 256,
    hop: int = 128,
    bands: int = 64,
    layout: Layout = "class",
    classes: Annotated[list[str], Field(min_length=2)] | None = None,
) -> Corpus:
    """The sounds below a folder; WAV is read by the standard library, other files by soundfile.

    Args:
        folders: `path` is relative to `folders.scenario`.
        path: of the folder: CLASS/FILE in it, or train/CLASS/FILE beside val/CLASS/FILE or test/CLASS/FILE. What lies
            in val and test is the central validation and test set together.
        rate: samples a second of every file.
        seconds: of sound that are looked at, from its beginning; what is shorter is followed by silence.
        window: samples of a frame, 1 / rate seconds each.
        hop: samples from one frame to the next.
        bands: of frequencies; they divide window / 2.
        layout: "class", or "client/class" or "class/client" where folders are natural clients too.
        classes: names of the class folders; those of the train part by default.

    Raises:
        ScenarioError: sizes that do not go together.
        DataError: a file is no audio, has another rate or lies at another depth; the message names it.
        FedsimError: a file needs soundfile, which is not installed.
    """
    spectrogram = Spectrogram(rate, seconds, window, hop, bands)
    spectrogram.check()
    files = tree(folders, path, layout, classes)
    x = place_for(files, spectrogram.shape, folders.scenario / path, "lower data.seconds or data.bands")
    for row, file in enumerate(files.paths):
        x[row] = spectrogram.picture(samples(contents(file), str(file), rate))
    return files.corpus(folders.scenario / path, x, {"kind": "spectrogram", **spectrogram._asdict()})
