"""UCI Heart Disease: 920 patients of four hospitals, 13 attributes, many of them missing.

Detrano et al., "International application of a new probability algorithm for the diagnosis of coronary artery disease",
American Journal of Cardiology 64, 1989. Collected by A. Janosi (Budapest), W. Steinbrunn (Zurich), M. Pfisterer (Basel)
and R. Detrano (Cleveland, Long Beach).
Licence: CC BY 4.0 (UCI Machine Learning Repository).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.schema import columns_of
from fedsim.data.sources._files import contents, verify
from fedsim.data.table import Table, read
from fedsim.data.tabular import tabular

_SHA256 = {
    "processed.cleveland.data": "a74b7efa387bc9d108d7d0115d831fe9",
    "processed.hungarian.data": "d1ad108f785768cd3d7e82dc522e6f5a",
    "processed.switzerland.data": "834a405ccf5b66ab4056bb77794adc8d",
    "processed.va.data": "e7c93d8d0d2acdadfa4c5e8de768e219",
}
_DISEASE = {"0": "healthy", "1": "ill", "2": "ill", "3": "ill", "4": "ill"}
"""The grade of narrowing in the files; above 0 it is more than half of a vessel's width."""


def _category(*values: str) -> Mapping[str, Any]:
    return {"kind": "category", "categories": list(values), "missing": ["?"], "rule": "indicator"}


def _number(unit: str, low: float, high: float, *missing: str) -> Mapping[str, Any]:
    return {"kind": "number", "unit": unit, "range": [low, high], "missing": ["?", *missing], "rule": "indicator"}


SCHEMA: Mapping[str, Mapping[str, Any]] = {
    "age": {"kind": "number", "unit": "years", "range": [0, 120]},
    "sex": {"kind": "category", "categories": ["0", "1"]},  # 1 is male
    "cp": {"kind": "category", "categories": ["1", "2", "3", "4"]},  # chest pain: typical, atypical, other, none
    "trestbps": _number("mm Hg", 60, 260, "0"),  # blood pressure at rest
    "chol": _number("mg/dl", 60, 700, "0"),
    "fbs": _category("0", "1"),  # fasting blood sugar above 120 mg/dl
    "restecg": _category("0", "1", "2"),
    "thalach": _number("1/min", 40, 250),  # greatest heart rate
    "exang": _category("0", "1"),  # exercise brings on angina
    "oldpeak": _number("mm", -5, 10),  # ST depression under exercise
    "slope": _category("1", "2", "3"),
    "ca": _number("vessels", 0, 3),
    "thal": _category("3", "6", "7"),  # normal, fixed defect, reversible defect
    "disease": {"kind": "label", "categories": ["healthy", "ill"]},
}
"""0 for a blood pressure or for cholesterol means that nobody measured it."""


def heart_disease(folders: Folders) -> Corpus:
    """Whether a patient is ill; every hospital is a natural client.

    Args:
        folders: where the folder `heart-disease` with the four processed files is looked for.

    Raises:
        DataError: a file is missing, damaged or not the expected one.
    """
    paths = folders.find("heart-disease", list(_SHA256))
    for file, digest in _SHA256.items():
        verify(paths[file], contents(paths[file]), digest, "sha256")
    hospitals = [file.split(".")[1] for file in _SHA256]
    tables = [_graded(read(paths[file], header=list(SCHEMA))) for file in _SHA256]
    return tabular("heart-disease", "classification", tables, columns_of(SCHEMA), owners=hospitals)


def _graded(table: Table) -> Table:
    grades: Sequence[str] = table.columns["disease"]
    return Table(
        table.path, {**table.columns, "disease": [_DISEASE.get(grade, grade) for grade in grades]}, table.lines
    )
