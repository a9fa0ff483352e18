"""Runs sweeps: their folder, their processes, and what is kept of them. `shortlist tune` is its command line."""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydantic

from shortlist import ShortlistError
from shortlist.components import _workers
from shortlist.components._files import locked, replace_file, replacing
from shortlist.components._progress import quiet
from shortlist.components._trials import TrialRecord, trials_table
from shortlist.components.pipeline import disk_errors
from shortlist.trainers._sweep import BEST, Stage, Sweep, SweepConfig

SWEEP, TRIALS, REPORT = "sweep.json", "trials.parquet", "sweep.html"


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
    busy = f"`workdir` {workdir} is in use by another sweep. Wait for it to end, or give another --workdir."
    with disk_errors(workdir), locked(workdir / ".sweep.lock", busy):
        _begin(sweep, resume, overwrite)
        for number, stage in enumerate(sweep.stages):
            _search(sweep, stage, number, deadline, workers)
        sweep.write_best()
        write_reports(sweep)
    return sweep


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
    shipped = [stage.name for stage in sweep.stages if sweep.begins_as_shipped(stage)]
    write_sweep_report(sweep.workdir / REPORT, records, objectives, f"Sweep of {config.target}", facts, shipped)


def write_trials(sweep: Sweep, records: Sequence[TrialRecord]) -> None:
    """Writes `trials.parquet`, at once."""
    import pyarrow.parquet as pq

    with replacing(sweep.workdir / TRIALS) as partial:
        pq.write_table(trials_table(records), partial)


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
    """The process that `--workers` starts, the chief or a worker of one stage: folder, stage and deadline."""
    folder, name, deadline = arguments
    try:
        sweep = read_sweep(Path(folder))
        sweep.search(next(stage for stage in sweep.stages if stage.name == name), float(deadline))
    except ShortlistError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
