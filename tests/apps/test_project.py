"""What a Flower app's folder may be, and what is said of one that is none."""

import shutil
from pathlib import Path

import pytest
from flwr.common.config import flatten_dict, fuse_dicts, get_project_config, parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from fedsim.apps.project import read
from fedsim.apps.running import run
from fedsim.engine.inline import InlineEngine
from fedsim.errors import FedsimError
from tests.apps import written


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app that is not changed."""
    return written.write(tmp_path_factory.mktemp("app"))


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["num-server-rounds=7"],
        ["fault='a b' num-server-rounds=2", 'place="c"'],
        ["rates.first=0.25"],
        ["fault=true place=1.5"],
    ],
)
def test_settings_are_those_of_flower(app: Path, texts: list[str]) -> None:
    """Flower's own reading of the same texts is the oracle."""
    table = get_project_config(app)["tool"]["flwr"]["app"]["config"]
    assert read(app, texts).config == fuse_dicts(flatten_dict(table), parse_config_args(texts))


@given(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6), st.booleans())
def test_values_keep_their_type(app: Path, number: int, real: float, choice: bool) -> None:
    """As TOML has them."""
    text = f"num-server-rounds={number} rates.first={real!r} fault={str(choice).lower()}"
    config = read(app, [text]).config
    assert [config["num-server-rounds"], config["rates.first"], config["fault"]] == [number, real, choice]
    assert type(config["rates.first"]) is float


def test_settings_from_a_file(app: Path, tmp_path: Path) -> None:
    """Nested tables and all."""
    (tmp_path / "over.toml").write_text("num-server-rounds = 9\n[rates]\nfirst = 2.0\n")
    config = read(app, [str(tmp_path / "over.toml")]).config
    assert (config["num-server-rounds"], config["rates.first"]) == (9, 2.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num-server-round=1", "num-server-round is not among the settings in .*Did you mean num-server-rounds?"),
        ("fault=abc", "fault=abc: a text wants quotes: fault='abc'"),
        ("fault", "'fault' is not of the form"),
        ("fault=[1]", "fault is neither a number"),
    ],
)
def test_mistakes_in_settings(app: Path, text: str, said: str) -> None:
    """The key is named."""
    with pytest.raises(FedsimError, match=said):
        read(app, [text])


COMPONENT = 'serverapp = "tiny.server_app:app"\n'
LEGACY = """
from flwr.serverapp import ServerApp
app = ServerApp(server_fn=lambda context: None)
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (written.PYPROJECT, "[tool", "pyproject.toml cannot be read: TOMLDecodeError"),
        (COMPONENT, "", r"pyproject.toml: \[tool.flwr.app.components\] has no serverapp"),
        (COMPONENT, 'serverapp = "tiny"\n', "serverapp = 'tiny' is not of the form module:attribute"),
        ("tiny.client_app", "tiny.clients", "clientapp = 'tiny.clients:app': module tiny.clients cannot be imported"),
        ("server_app:app", "server_app:main.app", "module tiny.server_app has no main.app"),
        ("server_app:app", "server_app:main", "serverapp = 'tiny.server_app:main' is a function, not a ServerApp"),
        ("server_app:app", "client_app:app", "serverapp = 'tiny.client_app:app' is a ClientApp, not a ServerApp"),
        ("server_app:app", "legacy:app", "serverapp = 'tiny.legacy:app' has no function under @app.main"),
        ("tiny.client_app", "tiny.broken", r"tiny.broken cannot be imported: .*'gone' \(tiny/broken.py:2\)"),
    ],
)
def test_what_is_no_app_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    """In one line that names the file, before anything is written."""
    files = {**written.ALL, "tiny/legacy.py": LEGACY, "tiny/broken.py": "import os\nimport gone\n"}
    app = written.write(tmp_path / "app", files, written.PYPROJECT.replace(old, new))
    with pytest.raises(FedsimError, match=said) as caught:
        run(app, engine=InlineEngine(), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_project(tmp_path: Path) -> None:
    """It says which file it looked for."""
    with pytest.raises(FedsimError, match=r"there is no .*pyproject.toml; name the folder of a Flower app"):
        read(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(FedsimError, match=r"there is no .*pyproject.toml"):
        read(tmp_path)
