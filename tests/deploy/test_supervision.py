"""A program that ends is started again, with growing pauses and not for ever; Flower's names that we lean on."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from fedsim.deploy import _control
from fedsim.deploy.children import Child

PROGRAM = """
import sys, time
from pathlib import Path
from fedsim.deploy import server
from fedsim.deploy.children import Child
from fedsim.errors import DeployError

folder, answers = Path(sys.argv[1]), sys.argv[2] == "answers"
server._MOST_ENDS = 2
begun = []

def start():
    begun.append(time.monotonic())
    return Child("it", ["sh", "-c", "echo out of order; sleep 0.3; exit 3"], {}, folder / "it.log")

program = server.Program("it", start, lambda: answers, "nowhere")
try:
    while True:
        program.tend(print, ())
        time.sleep(0.02)
except DeployError as error:
    print(error)
print(*(round(later - earlier) for earlier, later in zip(begun, begun[1:])))
"""


def supervised(folder: Path, how: str) -> list[str]:
    """What is said of a program that ends with status 3 after 0.3 s."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder, how], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_restarts_are_bounded(tmp_path: Path) -> None:
    """Pauses double; in the end its own last words are told, for nobody would look into the log."""
    last = f"{tmp_path / 'it.log'} says: out of order"
    assert supervised(tmp_path, "answers") == [
        "it answers on nowhere",
        "it ended with status 3; it is started again in 1 s",
        "it answers on nowhere",
        "it ended with status 3; it is started again in 2 s",
        "it answers on nowhere",
        f"it ended with status 3 and is not started again; {last}",
        "1 2",
    ]


def test_what_never_answered_is_not_started_again(tmp_path: Path) -> None:
    """Its settings are wrong; it would end again for the same reason."""
    last = f"{tmp_path / 'it.log'} says: out of order"
    assert supervised(tmp_path, "silent") == [f"it ended with status 3 and is not started again; {last}", ""]


def test_flowers_names_are_what_they_were() -> None:
    """A new Flower may move paths, messages or the meaning of a heartbeat; then `_control` is to be mended."""
    assert _control.MEDIA_TYPE == PROTOBUF_MEDIA_TYPE
    assert _control.HEARTBEATS == HEARTBEAT_PATIENCE
    for method, (question, _) in _control.MESSAGES.items():
        assert PROTOBUF_REQUEST_TYPES["POST", _control.path(method)] is question


def test_what_a_program_has_started_ends_with_it_and_nobody_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is reaped its number may be anybody's, so nothing is sent to it any more."""
    script = f"sleep 60 & echo $! > {tmp_path / 'other'}; exec sleep 0.2"
    child = Child("it", ["sh", "-c", script], {"PATH": os.environ["PATH"]}, tmp_path / "it.log")
    assert child.wait(10) == 0
    other = int((tmp_path / "other").read_text())
    until = time.monotonic() + 10
    while ended(other) is False and time.monotonic() < until:
        time.sleep(0.02)
    assert ended(other)
    sent: list[int] = []
    monkeypatch.setattr(child, "_signal", sent.append)
    child.stop()
    assert sent == []


def ended(process: int) -> bool:
    """Whether a process is gone, or only waits to be reaped by whoever adopted it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
