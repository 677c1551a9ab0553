"""A data set of Hugging Face's hub by its id, or one in a folder: texts as tokens, or images as pixels.

Lhoest et al., "Datasets: A Community Library for Natural Language Processing", EMNLP 2021. flwr-datasets reads the
same sets; its partitioners are kinds of `data.partition`. Needs `pip install 'fedsim[hf]'`, and the hub the first time.
Licence: of each set its own, which its card on the hub says.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.errors import DataError, one_line
from fedsim.extras import needed

_NOT_THERE = (
    "is no folder of a data set and not in the cache of this machine, and the hub cannot be reached or has no such "
    "set; download it where there is a network, and give its folder"
)


def hugging_face(
    folders: Folders,
    dataset: str,
    label: str = "label",
    text: str | None = None,
    image: str | None = None,
    tokenizer: str | None = None,
    tokenizer_revision: str = "main",
    length: int = 128,
    size: tuple[int, int] | None = None,
    client: str | None = None,
    configuration: str | None = None,
    revision: str = "main",
    train: str = "train",
    test: str | None = None,
    classes: list[str] | None = None,
) -> Corpus:
    """Classify texts or images.

    Args:
        folders: the scenario's is where a folder is looked for.
        dataset: an id of the hub such as "stanfordnlp/sst2", or a folder that `save_to_disk` has written.
        label: the column of classes.
        text, image: the column of inputs, one of them.
        tokenizer: of texts: an id of the hub or a folder; that of the model.
        tokenizer_revision: branch, tag or commit of its repository.
        length: tokens of a row; longer texts are cut, shorter ones filled up.
        size: height and width to which images are scaled; without it all must have one size.
        client: the column that says who a row belongs to.
        configuration: of the set, where it has several.
        revision: branch, tag or commit of the hub's repository; a commit can be repeated.
        train, test: names of splits; the test split becomes the central sets.
        classes: names of the classes, where the set does not declare them.

    Raises:
        DataError: the set, the tokenizer, a split or a column is not there, or a row does not fit.
    """
    datasets = needed("datasets", "hf", "data 'hugging-face'")
    datasets.disable_progress_bars()
    needed("huggingface_hub.utils.logging", "hf", "data 'hugging-face'").set_verbosity_error()  # it tells every attempt
    if (text is None) == (image is None):
        raise DataError("data 'hugging-face': give data.text or data.image, one of them")
    names = [train, *([test] if test is not None else [])]
    splits = [_split(datasets, folders, dataset, configuration, revision, name) for name in names]
    declared = _classes(splits[0], label, classes, dataset)
    wanted = [name for name in (label, text, image, client) if name is not None]
    for name, split in zip(names, splits, strict=True):
        for column in wanted:
            if column not in split.column_names:
                there = ", ".join(split.column_names)
                raise DataError(f"data {dataset!r}: split {name!r} has no column {column!r}; it has {there}")
    rows, vocabulary = _Rows(dataset, names, splits), None
    if text is not None:
        x, vocabulary, done = _tokens(rows, text, tokenizer, tokenizer_revision, length, folders)
    else:
        assert image is not None
        x, done = _pixels(rows, image, size)
    owners = _owners(rows, client) if client is not None else None
    people = sorted(set(owners)) if owners is not None else []
    place = {name: number for number, name in enumerate(people)}
    return Corpus(
        name=dataset,
        task="classification",
        x=x,
        y=_labels(rows, label, declared),
        classes=declared,
        preprocessing=done,
        clients=np.array([place[owner] for owner in owners]) if owners is not None else None,
        client_names=people,
        own_test=rows.in_second() if test is not None else None,
        vocabulary=vocabulary,
    )


class _Rows:
    """The rows of one or two splits, one after the other, and how a message names them."""

    def __init__(self, dataset: str, names: Sequence[str], splits: Sequence[Any]) -> None:
        self._dataset, self._names, self._splits = dataset, names, splits

    def column(self, name: str) -> list[Any]:
        """A column's values."""
        return [value for split in self._splits for value in split[name]]

    def in_second(self) -> np.ndarray:
        """[N] bool: rows of the second split."""
        return np.repeat([False, True], [len(split) for split in self._splits])

    def wrong(self, row: int, what: str) -> DataError:
        """What is wrong with a row."""
        first = len(self._splits[0])
        name, number = (self._names[0], row) if row < first else (self._names[1], row - first)
        return DataError(f"data {self._dataset!r}: split {name!r}, row {number}: {what}")


def _split(datasets: Any, folders: Folders, dataset: str, configuration: str | None, revision: str, name: str) -> Any:
    folder = folders.scenario / dataset
    try:
        if folder.is_dir():
            found = datasets.load_from_disk(str(folder))
            found = found if isinstance(found, dict) else {name: found}
        else:
            found = datasets.load_dataset(dataset, configuration, revision=revision)
    except (OSError, ConnectionError) as error:
        raise DataError(f"data.dataset = {dataset!r} {_NOT_THERE}") from error
    except ValueError as error:  # several configurations, and none was given
        raise DataError(f"data.dataset = {dataset!r}: {one_line(error)}") from error
    if name not in found:
        raise DataError(f"data {dataset!r} has no split {name!r}; it has {', '.join(found)}")
    return found[name]


def _classes(split: Any, label: str, classes: Sequence[str] | None, dataset: str) -> tuple[str, ...]:
    """Names of the classes, declared by the set or the scenario and never taken from rows."""
    names = getattr(split.features.get(label), "names", None)
    if classes is not None:
        return tuple(classes)
    if names is None:
        raise DataError(f"data {dataset!r} declares no classes of column {label!r}; name them: data.classes = [...]")
    return tuple(names)


def _owners(rows: _Rows, client: str) -> list[str]:
    """Whose each row is."""
    owners = rows.column(client)
    for row, owner in enumerate(owners):
        if owner is None or not str(owner).strip():
            raise rows.wrong(row, f"column {client!r} is empty")
    return [str(owner) for owner in owners]


def _labels(rows: _Rows, label: str, classes: Sequence[str]) -> np.ndarray:
    """[N] int64: numbers as they are, words by their place among the classes."""
    place = {name: number for number, name in enumerate(classes)}
    found = np.empty(len(values := rows.column(label)), dtype=np.int64)
    for row, value in enumerate(values):
        number = place.get(value, -1) if isinstance(value, str) else value
        if not isinstance(number, int) or not 0 <= number < len(classes):
            raise rows.wrong(row, f"label {value!r} is none of the {len(classes)} classes")
        found[row] = number
    return found


def _tokens(
    rows: _Rows, text: str, tokenizer: str | None, revision: str, length: int, folders: Folders
) -> tuple[np.ndarray, int, dict[str, Any]]:
    """[N, length] int64 tokens, how many there are, and what was done."""
    if tokenizer is None:
        raise DataError("data.tokenizer is missing: texts become tokens by the tokenizer of the model")
    transformers = needed("transformers", "hf", "data 'hugging-face'")
    place = folders.scenario / tokenizer
    try:
        found = str(place) if place.is_dir() else tokenizer
        words = transformers.AutoTokenizer.from_pretrained(found, revision=revision)
    except (OSError, ValueError) as error:
        raise DataError(f"data.tokenizer = {tokenizer!r} {_NOT_THERE.replace('data set', 'tokenizer')}") from error
    texts = rows.column(text)
    for row, value in enumerate(texts):
        if not isinstance(value, str) or not value.strip():
            raise rows.wrong(row, f"column {text!r} is empty")
    if words.pad_token_id is None:
        raise DataError(f"data.tokenizer = {tokenizer!r} has no token to fill rows up; take another")
    coded = words(texts, truncation=True, padding="max_length", max_length=length, return_attention_mask=False)
    done = {
        "kind": "hugging-face-tokens",
        "tokenizer": tokenizer,
        "tokenizer_revision": revision,
        "vocabulary_sha256": hashlib.sha256(repr(sorted(words.get_vocab().items())).encode()).hexdigest(),
        "length": length,
        "padding": words.pad_token_id,
    }
    return np.asarray(coded["input_ids"], dtype=np.int64), len(words), done


def _pixels(rows: _Rows, image: str, size: tuple[int, int] | None) -> tuple[np.ndarray, dict[str, Any]]:
    """[N, 3, H, W] float32 in [0, 1], and what was done."""
    pictures = []
    for row, picture in enumerate(rows.column(image)):
        if not hasattr(picture, "convert"):
            raise rows.wrong(row, f"column {image!r} is no image")
        scaled = picture.convert("RGB").resize(size[::-1]) if size is not None else picture.convert("RGB")
        pictures.append(np.asarray(scaled, dtype=np.uint8).transpose(2, 0, 1))
        if pictures[-1].shape != pictures[0].shape:
            height, width = pictures[-1].shape[1:]
            raise rows.wrong(row, f"an image of {height} x {width}, and the first is of another size; set data.size")
    height, width = pictures[0].shape[1:]
    done = {
        "kind": "image",
        "divide_by": 255.0,
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "height": height,
        "width": width,
        "colour": True,
    }
    return np.stack(pictures).astype(np.float32) / 255, done
