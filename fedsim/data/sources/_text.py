"""Text cut into windows, whose next bytes are predicted."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from fedsim.data.corpus import Corpus
from fedsim.errors import DataError, ScenarioError

BYTES = tuple(chr(value) if 32 <= value < 127 else f"\\x{value:02x}" for value in range(256))
"""Names of the 256 byte values."""


Task = Literal["next-token", "generation"]
"""The next byte at every place, or also the second half of every window written."""


def next_byte_corpus(
    name: str,
    texts: Mapping[str, bytes],
    window: int,
    *,
    task: Task = "next-token",
    own_test: str | None = None,
) -> Corpus:
    """A corpus with a natural client per text.

    A window has `window` bytes and windows do not overlap: x is all but its last byte, y all but its first.
    The tail of a text that fills no window is dropped, and so is a client without a whole window.

    Args:
        name: of the corpus.
        texts: each client's text, by the client's name.
        window: bytes, at least 2.
        task: what is learned.
        own_test: the name of the last text, where that is the corpus' own test set and nobody's.

    Raises:
        ScenarioError: the window is shorter than 2 bytes.
        DataError: no text fills a window.
    """
    if window < 2:
        raise ScenarioError(f"data.window = {window}: a window needs at least 2 bytes, one to read and one to predict")
    whole = {client: text for client, text in texts.items() if len(text) >= window}
    if not whole.keys() - {own_test}:
        raise DataError(f"data set {name!r}: no client has {window} bytes of text; lower data.window")
    cut = [_windows(text, window) for text in whole.values()]
    windows = np.concatenate(cut)
    clients = np.repeat(np.arange(len(cut)), [len(rows) for rows in cut])
    names = [client for client in whole if client != own_test]
    return Corpus(
        name=name,
        task=task,
        x=windows[:, :-1],
        y=windows[:, 1:],
        classes=BYTES,
        preprocessing={"kind": "bytes", "window": window},
        clients=np.where(clients < len(names), clients, -1),
        client_names=tuple(names),
        own_test=None if own_test is None else clients == len(names),
    )


def _windows(text: bytes, window: int) -> np.ndarray:
    rows = len(text) // window
    return np.frombuffer(text, np.uint8, count=rows * window).reshape(rows, window)
