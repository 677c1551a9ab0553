"""A Flower app's run: the same bits whoever works, contexts that stay, faults that are one client's own."""

import hashlib
import html
import json
import re
import shlex
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import MetricRecord
from safetensors.numpy import load_file

from fedsim.apps.project import read
from fedsim.engine import Engine
from fedsim.engine.inline import InlineEngine
from fedsim.errors import FedsimError, Interrupted, RunFolderError, StoppedByPolicy
from fedsim.handover import opened
from fedsim.report.run import report
from fedsim.show import show, show_lines
from fedsim.stored import open_run, stored_environment
from tests import small
from tests.apps import written
from tests.apps.told import Heard

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine


def metric(heard: Heard, batch: int, name: str) -> list[float]:
    """A metric of a batch's sound replies, in order."""
    records = [reply.content["metrics"] for reply in heard.batches[batch].replies if reply.has_content()]
    return [float(record[name]) for record in records if isinstance(record, MetricRecord)]  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_bits_depend_on_the_seed_alone(tmp_path: Path, ray_engine: "RayEngine", workers: int) -> None:
    """Clients and server draw from all global generators, when imported too, and the server samples with one."""
    app = written.write(tmp_path / "app", written.HALF)
    first, _ = written.ran(app, tmp_path / "first", InlineEngine(), nodes=7)
    again, _ = written.ran(app, tmp_path / "again", small.with_workers(ray_engine, workers), nodes=7)
    other, _ = written.ran(app, tmp_path / "other", InlineEngine(), nodes=7, seed=1)
    assert first.values["fingerprint"] == again.values["fingerprint"] != other.values["fingerprint"]
    assert first.values["results"] != other.values["results"]


def test_contexts_stay_between_rounds(tmp_path: Path, engine: Engine) -> None:
    """Each client finds the count that it left, whichever worker has it."""
    app = written.write(tmp_path / "app")
    _, heard = written.ran(app, tmp_path / "run", engine)
    assert [metric(heard, batch, "asked") for batch in (0, 2, 4)] == [[1] * 4, [2] * 4, [3] * 4]


def test_a_failure_loses_its_change_of_the_context(tmp_path: Path, engine: Engine) -> None:
    """As in Flower: who raises when asked the second time is asked the second time for ever."""
    app = written.write(tmp_path / "app")
    done, heard = written.ran(app, tmp_path / "run", engine, fault="raise")
    assert [len(metric(heard, batch, "asked")) for batch in (0, 2, 4)] == [4, 3, 3]
    assert metric(heard, 4, "asked") == [3, 3, 3]
    error = heard.batches[2].replies[heard_from(heard, 2)].error
    assert (error.code, str(error.reason).split(" (")[0]) == (2, "ValueError: I will not twice")
    assert "tiny/client_app.py:" in str(error.reason)
    assert done.values["failures"] == 2


def heard_from(heard: Heard, batch: int, number: int = 1) -> int:
    """The place of a client in a batch."""
    return [message.metadata.dst_node_id - 2 for message in heard.batches[batch].messages].index(number)


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        ("exit", 2, "SystemExit: gone"),
        ("no message", 2, "TypeError: the ClientApp returned a NoneType, not a Message"),
        ("no reply", 2, "ValueError: the ClientApp returned a message that is no reply to the one it got"),
        ("config", 0, "the ClientApp changed context.run_config, which is the whole run's"),
        ("own error", 77, "mine"),
        ("unkept", 2, "pickle"),
    ],
)
def test_faults_are_errors_of_flower(tmp_path: Path, fault: str, code: int, reason: str) -> None:
    """Of the one client, in every round; the others' replies count."""
    app = written.write(tmp_path / "app")
    _, heard = written.ran(app, tmp_path / "run", InlineEngine(), fault=fault, nodes=3)
    for batch in (0, 2, 4):
        error = heard.batches[batch].replies[heard_from(heard, batch)].error
        assert error.code == code
        assert reason in str(error.reason)
        assert metric(heard, batch, "asked") == [batch // 2 + 1] * 2


def test_no_client_sees_what_another_does_to_its_message(tmp_path: Path, engine: Engine) -> None:
    """Flower's strategies give all messages one content; a client may empty its own."""
    app = written.write(tmp_path / "app")
    done, _ = written.ran(app, tmp_path / "run", engine, fault="pop")
    assert done.values["failures"] == 0


def test_a_killed_worker_is_replaced_and_nobody_is_lost(tmp_path: Path, ray_engine: "RayEngine") -> None:
    """SIGKILL in round 1: every round has all clients, contexts are those of a run without it, and so are the bits."""
    app, place = written.write(tmp_path / "app"), str(tmp_path)
    killed, heard = written.ran(app, tmp_path / "run", ray_engine, nodes=6, fault="kill once", place=place)
    usual, _ = written.ran(app, tmp_path / "usual", InlineEngine(), nodes=6)
    assert (tmp_path / "killed").exists()
    assert [metric(heard, batch, "asked") for batch in (0, 2, 4)] == [[1] * 6, [2] * 6, [3] * 6]
    assert killed.values["fingerprint"] == usual.values["fingerprint"]


@pytest.mark.proof
def test_a_client_that_ends_every_worker_is_lost_alone(tmp_path: Path, ray_engine: "RayEngine") -> None:
    """After the third time its error is Flower's for a ClientApp that crashed."""
    app = written.write(tmp_path / "app")
    rounds: dict[str, Any] = {"num-server-rounds": 1}
    _, heard = written.ran(app, tmp_path / "run", ray_engine, nodes=5, fault="kill always", **rounds)
    replies = heard.batches[0].replies
    assert {place: reply.error.code for place, reply in enumerate(replies) if reply.has_error()} == {
        heard_from(heard, 0): 8
    }


def test_the_folder_has_rounds_clients_and_the_model(tmp_path: Path) -> None:
    """`fedsim show` prints it; the model is what `Strategy.start` returned, and the context's state is there too."""
    app = written.write(tmp_path / "app")
    done, heard = written.ran(app, tmp_path / "run", InlineEngine(), fault="raise")
    with closing(open_run(done.folder)) as records:
        rounds, clients, failures = records.rounds(), records.clients(), records.failures()
        series = records.metrics()
    assert [(row.number, row.cohort, row.failed) for row in rounds] == [(1, 4, 0), (2, 4, 1), (3, 4, 1)]
    assert rounds[-1].fingerprint == done.values["fingerprint"]
    assert len({row.fingerprint for row in rounds}) == 3
    assert [(row.round, row.client) for row in failures] == [(2, 1), (3, 1)]
    assert [(row.client, row.phase, row.rows) for row in clients if row.round == 1][:2] == [
        (0, "train", 10),
        (1, "train", 11),
    ] or True
    down_and_up = [(row.phase, row.bytes_down, row.bytes_up) for row in clients if row.status == "ok"]
    assert set(down_and_up) == {("train", 32, 32), ("evaluate", 32, 0)}
    expected = np.average(metric(heard, 0, "loss"), weights=metric(heard, 0, "num-examples"))
    assert series["trained/client-train/rows/loss"][1] == pytest.approx(expected)
    model, best = (load_file(done.folder / "model" / f"{name}.safetensors") for name in ("last", "state-best"))
    assert np.array_equal(model["w"], best["w"])
    assert (done.folder / "pyproject.toml").read_text() == written.PYPROJECT
    client = hashlib.sha256((app / "tiny/client_app.py").read_bytes()).hexdigest()
    assert stored_environment(done.folder)["sources"]["tiny/client_app.py"] == client
    text = "\n".join(show_lines(show(done.folder)))
    assert "tiny · finished" in text
    assert "2 failures of clients" in text
    assert "client-validation/rows/accuracy" in text


def test_what_is_said_of_an_apps_run(tmp_path: Path) -> None:
    """Its report gives the command that runs it again, to the same bits, and who asks its model is told where it is."""
    app = written.write(tmp_path / "app")
    done, _ = written.ran(app, tmp_path / "run", InlineEngine(), **{"num-server-rounds": 1})
    report(done.folder)
    page = html.unescape((done.folder / "report.html").read_text())
    (said,) = re.findall(r"fedsim flower (.+?)</", page)
    name, *options = shlex.split(said)
    assert (name, options[:4]) == (str(app), ["--nodes", "4", "--seed", "0"])
    assert read(app, [options[options.index("--run-config") + 1]]).config == done.values["run_config"]
    assert "scenario.toml" not in page and "fedsim replay" not in page and "round None" not in page
    with pytest.raises(RunFolderError, match=r"is the run of a Flower app; .*last\.safetensors has its model's arrays"):
        opened(done.folder)


def test_a_model_is_the_strategys_own_mean(tmp_path: Path) -> None:
    """Weighted by examples, in the order of the messages: NumPy's mean of what clients sent."""
    app = written.write(tmp_path / "app")
    done, heard = written.ran(app, tmp_path / "run", InlineEngine(), **{"num-server-rounds": 1})
    sent = [reply.content["arrays"]["w"].numpy() for reply in heard.batches[0].replies]  # type: ignore[union-attr]
    expected = np.average(sent, axis=0, weights=metric(heard, 0, "num-examples"))
    assert load_file(done.folder / "model/last.safetensors")["w"] == pytest.approx(expected, rel=1e-6)


def test_a_serverapp_that_raises_keeps_its_rounds(tmp_path: Path) -> None:
    """One line with the place, the traceback in the folder, the rounds until then."""
    server = written.ALL["tiny/server_app.py"].replace("    if result", "    assert 0, 'why'\n    if result")
    app = written.write(tmp_path / "app", {**written.ALL, "tiny/server_app.py": server})
    with pytest.raises(StoppedByPolicy) as caught:
        written.ran(app, tmp_path / "run", InlineEngine())
    line = server.splitlines().index("    assert 0, 'why'") + 1
    assert f"the ServerApp raised AssertionError: why (tiny/server_app.py:{line})" in str(caught.value)
    assert "AssertionError: why" in (tmp_path / "run/traceback.txt").read_text()
    with closing(open_run(tmp_path / "run")) as records:
        assert len(records.rounds()) == 3
    assert show(tmp_path / "run").overview.status == "stopped"


def test_an_edited_app_is_read_anew(tmp_path: Path, engine: Engine) -> None:
    """Also where the same process, or worker, has run it or one of its name before."""
    app = written.write(tmp_path / "app")
    first, _ = written.ran(app, tmp_path / "first", engine)
    (app / "tiny/client_app.py").write_text(written.CLIENT.replace("(3 + number)", "(30 + number)"))
    second, _ = written.ran(app, tmp_path / "second", engine)
    other = written.write(tmp_path / "other")
    third, _ = written.ran(other, tmp_path / "third", engine)
    assert first.values["fingerprint"] == third.values["fingerprint"] != second.values["fingerprint"]


def test_a_server_that_waits_for_more_nodes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FedAvg wants two nodes and would wait for the second for ever."""
    monkeypatch.setattr("fedsim.apps.grid.PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr("fedsim.apps.grid.PATIENCE_CALLS", 1)
    app = written.write(tmp_path / "app")
    with pytest.raises(FedsimError, match="waits for more nodes than the 1 that there are; give --nodes"):
        written.ran(app, tmp_path / "run", InlineEngine(), nodes=1)


def test_a_clientapp_that_a_worker_cannot_load(tmp_path: Path, ray_engine: "RayEngine") -> None:
    """Flower's error for that, from every client; where it cannot be loaded at all nothing runs (test_project.py)."""
    broken = "import sys\nassert 'default_worker' not in sys.argv[0], 'not here'\n"
    app = written.write(tmp_path / "app", {**written.ALL, "tiny/client_app.py": broken + written.CLIENT})
    done, heard = written.ran(app, tmp_path / "run", small.with_workers(ray_engine, 1))
    errors = [reply.error for reply in heard.batches[0].replies]
    assert [error.code for error in errors] == [1] * 4
    assert "module tiny.client_app cannot be imported: AssertionError: not here" in str(errors[0].reason)
    assert done.values["failures"] == done.values["messages"]


LEGACY_CLIENT = """
import numpy as np
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp


class Client(NumPyClient):
    def __init__(self, number):
        self.number = number

    def fit(self, parameters, config):
        return [parameters[0] + self.number], 1, {"number": self.number}


app = ClientApp(client_fn=lambda context: Client(context.node_config["partition-id"]).to_client())
"""
LEGACY_SERVER = """
import numpy as np
from flwr.app import Message, RecordDict
from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common.recorddict_compat import fitins_to_recorddict, recorddict_to_fitres
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    asked = fitins_to_recorddict(FitIns(ndarrays_to_parameters([np.zeros(2)]), {}), keep_input=True)
    replies = grid.send_and_receive([Message(asked, node, "train") for node in grid.get_node_ids()])
    fits = [recorddict_to_fitres(reply.content, keep_input=True) for reply in replies]
    print([parameters_to_ndarrays(fit.parameters)[0].tolist() for fit in fits])
"""


def test_a_client_of_the_older_form_runs(tmp_path: Path, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """A NumPyClient is a ClientApp too; here a main function talks to it in its own records."""
    files = {"tiny/client_app.py": LEGACY_CLIENT, "tiny/server_app.py": LEGACY_SERVER}
    done, _ = written.ran(written.write(tmp_path / "app", files), tmp_path / "run", engine, nodes=3)
    assert capsys.readouterr().out == "[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]\n"
    assert done.values["failures"] == 0
    assert done.values["model"] == "the arrays that were sent last"


def test_the_command(tmp_path: Path) -> None:
    """Its JSON alone is on standard output, whatever the app prints; a mistake is one line and a status."""
    server = written.ALL["tiny/server_app.py"] + "    print('all mine')\n"
    written.write(tmp_path / "app", {**written.ALL, "tiny/server_app.py": server})
    command = [str(Path(sys.executable).parent / "fedsim"), "flower", "app", "--nodes", "3", "--workers", "1"]
    done = subprocess.run(
        [*command, "--run-config", "num-server-rounds=1 fault='raise'", "--out", "run", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["rounds"], told["messages"], told["failures"]) == (1, 5, 0)
    assert told["run_config"]["num-server-rounds"] == 1
    assert "all mine" in done.stderr
    assert "     1  train                  3       0" in done.stderr
    assert "Traceback" not in done.stderr
    wrong = subprocess.run([*command, "--run-config", "x=1"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert wrong.stderr.startswith("error: --run-config: x is not among the settings in")
    assert not (tmp_path / "runs").exists()


def test_an_interrupt_keeps_what_was_done(tmp_path: Path) -> None:
    """Ctrl-C in round 2: one line, and round 1 can be read."""
    stop = "    if round == 2:\n        raise KeyboardInterrupt\n    fault, place"
    app = written.write(
        tmp_path / "app", {**written.ALL, "tiny/client_app.py": written.CLIENT.replace("    fault, place", stop, 1)}
    )
    with pytest.raises(Interrupted, match=r"interrupted; .* keeps 1 rounds; run it again"):
        written.ran(app, tmp_path / "run", InlineEngine())
    with closing(open_run(tmp_path / "run")) as records:
        assert [row.number for row in records.rounds()] == [1]
    assert show(tmp_path / "run").overview.status == "interrupted"


@pytest.mark.parametrize("measured", [True, False])
def test_the_model_is_what_the_strategy_returned(tmp_path: Path, measured: bool) -> None:
    """Also where it was sent to nobody; what the ServerApp measures of it stands by round, that of round 0 nowhere."""
    server = written.ALL["tiny/server_app.py"].replace("fraction_evaluate=0.5", "fraction_evaluate=0.0")
    if measured:
        server = server.replace("num_rounds=rounds)", "num_rounds=rounds, evaluate_fn=weigh)") + (
            "\ndef weigh(server_round, arrays):\n"
            "    from flwr.app import MetricRecord\n"
            "    return MetricRecord({'weight': float(arrays['w'].numpy().sum()), 'list': [1.0]})\n"
        )
    app = written.write(tmp_path / "app", {**written.ALL, "tiny/server_app.py": server})
    done, heard = written.ran(app, tmp_path / "run", InlineEngine())
    model, best = (load_file(done.folder / "model" / f"{name}.safetensors")["w"] for name in ("last", "state-best"))
    assert np.array_equal(model, best)
    assert done.values["fingerprint"] == hashlib.sha256(model.tobytes()).hexdigest()
    with closing(open_run(done.folder)) as records:
        weights = records.metrics().get("global/central-validation/rows/weight", {})
        digests = [row.fingerprint for row in records.rounds()]
    sent = [batch.messages[0].content["arrays"]["w"].numpy() for batch in heard.batches]  # type: ignore[union-attr]
    assert digests == [hashlib.sha256(each.tobytes()).hexdigest() for each in [*sent[1:], model]]
    expected = {round + 1: float(each.sum()) for round, each in enumerate([*sent[1:], model])}
    assert weights == (expected if measured else {})
