"""MNIST: 70,000 handwritten digits of 28x28 pixels, by writer where QMNIST's ids are at hand.

LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998; Yadav and Bottou, "Cold Case: The Lost
MNIST Digits", NeurIPS 2019, found the NIST writer of every image.
Licence: CC BY-SA 3.0; writer ids of QMNIST: BSD-3-Clause.
"""

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources import _idx
from fedsim.errors import DataError

_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
_WRITERS = "qmnist-train-labels-idx2-int.gz"
_WRITERS_MD5 = "0058f8dd561b90ffdd0f734c6a30e5e4"


def mnist(folders: Folders, *, writers: bool = False) -> Corpus:
    """MNIST with its own test set of 10,000 rows.

    Args:
        folders: where the folder `mnist` with the gzipped IDX files is looked for.
        writers: the 539 NIST writers of the train rows become natural clients (needs QMNIST's train ids). No
            writer is in both sets; test rows are never partitioned and have client -1.

    Raises:
        DataError: a file is missing, damaged or not the expected one.
    """
    images = _idx.mnist_like(folders, "mnist", _MD5, mean=0.1307, std=0.3081)
    clients, names = _writers(folders, images) if writers else (None, ())
    return Corpus(
        name="mnist",
        task="classification",
        x=images.x,
        y=images.y,
        classes=tuple(str(digit) for digit in range(10)),
        preprocessing=images.preprocessing,
        clients=clients,
        client_names=names,
        own_test=images.own_test,
    )


def _writers(folders: Folders, images: _idx.Images) -> tuple[np.ndarray, tuple[str, ...]]:
    """[70000] number of every row's writer, -1 for test rows, and the writers' names."""
    path = folders.find("mnist", [_WRITERS])[_WRITERS]
    # Columns: class, HSF series, writer, index for the writer, NIST class, global index, duplicate, unused.
    table = _idx.read(path, (60_000, 8), _WRITERS_MD5)
    train = ~images.own_test
    if not np.array_equal(table[:, 0], images.y[train]):
        raise DataError(f"{path}: its classes are not those of MNIST's train rows; fetch it again")
    ids, writer = np.unique(table[:, 2], return_inverse=True)
    clients = np.full(len(images.y), -1)
    clients[train] = writer
    return clients, tuple(f"writer {number}" for number in ids)
