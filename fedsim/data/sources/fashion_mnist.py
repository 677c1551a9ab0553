"""Fashion-MNIST: 70,000 pieces of clothing of 28x28 pixels, ten classes.

Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", arXiv
1708.07747, 2017.
Licence: MIT.
"""

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources import _idx

_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def fashion_mnist(folders: Folders) -> Corpus:
    """Fashion-MNIST with its own test set of 10,000 rows.

    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking", 2017.

    Args:
        folders: where the folder `fashion-mnist` with the gzipped IDX files is looked for.

    Raises:
        DataError: a file is missing, damaged or not the expected one.
    """
    images = _idx.mnist_like(folders, "fashion-mnist", _MD5, mean=0.2860, std=0.3530)
    return Corpus(
        name="fashion-mnist",
        task="classification",
        x=images.x,
        y=images.y,
        classes=_CLASSES,
        preprocessing=images.preprocessing,
        own_test=images.own_test,
    )
