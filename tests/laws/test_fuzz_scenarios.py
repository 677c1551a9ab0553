"""Whatever a scenario says, it ends in a plan or in one line that names it: 10,000 broken scenarios.

A failure names its mutant by number; `mutants.mutant(number)` makes it again.
"""

import math
import re
import subprocess
import sys
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tomli_w

from fedsim.data.corpus import Folders
from fedsim.errors import FedsimError, named
from fedsim.forecast import forecast
from fedsim.local import Work
from fedsim.planning import jobs
from fedsim.scenario import load, parse
from tests.laws.mutants import FILE, Mutant, mutant
from tests.small import SMALL

LONGEST = 60.0
"""Seconds that a plan may take; epsilon by PRV takes several."""
NET = """
import math
from torch import nn

def Net(shape: tuple[int, ...], classes: int, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.Tanh(), nn.Linear(width, classes))
"""
BLOCKS = (
    range(200),
    *(pytest.param(range(first, first + 500), marks=pytest.mark.proof) for first in range(0, 10_000, 500)),
)
PROCESSES = (*range(4), *(pytest.param(number, marks=pytest.mark.proof) for number in range(10_000, 10_100)))
BOUNDS = "delta=1e-3,max_grad_norm=1.0"
SLIPS: tuple[tuple[str, str], ...] = (
    ("rounds=1" + 30 * "0", "rounds: whole numbers have 64 bits"),
    ("rounds=1000000000000", "rounds = 1000000000000: input should be less than or equal to 1000000000"),
    ("train.batch_size=9000000000000000000", r"train\.batch_size = .* less than or equal to"),
    ("cohort.size=1000000000000", r"cohort\.size = .* less than or equal to"),
    ("cohort.client_timeout=1e300", r"cohort\.client_timeout = 1e\+300: input should be less than or equal to"),
    ("data.partition.clients=1000000000000", r"clients = 1000000000000: 1400 rows cannot give everyone"),
    ("data={name='digits',min_rows=0,partition={kind='iid',clients=1000000000}}", "most would have none of the 1400"),
    ("data.partition.alpha=1.7e308", r"alpha = 1\.7e\+308: give a number above 0 and at most 1e\+300"),
    ("data={name='csv',path='/dev/zero',label='x',partition={kind='iid',clients=3}}", "/dev/zero: is no file"),
    ("data={name='csv',path='.',label='x',partition={kind='iid',clients=3}}", "is no file; name one in data.path"),
    ("model.hidden=[1000000000]", r"model\.hidden = \[1000000000\] is too large; parameters of 300 GB"),
    ("model.hidden=[9000000000000000000]", r"model\.hidden = .* is too large; no memory has so many bytes"),
    (f"model.hidden={[1] * 201}", "layers in hidden = 201 should be at most 200"),
    ("model={name='cnn',kernel=1000000001}", r"model\.kernel = 1000000001 is too large"),
    ("engine={kind='ray',workers=1000000}", r"engine\.workers = 1000000: each is a process of at least 150 MB"),
    (f"privacy.example={{noise_multiplier=1e-300,{BOUNDS}}}", "noise_multiplier = 1e-300 should lie between 1e-100"),
    (f"privacy.example={{noise_multiplier=1.0,{BOUNDS.replace('1e-3', '1e-320')}}}", "delta = 1e-320 should lie"),
    ("model.name=" + "x" * 5000 + ":Net", "should be file.py:name, and there is no file"),
)
"""Settings that once ended in a traceback, in no time that anybody has, or in nothing at all."""


@dataclass
class Tally:
    """What became of the mutants."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)

    def __str__(self) -> str:
        seconds, number = self.slowest
        kinds = f"{self.outcomes['accepted']} accepted, {self.outcomes['refused']} refused"
        return f"{self.outcomes.total()} mutants: {kinds}; the slowest, {number}, took {seconds:.1f} s"


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    """Counts over all blocks of mutants, printed at the end (pytest -s)."""
    counted = Tally()
    yield counted
    print(f"\n{counted}")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what mutants name, and no data sets anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = "".join(f"{n % 7},{n * n % 11},{'pqrs'[n % 4]},{'xy'[n % 7 > 3]}\n" for n in range(120))
    (tmp_path / "rows.csv").write_text("a,b,who,kind\n" + rows)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "back.toml").write_text(f'extends = "{FILE}"')
    (tmp_path / "folder.toml").mkdir()
    return tmp_path


def plan(path: Path, settings: Sequence[str]) -> None:
    """All that comes before training, and the snapshot that a run would leave."""
    scenario = load(str(path), settings)
    assert parse(tomllib.loads(scenario.to_toml()), path.parent, "snapshot").to_toml() == scenario.to_toml()
    scenario.own_files()
    job, _ = jobs(scenario, Folders.of(None, scenario.folder))
    with named(scenario.origin):
        forecast(Work(job), 1)


def outcome(broken: Mutant, place: Path) -> str:
    """Whether a mutant is accepted or refused; nothing else may happen."""
    path = place / FILE
    path.write_bytes(broken.text)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        try:
            plan(path, broken.settings)
            result = "accepted"
        except FedsimError as error:
            assert_one_line(str(error))
            result = "refused"
    strange = [str(each.message) for each in noted if issubclass(each.category, RuntimeWarning)]
    assert not strange, strange  # numbers that overflow on their way to somewhere
    return result


def assert_one_line(message: str) -> None:
    """A message that people can read: it names the scenario and says something of it."""
    assert message.isprintable(), message
    assert re.search(rf"{re.escape(FILE)}\S*: ?\S|back\.toml: \S", message), message
    assert len(message) < 1100, len(message)


@pytest.mark.parametrize("numbers", BLOCKS, ids=lambda block: f"{block.start}-{block.stop - 1}")
def test_a_mutant_is_planned_or_refused_in_one_line(numbers: range, place: Path, tally: Tally) -> None:
    failures = []
    for number in numbers:
        started = time.perf_counter()
        try:
            tally.outcomes[outcome(mutant(number), place)] += 1
        except (Exception, SystemExit) as error:
            failures.append(f"mutant {number}: {type(error).__name__}: {str(error)[:300]!r}")
        seconds = time.perf_counter() - started
        tally.slowest = max(tally.slowest, (seconds, number))
        if seconds > LONGEST:
            failures.append(f"mutant {number}: took {seconds:.0f} s")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("number", PROCESSES)
def test_the_command_ends_a_mutant_without_a_traceback(number: int, place: Path) -> None:
    """As people meet it: a status, at most one line of error, and nothing left behind."""
    broken = mutant(number)
    (place / FILE).write_bytes(broken.text)
    settings = [f"--set={setting}" for setting in broken.settings if "\0" not in setting]  # no process takes a NUL
    check = ["--dry-run"] if number % 2 else ["--fast-check", "--engine", "inline"]
    before = sorted(place.rglob("[!_]*"))
    done = subprocess.run(
        [Path(sys.executable).parent / "fedsim", "run", FILE, *settings, *check],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=240,
        check=False,
    )
    said = f"mutant {number}: {done.stdout}{done.stderr}"
    assert done.returncode in (0, 2, 3), said
    assert "Traceback" not in said
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == (done.returncode != 0), said
    assert sorted(place.rglob("[!_]*")) == before


@pytest.mark.parametrize(("setting", "message"), SLIPS)
def test_a_slip_of_the_keyboard_is_told_before_it_costs_anything(setting: str, message: str, place: Path) -> None:
    (place / FILE).write_text(tomli_w.dumps(SMALL))
    started = time.perf_counter()
    with pytest.raises(FedsimError, match=message) as caught:
        plan(place / FILE, [setting])
    assert_one_line(str(caught.value))
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a = " + b"[" * 5000, "not valid TOML: arrays or tables are nested too deeply"),
        (b"rounds = " + b"9" * 5000, "not valid TOML: a whole number has too many digits"),
        (b"rounds = 0x" + b"f" * 5000, "rounds: whole numbers have 64 bits"),
        (b"a" + b".a" * 30 + b" = 1", r"a\.a\.a: nested more than 20 deep"),
        (b"a" + b".a" * 30_000 + b" = 1", "not valid TOML: arrays or tables are nested too deeply"),
        (b"title = '" + b"x" * 64_000 + b"'", "64,010 bytes are too many for a scenario"),
        ("title = 'x'".encode("utf-16"), "byte 0 is not UTF-8; save it as UTF-8"),
        (b'extends = "' + b"x" * 5000 + b'"', "extends: there is no scenario 'xxx"),
        (b'extends = "a\\u0000b"', r"extends: there is no scenario 'a.x00b'"),
        (b'"\\u001b[31m" = 1', r"mutant\.toml: .x1b\[31m is not known"),
    ],
)
def test_a_file_that_breaks_parsers_is_refused(text: bytes, message: str, place: Path) -> None:
    (place / FILE).write_bytes(text)
    with pytest.raises(FedsimError, match=message) as caught:
        load(str(place / FILE))
    assert_one_line(str(caught.value))


def test_amounts_that_no_run_reaches_are_forecast_or_refused_at_once(place: Path) -> None:
    """A dry run measures a few steps; epsilon of more steps than are whole numbers as floats would be none."""
    (place / FILE).write_text(tomli_w.dumps(SMALL))
    endless = ["rounds=1000000000", "train.epochs=1000000000"]
    started = time.perf_counter()
    plan(place / FILE, endless)
    with pytest.raises(FedsimError, match="private steps in all, more than 1,000,000,000,000,000"):
        plan(place / FILE, [*endless, f"privacy.example={{noise_multiplier=1.0,{BOUNDS}}}"])
    assert time.perf_counter() - started < 30


def test_a_byte_order_mark_and_other_line_ends_are_no_mistake(place: Path) -> None:
    """As editors on Windows write them."""
    plain = tomli_w.dumps(SMALL)
    (place / FILE).write_bytes(b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode())
    assert load(str(place / FILE)).to_toml() == parse(SMALL, place, FILE).to_toml()


def test_a_snapshot_keeps_numbers_that_are_not_finite(place: Path) -> None:
    """What a strategy was given is what a resumed run gives it."""
    changed = parse({**SMALL, "strategy": {"name": "ditto", "lamda": math.inf}}, place, FILE)
    assert tomllib.loads(changed.to_toml())["strategy"]["lamda"] == math.inf
