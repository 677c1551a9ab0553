"""Own image files in folders, one folder a class, as ImageNet is laid out."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents
from fedsim.data.sources._tree import Layout, place_for, tree
from fedsim.errors import DataError, ScenarioError, one_line
from fedsim.extras import needed

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Size = Annotated[int, Field(ge=1, le=10_000)]
_WHOLE = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})  # 8 bits or fewer


def images(
    folders: Folders,
    *,
    path: str,
    height: Size,
    width: Size,
    colour: bool = True,
    resize: bool = False,
    mean: Annotated[list[float], Field(min_length=1, max_length=3)] | None = None,
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=3)] | None = None,
    layout: Layout = "class",
    classes: Annotated[list[str], Field(min_length=2)] | None = None,
) -> Corpus:
    """The images below a folder, in every format that Pillow reads with 8 bits a channel.

    Args:
        folders: `path` is relative to `folders.scenario`.
        path: of the folder: CLASS/FILE in it, or train/CLASS/FILE beside val/CLASS/FILE or test/CLASS/FILE. What lies
            in val and test is the central validation and test set together.
        height: of all images, in pixels.
        width: likewise.
        colour: three channels instead of one of grey.
        resize: images of other sizes are scaled to cover height and width, and their middle is kept.
        mean: of pixels in [0, 1], for every channel or one for all; 0.5 by default. Declared, not taken from rows.
        std: likewise.
        layout: "class", or "client/class" or "class/client" where folders are natural clients too.
        classes: names of the class folders; those of the train part by default.

    Raises:
        ScenarioError: `mean` or `std` for another number of channels.
        DataError: a file is no image, has another size or lies at another depth; the message names it.
    """
    channels = 3 if colour else 1
    centre, spread = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    files = tree(folders, path, layout, classes)
    remedy = "lower data.height and data.width with data.resize = true"
    x = place_for(files, (channels, height, width), folders.scenario / path, remedy)
    for row, file in enumerate(files.paths):
        x[row] = (pixels(file, (height, width), colour, resize) / np.float32(255) - centre) / spread
    said = {"height": height, "width": width, "colour": colour, "resize": resize}
    scaled = {"kind": "image", "divide_by": 255.0, "mean": centre.ravel().tolist(), "std": spread.ravel().tolist()}
    return files.corpus(folders.scenario / path, x, scaled | said)


def pixels(path: Path, size: tuple[int, int], colour: bool, resize: bool) -> np.ndarray:
    """An image file as [channels, height, width] uint8, turned as its camera says.

    Args:
        path: of the file.
        size: height and width that it must have.
        colour: three channels, or one of grey.
        resize: it may have another size, see `images`.

    Raises:
        DataError: no image, more than 8 bits a channel, or another size.
    """
    needed("PIL", "media", f"{path}: an image")
    from PIL import Image, ImageOps

    height, width = size
    image = _opened(path)
    if image.mode not in _WHOLE:
        raise DataError(f"{path}: has pixels of kind {image.mode}, not of 8 bits; convert it")
    image = image.convert("RGB" if colour else "L")
    if image.size != (width, height):
        if not resize:
            found = f"{image.size[1]}x{image.size[0]}"
            raise DataError(f"{path}: is {found}, data says {height}x{width}; convert it, or set data.resize = true")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def _opened(path: Path) -> "Picture":
    from PIL import Image, ImageOps, UnidentifiedImageError

    data = contents(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: is no image that Pillow knows; take it out") from error
    except Exception as error:  # its readers raise whatever their format calls for
        raise DataError(f"{path}: is no sound image ({one_line(error)}); take it out") from error


def _per_channel(key: str, values: list[float] | None, channels: int) -> np.ndarray:
    """[channels, 1, 1] float32."""
    given = values or [0.5]
    if len(given) not in (1, channels):
        raise ScenarioError(f"data.{key} = {given} should be one number, or {channels}")
    return np.array(given * (channels // len(given)), np.float32)[:, None, None]
