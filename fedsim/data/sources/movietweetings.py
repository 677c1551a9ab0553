"""MovieTweetings: ratings of films by people on Twitter; every person is a client.

Dooms, De Pessemier, Martens, "MovieTweetings: a Movie Rating Dataset Collected From Twitter", CrowdRec 2013.
Licence: MIT.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents, verify
from fedsim.data.table import read, there
from fedsim.errors import DataError, ScenarioError

_FILES = {"ratings.dat": "c0dd868c2632", "movies.dat": "e63fb84bc734"}  # SHA-256


def movietweetings(folders: Folders, *, users: Annotated[int, Field(ge=1)] = 1154) -> Corpus:
    """Rows [user, film] of two tokens, and the rating from 0 to 10.

    Tokens from 0 on are the users, behind them all films of the catalogue `movies.dat`, rated or not, in its order. So
    nothing of who has rated what is in the vocabulary.

    Args:
        folders: where the folder `movietweetings` with the two files is looked for.
        users: how many clients there are: those with the most ratings, of equals the first.

    Raises:
        DataError: a file is missing or not the expected one.
        ScenarioError: there are fewer users.
    """
    paths = folders.find("movietweetings", list(_FILES))
    texts = {file: contents(path) for file, path in paths.items()}
    for file, digest in _FILES.items():
        verify(paths[file], texts[file], digest, "sha256")
    films = _films(texts["movies.dat"])
    table = [line.split(b"::") for line in texts["ratings.dat"].splitlines()]
    names, owner, counts = np.unique([int(row[0]) for row in table], return_inverse=True, return_counts=True)
    if users > len(names):
        raise ScenarioError(f"data.users = {users:,}: there are {len(names):,}; lower it")
    chosen = np.sort(np.argsort(-counts, kind="stable")[:users])
    place = np.full(len(names), -1)
    place[chosen] = np.arange(users)
    user, film = place[owner], np.array([films[row[1]] for row in table])
    rows = np.flatnonzero(user >= 0)
    return Corpus(
        name="movietweetings",
        task="regression",
        x=np.stack([user[rows], users + film[rows]], axis=1),
        y=np.array([float(row[2]) for row in table], dtype=np.float32)[rows],
        classes=(),
        preprocessing={
            "kind": "movietweetings",
            "users": users,
            "films": len(films),
            "places": [[0, users], [users, users + len(films)]],  # tokens of each: the first, and the end
            "catalogue": f"SHA-256 {_FILES['movies.dat']}",
            "target": {"mean": 7.0, "std": 2.0, "range": [0.0, 10.0]},  # declared, not fitted
        },
        clients=user[rows],
        client_names=tuple(f"user {name}" for name in names[chosen]),
        vocabulary=users + len(films),
    )


def pairs(path: Path, stored: Mapping[str, Any]) -> tuple[np.ndarray, list[int]]:
    """New rows [n, 2] of two tokens, and the line of each.

    Args:
        path: CSV with the columns `user`, a client's number in the run, and `film`, as in the catalogue; `movies.dat`,
            the catalogue that the model was trained on, lies beside it.
        stored: `preprocessing` of the corpus that a model was trained on.

    Raises:
        DataError: no such table or catalogue, or a user or a film is none that the model knows.
    """
    catalogue, users = path.parent / "movies.dat", int(stored["users"])
    if not catalogue.is_file():
        raise DataError(f"{catalogue}: is not there; put the catalogue that numbers the films beside the rows")
    data = contents(catalogue)
    verify(catalogue, data, str(stored["catalogue"]).rpartition(" ")[2], "sha256")
    films = {film.decode(): users + place for film, place in _films(data).items()}
    clients = {str(number): number for number in range(users)}
    table = there(read(path), ("user", "film"))
    rows = zip(table.columns["user"], table.columns["film"], table.lines, strict=True)
    for user, film, line in rows:
        if user not in clients:
            raise DataError(f"{path}, line {line}: user {user!r} is no client's number, 0 to {users - 1}")
        if film not in films:
            raise DataError(f"{path}, line {line}: film {film!r} is not in {catalogue.name}")
    tokens = [[clients[user] for user in table.columns["user"]], [films[film] for film in table.columns["film"]]]
    return np.array(tokens).T.copy(), list(table.lines)


def _films(catalogue: bytes) -> dict[bytes, int]:
    """The place of every film in the catalogue."""
    return {line.split(b"::", 1)[0]: place for place, line in enumerate(catalogue.splitlines())}
