"""KDD Cup 1999: connections to a network, normal ones and attacks; every network service is a client.

Hettich, Bay, "The UCI KDD Archive", 1999. Distinct connections alone: the files repeat some floods 100,000 times. Known
to be easy (Tavallaee et al., "A detailed analysis of the KDD CUP 99 data set", CISDA 2009): a workload, weak evidence.
Licence: CC BY 4.0 (UCI Machine Learning Repository).
"""

import gzip
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim import seeds
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents, verify
from fedsim.errors import DataError, ScenarioError

_FILES = {"kddcup.data_10_percent.gz": "8045aca0d84e", "corrected.gz": "74f0daef49b2"}  # SHA-256
_PROTOCOLS = (b"icmp", b"tcp", b"udp")
_FLAGS = (b"OTH", b"REJ", b"RSTO", b"RSTOS0", b"RSTR", b"S0", b"S1", b"S2", b"S3", b"SF", b"SH")
_COLUMNS = {  # the numbers of a row in order, each with what log(1 + value) is divided by; rates are taken as they are
    **dict.fromkeys(("duration", "src_bytes", "dst_bytes"), 10.0),
    **dict.fromkeys(("land", "wrong_fragment", "urgent", "hot", "num_failed_logins", "logged_in"), 1.0),
    **dict.fromkeys(("num_compromised", "root_shell", "su_attempted", "num_root", "num_file_creations"), 1.0),
    **dict.fromkeys(("num_shells", "num_access_files", "num_outbound_cmds", "is_host_login", "is_guest_login"), 1.0),
    **dict.fromkeys(("count", "srv_count"), 6.0),
    **dict.fromkeys(("serror_rate", "srv_serror_rate", "rerror_rate", "srv_rerror_rate"), None),
    **dict.fromkeys(("same_srv_rate", "diff_srv_rate", "srv_diff_host_rate"), None),
    **dict.fromkeys(("dst_host_count", "dst_host_srv_count"), 6.0),
    **dict.fromkeys(("dst_host_same_srv_rate", "dst_host_diff_srv_rate", "dst_host_same_src_port_rate"), None),
    **dict.fromkeys(("dst_host_srv_diff_host_rate", "dst_host_serror_rate", "dst_host_srv_serror_rate"), None),
    **dict.fromkeys(("dst_host_rerror_rate", "dst_host_srv_rerror_rate"), None),
}

_VALUES = 41  # of a line, before its label
Lines = list[bytes]


def kdd99(
    folders: Folders,
    *,
    min_normal: Annotated[int, Field(ge=1)] = 200,
    attacks: Annotated[float, Field(ge=0)] = 0.25,
    seed: Annotated[int, Field(ge=0)] = 1,
) -> Corpus:
    """Connections of 52 values for reconstruction, with the test set of the contest.

    A client is a service of the training file; it has its normal connections and some of its attacks, which no model
    learns from, but which its own test rows contain. The test set is `corrected.gz`, without what is in the training
    file; it has attacks of kinds that the training file has not.

    Args:
        folders: where the folder `kdd99` with the two files is looked for.
        min_normal: normal connections that a service must have to be a client; others are left out.
        attacks: how many attacks a client has at most, as a share of its normal connections.
        seed: by which these are drawn.

    Raises:
        DataError: a file is missing, damaged or not the expected one.
        ScenarioError: no service has so many normal connections.
    """
    paths = folders.find("kdd99", list(_FILES))
    train, test = (_distinct(paths[file], digest) for file, digest in _FILES.items())
    names, owned = _clients(train, min_normal, attacks, seed)
    if not names:
        raise ScenarioError(f"data.min_normal = {min_normal}: no service has as many normal connections; lower it")
    seen = set(train)
    test = [line for line in test if line not in seen]
    lines = [line for own in owned for line in own] + test
    x = _values(lines)
    anomalous = np.array([not line.endswith(b",normal.") for line in lines])
    clients = np.full(len(lines), -1)
    clients[: len(lines) - len(test)] = np.repeat(np.arange(len(names)), [len(own) for own in owned])
    return Corpus(
        name="kdd99",
        task="reconstruction",
        x=x,
        y=np.concatenate([x, anomalous[:, None].astype(np.float32)], axis=1),
        classes=(),
        preprocessing={
            "kind": "kdd99",
            "log1p_divided_by": {name: by for name, by in _COLUMNS.items() if by is not None},
            "columns": [*_COLUMNS, *(f"protocol {each.decode()}" for each in _PROTOCOLS), *map(_flag, _FLAGS)],
        },
        clients=clients,
        client_names=names,
        own_test=clients < 0,
    )


def connections(path: Path) -> tuple[np.ndarray, list[int]]:
    """New rows [n, 52], and the line of each.

    Args:
        path: of a file with a connection a line, as in the published ones; its label may be there or not.

    Raises:
        DataError: no such file, or a line is no connection.
    """
    lines = [line.strip() for line in contents(path).splitlines()]
    for number, line in enumerate(lines, 1):
        if wrong := _wrong(line.split(b",")):
            raise DataError(f"{path}, line {number}: {wrong}")
    if not lines:
        raise DataError(f"{path}: is empty; write one connection a line")
    unlabelled = (b",".join(line.split(b",")[:_VALUES]) for line in lines)
    return _values([line + b",?" for line in unlabelled]), list(range(1, len(lines) + 1))


def _wrong(fields: list[bytes]) -> str:
    """Why a line is no connection; empty where it is one."""
    if not _VALUES <= len(fields) <= _VALUES + 1:
        values = f"{len(fields)} value{'' if len(fields) == 1 else 's'}"
        return f"{values}; give the {_VALUES} of a connection, with its label or without"
    for value, known, what in ((fields[1], _PROTOCOLS, "protocol"), (fields[3], _FLAGS, "flag")):
        if value not in known:
            return f"{what} {value.decode(errors='replace')!r} is none of {', '.join(each.decode() for each in known)}"
    for name, value in zip(_COLUMNS, (fields[0], *fields[4:_VALUES]), strict=True):
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < np.inf:
            return f"{name} is {value.decode(errors='replace')!r}; give a finite number from 0 on"
    return ""


def _flag(flag: bytes) -> str:
    return f"flag {flag.decode()}"


def _distinct(path: Path, digest: str) -> Lines:
    """The different lines of a published file, in its order."""
    data = contents(path)
    verify(path, data, digest, "sha256")
    return list(dict.fromkeys(gzip.decompress(data).splitlines()))


def _clients(lines: Lines, least: int, attacks: float, seed: int) -> tuple[tuple[str, ...], list[Lines]]:
    """Services with enough normal connections, by name, and the lines of each: normal ones, then drawn attacks."""
    normal, other = defaultdict[bytes, Lines](list), defaultdict[bytes, Lines](list)
    for line in lines:
        (normal if line.endswith(b",normal.") else other)[line.split(b",", 3)[2]].append(line)
    services = sorted(service for service, own in normal.items() if len(own) >= least)
    draws = seeds.numpy_generator(seed, "attacks of kdd99")
    owned = []
    for service in services:
        most = min(len(other[service]), int(attacks * len(normal[service])))
        drawn = np.sort(draws.permutation(len(other[service]))[:most])
        owned.append(normal[service] + [other[service][place] for place in drawn])
    return tuple(service.decode() for service in services), owned


def _values(lines: Lines) -> np.ndarray:
    """[n, 52] float32: numbers scaled by declared constants, protocol and flag as indicators."""
    fields = [line.split(b",", 4) for line in lines]
    numbers = b",".join(b",".join((first, rest.rpartition(b",")[0])) for first, _, _, _, rest in fields)
    raw = np.fromstring(numbers.decode(), dtype=np.float64, sep=",").reshape(len(lines), len(_COLUMNS))
    for column, by in enumerate(_COLUMNS.values()):
        if by is not None:
            raw[:, column] = np.log1p(raw[:, column]) / by
    protocols = np.array([each[1] for each in fields])[:, None] == np.array(_PROTOCOLS)
    flags = np.array([each[3] for each in fields])[:, None] == np.array(_FLAGS)
    return np.concatenate([raw, protocols, flags], axis=1).astype(np.float32)
