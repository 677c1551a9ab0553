"""What every test stands on: one torch thread, the folder of data sets, and one Ray for all that need it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

from fedsim import signals

if TYPE_CHECKING:
    from fedsim.engine import Engine
    from fedsim.engine.ray import RayEngine

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # a busy machine fails no test


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Ctrl-C interrupts, also where tests run in the background; the command, called here, leaves handlers behind."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signals._early.clear()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data sets that `FEDSIM_DATA` names."""
    named = os.environ.get("FEDSIM_DATA")
    if not named:
        pytest.skip("FEDSIM_DATA is not set: it names the folder with mnist/, shakespeare/ and other data sets")
    return Path(named)


@pytest.fixture(scope="session")
def ray_engine() -> "Iterator[RayEngine]":
    """Three Ray workers, started once for the session; `small.with_workers` gives some of them."""
    from fedsim.engine.ray import RayEngine

    engine = RayEngine(3)
    yield engine
    engine.close()


@pytest.fixture(params=["inline", "ray"])
def engine(request: pytest.FixtureRequest) -> "Engine":
    """One process, and the session's Ray."""
    from fedsim.engine.inline import InlineEngine

    if request.param == "inline":
        return InlineEngine()
    shared: RayEngine = request.getfixturevalue("ray_engine")
    return shared
