"""What people ask a voice assistant for: 150 intents in ten domains, and each domain is a client.

Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", EMNLP 2019.
Licence: CC BY 3.0.
"""

import json
from typing import Any

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents, verify
from fedsim.data.sources._words import Tokens, encoded
from fedsim.data.sources.labelled_text import numbered

_FILES = {"data_full.json": "36923c3705a5", "domains.json": "b947b579d3b8"}  # the first digits of SHA-256


def clinc150(folders: Folders, *, tokens: Tokens = "words", buckets: int = 4096, length: int = 16) -> Corpus:
    """22,500 questions; of them the test set's 4,500 are its own. Those out of scope are left out.

    Args:
        folders: where the folder `clinc150` is looked for.
        tokens: "words" or "bytes".
        buckets: numbers that words share.
        length: tokens of a row; what is longer is cut.

    Raises:
        DataError: a file is missing or not the expected one.
    """
    paths = folders.find("clinc150", list(_FILES))
    read: dict[str, Any] = {}
    for file, digest in _FILES.items():
        data = contents(paths[file])
        verify(paths[file], data, digest, "sha256")
        read[file] = json.loads(data)
    domains: dict[str, list[str]] = read["domains.json"]
    parts: dict[str, list[list[str]]] = read["data_full.json"]
    questions = [*parts["train"], *parts["val"], *parts["test"]]
    intents = [intent for domain in domains.values() for intent in domain]
    y = numbered([intent for _, intent in questions], intents)
    rows, vocabulary, done = encoded([text for text, _ in questions], tokens, buckets, length)
    return Corpus(
        name="clinc150",
        task="classification",
        x=rows,
        y=y,
        classes=tuple(intents),
        preprocessing=done,
        clients=np.repeat(np.arange(len(domains)), [len(domain) for domain in domains.values()])[y],
        client_names=tuple(name.replace("_", " ") for name in domains),
        own_test=np.arange(len(questions)) >= len(questions) - len(parts["test"]),
        vocabulary=vocabulary,
    )
