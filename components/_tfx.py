"""A component of ours as TFX runs it: its execution properties, its inputs by URI, and the files TFX looks for.

Nothing here needs TFX; `shortlist.components.tfx` makes its components of this.
"""

import importlib
import json
import os
import shutil
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shortlist import ShortlistError
from shortlist.components import artifacts as kinds
from shortlist.components._config import Config
from shortlist.components._engine import EngineConfig, engine_of
from shortlist.components._feature_statistics import write_feature_statistics
from shortlist.components.artifacts import LINEAGE, Artifact
from shortlist.components.pipeline import Component, Inputs, artifact_types, code_of, make, settings_of

INSTALL = "pip install 'shortlist[tfx]'"
ADDED = ("Split-*", "Format-Serving", "schema.pbtxt", "BLESSED", "NOT_BLESSED", "INFRA_BLESSED", "INFRA_NOT_BLESSED")
"""What `complete` puts beside the files of an artifact."""
OWN = ("Index", "Report")
"""Artifacts for which TFX has no type."""
KINDS: dict[type[Artifact], tuple[str, str]] = {
    kinds.Examples: ("Examples", "examples"),
    kinds.Statistics: ("ExampleStatistics", "statistics"),
    kinds.Schema: ("Schema", "schema"),
    kinds.Anomalies: ("ExampleAnomalies", "anomalies"),
    kinds.Splits: ("Examples", "split_examples"),
    kinds.Encoded: ("TransformGraph", "transform_graph"),
    kinds.Model: ("Model", "model"),
    kinds.Index: ("Index", "index"),
    kinds.Candidates: ("Examples", "candidates"),
    kinds.ModelEvaluation: ("ModelEvaluation", "evaluation"),
    kinds.Bundle: ("Model", "bundle"),
    kinds.InfraBlessing: ("InfraBlessing", "blessing"),
    kinds.PushedModel: ("PushedModel", "pushed_model"),
    kinds.Report: ("Report", "report"),
}
"""TFX's type of an artifact, and its key among a component's outputs."""
BESIDE: dict[type[Artifact], tuple[str, str]] = {
    kinds.Encoded: ("Examples", "transformed_examples"),
    kinds.ModelEvaluation: ("ModelBlessing", "blessing"),
}
"""Those that TFX has a second output for."""
PARAMETERS = ("component", "class_path", "config_class", "config", "state", "engine", "given", "code", "external")


def describe(component: Component, given: Mapping[str, Any]) -> dict[str, str]:
    """The execution properties, by which ML Metadata caches: all that decides what the step computes, beside its
    inputs, and the engine that does it.

    Args:
      component: the step.
      given: by the argument's name, the input key of its channel, or such keys by name.
    """
    state = {name: _packed(value) for name, value in vars(component).items() if name not in ("config", "engine")}
    values = {
        "state": state,
        "config": settings_of(component),
        "engine": component.engine.config.model_dump(mode="json"),
        "given": given,
        "code": code_of(component),
        "external": component.external(),
    }
    return {
        "component": component.name,
        "class_path": path_of(type(component)),
        "config_class": path_of(type(component.config)) if component.config else "",
        **{name: json.dumps(value, sort_keys=True) for name, value in values.items()},
    }


def revive(properties: Mapping[str, str]) -> Component:
    """The component that `describe` was given.

    Raises:
      ShortlistError: if the code here is not that of the machine where the pipeline was made, or the engine is not
        installed.
    """
    cls = named(properties["class_path"])
    component: Component = cls.__new__(cls)
    vars(component).update({name: _unpacked(value) for name, value in json.loads(properties["state"]).items()})
    config = json.loads(properties["config"])
    made = named(properties["config_class"]).model_validate(config) if properties["config_class"] else None
    component.config = made
    component.engine = engine_of(EngineConfig.model_validate(json.loads(properties["engine"])))
    there = json.loads(properties["code"])
    differ = sorted(name for name, digest in code_of(component).items() if there.get(name) != digest)
    if differ:
        raise ShortlistError(
            f"`{component.name}` must run the code that the pipeline was made with. Install the same version of "
            f"shortlist where it runs, or make the pipeline again. Received: another {', '.join(differ)}."
        )
    return component


def _packed(value: Any) -> Any:
    """What JSON can say of a part of a component's state: settings with their class, anything else as it is."""
    if not isinstance(value, Config):
        return value
    return {"class": path_of(type(value)), "settings": value.model_dump(mode="json")}


def _unpacked(value: Any) -> Any:
    settings = isinstance(value, dict) and set(value) == {"class", "settings"}
    return named(value["class"]).model_validate(value["settings"]) if settings else value


def execute(properties: Mapping[str, str], inputs: Mapping[str, str], out: str) -> Artifact:
    """Runs a step on the artifacts at the URIs of `inputs`, by input key, into the folder at the URI `out`.

    Raises:
      ShortlistError: for an input that is no artifact of the type that the step takes, and whatever it refuses.
    """
    component = revive(properties)
    hints = typing.get_type_hints(component.run)
    given: dict[str, Inputs] = {}
    for name, where in json.loads(properties["given"]).items():
        wanted = artifact_types(hints[name])
        if isinstance(where, dict):
            given[name] = {key: opened(inputs[at], wanted, f"{name}.{key}") for key, at in where.items()}
        else:
            given[name] = opened(inputs[where], wanted, name)
    return run_step(component, given, local(out))


def run_step(component: Component, inputs: Mapping[str, Inputs], folder: Path) -> Artifact:
    """Runs a step into a folder three levels below the pipeline's root, as TFX lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    make(component, inputs, folder, folder.absolute().parents[2])
    made = component.output(folder, json.loads((folder / LINEAGE).read_text("utf-8"))["fingerprint"])
    complete(made)
    return made


def local(uri: str) -> Path:
    """The folder of a URI. Buckets are read where Vertex AI mounts them.

    Raises:
      ShortlistError: for storage that is no folder here.
    """
    scheme, found, rest = uri.partition("://")
    if not found:
        return Path(uri).absolute()
    if scheme == "file":
        return Path(rest)
    mounted = Path("/gcs") / rest
    if scheme == "gs" and mounted.parents[-3].is_dir():
        return mounted
    raise ShortlistError(
        f"`pipeline_root` must be a folder that is mounted where the steps run; buckets of gs:// are read from /gcs, "
        f"where Vertex AI mounts them. Mount it, or give another root. Received: {uri}."
    )


def opened(uri: str, wanted: list[type[Artifact]], name: str) -> Artifact:
    """The artifact at a URI.

    Raises:
      ShortlistError: if it is none, or one of another type.
    """
    folder = local(uri)
    try:
        lineage = json.loads((folder / LINEAGE).read_text("utf-8"))
    except (OSError, ValueError):
        lineage = {"type": f"a folder without {LINEAGE}"}
    for cls in wanted:
        if cls.type == lineage["type"]:
            return cls(folder, lineage["fingerprint"])
    raise ShortlistError(
        f"`{name}` must be an artifact of shortlist, of type {' or '.join(t.type for t in wanted)}. Received: {uri}, "
        f"{lineage['type']}."
    )


def complete(made: Artifact) -> None:
    """Puts beside an artifact's files what TFX's own components look for, as links where the disk can."""
    if not isinstance(made, kinds.Encoded):  # whose splits are the second output
        link_parts(made, made.uri)
    if isinstance(made, kinds.Statistics):
        write_feature_statistics(made)
    if isinstance(made, kinds.Schema):
        shutil.copyfile(made / "interactions.pbtxt", made / "schema.pbtxt")
    served = {kinds.Model: "serving", kinds.Bundle: "saved_model"}.get(type(made))
    if served:
        shutil.copytree(made / served, made / "Format-Serving", copy_function=link, dirs_exist_ok=True)
    if isinstance(made, kinds.InfraBlessing):
        blessed = made.read_json("blessing.json")["blessed"]
        (made / ("INFRA_BLESSED" if blessed else "INFRA_NOT_BLESSED")).touch()


def link_parts(made: Artifact, folder: Path) -> None:
    """Puts the files of each split where TFX looks for them in an artifact's folder."""
    for name, files in parts_of(made).items():
        for file in files:
            link(made / file, folder / f"Split-{name}" / file)


def parts_of(made: Artifact) -> dict[str, list[str]]:
    """The splits of an artifact in TFX's sense, and their files."""
    if isinstance(made, kinds.Examples):
        return {name: [f"{name}.parquet"] for name in ("interactions", "items", "users")}
    if isinstance(made, kinds.Splits | kinds.Encoded):
        return {name: [f"{name}.parquet"] for name in made.names}
    if isinstance(made, kinds.Candidates):
        return {name: sorted(p.name for p in made.uri.glob(f"{name}.*npz")) for name in made.names}
    return {}


def adopt(root: str | Path, workdir: str | Path) -> list[str]:
    """Copies the artifacts of a TFX pipeline into the folder of a run, where `shortlist run` finds them.

    Args:
      root: the pipeline's root, a folder.
      workdir: the run's folder.

    Returns:
      The steps, one for each artifact that was not there.

    Raises:
      ShortlistError: if there is none under `root`.
    """
    root, workdir = Path(root), Path(workdir)
    found = {path.parent: json.loads(path.read_text("utf-8")) for path in sorted(root.glob(f"*/*/*/{LINEAGE}"))}
    if not found:
        raise ShortlistError(f"`root` must be the root of a TFX pipeline that has run. Received: {root}.")

    def place(lineage: Mapping[str, Any]) -> Path:
        return workdir / "artifacts" / lineage["component"] / lineage["fingerprint"][:16]

    by_uri = {path.absolute(): made for path, made in found.items()}
    adopted = []
    for folder, lineage in found.items():
        if (place(lineage) / LINEAGE).exists():
            continue
        for made_from in lineage["inputs"].values():
            source = by_uri[Path(os.path.normpath(folder.absolute().parents[2] / made_from["uri"]))]
            made_from["uri"] = os.path.relpath(place(source), workdir)
        partial = place(lineage).with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(*ADDED))
        (partial / LINEAGE).write_text(json.dumps(lineage, indent=2), "utf-8")
        partial.rename(place(lineage))
        adopted.append(lineage["component"])
    return adopted


def link(source: Any, target: Any) -> None:
    """Makes a file appear at another place too, as a copy where the disk knows no links."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def imported(name: str) -> Any:
    """A module of TFX.

    Raises:
      ShortlistError: with the install line, if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise ShortlistError(
            f"TFX pipelines need TFX on Python 3.10: {INSTALL}, or `make test-tfx` for the versions that were tried "
            f"together. Received: no module {missing}."
        ) from error


def path_of(cls: type) -> str:
    """The import path of a class, `package.module:Class`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def named(path: str) -> Any:
    """What is at an import path."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
