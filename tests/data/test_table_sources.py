"""Tables that come as files: the real ones give what their authors publish, whoever's row is wrong is named."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import registry
from fedsim.data.build import build
from fedsim.data.check import check
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.preprocess import Preparation
from fedsim.data.schema import columns_of
from fedsim.data.sources import adult, heart_disease, parkinsons, wisdm
from fedsim.errors import DataError

DATA = os.environ.get("FEDSIM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FEDSIM_DATA names no folder with data sets")
NATURAL = {"kind": "natural"}


def load(name: str, folder: Path | None = None, **settings: Any) -> Corpus:
    source = registry.find("fedsim.data.sources", name, Path(), "data.name")
    bound = registry.bind(source, settings, "data", reserved=("folders",))
    corpus: Corpus = source(Folders((folder or Path(str(DATA)),), Path()), **bound)
    check(corpus)
    return corpus


def counts(corpus: Corpus) -> dict[str, list[int]]:
    assert corpus.clients is not None
    return {
        name: np.bincount(corpus.y[corpus.clients == client], minlength=len(corpus.classes)).tolist()
        for client, name in enumerate(corpus.client_names)
    }


@needs_data
def test_heart_disease_has_the_patients_of_its_authors() -> None:
    corpus = load("heart-disease")
    expected = {"cleveland": [164, 139], "hungarian": [188, 106], "switzerland": [8, 115], "va": [51, 149]}
    assert counts(corpus) == expected


@needs_data
def test_what_nobody_measured_is_missing() -> None:
    """All of Switzerland's cholesterol is 0 in the file, which no patient has."""
    corpus = load("heart-disease")
    assert corpus.clients is not None
    chol = np.isnan(corpus.x[:, list(corpus.columns).index("chol")])
    assert [int(chol[corpus.clients == hospital].sum()) for hospital in range(4)] == [0, 23, 123, 56]
    federation = build(corpus, 1, NATURAL, central=0.0)
    names = Preparation.of(federation.preprocessing).features
    assert (federation.rows(2, "train").x[:, names.index("chol is missing")] == 1).all()
    assert np.isfinite(federation.x).all() and np.abs(federation.x).max() < 10


@needs_data
def test_adult_is_split_as_its_authors_did() -> None:
    corpus = load("adult")
    assert corpus.own_test is not None
    parts = [np.bincount(corpus.y[corpus.own_test == test]).tolist() for test in (False, True)]
    assert parts == [[24720, 7841], [12435, 3846]]
    assert len(corpus.client_names) == 15 and "unknown" in corpus.client_names
    assert set(load("adult", clients="native-country").client_names) >= {"Mexico", "unknown", "United-States"}
    lacking = np.isnan(corpus.x[~corpus.own_test]).sum(axis=0)
    assert dict(zip(corpus.columns, lacking.tolist(), strict=True))["workclass"] == 1836


@needs_data
def test_parkinsons_keeps_some_patients_unseen() -> None:
    corpus = load("parkinsons")
    assert corpus.own_test is not None and corpus.clients is not None
    assert (len(corpus), len(corpus.client_names)) == (5875, 35)
    assert not {"6", "12", "18", "24", "30", "36", "42"} & set(corpus.client_names)
    assert np.array_equal(corpus.own_test, corpus.clients < 0)
    assert corpus.test_units is not None
    assert set(corpus.test_units[corpus.own_test].tolist()) == {"6", "12", "18", "24", "30", "36", "42"}
    assert (round(float(corpus.y.mean()), 2), "motor_UPDRS" in corpus.columns) == (29.02, False)
    motor = load("parkinsons", target="motor", unseen=False)
    assert (round(float(motor.y.mean()), 2), len(motor.client_names), motor.own_test) == (21.30, 42, None)


@needs_data
def test_wisdm_has_36_people_in_six_activities() -> None:
    corpus = load("wisdm")
    assert [int(count) for count in np.bincount(corpus.y)] == [2081, 1625, 632, 528, 306, 246]
    assert len(corpus.client_names) == 36
    missing = [int(np.isnan(corpus.x[:, list(corpus.columns).index(f"{axis}PEAK")]).sum()) for axis in "XYZ"]
    assert missing == [381, 131, 103]
    assert len(load("wisdm", unseen=True).client_names) == 30


@pytest.mark.parametrize(
    "schema",
    [heart_disease.SCHEMA, adult.SCHEMA, parkinsons.schema("total"), parkinsons.schema("motor"), wisdm.SCHEMA],
    ids=["heart-disease", "adult", "parkinsons-total", "parkinsons-motor", "wisdm"],
)
def test_the_schemas_are_sound(schema: dict[str, Any]) -> None:
    columns = columns_of(schema)
    assert sum(column.kind == "label" for column in columns.values()) == 1


@needs_data
@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "heart-disease",
            "processed.va.data",
            b"63,1,4,140",
            b"63,2,4,140",
            r"va\.data, line 1: column 'sex' is '2', none",
        ),
        (
            "heart-disease",
            "processed.va.data",
            b"63,1,4,140",
            b"630,1,4,140",
            r"column 'age' is 630, outside 0 to 120 years",
        ),
        (
            "adult",
            "adult.test",
            b"25, Private",
            b"25, Privat",
            r"adult\.test, line 2: column 'workclass' is 'Privat', none",
        ),
        (
            "adult",
            "adult.data",
            b"39, State-gov",
            b"nan, State-gov",
            r"line 1: column 'age' is 'nan', .*\(client 'Adm-cl",
        ),
        (
            "parkinsons",
            "parkinsons_updrs.data",
            b"PPE",
            b"PPF",
            r"column 'PPF' is not in data\.schema\. Did you mean PPE",
        ),
        (
            "parkinsons",
            "parkinsons_updrs.data",
            b"34.398",
            b"343.98",
            r"line 2: column 'total_UPDRS' is 343\.98, outside 0",
        ),
        ("wisdm-ar", "WISDM_ar_v1.1_transformed.arff", b"@data", b"@dato", "there is no line @data"),
        (
            "wisdm-ar",
            "WISDM_ar_v1.1_transformed.arff",
            b"\n2,33,0.12,",
            b"\n2,33,",
            "line 52: 45 fields where the data set has 46",
        ),
    ],
)
def test_a_file_that_somebody_changed(
    name: str, file: str, old: bytes, new: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksum is refused; and without that the schema itself names the place that is wrong."""
    source = name.removesuffix("-ar")
    shutil.copytree(Path(str(DATA)) / name, tmp_path / name, copy_function=shutil.copyfile)
    (tmp_path / name).chmod(0o755)
    path = tmp_path / name / file
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(DataError, match=r"SHA-256 is .* the file is damaged"):
        load(source, tmp_path)
    module = {"heart-disease": heart_disease, "adult": adult, "parkinsons": parkinsons, "wisdm": wisdm}[source]
    monkeypatch.setattr(module, "verify", lambda *_: None)
    with pytest.raises(DataError, match=message) as caught:
        load(source, tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("heart-disease", "adult", "parkinsons", "wisdm"):
        with pytest.raises(DataError, match=f"data set '{name}"):
            load(name, tmp_path)
