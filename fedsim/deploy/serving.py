"""The server's half of a deployed run: fedsim's own loop inside Flower's ServerApp.

The SuperLink starts it in a process of its own, with the site's folder in its environment and a ticket that says what
to do. It asks nodes what they hold, or runs a scenario on them, and tells the command that waits what goes on.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedsim.data.federation import CentralPart, Rows
from fedsim.deploy import statistics, status
from fedsim.deploy.described import Description, federation_of
from fedsim.deploy.following import Following, Ticket
from fedsim.deploy.node.summing import summarised
from fedsim.deploy.registry import Registry
from fedsim.deploy.remote import USUAL_LIMIT, Member, Post, RemoteWorkforce, Silence, letter, told_by
from fedsim.deploy.site import Site
from fedsim.deploy.submission import named_nodes, parsed, write_sources
from fedsim.errors import DeployError, FedsimError, Interrupted, StoppedByPolicy, one_line
from fedsim.job import Job, prepare_on, with_secret_coins
from fedsim.local import one_thread
from fedsim.records import to_json
from fedsim.resuming import check_same, reopened
from fedsim.rounds import create_folder, execute
from fedsim.scenario import Scenario
from fedsim.signals import signals_to
from fedsim.stopping import Watch
from fedsim.stored import DEPLOYMENT
from fedsim.summary import Result, succeeded

SITE = "FEDSIM_SITE"
"""The environment variable that names the site's folder."""
_DESCRIBING = 600.0  # seconds: a node loads its data then
_REJOINING = 30.0  # seconds: nodes are back a few after their server is
_LOOK = 0.5
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Do what the run's ticket says."""
    folder = os.environ.get(SITE)
    if folder is None:
        raise DeployError(f"{SITE} is not set: start the SuperLink with fedsim deploy server")
    site, name = Site.open(Path(folder)), str(context.run_config.get("ticket", ""))
    ticket = Ticket.read(site.runs, name)
    following = Following(site.runs, name)
    following.tell("started", pid=os.getpid(), flower_run=str(context.run_id))
    threading.Thread(target=_end_with_superlink, args=[os.getppid()], daemon=True).start()
    with told(following, ticket), signals_to(_interrupt):
        result = serve(grid, ticket, site, following)
        following.tell("finished", status="done", folder=str(ticket.folder or ""), reason="", result=result)


@one_thread()
def serve(grid: Grid, ticket: Ticket, site: Site, following: Following) -> dict[str, Any]:
    """Do what a ticket says.

    Args:
        grid: Flower's.
        ticket: what is asked.
        site: whose nodes are asked.
        following: is told what goes on.

    Returns:
        Plain values: a run's summary, or what nodes say of their data.
    """
    sources = site.runs / ticket.run
    write_sources(ticket.assignment, sources)
    scenario, nodes = parsed(ticket.assignment, sources, ticket.origin), _Nodes(grid, ticket, site, following)
    if ticket.purpose == "describe":
        return {"described": {name: asdict(each) for name, each in nodes.describe().items()}}
    if ticket.purpose == "statistics":
        return nodes.statistics(scenario, int(ticket.more["least"]))
    return dict(json.loads(to_json(_run(nodes, scenario).values)))


class Answer(NamedTuple):
    """What a node said to a question.

    Attributes:
        name: of the node.
        content: of its answer; None where it gave none.
        reason: why it gave none.
    """

    name: str
    content: RecordDict | None
    reason: str = ""


class _Nodes:
    """The nodes of a site, as a ticket wants them."""

    def __init__(self, grid: Grid, ticket: Ticket, site: Site, following: Following) -> None:
        self.grid, self.ticket, self.site, self.following = grid, ticket, site, following
        self.registry = Registry(site)
        self.told = {"assignment": ticket.assignment.digest, "run": ticket.run, "fedsim": version("fedsim")}

    def wait(self) -> list[Member]:
        """Wait for enough nodes, and take those that are there.

        Of a run whose nodes are chosen all are taken, also those that are away: they may come back, and nobody waits
        long for them, or for ever for a first one.

        Raises:
            DeployError: too few have come in time, or there are none to wait for.
        """
        asked, said, begun = self.ticket, "", time.monotonic()
        while True:
            members = self._admitted()
            enough = asked.nodes if asked.nodes and asked.population is None else len(members)
            there = set(self.grid.get_node_ids())
            present = [member for member in members if member.node in there]
            away = named_nodes([member.name for member in members if member.node not in there])
            if asked.population is not None and not away:
                return members
            if asked.population is None and len(present) >= enough:
                return present
            waited = time.monotonic() - begun
            if asked.population is not None and present and waited >= min(asked.wait, _REJOINING):
                self.following.note(f"goes on without {away}, until they are back")
                return members
            text = f"waiting for {enough - len(present)} of {enough} nodes: {away}"
            if waited > asked.wait:
                start = "they are started with fedsim deploy node, on their machines; --nodes asks for fewer"
                raise DeployError(f"{text} did not come in {asked.wait:g} s; {start}")
            if text != said:
                self.following.note(said := text)
            time.sleep(_LOOK)

    def _admitted(self) -> list[Member]:
        """The nodes that may take part, by number; those of the run alone where it goes on.

        Raises:
            DeployError: there are fewer than asked for.
        """
        known = {node.name: node for node in self.registry.nodes() if node.status == "admitted"}
        if self.ticket.population is None:
            found = [Member(node.name, node.node_id) for node in known.values() if node.node_id is not None]
        else:  # one that has gone keeps its number; nothing reaches node 0
            found = [Member(name, _id(known.get(name))) for name in self.ticket.population]
        if not found or len(found) < (self.ticket.nodes or 1):
            least = self.ticket.nodes or 1
            raise DeployError(f"{len(found)} nodes are admitted, {least} are asked for; see fedsim deploy admit")
        return found

    def ask(self, kind: str, config: Mapping[str, str | int | float]) -> list[Answer]:
        """Put a question to every node that is there."""
        members = self.wait()
        post = Post(self.grid, _DESCRIBING)
        content = RecordDict({"config": ConfigRecord({**config})})
        sent = post.send([self._question(kind, content, number, members) for number in range(len(members))])
        return [_said(member, answer) for member, answer in zip(members, post.answers(sent), strict=True)]

    def _question(self, kind: str, content: RecordDict, number: int, members: Sequence[Member]) -> Message:
        name, node = members[number]
        own = {"number": number, "clients": len(members), "counter": self.registry.counter(name)}
        return letter(node, kind, content, {**self.told, **own})

    def describe(self) -> dict[str, Description]:
        """What nodes say of their data, by name, in the order of their numbers.

        Raises:
            DeployError: too few say it.
        """
        found, reasons = {}, []
        self.following.phase("asking nodes what they hold")
        for name, content, reason in self.ask("query.describe", {}):
            try:
                if content is None:
                    raise DeployError(reason)
                found[name] = Description.of(content)
            except DeployError as error:
                reasons.append(f"{name}: {error}")
        for name, each in found.items():
            self.registry.saw(name, each.counter)
        status.remember(self.site, {name: {"fedsim": each.fedsim, "flwr": each.flwr} for name, each in found.items()})
        if len(found) < (self.ticket.nodes or len(found) + len(reasons)) or not found:
            many = "one node does" if len(reasons) == 1 else f"{len(reasons)} nodes do"
            raise DeployError(f"{many} not take part: {'; '.join(reasons[:3])}")
        for reason in reasons:
            self.following.note(f"left out: {reason}")
        return found

    def statistics(self, scenario: Scenario, least: int) -> dict[str, Any]:
        """What nodes tell of their tables' columns, put together."""
        self.following.phase("asking nodes for statistics")
        columns, told, reasons = summarised(scenario), {}, {}
        for name, content, reason in self.ask("query.statistics", {"least": least}):
            if content is None:
                reasons[name] = reason
            else:
                told[name] = content
        return statistics.together(columns, told, reasons).model_dump(mode="json")


def _run(nodes: _Nodes, scenario: Scenario) -> Result:
    """Run a scenario on the nodes that the ticket names, or go on with its run."""
    ticket, progress = nodes.ticket, nodes.following
    members = nodes.wait()
    job = job_of(ticket, scenario)
    limit = scenario.cohort.client_timeout or USUAL_LIMIT
    force = RemoteWorkforce(Post(nodes.grid, limit), members, nodes.told, nodes.registry)
    assert ticket.folder is not None
    if ticket.resumed:
        check_same(ticket.folder, job)
        folder = reopened(ticket.folder, job)
    else:
        deployment = {"site": str(nodes.site.folder), **ticket.model_dump(mode="json", include=_KEPT)}
        folder = create_folder(job, ticket.folder, {DEPLOYMENT: deployment})
    with folder:
        result = succeeded(execute(job, force, folder, progress, resumed=ticket.resumed))
    progress.end(result.lines)
    return result


_KEPT = {"run", "nodes", "population", "wait", "central", "seeded_coins", "more", "origin"}
"""What a run that goes on is told of its first ticket."""


def job_of(ticket: Ticket, scenario: Scenario) -> Job:
    """The server's job: nodes' rows as they are described, and its own held-out rows.

    Raises:
        FedsimError: something does not fit.
    """
    assert ticket.population is not None
    described = [Description.again(ticket.more["described"][name]) for name in ticket.population]
    federation = federation_of(
        ticket.population,
        described,
        central_rows(ticket.central, scenario),
        corpus=scenario.data.name,
        measured=scenario.evaluate.clients_every > 0,
    )
    job = prepare_on(federation, scenario)
    Watch.of(scenario, job.build_problem(), federation)
    return job if ticket.seeded_coins else with_secret_coins(job)


def central_rows(path: Path | None, scenario: Scenario) -> dict[CentralPart, Rows] | None:
    """The server's own validation and test rows: as `write_central` wrote them, or halves of what a source reads.

    Raises:
        FedsimError: they cannot be had.
    """
    if path is None:
        return None
    from fedsim.data.dealt import central_of, is_holding, read
    from fedsim.deploy.node.holding import load

    if is_holding(path):
        return central_of(read(path))
    rows = load(path, scenario)
    half = len(rows.x) // 2
    return {"validation": Rows(rows.x[:half], rows.y[:half]), "test": Rows(rows.x[half:], rows.y[half:])}


@contextmanager
def told(following: Following, ticket: Ticket) -> Iterator[None]:
    """Tell the command how the block ended, where it did not end well."""

    def finished(how: str, reason: str) -> None:
        following.tell("finished", status=how, folder=str(ticket.folder or ""), reason=reason, result={})

    try:
        yield
    except StoppedByPolicy as error:
        finished("stopped", str(error))
    except (KeyboardInterrupt, Interrupted) as error:
        finished("interrupted", str(error) or "interrupted before its first round")
    except FedsimError as error:
        finished("failed", str(error))
        raise
    except BaseException as error:
        finished("failed", f"{one_line(error)}; the SuperLink's log has more")
        raise


def _said(member: Member, answer: Message | Silence) -> Answer:
    if isinstance(answer, Silence):
        return Answer(member.name, None, answer.reason)
    if answer.has_error():
        return Answer(member.name, None, told_by(answer, member.name))
    if answer.metadata.src_node_id != member.node:
        return Answer(member.name, None, "another node has answered in its place")
    return Answer(member.name, answer.content)


def _id(node: Any) -> int:
    return 0 if node is None or node.node_id is None else int(node.node_id)


def _end_with_superlink(parent: int) -> None:
    """End at once when the process that started this one has ended: nobody can be asked any more.

    Flower's own watch sends one SIGINT, which asks to finish the round. Rounds that are done are on the disk.
    """
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Both signals end what goes on before and after the rounds, which have a handler of their own."""
    raise KeyboardInterrupt(signal.Signals(number).name)
