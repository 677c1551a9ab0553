"""What is submitted: a scenario as nodes are asked it, refused where it cannot be; and how a command follows it."""

import base64
import fcntl
import json
import os
import threading
import zipfile
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.dealt import write_central
from fedsim.deploy import running
from fedsim.deploy.assignment import CODE, Assignment
from fedsim.deploy.described import Description
from fedsim.deploy.following import Following, Lines, Ticket, following_file, shown
from fedsim.deploy.registry import Registry
from fedsim.deploy.serving import _Nodes, central_rows, serve, told
from fedsim.deploy.site import Site
from fedsim.deploy.submission import deployable, parsed, solved
from fedsim.errors import DeployError, Refused, ScenarioError, StoppedByPolicy
from fedsim.job import Job, prepare_on
from fedsim.progress import Lines as Printed
from fedsim.progress import Silent
from fedsim.records import RoundRecord
from fedsim.resuming import resume
from fedsim.stored import DEPLOYMENT, open_run, stored_environment
from tests import small
from tests.deploy.flower_grid import FlowerGrid, server_job, simulated
from tests.deploy.served import admit, site_with
from tests.deploy.test_holding import HEADER, rows, study, written

RUN = "0123456789abcdef"
FILES = ["a.py", "test_b.py", "sub/c.py"]


def bundle(assignment: Assignment, folder: Path) -> bytes:
    """The assignment as Flower carries it, made by Flower's own builder."""
    folder.mkdir()
    assignment.write_app(folder)
    return bytes(build_fab_from_disk(folder))


@settings(max_examples=25, deadline=None)
@given(
    scenario=st.text(max_size=200),
    sources=st.dictionaries(st.sampled_from(["a.py", "test_b.py", "sub/c.py"]), st.text(max_size=100)),
)
def test_an_assignment_travels_whole(
    scenario: str, sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Through Flower's builder, which leaves files out by their names; the digest names scenario and sources."""
    made = Assignment(scenario, sources)
    again = Assignment.read(bundle(made, tmp_path_factory.mktemp("app") / "app"))
    assert again == made and again.digest == made.digest
    assert Assignment(scenario + " ", sources).digest != made.digest
    assert Assignment(scenario, {**sources, "d.py": ""}).digest != made.digest


def rewritten(fab: bytes, change: dict[str, bytes | None]) -> bytes:
    """A bundle with files replaced, added, or taken away."""
    made = BytesIO()
    with zipfile.ZipFile(BytesIO(fab)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        files = {name: old.read(name) for name in old.namelist()}
        for name, content in {**files, **change}.items():
            if content is not None:
                new.writestr(name, content)
    return made.getvalue()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fedsim/__init__.py": b"import os"}, "the app holds 'fedsim/__init__.py', which is no part of an assignment"),
        ({"fedsim_assignment/__init__.py": CODE.encode() + b"import os\n"}, "would be code that the server chose"),
        ({"pyproject.toml": b"[project]\nname = 'other'\n"}, "pyproject.toml is not that of fedsim"),
        ({"fedsim_assignment/assignment.json": b"[]"}, "holds no scenario and sources"),
        ({"fedsim_assignment/assignment.json": b'{"scenario": "", "sources": {"../a.py": ""}}'}, "outside its folder"),
        ({"fedsim_assignment/assignment.json": b'{"scenario": "", "sources": {"/a.py": ""}}'}, "outside its folder"),
        ({"fedsim_assignment/assignment.json": None}, "a file is missing"),
        ({"fedsim_assignment/assignment.json": b" " * 70_000_000}, "more than"),
    ],
)
def test_a_bundle_that_is_no_assignment_is_refused(
    tmp_path: Path, change: dict[str, bytes | None], reason: str
) -> None:
    """A bundle is code that Flower would run; only exactly ours is read, and named is what is not."""
    fab = bundle(Assignment("title = 'x'"), tmp_path / "app")
    with pytest.raises(Refused, match=reason):
        Assignment.read(rewritten(fab, change))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_damaged_bytes_are_refused_and_nothing_else(noise: bytes, place: int) -> None:
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("pyproject.toml", "a = 1")
    content = made.getvalue()
    with pytest.raises(Refused):
        Assignment.read(content[:place] + noise + content[place + len(noise) :])


def test_own_files_that_are_too_large_are_refused_by_name(tmp_path: Path) -> None:
    text = base64.b64encode(os.urandom(11_000_000)).decode()
    with pytest.raises(DeployError, match=r"the largest is model\.py"):
        Assignment("", {"model.py": text, "loss.py": ""}).write_app(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adversary": {"name": "sign_flip", "fraction": 0.2}}, "adversary: attacks are simulated"),
        ({"references": ["central"]}, "references:"),
        ({"strategy": {"name": "central"}}, "trains on everybody's rows"),
        ({"strategy": {"name": "local"}}, "trains every client alone"),
        ({"strategy": {"name": "constant"}}, "a model of its own"),
        ({"engine.compile": True}, "engine.compile"),
        ({"engine.stack": 4}, "engine.stack"),
        ({"data.without": [1]}, "data.without"),
        ({"data.preprocess": {"kind": "federated"}}, "data.schema"),
        (
            {"privacy.client": {"epsilon": 8.0, "delta": 1e-2, "clip": 1.0, "mechanism": "tree", "min_separation": 2}},
            "use mechanism = 'gaussian'",
        ),
        ({"model": {"name": "hugging-face", "pretrained": "./mine"}}, "folders do not travel"),
        ({"model": {"name": "nothing.py:Net"}}, "there is no file nothing.py"),
    ],
)
def test_what_only_a_simulation_has_is_refused_with_its_reason(changes: small.Changes, reason: str) -> None:
    with pytest.raises(ScenarioError, match=f"small: .*{reason}"):
        deployable(small.scenario(changes))


def test_a_scenario_is_changed_where_nodes_have_their_own(tmp_path: Path) -> None:
    """Rows, workers and what epsilon does not cover; own files go by plain names, their paths stay here."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/net.py").write_text(small.PICKY)
    changes = {
        **{"model": {"name": "deep/net.py:Picky", "above": 100.0}, "engine": {"kind": "ray", "workers": 2}},
        **{"privacy.example": {"epsilon": 8.0, "delta": 1e-3, "max_grad_norm": 1.0}, "privacy.without": {}},
        **{"checkpoint.every": 5, "data.path": "/secret/rows"},
    }
    assignment, notes = deployable(small.scenario(changes, tmp_path))
    made = parsed(assignment, tmp_path, "small")
    assert assignment.sources == {"net.py": small.PICKY} and made.model.name == "net.py:Picky"
    assert str(tmp_path) not in assignment.scenario and "secret" not in assignment.scenario
    assert (made.engine.kind, made.engine.workers, made.checkpoint.every) == ("inline", None, 1)
    assert made.evaluate.clients_every == 0 and made.privacy.without is None and made.privacy.example is not None
    assert made.privacy.example.max_participations == made.rounds
    assert len(notes) == 4


def test_noise_is_solved_for_what_nodes_declare(tmp_path: Path) -> None:
    """As in the simulation of the same rows; a node alone then plans with that noise."""
    job = small.job({**small.PRIVATE, "privacy.example.max_participations": 3})
    assignment = deployable(job.scenario).assignment
    server = server_job(job)
    found = parsed(solved(assignment, server.federation, tmp_path, "small"), tmp_path, "small")
    assert job.privacy is not None and found.privacy.example is not None and found.privacy.example.epsilon is None
    assert found.privacy.example.noise_multiplier == job.privacy.noise_multiplier
    alone = prepare_on(server.federation, found).privacy
    assert alone is not None and alone.epsilon <= 8.0


def test_a_run_over_nodes_of_a_site_from_its_tickets(tmp_path: Path) -> None:
    """Described, run, and gone on with by its folder alone: the same model as the simulation of as many rounds."""
    job, site, grid = staged(tmp_path)
    following, ticket = follower(site, asked(job, "describe"))
    described = serve(grid, ticket, site, following)["described"]
    assert list(described) == names(job) and Registry(site).counter("node-0") == 0
    assert Description.again(described["node-1"]).train == int(job.federation.train_rows[1])
    whole = ticket.model_copy(
        update={
            "purpose": "run",
            "population": names(job),
            "more": {"described": described},
            "folder": tmp_path / "run",
        }
    )
    following, whole = follower(site, whole)
    summary = serve(grid, whole, site, following)
    assert summary["fingerprint"] == simulated(job, tmp_path / "here").fingerprint
    with pytest.raises(ScenarioError, match="was deployed: nodes keep their rows"):
        resume(tmp_path / "run", rounds=4)
    kept = stored_environment(tmp_path / "run")[DEPLOYMENT]
    assert kept["run"] == RUN and kept["population"] == names(job) and kept["site"] == str(site.folder)
    longer = json.loads(json.dumps({key: value for key, value in kept.items() if key != "site"}))
    changed = deployable(small.scenario({**CHANGES, "rounds": 4})).assignment.scenario
    again = Ticket(**{**longer, "wait": 0.0}, purpose="run", scenario=changed, folder=tmp_path / "run", resumed=True)
    following, again = follower(site, again)
    grid.away = {4}
    serve(grid, again, site, following)
    with closing(open_run(tmp_path / "run")) as records:
        assert [row.number for row in records.rounds()] == [1, 2, 3, 4]
        assert [row.client for row in records.clients(round=3) if row.status == "failed"] == [4]
    kinds = [line["kind"] for line in lines(site, following)]
    assert kinds.count("round") == 2 and "begin" in kinds and kinds[-1] == "end"


def test_nodes_are_waited_for_by_name_and_not_for_ever(tmp_path: Path) -> None:
    job, site, grid = staged(tmp_path)
    grid.away = {1, 3}
    following, ticket = follower(site, asked(job, "describe", wait=0.5))
    with pytest.raises(DeployError, match=r"waiting for 2 of 5 nodes: node-1, node-3 did not come in 0\.5 s"):
        serve(grid, ticket, site, following)
    assert {"kind": "note", "text": "waiting for 2 of 5 nodes: node-1, node-3"} in lines(site, following)
    following, ticket = follower(site, asked(job, "describe", wait=0.5, nodes=3))
    assert list(serve(grid, ticket, site, following)["described"]) == ["node-0", "node-2", "node-4"]
    with pytest.raises(DeployError, match="5 nodes are admitted, 6 are asked for"):
        serve(grid, ticket.model_copy(update={"nodes": 6}), site, following)


def test_a_run_that_goes_on_waits_for_all_of_its_nodes(tmp_path: Path) -> None:
    """However few it was asked to begin with; then it goes on with those that are there."""
    job, site, grid = staged(tmp_path)
    grid.away = {1, 3}
    names = [f"node-{number}" for number in range(5)]
    following, ticket = follower(site, asked(job, "run", wait=0.2, nodes=2, population=names))
    assert [member.name for member in _Nodes(grid, ticket, site, following).wait()] == names
    assert [line["text"] for line in lines(site, following)] == [
        "waiting for 2 of 5 nodes: node-1, node-3",
        "goes on without node-1, node-3, until they are back",
    ]


def test_a_revoked_node_is_nobodys_and_keeps_its_number(tmp_path: Path) -> None:
    """In a run that goes on the others keep theirs; a new one leaves it out."""
    job, site, grid = staged(tmp_path)
    Registry(site).revoke("node-2")
    following, ticket = follower(site, asked(job, "describe"))
    assert list(serve(grid, ticket, site, following)["described"]) == ["node-0", "node-1", "node-3", "node-4"]


def test_a_run_that_goes_on_is_not_resumed(tmp_path: Path) -> None:
    """Its command may be gone; no second process is started for it, and the site's last run stays this one."""
    (tmp_path / "environment.json").write_text(json.dumps({DEPLOYMENT: {"site": "/srv/site"}}))
    claim = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(claim, fcntl.LOCK_EX)
    with pytest.raises(DeployError, match=r"goes on, .* fedsim deploy status /srv/site"):
        running.resume(tmp_path, Silent())
    os.close(claim)
    with pytest.raises(DeployError, match="/srv/site is not a site"):
        running.resume(tmp_path, Silent())


def test_what_no_server_took_was_never_a_run(tmp_path: Path) -> None:
    """Else `fedsim deploy status` would show it as the site's last one."""
    site = site_with(tmp_path)
    with pytest.raises(DeployError, match="start it with fedsim deploy server"):
        running.submit(site, Ticket(purpose="run", run=RUN, scenario=""), Silent())
    assert not list(site.runs.iterdir())


def test_how_a_run_ended_is_told(tmp_path: Path) -> None:
    """Each end is a status and one line; what is unexpected is also raised, so that Flower's log has it."""
    job, site, _ = staged(tmp_path)
    ends: list[tuple[BaseException, str, bool]] = [
        (StoppedByPolicy("all failed"), "stopped", False),
        (KeyboardInterrupt(), "interrupted", False),
        (ScenarioError("no"), "failed", True),
        (ZeroDivisionError("x"), "failed", True),
    ]
    for error, status, raised in ends:
        following, ticket = follower(site, asked(job, "describe"))
        try:
            with told(following, ticket):
                raise error
        except type(error):
            assert raised
        last = lines(site, following)[-1]
        assert last["status"] == status and last["reason"]


def test_what_is_told_is_shown_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the very lines that a run in its own process prints, whole ones, as they come."""
    record = RoundRecord(3, 1.5, 5, 1, {"global/central-test/rows/loss": 0.5}, 2.345, "f", [])
    ticket = Ticket(purpose="run", run=RUN, scenario="")
    name = ticket.write(tmp_path)
    there, here = Following(tmp_path, name), Printed()
    for each in (there, here):
        each.begin("Title", ["fact"], ["note"], 5)
        each.phase("passing")
        each.round(record, {"loss": 0.5, "accuracy": None})
        each.end(["done"])
    expected = capsys.readouterr().out
    for line in Lines(tmp_path, name).new():
        shown(line, second := Printed()) if line["kind"] == "begin" else shown(line, second)
    assert capsys.readouterr().out == expected
    reading = Lines(tmp_path, name)
    list(reading.new())
    with following_file(tmp_path, name).open("ab") as file:
        file.write(b'{"kind": "note", "te')
    assert not list(reading.new())
    with following_file(tmp_path, name).open("ab") as file:
        file.write(b'xt": "whole"}\n')
    assert [line["text"] for line in reading.new()] == ["whole"]


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    """A round's line comes from the thread that has committed it."""
    name = Ticket(purpose="run", run=RUN, scenario="").write(tmp_path)
    following = Following(tmp_path, name)

    def notes() -> None:
        for _ in range(20):
            following.note("x" * 5000)

    threads = [threading.Thread(target=notes) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(Lines(tmp_path, name).new())) == 80


def test_a_full_disk_cuts_lines_and_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command misses what was not written, and reads on behind it."""
    name = Ticket(purpose="run", run=RUN, scenario="").write(tmp_path)
    following, path = Following(tmp_path, name), following_file(tmp_path, name)
    following.note("before")
    with monkeypatch.context() as full:
        full.setattr(following, "_path", Path("/dev/full"))
        following.note("lost")
    with path.open("ab") as file:
        file.write(b'{"kind": "note", "te')
    following.note("after")
    following.note("and on")
    assert [line["text"] for line in Lines(tmp_path, name).new()] == ["before", "after", "and on"]


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0123456789abcdef", "0123456789abcdef-0000000g"])
def test_a_ticket_of_another_name_is_not_read(tmp_path: Path, name: str) -> None:
    """The name comes with the run's configuration, which anybody on the server's machine can set."""
    with pytest.raises(DeployError, match="fedsim deploy run"):
        Ticket.read(tmp_path, name)


CHANGES: small.Changes = {"rounds": 2, "evaluate.clients_every": 0}


def staged(folder: Path) -> tuple[Job, Site, FlowerGrid]:
    """A job of five clients, a site that has admitted a node for each, and these nodes."""
    job = small.job(CHANGES)
    site, grid = site_with(folder), FlowerGrid(job)
    for name, node in zip(names(job), grid.ids, strict=True):
        admit(site, folder, name)
        Registry(site).set_node_id(name, node)
    return job, site, grid


def names(job: Job) -> list[str]:
    return [f"node-{number}" for number in range(job.federation.clients)]


def asked(job: Job, purpose: Any, **more: Any) -> Ticket:
    assignment = deployable(job.scenario).assignment
    return Ticket(purpose=purpose, run=RUN, scenario=assignment.scenario, sources=dict(assignment.sources), **more)


def follower(site: Site, ticket: Ticket) -> tuple[Following, Ticket]:
    """A ticket as a SuperLink's process reads it."""
    name = ticket.write(site.runs)
    return Following(site.runs, name), Ticket.read(site.runs, name)


def lines(site: Site, following: Following) -> list[dict[str, Any]]:
    return [json.loads(line) for line in following._path.read_text().splitlines()]


def test_held_out_rows_of_the_server_are_read_by_the_scenarios_source(tmp_path: Path) -> None:
    """What its source reads is halved, all of it; what a rehearsal wrote is taken as it is."""
    table, file = rows(), written(tmp_path / "held-out.csv", HEADER, rows())
    found = central_rows(file, parsed(deployable(study()).assignment, tmp_path, "study"))
    assert found is not None and len(found["validation"].x) + len(found["test"].x) == len(table)
    job = small.job(CHANGES)
    write_central(job.federation, tmp_path / "central")
    kept = central_rows(tmp_path / "central", job.scenario)
    assert kept is not None and (kept["test"].x == job.federation.central["test"].x).all()
    assert central_rows(None, job.scenario) is None
