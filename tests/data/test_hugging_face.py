"""Data sets in the way of Hugging Face's `datasets`, made here without a network."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import BertTokenizer

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources.hugging_face import hugging_face
from fedsim.errors import DataError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "[MASK]"]
TEXTS = ["good film", "bad film", "good good good good good good good"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the hub."""
    for module in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(module, True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of texts with two splits, and a tokenizer of three words."""
    place = tmp_path / "vocabulary.txt"
    place.write_text("\n".join(WORDS))
    BertTokenizer(vocab=str(place)).save_pretrained(tmp_path / "words")
    saved(tmp_path, TEXTS, [1, 0, 1])
    return tmp_path


def saved(folder: Path, texts: list[Any], labels: list[Any], **more: list[Any]) -> None:
    names = datasets.ClassLabel(names=["bad", "good"])
    train = datasets.Dataset.from_dict({"text": texts, "label": labels, **more}).cast_column("label", names)
    test = train.select([0])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(folder / "set")


def read(folder: Path, **settings: Any) -> Corpus:
    given = {"dataset": "set", "text": "text", "tokenizer": "words", "length": 6, **settings}
    return hugging_face(Folders((), folder), **given)


def test_texts_become_the_tokenizers_tokens(folder: Path) -> None:
    """Cut or filled up to the length; by hand: [CLS] words [SEP] [PAD]."""
    corpus = read(folder, test="test")
    good, bad, film = (WORDS.index(word) for word in ("good", "bad", "film"))
    assert corpus.x.tolist() == [
        [2, good, film, 3, 0, 0],
        [2, bad, film, 3, 0, 0],
        [2, good, good, good, good, 3],
        [2, good, film, 3, 0, 0],
    ]
    assert corpus.y.tolist() == [1, 0, 1, 1]
    assert corpus.own_test is not None
    assert corpus.own_test.tolist() == [False, False, False, True]
    assert (corpus.classes, corpus.vocabulary) == (("bad", "good"), len(WORDS))


def test_clients_are_those_of_a_column(folder: Path) -> None:
    saved(folder, TEXTS, [1, 0, 1], user=["ann", "bob", "ann"])
    corpus = read(folder, client="user")
    assert corpus.clients is not None
    assert [corpus.client_names[place] for place in corpus.clients] == ["ann", "bob", "ann"]


@pytest.mark.parametrize("nobody", [None, " "])
def test_a_row_of_nobody_is_named(folder: Path, nobody: str | None) -> None:
    saved(folder, TEXTS, [1, 0, 1], user=["ann", nobody, "ann"])
    with pytest.raises(DataError, match="split 'train', row 1: column 'user' is empty"):
        read(folder, client="user")


def test_another_vocabulary_has_another_digest(folder: Path) -> None:
    """So that a model's tokens can be told from another's."""
    first = read(folder).preprocessing["vocabulary_sha256"]
    (folder / "vocabulary.txt").write_text("\n".join(WORDS[::-1]))
    BertTokenizer(vocab=str(folder / "vocabulary.txt")).save_pretrained(folder / "words")
    assert read(folder).preprocessing["vocabulary_sha256"] != first


def test_a_tokenizer_is_that_of_the_revision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a repository of the hub that was asked before: two commits, whose words have another order."""
    cache = folder / "cache/models--me--words"
    for branch, words in (("main", WORDS), ("second", WORDS[:4] + WORDS[:3:-1])):
        (folder / "vocabulary.txt").write_text("\n".join(words))
        commit = branch.encode().hex().ljust(40, "0")
        BertTokenizer(vocab=str(folder / "vocabulary.txt")).save_pretrained(cache / "snapshots" / commit)
        (cache / "snapshots" / commit / "config.json").write_text('{"model_type": "bert"}')
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / branch).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    first, second = (read(folder, tokenizer="me/words", tokenizer_revision=each) for each in ("main", "second"))
    good, bad = WORDS.index("good"), WORDS.index("bad")
    assert first.x[0].tolist() == [2, good, 6, 3, 0, 0] and second.x[1].tolist() == [2, len(WORDS) - 2, 5, 3, 0, 0]
    assert second.preprocessing["tokenizer_revision"] == "second" and bad != good
    with pytest.raises(DataError, match="is no folder of a tokenizer and not in the cache"):
        read(folder, tokenizer="me/words", tokenizer_revision="third")


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> None:
    images = [Image.new("RGB", (width, height), (255, 0, 51)) for height, width in sizes]
    columns = {"image": images, "label": [0] * len(images)}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder / "set")


def test_images_become_pixels(folder: Path) -> None:
    pictures(folder, [(4, 6), (4, 6)])
    corpus = read(folder, text=None, image="image", classes=["one"])
    assert corpus.x.shape == (2, 3, 4, 6)
    assert np.allclose(corpus.x[:, :, 2, 3], [[1.0, 0.0, 0.2]] * 2)
    pictures(folder, [(4, 6), (5, 6)])
    with pytest.raises(DataError, match="row 1: an image of 5 x 6"):
        read(folder, text=None, image="image", classes=["one"])
    assert read(folder, text=None, image="image", classes=["one"], size=(2, 3)).x.shape == (2, 3, 2, 3)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({"text": None}, "data.text or data.image"),
    "both": ({"image": "image"}, "data.text or data.image"),
    "not there": ({"dataset": "stanfordnlp/sst2"}, "not in the cache of this machine"),
    "no tokenizer": ({"tokenizer": None}, "data.tokenizer is missing"),
    "a tokenizer that is not there": ({"tokenizer": "google-bert/bert-base-uncased"}, "not in the cache"),
    "no such split": ({"train": "validation"}, "no split 'validation'; it has train, test"),
    "no such column": ({"text": "sentence"}, "split 'train' has no column 'sentence'; it has text, label"),
    "no label": ({"label": "stars"}, "no classes of column 'stars'"),
    "too few classes": ({"classes": ["bad"]}, "split 'train', row 0: label 1 is none of the 1 classes"),
    "no image": ({"text": None, "image": "text"}, "row 0: column 'text' is no image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_there_is_one_line(folder: Path, case: str) -> None:
    settings, reason = REFUSED[case]
    with pytest.raises(DataError, match=reason):
        read(folder, **settings)


@pytest.mark.parametrize("text", ["", "  ", None])
def test_an_empty_text_is_named_with_its_split(folder: Path, text: str | None) -> None:
    saved(folder, ["film", text, "film"], [0, 0, 0])
    with pytest.raises(DataError, match="split 'train', row 1: column 'text' is empty"):
        read(folder, test="test")


def test_a_row_without_a_label_is_named(folder: Path) -> None:
    """Test splits of the hub often have -1 for every row."""
    saved(folder, TEXTS, [1, 0, -1])
    with pytest.raises(DataError, match="row 2: label -1"):
        read(folder)
