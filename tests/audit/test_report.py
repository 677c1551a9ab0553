"""What an audit says: lines, JSON and a page that stands alone; and which audit is made of what."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fedsim.audit import report
from fedsim.audit.auditing import as_data, audit, lines, passed
from fedsim.audit.membership import Membership, OfClient
from fedsim.audit.one_run import OneRun
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.progress import WIDTH
from fedsim.scenario_files import override
from tests import small

RNG = np.random.default_rng(0)
INSIDE = RNG.random(100) < 0.5


def one_run(right: int, claim: float, noise_off: bool = False, level: str = "example") -> OneRun:
    """Of 100 canaries so many guessed right."""
    evidence = np.where(INSIDE, 1.0, -1.0) * RNG.uniform(0.1, 9, 100)
    evidence[right:] *= -1
    return OneRun(
        title="A <scenario> & its title",
        level="client" if level == "client" else "example",
        audited="one row, not one person; 969 rows of all clients, pooled and 100 canaries",
        mechanism="Poisson-sampled Gaussian, noise 1.2, clip 1",
        claim=claim,
        delta=1e-5,
        noise_off=noise_off,
        rounds=60,
        releases=540,
        evidence=evidence,
        inside=INSIDE,
    )


MEMBERSHIP = Membership(
    folder=Path("runs/some-run"),
    title="A <scenario> & its title",
    round=60,
    members=RNG.exponential(0.5, 3000),
    others=np.append(RNG.exponential(0.8, 2000), np.inf),
    clients=(OfClient(3, "site <3>", 0.71, 100, 20, 0.02),),
)
FOUND = [
    one_run(60, 8.0),
    one_run(99, 2.5),
    one_run(60, math.inf, level="client"),
    one_run(100, 8.0, noise_off=True),
    one_run(70, 8.0, noise_off=True, level="client"),
    MEMBERSHIP,
]


class Page(HTMLParser):
    """Every tag that is opened is closed; what it refers to and says is kept."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.said = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


@pytest.mark.parametrize("found", FOUND)
def test_the_page_stands_alone(found: OneRun | Membership, tmp_path: Path) -> None:
    """No network, both colour schemes, every figure of the terminal in its table."""
    report.write(found, tmp_path / "audit.html")
    text = (tmp_path / "audit.html").read_text()
    page = Page(text)
    assert not page.links or all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script|<img", text)
    assert "prefers-color-scheme: dark" in text and "<svg" in text and "currentColor" in text
    said = " ".join(page.said.split())
    for number in re.findall(r"\d+\.\d\d+", " ".join(lines(found))):
        assert number in said
    assert "A <scenario> & its title" in said


@pytest.mark.parametrize("found", FOUND)
def test_lines_fit_and_json_has_the_figures(found: OneRun | Membership) -> None:
    assert max(map(len, lines(found))) <= WIDTH
    data = json.loads(json.dumps(as_data(found)))
    if isinstance(found, OneRun):
        assert data["lower_bound"] == found.bound and data["right"] == found.right and data["ok"] == passed(found)
        assert data["verdict"] == found.verdict and f"verdict      {found.verdict}" in lines(found)
    else:
        assert data["auc"]["value"] == found.auc[0] and passed(found)


@pytest.mark.parametrize(
    ("found", "verdict", "ok"),
    [
        (one_run(60, 8.0), "consistent", True),
        (one_run(99, 2.5), "VIOLATED", False),
        (one_run(100, 3.5), "consistent", True),  # 3.49
        (one_run(94, 0.1, noise_off=True), "SEEN", True),
        (one_run(93, 0.1, noise_off=True), "NOT SEEN", False),
    ],
)
def test_verdicts(found: OneRun, verdict: str, ok: bool) -> None:
    assert (found.verdict, found.ok, passed(found)) == (verdict, ok, ok)


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    report.check(tmp_path / "audit.html")
    for place in (tmp_path / "nowhere" / "audit.html", tmp_path):
        with pytest.raises(RunFolderError, match=r"--out .*: give a file in a folder that is there"):
            report.check(place)
        with pytest.raises(RunFolderError, match=r"--out .* cannot be written"):
            report.write(MEMBERSHIP, place)


EXAMPLE: small.Changes = {
    "privacy.example.noise_multiplier": 1.0,
    "privacy.example.delta": 1e-5,
    "privacy.example.max_grad_norm": 1.0,
}
LOCAL: small.Changes = {
    "strategy.weights": "uniform",
    "privacy.local.noise_multiplier": 1.0,
    "privacy.local.delta": 1e-5,
    "privacy.local.clip": 1.0,
}


def file_of(folder: Path, changes: small.Changes) -> str:
    """The small scenario as a file."""
    path = folder / "small.toml"
    path.write_text(small.scenario(override({}, changes)).to_toml())
    return str(path)


def test_what_is_given_decides(tmp_path: Path) -> None:
    """A run is attacked; a scenario is audited at its level, with 100 canaries at delta 1e-5 unless told otherwise."""
    small.run(small.job({"rounds": 1}), tmp_path / "run")
    assert isinstance(audit(str(tmp_path / "run")), Membership)
    found = audit(file_of(tmp_path, EXAMPLE), ["rounds=1", "train.batch_size=400"])
    assert isinstance(found, OneRun) and found.level == "example"
    assert (found.canaries, found.delta, found.noise_off) == (100, 1e-5, False)
    off = audit(
        str(tmp_path / "small.toml"), ["rounds=1", "train.batch_size=400"], canaries=50, noise_off=True, delta=1e-6
    )
    assert isinstance(off, OneRun) and (off.canaries, off.delta, off.noise_off) == (50, 1e-6, True)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {}, "promises no privacy"),
        (LOCAL, {}, "privacy.local cannot be audited by canaries"),
        (EXAMPLE, {"delta": 1e-3}, "--delta 0.001: give one above 0 and at most 1e-05"),
        (EXAMPLE, {"canaries": 0}, "--canaries 0"),
    ],
)
def test_what_cannot_be_audited_says_why(
    changes: small.Changes, options: dict[str, float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ScenarioError, match=message):
        audit(file_of(tmp_path, changes), **options)  # type: ignore[arg-type]


def test_options_of_scenarios_are_refused_for_a_run(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="is a run: --canaries"):
        audit(str(tmp_path), noise_off=True)
