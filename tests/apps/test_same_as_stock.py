"""Unmodified Flower apps come to the same under Flower's own simulation and under ours.

In each of the apps everybody takes part in each round, and all draws but the mechanism's noise have seeds of the app's
own; so results may differ by nothing but the order in which Flower's server adds replies.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.apps.running import run
from fedsim.engine.ray import RayEngine
from fedsim.new import create_app
from tests import small
from tests.apps.superlink import superlink

NODES = 4
ROOT = Path(__file__).resolve().parents[2]
SAMPLES = Path(__file__).parent / "samples"
APPS = ["pytorch", "mods", "state"]
Results = dict[str, Any]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What every app comes to under Flower's own simulation."""
    results = tmp_path_factory.mktemp("stock")
    command = [sys.executable, "-m", "tests.apps.stock", str(NODES), str(results)]
    done = subprocess.run(
        [*command, *(str(SAMPLES / name) for name in APPS)],
        cwd=ROOT,
        env={**os.environ, "FLWR_HOME": str(results / "home")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((results / f"{name}.json").read_text()) for name in APPS}


@pytest.fixture(scope="module")
def ours(ray_engine: RayEngine, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Results]:
    """What an app comes to under our engine."""
    folder = tmp_path_factory.mktemp("ours")
    done: dict[tuple[str, ...], Results] = {}

    def result(name: str, *settings: str) -> Results:
        if (name, *settings) not in done:
            place = folder / f"{len(done)}"
            result = f"result='{place}.json'"
            run(
                SAMPLES / name,
                nodes=NODES,
                overrides=[result, *settings],
                out=place,
                engine=small.with_workers(ray_engine, 2),
            )
            done[name, *settings] = json.loads(place.with_suffix(".json").read_text())
        return done[name, *settings]

    return result


def numbers(found: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a result and where they stand."""
    if isinstance(found, dict):
        for name, value in found.items():
            yield from numbers(value, f"{place}/{name}")
    elif isinstance(found, list):
        for number, value in enumerate(found):
            yield from numbers(value, f"{place}/{number}")
    else:
        yield place, found


def assert_same(one: Results, other: Results) -> None:
    """Equal names, and values equal but for the order of a few sums of float32."""
    mine, theirs = dict(numbers(one)), dict(numbers(other))
    assert mine.keys() == theirs.keys()
    np.testing.assert_allclose(
        [mine[place] for place in sorted(mine)], [theirs[place] for place in sorted(mine)], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", APPS)
def test_an_app_comes_to_the_same(name: str, stock: Results, ours: Callable[..., Results]) -> None:
    assert_same(ours(name), stock[name])


def test_the_comparison_sees_another_rate(stock: Results, ours: Callable[..., Results]) -> None:
    """Two per cent of the learning rate are far beyond what it lets pass."""
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same(ours("mods", "learning-rate=0.98"), stock["mods"])


def test_contexts_live_from_the_first_message_to_the_last(ours: Callable[..., Results]) -> None:
    """A query, two rounds of train and evaluate, and then the head: five messages, all ended, before the sixth."""
    counts = [
        tuple(head[f"{name}-before"] for name in ("begun", "ended", "trained"))
        for head in ours("state")["heads"].values()
    ]
    assert counts == [(6, 5, 2)] * NODES


def test_mods_count_every_message(ours: Callable[..., Results]) -> None:
    """The app's mod is around train and evaluate, and its state is one: 1, 2, 3, 4."""
    found = ours("mods")
    assert [found[kind][round]["messages"] for round in "12" for kind in ("train", "evaluate")] == [1, 2, 3, 4]


def test_what_the_server_draws_has_the_runs_seed(ours: Callable[..., Results]) -> None:
    """Flower's wrapper draws its noise from NumPy's global generator."""
    noisy = ours("mods", "noise-multiplier=0.5")
    assert noisy["arrays"] == ours("mods", "noise-multiplier=5e-1")["arrays"]
    assert noisy["arrays"] != ours("mods")["arrays"]


@pytest.mark.proof
def test_flwr_run_comes_to_the_same(tmp_path: Path, ours: Callable[..., Results]) -> None:
    """By Flower's command and a SuperLink, as its users run apps."""
    nodes = f"num-supernodes={NODES} client-resources-num-cpus=1"
    with superlink(tmp_path / "home") as link:
        for name in APPS:
            place = tmp_path / f"{name}.json"
            settings = ["--federation-config", nodes, "--run-config", f"result='{place}'"]
            link.flwr("run", SAMPLES / name, "--stream", *settings, cwd=tmp_path)
            assert_same(ours(name), json.loads(place.read_text()))


def test_the_app_that_new_writes_learns(ray_engine: RayEngine, tmp_path: Path) -> None:
    """`fedsim new --flower`, then `fedsim flower`: digits are told apart by far more than chance."""
    create_app(tmp_path / "trial")
    done = run(tmp_path / "trial", nodes=5, out=tmp_path / "run", engine=small.with_workers(ray_engine, 2))
    assert done.values["failures"] == 0
    assert done.values["metrics"]["global/central-validation/rows/accuracy"] > 0.5
