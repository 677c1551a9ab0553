"""Parkinsons Telemonitoring: 5,875 recordings of 42 patients' voices, and how ill they are.

Tsanas, Little, McSharry and Ramig, "Accurate telemonitoring of Parkinson's disease progression by non-invasive speech
tests", IEEE Transactions on Biomedical Engineering 57, 2010.
Licence: CC BY 4.0 (UCI Machine Learning Repository).
"""

from collections.abc import Mapping
from typing import Any, Literal

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.schema import columns_of
from fedsim.data.sources._files import contents, verify
from fedsim.data.table import read
from fedsim.data.tabular import tabular

_FILE = "parkinsons_updrs.data"
_SHA256 = "f2c7d5025dec4e92e7feae367a5f7ccf"
_SUBJECTS, _EVERY = 42, 6
_VOICE = (
    *("Jitter(%)", "Jitter(Abs)", "Jitter:RAP", "Jitter:PPQ5", "Jitter:DDP", "Shimmer", "Shimmer(dB)", "Shimmer:APQ3"),
    *("Shimmer:APQ5", "Shimmer:APQ11", "Shimmer:DDA", "NHR", "HNR", "RPDE", "DFA", "PPE"),
)


def _score(high: float, mean: float, std: float) -> Mapping[str, Any]:
    return {"kind": "label", "unit": "points", "range": [0, high], "mean": mean, "std": std}


SCORES: Mapping[str, Mapping[str, Any]] = {"total": _score(176, 30, 10), "motor": _score(108, 20, 8)}
"""UPDRS: the scale's range, and round numbers for an early stage."""


def parkinsons(folders: Folders, *, target: Literal["total", "motor"] = "total", unseen: bool = True) -> Corpus:
    """A patient's UPDRS from age, sex, day of the trial and 16 measures of the voice; each patient is a client.

    Args:
        folders: where the folder `parkinsons` is looked for.
        target: total or motor UPDRS; the other one is left out.
        unseen: every sixth patient (7 of 42) never trains: their rows are the set's own test set.

    Raises:
        DataError: the file is missing, damaged or not the expected one.
    """
    path = folders.find("parkinsons", [_FILE])[_FILE]
    verify(path, contents(path), _SHA256, "sha256")
    others = [str(subject) for subject in range(_EVERY, _SUBJECTS + 1, _EVERY)] if unseen else []
    return tabular("parkinsons", "regression", [read(path)], columns_of(schema(target)), unseen=others)


def schema(target: str) -> Mapping[str, Mapping[str, Any]]:
    """What the columns are."""
    return {
        "subject#": {"kind": "client"},
        "age": {"kind": "number", "unit": "years", "range": [0, 120]},
        "sex": {"kind": "category", "categories": ["0", "1"]},  # 0 is male
        "test_time": {"kind": "number", "unit": "days", "range": [-10, 250]},  # since the patient joined
        "motor_UPDRS": SCORES["motor"] if target == "motor" else {"kind": "ignore"},
        "total_UPDRS": SCORES["total"] if target == "total" else {"kind": "ignore"},
        **{name: {"kind": "number"} for name in _VOICE},
    }
