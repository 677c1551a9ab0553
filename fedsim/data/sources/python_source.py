"""The running interpreter's standard library as text: every top-level module or package is a client.

Needs no download, so language models can be tried anywhere; the text differs between Python versions.
Licence: PSF-2.0 (Python's standard library).
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents
from fedsim.data.sources._text import Task, next_byte_corpus
from fedsim.errors import DataError

_LEFT_OUT = frozenset({"test", "tests", "idlelib"})


def python_source(
    folders: Folders, *, max_bytes: int = 5_000_000, window: int = 80, task: Task = "next-token"
) -> Corpus:
    """Windows of the standard library's source, with a client per top-level module or package.

    Args:
        folders: not used; no file beyond the interpreter's own is needed.
        max_bytes: modules are taken in name order up to this many bytes; the last one is cut.
        window: bytes of a window; windows do not overlap.
        task: "next-token", or "generation", which also has the second half of every window written.

    Raises:
        ScenarioError: the window is shorter than 2 bytes.
        DataError: this interpreter has no source files, or too few bytes are allowed for a window.
    """
    texts: dict[str, bytes] = {}
    left = max_bytes
    for name, files in _modules(Path(sysconfig.get_path("stdlib"))):
        if left <= 0:
            break
        texts[name] = b"".join(contents(file) for file in files)[:left]
        left -= len(texts[name])
    if not texts:
        raise DataError("data set 'python-source': no source is allowed or installed; raise data.max_bytes")
    return next_byte_corpus("python-source", texts, window, task=task)


def _modules(library: Path) -> Iterator[tuple[str, list[Path]]]:
    """Names and source files of top-level modules and packages, in name order.

    Names that cannot be imported are not modules (site-packages, lib-dynload), and the build's settings in
    `_sysconfigdata` belong to the machine.
    """
    for entry in sorted(library.iterdir(), key=lambda path: path.stem):
        name = entry.stem
        if not name.isidentifier() or name in _LEFT_OUT or name.startswith("_sysconfigdata"):
            continue
        files = _package(entry) if entry.is_dir() else [entry] if entry.suffix == ".py" else []
        if files:
            yield name, files


def _package(folder: Path) -> list[Path]:
    found = (file.relative_to(folder) for file in folder.rglob("*.py"))
    return [folder / file for file in sorted(found) if not _LEFT_OUT & set(file.parts)]
