"""One sweep: its settings, its stages, what a trial of each runs, and the best of them."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pydantic

from shortlist import ShortlistError
from shortlist.components import _workers
from shortlist.components._config import Config, toml_lines
from shortlist.components._files import replace_file
from shortlist.components._search_space import SearchSpace, parse_space
from shortlist.components._training import divide_cpu
from shortlist.components._trials import TrialRecord, best_trial
from shortlist.components.evaluator import METRICS, TWO_STAGE, UNION
from shortlist.components.pipeline import Pipeline
from shortlist.trainers.two_stage import (
    CONFIGS,
    RANKER,
    ModelConfig,
    TwoStage,
    alone,
    load_config,
    model_names,
    place_of,
    read_toml,
    retrieval_only,
    setting_names,
    setting_of,
    shortlist_only,
    two_stage,
)

BEST = "best.toml"
UNSEARCHED = ("seed", "train_on", "deterministic", "leave_out")


class SweepConfig(Config):
    """What is swept.

    Args:
      target: a model, or "two_stage".
      algorithm: one of KerasTuner's oracles: "random", "bayesian", "hyperband" or "grid".
      trials: the most, of each stage; None for all of a grid, or of one pass of Hyperband.
      objective: a metric of the evaluator on `validation`, such as "ndcg@10".
      seed: of the search; that of the models is `seed` of their configuration.
      max_epochs: of Hyperband: the epochs of the best trials; None for the shipped ones.
      factor: of Hyperband: one trial of so many goes on, with so many times the epochs.
      file: settings of the pipeline, as a TOML file has them.
      given: settings of the pipeline by dotted name. What `file` or `given` sets is not searched.
      space: the search space, as in a search file; None for the shipped one.
    """

    target: str
    algorithm: Literal["random", "bayesian", "hyperband", "grid"] = "random"
    trials: int | None = pydantic.Field(20, ge=1)
    objective: str = "ndcg@10"
    seed: int = pydantic.Field(0, ge=0, lt=2**31)
    max_epochs: int | None = pydantic.Field(None, ge=1)
    factor: int = pydantic.Field(3, ge=2)
    file: dict[str, Any] = pydantic.Field(default_factory=dict)
    given: dict[str, Any] = pydantic.Field(default_factory=dict)
    space: dict[str, Any] | None = None

    @pydantic.model_validator(mode="after")
    def _exists(self) -> "SweepConfig":
        known = [*model_names(), TWO_STAGE]
        if self.target not in known:
            raise ValueError(f"`target` must be one of {', '.join(known)}. Received: {self.target!r}.")
        depth(self.objective)
        return self


def depth(objective: str) -> int:
    """The k of a metric's name.

    Raises:
      ValueError: with those that exist, if it is not one.
    """
    name, _, k = objective.partition("@")
    if name not in (*METRICS, "coverage") or not k.isdigit() or int(k) < 1:
        known = ", ".join(f"{metric}@K" for metric in (*METRICS, "coverage"))
        raise ValueError(f"`objective` must be one of {known}, with K from 1 up. Received: {objective!r}.")
    return int(k)


@dataclass(frozen=True)
class Stage:
    """One search: which settings, what is built with them, and whose metric decides.

    Args:
      name: its folder, "" for the sweep of one model.
      build: makes the pipeline of a trial.
      system: the one that is measured.
      objective: the metric.
      prefix: of the settings' names within the configuration.
      chosen: settings found by the stage before.
    """

    name: str
    build: Callable[[TwoStage, bool], Pipeline]
    system: str
    objective: str
    prefix: str = ""
    chosen: Mapping[str, Any] | None = None


class Sweep:
    """A sweep in its folder.

    Args:
      config: what is swept.
      workdir: its folder, which holds the artifacts of all trials: what two of them share is made once.
    """

    def __init__(self, config: SweepConfig, workdir: Path):
        self.config, self.workdir = config, workdir
        self.alone = {} if config.target == TWO_STAGE else alone(config.target)
        self.spaces: dict[str, SearchSpace] = {}
        self.stages: list[Stage] = []
        self.shipped = self.pipeline_config({}, config.objective)
        if config.target == TWO_STAGE:
            self._add(Stage("retrieval", shortlist_only, UNION, f"recall@{self.shipped.shortlist.size}"), ranker=False)
            self._add(Stage("ranker", two_stage, TWO_STAGE, config.objective), ranker=True)
            return
        build, system = (two_stage, TWO_STAGE) if config.target == RANKER else (retrieval_only, config.target)
        self._add(Stage("", build, system, config.objective, place_of(config.target)))

    def _add(self, stage: Stage, ranker: bool | None = None) -> None:
        where = f"the search space of {self.config.target}"
        tables = shipped_space(self.config.target) if self.config.space is None else self.config.space
        if ranker is not None:
            tables = {name: table for name, table in tables.items() if name.startswith("ranker.") == ranker}
        if self.config.target == TWO_STAGE and "shortlist.size" in tables:
            raise ShortlistError(
                "`shortlist.size` can't be searched: recall at different lengths says nothing about which is better. "
                "Set it with --set. Received: shortlist.size among the settings."
            )
        if self.config.algorithm == "hyperband":
            tables = {name: table for name, table in tables.items() if name.rpartition(".")[2] != "epochs"}

        def value_of(name: str, changes: Mapping[str, Any]) -> Any:
            config = self.pipeline_config({stage.prefix + key: v for key, v in changes.items()}, stage.objective)
            return setting_of(config, stage.prefix + name)

        given = {*self.config.given, *_dotted(self.config.file)}
        fixed = [name for name in tables if stage.prefix + name in given]
        self.stages.append(stage)
        self.spaces[stage.name] = parse_space(tables, value_of, where, fixed)

    def pipeline_config(self, settings: Mapping[str, Any], objective: str) -> TwoStage:
        """The pipeline with the settings of a trial: without `test`, and without the baselines, which nobody tunes.

        Raises:
          ShortlistError: for a setting that does not fit, or a strategy that several processes share.
        """
        measured = {
            "split.keep_test": False,
            "baselines": {},
            "evaluation.split": "validation",
            "evaluation.cutoffs": [depth(objective)],
            "evaluation.samples": 100,  # of intervals that nobody sees
        }
        given = {**self.alone, **self.config.given, **settings, **measured, "workdir": str(self.workdir)}
        config = load_config(self.config.file, given)
        for strategy in _strategies(config) - {"none", "mirrored"}:
            raise ShortlistError(
                "`strategy` of a sweep can be none, mirrored: each trial trains in one process. Give it to `shortlist "
                f"train` or `run`, with the best.toml of the sweep. Received: {strategy}."
            )
        return config

    def folder(self, stage: Stage) -> Path:
        """Where a stage keeps its trials."""
        return self.workdir / (stage.name or "search")

    def with_choice(self, stage: Stage) -> Stage:
        """The stage, with what the one before it found.

        Raises:
          ShortlistError: if that one found nothing.
        """
        earlier = self.stages[: self.stages.index(stage)]
        return replace(stage, chosen=self.chosen(earlier)) if earlier else stage

    def chosen(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """The best settings of finished stages, by their names within the configuration."""
        from shortlist.components.tuner import best_settings

        found: dict[str, Any] = {}
        for stage in stages:
            best = best_settings(self.folder(stage), self.spaces[stage.name])
            if best is None:
                failed = [r for r in self.records() if r.stage == stage.name and r.message]
                why = f" The last said: {failed[-1].message}" if failed else ""
                raise ShortlistError(
                    f"`{self.config.target}`: no trial of {stage.name or 'the sweep'} gave a result, so there is "
                    f"nothing to choose from. Received: {len(failed)} failed trials.{why}"
                )
            found |= self.named(stage, *best)
        return found

    def named(self, stage: Stage, settings: Mapping[str, Any], epochs: int | None) -> dict[str, Any]:
        """A trial's settings by their names within the configuration; `epochs` for every model that has them."""
        named = {stage.prefix + name: value for name, value in settings.items() if name != "epochs" or not epochs}
        if epochs:
            for model in self._models(stage):
                named[f"{model}.epochs"] = epochs
                if "decay_epochs" in self._names(model):
                    named[f"{model}.decay_epochs"] = self.max_epochs(stage)
        return named

    def begins_as_shipped(self, stage: Stage) -> bool:
        """Whether the first trial has the shipped settings of all that the stage searches in: a space may exclude them,
        `--set` and `--config` may change them, and Hyperband's first trial has few epochs."""
        from shortlist.components.tuner import settings_of

        first = next((r.trial for r in self.records() if r.stage == stage.name), None)
        if first is None:
            return False
        named = self.named(stage, *settings_of(self.folder(stage), self.spaces[stage.name], first))
        tried = self.pipeline_config(named, stage.objective)
        return _searched(tried, stage) == _searched(load_config(None, {"baselines": {}, **self.alone}), stage)

    def max_epochs(self, stage: Stage) -> int:
        """What Hyperband trains its best trials for.

        Raises:
          ShortlistError: for a model without epochs.
        """
        shipped = [int(setting_of(self.shipped, f"{model}.epochs")) for model in self._models(stage)]
        if not shipped:
            raise ShortlistError(
                f"`algorithm` hyperband needs a model that is trained in epochs. Take random, bayesian or grid. "
                f"Received: {self.config.target}."
            )
        return self.config.max_epochs or max(shipped)

    def _models(self, stage: Stage) -> list[str]:
        """The models that a stage trains in epochs, by their names within the configuration."""
        names = ["ranker"] if stage.build is two_stage else [f"sources.{name}" for name in self.shipped.sources]
        return [name for name in names if "epochs" in self._names(name)]

    def _names(self, model: str) -> list[str]:
        return setting_names(_model(self.shipped, model).model)

    def measure(self, stage: Stage, settings: dict[str, Any], rungs: tuple[int, ...]) -> Any:
        """Runs one trial: an `Outcome`."""
        from shortlist.components.tuner import Outcome

        named = {**(stage.chosen or {}), **self.named(stage, settings, rungs[-1] if rungs else None)}
        config = self.pipeline_config(named, stage.objective)
        models = self._models(stage)
        if rungs:
            config = _with_rungs(config, models, rungs)
        done = stage.build(config, True).run(until=["Evaluator"])
        value = done["Evaluator"].read_json("metrics.json")["systems"][stage.system][stage.objective]["value"]
        suffix = f".epochs{rungs[-1]}" if rungs else ""
        names = [RANKER if model == "ranker" else model.removeprefix("sources.") for model in models]
        trained = [done[f"Trainer.{name}{suffix}"] for name in names]
        first = rungs[-2] if len(rungs) > 1 else 0
        epochs, stopped = [], False
        for model in trained:
            info = model.read_json("model.json")
            ran = first + max((len(values) for values in info["history"].values()), default=0)
            stopped |= ran < info["config"]["epochs"]
            epochs.append(ran)
        logs = tuple(model / "logs" for model in trained if (model / "logs").exists())
        return Outcome(float(value), max(epochs, default=None), stopped, logs)

    def search(self, stage: Stage, deadline: float = math.inf) -> None:
        """Runs the trials of a stage that are not done: all of them, or as the chief or a worker of others."""
        from keras_tuner.errors import FatalError

        if "mirrored" in _strategies(self.shipped):
            divide_cpu(self.shipped.cluster.devices)
        try:
            self.tuner(stage, deadline).search()
        except FatalError as error:
            raise ShortlistError(str(error)) from error

    def tuner(self, stage: Stage, deadline: float = math.inf) -> Any:
        """What runs the trials of a stage, a `Tuner`."""
        from shortlist.components._oracles import make_oracle
        from shortlist.components.tuner import STATE, Tuner

        stage = self.with_choice(stage)
        space, folder = self.spaces[stage.name], self.folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        hyperband = self.config.algorithm == "hyperband"
        identity = _workers.role()
        oracle = make_oracle(
            self.config.algorithm,
            # A worker asks its chief; what it would write itself is nobody's.
            folder / (STATE if identity is None or _workers.is_chief(identity) else f".{identity}.json"),
            stage.objective,
            space.hyperparameters(),
            self.config.trials,
            self.config.seed,
            self.max_epochs(stage) if hyperband else None,
            self.config.factor,
        )
        oracle.deadline = deadline
        return Tuner(oracle, lambda settings, rungs: self.measure(stage, settings, rungs), space, folder)

    def records(self) -> list[TrialRecord]:
        """The trials of all stages so far."""
        from shortlist.components.tuner import read_trials

        return [r for s in self.stages for r in read_trials(self.folder(s), self.spaces[s.name], s.name)]

    def write_best(self) -> None:
        """Writes `best.toml`, for `shortlist train MODEL --config` or, for two stages, `shortlist run --config`.

        Raises:
          ShortlistError: if no trial gave a result.
        """
        chosen = self.chosen(self.stages)
        config = load_config(self.config.file, {"baselines": {}, **self.alone, **self.config.given, **chosen})
        lines = [f"# Found by `shortlist tune {self.config.target}` ({self.config.algorithm}) on {config.data.source}."]
        for stage in self.stages:
            own = [r for r in self.records() if r.stage == stage.name]
            best = best_trial(own)
            if best is not None:
                lines.append(
                    f"# {stage.name or 'search'}: {stage.objective} {best.objective:.4f} on validation, trial "
                    f"{best.trial} of {len(own)}."
                )
        if self.config.target == TWO_STAGE:
            for name, model in config.sources.items():
                lines += ["", f"[sources.{name}]", f"model = {json.dumps(model.model)}"]
                lines += toml_lines(_model_settings(config, f"sources.{name}"))
            lines += ["", "[shortlist]", *toml_lines(config.shortlist.model_dump(mode="json"))]
            lines += ["", "[ranker]", *toml_lines(_model_settings(config, "ranker"))]
        else:
            lines += ["", *toml_lines(_model_settings(config, self.stages[0].prefix.rstrip(".")))]
        replace_file(self.workdir / BEST, "\n".join(lines) + "\n")


def shipped_space(target: str) -> dict[str, Any]:
    """The tables of `configs/<model>.search.toml`; for two stages those of the shipped models, by their names within
    the configuration, and those of `two_stage.search.toml`."""
    if target != TWO_STAGE:
        return read_toml(CONFIGS / f"{target}.search.toml")
    config = load_config()
    models = {**{f"sources.{name}": m.model for name, m in config.sources.items()}, "ranker": config.ranker.model}
    found = {}
    for name, model in models.items():
        for setting, table in shipped_space(model).items():
            condition = {f"{name}.{parent}": values for parent, values in table.get("condition", {}).items()}
            found[f"{name}.{setting}"] = {**table, "condition": condition}
    return {**found, **read_toml(CONFIGS / f"{TWO_STAGE}.search.toml")}


def _strategies(config: TwoStage) -> set[str]:
    """Those of the pipeline and of its models."""
    models = (*config.sources.values(), config.ranker)
    return {config.strategy, *(str(model.settings.get("strategy", "none")) for model in models)}


def _with_rungs(config: TwoStage, models: Sequence[str], rungs: tuple[int, ...]) -> TwoStage:
    changed: dict[str, Any] = {}
    sources = dict(config.sources)
    for model in models:
        if model == "ranker":
            changed["ranker"] = config.ranker.model_copy(update={"rungs": rungs})
        else:
            name = model.removeprefix("sources.")
            sources[name] = sources[name].model_copy(update={"rungs": rungs})
    return config.model_copy(update={**changed, "sources": sources})


def _model(config: TwoStage, name: str) -> ModelConfig:
    """A model by its name within the configuration."""
    return config.ranker if name == "ranker" else config.sources[name.removeprefix("sources.")]


def _model_settings(config: TwoStage, name: str) -> dict[str, Any]:
    """All settings of a model, but for those that belong to a run."""
    names = [setting for setting in setting_names(_model(config, name).model) if setting not in UNSEARCHED]
    every = {setting: setting_of(config, f"{name}.{setting}") for setting in names}
    return {key: value for key, value in every.items() if value is not None}


def _searched(config: TwoStage, stage: Stage) -> dict[str, Any]:
    """The settings of the models that a stage trains, and of the shortlist where it makes one out of them."""
    names = ["ranker"] if stage.build is two_stage else [f"sources.{name}" for name in config.sources]
    found: dict[str, Any] = {name: _model_settings(config, name) for name in names}
    return found | ({"shortlist": config.shortlist} if stage.build is shortlist_only else {})


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        yield f"{prefix}{key}"
