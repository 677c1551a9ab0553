"""Texts as tokens: numbers that depend on a text alone, files that are read line by line, and real sets."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim import registry
from fedsim.data.build import build
from fedsim.data.check import check
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._text import next_byte_corpus
from fedsim.data.sources._words import encode, encoded, words
from fedsim.errors import DataError, FedsimError, ScenarioError

DATA = os.environ.get("FEDSIM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FEDSIM_DATA names no folder with data sets")
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=6)


def load(name: str, folder: Path | str = "", scenario: Path | str = "", **settings: Any) -> Corpus:
    """A corpus as a scenario gets it."""
    source = registry.find("fedsim.data.sources", name, Path(), "data.name")
    bound = registry.bind(source, settings, "data", reserved=("folders",))
    corpus: Corpus = source(Folders((Path(folder),), Path(scenario)), **bound)
    check(corpus)
    return corpus


# --- tokens


@given(TEXTS, st.integers(2, 3000), st.integers(1, 12))
def test_a_row_depends_on_its_own_text_alone(texts: list[str], buckets: int, length: int) -> None:
    """So nobody's words show in another's rows, and new texts need nothing but the three numbers that are saved."""
    rows = encoded(texts, "words", buckets, length)
    saved = json.loads(json.dumps(dict(rows.preprocessing)))
    assert (rows.x.shape, rows.vocabulary) == ((len(texts), length), buckets)
    for text, row in zip(texts, rows.x, strict=True):
        assert np.array_equal(encode([text], saved)[0], row)
        cut = words(text)[:length]
        numbers = [1 + int(hashlib.sha256(word.encode()).hexdigest()[:16], 16) % (buckets - 1) for word in cut]
        assert row.tolist() == numbers + [0] * (length - len(cut))


def test_words_are_lower_case_marks_are_words_and_digits_are_alike() -> None:
    assert words("Don't CALL 0800-12!") == ["don't", "call", "0000", "-", "00", "!"]
    assert words("Grüße, naïve_1 £5") == ["grüße", ",", "naïve_0", "£", "0"]
    assert words(" \t\x85") == []


@given(TEXTS, st.integers(1, 12))
def test_bytes_of_a_text_are_cut_or_filled_up(texts: list[str], length: int) -> None:
    rows = encoded(texts, "bytes", 0, length)
    assert rows.x.dtype == np.uint8 and rows.vocabulary is None
    for text, row in zip(texts, rows.x, strict=True):
        assert row.tobytes() == text.encode()[:length].ljust(length, b"\0")


def test_another_tokenizer_than_the_models_is_one_line() -> None:
    """A version that cuts or numbers words otherwise would feed a trained model noise, and nothing would say so."""
    done = {**encoded(["a"], "words", 64, 4).preprocessing, "digest": "0123456789ab"}
    with pytest.raises(DataError, match="tokenizer: the model read hashed words 0123456789ab, and these are") as caught:
        encode(["a"], done)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("words", 1, 4), r"data\.buckets = 1 should be at least 2"),
        (("words", 2**25, 4), r"data\.buckets = 33554432 should be at least 2 and at most"),
        (("bytes", 0, 0), r"data\.length = 0 should be at least 1"),
    ],
)
def test_impossible_sizes_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        encoded(["a"], *settings)


# --- a user's own file


def own(folder: Path, content: bytes, **settings: Any) -> Corpus:
    (folder / "own.tsv").write_bytes(content)
    return load("labelled-text", scenario=folder, path="own.tsv", **({"classes": ("no", "yes")} | settings))


def test_lines_become_rows_with_declared_classes_and_clients(tmp_path: Path) -> None:
    """Byte order mark, CRLF, blank lines, tabs in a text; and U+0085, which is no line's end."""
    text = "\ufeffann\tyes\tHello, world\r\n\r\nbob\tyes\ta\tb\u0085c\nann\tno\tbye\n"
    corpus = own(tmp_path, text.encode(), columns=("client", "label", "text"), tokens="bytes", length=12)
    assert [row.tobytes().rstrip(b"\0").decode() for row in corpus.x] == ["Hello, world", "a\tb\u0085c", "bye"]
    assert (corpus.y.tolist(), corpus.classes) == ([1, 1, 0], ("no", "yes"))
    assert corpus.clients is not None
    assert ([corpus.client_names[owner] for owner in corpus.clients]) == ["ann", "bob", "ann"]
    last = own(tmp_path, b"x\ty\tno\tid-7\n", columns=("text", "label", "ignore"), tokens="bytes", length=4)
    assert last.x[0].tobytes() == b"x\ty\0"


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"yes\tgood\nno\n", {}, "line 2 has 1 columns and should have 2, apart by tabs"),
        (b"yes\tgood\n\nno\t  \n", {}, "line 3 has an empty text; drop the line"),
        (b"yes\tgood\nna\tbad\n", {}, r"line 2 has the class 'na'\. Did you mean no\?"),
        (b"yes\tgood\nno\tb\xe4d\n", {}, "line 2: byte 13 is not UTF-8; save the file as UTF-8"),
        (b"a\tno\tx\n\tyes\ty", {"columns": ("client", "label", "text")}, "line 2 has no client; name whose"),
        (b"\n \n", {}, "has no lines"),
        (b"", {}, "has no lines"),
        (b"x", {"columns": ("text", "ignore")}, r'data\.columns = .* should name "label" once'),
        (b"x", {"columns": ("text", "label", "client", "client")}, r'should name "client" once at most'),
        (b"x", {"classes": ("no", "no")}, r"data\.classes = .* should be two different names at least"),
        (b"x", {"columns": ("text", "label", "word")}, r"data\.columns"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(content: bytes, settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FedsimError, match=message) as caught:
        own(tmp_path, content, **settings)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ScenarioError) or "own.tsv: " in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"other\.tsv: No such file"):
        load("labelled-text", scenario=tmp_path, path="other.tsv", classes=("no", "yes"))


# --- real sets


@needs_data
def test_sms_spam_has_every_message_once() -> None:
    corpus = load("sms-spam", str(DATA), tokens="bytes", length=1000)
    assert np.bincount(corpus.y).tolist() == [4518, 653]
    assert len(np.unique(corpus.x, axis=0)) == len(corpus) == 5171
    assert corpus.x[0].tobytes().startswith(b"Go until jurong point, crazy.. ")
    assert corpus.clients is None


@needs_data
def test_sentiment_has_a_client_per_site() -> None:
    """990, 997 and 996 different sentences, half of them praise; one of imdb's holds U+0085, which ends no line."""
    corpus = load("sentiment", str(DATA))
    assert corpus.clients is not None
    assert (corpus.client_names, np.bincount(corpus.clients).tolist()) == (("amazon", "imdb", "yelp"), [990, 997, 996])
    assert all(abs(corpus.y[corpus.clients == site].mean() - 0.5) < 0.01 for site in range(3))
    plain = load("sentiment", str(DATA), tokens="bytes", length=1000)
    assert sum("\u0085" in row.tobytes().decode() for row in plain.x) > 0
    assert plain.x[0].tobytes().startswith(b"So there is no way for me to plug it in here in the US")
    assert corpus.classes[corpus.y[0]] == "blame"


@needs_data
def test_clinc150_gives_each_domain_its_fifteen_intents() -> None:
    """Total label skew: a client knows a tenth of the classes, and no class has two clients."""
    corpus = load("clinc150", str(DATA))
    assert corpus.clients is not None and corpus.own_test is not None
    assert (len(corpus), int(corpus.own_test.sum())) == (22_500, 4_500)
    pairs = np.unique(np.stack([corpus.clients, corpus.y]), axis=1)
    assert len(corpus.classes) == pairs.shape[1] == 150
    assert np.bincount(pairs[0]).tolist() == [15] * 10
    assert np.bincount(corpus.y[~corpus.own_test]).tolist() == [120] * 150
    banking = list(corpus.client_names).index("banking")
    assert corpus.clients[corpus.y == corpus.classes.index("pin_change")].tolist() == [banking] * 150
    federation = build(corpus, 1, {"kind": "natural"})
    assert len(federation.central["test"].x) + len(federation.central["validation"].x) == 4_500


@needs_data
def test_wikitext_has_a_client_per_article_and_a_test_set_of_others() -> None:
    corpus = load("wikitext2", str(DATA), window=80)
    assert corpus.clients is not None and corpus.own_test is not None
    text = (Path(str(DATA)) / "wikitext-2/valid.txt").read_bytes()
    titles = re.findall(rb"^ = [^=\n].*[^=\n] = $", text, re.MULTILINE)
    assert len(corpus.client_names) == len(titles) == 60
    assert np.array_equal(corpus.own_test, corpus.clients == -1)
    first = corpus.x[corpus.clients == 0]
    assert corpus.client_names[0] == "1: Homarus gammarus"
    assert first[0].tobytes().startswith(b"Homarus gammarus , known as the European lobster")
    whole = np.concatenate([corpus.x, corpus.y[:, -1:]], axis=1)
    one = load("wikitext2", str(DATA), test_articles=1)
    assert one.own_test is not None and one.own_test.sum() < 0.1 * corpus.own_test.sum()
    test = np.concatenate([one.x, one.y[:, -1:]], axis=1)[one.own_test].tobytes()
    assert test[5:] in (Path(str(DATA)) / "wikitext-2/test.txt").read_bytes()
    assert whole[corpus.own_test].tobytes().startswith(test)
    assert not any(b"\n" + title + b"\n" in whole[~corpus.own_test].tobytes() for title in titles)


@needs_data
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sms-spam", "sms-spam/SMSSpamCollection"),
        ("sentiment", "sentiment-sentences/imdb_labelled.txt"),
        ("clinc150", "clinc150/domains.json"),
        ("wikitext2", "wikitext-2/test.txt"),
    ],
)
def test_a_changed_file_is_named(name: str, file: str, tmp_path: Path) -> None:
    folder = Path(file).parent
    shutil.copytree(Path(str(DATA)) / folder, tmp_path / folder, copy_function=shutil.copyfile)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes() + b"\n")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / file)) + ": SHA-256 is"):
        load(name, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=f"{Path(file).name} not found; put the files into"):
        load(name, tmp_path)


def test_a_test_set_of_its_own_is_nobodys() -> None:
    corpus = next_byte_corpus("toy", {"a": b"abcdef", "b": b"ghijkl", "new": b"mnopqr"}, 3, own_test="new")
    assert corpus.clients is not None and corpus.own_test is not None
    assert (corpus.client_names, corpus.clients.tolist()) == (("a", "b"), [0, 0, 1, 1, -1, -1])
    assert corpus.own_test.tolist() == [False] * 4 + [True] * 2
    with pytest.raises(DataError, match="no client has 4 bytes"):
        next_byte_corpus("toy", {"a": b"abc", "new": b"abcdef"}, 4, own_test="new")
