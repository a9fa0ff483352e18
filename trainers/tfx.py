"""Pipelines of TFX: the two stages for its runners, and `run_fn` and `tuner_fn` for its own Trainer and Tuner.

    from shortlist.trainers import tfx
    from shortlist.trainers.two_stage import load_config

    tfx.run(load_config(overrides={"data.source": "demo"}), "runs/tfx")

See docs/tfx.md. TFX is imported when a pipeline is made; importing this module needs nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components._tfx import adopt, imported, opened, run_step
from shortlist.components.artifacts import Artifact, Candidates, Encoded, Model
from shortlist.components.evaluator import Evaluator
from shortlist.components.pipeline import Pipeline
from shortlist.components.tfx import wrap_pipeline
from shortlist.components.trainer import Trainer
from shortlist.trainers._sweep import Sweep, SweepConfig
from shortlist.trainers.two_stage import (
    RANKER,
    TwoStage,
    config_class,
    defaults,
    place_of,
    retrievers,
    two_stage,
)

__all__ = ["adopt", "compile_for_kubeflow", "pipeline", "run", "run_fn", "tuner_fn"]

METADATA = "metadata.sqlite"
SETTINGS = ("model", "name", "settings")
SEARCH = ("model", "settings", "algorithm", "trials", "objective", "seed", "max_epochs", "factor", "space")


def pipeline(config: TwoStage, root: str | Path, name: str = "shortlist", metadata: Path | None = None) -> Any:
    """The two stages as a TFX pipeline, with caching.

    Args:
      config: of the run; its `workdir` is not used.
      root: where artifacts go.
      name: of the pipeline.
      metadata: the file of ML Metadata, for local runs.

    Raises:
      ShortlistError: if TFX is not installed, or for a warm start.
    """
    v1 = imported("tfx.v1")
    store = None
    if metadata is not None:
        metadata.parent.mkdir(parents=True, exist_ok=True)
        store = v1.orchestration.metadata.sqlite_metadata_connection_config(str(metadata))
    return v1.dsl.Pipeline(
        pipeline_name=name,
        pipeline_root=str(root),
        components=wrap_pipeline(two_stage(config)),
        enable_cache=True,
        metadata_connection_config=store,
    )


def run(config: TwoStage, folder: str | Path, name: str = "shortlist") -> Path:
    """Runs the pipeline on this machine by TFX's LocalDagRunner; what is cached in ML Metadata is not run again.

    Args:
      config: of the run; its `workdir` is not used.
      folder: for the artifacts, `<folder>/root`, and for `metadata.sqlite`.
      name: of the pipeline.

    Returns:
      The pipeline's root.
    """
    v1 = imported("tfx.v1")
    home = Path(folder).absolute()
    v1.orchestration.LocalDagRunner().run(pipeline(config, home / "root", name, home / METADATA))
    return home / "root"


def compile_for_kubeflow(
    config: TwoStage, root: str, image: str, file: str | Path, name: str = "shortlist"
) -> dict[str, Any]:
    """Writes the pipeline as Kubeflow Pipelines 2 and Vertex AI run it.

    Args:
      config: of the run.
      root: where artifacts go, such as gs://bucket/shortlist.
      image: with `shortlist[tfx]`, the same version as here.
      file: to write to, `.yaml` or `.json`.
      name: of the pipeline, small letters, digits and -.

    Returns:
      What was written.
    """
    kubeflow = imported("tfx.orchestration.kubeflow.v2.kubeflow_v2_dag_runner")
    target = Path(file)
    settings = kubeflow.KubeflowV2DagRunnerConfig(default_image=image)
    runner = kubeflow.KubeflowV2DagRunner(settings, output_dir=str(target.parent), output_filename=target.name)
    return runner.run(pipeline(config, root, name))


def run_fn(fn_args: Any) -> None:
    """For TFX's own Trainer: trains a model of shortlist on what `Transform` made.

    `custom_config` has `model`, and if wanted `settings`, that differ from the shipped ones, and `name`, of the step.
    `transform_graph` and `examples` are those of shortlist's Transform; a ranker's `examples` those of its
    CandidateGenerator. `base_model` is one to go on with, `hyperparameters` what TFX's Tuner found by `tuner_fn`.

    Raises:
      ShortlistError: for a model or a setting that does not exist, and for inputs that are not shortlist's.
    """
    given = _given(fn_args, SETTINGS)
    model, settings = given["model"], dict(given.get("settings", {}))
    if fn_args.hyperparameters:
        settings |= found_settings(model, fn_args.hyperparameters["values"])
    config = parse(config_class(model), {**defaults(model), **settings}, f"`custom_config` ({model})")
    inputs: dict[str, Any] = {"encoded": _encoded(fn_args)}
    if model == RANKER:
        inputs["candidates"] = opened(str(Path(fn_args.train_files[0]).parents[1]), [Candidates], "examples")
    if fn_args.base_model:
        inputs["start"] = opened(str(Path(fn_args.base_model).parent), [Model], "base_model")
    step = Trainer(config, given.get("name", model), f"shortlist.trainers.{model}:train")
    run_step(step, inputs, Path(fn_args.serving_model_dir).parent)


def tuner_fn(fn_args: Any) -> Any:
    """For TFX's own Tuner: searches a retriever's settings on `validation`, as `shortlist tune` does.

    `custom_config` has `model`, and if wanted `settings` that are given and not searched, and of `SweepConfig`
    `algorithm`, `trials`, `objective`, `seed`, `max_epochs`, `factor` and `space`. What is found goes to TFX's Trainer
    as `hyperparameters`.

    Raises:
      ShortlistError: for a ranker, and for what `SweepConfig` refuses.
    """
    given = _given(fn_args, SEARCH)
    model = given.pop("model")
    if model == RANKER:
        raise ShortlistError(
            "`custom_config` of TFX's Tuner must name a retriever: a ranker is measured with its sources, for which it "
            f"has no input. Use `shortlist tune {RANKER}`. Received: {RANKER}."
        )
    settings = {place_of(model) + name: value for name, value in given.pop("settings", {}).items()}
    encoded = _encoded(fn_args)

    def build(config: TwoStage, shared: bool) -> Pipeline:
        p = Pipeline(config.workdir, shared)
        there = p.given("Transform", encoded)
        p.add(Evaluator(config.evaluation), there, {}, retrievers(p, config, config.sources, there))
        return p

    sweep = Sweep(parse(SweepConfig, {**given, "target": model, "given": settings}), Path(fn_args.working_dir))
    sweep.stages = [replace(stage, build=build) for stage in sweep.stages]
    result = imported("tfx.v1").components.TunerFnResult
    return result(tuner=sweep.tuner(sweep.stages[0]), fit_kwargs={})


def found_settings(model: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial of `tuner_fn`, from KerasTuner's values."""
    sweep = Sweep(SweepConfig(target=model), Path())
    (stage,) = sweep.stages
    named = sweep.named(stage, sweep.spaces[stage.name].decode(values), values.get("tuner/epochs"))
    return {name.removeprefix(place_of(model)): value for name, value in named.items()}


def _encoded(fn_args: Any) -> Artifact:
    if not fn_args.transform_graph_path:
        raise ShortlistError(
            "`transform_graph` must be that of shortlist's Transform: transform_graph=transform.outputs"
            "['transform_graph']. Received: none."
        )
    return opened(fn_args.transform_graph_path, [Encoded], "transform_graph")


def _given(fn_args: Any, known: tuple[str, ...]) -> dict[str, Any]:
    """`custom_config`, with a model."""
    given = dict(fn_args.custom_config or {})
    unknown = sorted(set(given) - set(known))
    if "model" not in given or unknown:
        raise ShortlistError(
            f"`custom_config` must have a `model`, and may have {', '.join(known[1:])}. "
            f"Received: {json.dumps(given, default=str)}."
        )
    defaults(given["model"])  # refuses one that does not exist
    return given
