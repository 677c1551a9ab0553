"""WISDM activity recognition: 5,418 windows of ten seconds from the phones of 36 people, in six activities.

Kwapisz, Weiss and Moore, "Activity Recognition using Cell Phone Accelerometers", SIGKDD Explorations 12, 2010.
Licence: none stated; the WISDM Lab asks for its readme to stay with the data.
"""

from collections.abc import Mapping
from typing import Any

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.schema import columns_of
from fedsim.data.sources._files import contents, verify
from fedsim.data.table import read
from fedsim.data.tabular import tabular
from fedsim.errors import DataError

_FOLDER, _FILE = "wisdm-ar", "WISDM_ar_v1.1_transformed.arff"
_SHA256 = "8cb3fbbad6398ac4b817cc7b98f387ef"
_USERS, _EVERY = 36, 6
_ACTIVITIES = ["Walking", "Jogging", "Upstairs", "Downstairs", "Sitting", "Standing"]


def _each(name: str, **column: Any) -> Mapping[str, Mapping[str, Any]]:
    return {f"{axis}{name}": {"kind": "number", **column} for axis in "XYZ"}


SCHEMA: Mapping[str, Mapping[str, Any]] = {
    "UNIQUE_ID": {"kind": "ignore"},
    "user": {"kind": "client"},
    # Shares of a window's samples in ten equal bins of acceleration, of each axis.
    **{f"{axis}{place}": {"kind": "number", "range": [0, 1]} for axis in "XYZ" for place in range(10)},
    **_each("AVG", unit="m/s^2"),
    "XAVG": {"kind": "ignore"},  # 0 in every row
    **_each("PEAK", unit="ms", range=[0, 10_000], missing=["?"], rule="indicator", log=True),  # between two peaks
    **_each("ABSOLDEV", unit="m/s^2"),
    **_each("STANDDEV", unit="m/s^2"),
    "RESULTANT": {"kind": "number", "unit": "m/s^2"},
    "class": {"kind": "label", "categories": _ACTIVITIES},
}


def wisdm(folders: Folders, *, unseen: bool = False) -> Corpus:
    """What somebody was doing; every user is a natural client.

    Args:
        folders: where the folder `wisdm-ar` with the transformed ARFF file is looked for.
        unseen: every sixth user (6 of 36) never trains: their rows are the set's own test set.

    Raises:
        DataError: the file is missing, damaged or not the expected one.
    """
    path = folders.find(_FOLDER, [_FILE])[_FILE]
    whole = contents(path)
    verify(path, whole, _SHA256, "sha256")
    head, mark, _ = whole.partition(b"@data")
    if not mark:
        raise DataError(f"{path}: there is no line @data; fetch it again")
    table = read(path, header=list(SCHEMA), skip=head.count(b"\n") + 1)
    others = [str(user) for user in range(_EVERY, _USERS + 1, _EVERY)] if unseen else []
    return tabular("wisdm", "classification", [table], columns_of(SCHEMA), unseen=others)
