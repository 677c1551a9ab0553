"""Shakespeare's plays: every part of every play is a client, as in LEAF's Shakespeare.

Caldas et al., "LEAF: A Benchmark for Federated Settings", 2019. The text is another edition, so numbers are
comparable in kind only.
Licence: public domain; the files: Apache-2.0.
"""

import re
from collections import defaultdict
from pathlib import Path

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents, verify
from fedsim.data.sources._text import Task, next_byte_corpus
from fedsim.errors import DataError

_PLAYS = {  # the first digits of each file's SHA-256
    "1kinghenryiv": "7590d173c0be",
    "1kinghenryvi": "715e55cc52c1",
    "2kinghenryiv": "4a9f52f2db3e",
    "2kinghenryvi": "b282843daec1",
    "3kinghenryvi": "6156dfad1cd8",
    "allswellthatendswell": "3bad3562a52b",
    "antonyandcleopatra": "4cecd44a3320",
    "asyoulikeit": "eaa3526fe538",
    "comedyoferrors": "d53fcfe39488",
    "coriolanus": "13d7e0259fcd",
    "cymbeline": "b5bb1a49d38e",
    "hamlet": "1846810b98f3",
    "juliuscaesar": "d4b1254e2288",
    "kinghenryv": "62cbcdfd774c",
    "kinghenryviii": "63fc4a4ec60c",
    "kingjohn": "251870ca2777",
    "kinglear": "674a27258843",
    "kingrichardii": "7af438847579",
    "kingrichardiii": "0b5ef70294ed",
    "loveslabourslost": "b7521b8ae6d6",
    "macbeth": "339afa674ac5",
    "measureforemeasure": "1449c06143bd",
    "merchantofvenice": "54b95ab530e8",
    "merrywivesofwindsor": "85dfbea19962",
    "midsummersnightsdream": "684b22072f15",
    "muchadoaboutnothing": "fad832e284cc",
    "othello": "e1590d00e121",
    "periclesprinceoftyre": "f03561e0fb33",
    "romeoandjuliet": "1cd830b4a815",
    "tamingoftheshrew": "87f9d1f22bb0",
    "tempest": "1f20301e552d",
    "timonofathens": "a01c9ebbf5d3",
    "titusandronicus": "5135117e84fa",
    "troilusandcressida": "fdf3a04f0a92",
    "twelfthnight": "68a44a35e824",
    "twogentlemenofverona": "53f40375e388",
    "winterstale": "9a1c8f6f7326",
}
_DIRECTION = re.compile(r"\[(?:[^\]\n]|\n(?!\n))*\]?")  # where the closing bracket is missing, to the paragraph's end
_HEADING = re.compile(r"(THE )?(PROLOGUE|EPILOGUE|INDUCTION)\.?")


def shakespeare(folders: Folders, *, window: int = 80, min_characters: int = 1000, task: Task = "next-token") -> Corpus:
    """Windows of what each speaker of each of the 37 plays says.

    Args:
        folders: where the folder `shakespeare/plays` is looked for.
        window: bytes of a window; windows do not overlap.
        min_characters: a client needs at least as many, line ends not counted.
        task: "next-token", or "generation", which also has the second half of every window written.

    Raises:
        ScenarioError: the window is shorter than 2 bytes.
        DataError: a play is missing or not the expected file, or nobody speaks enough.
    """
    paths = folders.find("shakespeare", [f"plays/{play}.txt" for play in _PLAYS])
    texts: dict[str, bytes] = {}
    for play, digest in _PLAYS.items():
        for speaker, lines in _speeches(paths[f"plays/{play}.txt"], digest).items():
            if sum(map(len, lines)) >= min_characters:
                texts[f"{play}: {speaker}"] = "\n".join(lines).encode("ascii")
    if not texts:
        raise DataError(f"data set 'shakespeare': nobody has {min_characters} characters; lower data.min_characters")
    return next_byte_corpus("shakespeare", texts, window, task=task)


def _speeches(path: Path, digest: str) -> dict[str, list[str]]:
    """Every speaker's lines, in order.

    A speech begins "SPEAKER<TAB>line" and goes on "<TAB>line"; stage directions stand in brackets, the cast
    list before the first "ACT I". A scene's heading looks like a speech, and each scene repeats the title.
    """
    data = contents(path)
    verify(path, data, digest, "sha256")
    text = data.decode("ascii")
    title = text.strip().split("\n", 1)[0]
    body = _DIRECTION.sub("", text[text.index("\nACT I\n") :])
    said: defaultdict[str, list[str]] = defaultdict(list)
    speaker = ""
    for entry in body.split("\n"):
        name, tab, spoken = entry.partition("\t")
        line = spoken.strip(" \t|")  # a bar marks those who speak together
        if not tab:
            continue
        if name.startswith("SCENE") or (not name and (line == title or _HEADING.fullmatch(line))):
            speaker = ""
            continue
        speaker = name.strip().rstrip(":") or speaker
        if speaker and line:
            said[speaker].append(line)
    return said
