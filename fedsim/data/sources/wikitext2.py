"""Articles of Wikipedia as text, each a client: WikiText-2's validation file to train on, its test file to test with.

Merity et al., "Pointer Sentinel Mixture Models", ICLR 2017. Its train file is not used and bytes are predicted, where
the paper predicts words, so perplexities are not those of the paper.
Licence: CC BY-SA 3.0 (Wikipedia's text).
"""

import re
from typing import Annotated

from pydantic import Field

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents, verify
from fedsim.data.sources._text import Task, next_byte_corpus

_FILES = {"valid.txt": "f0737ed31fc1", "test.txt": "d790b833ef8c"}  # the first digits of SHA-256
Positive = Annotated[int, Field(ge=1)]
_TITLE = re.compile(rb"^ = ([^=\n].*[^=\n]) = $", re.MULTILINE)


def wikitext2(folders: Folders, *, window: int = 80, test_articles: Positive = 62, task: Task = "next-token") -> Corpus:
    """Windows of 60 articles, a client each, and of articles of the test file, which are nobody's.

    Args:
        folders: where the folder `wikitext-2` is looked for.
        window: bytes of a window; windows do not overlap.
        test_articles: how many of the test file's 62, from the first on.
        task: "next-token", or "generation", which also has the second half of each window written.

    Raises:
        ScenarioError: the window is too short.
        DataError: a file is missing or not the expected one, or no article fills a window.
    """
    paths = folders.find("wikitext-2", list(_FILES))
    texts: dict[str, bytes] = {}
    for file, digest in _FILES.items():
        data = contents(paths[file])
        verify(paths[file], data, digest, "sha256")
        articles = _articles(data)
        if file == "test.txt":
            articles = {file: b"\n".join(list(articles.values())[:test_articles])}
        texts |= articles
    return next_byte_corpus("wikitext2", texts, window, task=task, own_test="test.txt")


def _articles(data: bytes) -> dict[str, bytes]:
    """The text of each article by its number and title, which stands before it; rare words make titles alike."""
    titles = list(_TITLE.finditer(data))
    ends = [*(title.start() for title in titles[1:]), len(data)]
    return {
        f"{number}: {title[1].decode()}": data[title.end() : end].lstrip(b" \n")
        for number, (title, end) in enumerate(zip(titles, ends, strict=True), start=1)
    }
