"""What a run's bits may depend on besides its scenario: packages, processor, threads, data and code."""

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fedsim.machine import processor_lines

DECISIVE = {
    "data_sha256": "the data",
    "model": "the model",
    "loss": "the loss",
    "metrics": "the metrics",
    "transform": "the transform",
    "sources": "own files",
}
"""Without these it would be another run."""
NUMERICAL = ("fedsim", "torch", "numpy", "scipy", "scikit-learn", "opacus", "flwr", "ray")
"""Packages on whose versions bits may depend."""


def environment(
    data_digest: str,
    *,
    corpus: str,
    data: str,
    model: str,
    scenario_folder: Path,
    noise: tuple[float, int | None] | None = None,
    compiled: str | None = None,
    own: Mapping[str, Any] | None = None,
    origins: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """This machine and process, as `environment.json` keeps them.

    Args:
        data_digest: SHA-256 of the federation's rows.
        corpus: name of the data that were used.
        data: where they came from: the scenario's word for it, or a Python caller's function.
        model: where the model that was used is to be found, likewise.
        scenario_folder: against which the scenario names files.
        noise: noise multiplier and most participations that were solved for privacy, if it was asked for.
        compiled: SHA-256 of the compiled local step, if it was asked for.
        own: where the user's loss, metrics and transform are to be found.
        origins: for what is the user's own, the file in `sources/` in which it was written.

    Returns:
        Plain values: Python and package versions, platform, processor, the vector instructions that torch
        uses, torch's threads, names of GPUs, the model, and the data's name and digest.
    """
    return {
        **numerics(),
        "platform": platform.platform(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "model": model,
        "data": data,
        "corpus": corpus,
        "data_sha256": data_digest,
        "scenario_folder": str(scenario_folder.resolve()),
        "noise": list(noise) if noise is not None else None,
        "compiled": compiled,
        **(own or {}),
        "origins": dict(origins or {}),
    }


def numerics() -> dict[str, Any]:
    """What bits depend on at one place: Python, processor, vector instructions and packages."""
    return {
        "python": platform.python_version(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "packages": packages(),
    }


def decisive_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What makes it another run, each in words."""
    for key, words in DECISIVE.items():
        before, after = then.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            for name in sorted({*before, *after}):
                if before.get(name) != after.get(name):
                    yield f"{words}: {name} {'has changed' if name in after else 'is not there'}"
        elif before != after:
            yield f"{words}: {_short(before)} then, {_short(after)} now"


def numerical_differences(
    then: Mapping[str, Any], now: Mapping[str, Any], names: tuple[str, str] = ("then", "now")
) -> Iterator[str]:
    """What may change a result's last bits, each in words; `names` are those of the two."""
    first, second = names
    for key in ("python", "processor", "cpu_capability", "compiled"):
        if then.get(key) != now.get(key):
            yield f"{key} {_short(then.get(key))} {first}, {_short(now.get(key))} {second}"
    before, after = then.get("packages") or {}, now.get("packages") or {}
    for name in NUMERICAL:
        if before.get(name) != after.get(name):
            yield f"{name} {before.get(name)} {first}, {after.get(name)} {second}"


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def processor() -> str:
    """The processor's model name, as Linux tells it, else what Python knows."""
    names = (line.partition(":")[2].strip() for line in processor_lines() if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


@cache
def packages() -> dict[str, str]:
    """Version of every installed distribution, by name."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return dict(sorted((name.lower(), version) for name, version in found.items() if name))
