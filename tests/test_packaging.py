"""What leaves the house: the wheel, the sdist, the first import, and the two commands of the README."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import shortlist

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "src/shortlist": "shortlist",
    "models": "shortlist/models",
    "components": "shortlist/components",
    "trainers": "shortlist/trainers",
}
KINDS = ("*.py", "*.c", "*.css", "*.html", "*.js", "configs/*.toml")
NOT_SOURCES = (".git", ".venv*", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")


def sources() -> dict[str, str]:
    """The files to ship, by their path in the repository, and the path in the wheel."""
    found = {}
    for folder, package in FOLDERS.items():
        paths = [p for kind in KINDS for p in (ROOT / folder).rglob(kind)]
        found |= {
            f"{folder}/{p.relative_to(ROOT / folder)}": f"{package}/{p.relative_to(ROOT / folder)}" for p in paths
        }
    return found | {"src/shortlist/py.typed": "shortlist/py.typed"}


def python(code: str, *options: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh process that inherits neither the choice of Keras nor a path to other modules."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("TF_USE_LEGACY_KERAS", "PYTHONPATH")}
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=cwd, env=inherited | variables, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist made of a copy of this checkout, and the wheel made of that sdist."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "checkout"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel alone was installed."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = dist.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_four_packages_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"shortlist-{shortlist.__version__}.dist-info"
    described = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert names == set(sources().values()) | {f"{info}/{name}" for name in described}


@pytest.mark.slow
def test_the_sdist_holds_what_builds_the_wheel_and_nothing_else(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    built = {name for name in names if name.startswith("shortlist.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    described = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
    assert names - built == set(sources()) | described


@pytest.mark.slow
def test_an_install_adds_one_top_level_module_and_one_command(installed):
    assert {p.name for p in installed.iterdir() if p.suffix != ".dist-info"} == {"shortlist", "bin"}
    assert [p.name for p in (installed / "bin").iterdir()] == ["shortlist"]


@pytest.mark.slow
def test_the_installed_wheel_works_without_the_checkout(installed, tmp_path):
    code = (
        "import pkgutil, shortlist, shortlist.components, shortlist.models, shortlist.trainers\n"
        "print(shortlist.__file__, len(shortlist.models.discover()))\n"
    )
    ran = python(code, "-P", cwd=tmp_path, PYTHONPATH=str(installed))
    file, models = ran.stdout.split() or (ran.stderr, 0)
    assert file == str(installed / "shortlist/__init__.py")
    assert int(models) == len(shortlist.models.discover()) > 0


@pytest.mark.parametrize("module", ["shortlist", "shortlist.components", "shortlist.models", "shortlist.trainers"])
def test_an_import_loads_nothing_heavy(module):
    heavy = ("tensorflow", "numpy", "pandas", "pyarrow", "pydantic", "scipy", "keras", "tf_keras")
    ran = python(f"import sys, {module}\nprint({module}.__name__, [m for m in {heavy} if m in sys.modules])")
    assert ran.stdout == f"{module} []\n", ran.stderr


@pytest.mark.slow
def test_keras_3_as_tf_keras_is_refused_with_the_remedy():
    code = "import tensorflow as tf\nassert tf.keras.Model.__module__.startswith('keras.')\nimport shortlist"
    ran = python(code, TF_USE_LEGACY_KERAS="0")
    assert ran.returncode == 1
    assert re.search(
        r"^ImportError: Shortlist needs Keras 2 as `tf\.keras`, but Keras 3 was loaded first\. Import shortlist before "
        r"the first use of `tf\.keras`, or set the environment variable TF_USE_LEGACY_KERAS=1 before Python starts\. "
        r"Received: tf\.keras\.Model from keras\.",
        ran.stderr,
        re.MULTILINE,
    ), ran.stderr


@pytest.mark.slow
def test_keras_tuner_may_be_imported_first():
    code = (
        "import sys, keras_tuner\nassert 'keras' in sys.modules\nimport shortlist.models, tensorflow as tf\n"
        "print(issubclass(shortlist.models.WALS, tf.keras.Model), tf.keras.Model.__module__.split('.')[0])"
    )
    ran = python(code)
    assert ran.stdout == "True tf_keras\n", ran.stderr


@pytest.mark.parametrize("folder", ["models", "components", "trainers"])
def test_a_folder_is_not_importable_by_its_bare_name(folder):
    ran = python(f"import {folder}")
    assert ran.returncode == 1
    assert ran.stderr.endswith(
        f"ImportError: Import this package as `shortlist.{folder}` (run `pip install -e .` first). "
        f"Received: `{folder}`.\n"
    )


@pytest.mark.parametrize(
    ("version", "file", "names"),
    [
        *((v, "constraints.txt", ("demo", "beam", "faiss", "bench", "serve", "dev")) for v in ("3.11", "3.12", "3.13")),
        ("3.10", "constraints-tfx.txt", ("demo", "tfx")),
    ],
)
def test_every_dependency_has_one_exact_version_that_fits(version, file, names, monkeypatch):
    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    assert set(given["extras_require"]) == {"demo", "beam", "tfx", "faiss", "bench", "serve", "dev"}
    here = {"python_version": version}
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    pins = [pin for pin in map(Requirement, lines) if not pin.marker or pin.marker.evaluate(here)]
    exact = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(exact) == len(pins), "two versions of one distribution"
    for line in [*given["install_requires"], *(line for name in names for line in given["extras_require"][name])]:
        wanted = Requirement(line)
        if not wanted.marker or wanted.marker.evaluate(here):
            assert exact.get(canonicalize_name(wanted.name), "nothing") in wanted.specifier, f"{line} is not pinned"


def test_the_two_commands_of_the_readme_are_those_that_are_checked():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    assert set(re.findall(r"^make \w+", readme, re.MULTILINE)) >= {"make demo", "make test"}
    for command in set(re.findall(r"^make (\w+)", readme, re.MULTILINE)):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), f"the Makefile has no `{command}`"
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
