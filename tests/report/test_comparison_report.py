"""A comparison's report: its figures are those that were found, and a browser shows it to everybody, offline."""

import json
import math
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedsim.cli import app
from fedsim.comparison.findings import Asked, Findings, compared, conclude
from fedsim.errors import FedsimError
from fedsim.report import contrasts
from fedsim.report.comparison import comparison_page, report
from fedsim.report.contrasts import pictures
from fedsim.report.picture import Picture
from tests import small
from tests.comparison import made
from tests.report import browser as browsers
from tests.report import compared as built
from tests.report.test_page import Read

pytest.importorskip("plotly")


@pytest.fixture(scope="module")
def found() -> Findings:
    return built.findings()


def named(found: Findings, kind: str, condition: str = "") -> Picture:
    (picture,) = getattr(contrasts, kind)(found, condition)
    assert isinstance(picture, Picture)
    return picture


def trace(picture: Picture, name: str) -> dict[str, Any]:
    shown = [each for each in picture.figure["data"] if each.get("name") == name and each.get("showlegend", True)]
    assert len(shown) == 1
    return dict(shown[0])


def test_every_picture_is_one_that_plotly_knows(found: Findings) -> None:
    """plotly's package for Python refuses a key or a value that plotly.js does not know."""
    from plotly.graph_objects import Figure

    shown = pictures(found)
    assert {picture.name for picture in shown} >= {
        *("learning", "differences", "megabytes", "learning-by-megabytes", "epsilon", "worst-clients", "clients"),
        *("gains", "left-out"),
    }
    for text in (text for kind, text in Read(comparison_page(found, Path())).scripts if kind == "application/json"):
        Figure(json.loads(text))


def test_a_curve_is_the_mean_over_seeds_and_its_band_from_least_to_most(found: Findings) -> None:
    picture = named(found, "learning")
    values = np.array([run.metrics[made.VALIDATION] for run in found.of("", "slow")])
    measured = ~np.isnan(values).any(axis=0)
    drawn = trace(picture, "slow")
    np.testing.assert_allclose(drawn["y"], values[:, measured].mean(axis=0))
    assert list(drawn["x"]) == (np.flatnonzero(measured) + 1).tolist()
    edges = [
        each
        for each in picture.figure["data"]
        if each.get("legendgroup") == "slow" and not each.get("showlegend", True)
    ]
    np.testing.assert_allclose([each["y"] for each in edges], [values[:, measured].min(0), values[:, measured].max(0)])


def test_differences_have_their_intervals_and_verdicts(found: Findings) -> None:
    picture = named(found, "differences")
    drawn = trace(picture, "over seeds")
    pairs = [found.family["", name] for name in built.CANDIDATES[1:]]
    np.testing.assert_allclose(drawn["x"], [pair.mean for pair in pairs])
    np.testing.assert_allclose(drawn["x"] - drawn["error_x"]["arrayminus"], [pair.low for pair in pairs])
    np.testing.assert_allclose(drawn["x"] + drawn["error_x"]["array"], [pair.high for pair in pairs])
    assert picture.figure["layout"]["yaxis"]["ticktext"] == [
        f"{name}: {found.family['', name].verdict}" for name in built.CANDIDATES[1:]
    ]
    assert len(trace(picture, "each seed")["x"]) == 7 * len(pairs)


def test_the_front_is_what_nobody_beats(found: Findings) -> None:
    """Cheapest `fedprox` (same cost as fedavg and better) and best `mine`; slow costs more and is worse."""
    rows = {row[0]: row[-1] for row in named(found, "against_bytes").shown.rows}
    better = "fedprox" if found.standings["", "fedprox"].mean > found.standings["", "fedavg"].mean else "fedavg"
    assert {name for name, on in rows.items() if on == "yes"} == {better, "mine_2 & 50 %"}
    private = {row[0]: row[-1] for row in named(found, "against_epsilon").shown.rows}
    assert {name for name, on in private.items() if on == "yes"} == {"slow", better, "mine_2 & 50 %"}


def test_gains_are_sorted_and_their_ends_are_the_extremes(found: Findings) -> None:
    values = trace(named(found, "gains"), "slow")["y"]
    each = found.gains["", "slow"].each.values()
    assert list(values) == sorted(values)
    assert values[0] == pytest.approx(np.mean([min(gain.values()) for gain in each]))
    assert values[-1] == pytest.approx(np.mean([max(gain.values()) for gain in each]))


def test_lower_is_better_turns_the_front_over(found: Findings) -> None:
    rows = {row[0]: row[-1] for row in named(replace(found, lower=True), "against_bytes").shown.rows}
    assert rows["slow"] == "yes" and rows["mine_2 & 50 %"] == "no"


def test_the_page_says_first_what_can_be_concluded(found: Findings) -> None:
    page = comparison_page(found, Path())
    lead = page[page.index("<header>") : page.index("<main")]
    assert all(sentence in unescape(lead) for sentence in found.sentences)
    for heading in (
        "Result",
        "Differences",
        "Cost",
        "Target",
        "Clients",
        "Gain over training alone",
        "Runs",
        "Repeat it",
    ):
        assert f">{heading}</a>" in page, heading
    mean = found.standings["", "mine_2 & 50 %"].mean
    assert {"mine_2 & 50 %", "better", f"{mean:.4f}"} <= {*Read(page).cells}


def test_conditions_stand_beside_each_other() -> None:
    found = built.findings(("even", "un/even"), seeds=5)
    page = comparison_page(found, Path())
    assert page.count("<h3>even</h3>") == page.count("<h3>un/even</h3>") > 5
    names = [picture.name for picture in pictures(found)]
    assert "learning-even" in names and "learning-un-even" in names and len({*names}) == len(names)


def test_runs_without_scores_are_told_and_nothing_is_made_up() -> None:
    """All diverged, one seed, nothing measured: a page without pictures that would be empty."""
    runs = [made.facts(name, 1, math.nan, status="diverged", reason="loss") for name in ("fedavg", "fedprox")]
    runs = [replace(run, last={}, metrics={}, bytes=np.full(3, math.nan)) for run in runs]
    found = conclude(Asked("None", None, made.METRIC, ("fedavg", "fedprox"), ("",), "fedavg", (), (1,)), runs)
    assert pictures(found) == []
    page = comparison_page(found, Path())
    cells = Read(page).cells
    assert "diverged: loss" in cells and not {"nan", "nan%"} & {*cells}


def test_real_runs(tmp_path: Path) -> None:
    """From folders, with links to the reports that are there."""
    folders = []
    for seed in (1, 2):
        for name in ("fedavg", "fedprox"):
            folders.append(tmp_path / "runs" / f"{name} {seed}")
            small.run(small.job({"seed": seed, "strategy.name": name}), folders[-1])
    (folders[0] / "report.html").write_text("<title>one</title>", encoding="utf-8")
    found = compared(folders)
    report(found, tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert 'href="runs/fedavg%201/report.html"' in page and page.count("report.html") == 1
    mean = np.mean([run.last[found.metric] for run in found.of("", "fedprox")])
    assert f">{mean:.4f}<" in page
    for_papers(tmp_path, [*map(str, folders)], f"{mean:.4f}")


def for_papers(place: Path, folders: list[str], mean: str) -> None:
    """Both commands draw stills and write tables, and refuse a width before they read anything."""
    wanted = ["--figures", str(place / "figures"), "--format", "svg", "--latex", str(place / "table.tex")]
    for command, stills in ((["compare", *folders], {"learning", "differences"}), (["report", folders[0]], {"loss"})):
        told = CliRunner().invoke(app, [*command, *wanted])
        assert told.exit_code == 0, told.output
        assert {path.stem for path in (place / "figures").glob("*.svg")} >= stills
        if command[0] == "compare":
            assert mean in (place / "table.tex").read_text(encoding="utf-8")
        with pytest.raises(FedsimError, match=r"such as 3\.3in"):
            CliRunner().invoke(app, [*command, "--width", "3"], catch_exceptions=False)


def test_a_browser_shows_it(browser: browsers.Browser, found: Findings, tmp_path: Path) -> None:
    """Every picture is drawn, nothing is asked of the network, no console error; also dark, narrow and printed."""
    path = tmp_path / "compare.html"
    report(found, path)
    for look in ({}, {"dark": True}, {"width": 400}, {"print": True}):
        browser.look(**look)
        browser.open(path)
        assert browser.value("document.querySelectorAll('.plot .main-svg').length") >= len(pictures(found))
        assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
        assert not browser.errors and not [
            request for request in browser.requests if not request.startswith(("file:", "blob:", "data:"))
        ]
    links = browser.value(
        "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))"
    )
    assert links is True


def test_a_reference_that_trains_alone_is_judged_by_clients_own_models(found: Findings) -> None:
    """Its global model is measured too, untrained: that figure would say that training alone is worth nothing."""
    cells = Read(comparison_page(found, Path())).cells
    row = cells[cells.index("reference: local") :][:3]
    assert row[1] == "0.7500" and "0.0500" not in row
    runs = [cells[place : place + 5] for place, cell in enumerate(cells) if cell == "reference: local"][-7:]
    assert [(run[1], run[4]) for run in runs] == [(str(seed), "0.7500") for seed in range(1, 8)]
    assert "Of runs that share no model: personal/client-test/clients/accuracy." in comparison_page(found, Path())


def test_pictures_say_which_figures_are_of_clients_own_models(found: Findings) -> None:
    """A caption names the primary metric; the reference whose clients are alone has another."""
    learned = replace(
        found,
        runs=tuple(
            replace(run, metrics={"personal/client-validation/clients/accuracy": run.metrics[made.VALIDATION]})
            if run.candidate == "reference: local"
            else run
            for run in found.runs
        ),
    )
    assert named(learned, "learning").caption.endswith("reference: local: personal/client-validation/clients/accuracy.")
    assert named(found, "worst").caption.endswith("reference: local: mean over clients.")
    assert "mean over clients" not in named(found, "learning").caption


def test_rounds_are_whole_so_that_no_half_round_is_marked(found: Findings) -> None:
    assert all(isinstance(place, int | np.integer) for place in trace(named(found, "learning"), "slow")["x"])


def test_the_worst_tenth_stands_beside_what_chance_makes_of_equal_clients(found: Findings) -> None:
    """Ten clients with few test rows each differ by chance alone: without that figure 0.08 says nothing."""
    key = ("", "fedavg")
    standing = replace(found.standings[key], worst=0.0812, by_chance=0.1723, clients=9)
    cells = Read(page := comparison_page(replace(found, standings={**found.standings, key: standing}), Path())).cells
    row = cells[cells.index("fedavg") :]
    assert row[row.index("0.0812") + 1] == "0.1723" and "clients with enough test rows; by chance" in page


def test_what_costs_everybody_the_same_is_no_picture(found: Findings) -> None:
    equal = {key: replace(standing, bytes=1e6) for key, standing in found.standings.items()}
    assert [*contrasts.against_bytes(replace(found, standings=equal), "")] == []
