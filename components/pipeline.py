"""The local runner: orders the steps, skips what is cached, records lineage. It stays small.

What it cannot do (schedules, clusters, retries across machines) belongs to TFX, to which every component can be handed.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import shutil
import sys
import time
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from shortlist import ShortlistError, __version__
from shortlist.components._cluster import CHIEF_LOCK, Cluster
from shortlist.components._config import Config
from shortlist.components._engine import Engine
from shortlist.components._files import locked, sync
from shortlist.components._progress import console
from shortlist.components.artifacts import LINEAGE, Artifact

_FOLDERS = ("shortlist.components", "shortlist.models", "shortlist.trainers")

Inputs = Artifact | list[Artifact] | dict[str, Artifact]


class Component:
    """One step: artifacts in, one artifact out.

    A subclass sets `output` to its artifact type and implements `run(out, **inputs)`, whose annotations are its
    interface: an input is an artifact type, or a `dict[str, type]` of named ones; a default of None makes it optional.
    """

    output: ClassVar[type[Artifact]]
    engine: Engine = Engine()
    """Does the data work. It is no part of the identity: the artifact is the same."""

    def __init__(self, config: Config | None = None, name: str = ""):
        self.config = config
        self.name = f"{type(self).__name__}.{name}" if name else type(self).__name__

    def run(self, out: Path, *args: Any, **inputs: Any) -> None:
        """Writes the artifact's files into the empty folder `out`."""
        raise NotImplementedError

    def modules(self) -> list[str]:
        """The modules whose source decides what this step computes; what they import of shortlist is added."""
        return [type(self).__module__]

    def external(self) -> Any:
        """Identifies what the step reads from outside the pipeline, such as the digest of a file."""
        return None

    def cluster(self) -> Cluster | None:
        """The processes that run this step together, as the environment of this one says; None if one does."""
        return None

    def help(self, artifact: Any, there: Callable[[], bool], workdir: Path, inputs: dict[str, Any]) -> None:
        """What a process of a cluster that is not its chief does for a step, until the chief's artifact is `there`."""


@dataclass(frozen=True)
class Node:
    """A step's promised output, to be given to the steps that need it."""

    step: str
    type: type[Artifact]


@dataclass
class _Step:
    component: Component
    inputs: dict[str, Node | dict[str, Node]]
    needs: list[str] = field(default_factory=list)


class Pipeline:
    """Steps in the order of their inputs. Building it runs nothing; `run()` does, from the cache where it can.

    Where a step belongs to a cluster (`Component.cluster`), every process of it builds the same pipeline over the same
    folder. The chief runs the steps and writes; the others write nothing: they follow it step by step, and help with
    those that are shared.

    Args:
      workdir: the run's folder. Artifacts go to `<workdir>/artifacts/<step>/<fingerprint>/`.
      shared: let other shared pipelines run in the folder at the same time; they wait for each other's steps.
      engine: does the data work of the steps.
    """

    def __init__(self, workdir: str | os.PathLike[str], shared: bool = False, engine: Engine | None = None):
        self.shared, self.engine = shared, engine or Engine()
        self.workdir = Path(workdir).absolute() if self.engine.apart else Path(workdir)
        self.steps: dict[str, _Step] = {}
        self.there: dict[str, Artifact] = {}
        self.ran: list[str] = []
        self.cached: list[str] = []

    def add(self, component: Component, *inputs: Any, **named: Any) -> Node:
        """Adds a step.

        Args:
          component: what to run.
          *inputs: nodes, or dicts of nodes by name, for the arguments of `component.run` in their order.
          **named: the same by name.

        Raises:
          TypeError: if the inputs don't fit the annotations of `component.run`.
          ValueError: if the name of the step is taken.
        """
        if component.name in self.steps:
            raise ValueError(f"A step needs a name of its own. Received: {component.name!r} twice.")
        bound = inspect.signature(component.run).bind(Path(), *inputs, **named).arguments
        bound.pop("out")
        hints = typing.get_type_hints(component.run)
        needs: list[str] = []
        for name, value in bound.items():
            wanted, many = artifact_types(hints[name]), takes_dict(hints[name])
            nodes = list(value.values()) if isinstance(value, Mapping) and many else [] if value is None else [value]
            for node in nodes:
                if not isinstance(node, Node) or node.type not in wanted or (node is value and many):
                    raise TypeError(
                        f"`{name}` of {component.name} takes {'a dict by name of ' if many else ''}"
                        f"{' or '.join(t.__name__ for t in wanted)}. "
                        f"Received: {getattr(node, 'type', type(node)).__name__}."
                    )
                needs.append(node.step)
        given = {name: value for name, value in bound.items() if value is not None}
        component.engine = self.engine
        self.steps[component.name] = _Step(component, given, needs)
        return Node(component.name, component.output)

    def given(self, name: str, artifact: Artifact) -> Node:
        """An artifact that is there already, as if a step of that name had made it.

        Raises:
          ValueError: if the name is taken.
        """
        if name in self.steps or name in self.there:
            raise ValueError(f"A step needs a name of its own. Received: {name!r} twice.")
        self.there[name] = artifact
        return Node(name, type(artifact))

    def run(self, until: Collection[str] = (), force: Collection[str] = ()) -> dict[str, Artifact]:
        """Runs what is not cached.

        Args:
          until: names of the steps wanted; all if empty. Only they and what they need are run.
          force: names of steps to run again although they are cached.

        Returns:
          The artifact of every step that was wanted or needed, by the step's name, and what was given.

        Raises:
          ShortlistError: for an unknown step, a folder that cannot be written or is in use by another run, and
            whatever a step refuses.
        """
        for name in [*until, *force]:
            if name not in self.steps:
                raise ShortlistError(f"`{name}` is not a step. Known: {', '.join(self.steps)}.")
        wanted = self._with_needs(until or self.steps)
        self.ran, self.cached = [], []
        done: dict[str, Artifact] = dict(self.there)
        clusters = (self.steps[name].component.cluster() for name in self.steps if name in wanted)
        cluster = next(filter(None, clusters), None)
        if cluster and force:
            raise ShortlistError(
                "`--force` is for one process: the others of a cluster could not tell the new artifact from the old. "
                f"Remove the step's folder in {self.workdir / 'artifacts'} instead. Received: {', '.join(force)}."
            )
        if cluster and not cluster.is_chief:
            for name in (n for n in self.steps if n in wanted):
                done[name] = self._followed(name, self.steps[name], done, cluster)
            return done
        busy = f"`workdir` {self.workdir} is in use by another run. Wait for it to end, or give another --workdir."
        with contextlib.ExitStack() as held:
            with disk_errors(self.workdir):
                held.enter_context(locked(self.workdir / ".lock", busy, self.shared))
                if cluster:
                    held.enter_context(locked(self.workdir / CHIEF_LOCK))
            for number, (name, step) in enumerate(((n, s) for n, s in self.steps.items() if n in wanted), 1):
                done[name] = self._one(name, step, done, name in force, f"{number}/{len(wanted)}")
        return done

    def _with_needs(self, names: Collection[str]) -> set[str]:
        wanted: set[str] = set()
        stack = list(names)
        while stack:
            name = stack.pop()
            if name not in wanted and name not in self.there:
                wanted.add(name)
                stack.extend(self.steps[name].needs)
        return wanted

    def _followed(self, name: str, step: _Step, done: Mapping[str, Artifact], cluster: Cluster) -> Artifact:
        """Waits for what the chief makes of a step, and helps where it can."""
        inputs, _, artifact = self._promised(name, step, done)

        def there() -> bool:
            return (artifact.uri / LINEAGE).exists()

        if not there():
            step.component.help(artifact, there, self.workdir, inputs)
        cluster.wait_for_chief(there, self.workdir)
        return artifact

    def _promised(
        self, name: str, step: _Step, done: Mapping[str, Artifact]
    ) -> tuple[dict[str, Any], dict[str, Any], Artifact]:
        """A step's inputs, what its fingerprint is made from, and the artifact that it has made or will make."""
        component = step.component
        inputs = {
            key: {k: done[v.step] for k, v in value.items()} if isinstance(value, dict) else done[value.step]
            for key, value in step.inputs.items()
        }
        identity, fingerprint = identify(component, inputs)
        return inputs, identity, component.output(self.workdir / "artifacts" / name / fingerprint[:16], fingerprint)

    def _one(self, name: str, step: _Step, done: Mapping[str, Artifact], force: bool, number: str) -> Artifact:
        component = step.component
        inputs, identity, artifact = self._promised(name, step, done)
        folder = artifact.uri
        if (folder / LINEAGE).exists() and not force:
            return self._from_cache(artifact, name, number)
        partial = folder.with_name(f"{folder.name}.partial")
        with disk_errors(folder), locked(self.workdir / ".locks" / f"{name}.{folder.name}"):
            if (folder / LINEAGE).exists() and not force:  # made by another while this one waited
                return self._from_cache(artifact, name, number)
            console.print(f"  {number:>6}  {name}", highlight=False)
            started = time.time()
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            make(component, inputs, partial, self.workdir, (identity, artifact.fingerprint))
            (folder / LINEAGE).unlink(missing_ok=True)  # first, so that what is half removed does not look whole
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        console.print(f"  [dim]{'':>6}  {time.time() - started:.1f} s[/dim]", highlight=False)
        self.ran.append(name)
        return artifact

    def _from_cache(self, artifact: Artifact, name: str, number: str) -> Artifact:
        console.print(f"  [dim]{number:>6}  {name}  cached[/dim]", highlight=False)
        self.cached.append(name)
        return artifact


def identify(component: Component, inputs: Mapping[str, Inputs]) -> tuple[dict[str, Any], str]:
    """What decides the artifact of a step with these inputs, and the fingerprint of that."""
    identity = {
        "component": component.name,
        "config": settings_of(component),
        "code": code_of(component),
        "external": component.external(),
        "inputs": {key: artifact.fingerprint for key, artifact in _flatten(inputs).items()},
    }
    return identity, hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def settings_of(component: Component) -> dict[str, Any]:
    """A step's configuration as plain values."""
    return component.config.model_dump(mode="json") if component.config else {}


def code_of(component: Component) -> dict[str, str]:
    """The digests of the sources that decide what a step computes, by module."""
    return _sources(tuple(component.modules()))


def make(
    component: Component,
    inputs: Mapping[str, Inputs],
    folder: Path,
    root: Path,
    known: tuple[dict[str, Any], str] | None = None,
) -> None:
    """Runs a step into an empty folder, and makes it durable, `lineage.json` last.

    Args:
      component: what to run.
      inputs: of `component.run`.
      folder: for its artifact.
      root: what the paths of the lineage start from.
      known: what `identify` said.
    """
    identity, fingerprint = known or identify(component, inputs)
    started = time.time()
    component.run(folder, **inputs)
    lineage = {
        **identity,
        "fingerprint": fingerprint,
        "type": component.output.type,
        "inputs": {
            key: {"type": a.type, "fingerprint": a.fingerprint, "uri": os.path.relpath(a.uri, root)}
            for key, a in _flatten(inputs).items()
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 2),
        "engine": component.engine.config.model_dump(mode="json"),
        "versions": _versions(),
    }
    _sync(folder, json.dumps(lineage, indent=2))


def artifact_types(hint: Any) -> list[type[Artifact]]:
    """The artifact types of an annotation."""
    if isinstance(hint, type) and issubclass(hint, Artifact):
        return [hint]
    return [found for argument in typing.get_args(hint) for found in artifact_types(argument)]


def takes_dict(hint: Any) -> bool:
    """Whether an annotation is that of artifacts by name."""
    return any(typing.get_origin(h) is dict for h in (hint, *typing.get_args(hint)))


def _flatten(inputs: Mapping[str, Inputs]) -> dict[str, Artifact]:
    flat: dict[str, Artifact] = {}
    for key, value in inputs.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{k}": v for k, v in value.items()})
        else:
            flat[key] = typing.cast(Artifact, value)
    return flat


def _sync(folder: Path, lineage: str) -> None:
    """Writes `lineage.json` and makes the folder durable before it gets its final name."""
    (folder / LINEAGE).write_text(lineage)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        sync(path)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a disk that can't be written into a refusal that names the folder."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError | ConnectionError | TimeoutError):
            raise
        raise ShortlistError(
            f"`workdir` {path} cannot be written: {error.strerror or error}. Free some space or give another "
            "--workdir; what is finished is kept, and the same command goes on from there."
        ) from error


@cache
def _versions() -> dict[str, str]:
    names = ("tensorflow", "tf-keras", "tensorflow-recommenders", "tensorflow-datasets", "numpy", "numba", "pyarrow")
    found = {"shortlist": __version__}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@cache
def _sources(modules: Sequence[str]) -> dict[str, str]:
    """The digest of each module's source and of every shortlist module that it imports, however deep."""
    digests: dict[str, str] = {}
    stack = list(modules)
    while stack:
        name = stack.pop()
        path = _file(name)
        if name in digests or path is None:
            continue
        source = path.read_bytes()
        digests[name] = hashlib.sha256(source).hexdigest()[:16]
        stack += [found for found in _imports(source, name.rpartition(".")[0]) if found.startswith("shortlist.")]
    return digests


def _file(module: str) -> Path | None:
    if module in sys.modules:
        name = getattr(sys.modules[module], "__file__", None)
    else:
        name = getattr(importlib.util.find_spec(module), "origin", None)
    return Path(name) if name else None


@cache
def _imports(source: bytes, package: str) -> list[str]:
    """The modules that a module of `package` imports anywhere; of `from x import y`, y too where x is a folder."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found += [origin, *(f"{origin}.{alias.name}" for alias in node.names if origin in _FOLDERS)]
    return found
