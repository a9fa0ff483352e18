"""Every component as a TFX component, with TFX's artifact types and caching by ML Metadata.

`shortlist.components.tfx.Splitter` and so on are `BaseComponent`s that run the component of the same name: its files
are those of a local run, with the folders beside them that TFX's own components look for (docs/tfx.md). TFX is
imported when one of them is asked for; importing this module needs nothing.
"""

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from shortlist import ShortlistError
from shortlist import components as ours
from shortlist.components import artifacts as kinds
from shortlist.components._tfx import (
    BESIDE,
    KINDS,
    OWN,
    PARAMETERS,
    describe,
    execute,
    imported,
    link_parts,
    local,
    named,
    parts_of,
)
from shortlist.components.artifacts import Artifact
from shortlist.components.pipeline import Component, Node, Pipeline, artifact_types, takes_dict


def wrap(component: Component, **inputs: Any) -> Any:
    """A component as a TFX component.

    Args:
      component: of ours, with its configuration.
      **inputs: TFX's channels by the names of `component.run`'s arguments, dicts of channels where it takes several.

    Returns:
      An instance of the class of the same name in this module; its output is `outputs[key]`, the key as in `KINDS`.

    Raises:
      ShortlistError: if TFX is not installed.
    """
    return _classes()[type(component).__name__](component, **inputs)


def wrap_pipeline(pipeline: Pipeline) -> list[Any]:
    """The steps of a pipeline as TFX components, in their order.

    Raises:
      ShortlistError: if TFX is not installed, or the pipeline begins with artifacts of another run.
    """
    if pipeline.there:
        raise ShortlistError(
            "`warm_start` takes artifacts of an earlier run, which ML Metadata does not know. Leave it out for TFX. "
            f"Received: {', '.join(pipeline.there)}."
        )
    made: dict[str, Any] = {}

    def channel(node: Node) -> Any:
        return made[node.step].outputs[KINDS[node.type][1]]

    for name, step in pipeline.steps.items():
        inputs = {
            key: {k: channel(n) for k, n in value.items()} if isinstance(value, Mapping) else channel(value)
            for key, value in step.inputs.items()
        }
        made[name] = wrap(step.component, **inputs)
    return list(made.values())


def component_names() -> list[str]:
    """The components that have a class here: all that are public."""
    return [name for name in ours.__all__ if name != "Pipeline"]


def __getattr__(name: str) -> Any:
    if name in (*component_names(), *OWN, "Executor"):
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _classes() -> dict[str, Any]:
    """By name, the TFX components, their executor, and the artifact types that TFX lacks."""
    base = "tfx.dsl.components.base"
    component = imported(f"{base}.base_component")
    base_executor: Any = imported(f"{base}.base_executor").BaseExecutor
    executors, specs = imported(f"{base}.executor_spec"), imported("tfx.types.component_spec")
    standard, types = imported("tfx.types.standard_artifacts"), imported("tfx.types")
    made = {name: _public(type(name, (types.Artifact,), {"TYPE_NAME": f"shortlist.{name}"})) for name in OWN}

    def type_of(kind: tuple[str, str]) -> Any:
        return made.get(kind[0]) or getattr(standard, kind[0])

    class Executor(base_executor):
        """Runs any component of shortlist."""

        def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:
            inputs = {key: found[0].uri for key, found in input_dict.items() if found}
            cls = named(exec_properties["class_path"]).output
            ((main,), *beside) = (output_dict[kind[1]] for kind in _outputs(cls))
            artifact = execute(exec_properties, inputs, main.uri)
            _mark(artifact, main, beside[0][0] if beside else None)

    parameters = {name: specs.ExecutionParameter(type=str) for name in PARAMETERS}
    spec_class: Any = type("Spec", (specs.ComponentSpec,), {"PARAMETERS": parameters, "INPUTS": {}, "OUTPUTS": {}})
    made["Executor"] = _public(Executor)

    def constructor(cls: type[Component]) -> Callable[..., None]:
        hints = typing.get_type_hints(cls.run)

        def __init__(self: Any, component: Component, **inputs: Any) -> None:
            inspect.signature(component.run).bind(Path(), **inputs)  # refuses what is unknown or missing
            channels, keys = _channels(inputs)
            for name, at in keys.items():
                if isinstance(at, dict) != takes_dict(hints[name]):
                    raise TypeError(f"`{name}` of {component.name} takes {hints[name]}. Received: {inputs[name]}.")
            types_in = {
                key: type_of(KINDS[artifact_types(hints[name])[0]])
                for name, at in keys.items()
                for key in (at.values() if isinstance(at, dict) else [at])
            }
            wanted = {key: specs.ChannelParameter(type=kind) for key, kind in types_in.items()}
            spec = type(f"{cls.__name__}Spec", (self.SPEC_CLASS,), {"INPUTS": wanted})
            out = {kind[1]: types.Channel(type=type_of(kind)) for kind in _outputs(cls.output)}
            component_class.__init__(self, spec(**describe(component, keys), **channels, **out))
            self.with_id(component.name.replace(".", "_"))

        return __init__

    component_class = component.BaseComponent
    for name in component_names():
        cls = getattr(ours, name)
        outputs = {kind[1]: specs.ChannelParameter(type=type_of(kind)) for kind in _outputs(cls.output)}
        body = {
            "__doc__": f"{name} of shortlist as a TFX component.\n\n{cls.__doc__}",
            "SPEC_CLASS": type(f"{name}Spec", (spec_class,), {"OUTPUTS": outputs}),
            "EXECUTOR_SPEC": executors.ExecutorClassSpec(Executor),
            "__init__": constructor(cls),
        }
        made[name] = _public(type(name, (component_class,), body))
    return made


def _public(cls: Any) -> Any:
    """The class, to be found in this module: TFX writes down its path, and imports it where the step runs."""
    cls.__module__, cls.__qualname__ = __name__, cls.__name__
    return cls


def _outputs(cls: type[Artifact]) -> list[tuple[str, str]]:
    return [KINDS[cls], *([BESIDE[cls]] if cls in BESIDE else [])]


def _channels(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The channels by input key, and the keys by argument (and name)."""
    channels: dict[str, Any] = {}

    def add(key: str, channel: Any) -> str:
        key = re.sub(r"\W", "_", key)
        while key in channels or (key in inputs and channel is not inputs[key]):
            key += "_"
        channels[key] = channel
        return key

    keys: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            keys[name] = {key: add(f"{name}_{key}", channel) for key, channel in value.items()}
        elif value is not None:
            keys[name] = add(name, value)
    return channels, keys


def _mark(made: Artifact, main: Any, beside: Any) -> None:
    """Sets the properties by which TFX's components tell what an artifact is, and fills the second output."""
    main.set_string_custom_property("shortlist_type", made.type)
    main.set_string_custom_property("shortlist_fingerprint", made.fingerprint)
    splits = list(parts_of(made))
    if isinstance(made, kinds.Examples | kinds.Splits | kinds.Candidates):
        _mark_examples(main, splits, parquet=not isinstance(made, kinds.Candidates))
    if isinstance(made, kinds.Statistics):
        main.splits = ["interactions", "items", "users"]
    if isinstance(made, kinds.Encoded):
        _mark_examples(beside, splits, parquet=True)
        link_parts(made, local(beside.uri))
    if isinstance(made, kinds.ModelEvaluation):
        blessed = made.read_json("blessing.json")["blessed"]
        beside.set_int_custom_property("blessed", int(blessed))
        local(beside.uri).mkdir(parents=True, exist_ok=True)
        (local(beside.uri) / ("BLESSED" if blessed else "NOT_BLESSED")).touch()
    if isinstance(made, kinds.InfraBlessing):
        main.set_int_custom_property("blessed", int(made.read_json("blessing.json")["blessed"]))
    if isinstance(made, kinds.PushedModel):
        pushed = made.read_json("pushed.json")
        main.set_int_custom_property("pushed", int(pushed["pushed"]))
        if pushed["pushed"]:
            main.set_string_custom_property("pushed_destination", pushed["path"])
            main.set_string_custom_property("pushed_version", str(pushed["version"]))


def _mark_examples(artifact: Any, splits: list[str], parquet: bool) -> None:
    artifact.splits = splits
    if parquet:  # TFX has no name for NumPy's files
        artifact.set_string_custom_property("file_format", "FILE_FORMAT_PARQUET")
        artifact.set_string_custom_property("payload_format", "FORMAT_PARQUET")
