"""What a run's bits may depend on besides its scenario: packages, processor, threads, data and code."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch


def environment(data_digest: str, *, corpus: str, model: str) -> dict[str, Any]:
    """This machine and process, as `environment.json` keeps them.

    Args:
        data_digest: SHA-256 of the federation's rows.
        corpus: name of the data that were used; a Python caller may have put them in the scenario's place.
        model: where the model that was used is to be found; likewise.

    Returns:
        Plain values: Python and package versions, platform, processor, the vector instructions that torch
        uses, torch's threads, names of GPUs, the model, and the data's name and digest.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "model": model,
        "corpus": corpus,
        "data_sha256": data_digest,
        "packages": packages(),
    }


def processor() -> str:
    """The processor's model name, as Linux tells it, else what Python knows."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(errors="replace").splitlines() if listing.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def packages() -> dict[str, str]:
    """Version of every installed distribution, by name."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return dict(sorted((name.lower(), version) for name, version in found.items() if name))
