"""Everything that a machine without a network needs to become a node or a server: wheels, hashes, licences.

    PACK/install.sh         makes an environment of them; pip is told to look nowhere else
    PACK/requirements.txt   every package, pinned to its version and the SHA-256 of its file
    PACK/wheels/            the files
    PACK/licences.csv       what each package is licensed under; the texts are in licences/

Versions are those that are installed here, so that a node computes the same bits as the machine that packed it.
"""

import base64
import csv
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from fedsim.errors import DeployError, one_line

OWN = "fedsim"
NOT_ON_NODES = frozenset({"ray", "plotly", "scikit-learn", "matplotlib"})
"""What fedsim installs for simulations, reports and the digits, and a node never imports."""
_INSTALL = """\
#!/bin/sh
# Installs fedsim {version} from the files beside this script, without a network:  sh install.sh [ENVIRONMENT]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
environment=${{1:-fedsim-env}}
python=${{PYTHON:-python3}}
found=$($python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$found" != "{python}" ]; then
    echo "error: these packages are for Python {python}, and $python is $found; set PYTHON=python{python}" >&2
    exit 2
fi
$python -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --require-hashes \\
    --only-binary :all: --find-links "$here/wheels" --requirement "$here/requirements.txt"
echo "installed; next: $environment/bin/fedsim deploy --help"
"""


class Packed(NamedTuple):
    """A package in a pack.

    Attributes:
        name, version: of the package.
        file: of its wheel.
        bytes: of the file.
        sha256: of the file, hexadecimal.
        licence: as the package says.
    """

    name: str
    version: str
    file: str
    bytes: int
    sha256: str
    licence: str


def pack(folder: Path, *, node: bool = False, extras: Sequence[str] = ()) -> list[Packed]:
    """Write a pack.

    Args:
        folder: which must not exist.
        node: for a node, which needs neither Ray nor what draws reports.
        extras: of fedsim, such as "media", whose packages are wanted too.

    Raises:
        DeployError: the folder exists or cannot be written, or a wheel cannot be had; nothing is left behind.
    """
    if folder.exists():
        raise DeployError(f"{folder} exists already; name another folder")
    wanted = closure(OWN, extras, left_out=NOT_ON_NODES if node else frozenset())
    wheels = folder / "wheels"
    try:
        wheels.mkdir(parents=True)
        fetch({name: version for name, version in wanted.items() if name != OWN}, wheels)
        build_own(wheels)
        packed = [described(wheel) for wheel in sorted(wheels.iterdir())]
        _check_complete(wanted, packed)
        write(folder, packed, wanted[OWN])
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise DeployError(f"{folder} cannot be written: {one_line(error)}") from error
        raise
    return packed


def closure(root: str, extras: Iterable[str] = (), left_out: frozenset[str] = frozenset()) -> dict[str, str]:
    """Every installed package that one needs, itself included: version by name.

    Args:
        root: the package.
        extras: of it.
        left_out: packages that are not wanted, nor what only they need.

    Raises:
        DeployError: a package that is needed is not installed.
    """
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(canonicalize_name(root), frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen or name in left_out:
            continue
        seen.add((name, wanted))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise DeployError(f"{name} is not installed here, and {root} needs it; install it first") from error
        found[name] = distribution.version
        waiting += [
            (canonicalize_name(each.name), frozenset(each.extras)) for each in _requirements(distribution, wanted)
        ]
    return dict(sorted(found.items()))


def _requirements(distribution: metadata.Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    """What a package needs on this machine, with some of its extras."""
    for text in distribution.requires or ():
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
            yield requirement


def fetch(versions: Mapping[str, str], folder: Path) -> None:
    """Download the wheels of some packages from where pip is told to look.

    Raises:
        DeployError: one is not to be had as a wheel for this machine.
    """
    if not versions:
        return
    wanted = [f"{name}=={version}" for name, version in versions.items()]
    _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), *wanted)


def build_own(folder: Path) -> None:
    """Add fedsim's own wheel, made of what is installed here; no index is asked for a package of that name."""
    source = Path(__file__).resolve().parents[2]
    if (source / "pyproject.toml").is_file():
        _build(source, folder)
    else:
        _zip_again(metadata.distribution(OWN), folder)


def _build(source: Path, folder: Path) -> None:
    """Build a wheel from a folder of source, whose own `build` folder may hold files of another day."""
    with tempfile.TemporaryDirectory() as place:
        settings = Path(place) / "setup.cfg"
        settings.write_text(f"[build]\nbuild_base = {place}/build\n[egg_info]\negg_base = {place}\n")
        _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(source), DIST_EXTRA_CONFIG=str(settings))


def _zip_again(distribution: metadata.Distribution, folder: Path) -> None:
    """Make a wheel of the files that one was installed as."""
    kept, record = [], io.StringIO()
    for file in distribution.files or ():
        place = PurePosixPath(file)
        made = place.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json") or place.suffix == ".pyc"
        if not made and not place.is_absolute() and ".." not in place.parts:
            kept.append((place, Path(str(distribution.locate_file(file))).read_bytes()))
    info = next(place.parts[0] for place, _ in kept if place.parts[0].endswith(".dist-info"))
    table = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(folder / f"{OWN}-{distribution.version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for place, content in kept:
            wheel.writestr(str(place), content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            table.writerow((place, f"sha256={digest}", len(content)))
        table.writerow((f"{info}/RECORD", "", ""))
        wheel.writestr(f"{info}/RECORD", record.getvalue())


def described(wheel: Path) -> Packed:
    """What a wheel's file says of itself."""
    name, version, _, _ = parse_wheel_filename(wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        headers = HeaderParser().parsestr(archive.read(_metadata(archive)).decode("utf-8", "replace"))
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Packed(name, str(version), wheel.name, wheel.stat().st_size, digest, licence(headers.items()))


def licence(headers: Iterable[tuple[str, str]]) -> str:
    """What a package's metadata say of its licence: an SPDX expression, a short text, or its classifiers."""
    fields: dict[str, list[str]] = {}
    for key, value in headers:
        fields.setdefault(key, []).append(value.strip())
    classifiers = [
        value.rpartition(" :: ")[2] for value in fields.get("Classifier", ()) if value.startswith("License ::")
    ]
    short = [value for value in fields.get("License", ()) if value and "\n" not in value and len(value) <= 80]
    return "; ".join(fields.get("License-Expression") or short or classifiers) or "see its files"


def write(folder: Path, packed: Sequence[Packed], version: str) -> None:
    """Write what goes with the wheels of a folder: requirements, the installer, the licences."""
    lines = [f"{each.name}=={each.version} --hash=sha256:{each.sha256}" for each in packed]
    (folder / "requirements.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
    script = _INSTALL.format(version=version, python=".".join(platform.python_version_tuple()[:2]))
    (folder / "install.sh").write_text(script, encoding="utf-8")
    with (folder / "licences.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(Packed._fields)
        table.writerows(packed)
    for each in packed:
        _copy_licences(folder / "wheels" / each.file, folder / "licences" / f"{each.name}-{each.version}")


def _copy_licences(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            place = PurePosixPath(member)
            named = place.name.upper().startswith(("LICEN", "COPYING", "NOTICE", "AUTHORS"))
            if place.parts[0].endswith(".dist-info") and (named or "licenses" in place.parts[1:-1]):
                folder.mkdir(parents=True, exist_ok=True)
                flat = "-".join(place.parts[1:])
                (folder / flat).write_bytes(archive.read(member))


def _metadata(archive: zipfile.ZipFile) -> str:
    return next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1)


def _check_complete(wanted: Mapping[str, str], packed: Sequence[Packed]) -> None:
    if absent := sorted(wanted.keys() - {each.name for each in packed}):
        raise DeployError(f"no wheel of {absent[0]} {wanted[absent[0]]} came; install it from a wheel first")


def _pip(*arguments: str, **environment: str) -> None:
    """Run pip, with some variables set.

    Raises:
        DeployError: it fails; the line that says why.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", arguments[0], "--quiet", *arguments[1:]]
    told = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=told)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise DeployError(f"pip {arguments[0]}: {(errors or done.stderr.splitlines() or ['failed'])[0]}")
