"""One message at a node, from what is asked to what leaves: the owner's rules, the charge, the work, the log.

The order is the point. Nothing of a coordinator is loaded before it is known to be an assignment that the owner allows;
the ledger is charged, and on the disk, before rows are trained on; what leaves was filtered, kept and logged before.
"""

import importlib.metadata
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim import seeds
from fedsim.arrays import sendable
from fedsim.composition import algorithm_of
from fedsim.deploy import disclosure
from fedsim.deploy.assignment import Assignment
from fedsim.deploy.node import checked
from fedsim.deploy.node import holding as holdings
from fedsim.deploy.node import rules as owners
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.kept import RUNS, Replies, Room, States, digest_of, leave_rooms, prune, size_of
from fedsim.deploy.node.ledger import Ledger
from fedsim.deploy.node.log import Log
from fedsim.deploy.node.review import approved
from fedsim.deploy.node.rules import Rules
from fedsim.deploy.node.summing import summarised, summed
from fedsim.deploy.node.work import Bench, Place, declared, scenario_of
from fedsim.errors import DeployError, FedsimError, Refused, one_line
from fedsim.grid import CLIENT_FAILED, accepted_round, failure, setting
from fedsim.local import Work
from fedsim.scenario import Scenario
from fedsim.worker import answered

DESCRIBE, TRAIN, EVALUATE, STATISTICS = "query.describe", "train", "evaluate", "query.statistics"
_DISK = "the node's disk is full, or cannot be written; its owner makes room, or sees why in the log"
_LEDGER = "the node's ledger cannot be read or written; its owner must make room, or see the log"
_MOST_CLIENTS = 1_000_000
_RUN, _DIGEST = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{64}")


class Withheld(DeployError):
    """A failure whose words are for the owner alone.

    Attributes:
        detail: what the owner's log says of it.
    """

    def __init__(self, told: str, detail: str) -> None:
        super().__init__(told)
        self.detail = detail


class Order(NamedTuple):
    """What a message's config says.

    Attributes:
        kind: the message's type.
        assignment: digest of what is to be done.
        run: the run's name, the same after a resume.
        round: from 1; 0 before the first.
        place: which client this node is.
        counter: charges of this node that the coordinator has seen.
        version: of fedsim at the coordinator.
        rows: train rows that the node declared when the run began; None where the message does not say.
    """

    kind: str
    assignment: str
    run: str
    round: int
    place: Place
    counter: int
    version: str
    rows: int | None = None


class Told(NamedTuple):
    """What becomes of a message: the answer, and a line of it for the owner."""

    reply: Message
    line: str


@dataclass(frozen=True)
class Node:
    """A node while it runs."""

    folder: NodeFolder
    bench: Bench
    ledger: Ledger
    log: Log
    now: Callable[[], datetime] = datetime.now

    @classmethod
    def open(cls, folder: Path, data: Path, *, seeded_coins: bool = False) -> Self:
        """The node of a folder over the owner's data.

        Raises:
            DeployError: folder or ledger are not sound.
        """
        opened = NodeFolder.open(folder)
        ledger, log = opened.books()
        leave_rooms(opened.replies, opened.states)
        return cls(opened, Bench(data, seeded_coins=seeded_coins), ledger, log)

    @property
    def server(self) -> str:
        """Who asks."""
        return f"{self.folder.host}:{self.folder.port}"

    def answer(self, message: Message, fab: bytes) -> Told:
        """Answer a message; a refusal or a failure is an answer too, so nothing is raised, whatever goes wrong.

        Args:
            message: of the coordinator.
            fab: the bundle of the run that it belongs to.
        """
        facts: dict[str, Any] = {"who": self.server, "asked": message.metadata.message_type}
        try:
            content = self._content(message, fab, facts)
            line = f"answered: {_named(facts)}{_shown(facts)}"
            return Told(Message(content, reply_to=message), line)
        except BaseException as error:  # also SystemExit of somebody's code: the node goes on
            return self._failed(message, error, facts)

    def _failed(self, message: Message, error: BaseException, facts: dict[str, Any]) -> Told:
        """The answer to a message that came to nothing, logged as far as the log can be written."""
        refused, name = isinstance(error, Refused), self.folder.name
        detail = error.detail if isinstance(error, Withheld) else str(error)
        detail = detail if isinstance(error, FedsimError) else one_line(error)
        with suppress(DeployError):
            self.log.write("refused" if refused else "failed", **facts, why=detail)
        told = str(error) if isinstance(error, Refused | Withheld) else "the node failed; its owner's log says why"
        kind = "refused" if refused else "failed"
        reason = f"refused: {told}" if refused else f"{name}: {told}"
        return Told(failure(message, CLIENT_FAILED, reason), f"{kind}: {_named(facts)}: {detail}")

    def _content(self, message: Message, fab: bytes, facts: dict[str, Any]) -> RecordDict:
        """What a message is answered with, step by step."""
        self.folder.require_member()
        assignment = Assignment.read(fab)
        facts |= {"assignment": assignment.digest}
        order = order_of(message)
        facts |= {"run": order.run, "round": order.round, "number": order.place.number}
        check_same(order, assignment)
        with _for_owner("the node's rules.toml cannot be read, so it answers nothing; its owner's log says why"):
            rules = owners.read(self.folder.rules_file)
        scenario = self._scenario(assignment, rules, order)
        if order.kind == DESCRIBE:
            return self._described(scenario, rules, order, facts)
        if order.kind == STATISTICS:
            return self._summed(message, scenario, rules, facts)
        if order.kind == EVALUATE:
            work = self._work(assignment, scenario, rules, order)
            return self._evaluated(message, work, rules, order, facts)
        digest = digest_of(message)
        facts |= {"message": digest}
        replies = Replies(self.folder.replies)
        if (stored := replies.get(order.run, order.round, digest)) is not None:
            return self._leaves(stored, facts, again=True)
        work = self._work(assignment, scenario, rules, order)
        return self._trained(message, work, rules, order, replies, facts)

    def _scenario(self, assignment: Assignment, rules: Rules, order: Order) -> Scenario:
        """The scenario, once the owner's rules and the review of its own code allow it; nothing of it is loaded yet."""
        ready = self.bench.ready_made
        asked = scenario_of(assignment, self.folder.approved / "none", ready_made=ready)
        owners.check(rules, asked, None, order.place.clients, self.now())
        if assignment.sources:
            asked = scenario_of(assignment, approved(self.folder, assignment), ready_made=ready)
        if not rules.counts:
            owners.check_counts(asked, algorithm_of(asked))
        if not ready and order.kind != STATISTICS:  # which are told once, of many rows
            checked.require(self.folder, asked)
        return asked

    def _described(self, scenario: Scenario, rules: Rules, order: Order, facts: dict[str, Any]) -> RecordDict:
        """Shapes, types and counts of the rows."""
        with _for_owner(holdings.UNFIT):
            said = declared(self.bench.holding(scenario), order.place)
        counts = {name: said.pop(name) for name in ("rows-train", "rows-validation", "rows-test", "units")}
        if not rules.counts:  # whether there are rows to train on
            counts = {name: int(name in ("rows-train", "units") and count > 0) for name, count in counts.items()}
        about = {"fedsim": version("fedsim"), "flwr": version("flwr"), "metrics": rules.metrics, **said}
        content = RecordDict({"description": ConfigRecord(about), "metrics": MetricRecord(counts)})
        return self._leaves(disclosure.filtered(content, "describe", disclosure.DESCRIBED), facts)

    def _summed(self, message: Message, scenario: Scenario, rules: Rules, facts: dict[str, Any]) -> RecordDict:
        """Sums over columns of the train rows."""
        with _for_owner(holdings.UNFIT):
            content = summed(self.folder.folder, self.bench.data, scenario, rules, int(setting(message, "least", 1)))
        listed = disclosure.summaries(summarised(scenario))
        return self._leaves(disclosure.filtered(content, "statistics", listed), facts)

    def _work(self, assignment: Assignment, scenario: Scenario, rules: Rules, order: Order) -> Work:
        """The job on the node's rows, and the owner's rules on what it promises; nothing has been charged yet."""
        with _for_owner(_LEDGER):
            self.ledger.require(order.counter)
        with _for_owner(holdings.UNFIT):
            rows = self.bench.holding(scenario).train
        if order.rows not in (None, rows if rules.counts else int(rows > 0)):
            raise Refused("the node's rows are others than those that it declared when the run began; begin a new one")
        with _for_owner("the scenario does not go with this node's rows; its owner's log says why"):
            work = self.bench.work(assignment, scenario, order.place)
        owners.check(rules, scenario, work.job.privacy, order.place.clients, self.now())
        return work

    def _evaluated(self, message: Message, work: Work, rules: Rules, order: Order, facts: dict[str, Any]) -> RecordDict:
        """The model measured on the client's rows."""
        fields = disclosure.fields(work, metrics=rules.metrics, counts=rules.counts)
        if not rules.metrics or work.job.privacy is not None:
            raise Refused("measures of this node's rows do not leave it")
        states = States(self.folder.states / order.run)
        with self._told_as(fields), seeds.preserved():
            state = self._state(work, states, message)
            answer = answered(work, order.place.number, message, state)
        content = disclosure.filtered(answer.reply(message).content, "evaluate", fields)
        return self._leaves(content, facts)

    def _trained(
        self, message: Message, work: Work, rules: Rules, order: Order, replies: Replies, facts: dict[str, Any]
    ) -> RecordDict:
        """A round of training: room, charge, work, and what is kept of it."""
        number, fields = order.place.number, disclosure.fields(work, metrics=rules.metrics, counts=rules.counts)
        states, keeping = States(self.folder.states / order.run), _keeping(work)
        state = self._state(work, states, message)
        size = work.contribution_size * work.initial.vector.element_size()
        owners.check_reply(rules, size)
        rooms: list[Room] = []
        try:
            with _for_owner(_DISK):
                rooms.append(replies.room(order.run, order.round, facts["message"], size))
                if keeping:
                    rooms.append(states.room(order.round, keeping))
            self._charged(work, rules, order, facts)
            with self._told_as(fields), seeds.preserved():
                answer = answered(work, number, message, state)
            content = disclosure.filtered(answer.reply(message).content, "train", fields)
            owners.check_reply(rules, sum(each["bytes"] for each in left(content)))
            with _for_owner(_DISK):
                if keeping and answer.contribution is not None:
                    states.put(rooms[1], order.round, answer.contribution.state)
                    prune(self.folder.states, "*", RUNS)
                replies.put(rooms[0], content)
        finally:
            for room in rooms:
                room.leave()
        return self._leaves(content, facts)

    def _state(self, work: Work, states: States, message: Message) -> Any:
        """The client's own vectors after the last of its rounds that counted."""
        accepted = accepted_round(message)
        return states.get(accepted) if accepted is not None and _keeping(work) else None

    def _charged(self, work: Work, rules: Rules, order: Order, facts: dict[str, Any]) -> None:
        """Charge the owner's ledger for this round, where noise is added here; on disk when this returns."""
        plan = work.job.privacy
        if plan is None or plan.level == "client":
            return
        kinds, index = plan.kinds
        charge = kinds[index[order.place.number]]
        limit = rules.largest_epsilon, rules.delta
        with _for_owner(_LEDGER):
            spent = self.ledger.charge(order.run, order.round, facts["message"], charge, plan.level, *limit)
        facts |= {"epsilon-before": spent.before, "epsilon-after": spent.after, "delta": rules.delta}

    def _leaves(self, content: RecordDict, facts: dict[str, Any], *, again: bool = False) -> RecordDict:
        """Write down what leaves, and let it: with the ledger's counter, which the coordinator keeps for the node."""
        name = "description" if "description" in content else "metrics"
        record = content[name]
        assert isinstance(record, MetricRecord | ConfigRecord)
        with _for_owner(_LEDGER):
            record["counter"] = self.ledger.counter
        facts |= {"left": left(content), "again": again}
        with _for_owner("the node's log cannot be written, so nothing leaves; its owner must make room"):
            self.log.write("answered", **facts)
        return sendable(content)

    @contextmanager
    def _told_as(self, fields: tuple[disclosure.Field, ...]) -> Iterator[None]:
        """What may be told of a failure of the work itself; the owner's log gets its own words."""
        try:
            yield
        except Exception as error:
            raise Withheld(disclosure.said(error, fields), one_line(error)) from error


def order_of(message: Message) -> Order:
    """What a message asks.

    Raises:
        Refused: it is of another kind, or its config is not as a coordinator of fedsim writes it.
    """
    kind, config = message.metadata.message_type, message.content.get("config")
    if kind not in (DESCRIBE, TRAIN, EVALUATE, STATISTICS):
        raise Refused(f"messages of type {kind!r} are not answered")
    if not isinstance(config, ConfigRecord):
        raise Refused("the message has no config")
    assignment, run, said = (_text(config, name) for name in ("assignment", "run", "fedsim"))
    number, clients, counter = (_count(config, name) for name in ("number", "clients", "counter"))
    round = _count(config, "server-round") if kind not in (DESCRIBE, STATISTICS) else 0
    if not _DIGEST.fullmatch(assignment) or not _RUN.fullmatch(run):
        raise Refused("the message's config names no assignment or run")
    if not 0 <= number < clients <= _MOST_CLIENTS or (kind == TRAIN and round < 1):
        raise Refused(f"the message's config is not sound: client {number} of {clients}, round {round}")
    if kind == TRAIN and setting(message, "reply", "") not in ("update", "model"):
        raise Refused("the message's config asks for a reply that nodes do not give")
    rows = _count(config, "rows") if "rows" in config else None
    return Order(kind, assignment, run, round, Place(number, clients), counter, said, rows)


def check_same(order: Order, assignment: Assignment) -> None:
    """Refuse a message of another assignment than the one that came with it, or of another fedsim.

    Raises:
        Refused: so.
    """
    if order.assignment != assignment.digest:
        raise Refused("the message names another assignment than the app that came with it")
    here = version("fedsim")
    if order.version.split(".")[:2] != here.split(".")[:2]:
        raise Refused(f"the coordinator has fedsim {order.version} and this node {here}; use the same major.minor")


def version(package: str) -> str:
    """Of an installed package."""
    return importlib.metadata.version(package)


def left(content: RecordDict) -> list[dict[str, Any]]:
    """What a reply's records hold: names, shapes and bytes, without a value."""
    found: list[dict[str, Any]] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            found += [
                {"field": f"{name}/{key}", "type": array.dtype, "shape": list(array.shape), "bytes": len(array.data)}
                for key, array in record.items()
            ]
        else:
            found.append({"field": name, "names": list(record), "bytes": len(repr(dict(record)))})
    return found


@contextmanager
def _for_owner(told: str) -> Iterator[None]:
    """Errors that may quote the owner's data: the coordinator is told this instead."""
    try:
        yield
    except Refused:
        raise
    except FedsimError as error:
        raise Withheld(told, str(error)) from error


def _keeping(work: Work) -> int:
    """Bytes of what the client keeps between rounds."""
    if not work.algorithm.client_state and work.personal is None:
        return 0
    return size_of(list(work.first_state().values()))


def _text(config: ConfigRecord, name: str) -> str:
    value = config.get(name)
    if not isinstance(value, str) or len(value) > 100:
        raise Refused(f"the message's config has no {name}")
    return value


def _count(config: ConfigRecord, name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Refused(f"the message's config has no {name}")
    return value


def _named(facts: dict[str, Any]) -> str:
    """What was asked, for the owner's line."""
    words = [facts["asked"]]
    if facts.get("round"):
        words.append(f"round {facts['round']}")
    if "run" in facts:
        words.append(f"run {facts['run']}")
    if "assignment" in facts:
        words.append(f"assignment {facts['assignment'][:12]}")
    return ", ".join(words)


def _shown(facts: dict[str, Any]) -> str:
    size = sum(each["bytes"] for each in facts["left"])
    spent = f", epsilon {facts['epsilon-before']:.3g} -> {facts['epsilon-after']:.3g}" if "delta" in facts else ""
    return f": {size:,} bytes left{' again' if facts['again'] else ''}{spent}"
