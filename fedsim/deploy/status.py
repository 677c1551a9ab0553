"""How a site is: its server, its nodes and its last run, for people, for programs and for Prometheus."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.deploy import ready, superlink
from fedsim.deploy.control import Control, Known, Started
from fedsim.deploy.following import Lines
from fedsim.deploy.registry import Registry
from fedsim.deploy.site import Site
from fedsim.errors import DeployError
from fedsim.records import being_written

NODE_STATES = ("online", "offline", "never seen", "revoked", "unknown")
_Samples = list[tuple[Mapping[str, str], float]]
ACTIVE = ("pending", "starting", "running")
_FLOWERS = {"online": "online", "offline": "offline", "registered": "never seen"}


class Node(NamedTuple):
    """A node of a site.

    Attributes:
        number, name: of the registry.
        status: one of NODE_STATES; unknown while no server runs.
        node_id: Flower's.
        contact: Unix time of its last heartbeat, of which there is one in 30 s.
        seconds_ago: since then.
        fedsim, flwr: versions it told when a run last asked; None before.
    """

    number: int
    name: str
    status: str
    node_id: int | None
    contact: float | None
    seconds_ago: float | None
    fedsim: str | None
    flwr: str | None


class Run(NamedTuple):
    """The last run of a site.

    Attributes:
        ticket: under which it was asked for.
        folder: of the run.
        status: pending, starting, running, done, stopped, interrupted or failed.
        reason: why it ended as it did.
        round, rounds: the last whole one, and how many there shall be.
        metrics: of that round, by the names of the live line.
    """

    ticket: str
    folder: str
    status: str
    reason: str
    round: int
    rounds: int | None
    metrics: Mapping[str, float]


class Facts(NamedTuple):
    """All that there is to tell.

    Attributes:
        server: up, down, or starting while its SuperLink does not answer.
        address: at which nodes find it.
        certificate_days: for which the server's certificate is valid.
        nodes: in the order of their numbers.
        run: the last one.
    """

    server: str
    address: str
    certificate_days: float
    nodes: Sequence[Node]
    run: Run | None

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        run = None if self.run is None else self.run._asdict()
        return self._asdict() | {"nodes": [node._asdict() for node in self.nodes], "run": run}


def facts(site: Site, up: bool | None = None) -> Facts:
    """How a site is now.

    Args:
        site: to look at.
        up: whether its server runs, where that is known.
    """
    known, started, server = None, None, "down"
    if superlink.running(site) if up is None else up:
        server = "starting"
        with suppress(DeployError):
            known, started, server = Control(site).nodes(), Control(site).runs(), "up"
    return Facts(
        server,
        site.address,
        ready.certificate_days(site),
        tuple(_nodes(site, known)),
        _last_run(site, started),
    )


def remember(site: Site, versions: Mapping[str, Mapping[str, str]]) -> None:
    """Keep which versions nodes run, by their names: {name: {"fedsim": ..., "flwr": ...}}."""
    told = {name: {key: each[key] for key in ("fedsim", "flwr")} for name, each in versions.items()}
    _replace(_described(site), json.dumps(_versions(site) | told))


def write(site: Site, told: Facts) -> None:
    """Write metrics.prom, whole or not at all.

    Raises:
        DeployError: it cannot be written.
    """
    _replace(site.metrics, prometheus(told, time.time()))


def prometheus(told: Facts, now: float) -> str:
    """Facts in Prometheus' text format, version 0.0.4.

    Args:
        told: the facts.
        now: Unix time, so that a file that is no longer written can be told.
    """
    counts = {state: sum(node.status == state for node in told.nodes) for state in NODE_STATES}
    contacts: _Samples = [({"node": node.name}, node.contact) for node in told.nodes if node.contact is not None]
    days = told.certificate_days
    families: list[tuple[str, str, _Samples]] = [
        ("fedsim_up", "Whether the server answers.", [({}, float(told.server == "up"))]),
        ("fedsim_written_timestamp_seconds", "When this was written.", [({}, now)]),
        ("fedsim_certificate_days", "Days for which the server's certificate is valid.", [({}, days)]),
        ("fedsim_nodes", "Nodes by status.", [({"status": state}, float(n)) for state, n in counts.items()]),
        ("fedsim_node_last_contact_timestamp_seconds", "When a node was last heard of.", contacts),
    ]
    if (run := told.run) is not None:
        metrics: _Samples = [({"metric": name}, value) for name, value in run.metrics.items()]
        families += [
            ("fedsim_run_active", "Whether the last run goes on.", [({}, float(run.status in ACTIVE))]),
            ("fedsim_run_round", "The last whole round of the last run.", [({}, float(run.round))]),
            ("fedsim_run_metric", "Of that round, by the names of the live line.", metrics),
        ]
    return "".join(_family(*family) for family in families)


def table(told: Facts) -> Iterator[str]:
    """Facts in lines of at most 80 columns."""
    yield f"server  {told.server:<8}{_cut(told.address, 36):<38}certificate {told.certificate_days:.0f} days"
    yield ""
    yield f"{'node':<30}{'no.':>4}  {'status':<12}{'last contact':<15}{'fedsim':<9}{'flwr':<8}".rstrip()
    for node in told.nodes:
        versions = f"{_cut(node.fedsim or '-', 8):<9}{_cut(node.flwr or '-', 8):<8}"
        ago = "-" if node.seconds_ago is None else f"{_span(node.seconds_ago)} ago"
        yield f"{_cut(node.name, 29):<30}{node.number:>4}  {node.status:<12}{ago:<15}{versions}".rstrip()
    if not told.nodes:
        yield "none yet: fedsim deploy admit NAME FINGERPRINT"
    if (run := told.run) is not None:
        yield ""
        yield f"run     {_cut(run.folder, 72, end=True)}"
        of = "" if run.rounds is None else f" of {run.rounds}"
        values = "".join(f"  {name} {value:.4g}" for name, value in run.metrics.items())
        yield _cut(f"        {run.status}, round {run.round}{of}{values}", 80)
        if run.reason:
            yield _cut(f"        {run.reason}", 80)


def _nodes(site: Site, known: Sequence[Known] | None) -> Iterator[Node]:
    """The registry's nodes, and what the SuperLink tells of them."""
    by_id = {node.node_id: node for node in known or ()}
    versions = _versions(site)
    for node in Registry(site).nodes():
        there = by_id.get(node.node_id) if node.node_id is not None else None
        if node.status != "admitted":
            state: str = node.status
        elif known is None or there is None:
            state = "unknown" if known is None else "never seen"
        else:
            state = _FLOWERS.get(there.status, "unknown")
        contact, ago = (there.contact, there.age) if there is not None else (None, None)
        told = versions.get(node.name, {})
        yield Node(node.number, node.name, state, node.node_id, contact, ago, told.get("fedsim"), told.get("flwr"))


def _last_run(site: Site, started: Sequence[Started] | None) -> Run | None:
    """The run whose ticket was written last."""
    for path in sorted(site.runs.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        ticket = _read(path)
        if ticket.get("purpose", "run") == "run":
            flower = next((run for run in started or () if run.ticket == path.stem), None)
            with suppress(FileNotFoundError):
                return _run(site, path.stem, str(ticket.get("folder", "")), flower)
    return None


def _run(site: Site, name: str, folder: str, flower: Started | None) -> Run:
    """What a run has told so far, and whether Flower still has it."""
    status, reason, number, rounds, shown = "unknown", "", 0, None, {}
    for event in Lines(site.runs, name).new():
        if event["kind"] == "begin":
            rounds = event["rounds"]
        elif event["kind"] == "round":
            number, shown = event["number"], event["shown"]
        elif event["kind"] == "finished":
            status, reason = event["status"], event["reason"]
    if status == "unknown" and flower is not None:
        ended = {"completed": "done", "stopped": "stopped"}.get(flower.outcome, "failed")
        status = ended if flower.status == "finished" else flower.status
        reason = flower.details if flower.status == "finished" else ""
    if status == "running" and rounds is not None and Path(folder).is_dir() and not being_written(Path(folder)):
        status, reason = "interrupted", f"its process has ended; go on with: fedsim resume {folder}"
    metrics = {str(name): float(value) for name, value in shown.items() if isinstance(value, int | float)}
    return Run(name, folder, status, reason, int(number), rounds, metrics)


def _read(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def _described(site: Site) -> Path:
    return site.folder / "described.json"


def _versions(site: Site) -> dict[str, dict[str, str]]:
    return dict(_read(_described(site)))


def _family(name: str, help_: str, samples: _Samples) -> str:
    """One metric with its samples."""
    lines = [f"# HELP {name} {help_}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")
    return "\n".join(lines) + "\n" if samples else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(value) if math.isfinite(value) else f"{'+' if value > 0 else '-'}Inf"


def _replace(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise DeployError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _cut(text: str, width: int, end: bool = False) -> str:
    """A printable text of at most so many columns; its beginning, or its end."""
    text = "".join(sign if sign.isprintable() else "?" for sign in text)
    if len(text) <= width:
        return text
    return f"…{text[1 - width :]}" if end else f"{text[: width - 1]}…"
