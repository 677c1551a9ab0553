"""Texts as rows of tokens of one length: hashed words, or bytes. No vocabulary is made of anybody's rows.

A word's number is a hash of its letters, so that new texts need no list of words, and none tells which words occur
(Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009). Token 0 fills a row up.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from fedsim.errors import DataError, ScenarioError

Tokens = Literal["words", "bytes"]
"""Lower-cased words and marks, or the bytes of UTF-8."""

_PARTS = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
_DIGIT = re.compile(r"\d")
_MOST_BUCKETS = 2**24
_SAMPLE = "Don't Stop; call 0800 12-34 NOW, naïve Ωmega!"


class Encoded(NamedTuple):
    """Texts as a corpus has them.

    Attributes:
        x: [N, length] int32 hashed words, or uint8 bytes; 0 after a text's end.
        vocabulary: how many tokens there are; None of bytes.
        preprocessing: what `encode` needs to do the same to new texts.
    """

    x: np.ndarray
    vocabulary: int | None
    preprocessing: Mapping[str, Any]


def encoded(texts: Sequence[str], tokens: Tokens, buckets: int, length: int) -> Encoded:
    """Rows of tokens, and how they were made.

    Args:
        texts: one per row.
        tokens: "words" or "bytes".
        buckets: numbers that words share, 0 among them, which is no word; not used for bytes.
        length: tokens of a row; what is longer is cut.

    Raises:
        ScenarioError: no token fits, or too many numbers.
    """
    if length < 1:
        raise ScenarioError(f"data.length = {length} should be at least 1")
    if tokens == "words" and not 2 <= buckets <= _MOST_BUCKETS:
        raise ScenarioError(f"data.buckets = {buckets} should be at least 2 and at most {_MOST_BUCKETS}")
    done: dict[str, Any] = {"kind": "bytes", "length": length}
    if tokens == "words":
        done = {"kind": "hashed-words", "buckets": buckets, "length": length, "digest": _digest(buckets)}
    return Encoded(encode(texts, done), buckets if tokens == "words" else None, done)


def encode(texts: Sequence[str], preprocessing: Mapping[str, Any]) -> np.ndarray:
    """[N, length] texts as the rows were made that a model was trained with.

    Args:
        texts: one per row.
        preprocessing: of `encoded`, as it was saved with the model.

    Raises:
        DataError: the model read other tokens than this version of fedsim makes.
    """
    length = preprocessing["length"]
    if preprocessing["kind"] == "bytes":
        return _filled([text.encode()[:length] for text in texts], length, np.uint8)
    buckets, digest = preprocessing["buckets"], _digest(preprocessing["buckets"])
    if preprocessing["digest"] != digest:
        raise DataError(
            f"tokenizer: the model read hashed words {preprocessing['digest']}, and these are {digest}; words are cut "
            "or numbered in another way now, so use the versions of fedsim and Python it was trained with"
        )
    return _filled([[_number(word, buckets) for word in words(text)[:length]] for text in texts], length, np.int32)


def words(text: str) -> list[str]:
    """Lower-cased words and marks in order; every digit as 0, so that numbers of one length are one word."""
    return _PARTS.findall(_DIGIT.sub("0", text.lower()))


def _filled(rows: Sequence[Sequence[int]], length: int, kind: type[np.integer[Any]]) -> np.ndarray:
    x = np.zeros((len(rows), length), kind)
    for row, tokens in zip(x, rows, strict=True):
        row[: len(tokens)] = list(tokens)
    return x


@lru_cache(maxsize=2**18)
def _number(word: str, buckets: int) -> int:
    """A word's number in 1 .. buckets - 1."""
    return 1 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % (buckets - 1)


def _digest(buckets: int) -> str:
    """Tells two rules of cutting and numbering apart, by what they make of one text."""
    numbers = [_number(word, buckets) for word in words(_SAMPLE)]
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:12]
