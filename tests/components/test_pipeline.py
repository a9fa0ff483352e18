"""The local runner: what is cached and what is not, and that nothing half-written ever looks whole."""

import errno
import fcntl
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from shortlist import ShortlistError, __version__
from shortlist.components import pipeline as runner
from shortlist.components._config import Config
from shortlist.components.artifacts import Artifact
from shortlist.components.pipeline import Component, Node, Pipeline


@dataclass(frozen=True)
class Text(Artifact):
    type: ClassVar[str] = "Text"


@dataclass(frozen=True)
class Other(Artifact):
    type: ClassVar[str] = "Other"


class Settings(Config):
    text: str = "a"


class Source(Component):
    output = Text

    def __init__(self, text: str = "a", name: str = "", outside: str = ""):
        super().__init__(Settings(text=text), name)
        self.outside = outside

    def external(self) -> str:
        return self.outside

    def run(self, out: Path) -> None:
        (out / "text").write_text(self.config.text + self.outside)


class Join(Component):
    output = Other

    def run(self, out: Path, text: Text, more: dict[str, Text], maybe: Other | None = None) -> None:
        parts = [text, *more.values(), *([maybe] if maybe else [])]
        (out / "text").write_text("".join((part / "text").read_text() for part in parts))


class Fail(Component):
    output = Text
    error: ClassVar[BaseException] = RuntimeError("no")

    def run(self, out: Path, text: Text) -> None:
        (out / "half").write_text("half")
        raise self.error


def chain(workdir: Path, left: str = "a", right: str = "b", outside: str = "") -> Pipeline:
    """left ─┐
    right ┴→ Join → Join.last (with Join); and an unrelated Source.alone."""
    p = Pipeline(workdir)
    one, two = p.add(Source(left, "left")), p.add(Source(right, "right", outside))
    first = p.add(Join(), one, {"x": two, "y": one})
    p.add(Join(name="last"), two, {}, maybe=first)
    p.add(Source("z", "alone"))
    return p


LAST = "Join.last"


def text(artifact: Artifact) -> str:
    return (artifact / "text").read_text()


def whole(workdir: Path) -> list[str]:
    """The steps that have an artifact."""
    return sorted(
        path.parent.parent.name
        for path in workdir.glob("artifacts/*/*/lineage.json")
        if path.parent.suffix != ".partial"
    )


def test_building_runs_nothing_and_running_gives_every_artifact(tmp_path: Path) -> None:
    p = chain(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    done = p.run()
    assert p.ran == list(p.steps) == list(done)
    assert text(done["Join"]) == "aba"
    assert text(done[LAST]) == "baba"
    assert isinstance(done["Join"], Other)
    assert done["Join"].uri == tmp_path / "run" / "artifacts" / "Join" / done["Join"].fingerprint[:16]


def test_the_second_run_does_nothing_and_gives_the_same(tmp_path: Path) -> None:
    first = chain(tmp_path).run()
    p = chain(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("text")}
    assert p.run() == first
    assert (p.ran, p.cached) == ([], list(p.steps))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("text")} == stamps
    assert p.run() == first  # the same object again
    assert (p.ran, p.cached) == ([], list(p.steps))


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"left": "c"}, ["Source.left", "Join", LAST]),
        ({"right": "c"}, ["Source.right", "Join", LAST]),
        ({"outside": "digest of another file"}, ["Source.right", "Join", LAST]),
    ],
)
def test_a_change_runs_that_step_and_what_follows(tmp_path: Path, change: dict[str, str], again: list[str]) -> None:
    before = chain(tmp_path).run()
    p = chain(tmp_path, **change)
    after = p.run()
    assert p.ran == again
    assert p.cached == [name for name in p.steps if name not in again]
    assert text(after[LAST]) != text(before[LAST])
    p = chain(tmp_path)
    assert p.run() == before  # the old settings are still in the cache
    assert p.ran == []


def test_the_name_of_an_input_is_part_of_its_meaning(tmp_path: Path) -> None:
    def built(first: str, second: str) -> Artifact:
        p = Pipeline(tmp_path)
        one, two = p.add(Source("a", "one")), p.add(Source("b", "two"))
        p.add(Join(), one, {first: one, second: two})
        return p.run()["Join"]

    assert built("x", "y").fingerprint != built("y", "x").fingerprint


def test_force_runs_a_step_again_and_until_leaves_out_what_is_not_needed(tmp_path: Path) -> None:
    p = chain(tmp_path)
    assert list(p.run(until=["Join"])) == p.ran == ["Source.left", "Source.right", "Join"]
    artifact = p.run(until=["Join"])["Join"]
    (artifact / "text").write_text("spoiled")
    p.run(until=["Join"], force=["Join"])
    assert (p.ran, p.cached) == (["Join"], ["Source.left", "Source.right"])
    assert text(artifact) == "aba"
    p.run()
    assert p.ran == [LAST, "Source.alone"]


@pytest.mark.parametrize("arguments", [{"until": ["Ranker"]}, {"force": ["Ranker"]}])
def test_an_unknown_step_is_refused(tmp_path: Path, arguments: dict[str, list[str]]) -> None:
    with pytest.raises(ShortlistError) as error:
        chain(tmp_path).run(**arguments)
    known = "Source.left, Source.right, Join, Join.last, Source.alone"
    assert str(error.value) == f"`Ranker` is not a step. Known: {known}."


def test_add_refuses_what_does_not_fit(tmp_path: Path) -> None:
    p = Pipeline(tmp_path)
    one, joined = p.add(Source()), Node("Join", Other)
    for inputs, message in (
        (([joined], {}), "`text` of Join takes Text. Received: list."),
        ((joined, {}), "`text` of Join takes Text. Received: Other."),
        ((one, {"x": joined}), "`more` of Join takes a dict by name of Text. Received: Other."),
        ((one, {}, one), "`maybe` of Join takes Other. Received: Text."),
        ((one, one), "`more` of Join takes a dict by name of Text. Received: Text."),
        (({"x": one}, {}), "`text` of Join takes Text. Received: dict."),
        (("Source", {}), "`text` of Join takes Text. Received: str."),
    ):
        with pytest.raises(TypeError) as error:
            p.add(Join(), *inputs)
        assert str(error.value) == message
    with pytest.raises(TypeError, match="missing a required argument: 'more'"):
        p.add(Join(), one)
    with pytest.raises(TypeError, match="unexpected keyword argument 'less'"):
        p.add(Join(), one, {}, less=one)
    with pytest.raises(ValueError, match=r"^A step needs a name of its own\. Received: 'Source' twice\.$"):
        p.add(Source())
    assert list(p.steps) == ["Source"]


def test_the_lineage_says_where_an_artifact_comes_from(tmp_path: Path) -> None:
    done = chain(tmp_path).run()
    lineage = json.loads((done["Join"] / "lineage.json").read_text())
    assert lineage["component"] == "Join"
    assert lineage["type"] == "Other"
    assert lineage["fingerprint"] == done["Join"].fingerprint
    assert list(lineage["inputs"]) == ["text", "more.x", "more.y"]
    assert lineage["inputs"]["more.x"] == {
        "type": "Text",
        "fingerprint": done["Source.right"].fingerprint,
        "uri": os.path.relpath(done["Source.right"].uri, tmp_path),
    }
    assert lineage["versions"]["shortlist"] == __version__
    assert {"tensorflow", "numpy", "pyarrow"} <= set(lineage["versions"])
    assert lineage["seconds"] >= 0
    assert lineage["started"].endswith("Z")
    assert done["Source.left"].lineage["config"] == {"text": "a"}
    assert any(name.endswith("test_pipeline") for name in lineage["code"])
    done["Join"].refuse_unless_made_from(done["Source.left"], done["Source.right"])
    with pytest.raises(ShortlistError, match=r"^`.*` \(Other\) was not made from `.*` \(Text\)"):
        done["Join"].refuse_unless_made_from(done["Source.alone"])


STEPS = """
from pathlib import Path
from steps_helper import WORD
from shortlist.components.artifacts import Schema
from shortlist.components.pipeline import Component

class Step(Component):
    output = Schema
    def modules(self):
        return [*super().modules(), "steps_helper"]
    def run(self, out: Path) -> None:
        (out / "text").write_text(WORD)

class After(Component):
    output = Schema
    def run(self, out: Path, schema: Schema) -> None:
        (out / "text").write_text((schema / "text").read_text() + "!")
"""


def test_changed_source_runs_the_steps_that_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def run(helper: str, steps: str = STEPS) -> tuple[list[str], str]:
        """As in a new process: nothing imported, no source remembered."""
        (tmp_path / "steps_helper.py").write_text(helper)
        (tmp_path / "steps.py").write_text(steps)
        for name in ("steps", "steps_helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        runner._sources.cache_clear()
        module = importlib.import_module("steps")
        p = Pipeline(tmp_path / "run")
        p.add(module.After(), p.add(module.Step()))
        after = p.run()["After"]
        return p.ran, text(after)

    assert run("WORD = 'one'") == (["Step", "After"], "one!")
    assert run("WORD = 'one'") == ([], "one!")
    assert run("WORD = 'two'") == (["Step", "After"], "two!")
    assert run("WORD = 'two'", STEPS.replace("!", "?")) == (["Step", "After"], "two?")
    assert run("WORD = 'one'") == ([], "one!")
    runner._sources.cache_clear()


def test_the_source_of_a_step_is_followed_through_all_that_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ways.py").write_text(
        "import shortlist.components._tables\n"
        "from shortlist.models import _layers\n"
        "def later():\n    from shortlist.components._queries import EncodedData\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = set(runner._sources(("ways",)))
    assert {"ways", "shortlist.components._tables", "shortlist.models._layers"} <= found
    assert "shortlist.components._queries" in found  # imported inside a function
    assert "shortlist.components.artifacts" in found  # by _queries
    assert not any(name.startswith(("numpy", "tensorflow")) for name in found)
    assert "tensorflow" not in subprocess_modules("shortlist.components.transform")


def subprocess_modules(module: str) -> set[str]:
    """What is loaded after the sources of `module` were read: reading them must not import TensorFlow."""
    code = (
        f"import sys; from shortlist.components.pipeline import _sources; _sources(({module!r},)); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def failing(workdir: Path, error: BaseException | None) -> Pipeline:
    p = Pipeline(workdir)
    step = Fail() if error else Join()
    step.error = error
    one = p.add(Source())
    p.add(step, one) if error else p.add(step, one, {})
    return p


@pytest.mark.parametrize("error", [RuntimeError("no"), ShortlistError("`x` is bad."), KeyboardInterrupt()])
def test_a_step_that_raises_leaves_nothing_that_looks_whole(tmp_path: Path, error: BaseException) -> None:
    p = failing(tmp_path, error)
    with pytest.raises(type(error)) as raised:
        p.run()
    assert raised.value is error
    assert whole(tmp_path) == p.ran == ["Source"]
    again = failing(tmp_path, error)
    with pytest.raises(type(error)):
        again.run()
    assert again.cached == ["Source"]


KILLED = """
import os, sys
from pathlib import Path
from shortlist.components.artifacts import Schema
from shortlist.components.pipeline import Component, Pipeline
import shutil

class Step(Component):
    output = Schema
    def run(self, out: Path) -> None:
        assert not list(out.iterdir())
        (out / "a").write_text("a" * 9)
        if sys.argv[2] == "run":
            os._exit(9)
        (out / "b").write_text("b" * 9)

removed = shutil.rmtree
def rmtree(folder, *args, **kwargs):
    files = sorted(Path(folder).glob("[!l]*")) if Path(folder).exists() else []
    if sys.argv[2] == "replace" and not str(folder).endswith(".partial") and files:
        files[0].unlink()  # the old artifact is half gone
        os._exit(9)
    return removed(folder, *args, **kwargs)
shutil.rmtree = rmtree
p = Pipeline(sys.argv[1])
p.add(Step())
p.run(force=["Step"] if sys.argv[2] == "replace" else [])
print(*p.ran)
"""


@pytest.mark.parametrize("moment", ["run", "replace"])
def test_a_killed_run_goes_on_with_the_same_command(tmp_path: Path, moment: str) -> None:
    def run(mode: str) -> subprocess.CompletedProcess:
        (tmp_path / "killed.py").write_text(KILLED)
        command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "run"), mode]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    if moment == "replace":
        assert run("quiet").stdout == "Step\n"
    assert run(moment).returncode == 9
    assert whole(tmp_path / "run") == []
    finished = run("quiet")
    assert (finished.returncode, finished.stdout) == (0, "Step\n"), finished.stderr
    assert whole(tmp_path / "run") == ["Step"]
    (folder,) = (tmp_path / "run" / "artifacts" / "Step").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "lineage.json"]


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    chain(tmp_path).run()
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ShortlistError) as error:
            chain(tmp_path).run()
    assert str(error.value) == (
        f"`workdir` {tmp_path} is in use by another run. Wait for it to end, or give another --workdir."
    )
    p = chain(tmp_path)
    p.run()
    assert p.ran == []


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for workdir, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        with pytest.raises(ShortlistError) as error:
            chain(workdir).run()
        assert str(error.value) == (
            f"`workdir` {workdir} cannot be written: {reason}. Free some space or give another --workdir; what is "
            "finished is kept, and the same command goes on from there."
        )


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(
        ShortlistError, match=r"^`workdir` .* cannot be written: No space left on device\. Free some"
    ) as error:
        failing(tmp_path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))).run()
    assert "\n" not in str(error.value)
    assert whole(tmp_path) == ["Source"]
    p = failing(tmp_path, None)
    assert text(p.run()["Join"]) == "a"
    assert p.cached == ["Source"]


def test_a_file_that_is_missing_is_not_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        failing(tmp_path, FileNotFoundError("weights")).run()
