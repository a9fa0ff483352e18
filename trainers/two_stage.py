"""The whole pipeline on one screen, and the configuration that it is built from.

Past 400 lines because whoever reads a setting reads beside it what is refused.
"""

import copy
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from shortlist import ShortlistError
from shortlist.components._ann import IndexConfig
from shortlist.components._cluster import ClusterConfig, Strategy
from shortlist.components._config import Config, nearest, parse, tomllib, unknown
from shortlist.components._engine import EngineConfig, engine_of
from shortlist.components._first_stage import ShortlistConfig
from shortlist.components.candidate_generator import CandidateGenerator
from shortlist.components.evaluator import TWO_STAGE, UNION, EvaluationConfig, Evaluator
from shortlist.components.example_gen import DataConfig, ExampleGen
from shortlist.components.example_validator import ExampleValidator, ValidatorConfig
from shortlist.components.exporter import Exporter, ExporterConfig
from shortlist.components.infra_validator import InfraValidator
from shortlist.components.pipeline import Node, Pipeline
from shortlist.components.pusher import Pusher, PusherConfig
from shortlist.components.reporter import Reporter, ReporterConfig
from shortlist.components.retrieval_index import RetrievalIndex
from shortlist.components.schema_gen import SchemaConfig, SchemaGen
from shortlist.components.splitter import SplitConfig, Splitter
from shortlist.components.statistics_gen import StatisticsGen
from shortlist.components.trainer import Trainer
from shortlist.components.transform import Transform, TransformConfig
from shortlist.trainers._earlier import warm_inputs

CONFIGS = Path(__file__).parent / "configs"
RANKER = "weighted_logistic"


class ModelConfig(Config):
    """A model to train.

    Args:
      model: the name of its trainer; in a file or on the command line `table:PATH` names its file too.
      settings: those that differ from `configs/<model>.toml`.
      rungs: epochs after which the training is kept as an artifact and gone on with, ascending; the last one is where
        it ends, in the place of the setting `epochs`. For Hyperband.
    """

    model: str
    settings: dict[str, Any] = pydantic.Field(default_factory=dict)
    rungs: tuple[int, ...] = ()


class TwoStage(Config):
    """Settings of the pipeline, a table each for its steps. `sources`, `baselines` and `ranker` name their models.

    Args:
      workdir: the run's folder.
      seed: of every trainer that has no seed of its own. The split has its own, `split.seed`.
      refit: train the sources again on everything before the export (docs/decisions/0011-refit.md).
      warm_start: the folder of an earlier run, which is kept; embeddings begin as they were learned there, by id.
      engine: where data work is done, which changes no result.
      strategy: of every trainer that goes by steps and has no strategy of its own; the others train on the chief alone.
      cluster: what the processes of a strategy need besides.
    """

    workdir: Path = Path("runs/demo")
    seed: int = pydantic.Field(0, ge=0, lt=2**31)
    refit: bool = False
    warm_start: Path | None = None
    engine: EngineConfig = EngineConfig()
    strategy: Strategy = "none"
    cluster: ClusterConfig = ClusterConfig()
    data: DataConfig = DataConfig()
    schemas: SchemaConfig = SchemaConfig()
    validator: ValidatorConfig = ValidatorConfig()
    split: SplitConfig = SplitConfig()
    transform: TransformConfig = TransformConfig()
    sources: dict[str, ModelConfig] = pydantic.Field(min_length=1)
    baselines: dict[str, ModelConfig] = pydantic.Field(default_factory=dict)
    index: IndexConfig = IndexConfig()
    shortlist: ShortlistConfig = ShortlistConfig()
    ranker: ModelConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReporterConfig = ReporterConfig()
    bundle: ExporterConfig = ExporterConfig()
    push: PusherConfig = PusherConfig()


def two_stage(config: TwoStage, shared: bool = False) -> Pipeline:
    """Builds the pipeline; `run()` runs it. `shared`: see `Pipeline`."""
    p, described, splits, encoded, baselines = _measured(config, shared)
    sources = retrievers(p, config, config.sources, encoded)
    candidates = p.add(CandidateGenerator(config.shortlist), encoded, sources)
    ranker = _trained(p, RANKER, config.ranker, config, encoded, candidates)
    evaluation = p.add(Evaluator(config.evaluation), encoded, baselines, sources, candidates, ranker)
    p.add(Reporter(config.report), *described, encoded, baselines, sources, evaluation, candidates, ranker)
    if config.refit:
        encoded = p.add(Transform(config.transform.model_copy(update={"fit_on": "all"}), "refit"), splits)
        sources = retrievers(p, config, config.sources, encoded, "refit.")
    bundle = p.add(Exporter(config.bundle), encoded, sources, candidates, ranker)
    p.add(Pusher(config.push), evaluation, p.add(InfraValidator(), bundle), bundle)
    return p


def retrieval_only(config: TwoStage, shared: bool = False) -> Pipeline:
    """Trains and measures the sources alone, each by itself."""
    p, described, _, encoded, baselines = _measured(config, shared)
    sources = retrievers(p, config, config.sources, encoded)
    evaluation = p.add(Evaluator(config.evaluation), encoded, baselines, sources)
    p.add(Reporter(config.report), *described, encoded, baselines, sources, evaluation)
    return p


def shortlist_only(config: TwoStage, shared: bool = False) -> Pipeline:
    """Trains the sources, and measures them and their union; there is no ranker."""
    p, _, _, encoded, baselines = _measured(config, shared)
    sources = retrievers(p, config, config.sources, encoded)
    candidates = p.add(CandidateGenerator(config.shortlist), encoded, sources)
    p.add(Evaluator(config.evaluation), encoded, baselines, sources, candidates)
    return p


def _measured(config: TwoStage, shared: bool) -> tuple[Pipeline, tuple[Node, Node], Node, Node, dict[str, Node]]:
    """The steps before the sources: what describes the data, its parts, these encoded, and the baselines."""
    p = Pipeline(config.workdir, shared, engine_of(config.engine))
    examples = p.add(ExampleGen(config.data))
    statistics = p.add(StatisticsGen(), examples)
    schema = p.add(SchemaGen(config.schemas), statistics, examples)
    anomalies = p.add(ExampleValidator(config.validator), examples, schema)
    splits = p.add(Splitter(config.split), examples, anomalies)
    encoded = p.add(Transform(config.transform), splits)
    return p, (statistics, anomalies), splits, encoded, retrievers(p, config, config.baselines, encoded)


def retrievers(
    p: Pipeline, config: TwoStage, models: Iterable[str], encoded: Node, prefix: str = ""
) -> dict[str, Node]:
    """The indexes of these models, trained, by name."""
    trained = {name: _retriever(p, config, name, encoded, prefix) for name in models}
    return {name: p.add(RetrievalIndex(prefix + name, config.index), model, encoded) for name, model in trained.items()}


def _retriever(
    p: Pipeline, config: TwoStage, name: str, encoded: Node, prefix: str = "", leave_out: float = 0.0
) -> Node:
    """Trains a retriever once, after those it builds on; these without the rows that it is to learn from itself."""
    model = _model_of(config, name)
    step = f"{prefix}{name}.without{leave_out:g}" if leave_out else prefix + name
    last = Trainer.step_of(f"{step}.epochs{model.rungs[-1]}" if model.rungs else step)
    if last.step in p.steps:
        return last
    forced = {**({"train_on": "all"} if prefix else {}), **({"leave_out": leave_out} if leave_out else {})}
    settings = _trainer(name, model, config, forced).config
    held_back = leave_out or getattr(settings, "held_back", 0.0)
    of = {base: _retriever(p, config, base, encoded, prefix, held_back) for base in _bases(settings)}
    return _trained(p, step, model, config, encoded, forced=forced, of=of)


def _trained(
    p: Pipeline,
    name: str,
    model: ModelConfig,
    config: TwoStage,
    *inputs: Node,
    forced: Mapping[str, Any] | None = None,
    of: Mapping[str, Node] | None = None,
) -> Node:
    given: dict[str, Any] = {"of": of} if of else {}
    if not model.rungs:
        step = _trainer(name, model, config, forced)
        given |= warm_inputs(p, config.warm_start, name, model.model, step.config)
        return p.add(step, *inputs, **given)
    for epochs in model.rungs:
        step = _trainer(f"{name}.epochs{epochs}", model, config, {**(forced or {}), "epochs": epochs})
        given["start"] = p.add(step, *inputs, **given)
    return given["start"]


def _trainer(name: str, model: ModelConfig, config: TwoStage, forced: Mapping[str, Any] | None = None) -> Trainer:
    settings = {**defaults(model.model), "seed": config.seed, **model.settings, **(forced or {})}
    cls, where = config_class(model.model), f"{name} ({model.model})"
    if len(getattr(cls, "strategies", ())) > 1:
        settings.setdefault("strategy", config.strategy)
    return Trainer(parse(cls, settings, where), name, f"shortlist.trainers.{model.model}:train", config.cluster)


def _bases(settings: Config | None) -> tuple[str, ...]:
    """The retrievers that a model builds on: its setting `of`, one name or several."""
    of: str | tuple[str, ...] = getattr(settings, "of", ())
    return (of,) if isinstance(of, str) else of


def _model_of(config: TwoStage, name: str) -> ModelConfig:
    """What a retriever's name stands for: a source, a baseline, or a model as it is shipped."""
    return {**config.baselines, **config.sources}.get(name) or ModelConfig(model=name)


def model_names() -> list[str]:
    """The models that have a trainer."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml") if path.stem != "two_stage" and "." not in path.stem)


def defaults(model: str) -> dict[str, Any]:
    """The shipped settings of a model.

    Raises:
      ShortlistError: for a model that has no trainer.
    """
    if model not in model_names():
        raise ShortlistError(f"`model` must be one of {', '.join(model_names())}. Received: {model!r}.")
    return tomllib.loads((CONFIGS / f"{model}.toml").read_text())


def place_of(model: str) -> str:
    """Where the settings of a model stand when it is trained alone: what goes before their names."""
    return "ranker." if model == RANKER else f"sources.{model}."


def alone(model: str) -> dict[str, Any]:
    """What leaves one model of the sources; a ranker has them all."""
    return {} if model == RANKER else {"sources": {model: {}}}


def setting_names(model: str) -> list[str]:
    """The settings of a model's trainer."""
    return list(config_class(model).model_fields)


def config_class(model: str) -> type[Config]:
    """The settings of a model's trainer, as a class."""
    return importlib.import_module(f"shortlist.trainers.{model}").Config


def setting_of(config: TwoStage, name: str) -> Any:
    """The value of a setting by its dotted name, one of a model that stands nowhere but in its defaults too.

    Raises:
      ShortlistError: if there is none, with the nearest name.
    """
    group, _, rest = name.partition(".")
    value: Any = config
    if group in ("sources", "baselines"):
        model, _, name = rest.partition(".")
        models = getattr(config, group)
        if model not in models:
            raise ShortlistError(unknown(f"{group}.{model}", list(models), "the configuration"))
        value = _trainer(model, models[model], config).config
    elif group == "ranker":
        value, name = _trainer(RANKER, config.ranker, config).config, rest
    for part in name.split("."):
        if part not in getattr(type(value), "model_fields", {}):
            where = {"TwoStage": "the configuration"}.get(type(value).__name__, f"`{group}`")
            raise ShortlistError(unknown(part, getattr(type(value), "model_fields", {}), where))
        value = getattr(value, part)
    return value


def load_config(file: Path | Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None) -> TwoStage:
    """The shipped configuration, changed by a TOML file and then by single settings.

    Args:
      file: a TOML file with any part of the settings, or what is in one; a table `sources` or `baselines` replaces the
        shipped one.
      overrides: values by dotted name, such as `{"sources.wals.embedding_dim": 64}`.

    Raises:
      ShortlistError: for a file that cannot be read and a setting that does not exist or does not fit.
    """
    values = tomllib.loads((CONFIGS / "two_stage.toml").read_text())
    if file is not None:
        values = _merge(values, read_toml(file) if isinstance(file, Path) else copy.deepcopy(dict(file)))
    set_by_name(values, overrides or {})
    for group in ("sources", "baselines"):
        values[group] = {n: _model(n, s, f"{group}.{n}") for n, s in _table(values.get(group, {}), group).items()}
    values["ranker"] = _model(RANKER, values.get("ranker", {}), "ranker")
    values["evaluation"] = {**_table(values.get("evaluation", {}), "evaluation"), "run_seed": values.get("seed", 0)}
    config = parse(TwoStage, values)
    _check_models(config)
    config.shortlist.quotas(config.sources)  # refuses a quota that names no source
    for name, model in (*config.sources.items(), *config.baselines.items(), (RANKER, config.ranker)):
        _trainer(name, model, config)  # refuses settings that don't fit before anything runs
    for group, models in (("sources", config.sources), ("baselines", config.baselines)):
        for name in models:
            _check_bases(config, group, (name,))
    return config


def set_by_name(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Puts values by dotted name into nested settings.

    Raises:
      ShortlistError: for a name that goes into a value.
    """
    for name, value in overrides.items():
        *tables, last = name.split(".")
        table = values
        for part in tables:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ShortlistError(f"`{name}` is not a setting: `{part}` is a value. Leave the rest out.")
        table[last] = copy.deepcopy(value)  # the next dotted name may go into it


def read_toml(file: Path, option: str = "--config") -> dict[str, Any]:
    """The values of a TOML file that `option` names.

    Raises:
      ShortlistError: if there is none, or it is not TOML.
    """
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ShortlistError(f"`{option}` must be a TOML file that can be read: {reason}. Received: {file}.") from None


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1", "a.c=x"]` as values; what isn't TOML is text.

    Raises:
      ShortlistError: for one without an equals sign.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (equals and name.strip()):
            raise ShortlistError(
                f"`--set` takes NAME=VALUE, such as sources.wals.embedding_dim=64. Received: {pair!r}."
            )
        try:
            found[name.strip()] = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = text
    return found


def _check_models(config: TwoStage) -> None:
    """Refuses names that two models would share, or that no folder can have, and a ranker where none belongs."""
    for group, models in (("sources", config.sources), ("baselines", config.baselines)):
        for name, model in models.items():
            if not re.fullmatch("[A-Za-z0-9_-]+", name):
                raise ShortlistError(f"`{group}` must be named with letters, digits, _ and -. Received: {name!r}.")
            if name in (RANKER, TWO_STAGE, UNION) or (group == "baselines" and name in config.sources):
                raise ShortlistError(
                    f"`{group}.{name}` needs a name of its own: those of the sources, the baselines, {RANKER}, "
                    f"{TWO_STAGE} and {UNION} must differ. Received: {name} twice. Leave one out with a --config file, "
                    f'or call it otherwise: --set {group}.my_{name}.model="{model.model}".'
                )
            if model.model == RANKER:
                raise ShortlistError(f"`{group}.{name}.model` must be a retriever. Received: {RANKER!r}, a ranker.")
            _measured_alone(f"{group}.{name}.train_on", model.settings.get("train_on", "train"))
    _measured_alone("ranker.train_on", config.ranker.settings.get("train_on", "train"))
    _measured_alone("transform.fit_on", config.transform.fit_on)
    if config.ranker.model != RANKER:
        raise ShortlistError(f"`ranker.model` must be {RANKER}. Received: {config.ranker.model!r}.")


def _check_bases(config: TwoStage, group: str, path: tuple[str, ...]) -> None:
    """Refuses a model that builds on what there isn't, or in the end on itself; `path` leads to what is looked at."""
    settings = _trainer(path[-1], _model_of(config, path[-1]), config).config
    known = [*config.sources, *config.baselines, *(name for name in model_names() if name != RANKER)]
    for base in _bases(settings):
        where = f"`{group}.{path[0]}.of`"
        if base not in known:
            near = nearest(base, list(dict.fromkeys(known)))
            raise ShortlistError(f"{where} must name a source, a baseline or a model. Received: {base!r}. {near}")
        if base in path:
            raise ShortlistError(
                f"{where} must not lead back to where it came from, or neither could be trained first. "
                f"Received: {' of '.join((*path, base))}."
            )
        other = _trainer(base, _model_of(config, base), config).config
        if hasattr(settings, "held_back") and hasattr(other, "held_back"):
            raise ShortlistError(
                f"{where} must name models that keep no rows back for themselves, as {path[-1]} does. "
                f"Received: {base!r}."
            )
        _check_bases(config, group, (*path, base))


def _measured_alone(name: str, value: Any) -> None:
    if value == "all":
        raise ShortlistError(
            f"`{name}` must be train: what has seen the other parts cannot be measured on them. Set refit=true to "
            "export sources that know everything. Received: all."
        )


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ShortlistError(f"`{where}` must be a table of settings. Received: {value!r}.")
    return value


def _model(name: str, spec: Any, where: str) -> dict[str, Any]:
    settings = {key: value for key, value in _table(spec, where).items() if key != "model"}
    model, colon, path = str(spec.get("model", name)).partition(":")
    return {"model": model, "settings": {**settings, **({"path": path} if colon else {})}}


def _merge(base: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in new.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both and key not in ("sources", "baselines") else value
    return merged
