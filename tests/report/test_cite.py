"""What to cite: every part that names a paper is found in full, and nothing that a run did not use is cited."""

import inspect
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from fedsim import adversaries, citations, registry
from fedsim.cli import app
from fedsim.errors import RunFolderError
from fedsim.report.cite import bibtex, cite, described, known_works, works_of
from tests import small

STRATEGIES = registry.members("fedsim.strategies")
OWN_DATA = {"arrays", "audio", "csv", "images", "labelled-text", "npz", "synthetic", "python-source", "cartpole"}
"""Sources without a licence of their own: what is in them is the user's, or drawn, or comes with Python."""
DATA = [name for name in registry.members("fedsim.data.sources") if name not in OWN_DATA]


def docstring(package: str, name: str) -> str:
    return inspect.getdoc(inspect.getmodule(registry.find(package, name, Path(), package))) or ""


def fields(entry: str) -> dict[str, str]:
    """A strict reader of BibTeX: one entry, balanced braces, each field once, in a line that ends with a comma."""
    first, *lines, last = entry.splitlines()
    assert re.fullmatch(r"@[a-z]+\{[a-z0-9]+,", first) and last == "}"
    found: dict[str, str] = {}
    for line in lines:
        match = re.fullmatch(r"  ([a-z]+) = \{(.*)\},", line)
        assert match is not None and match[1] not in found, line
        depth = 0
        for brace in re.findall(r"(?<!\\)[{}]", match[2]):
            depth += 1 if brace == "{" else -1
            assert depth >= 0, line
        assert depth == 0 and not re.search(r"(?<!\\)[%#&$_]", match[2]), line
        found[match[1]] = match[2]
    return found


def test_every_known_work_is_sound_bibtex() -> None:
    """Author, title, year, and where it appeared; keys begin with the first author and the year."""
    assert len(known_works()) > 60
    for key, work in known_works().items():
        told = fields(work.bibtex)
        assert {"author", "title", "year"} <= told.keys(), key
        assert key == "fedsim" or told.keys() & {"booktitle", "journal", "howpublished", "publisher"}, key
        assert key == "fedsim" or told["year"] in key, key


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_cited_in_full(name: str) -> None:
    """Its docstring names the paper; first author and year there are those of the entry."""
    text = docstring("fedsim.strategies", name)
    (work,) = works_of(text)
    told, paper = fields(known_works()[work.key].bibtex), citations.paper(text)
    first = paper.partition(",")[0].removesuffix(" et al.")
    assert told["author"].startswith(first) and told["year"] == paper[-4:]


@pytest.mark.parametrize("name", DATA)
def test_every_data_set_has_a_source_and_a_licence(name: str) -> None:
    text = docstring("fedsim.data.sources", name)
    assert citations.licence(text), "its docstring has no line `Licence: ...`"
    assert all(work.key in known_works() for work in works_of(text)) and works_of(text)


@pytest.mark.parametrize("name", sorted(adversaries.KINDS))
def test_every_attack_is_cited_in_full(name: str) -> None:
    (work,) = works_of(inspect.getdoc(adversaries.KINDS[name]) or "")
    assert work.key in known_works()


def test_fedsim_is_cited_as_its_own_file_says() -> None:
    told = Path("CITATION.cff").read_text(encoding="utf-8")
    own = fields(known_works()["fedsim"].bibtex)
    assert f'title: "{own["title"]}"' in told and own["author"].strip("{}") in told


def made(folder: Path, changes: Mapping[str, Any], packages: Mapping[str, str] | None = None, **given: Any) -> Path:
    """What is read of a run: its scenario, its environment, and that it is one."""
    folder.mkdir(parents=True)
    scenario = small.scenario(changes).model_dump(mode="json", exclude_none=True)
    (folder / "scenario.toml").write_text(tomli_w.dumps(scenario), encoding="utf-8")
    versions = packages if packages is not None else {"fedsim": "0.1.0", "flwr": "1.41.0", "torch": "2.11.0"}
    told = {"packages": versions, "sources": {}, "data": scenario["data"]["name"], "model": scenario["model"]["name"]}
    (folder / "environment.json").write_text(json.dumps({**told, **given}), encoding="utf-8")
    (folder / "run.db").write_bytes(b"")
    return folder


def keys(folder: Path) -> set[str]:
    return {work.key for part in cite([folder]) for work in part.works}


def test_what_a_run_used_is_cited_and_nothing_else(tmp_path: Path) -> None:
    plain = keys(made(tmp_path / "plain", {}))
    assert plain == {
        "mcmahan2017fedavg",
        "alpaydin1998digits",
        "yurochkin2019bayesian",
        "fedsim",
        "beutel2020flower",
        "paszke2019pytorch",
    }
    private = keys(made(tmp_path / "private", {**small.PRIVATE, "engine.kind": "ray"}))
    assert private - plain == {
        "abadi2016dpsgd",
        "mironov2017renyi",
        "mironov2019sampled",
        "balle2020hypothesis",
        "yousefpour2021opacus",
        "moritz2018ray",
    }


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        (
            {"strategy": {"name": "scaffold", "server": {"name": "fedadam"}}},
            {"karimireddy2020scaffold", "reddi2021adaptive"},
        ),
        ({"strategy": {"name": "fedavg", "combine": {"name": "krum"}}}, {"blanchard2017krum"}),
        ({"strategy": {"name": "flower:FedMedian"}}, {"yin2018byzantine"}),
        ({"adversary": {"name": "alie", "fraction": 0.2}}, {"baruch2019little"}),
        ({"privacy.local": {"epsilon": 8.0, "delta": 1e-3, "clip": 1.0}}, {"balle2018gaussian"}),
        (
            {"privacy.client": {"epsilon": 8.0, "delta": 1e-3, "clip": 1.0}, "strategy.weights": "uniform"},
            {"mcmahan2018recurrent"},
        ),
    ],
)
def test_parts_that_are_lent_or_added(tmp_path: Path, changes: Mapping[str, Any], more: set[str]) -> None:
    assert more <= keys(made(tmp_path / "run", changes))


def test_an_own_strategy_is_cited_as_its_file_does(tmp_path: Path) -> None:
    """From the copy in the run's folder, which is read and not executed; what the file lacks is not made up."""
    folder = made(tmp_path / "run", {})
    scenario = tomllib.loads((folder / "scenario.toml").read_text(encoding="utf-8"))
    scenario["strategy"] = {"name": "mine.py:better"}
    (folder / "scenario.toml").write_text(tomli_w.dumps(scenario), encoding="utf-8")
    (folder / "sources").mkdir()
    paper = 'Doe and Roe, "A 50 % Better & Newer Way", Journal of Ways, 2031, section 2.'
    own = f'"""Better.\n\n{paper}\n"""\nraise SystemExit\n'
    (folder / "sources" / "mine.py").write_text(own, encoding="utf-8")
    (work,) = next(part for part in cite([folder]) if part.what == "algorithm mine.py:better").works
    told = fields(work.bibtex)
    assert told["author"] == "Doe and Roe" and told["year"] == "2031" and told["howpublished"] == "Journal of Ways"
    assert told["title"] == r"A 50 \% Better \& Newer Way"
    (folder / "sources" / "mine.py").write_text("x = 1\n", encoding="utf-8")
    assert next(part for part in cite([folder]) if part.what.startswith("algorithm")).works == ()
    assert "names no source" in bibtex(cite([folder]))


def test_what_was_given_from_python_is_found_by_where_it_was_written(tmp_path: Path) -> None:
    """The scenario still says digits, which were not used."""
    folder = made(tmp_path / "run", {}, data="__main__:hospital", origins={"__main__:hospital": "study.py"})
    (folder / "sources").mkdir()
    own = 'def hospital():\n    """Ours.\n\n    Doe, "Our Ward", 2030.\n    Licence: closed.\n    """\n'
    (folder / "sources" / "study.py").write_text(own, encoding="utf-8")
    text = bibtex(cite([folder]))
    assert "% data __main__:hospital: \\cite{doe2030ward}; licence: closed" in text and "alpaydin" not in text


def test_a_paper_of_several_authors() -> None:
    told = fields(described('El Ma, Roe et al., "So: It Is", 2019').bibtex)
    assert told["author"] == "El Ma and Roe and others" and "howpublished" not in told


def test_a_licence_is_a_line() -> None:
    assert citations.licence("One.\n\nTwo.\nLicence: CC BY 4.0 (UCI).\n\nThree.") == "CC BY 4.0 (UCI)"
    assert citations.licence("One.\n\nOf a Licence: none.") is None


def test_a_folder_of_runs_is_cited_once(tmp_path: Path) -> None:
    """As a comparison's folder is: each part and each entry once, with versions as notes."""
    for name in ("fedavg", "fedprox"):
        made(tmp_path / "runs" / name, {"strategy.name": name})
    text = bibtex(cite([tmp_path]))
    entries = [part for part in re.split(r"\n(?=@)|\n\n", text) if part.startswith("@")]
    assert len({entry.partition(",")[0] for entry in entries}) == len(entries)
    assert {"@inproceedings{mcmahan2017fedavg", "@inproceedings{li2020fedprox"} <= {
        entry.partition(",")[0] for entry in entries
    }
    assert "% data digits: \\cite{alpaydin1998digits}; licence: CC BY 4.0" in text
    told = {entry.partition(",")[0]: fields(entry.strip()) for entry in entries}
    assert told["@misc{beutel2020flower"]["note"] == "Version 1.41.0"


def test_the_command(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", {})
    told = CliRunner().invoke(app, ["cite", str(folder), "--json"])
    assert told.exit_code == 0 and {part["what"] for part in json.loads(told.output)} >= {
        "algorithm fedavg",
        "data digits",
    }
    assert (
        CliRunner()
        .invoke(app, ["cite", str(folder)])
        .output.startswith("% algorithm fedavg: \\cite{mcmahan2017fedavg}")
    )
    with pytest.raises(RunFolderError, match="there is no run"):
        cite([tmp_path / "nothing"])
