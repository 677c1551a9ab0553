"""A node's ledger: what was charged covers what was released at any instant, and composes to a true epsilon."""

import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.ledger import CAUGHT_UP, Ledger
from fedsim.errors import DeployError, Refused
from fedsim.privacy.accountant import Charge
from tests.deploy.owners import node_folder

DELTA = 1e-5
ONE = Charge(1.1, 0.05, 20)
DEAR = Charge(0.9, 0.2, 60)
LOCAL = Charge(30.0, 1.0, 1, "replace")


def charged(ledger: Ledger, charge: Charge = ONE, run: str = "a", round: int = 1, largest: float = 100.0) -> None:
    """One participation on the ledger."""
    level = "local" if charge.relation == "replace" else "example"
    ledger.charge(run, round, "d" * 64, charge, level, largest, DELTA)  # type: ignore[arg-type]


def tight(charges: list[Charge], relation: str) -> float:
    """Epsilon by dp-accounting's privacy loss distributions, an accountant that is not ours, close to the truth."""
    relations = {
        "zero-out": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace": dp_accounting.NeighboringRelation.REPLACE_ONE,
    }
    accountant = PLDAccountant(relations[relation], value_discretization_interval=1e-3)
    for charge in charges:
        # Without sampling dp-accounting knows no relation: replacing is zeroing out with half the noise.
        noise = charge.noise / 2 if relation == "replace" and charge.rate == 1 else charge.noise
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise)
        if charge.rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(charge.rate, event)
        accountant.compose(event, charge.steps)
    return float(accountant.get_epsilon(DELTA))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a ledger is begun."""
    return tmp_path / "ledger.db"


def test_all_runs_compose(file: Path) -> None:
    """Epsilon is that of everything together: no less than the truth, and less than runs added up."""
    ledger = Ledger(file)
    assert ledger.spent(DELTA) == 0.0 and ledger.counter == 0
    for round in range(1, 4):
        charged(ledger, ONE, "a", round)
    charged(ledger, DEAR, "b")
    truth = tight([ONE] * 3 + [DEAR], "zero-out")
    spent = ledger.spent(DELTA)
    assert truth <= spent <= 1.3 * truth
    runs = ledger.runs(DELTA)
    assert [(run.run, run.level, run.participations) for run in runs] == [("a", "example", 3), ("b", "example", 1)]
    assert max(run.epsilon for run in runs) < spent < sum(run.epsilon for run in runs)
    for run, charges in zip(runs, ([ONE] * 3, [DEAR]), strict=True):
        assert tight(charges, "zero-out") <= run.epsilon


def test_runs_of_different_relations_compose(file: Path) -> None:
    """One row replaced by another: at most what either relation promises, since all are accounted under replace."""
    ledger = Ledger(file)
    charged(ledger, ONE)
    alone = ledger.spent(DELTA)
    charged(ledger, LOCAL, "b")
    assert ledger.spent(DELTA) >= tight([ONE, LOCAL], "replace") > 0
    assert ledger.spent(DELTA) > alone


def test_before_and_after(file: Path) -> None:
    """What a log says of a charge is what the ledger says around it."""
    ledger = Ledger(file)
    for number in range(1, 4):
        known = ledger.spent(DELTA)
        spent = ledger.charge("a", number, "d", ONE, "example", 100.0, DELTA)
        assert (spent.before, spent.after, spent.counter) == (known, ledger.spent(DELTA), number)


def test_no_more_than_the_owner_allows(file: Path) -> None:
    """The charge that would exceed it is refused and leaves nothing behind; a smaller one still goes."""
    ledger = Ledger(file)
    charged(ledger, DEAR)
    limit = ledger.spent(DELTA) * 1.05
    with pytest.raises(Refused, match=r"largest_epsilon.*are spent, and this round"):
        charged(ledger, DEAR, "b", largest=limit)
    assert ledger.counter == 1 and [run.run for run in ledger.runs(DELTA)] == ["a"]
    charged(ledger, ONE, "c", largest=limit)
    assert ledger.spent(DELTA) <= limit


def test_a_tight_accountant_is_asked_before_a_refusal(file: Path) -> None:
    """Renyi's bound is loose; what is truly below the owner's limit is not refused for that."""
    ledger = Ledger(file)
    truth, loose = tight([DEAR], "zero-out"), Ledger(file.with_name("other.db"))
    charged(loose, DEAR)
    between = (truth + loose.spent(DELTA)) / 2
    assert truth + 0.05 < between < loose.spent(DELTA)
    spent = ledger.charge("a", 1, "d", DEAR, "example", between, DELTA)
    assert truth <= spent.after <= between
    assert ledger.spent(DELTA, between) == spent.after < ledger.spent(DELTA)


def test_noise_of_zero_is_never_allowed(file: Path) -> None:
    """It has no epsilon at all, so no limit is large enough."""
    ledger = Ledger(file)
    with pytest.raises(Refused):
        charged(ledger, Charge(0.0, 0.5, 1), largest=1e300)
    assert ledger.counter == 0


def test_the_same_message_again_is_charged_again(file: Path) -> None:
    """A node that died before its reply was kept draws new noise: that is a second release."""
    ledger = Ledger(file)
    charged(ledger)
    charged(ledger)
    assert ledger.counter == 2 and ledger.runs(DELTA)[0].participations == 2


def test_a_restored_backup_is_noticed_and_caught_up_with(file: Path) -> None:
    """The coordinator has seen more charges: nothing goes on until the missing ones are charged."""
    ledger = Ledger(file)
    charged(ledger, ONE)
    charged(ledger, DEAR, "b")
    ledger.close()
    shutil.copy(file, file.with_name("backup.db"))
    ledger = Ledger(file)
    for _ in range(3):
        charged(ledger, ONE, "c")
    lost = ledger.spent(DELTA)
    ledger.require(5)
    ledger.close()
    file.with_name("backup.db").replace(file)

    ledger = Ledger(file)
    ledger.require(2)
    with pytest.raises(Refused, match=r"has 2 charges and has had 5.*--catch-up 5"):
        ledger.require(5)
    assert ledger.catch_up(5, DELTA) == 3
    ledger.require(5)
    assert ledger.spent(DELTA) >= lost
    assert ledger.spent(DELTA) >= tight([ONE, DEAR, DEAR, DEAR, DEAR], "zero-out")
    assert [(run.run, run.participations) for run in ledger.runs(DELTA)][-1] == (CAUGHT_UP, 3)
    with pytest.raises(DeployError, match="nothing to catch up with"):
        ledger.catch_up(5, DELTA)
    with pytest.raises(DeployError, match="cannot be missing; ask the coordinator"):
        ledger.catch_up(2**62, DELTA)  # a coordinator's joke would else fill the disk


def test_an_empty_ledger_cannot_be_caught_up(file: Path) -> None:
    """It knows no price."""
    with pytest.raises(DeployError, match="holds no charge"):
        Ledger(file).catch_up(3, DELTA)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.floats(0.8, 4), st.floats(0.01, 1), st.integers(0, 30), st.floats(0.5, 20)),
        max_size=5,
    )
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_laws_of_any_history(tmp_path: Path, history: list[tuple[str, float, float, int, float]]) -> None:
    """Epsilon never falls, the counter counts what was let in, and no limit was ever exceeded when it was set."""
    file = tmp_path / f"{time.monotonic_ns()}.db"
    ledger, counted, last = Ledger(file), 0, 0.0
    for run, noise, rate, steps, limit in history:
        try:
            spent = ledger.charge(run, 1, "d", Charge(noise, rate, steps), "example", limit, DELTA)
        except Refused:
            assert ledger.spent(DELTA) == last
            continue
        counted += 1
        assert spent.before - 0.02 <= spent.after <= limit and spent.counter == counted == ledger.counter
        assert ledger.spent(DELTA) >= last
        last = ledger.spent(DELTA)
    ledger.close()
    assert Ledger(file).spent(DELTA) == last and sum(run.participations for run in Ledger(file).runs(DELTA)) == counted


def in_child(work: Callable[[], None]) -> int:
    """Run something in a process of its own; the signal that ended it, 0 if none did."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def releases(file: Path, released: Path, times: int, kill_before: int | None = None) -> None:
    """Charge and release so often; SIGKILL before the n-th statement that the ledger gives its database."""
    seen = 0

    def count(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)

    ledger = Ledger(file)
    ledger._database.set_trace_callback(count)
    for round in range(1, times + 1):
        charged(ledger, round=round)
        with released.open("ab") as out:
            out.write(b"r")


def test_killed_at_every_statement(file: Path, tmp_path: Path) -> None:
    """Charged covers released wherever a node dies; equal where it does not die, and then the next charge goes on."""
    released, place = tmp_path / "released", 0
    while True:
        place += 1
        file.unlink(missing_ok=True)
        file.with_name("ledger.db-journal").unlink(missing_ok=True)
        released.write_bytes(b"")
        ended = in_child(partial(releases, file, released, 2, place))
        ledger, out = Ledger(file), len(released.read_bytes())
        assert out <= ledger.counter <= out + 1
        charged(ledger, round=9)
        ledger.close()
        if ended == 0:
            assert out == 2 and place > 8
            break
        assert ended == -signal.SIGKILL


def test_killed_at_any_time(file: Path, tmp_path: Path) -> None:
    """The same where the kill comes from outside, in the middle of a commit as well."""
    released, rng = tmp_path / "released", random.Random(1)
    released.write_bytes(b"")
    Ledger(file).close()
    for _ in range(25):
        child = os.fork()
        if child == 0:
            releases(file, released, 10_000)
            os._exit(0)
        time.sleep(rng.uniform(0.002, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ledger = Ledger(file)
        assert ledger.counter >= len(released.read_bytes())
        assert ledger._database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        ledger.close()
    assert len(released.read_bytes()) > 0


def test_two_processes_charge_one_after_the_other(file: Path, tmp_path: Path) -> None:
    """A review beside the node, or a node started twice: no charge is lost, and no limit passed."""
    Ledger(file).close()
    children = []
    for name in "ab":
        child = os.fork()
        if child == 0:
            releases(file, tmp_path / name, 15)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert Ledger(file).counter == 30 == sum(len((tmp_path / name).read_bytes()) for name in "ab")


def test_a_full_disk_charges_nothing(file: Path) -> None:
    """One line, and the charge goes through once there is room."""
    ledger = Ledger(file)
    pages = ledger._database.execute("PRAGMA page_count").fetchone()[0]
    ledger._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DeployError, match=r"ledger\.db cannot be written .*full.*make room"):
        for round in range(1000):
            charged(ledger, run="x" * 2000, round=round)
    before = ledger.counter
    ledger._database.execute(f"PRAGMA max_page_count = {pages + 100}")
    charged(ledger)
    assert ledger.counter == before + 1


def test_a_damaged_file(file: Path) -> None:
    """It is said, and nothing is begun in its place."""
    ledger = Ledger(file)
    charged(ledger)
    ledger.close()
    data = bytearray(file.read_bytes())
    data[:64] = b"x" * 64
    file.write_bytes(bytes(data))
    with pytest.raises(DeployError, match="is damaged"):
        Ledger(file)
    assert file.read_bytes() == bytes(data)


def test_others_may_not_read_it(file: Path) -> None:
    """From the first byte on."""
    before = os.umask(0)
    try:
        Ledger(file).close()
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    with pytest.raises(DeployError, match="chmod 600"):
        Ledger(file)


def test_a_ledger_of_a_later_version(file: Path) -> None:
    """What is not understood is not added to."""
    Ledger(file).close()
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(DeployError, match="is of version 7"):
        Ledger(file)


def test_a_ledger_that_is_gone(tmp_path: Path) -> None:
    """A new one would forget what was spent, and the log tells that something was."""
    home: NodeFolder = node_folder(tmp_path / "node")
    ledger, log = home.books()
    charged(ledger)
    log.write("answered")
    ledger.close()
    home.ledger_file.unlink()
    with pytest.raises(DeployError, match="Restore the ledger from a backup"):
        home.books()


def test_a_backup_is_noticed_by_the_owners_own_log(tmp_path: Path) -> None:
    """Without a server, and however cheap what the backup knows: the log tells what all of it came to."""
    home = node_folder(tmp_path / "node")
    books, log = home.books()
    cheap, dear = Charge(4.0, 0.1, 10), Charge(1.0, 0.5, 10)
    for number, charge in enumerate([cheap, dear, dear]):
        spent = books.charge("run", number, "digest", charge, "example", 1e9, DELTA)
        log.write("answered", **{"epsilon-before": spent.before, "epsilon-after": spent.after, "delta": DELTA})
        if number == 0:
            books.close()
            shutil.copy(home.ledger_file, tmp_path / "backup.db")
            books, log = home.books()
    whole = books.spent(DELTA)
    books.close()
    home.require_whole(DELTA)
    for stale in home.folder.glob("ledger.db*"):
        stale.unlink()
    shutil.copy(tmp_path / "backup.db", home.ledger_file)
    with pytest.raises(DeployError, match="restored from a backup"):
        home.require_whole(DELTA)
    with closing(Ledger(home.ledger_file)) as restored:
        assert restored.catch_up(3, DELTA) == 2 and restored.spent(DELTA) < whole  # by number alone it is too little
        assert restored.catch_up(3, DELTA, home.told(DELTA)) > 0
        assert restored.spent(DELTA) >= whole
    home.require_whole(DELTA)
