"""Adult as FedBench has it: the training file alone, its categories as indicators, its numbers standardised.

Nechba, El Afia and Abdulrazak, "Fundamentals and Experimental Analysis of Federated Learning Algorithms", 2025.
"""

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources.adult import SCHEMA, adult
from fedsim.data.table import read

_NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
_LABEL = "income"


def training_file(folders: Folders) -> Corpus:
    """The 32,561 people of adult.data, [32561, 100]: what nobody knows of a person is a category as any other.

    Of every column's categories, in the order of their names, the first has no indicator.

    Args:
        folders: where the folder `adult` is looked for.
    """
    adult(folders)  # looks whether the files are the known ones
    columns = read(folders.find("adult", ["adult.data"])["adult.data"], header=list(SCHEMA)).columns
    numbers = np.array([columns[name] for name in _NUMBERS], dtype=np.float64).T
    parts = [(numbers - numbers.mean(0)) / numbers.std(0)]
    for name in columns:
        if name not in (*_NUMBERS, _LABEL):
            values = np.array(columns[name])
            parts.append(values[:, None] == np.unique(values)[1:])
    return Corpus(
        name="fedbench-adult",
        task="classification",
        x=np.concatenate(parts, axis=1).astype(np.float32),
        y=np.array([value == ">50K" for value in columns[_LABEL]]).astype(np.int64),
        classes=("<=50K", ">50K"),
        preprocessing={"kind": "none", "fitted_on_rows": True},
    )
