"""The contenders of the benchmarks do the same work, as plain torch would, and tables say what was measured."""

import json
import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import seeds
from fedsim.data.corpus import Folders
from fedsim.job import prepare
from fedsim.scenario import parse

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NETS = {"mlp": 199_210, "cnn": 1_663_370, "small-cnn": 10_330, "lstm": 237_824, "transformer": 138_240}


@cache
def script(name: str) -> Any:
    """A benchmark as a module; these import their neighbours by name."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def printed(*command: str, **environment: str) -> str:
    """What a benchmark prints, run as a user does."""
    process = subprocess.run(
        [sys.executable, *command],
        cwd=BENCHMARKS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(("name", "size"), NETS.items())
def test_nets_have_the_size_they_say(name: str, size: int) -> None:
    """Those of McMahan et al. 2017 have the published one."""
    assert sum(parameter.numel() for parameter in script("_workload").NETS[name]().parameters()) == size


@pytest.mark.parametrize("name", NETS)
def test_our_contender_trains_the_same_net_on_as_many_rows(name: str) -> None:
    rows, workload = script("_rows"), script("_workload")
    job = prepare(
        parse(script("_ours").scenario(name, 10, 2), Path(), "benchmark"), Folders.of(None, Path()), None, None
    )
    theirs, ours = workload.NETS[name](), job.build_model()
    assert [value.shape for value in ours.parameters()] == [value.shape for value in theirs.parameters()]
    x, y = workload.client_rows(3, name)
    assert job.federation.train_rows.tolist() == [len(x)] * rows.CLIENTS
    torch.manual_seed(1)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    problem = job.build_problem()
    loss = problem.mean_loss(ours(problem.inputs(x)), problem.targets(y))
    torch.testing.assert_close(workload.mean_loss(theirs(x), y), loss)
    assert len(job.federation.central["validation"].x) == pytest.approx(rows.MEASURED, rel=0.1)


def test_the_tight_epoch_is_plain_sgd() -> None:
    """torch.optim.SGD over the same batches gives the same parameters."""
    workload = script("_workload")
    net, plain = workload.Mlp(), workload.Mlp()
    plain.load_state_dict(net.state_dict())
    x, y = workload.client_rows(7)
    with seeds.scope(1, "benchmark"):
        workload.train(net, x, y)
    optimizer = torch.optim.SGD(plain.parameters(), lr=workload.LEARNING_RATE)
    with seeds.scope(1, "benchmark"):
        batches = np.split(torch.randperm(len(x)).numpy(), len(x) // workload.BATCH)
    for rows in batches:
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(plain(x[rows]), y[rows]))
        optimizer.step()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def timing(*per_client: float, first: float = 1.0, moved: float = 0.1) -> Any:
    return script("_contenders").Timing(list(per_client), [first], [moved])


def test_aims_are_ratios_of_medians() -> None:
    contenders, engine = script("_contenders"), script("engine")
    table = {
        contenders.Case("mlp", 100, 4): {
            "ours": timing(1.0, 2.0, 9.0, first=5.0),
            "ours compiled": timing(1.0),
            "two bare": timing(1.5),
            "stock": timing(60.0, 30.0, 40.0, first=10.0),
        }
    }
    found = {aim.text: aim.value for aim in engine.aims(table)}
    assert found == {
        "stock over ours, mlp, 100 a round": 20.0,
        "share of two bare loops, mlp, 100 a round": 0.75,
        "two bare loops over ours compiled, mlp, 100 a round": 1.5,
        "stock over ours, to the end of round 1, mlp": 2.0,
    }
    assert [engine.told(aim).split()[-1] for aim in engine.aims(table)] == ["yes"] * 4
    assert contenders.from_rows(json.loads(json.dumps(contenders.as_rows(table)))) == table


def test_contenders_whose_models_move_differently_do_other_work() -> None:
    contenders = script("_contenders")
    case = contenders.Case("mlp", 10, 4)
    contenders.check_alike({case: {"ours": timing(1.0, moved=0.1), "stock": timing(2.0, moved=0.2)}})
    for odd in (0.0, 0.3, float("nan")):
        with pytest.raises(SystemExit, match="have moved by"):
            contenders.check_alike({case: {"ours": timing(1.0, moved=0.1), "stock": timing(2.0, moved=odd)}})


def test_the_engines_table_has_the_bare_loops() -> None:
    text = printed("benchmarks/engine.py", "--quick", "--only", "bare,two bare")
    assert "mlp, 10 a round" in text
    assert len([line for line in text.splitlines() if line.endswith(" s")]) == 2


def test_a_quick_look_at_peers_installs_nothing(tmp_path: Path) -> None:
    text = printed("benchmarks/peers.py", "--quick", "--only", "pfl 1 thread", XDG_CACHE_HOME=str(tmp_path))
    assert "no peer was run" in text
    assert not list(tmp_path.rglob("bin"))


def test_a_profile_sees_a_clients_work() -> None:
    found = json.loads(
        printed("benchmarks/profile_round.py", "--one", '["mlp", 10, 3]', "0", PROFILED_ENGINE="inline").splitlines()[
            -1
        ]
    )
    assert 0 < found["busy"] < 1
    assert found["bytes_down"] == 4 * NETS["mlp"]
    assert any(name.startswith("parameters.py") for name in found["seen_ms"])


def test_the_page_takes_every_case_from_its_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contenders, performance = script("_contenders"), script("performance")
    names = performance.SECTIONS
    page = tmp_path / "performance.md"
    page.write_text("\n".join(f"before {name}\n<!-- {name} -->\nold\n<!-- /{name} -->" for name in names))
    monkeypatch.setattr(performance, "PAGE", page)
    monkeypatch.setattr(performance, "HERE", tmp_path)
    monkeypatch.setattr(contenders, "HERE", tmp_path)
    mlp, cnn = contenders.Case("mlp", 100, 6), contenders.Case("cnn", 10, 6)
    for day, table in (
        (1, {mlp: {"ours": timing(7.77)}, cnn: {"ours": timing(8.88)}}),
        (2, {mlp: {"ours": timing(5.55)}}),
    ):
        path = contenders.write("engine", {"timings": contenders.as_rows(table)})
        path.rename(path.with_name(f"engine-2026010{day}-000000.json"))
    performance.main()
    text = page.read_text()
    assert "5.55" in text and "8.88" in text and "7.77" not in text and "2026-01-02" in text
    assert text.count("old") == len(names) - 1
    assert "before scale\n<!-- scale -->\nold" in text
    assert (tmp_path / "performance-engine.svg").read_text().count("<svg") == 1


def flower_app(name: str) -> Any:
    """A module of the Flower app that is run under two engines."""
    sys.path.insert(0, str(BENCHMARKS / "flower_app"))
    try:
        return import_module(f"images.{name}")
    finally:
        sys.path.remove(str(BENCHMARKS / "flower_app"))


def test_both_bodies_of_the_flower_app_are_an_epoch_of_the_same_descent() -> None:
    """They draw different orders of the same rows, so they end nearly where plain descent over those rows does."""
    task = flower_app("task")
    start = task.Net()
    state = {name: value.clone() for name, value in start.state_dict().items()}
    assert sum(value.numel() for value in state.values()) == NETS["mlp"]
    x, y = task.client_rows(3)
    plain = task.Net()
    plain.load_state_dict(state)
    script("_workload").train(plain, x, y)

    def moved(net: nn.Module) -> torch.Tensor:
        return torch.cat([(net.state_dict()[name] - value).flatten() for name, value in state.items()])

    for body in (task.tight, task.template):
        torch.testing.assert_close(
            moved(body(state, x, y)), moved(plain), rtol=0.0, atol=0.1 * float(moved(plain).abs().max())
        )
    assert not moved(task.nothing(state, x, y)).any()


def test_ratios_of_two_engines_are_of_medians() -> None:
    contenders, apps = script("_contenders"), script("flower_apps")
    case = contenders.Case("tight", 100, 4)
    ours, stock = timing(1.0, 2.0, 9.0, first=5.0), timing(60.0, 30.0, 10.0, first=10.0)
    *_, line = apps.ratios({case: {"ours": ours, "bare": timing(1.5), "stock": stock}})
    assert line.split() == ["tight,", "100", "a", "round", "15.0x", "2.0x", "20.0x", "at", "least", "8:", "yes"]


@pytest.mark.proof
@pytest.mark.parametrize(
    "name", ["engine.py", "flower_apps.py", "peers.py", "profile_round.py", "private_step.py", "scale.py"]
)
def test_every_contender_runs(name: str) -> None:
    """A smoke test: each ends by itself and prints its legend or a table of more than a line."""
    assert len(printed(f"benchmarks/{name}", "--quick").splitlines()) > 3
