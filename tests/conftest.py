"""What every test stands on: one torch thread, and the folder of data sets."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data sets that `FEDSIM_DATA` names."""
    named = os.environ.get("FEDSIM_DATA")
    if not named:
        pytest.skip("FEDSIM_DATA is not set: it names the folder with mnist/, shakespeare/ and other data sets")
    return Path(named)
