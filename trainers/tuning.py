"""Sweeps: what is searched, what a trial runs, and what is kept of it. `shortlist tune` is its command line.

Past 400 lines because one sweep, its stages, its folder and the processes that share it are told in one place.
"""

import fcntl
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic

from shortlist import ShortlistError
from shortlist.components import _workers
from shortlist.components._config import Config
from shortlist.components._files import replace_file
from shortlist.components._progress import quiet
from shortlist.components._search_space import SearchSpace, parse_space
from shortlist.components._sweep_report import TrialRecord
from shortlist.components.evaluator import METRICS, TWO_STAGE, UNION
from shortlist.components.pipeline import Pipeline, disk_errors
from shortlist.trainers.two_stage import (
    CONFIGS,
    RANKER,
    TwoStage,
    load_config,
    model_names,
    read_toml,
    retrieval_only,
    setting_of,
    shortlist_only,
    two_stage,
)

ALGORITHMS = ("random", "bayesian", "hyperband", "grid")
SWEEP, BEST, TRIALS, REPORT = "sweep.json", "best.toml", "trials.parquet", "sweep.html"
UNSEARCHED = ("seed", "train_on", "deterministic")


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
        self.spaces: dict[str, SearchSpace] = {}
        self.stages: list[Stage] = []
        if config.target == TWO_STAGE:
            size = self.pipeline_config({}, config.objective).shortlist.size
            self._add(Stage("retrieval", shortlist_only, UNION, f"recall@{size}"), ranker=False)
            self._add(Stage("ranker", two_stage, TWO_STAGE, config.objective), ranker=True)
        elif config.target == RANKER:
            self._add(Stage("", two_stage, TWO_STAGE, config.objective, "ranker."))
        else:
            self._add(Stage("", retrieval_only, config.target, config.objective, f"sources.{config.target}."))

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
        """The pipeline with the settings of a trial: without `test`, and without the baselines, which nobody tunes."""
        measured = {
            "split.keep_test": False,
            "baselines": {},
            "evaluation.split": "validation",
            "evaluation.cutoffs": [depth(objective)],
            "evaluation.samples": 100,  # of intervals that nobody sees
        }
        given = {**self._alone(), **self.config.given, **settings, **measured, "workdir": str(self.workdir)}
        return load_config(self.config.file, given)

    def folder(self, stage: Stage) -> Path:
        """Where a stage keeps its trials."""
        return self.workdir / (stage.name or "search")

    def with_choice(self, stage: Stage) -> Stage:
        """The stage, with what the one before it found.

        Raises:
          ShortlistError: if that one found nothing.
        """
        earlier = self.stages[: self.stages.index(stage)]
        return Stage(**{**stage.__dict__, "chosen": self.chosen(earlier)}) if earlier else stage

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
                if self._has(f"{model}.decay_epochs"):
                    named[f"{model}.decay_epochs"] = self.max_epochs(stage)
        return named

    def max_epochs(self, stage: Stage) -> int:
        """What Hyperband trains its best trials for.

        Raises:
          ShortlistError: for a model without epochs.
        """
        config = self.pipeline_config({}, stage.objective)
        shipped = [int(setting_of(config, f"{model}.epochs")) for model in self._models(stage)]
        if not shipped:
            raise ShortlistError(
                f"`algorithm` hyperband needs a model that is trained in epochs. Take random, bayesian or grid. "
                f"Received: {self.config.target}."
            )
        return self.config.max_epochs or max(shipped)

    def _models(self, stage: Stage) -> list[str]:
        """The models that a stage trains in epochs, by their names within the configuration."""
        config = self.pipeline_config({}, stage.objective)
        names = ["ranker"] if stage.build is two_stage else [f"sources.{name}" for name in config.sources]
        return [name for name in names if self._has(f"{name}.epochs")]

    def _has(self, setting: str) -> bool:
        try:
            setting_of(self.pipeline_config({}, self.config.objective), setting)
        except ShortlistError:
            return False
        return True

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
        tuner = Tuner(oracle, lambda settings, rungs: self.measure(stage, settings, rungs), space, folder)
        try:
            tuner.search()
        except FatalError as error:
            raise ShortlistError(str(error)) from error

    def records(self) -> list[TrialRecord]:
        """The trials of all stages so far."""
        from shortlist.components.tuner import read_trials

        return [r for s in self.stages for r in read_trials(self.folder(s), self.spaces[s.name], s.name)]

    def write_best(self) -> Path:
        """Writes `best.toml`, for `shortlist train MODEL --config` or, for two stages, `shortlist run --config`.

        Raises:
          ShortlistError: if no trial gave a result.
        """
        from shortlist.components._sweep_report import best_trial

        chosen = self.chosen(self.stages)
        config = load_config(self.config.file, {"baselines": {}, **self._alone(), **self.config.given, **chosen})
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
                lines += _toml(_model_settings(config, f"sources.{name}"))
            lines += ["", "[shortlist]", *_toml(config.shortlist.model_dump(mode="json"))]
            lines += ["", "[ranker]", *_toml(_model_settings(config, "ranker"))]
        else:
            lines += ["", *_toml(_model_settings(config, self.stages[0].prefix.rstrip(".")))]
        replace_file(self.workdir / BEST, "\n".join(lines) + "\n")
        return self.workdir / BEST

    def _alone(self) -> dict[str, Any]:
        return {} if self.config.target in (RANKER, TWO_STAGE) else {"sources": {self.config.target: {}}}


def tune(
    config: SweepConfig,
    workdir: Path,
    minutes: float | None = None,
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> Sweep:
    """Runs a sweep, and writes what `Sweep` says into its folder.

    Args:
      config: what is swept.
      workdir: the folder.
      minutes: after which no trial begins; None for no limit.
      workers: processes that run trials beside each other, on this machine; 0 runs them in this process.
      resume: go on with the sweep that is in the folder.
      overwrite: begin anew in a folder that holds a sweep. Its artifacts stay, as a cache.

    Raises:
      ShortlistError: if the folder holds a sweep and neither `resume` nor `overwrite` is given, or another sweep than
        the one to go on with; if it is in use, or can't be written; and if no trial gave a result.
    """
    identity = _workers.role()
    if identity is not None and workers:
        raise ShortlistError(
            f"`--workers` starts processes of its own, so leave it out where {_workers.TUNER_ID} is set. "
            f"Received: --workers {workers}, {_workers.TUNER_ID}={identity}."
        )
    sweep = Sweep(config, workdir)  # refuses what doesn't fit before anything is written
    if config.algorithm == "hyperband":
        for stage in sweep.stages:
            sweep.max_epochs(stage)
    deadline = time.time() + 60 * minutes if minutes else math.inf
    if identity is not None and not _workers.is_chief(identity):
        _as_worker(sweep, identity)
        return sweep
    with disk_errors(workdir), _alone(workdir):
        _begin(sweep, resume, overwrite)
        for number, stage in enumerate(sweep.stages):
            _search(sweep, stage, number, deadline, workers)
        sweep.write_best()
        write_reports(sweep)
    return sweep


def work(workdir: Path, stage: str, deadline: float) -> None:
    """What a process that `--workers` started does: be the chief or a worker of one stage."""
    sweep = read_sweep(workdir)
    sweep.search(next(s for s in sweep.stages if s.name == stage), deadline)


def read_sweep(workdir: Path) -> Sweep:
    """The sweep of a folder.

    Raises:
      ShortlistError: if there is none.
    """
    try:
        return Sweep(SweepConfig.model_validate_json((workdir / SWEEP).read_text("utf-8")), workdir)
    except (OSError, pydantic.ValidationError) as error:
        raise ShortlistError(
            f"`workdir` must be the folder of a sweep (`shortlist tune`). Received: {workdir}."
        ) from error


def write_reports(sweep: Sweep) -> None:
    """Writes `trials.parquet` and `sweep.html`."""
    from shortlist.components._sweep_report import write_sweep_report

    records = [r for r in sweep.records() if r.status != "running"]
    write_trials(sweep, records)
    config = sweep.config
    facts = {
        "Sweep of": config.target,
        "Data": str(config.given.get("data.source", "demo")),
        "Algorithm": config.algorithm,
        "Seed of the search": str(config.seed),
        "Measured on": "validation; the sweep has no test",
    }
    objectives = {stage.name: stage.objective for stage in sweep.stages}
    write_sweep_report(sweep.workdir / REPORT, records, objectives, f"Sweep of {config.target}", facts)


def write_trials(sweep: Sweep, records: Sequence[TrialRecord]) -> None:
    """Writes `trials.parquet`, at once."""
    import pyarrow.parquet as pq

    from shortlist.components._sweep_report import trials_table

    partial = sweep.workdir / f".{TRIALS}.partial"
    pq.write_table(trials_table(records), partial)
    partial.replace(sweep.workdir / TRIALS)


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


def _begin(sweep: Sweep, resume: bool, overwrite: bool) -> None:
    file = sweep.workdir / SWEEP
    if file.exists() and not (resume or overwrite):
        raise ShortlistError(
            f"`workdir` {sweep.workdir} holds a sweep. Go on with it by --resume, begin anew by --overwrite, or give "
            "another --workdir. Received: neither."
        )
    if file.exists() and resume:
        _refuse_another(read_sweep(sweep.workdir).config, sweep.config)
    if overwrite:
        for stage in sweep.stages:
            shutil.rmtree(sweep.folder(stage), ignore_errors=True)
        for name in (BEST, TRIALS, REPORT):
            (sweep.workdir / name).unlink(missing_ok=True)
    replace_file(file, sweep.config.model_dump_json(indent=2))


def _refuse_another(before: SweepConfig, now: SweepConfig) -> None:
    """All but the number of trials has to be as it was."""
    for name, value in before.model_dump().items():
        received = now.model_dump()[name]
        if name != "trials" and received != value:
            raise ShortlistError(
                f"`--resume` goes on with the sweep as it was begun. Give the same `{name}`, or another --workdir. "
                f"Received: {received!r}, and the folder has {value!r}."
            )


def _search(sweep: Sweep, stage: Stage, number: int, deadline: float, workers: int) -> None:
    from shortlist.components._sweep_view import SweepView

    objectives = {s.name: s.objective for s in sweep.stages}
    view = SweepView(
        sweep.records, objectives, sweep.config.trials, deadline, lambda records: write_trials(sweep, records)
    )
    with view:
        if workers:
            code = "import sys; from shortlist.trainers.tuning import main; main(sys.argv[1:])"
            command = [sys.executable, "-c", code, str(sweep.workdir), stage.name, str(deadline)]
            logs = sweep.folder(stage) / "logs"
            _workers.supervise(command, workers, logs, lambda: [(r.trial, r.status) for r in sweep.records()])
        else:
            with _next_port(number), quiet():
                sweep.search(stage, deadline)


def _as_worker(sweep: Sweep, identity: str) -> None:
    """A worker on any machine that sees the folder. The chief hands out the trials, stage by stage."""
    for number, stage in enumerate(sweep.stages):
        with _next_port(number):
            sweep.search(stage)


@contextmanager
def _next_port(number: int) -> Iterator[None]:
    """Each stage has a chief at a port of its own, or a worker would ask that of the stage before."""
    port = os.environ.get(_workers.PORT)
    if port is None or not number:
        yield
        return
    os.environ[_workers.PORT] = str(int(port) + number)
    try:
        yield
    finally:
        os.environ[_workers.PORT] = port


def main(arguments: Sequence[str]) -> None:
    """The process that `--workers` starts: folder, stage and deadline."""
    folder, stage, deadline = arguments
    try:
        work(Path(folder), stage, float(deadline))
    except ShortlistError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".sweep.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShortlistError(
                f"`workdir` {workdir} is in use by another sweep. Wait for it to end, or give another --workdir."
            ) from None
        yield


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


def _model_settings(config: TwoStage, name: str) -> dict[str, Any]:
    """All settings of a model, but for those that belong to a run."""
    model = config.ranker if name == "ranker" else config.sources[name.removeprefix("sources.")]
    every = {setting: setting_of(config, f"{name}.{setting}") for setting in _fields(model.model)}
    return {key: value for key, value in every.items() if key not in UNSEARCHED and value is not None}


def _fields(model: str) -> list[str]:
    import importlib

    return list(importlib.import_module(f"shortlist.trainers.{model}").Config.model_fields)


def _toml(settings: Mapping[str, Any]) -> list[str]:
    """Plain settings as lines of TOML; a table is written in one line."""
    return [f"{name} = {_value(value)}" for name, value in settings.items()]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(v)}" for key, v in value.items()) + " }"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        yield f"{prefix}{key}"
