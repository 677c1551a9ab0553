"""benchmarks/gpu.py without a GPU: it says so, and what it would measure runs on a core."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("no GPU is here") and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("private", [False, True])
def test_what_it_measures_trains_every_client(gpu: Any, private: bool) -> None:
    rows = gpu.measured("small-cnn", private, (2, 8), "cpu", 1)
    assert [row["clients"] for row in rows] == [2, 8]
    assert all(row["stacked"] > 0 and row["one by one"] > 0 for row in rows)
    assert len(gpu.render(rows).splitlines()) == 3
