"""Sentences of reviews, praise or blame, from three sites: each site is a client.

Kotzias et al., "From Group to Individual Labels using Deep Features", KDD 2015.
Licence: CC BY 4.0 (UCI Machine Learning Repository).
"""

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents, verify
from fedsim.data.sources._words import Tokens, encoded
from fedsim.data.sources.labelled_text import numbered, read_lines

_SITES = {  # the first digits of each file's SHA-256
    "amazon": ("amazon_cells_labelled.txt", "47003fc0a0d4"),
    "imdb": ("imdb_labelled.txt", "a5851cfed830"),
    "yelp": ("yelp_labelled.txt", "c76468b7b5c6"),
}


def sentiment(folders: Folders, *, tokens: Tokens = "words", buckets: int = 4096, length: int = 32) -> Corpus:
    """2,983 different sentences, a client per site: of telephones, films and restaurants.

    Args:
        folders: where the folder `sentiment-sentences` is looked for. 17 sentences that repeat others of their site
            are left out.
        tokens: "words" or "bytes".
        buckets: numbers that words share.
        length: tokens of a row; what is longer is cut.

    Raises:
        DataError: a file is missing or not the expected one.
    """
    paths = folders.find("sentiment-sentences", [file for file, _ in _SITES.values()])
    sites: list[dict[str, str]] = []
    for file, digest in _SITES.values():
        data = contents(paths[file])
        verify(paths[file], data, digest, "sha256")
        lines = read_lines(paths[file], data, ("text", "label"), ("0", "1"))
        sites.append({text.strip(): label for text, label in zip(lines.texts, lines.labels, strict=True)})
    rows, vocabulary, done = encoded([text for site in sites for text in site], tokens, buckets, length)
    return Corpus(
        name="sentiment",
        task="classification",
        x=rows,
        y=numbered([label for site in sites for label in site.values()], ("0", "1")),
        classes=("blame", "praise"),
        preprocessing=done,
        clients=np.repeat(np.arange(len(sites)), [len(site) for site in sites]),
        client_names=tuple(_SITES),
        vocabulary=vocabulary,
    )
