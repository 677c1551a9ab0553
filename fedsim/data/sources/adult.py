"""Adult, or Census Income: 48,842 people of the US census of 1994, and whether they earn more than 50,000 dollars.

Kohavi, "Scaling Up the Accuracy of Naive-Bayes Classifiers: a Decision-Tree Hybrid", KDD 1996.
Licence: CC BY 4.0 (UCI Machine Learning Repository).
"""

from collections.abc import Mapping
from typing import Any, Literal

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.schema import columns_of
from fedsim.data.sources._files import contents, verify
from fedsim.data.table import Table, read
from fedsim.data.tabular import tabular

_SHA256 = {
    "adult.data": "5b00264637dbfec36bdeaab5676b0b30",
    "adult.test": "a2a9044bc167a35b2361efbabec64e89",
}
_WORK = "Private|Self-emp-not-inc|Self-emp-inc|Federal-gov|Local-gov|State-gov|Without-pay|Never-worked"
_MARRIED = "Married-civ-spouse|Divorced|Never-married|Separated|Widowed|Married-spouse-absent|Married-AF-spouse"
_OCCUPATIONS = (
    "Tech-support|Craft-repair|Other-service|Sales|Exec-managerial|Prof-specialty|Handlers-cleaners|Machine-op-inspct|"
    "Adm-clerical|Farming-fishing|Transport-moving|Priv-house-serv|Protective-serv|Armed-Forces"
)
_RELATIONS = "Wife|Own-child|Husband|Not-in-family|Other-relative|Unmarried"
_RACES = "White|Asian-Pac-Islander|Amer-Indian-Eskimo|Other|Black"
_COUNTRIES = (
    "United-States|Cambodia|England|Puerto-Rico|Canada|Germany|Outlying-US(Guam-USVI-etc)|India|Japan|Greece|South|China|"
    "Cuba|Iran|Honduras|Philippines|Italy|Poland|Jamaica|Vietnam|Mexico|Portugal|Ireland|France|Dominican-Republic|Laos|"
    "Ecuador|Taiwan|Haiti|Columbia|Hungary|Guatemala|Nicaragua|Scotland|Thailand|Yugoslavia|El-Salvador|Trinadad&Tobago|"
    "Peru|Hong|Holand-Netherlands"
)


def _category(values: str, missing: bool = False) -> Mapping[str, Any]:
    lacking = {"missing": ["?"], "rule": "indicator"} if missing else {}
    return {"kind": "category", "categories": values.split("|"), **lacking}


def _number(unit: str, high: float, **more: Any) -> Mapping[str, Any]:
    return {"kind": "number", "unit": unit, "range": [0, high], **more}


SCHEMA: Mapping[str, Mapping[str, Any]] = {
    "age": _number("years", 120),
    "workclass": _category(_WORK, missing=True),
    "fnlwgt": {"kind": "ignore"},  # how many people a row stands for
    "education": {"kind": "ignore"},  # education-num in words
    "education-num": _number("level", 16),
    "marital-status": _category(_MARRIED),
    "occupation": _category(_OCCUPATIONS, missing=True),
    "relationship": _category(_RELATIONS),
    "race": _category(_RACES),
    "sex": _category("Female|Male"),
    "capital-gain": _number("dollars", 99_999, log=True),
    "capital-loss": _number("dollars", 99_999, log=True),
    "hours-per-week": _number("hours", 168),
    "native-country": _category(_COUNTRIES, missing=True),
    "income": {"kind": "label", "categories": ["<=50K", ">50K"]},
}
_HEADER = list(SCHEMA)


def adult(
    folders: Folders, *, clients: Literal["occupation", "workclass", "native-country", "education"] = "occupation"
) -> Corpus:
    """Adult with its own test set of 16,281 rows; there are no natural clients, so a column stands for them.

    Args:
        folders: where the folder `adult` with adult.data and adult.test is looked for.
        clients: the column whose values are the clients of a natural partition; it remains what it is besides. Rows
            that lack it are a client "unknown".

    Raises:
        DataError: a file is missing, damaged or not the expected one.
    """
    paths = folders.find("adult", list(_SHA256))
    for file, digest in _SHA256.items():
        verify(paths[file], contents(paths[file]), digest, "sha256")
    train = read(paths["adult.data"], header=_HEADER)
    test = read(paths["adult.test"], header=_HEADER, skip=1)  # whose first line is a remark
    columns = columns_of({**SCHEMA, "client": {"kind": "client"}})
    tables = [_owned(table, clients) for table in (train, test)]
    return tabular("adult", "classification", tables, columns, test=(False, True))


def _owned(table: Table, clients: str) -> Table:
    """The table with a column of clients, and classes without the dot that they have in the test set."""
    owner = ["unknown" if value == "?" else value for value in table.columns[clients]]
    income = [value.removesuffix(".") for value in table.columns["income"]]
    return Table(table.path, {**table.columns, "income": income, "client": owner}, table.lines)
