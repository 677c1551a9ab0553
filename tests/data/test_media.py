"""Folders of images and sounds: what is read is what was written, and what is no image or sound is named."""

import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

from fedsim.data.build import build
from fedsim.data.check import check
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._sound import samples
from fedsim.data.sources._spectrogram import Spectrogram
from fedsim.data.sources.audio import audio
from fedsim.data.sources.digits import digits
from fedsim.data.sources.fsdd import fsdd
from fedsim.data.sources.images import images
from fedsim.errors import DataError, ScenarioError

RATE = 800
SOUND: dict[str, Any] = {"path": "own", "rate": RATE, "window": 64, "hop": 32, "bands": 32}
PICTURE: dict[str, Any] = {"path": "own", "height": 8, "width": 8, "colour": False}


def read(source: Callable[..., Corpus], folder: Path, **given: Any) -> Corpus:
    corpus = source(Folders((), folder), **given)
    check(corpus)
    return corpus


def write_image(path: Path, values: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def wav(values: np.ndarray, rate: int = RATE, channels: int = 1) -> bytes:
    """Samples of 16 bits as a file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setparams((channels, 2, rate, 0, "NONE", ""))
        opened.writeframes(values.astype("<i2").tobytes())
    return file.getvalue()


def tone(hertz: float, seconds: float = 1.0, loudness: float = 10_000) -> np.ndarray:
    return loudness * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)


def write_sound(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# --- folders


def test_image_files_give_the_pixels_that_were_written(tmp_path: Path) -> None:
    """Scikit-learn's digits as PNG files and back."""
    known = digits(Folders((), Path()))
    for row in range(30):
        grey = (known.x[row, 0] * 16 * 15).round().astype(np.uint8)
        write_image(tmp_path / f"own/{known.y[row]}/{row:02}.png", grey)
    corpus = read(images, tmp_path, **PICTURE, mean=[0.0], std=[15 * 16 / 255])
    order = sorted(range(30), key=lambda row: (known.y[row], row))
    np.testing.assert_allclose(corpus.x, known.x[order], atol=1e-6)
    assert [corpus.classes[label] for label in corpus.y] == [str(known.y[row]) for row in order]
    assert (corpus.own_test, corpus.clients) == (None, None)


def test_colours_are_channels_and_scaled_by_declared_numbers(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for name in ("a", "b"):
        write_image(tmp_path / f"own/{name}/1.png", values)
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    corpus = read(images, tmp_path, **{**PICTURE, "colour": True}, **given)
    np.testing.assert_allclose(
        corpus.x[0], ((values / 255 - given["mean"]) / given["std"]).transpose(2, 0, 1), rtol=1e-5
    )
    assert corpus.preprocessing["mean"] == pytest.approx(given["mean"])


@pytest.mark.parametrize("held", [["val"], ["test"], ["val", "test"]])
def test_folders_as_imagenet_has_them(held: list[str], tmp_path: Path) -> None:
    """What lies in val or test is the set's own test set, and never a client's."""
    for part, count in {"train": 10, **dict.fromkeys(held, 4)}.items():
        for row in range(count):
            for label in ("cat", "dog"):
                write_image(tmp_path / f"own/{part}/{label}/{row}.png", np.full((8, 8), row, np.uint8))
    corpus = read(images, tmp_path, **PICTURE)
    assert corpus.own_test is not None
    assert corpus.own_test.tolist() == [False] * 20 + [True] * (8 * len(held))
    federation = build(corpus, 1, {"kind": "iid", "clients": 2})
    assert len(federation.x) == 20
    assert sum(len(rows.x) for rows in federation.central.values()) == 8 * len(held)


@pytest.mark.parametrize("layout", ["client/class", "class/client"])
def test_a_level_of_folders_is_the_clients(layout: str, tmp_path: Path) -> None:
    for client, label in (("ann", "cat"), ("ann", "dog"), ("bob", "cat")):
        folders = layout.replace("client", client).replace("class", label)
        write_image(tmp_path / f"own/{folders}/1.png", np.zeros((8, 8), np.uint8))
    corpus = read(images, tmp_path, **PICTURE, layout=layout)
    assert corpus.clients is not None
    found = {(corpus.client_names[c], corpus.classes[y]) for c, y in zip(corpus.clients, corpus.y, strict=True)}
    assert found == {("ann", "cat"), ("ann", "dog"), ("bob", "cat")}


def test_declared_classes_say_their_order_and_refuse_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in ("cat", "dog"):
        write_image(tmp_path / f"own/{label}/1.png", np.zeros((8, 8), np.uint8))
    corpus = read(images, tmp_path, **PICTURE, classes=["dog", "bird", "cat"])
    assert (corpus.y.tolist(), corpus.preprocessing["declared"], caplog.text) == ([2, 0], True, "")
    with pytest.raises(DataError, match=r"dog/1\.png: its class 'dog' is none of .* Did you mean dgo"):
        read(images, tmp_path, **PICTURE, classes=["dgo", "cat"])
    assert read(images, tmp_path, **PICTURE).preprocessing["declared"] is False
    assert "own: its classes were taken from the names of folders" in caplog.text
    write_image(tmp_path / "more/train/cat/1.png", np.zeros((8, 8), np.uint8))
    write_image(tmp_path / "more/val/cow/1.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"val/cow/1\.png: its class 'cow'"):
        read(images, tmp_path, **{**PICTURE, "path": "more"})


def test_hidden_files_are_passed_over_and_others_must_lie_in_their_place(tmp_path: Path) -> None:
    write_image(tmp_path / "own/cat/1.png", np.zeros((8, 8), np.uint8))
    write_image(tmp_path / "own/dog/1.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "own/cat/.DS_Store").write_bytes(b"x")
    assert len(read(images, tmp_path, **PICTURE)) == 2
    with pytest.raises(DataError, match=r"cat/1\.png: data\.layout = 'client/class' wants files as client/class/FILE"):
        read(images, tmp_path, **PICTURE, layout="client/class")
    write_image(tmp_path / "own/2.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"own/2\.png: data\.layout = 'class' wants"):
        read(images, tmp_path, **PICTURE)


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"own: No such file.*data\.path"):
        read(images, tmp_path, **PICTURE)
    (tmp_path / "own/train/cat").mkdir(parents=True)
    with pytest.raises(DataError, match="own: holds no files to train on"):
        read(images, tmp_path, **PICTURE)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="file: Not a directory"):
        read(images, tmp_path, **{**PICTURE, "path": "file"})


# --- images


def sound_image() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def sixteen_bits() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no image that Pillow knows"),
        (b"some notes", "is no image that Pillow knows"),
        (sound_image()[:60], "is no sound image"),
        (sixteen_bits(), "has pixels of kind I;16, not of 8 bits"),
    ],
    ids=["empty", "text", "cut", "16 bits"],
)
def test_what_is_no_image_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    write_image(tmp_path / "own/cat/1.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "own/cat/2.png").write_bytes(data)
    with pytest.raises(DataError, match=rf"cat/2\.png: {message}") as caught:
        read(images, tmp_path, **PICTURE)
    assert "\n" not in str(caught.value)


def test_images_of_mixed_sizes_are_named_or_resized(tmp_path: Path) -> None:
    write_image(tmp_path / "own/cat/1.png", np.full((8, 8), 51, np.uint8))
    write_image(tmp_path / "own/dog/1.png", np.full((10, 30), 51, np.uint8))
    with pytest.raises(DataError, match=r"dog/1\.png: is 10x30, data says 8x8; .* data\.resize = true"):
        read(images, tmp_path, **PICTURE)
    corpus = read(images, tmp_path, **PICTURE, resize=True)
    np.testing.assert_allclose(corpus.x, (51 / 255 - 0.5) / 0.5, rtol=1e-6)


def test_resizing_keeps_proportions_and_the_middle(tmp_path: Path) -> None:
    """Of a wide image whose thirds are dark, bright and dark, a square sees the bright one."""
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 255
    for label in ("cat", "dog"):
        write_image(tmp_path / f"own/{label}/1.png", wide)
    assert (read(images, tmp_path, **PICTURE, resize=True).x == 1).all()


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6  # to be turned by a quarter
    values = np.zeros((8, 8), np.uint8)
    values[0] = 255
    for label in ("cat", "dog"):
        write_image(tmp_path / f"own/{label}/1.png", values, exif=tag)
    np.testing.assert_array_equal(read(images, tmp_path, **PICTURE).x[0, 0] > 0, np.rot90(values, -1) > 0)


def test_means_are_one_number_or_one_a_channel(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"data\.mean = \[0\.1, 0\.2\] should be one number, or 3"):
        read(images, tmp_path, **{**PICTURE, "colour": True}, mean=[0.1, 0.2])


def test_more_images_than_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "own/cat/1.png", np.zeros((8, 8), np.uint8))
    monkeypatch.setattr("fedsim.data.sources._tree.available_memory", lambda: 511)  # two times 8 x 8 floats
    with pytest.raises(DataError, match=r"own: the rows of 1 files are .* lower data\.height"):
        read(images, tmp_path, **PICTURE)
    monkeypatch.setattr("fedsim.data.sources._tree.available_memory", lambda: 512)
    read(images, tmp_path, **PICTURE)


# --- sounds


@pytest.mark.parametrize("hertz", [50, 130, 210, 330])
@pytest.mark.parametrize("loudness", [300, 30_000])
def test_a_tone_is_a_bright_line_at_its_frequency_however_loud(hertz: int, loudness: float) -> None:
    """A band of 32 up to the highest frequency, 400 Hz, is 12.5 Hz wide; the first one begins above 0 Hz."""
    picture = Spectrogram(RATE, 1.0, 64, 32, 32).picture(tone(hertz, loudness=loudness))
    assert set(picture[0].argmax(axis=1)) <= {round(hertz / 12.5) - 1}
    assert (picture.mean(), picture.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    np.testing.assert_allclose(picture, Spectrogram(RATE, 1.0, 64, 32, 32).picture(tone(hertz)), atol=1e-3)


def test_a_picture_is_that_of_a_slow_fourier_transform() -> None:
    sound = np.random.default_rng(0).normal(size=800)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(1, 33), np.arange(64)) / 64)
    power = np.array(
        [[abs(wave @ (window * sound[start : start + 64])) ** 2 for wave in waves] for start in range(0, 737, 32)]
    )
    pairs = np.log10((power[:, ::2] + power[:, 1::2]) / 2)
    expected = (pairs - pairs.mean()) / pairs.std()
    np.testing.assert_allclose(Spectrogram(RATE, 1.0, 64, 32, 16).picture(sound)[0], expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(length=some.integers(1, 2000), seconds=some.floats(0.1, 2.0))
def test_every_length_gives_a_picture_of_one_shape(length: int, seconds: float) -> None:
    spectrogram = Spectrogram(RATE, seconds, 64, 32, 32)
    picture = spectrogram.picture(np.random.default_rng(0).normal(size=length))
    assert picture.shape == spectrogram.shape and np.isfinite(picture).all()


def test_silence_is_a_picture_of_zeros() -> None:
    assert not Spectrogram(RATE, 1.0, 64, 32, 32).picture(np.zeros(10)).any()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_width_are_read(width: int) -> None:
    """Full scale is 1 in every width; in one byte, silence is 128."""
    values = np.array([0, 64, -128, 127])
    if width == 1:
        raw = (values + 128).astype(np.uint8).tobytes()
    else:
        raw = b"".join(int(value * 256 ** (width - 1)).to_bytes(width, "little", signed=True) for value in values)
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setparams((1, width, RATE, 0, "NONE", ""))
        opened.writeframes(raw)
    np.testing.assert_allclose(samples(file.getvalue(), "it", RATE), values / 128, rtol=1e-6)


def test_channels_are_averaged() -> None:
    stereo = wav(np.array([[8192, 0], [0, -16384]]), channels=2)
    np.testing.assert_allclose(samples(stereo, "it", RATE), [0.125, -0.25])


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "FLOAT"), ("FLAC", "PCM_16")])
def test_other_formats_are_read_by_soundfile(kind: str, subtype: str, tmp_path: Path) -> None:
    import soundfile

    path = tmp_path / "sound"
    soundfile.write(path, tone(100) / 32768, RATE, format=kind, subtype=subtype)
    np.testing.assert_allclose(samples(path.read_bytes(), "it", RATE), tone(100) / 32768, atol=1e-4)


def test_a_folder_of_sounds(tmp_path: Path) -> None:
    for client in ("ann", "bob"):
        write_sound(tmp_path / f"own/{client}/low/1.wav", wav(tone(60)))
        write_sound(tmp_path / f"own/{client}/high/1.wav", wav(tone(300, 0.5)))
    corpus = read(audio, tmp_path, **SOUND, layout="client/class")
    assert corpus.classes == ("high", "low")
    assert corpus.x.shape == (4, 1, 24, 32)
    again = Spectrogram.of(corpus.preprocessing)
    np.testing.assert_array_equal(corpus.x[1], again.picture(samples(wav(tone(60)), "it", RATE)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"is no audio that soundfile knows; take it out$"),
        (b"no audio at all", "is no audio"),
        (b"RIFF" + bytes(60), "is no audio"),
        (wav(tone(60))[:-100], "ends before the 800 samples"),
        (wav(tone(60), rate=1600), r"has 1600 samples a second, data\.rate says 800"),
        (wav(np.zeros(0)), "holds no samples"),
    ],
    ids=["empty", "text", "zeros", "cut", "rate", "no samples"],
)
def test_what_is_no_sound_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    write_sound(tmp_path / "own/low/1.wav", wav(tone(60)))
    write_sound(tmp_path / "own/low/2.wav", data)
    with pytest.raises(DataError, match=rf"low/2\.wav: {message}") as caught:
        read(audio, tmp_path, **SOUND)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bands": 5}, r"data\.bands = 5 does not divide half of data\.window = 64"),
        ({"seconds": 0.05}, r"data\.window = 64: 0\.05 s have only 40 samples"),
        ({"hop": 0}, r"data\.hop"),
        ({"seconds": float("nan")}, r"data\.seconds = nan should be above 0"),
        ({"rate": 10**30}, r"data\.rate = 10+ at most"),
    ],
)
def test_sizes_must_go_together(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=message):
        read(audio, tmp_path, **{**SOUND, **changed})


# --- spoken digits


def test_fsdd_is_the_published_set(data_dir: Path) -> None:
    """Six speakers said every digit 50 times; takes 0 to 4 are the test set."""
    corpus = fsdd(Folders((data_dir,), Path()))
    check(corpus)
    assert corpus.x.shape == (3000, 1, 64, 64)
    assert corpus.clients is not None and corpus.own_test is not None
    assert (np.bincount(10 * corpus.clients + corpus.y) == 50).all()
    assert (np.bincount(10 * corpus.clients[corpus.own_test] + corpus.y[corpus.own_test]) == 5).all()


def test_fsdd_of_a_voice_that_nobody_trained_on(data_dir: Path) -> None:
    corpus = fsdd(Folders((data_dir,), Path()), unseen=["theo"])
    check(corpus)
    assert corpus.own_test is not None and corpus.own_test.sum() == 500
    federation = build(corpus, 1, {"kind": "natural"})
    assert federation.names == ("george", "jackson", "lucas", "nicolas", "yweweler")
    with pytest.raises(ScenarioError, match=r"data\.unseen: there is no speaker 'teo'. Did you mean theo"):
        fsdd(Folders((data_dir,), Path()), unseen=["teo"])


def test_a_damaged_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "fsdd").mkdir()
    (tmp_path / "fsdd/recordings.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"recordings\.zip: SHA-256 is \w+ and should be 7e653241b4d3"):
        fsdd(Folders((tmp_path,), Path()))
