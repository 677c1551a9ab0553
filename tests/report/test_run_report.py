"""A run's report: what it says is what the records say; and a browser shows it, offline, to everybody."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from fedsim import rounds
from fedsim.engine.inline import InlineEngine
from fedsim.errors import StoppedByPolicy
from fedsim.report.chronicle import SHOWN_CLIENTS, SHOWN_ROUNDS, chronicle, principal
from fedsim.report.follow import follow
from fedsim.report.run import report, run_page
from fedsim.rounds import run_job
from fedsim.stored import DEPLOYMENT
from tests import small
from tests.report import browser as browsers
from tests.report.test_page import Read
from tests.test_show import HUGE, Looking, fedsim

__all__ = ["fedsim"]
pytest.importorskip("plotly")
KINDS = ["private", "beside", "failing", "personal", "stopped", "unmeasured", "regression"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every kind, each in a folder of its name."""
    place = tmp_path_factory.mktemp("runs")
    private = {**small.PRIVATE, "privacy.without": {"train.learning_rate": 0.3}, "title": "Private <b>&"}
    rounds.run(small.scenario(private), out=place / "private")
    rounds.run(small.scenario({"references": ["local", "constant"]}), out=place / "beside")
    small.run(small.job(small.POINTS, data=small.points(HUGE)), place / "failing")
    many = {"data.partition": {"kind": "iid", "clients": 12}, "strategy.name": "ditto"}
    small.run(small.job(many), place / "personal")
    with pytest.raises(StoppedByPolicy):
        small.run(
            small.job({**small.POINTS, "cohort.on_client_error": "fail"}, data=small.points(HUGE)), place / "stopped"
        )
    small.run(small.job({"evaluate.clients_every": 0}), place / "unmeasured")
    rng = np.random.default_rng(2)
    x, owners = rng.normal(size=(160, 3)).astype(np.float32), np.repeat(np.arange(4), 40)
    prices = (x[:, 0] + owners).astype(np.float32)
    small.run(small.job({"data.partition": {"kind": "natural"}}, data=(x, prices, owners)), place / "regression")
    return place


def figures_of(page: str) -> list[dict[str, Any]]:
    return [json.loads(text) for kind, text in Read(page).scripts if kind == "application/json"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_is_one_that_plotly_knows(made: Path, kind: str) -> None:
    """plotly's package for Python refuses a key or a value that plotly.js does not know."""
    from plotly.graph_objects import Figure

    found = figures_of(run_page(chronicle(made / kind)))
    for each in found:
        Figure(each)
    assert found or kind == "stopped"


def test_curves_are_the_records(made: Path) -> None:
    """Validation by round, the test figures of the best and the last round, and the loss in training: plain SQL."""
    folder = made / "private"
    with closing(sqlite3.connect(folder / "run.db")) as database:
        name = "global/central-validation/rows/accuracy"
        recorded = database.execute("SELECT value FROM metrics WHERE name = ? ORDER BY round", (name,)).fetchall()
        trained = {
            round: sum(loss * rows for loss, rows in pairs) / sum(rows for _, rows in pairs)
            for round in (1, 2, 3)
            if (
                pairs := database.execute(
                    "SELECT loss, rows FROM clients WHERE round = ? AND phase = 'train' AND loss IS NOT NULL", (round,)
                ).fetchall()
            )
        }
        summary = dict(database.execute("SELECT name, value FROM summary").fetchall())
    told = chronicle(folder)
    first, second, *_ = figures_of(run_page(told))
    lines = {trace["name"]: trace for trace in first["data"]}
    validation = lines["central validation rows"]
    assert validation["x"] == [1, 2, 3] and validation["y"] == pytest.approx([value for (value,) in recorded], rel=1e-5)
    test = json.loads(summary["metrics"])["global/central-test/rows/accuracy"]
    (name,) = {"test, best round", "test, best and last round"} & {*lines}
    assert lines[name]["x"] == [json.loads(summary["best_round"])] and lines[name]["y"] == pytest.approx(
        [test], rel=1e-5
    )
    assert lines["without-privacy"]["x"] == [1, 2, 3], "the run beside it"
    loss = {trace["name"]: trace["y"] for trace in second["data"]}
    assert loss["train rows, in training"] == pytest.approx([trained[round] for round in (1, 2, 3)], rel=1e-5)


def test_the_numbers_stand_beneath_each_picture(made: Path) -> None:
    """Whoever sees no picture has its table: as many as there are pictures, the curves' values among their cells."""
    page = run_page(chronicle(made / "beside"))
    seen = Read(page)
    assert page.count('class="chart"') == page.count("the numbers of this picture") == page.count('role="img"') > 4
    validation = figures_of(page)[0]["data"][0]["y"]
    assert {f"{value:.4f}" for value in validation} <= set(seen.cells)


def test_what_epsilon_covers_stands_beside_it(made: Path) -> None:
    told = chronicle(made / "private")
    page = run_page(told)
    assert "For the curator alone" in page and "and nothing else: no losses, no counts, no failures" in page
    plain = run_page(chronicle(made / "beside"))
    assert "For the curator alone" not in plain and "This run promises nothing" in plain


def test_what_else_differs_without_privacy_is_told(made: Path) -> None:
    """A run beside it that has another learning rate as well is not "everything else equal"."""
    assert "Without privacy, also train.learning_rate = 0.3." in run_page(chronicle(made / "private"))
    assert "Without privacy, also" not in run_page(chronicle(made / "beside"))


def test_texts_of_a_run_are_not_html(made: Path) -> None:
    page = run_page(chronicle(made / "private"))
    assert ("h1", "Private <b>&") in Read(page).texts and "<b>" not in page


def test_failures_are_told_by_cause(made: Path) -> None:
    cells = Read(run_page(chronicle(made / "failing"))).cells
    assert "3" in cells and any("not finite" in cell for cell in cells)
    page = run_page(chronicle(made / "stopped"))
    assert "Ended early" in page and "on_client_error is fail" in page


def test_clients_by_round_are_the_records(made: Path) -> None:
    """Quantiles over clients and the heat map, against rows read one by one."""
    told = chronicle(made / "personal")
    assert told.own is not None and told.own.personal and told.own.metric == "accuracy"
    with closing(sqlite3.connect(made / "personal" / "run.db")) as database:
        rows = database.execute("SELECT round, client, metrics FROM clients WHERE phase = 'evaluate'").fetchall()
    by_round: dict[int, dict[int, float]] = {}
    for round, client, metrics in rows:
        if "personal/accuracy" in (values := json.loads(metrics)):
            by_round.setdefault(round, {})[client] = values["personal/accuracy"]
    assert [round for round, _, _ in told.own.rounds] == sorted(by_round)
    heat = next(each["data"][0] for each in figures_of(run_page(told)) if each["data"][0]["type"] == "heatmap")
    for round, clients, values in told.own.rounds:
        assert dict(zip(clients.tolist(), values.tolist(), strict=True)) == by_round[round]
        column = heat["x"].index(str(round))
        drawn = {
            int(name.removeprefix("client ")): line[column] for name, line in zip(heat["y"], heat["z"], strict=True)
        }
        assert {client: value for client, value in drawn.items() if value is not None} == pytest.approx(
            by_round[round], rel=1e-5
        )


def large(folder: Path, clients: int, rounds: int) -> None:
    """Rows of as many clients and rounds in a run's records; client k's loss is k."""
    with closing(sqlite3.connect(folder / "run.db")) as database, database:
        for table in ("rounds", "clients", "metrics", "summary"):
            database.execute(f"DELETE FROM {table}")
        columns = "number, seconds, cohort, failed, fingerprint, best, committed"
        database.executemany(
            f"INSERT INTO rounds ({columns}) VALUES (?, 1, 1, 0, '', 0, 0)", [(n + 1,) for n in range(rounds)]
        )
        names = "round, client, phase, status, rows, loss, steps, seconds, bytes_down, bytes_up, metrics, stack"
        database.executemany(
            f"INSERT INTO clients ({names}) VALUES (?, ?, 'train', 'ok', 1, ?, 1, 0.1, 4, 4, '{{}}', 1)",
            [(n + 1, k, float(k)) for n in range(rounds) for k in range(clients)],
        )


def test_a_report_of_many_clients_and_rounds_stays_small(made: Path, tmp_path: Path) -> None:
    """Every n-th round, and the worst clients, who have the largest losses; sums over all that is recorded."""
    small.run(small.job({"rounds": 1}), tmp_path / "run")
    large(tmp_path / "run", 300, 400)
    told = chronicle(tmp_path / "run")
    assert told.own is not None and len(told.own.rounds) == SHOWN_ROUNDS
    assert (told.own.rounds[0][0], told.own.rounds[-1][0]) == (1, 400)
    page = run_page(told)
    heat = next(each["data"][0] for each in figures_of(page) if each["data"][0]["type"] == "heatmap")
    assert heat["y"] == [f"client {k}" for k in range(299, 299 - SHOWN_CLIENTS, -1)]
    assert sum(row["down"] for row in told.rounds) == 4 * 300 * 400
    assert len(page) < 3.5e6


def test_the_worst_tenth_stands_beside_what_chance_makes_of_equal_clients(tmp_path: Path) -> None:
    """As the run's closing block has it: without that figure a low one of few test rows says nothing."""
    result = small.run(small.job({"data.partition": {"kind": "iid", "clients": 12}}), tmp_path / "run")
    (line,) = (line for line in result.lines if "by chance" in line)
    assert line.strip() in run_page(chronicle(tmp_path / "run"))


# The map of updates


def test_the_map_keeps_distances_that_lie_in_a_plane() -> None:
    """Points of a plane, turned into 32 dimensions: their distances on the map are those they had."""
    rng = np.random.default_rng(3)
    plane = rng.normal(size=(20, 2)) * [3.0, 1.0]
    turned = plane @ np.linalg.qr(rng.normal(size=(32, 2)))[0].T + rng.normal(size=32)
    places, shares = principal(turned)
    seen, true = (np.linalg.norm(points[:, None] - points[None], axis=2) for points in (places, plane))
    np.testing.assert_allclose(seen, true, atol=1e-9)
    assert sum(shares) == pytest.approx(1) and shares[0] > shares[1]


def test_clients_whose_updates_point_alike_lie_together(tmp_path: Path) -> None:
    """Two groups of directions, of very different lengths: on the first axis they stand apart."""
    folder = small.run(small.job(), tmp_path / "run").folder
    rng = np.random.default_rng(5)
    ways = rng.normal(size=(2, 32))
    with closing(sqlite3.connect(folder / "run.db")) as database, database:
        database.execute("DELETE FROM sketches")
        for round in (1, 2, 3):
            for client in range(8):
                vector = (ways[client % 2] + rng.normal(size=32) / 10) * 10.0 ** rng.integers(-3, 4)
                database.execute("INSERT INTO sketches VALUES (?, ?, ?)", (round, client, json.dumps(vector.tolist())))
    seen = chronicle(folder).sketches
    assert seen is not None and seen.clients.tolist() == list(range(8)) and set(seen.updates.tolist()) == {3}
    first = seen.places[:, 0]
    assert (
        max(first[::2].max() - first[::2].min(), first[1::2].max() - first[1::2].min())
        < abs(first[::2].mean() - first[1::2].mean()) / 4
    )
    assert "Clients whose updates pointed the same way" in run_page(chronicle(folder))


# In a browser


@pytest.mark.parametrize("kind", KINDS)
def test_a_browser_shows_it_offline(made: Path, kind: str, browser: browsers.Browser) -> None:
    """No error, no request but for the file itself, marks in every picture, no link that leads nowhere."""
    told = report(made / kind)
    path = told.folder / "report.html"
    browser.look()
    browser.open(path)
    assert browser.errors == [] and browser.requests == [path.resolve().as_uri()]
    charts = browser.value("document.querySelectorAll('.chart').length")
    marks = browser.value(
        "[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll("
        "'.trace path, .trace image, .heatmaplayer image, .points path, .point').length)"
    )
    assert len(marks) == charts and all(marks), marks
    broken = (
        "[...document.querySelectorAll('a[href]')].filter(a => !document.querySelector(a.getAttribute('href'))).length"
    )
    assert browser.value(broken) == 0
    ids = browser.value("[...document.querySelectorAll('section[id], h2[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("dark", [False, True])
def test_letters_of_pictures_have_the_colour_of_the_page(made: Path, dark: bool, browser: browsers.Browser) -> None:
    report(made / "beside")
    browser.look(dark=dark)
    browser.open(made / "beside" / "report.html")
    ink = browser.value("getComputedStyle(document.body).color")
    fills = browser.value(
        "[...new Set([...document.querySelectorAll('.main-svg > g:not(.hoverlayer) text')]"
        ".map(text => getComputedStyle(text).fill))]"
    )
    assert fills == [ink] and ink == ("rgb(230, 233, 236)" if dark else "rgb(27, 31, 36)")


@pytest.mark.parametrize("kind", ["private", "personal"])
def test_a_narrow_screen_scrolls_down_only(made: Path, kind: str, browser: browsers.Browser) -> None:
    report(made / kind)
    browser.look(width=400, height=800)
    browser.open(made / kind / "report.html")
    assert browser.value("document.scrollingElement.scrollWidth") <= 400
    widths = browser.value("[...document.querySelectorAll('.main-svg')].map(s => s.getBoundingClientRect().right)")
    assert max(widths) <= 400


def test_it_can_be_printed(made: Path, browser: browsers.Browser) -> None:
    """Pictures fit between the margins of A4 and are on the paper; afterwards they are as wide as the page again."""
    report(made / "beside")
    browser.look(width=1200)
    browser.open(made / "beside" / "report.html")
    wide = "document.querySelector('.main-svg').getBoundingClientRect().width"
    before = browser.value(wide)
    browser.value("(window.seen = [], addEventListener('beforeprint', () => seen.push(" + wide + ")), 1)")
    assert len(browser.pdf()) > 20_000
    (printed,) = browser.value("seen")
    assert printed <= 700 < before
    browser.wait(f"Math.abs({wide} - {before}) < 1")


def test_the_keyboard_reaches_the_numbers(made: Path, browser: browsers.Browser) -> None:
    """Tab and Enter alone: the first picture's table opens, and the first stop skips to the content."""
    report(made / "beside")
    browser.look()
    browser.open(made / "beside" / "report.html")
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.className") == "skip"
    browser.press("Enter", 13, "\r")
    browser.wait("document.activeElement.id === 'content'")
    for _ in range(30):
        browser.press("Tab", 9)
        if browser.value("document.activeElement.tagName") == "SUMMARY":
            break
    browser.press("Enter", 13, "\r")
    assert browser.value("document.activeElement.parentElement.open") is True
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.getAttribute('role')") == "region"
    assert browser.value("document.activeElement.querySelectorAll('td').length") > 3


def test_a_page_follows_its_run_and_keeps_the_place(tmp_path: Path, browser: browsers.Browser) -> None:
    """Opened after the first round and never touched again: it shows every round, then stays still."""
    path, shown = tmp_path / "run" / "report.html", "document.querySelector('header p:not(.following)').textContent"

    place, places = "document.querySelector('#clients').getBoundingClientRect().top", list[float]()

    def look(number: int) -> None:
        report(tmp_path / "run", reload_seconds=0.3)
        if number == 1:
            browser.look(height=400)
            browser.open(path)
            browser.value("(document.querySelectorAll('details')[1].open = true, scrollTo(0, 1500), 1)")
            places.append(browser.value(place))
        browser.wait(f"{shown}.includes('running · {number}/3 rounds')")

    run_job(small.job(), InlineEngine(), tmp_path / "run", Looking(look))
    report(tmp_path / "run", reload_seconds=0.3)
    browser.wait(f"{shown}.includes('finished · 3/3 rounds')")
    browser.wait("document.documentElement.dataset.drawn === 'true'")
    assert browser.value("document.querySelectorAll('details')[1].open") is True
    assert browser.value(place) == pytest.approx(places[0], abs=2)
    assert browser.errors == [] and set(browser.requests) == {path.resolve().as_uri()}
    browser.requests.clear()
    browser.value("new Promise(done => setTimeout(done, 900))")
    assert browser.requests == [] and browser.value("document.querySelector('#following')") is None


def test_a_reader_can_stop_the_reloading(tmp_path: Path, browser: browsers.Browser) -> None:
    small.run(small.job({"rounds": 1}), tmp_path / "run")
    path = tmp_path / "run" / "report.html"
    path.write_text(run_page(chronicle(tmp_path / "run"), reload_seconds=0.3))
    browser.open(path)
    browser.value("(document.querySelector('#following').checked = false, 1)")
    browser.requests.clear()
    browser.value("new Promise(done => setTimeout(done, 900))")
    assert browser.requests == []


# Following, and the command


def test_following_ends_with_the_run(tmp_path: Path) -> None:
    """Between two looks the run does a round; the last page is of the finished run and does not reload."""
    steps: list[str] = []
    path = tmp_path / "run" / "report.html"

    def look(number: int) -> None:
        class Enough(Exception):
            pass

        def sleep(seconds: float) -> None:
            raise Enough

        with pytest.raises(Enough):
            follow(tmp_path / "run", told=lambda seen: steps.append(seen.overview.status), sleep=sleep)
        assert '<meta name="reload"' in path.read_text()

    run_job(small.job(), InlineEngine(), tmp_path / "run", Looking(look))
    seen = follow(tmp_path / "run")
    assert steps == ["running"] * 3 and seen.overview.status == "finished"
    assert '<meta name="reload"' not in path.read_text()


def test_the_command_writes_a_page_for_each_run(made: Path, fedsim: Any) -> None:
    written = [str(made / kind / "report.html") for kind in ("private", "beside")]
    status, out, err = fedsim("report", str(made / "private"), str(made / "beside"))
    assert (status, out.split(), err) == (0, written, "")
    status, out, _ = fedsim("report", str(made / "private"), "--json")
    assert (status, json.loads(out)) == (0, {"reports": written[:1]})


def test_a_deployed_run_is_not_repeated_here(made: Path, tmp_path: Path) -> None:
    """Nodes keep their rows: no command is given that would be refused, and no same bits are promised."""
    run = shutil.copytree(made / "private", tmp_path / "run")
    about = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**about, DEPLOYMENT: {}}))
    report(run)
    page = (run / "report.html").read_text()
    assert "nodes keep their rows" in page
    assert "fedsim replay" not in page and "fedsim run" not in page and "the fingerprint is the same" not in page


def test_a_run_leaves_its_report(fedsim: Any, tmp_path: Path) -> None:
    """Also with --json, where nothing but JSON is printed."""
    (tmp_path / "small.toml").write_text(tomli_w.dumps({**small.SMALL, "rounds": 1}))
    for number, more in enumerate(((), ("--json",))):
        status, out, _ = fedsim("run", "small.toml", "--out", f"run{number}", *more)
        assert status == 0 and "Repeat it" in (tmp_path / f"run{number}" / "report.html").read_text()
    assert json.loads(out)["status"] == "done"
    status, out, _ = fedsim("run", "small.toml", "--dry-run", "--json")
    written = (tmp_path / "run0" / "report.html").stat().st_size
    assert status == 0 and 0.9 * written < json.loads(out)["report"] < 1.2 * written


def test_mistakes_cost_one_line(made: Path, fedsim: Any, tmp_path: Path) -> None:
    (compared := tmp_path / "compared").mkdir()
    (compared / "comparison.toml").touch()
    for arguments, hint in (
        ((str(tmp_path),), "is not a run folder: it has no run.db"),
        ((str(made / "private"), str(made / "beside"), "--follow"), "--out and --follow are for one run"),
        ((str(made / "private"), "--out", "none/page.html"), "cannot be written"),
        ((str(compared),), "is a comparison, whose report is written by: fedsim compare"),
    ):
        status, out, err = fedsim("report", *arguments)
        assert status == 2 and out == "" and hint in err and err.count("\n") == 1
