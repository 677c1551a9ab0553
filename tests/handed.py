"""Runs that tests of handing a model over share: one of each kind of rows and task, and their raw rows as files."""

import csv
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fedsim.job import Job
from fedsim.summary import Result
from tests import small

NET = '''
"""A net with all that a file of weights can hold: tied and frozen parameters, buffers that are kept and not kept."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 8):
        super().__init__()
        self.classes = "my own"
        self.first = nn.Linear(shape[-1] * shape[-2], width)
        self.again = self.first
        self.norm = nn.BatchNorm1d(width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.last = nn.Linear(width, classes)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, x):
        return self.last(self.frozen(self.norm(self.again(x.flatten(1)))).relu() * self.scale)


def brighter(x):
    return 2 * x
'''

TABLE_SCHEMA = {
    "age": {"kind": "number", "unit": "years", "range": [0, 120]},
    "dose": {"kind": "number", "missing": ["?"], "rule": "indicator"},
    "sex": {"kind": "category", "categories": ["f", "m"]},
    "site": {"kind": "client"},
    "ill": {"kind": "label", "categories": ["no", "yes"]},
}


class Made(NamedTuple):
    """A run.

    Attributes:
        job, result: of it.
        folder: the run's.
        place: where its scenario and data lie.
    """

    job: Job
    result: Result
    folder: Path
    place: Path


def _table(place: Path, schema: Mapping[str, Any], rows: int = 120) -> None:
    """Patients of three sites; a few doses are missing."""
    rng = np.random.default_rng(0)
    with (place / "patients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(list(schema))
        for row in range(rows):
            age, dose, sex = rng.integers(1, 100), rng.normal(5, 2), rng.choice(["f", "m"])
            label = {"ill": "yes" if age > 50 else "no", "score": f"{age / 10 + dose:.3f}"}
            values = {"age": age, "dose": "?" if row % 7 == 0 else f"{dose:.2f}", "sex": sex, "site": f"site-{row % 3}"}
            writer.writerow([{**values, **label}[name] for name in schema])


def _classified(place: Path) -> dict[str, Any]:
    _table(place, TABLE_SCHEMA)
    return {"name": "csv", "path": "patients.csv", "schema": TABLE_SCHEMA, "partition": {"kind": "natural"}}


def _numbers(place: Path) -> dict[str, Any]:
    schema = {name: column for name, column in TABLE_SCHEMA.items() if name != "ill"}
    schema["score"] = {"kind": "label", "unit": "points", "range": [-10, 40], "mean": 10.0, "std": 5.0}
    _table(place, schema)
    table = {"name": "csv", "path": "patients.csv", "schema": schema, "task": "regression"}
    return {**table, "partition": {"kind": "natural"}}


def _own(place: Path) -> dict[str, Any]:
    (place / "net.py").write_text(NET)
    return {**small.SMALL["data"], "transform": "net.py:brighter"}


def _texts(place: Path) -> dict[str, Any]:
    """Lines of a class and some words of it."""
    rng = np.random.default_rng(0)
    kinds = {"good": ["fine", "warm", "kind"], "bad": ["cold", "awful", "late"]}
    lines = [f"{kind}\t{' '.join(rng.choice(kinds[kind], 5))}" for kind in rng.choice(list(kinds), 80)]
    (place / "texts.tsv").write_text("\n".join(lines))
    table = {"name": "labelled-text", "path": "texts.tsv", "classes": ["bad", "good"], "buckets": 64, "length": 8}
    return {**table, "partition": {"kind": "iid", "clients": 3}}


def _pictures(place: Path) -> dict[str, Any]:
    """Small pictures of one hue a class, in folders."""
    rng = np.random.default_rng(0)
    for number in range(60):
        hue = ("blue", "red")[number % 2]
        (place / "pictures" / hue).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (6, 5, 3)).astype(np.uint8)
        pixels[..., 0 if hue == "red" else 2] += 120
        Image.fromarray(pixels).save(place / "pictures" / hue / f"{number:02}.png")
    table = {"name": "images", "path": "pictures", "height": 6, "width": 5}
    return {**table, "partition": {"kind": "iid", "clients": 3}}


def _sounds(place: Path) -> dict[str, Any]:
    """High and low tones, 1/5 s each, in folders."""
    rng = np.random.default_rng(0)
    for number in range(60):
        pitch = ("high", "low")[number % 2]
        (place / "sounds" / pitch).mkdir(parents=True, exist_ok=True)
        tone = np.sin(np.arange(160) * (2.0 if pitch == "high" else 0.3)) + rng.normal(0, 0.1, 160)
        with wave.open(str(place / "sounds" / pitch / f"{number:02}.wav"), "wb") as file:
            file.setparams((1, 2, 800, 160, "NONE", ""))
            file.writeframes((tone * 10_000).astype("<i2").tobytes())
    table = {"name": "audio", "path": "sounds", "rate": 800, "seconds": 0.2, "window": 16, "hop": 8, "bands": 8}
    return {**table, "partition": {"kind": "iid", "clients": 3}}


_TEXT = {"name": "python-source", "max_bytes": 6_000, "window": 20, "partition": {"kind": "iid", "clients": 3}}
KINDS: Mapping[str, tuple[Callable[[Path], dict[str, Any]], small.Changes]] = {
    "pixels": (lambda place: small.SMALL["data"], {}),
    "convolved pixels": (lambda place: small.SMALL["data"], {"model": {"name": "cnn", "preset": "small"}}),
    "own net": (_own, {"model": {"name": "net.py:Net", "width": 6}}),
    "table": (_classified, {"model": {"name": "mlp", "hidden": [4]}}),
    "numbers": (_numbers, {"model": {"name": "mlp", "hidden": [4]}, "train.learning_rate": 0.02}),
    "words": (_texts, {"model": {"name": "lstm", "width": 8}}),
    "pictures": (_pictures, {"model": {"name": "mlp", "hidden": [4]}}),
    "sounds": (_sounds, {"model": {"name": "mlp", "hidden": [4]}}),
    "bytes": (lambda place: _TEXT, {"model": {"name": "lstm", "width": 8}, "train.learning_rate": 0.02}),
}
"""Of every kind what `data` is, and other keys."""


def made(kind: str, place: Path, changes: small.Changes = small.NOTHING) -> Made:
    """A short run of a kind."""
    data, keys = KINDS[kind]
    job = small.job({"rounds": 2, "data": data(place), **keys, **changes}, place)
    return Made(job, small.run(job, place / "run"), place / "run", place)
