"""Names that people give a run, and take away again; also while it goes on."""

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fedsim.errors import RunFolderError
from fedsim.reading import open_database


def set_tag(folder: Path, name: str, note: str = "") -> None:
    """Give a run a name, or the name another note; also while the run goes on.

    Raises:
        RunFolderError: not one word, no run folder, one of version 1, or one that cannot be written.
    """
    if not re.fullmatch(r"[^\s,]{1,40}", name):
        raise RunFolderError(f"{name!r} is no tag; one is a word of at most 40 letters, without spaces and commas")
    with _tagging(folder) as database:
        values = (name, " ".join(note.split()), time.time())
        database.execute("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", values)


def remove_tag(folder: Path, name: str) -> None:
    """Take a name away from a run.

    Raises:
        RunFolderError: it has no such tag, and as `set_tag`.
    """
    with _tagging(folder) as database:
        tags = [tag for (tag,) in database.execute("SELECT name FROM tags ORDER BY name")]
        if name not in tags:
            raise RunFolderError(f"{folder} has no tag {name!r}; it has {', '.join(tags) or 'none'}")
        database.execute("DELETE FROM tags WHERE name = ?", (name,))


@contextmanager
def _tagging(folder: Path) -> Iterator[sqlite3.Connection]:
    """A short transaction beside the run's own; a commit of a large round is waited for."""
    database, version = open_database(folder / "run.db")
    with closing(database):
        if version == 1:
            raise RunFolderError(f"{folder} has schema 1, which has no tags; runs of this fedsim can be tagged")
        try:
            database.execute("PRAGMA busy_timeout = 30000")
            with database:
                yield database
        except sqlite3.OperationalError as error:
            raise RunFolderError(f"{folder} cannot be tagged: {error}") from error
