"""Text messages, wanted or not: 5,171 different ones, 653 of them spam.

Almeida, Gómez Hidalgo and Yamakami, "Contributions to the Study of SMS Spam Filtering", DocEng 2011.
Licence: CC BY 4.0 (UCI Machine Learning Repository).
"""

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents, verify
from fedsim.data.sources._words import Tokens, encoded
from fedsim.data.sources.labelled_text import numbered, read_lines

_FILE = "SMSSpamCollection"
_SHA256 = "7d039a24a608"
_CLASSES = ("ham", "spam")


def sms_spam(folders: Folders, *, tokens: Tokens = "words", buckets: int = 4096, length: int = 32) -> Corpus:
    """The messages. Who wrote them is not known, so they have no natural clients.

    Args:
        folders: where `sms-spam/SMSSpamCollection` is looked for. 403 messages repeat others and are left out, since
            they would be trained on and tested with.
        tokens: "words" or "bytes".
        buckets: numbers that words share.
        length: tokens of a row; what is longer is cut.

    Raises:
        DataError: the file is missing or not the expected one.
    """
    path = folders.find("sms-spam", [_FILE])[_FILE]
    data = contents(path)
    verify(path, data, _SHA256, "sha256")
    lines = read_lines(path, data, ("label", "text"), _CLASSES)
    label_of = dict(zip(lines.texts, lines.labels, strict=True))
    rows, vocabulary, done = encoded(list(label_of), tokens, buckets, length)
    return Corpus(
        name="sms-spam",
        task="classification",
        x=rows,
        y=numbered(list(label_of.values()), _CLASSES),
        classes=_CLASSES,
        preprocessing=done,
        vocabulary=vocabulary,
    )
