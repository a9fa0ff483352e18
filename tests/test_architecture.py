"""The rules of the house, read from the sources: who imports whom, how long a file is, what a model ships with."""

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import shortlist.components
import shortlist.models

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "src/shortlist": "shortlist",
    "models": "shortlist.models",
    "components": "shortlist.components",
    "trainers": "shortlist.trainers",
}
AREAS = ("models", "components", "trainers")
IN_MODELS = {"numpy", "tensorflow", "tensorflow_recommenders"}
FILES = {"glob", "io", "pathlib", "pickle", "shutil", "tempfile"}
TEXT = {".py", ".md", ".toml", ".txt", ".ipynb", ".in", ".yml", ".cfg", ""}
LOCAL = re.compile(r"(?<![\w.])/(?:root|work|home|Users)/\w|\b(?:pypi|npmjs|pythonhosted|crates|debian)\.(?:org|io)\b")


class Import(NamedTuple):
    """One imported name, written in full, and whether merely importing the file imports it."""

    name: str
    line: int
    eager: bool


def imports(source: str, package: str) -> Iterator[Import]:
    """All imports of a file that lies directly in `package`."""
    stack: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while stack:
        node, eager = stack.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from (Import(f"{origin}.{alias.name}", node.lineno, eager) for alias in node.names)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only
        stack.extend((child, eager and not lazy) for child in ast.iter_child_nodes(node))


@cache
def core_modules() -> frozenset[str]:
    """What may be imported without an extra: the top-level modules of the core dependencies."""
    words = (node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.keyword))
    (value,) = (word.value for word in words if word.arg == "install_requires")
    lines = ast.literal_eval(value)
    required, marked = (
        {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-") for line in some}
        for some in (lines, [line for line in lines if ";" in line])  # those of another Python are not installed here
    )
    owners = importlib.metadata.packages_distributions().items()
    installed = {m for m, dists in owners if required & {d.lower().replace("_", "-") for d in dists}}
    return frozenset(installed | {name.replace("-", "_") for name in marked})


def broken_rule(module: str, imported: Import) -> str | None:
    """The rule that `module` breaks by an import, if it breaks one."""
    top, area, rest = (*imported.name.split("."), "", "")[:3]
    home = module.split(".")[1] if module.count(".") > 1 else ""
    if top in AREAS:
        return f"import it as `shortlist.{top}`"
    if top == "shortlist":
        if area == "trainers" and home != "trainers" and module != "shortlist.cli":
            return "only the command line imports trainers"
        if area == "cli" and module != "shortlist.__main__":
            return "nothing imports the command line"
        if area == "components" and home == "models":
            return "models know no component"
        if area == "models" and home in ("models", "components") and not rest.startswith("_"):
            return f"{home} import no public model, only `shortlist.models._*`"
        if area in AREAS and module == "shortlist.__init__":
            return "`import shortlist` loads nothing"
        return None
    if home == "models":
        if top in FILES:
            return "models read and write no files"
        allowed = IN_MODELS | ({"numba"} if module.split(".")[2].startswith("_") else set())
        if top not in sys.stdlib_module_names and top not in allowed:
            return f"models import the standard library, shortlist and {', '.join(sorted(allowed))}"
    if top in sys.stdlib_module_names:
        return None
    if module == "shortlist.__init__":
        return "`import shortlist` loads nothing"
    if imported.eager and top not in core_modules():
        return "it is not a core dependency: import it inside the function that needs it"
    return None


def violations(root: Path) -> list[str]:
    """Every import that breaks a rule, one line each."""
    found = []
    for folder, package in PACKAGES.items():
        for path in sorted((root / folder).glob("*.py")):
            for imported in imports(path.read_text(), package):
                rule = broken_rule(f"{package}.{path.stem}", imported)
                if rule:
                    found.append(f"{path.relative_to(root)}:{imported.line} imports {imported.name}: {rule}.")
    return found


def silent_long_files(root: Path, limit: int = 400) -> list[str]:
    """Source files past the limit that don't say why in their first ten lines, as in "past 400 lines because"."""
    found = []
    for folder in (*PACKAGES, "tests", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            lines = path.read_text().splitlines()
            if len(lines) > limit and f"{limit} lines" not in " ".join(lines[:10]):
                found.append(f"{path.relative_to(root)} has {len(lines)} lines")
    return found


def lacking(root: Path, name: str, cls: str, module: str) -> list[str]:
    """What the model registered as `name`, the class `cls` of models/`module`.py, still needs to be whole."""
    lacks = []
    trainer = root / f"trainers/{name}.py"
    if not trainer.exists():
        lacks.append(f"trainers/{name}.py with `Config` and `train`")
    else:
        body = ast.parse(trainer.read_text()).body
        defined = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        lacks += [f"`{need}` in trainers/{name}.py" for need in ("Config", "train") if need not in defined]
    if not (root / f"trainers/configs/{name}.toml").exists():
        lacks.append(f"trainers/configs/{name}.toml")
    if not (root / f"trainers/configs/{name}.search.toml").exists():
        lacks.append(f"trainers/configs/{name}.search.toml")
    readme = root / "README.md"
    rows = [line for line in readme.read_text().splitlines() if line.startswith("|")] if readme.exists() else []
    if not any(f"`{name}`" in row for row in rows):
        lacks.append(f"a row with `{name}` in a table of README.md")
    tests = [root / f"tests/models/test_{stem}.py" for stem in dict.fromkeys((name, module))]
    if not any(_holds_contract(path, cls) for path in tests):
        lacks.append(f"a test class on `ModelContract` for {cls} in tests/models/{tests[0].name}")
    return lacks


def _holds_contract(path: Path, cls: str) -> bool:
    if not path.exists():
        return False
    source = path.read_text()
    bases = [ast.unparse(b) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef) for b in n.bases]
    held = any(base.endswith(("ModelContract", "TrainableContract")) for base in bases)
    return held and bool(re.search(rf"\b{cls}\b", source))


def test_imports_follow_the_map():
    assert not violations(ROOT), "\n".join(violations(ROOT))


def test_packages_have_no_folders_that_the_wheel_would_miss():
    nested = [p.relative_to(ROOT) for folder in PACKAGES for p in (ROOT / folder).glob("*/**/*.py")]
    assert not nested, f"setup.py packs the four folders only, not {nested}"


def test_long_files_say_why():
    assert not silent_long_files(ROOT), (
        f"say in the first ten lines why it is past 400 lines: {silent_long_files(ROOT)}"
    )


def test_every_public_model_file_registers_a_model():
    files = {path.stem for path in (ROOT / "models").glob("*.py") if not path.stem.startswith("_")}
    registered = {cls.__module__.rpartition(".")[2] for cls in shortlist.models.discover().values()}
    assert files, "models/ holds no model"
    assert files == registered, f"no `@register` in {sorted(files - registered)}"


def test_every_model_is_whole():
    found = {
        name: lacking(ROOT, name, cls.__name__, cls.__module__.rpartition(".")[2])
        for name, cls in shortlist.models.discover().items()
    }
    assert found, "no model is registered"
    lines = [f"{name} lacks {', '.join(lacks)}." for name, lacks in found.items() if lacks]
    assert not lines, "\n".join(lines)


def test_every_component_named_in_all_resolves():
    lacks = []
    for name in shortlist.components.__all__:
        try:
            assert getattr(shortlist.components, name).__name__ == name
        except (ImportError, AttributeError) as error:
            lacks.append(f"{name}: {error}")
    assert shortlist.components.__all__
    assert not lacks, "\n".join(lacks)


def test_no_file_names_a_place_of_one_machine_or_a_registry():
    folders = (*PACKAGES, ".ci", "benchmarks", "docs", "notebooks", "tests")
    paths = [p for p in ROOT.iterdir() if p.is_file()]
    paths += [
        p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts
    ]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in paths
        if path.suffix in TEXT and path.name != ".coverage"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in LOCAL.finditer(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source", "rule"),
    [
        ("models/a.py", "from shortlist.models.b import B", "no public model"),
        ("models/a.py", "from shortlist.models import b", "no public model"),
        ("models/a.py", "from . import b", "no public model"),
        ("models/a.py", "def f():\n    from ..components.splitter import Splitter", "models know no component"),
        ("models/a.py", "from shortlist import trainers", "only the command line"),
        ("models/_a.py", "import shortlist.models.b", "no public model"),
        ("models/a.py", "import pandas as pd", "models import the standard library"),
        ("models/_a.py", "from scipy import sparse", "models import the standard library"),
        ("models/a.py", "import numba", "models import the standard library"),
        ("models/a.py", "from pathlib import Path", "no files"),
        ("components/a.py", "from models._base import PAD", "import it as `shortlist.models`"),
        ("components/a.py", "from shortlist.models import WALS", "no public model"),
        ("components/a.py", "def f():\n    import shortlist.trainers.wals", "only the command line"),
        ("components/a.py", "class A:\n    import apache_beam", "not a core dependency"),
        ("components/a.py", "try:\n    import faiss\nexcept ImportError:\n    pass", "not a core dependency"),
        ("trainers/a.py", "from tfx.v1 import dsl", "not a core dependency"),
        ("trainers/a.py", "from shortlist.cli import main", "nothing imports the command line"),
        ("src/shortlist/b.py", "from shortlist.trainers import wals", "only the command line"),
        ("src/shortlist/__init__.py", "import numpy", "loads nothing"),
        ("src/shortlist/__init__.py", "from shortlist import models", "loads nothing"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, file, source, rule):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (found,) = violations(tmp_path)
    assert found.startswith(f"{file}:")
    assert rule in found


def test_allowed_imports_are_not_found(tmp_path):
    for file, source in {
        "models/_a.py": "import numba\nfrom shortlist.models._base import PAD",
        "models/a.py": "import tensorflow as tf\nfrom shortlist.models import _a\nfrom ._base import OOV",
        "components/a.py": "import pyarrow\nfrom shortlist.models._base import PAD\ndef f():\n    import apache_beam",
        "components/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import apache_beam",
        "trainers/a.py": "import scipy\nfrom shortlist.models.a import A\nfrom shortlist.components import Trainer",
        "src/shortlist/cli.py": "import typer\nfrom shortlist.trainers import two_stage",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(source)
    assert violations(tmp_path) == []


def test_a_long_file_is_found_unless_it_says_why(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/short.py").write_text("x = 1\n" * 400)
    (tmp_path / "models/why.py").write_text('"""Past 400 lines because it is a table."""\n' + "x = 1\n" * 400)
    (tmp_path / "models/long.py").write_text("x = 1\n" * 401)
    assert silent_long_files(tmp_path) == ["models/long.py has 401 lines"]


def test_what_a_model_lacks_is_named_until_it_is_there(tmp_path):
    def write(file: str, text: str) -> list[str]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
        return lacking(tmp_path, "foo", "Foo", "foos")

    contract = "a test class on `ModelContract` for Foo in tests/models/test_foo.py"
    row = "a row with `foo` in a table of README.md"
    assert write("README.md", "`foo`\n| `food` |") == [
        "trainers/foo.py with `Config` and `train`",
        "trainers/configs/foo.toml",
        "trainers/configs/foo.search.toml",
        row,
        contract,
    ]
    assert write("trainers/foo.py", "class Config: ...") == [
        "`train` in trainers/foo.py",
        "trainers/configs/foo.toml",
        "trainers/configs/foo.search.toml",
        row,
        contract,
    ]
    write("trainers/foo.py", "class Config: ...\ndef train(): ...")
    write("trainers/configs/foo.search.toml", "")
    assert write("trainers/configs/foo.toml", "") == [row, contract]
    assert write("README.md", "| `foo` | a model |") == [contract]
    assert write("tests/models/test_foos.py", "class TestFoo(ModelContract):\n    model = Food") == [contract]
    assert write("tests/models/test_foos.py", "class TestFoo(ModelContract):\n    model = Foo") == []
