"""The jobs of `_engine.py` as pipelines of Apache Beam, for whichever runner is asked for.

One pipeline a call of `run`. What workers make (shards, states, results) they write to a folder beside the artifact
that is being made, each file at once and under a name that the input decides, so that a bundle that is done again, or
twice, leaves the same. This process puts it together when the pipeline has ended; until then there is no artifact.

What is sent about is small, so that no runner has to hold the rows that it groups: a worker writes what it cuts a piece
into, and sends where it stands. Jobs lie in that folder too, and a worker loads each once.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import pickle
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shortlist import ShortlistError
from shortlist.components._analysis import Together, analyse
from shortlist.components._batches import batches
from shortlist.components._beam_flags import checked, import_beam, last_line, runner_of
from shortlist.components._engine import Analyse, Each, Engine, EngineConfig, Job, Rows, Shuffle, Write

_REFUSED, _JOB, _TASK = "refused", "job.pickle", "task"

Piece = tuple[int, int, int | None, int]
"""A number, that of a table, a row group of its file and the first row of that."""
Part = tuple[str, int, int]
"""A file, where in it the part begins, and its bytes."""


class Beam(Engine):
    """A runner of Apache Beam.

    Raises:
      ShortlistError: if Beam is not installed, has no such runner, or refuses a flag.
    """

    apart = True

    def __init__(self, config: EngineConfig):
        super().__init__(config)
        import_beam()
        self.flags, self.runner = checked(config.beam)
        self._pipeline()  # what the runner itself asks of the flags

    def run(self, folder: Path, *jobs: Job) -> list[Any]:
        for left in folder.glob(".beam-*"):  # by one that was killed
            shutil.rmtree(left)
        scratch = (folder / f".beam-{uuid.uuid4().hex}").absolute()
        scratch.mkdir(parents=True)
        try:
            jobs = tuple(self._prepared(job, scratch / str(number)) for number, job in enumerate(jobs))
            pipeline = self._pipeline()
            for number, job in enumerate(jobs):
                _ADD[type(job)](pipeline, job, scratch / str(number), self.config.batch)
            self._ended(pipeline)
            for refused in sorted(scratch.glob(f"*/{_REFUSED}-*"), key=lambda p: (int(p.parent.name), p.name)):
                raise ShortlistError(refused.read_text("utf-8"))
            return [
                _COLLECT[type(job)](job, scratch / str(number), self.config.batch) for number, job in enumerate(jobs)
            ]
        finally:
            _loaded.cache_clear()
            shutil.rmtree(scratch, ignore_errors=True)

    def _prepared(self, job: Job, folder: Path) -> Job:
        """The job with a source that workers can read, written down for them."""
        folder.mkdir()
        if isinstance(job, Analyse):
            job = dataclasses.replace(job, tables=[self._file(rows, folder, n) for n, rows in enumerate(job.tables)])
        elif not isinstance(job, Each):
            job = dataclasses.replace(job, rows=self._file(job.rows, folder))
        theirs: Any = job
        if isinstance(job, Write):  # jobs of one call may share a function, and it may hold vocabularies
            shared = folder.parent / f"function-{id(job.function)}"
            if not shared.exists():
                shared.write_bytes(pickle.dumps(job.function, protocol=5))
            changes: dict[str, Any] = {"seen": None, "function": shared}
            theirs = dataclasses.replace(job, **changes)
        elif isinstance(job, Each):
            theirs = dataclasses.replace(job, tasks=())
            for number, task in enumerate(job.tasks):
                (folder / f"{_TASK}-{number:012d}").write_bytes(pickle.dumps(task, protocol=5))
        (folder / _JOB).write_bytes(pickle.dumps(theirs, protocol=5))
        return job

    def _file(self, rows: Rows, folder: Path, number: int = 0) -> Rows:
        if isinstance(rows.source, Path):
            return dataclasses.replace(rows, source=rows.source.absolute())
        file = folder / f"source-{number}.parquet"
        pq.write_table(rows.source, file, row_group_size=self.config.batch)
        return dataclasses.replace(rows, source=file)

    def _pipeline(self) -> Any:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = PipelineOptions(list(self.flags))
        try:
            return apache_beam.Pipeline(runner=runner_of(self.runner, options), options=options)
        except (ValueError, ImportError, AttributeError, RuntimeError) as error:
            raise ShortlistError(f"`--beam-…`: {self.runner} refuses its flags: {last_line(error)}") from None

    def _ended(self, pipeline: Any) -> None:
        try:
            state = pipeline.run().wait_until_finish()
        except Exception as error:
            raise ShortlistError(
                f"`--engine beam`: {self.runner} gave up: {last_line(error)} What is finished is kept, and the same "
                "command goes on from there."
            ) from error
        if state not in (None, "DONE"):
            raise ShortlistError(f"`--engine beam`: {self.runner} ended without having done it. Received: {state}.")


# What is added to a pipeline for a job. `folder` is that of the job.


def _pieces(pipeline: Any, tables: Sequence[Rows], label: str) -> Any:
    pieces: list[Piece] = []
    for at, rows in enumerate(tables):
        assert isinstance(rows.source, Path)
        about = pq.read_metadata(rows.source)
        start = 0
        for group in range(about.num_row_groups):
            pieces.append((len(pieces), at, group, start))
            start += about.row_group(group).num_rows
        if not about.num_row_groups:
            pieces.append((len(pieces), at, None, 0))
    return _spread(pipeline, pieces, label)


def _spread(pipeline: Any, things: Sequence[Any], label: str) -> Any:
    import apache_beam as beam

    return pipeline | f"{label} pieces" >> beam.Create(things) | f"{label} spread" >> beam.Reshuffle()


def _add_analyse(pipeline: Any, job: Analyse, folder: Path, size: int) -> None:
    buckets = max(1, sum(map(len, job.tables)) // (Shuffle.BATCHES * size))
    cut = functools.partial(_states, folder, size, buckets)
    _grouped(pipeline, job.tables, folder, cut, functools.partial(_merged, folder))


def _add_write(pipeline: Any, job: Write, folder: Path, size: int) -> None:
    import apache_beam as beam

    work = functools.partial(_write_shard, folder, size)
    _ = _pieces(pipeline, [job.rows], folder.name) | f"{folder.name} write" >> beam.Map(work)


def _add_shuffle(pipeline: Any, job: Shuffle, folder: Path, size: int) -> None:
    _grouped(pipeline, [job.rows], folder, functools.partial(_cut, folder, size), functools.partial(_bucket, folder))


def _grouped(pipeline: Any, tables: Sequence[Rows], folder: Path, cut: Any, work: Any) -> None:
    """Cuts every piece in parts with keys, and does `work` with each key and where its parts are written."""
    import apache_beam as beam

    parts = _pieces(pipeline, tables, folder.name) | f"{folder.name} cut" >> beam.FlatMap(cut)
    grouped = parts | f"{folder.name} group" >> beam.GroupByKey()
    _ = grouped | f"{folder.name} work" >> beam.Map(work)


def _add_each(pipeline: Any, job: Each, folder: Path, size: int) -> None:
    import apache_beam as beam

    tasks = _spread(pipeline, list(range(len(job.tasks))), folder.name)
    _ = tasks | f"{folder.name} work" >> beam.Map(functools.partial(_task, folder))


# What workers do.


@functools.lru_cache(maxsize=16)
def _loaded(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def _job(folder: Path) -> Any:
    return _loaded(folder / _JOB)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to, which gets its name when it is whole."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    yield partial
    os.replace(partial, path)


@contextlib.contextmanager
def _refusals(folder: Path, number: int) -> Iterator[None]:
    """What a user can mend is no failure of a worker, which would be tried again: it is written down."""
    try:
        yield
    except ShortlistError as error:
        with _whole(folder / f"{_REFUSED}-{number:012d}") as partial:
            partial.write_text(str(error), "utf-8")


def _keep_result(folder: Path, number: int, value: Any) -> None:
    with _whole(folder / f"result-{number:012d}") as partial:
        partial.write_bytes(pickle.dumps(value, protocol=5))


def _written(folder: Path, number: int, parts: Iterable[tuple[Any, bytes | pa.Buffer]]) -> Iterator[tuple[Any, Part]]:
    """Writes the parts of a piece into one file of this attempt; their keys, and where each is."""
    name, found = f"parts-{number:012d}-{uuid.uuid4().hex}", []
    with (folder / name).open("wb") as file:
        for key, part in parts:
            found.append((key, (name, file.tell(), len(part))))
            file.write(part)
    yield from found


def _read(folder: Path, parts: Iterable[Part]) -> Iterator[bytes]:
    """What was written, in the order of the pieces, and within a piece in that in which it was written."""
    for name, start, size in sorted(parts):
        with (folder / name).open("rb") as file:
            file.seek(start)
            yield file.read(size)


def _states(folder: Path, size: int, buckets: int, piece: Piece) -> Iterator[tuple[tuple[int, int], Part]]:
    """The state of each analysis after a piece, cut in buckets where it can be: keys are (bucket, analysis)."""
    job = _job(folder)
    number, at, group, start = piece
    with _refusals(folder, number):
        state = analyse(job.analysis, job.tables[at].batches(size, group, start))

        def parts() -> Iterator[tuple[tuple[int, int], bytes]]:
            for place, (name, analysis) in enumerate(_parts(job.analysis).items()):
                own = state[name] if name else state
                cut = analysis.split(own, buckets) if buckets > 1 and hasattr(analysis, "split") else [own]
                yield from (((bucket, place), pickle.dumps(each, protocol=5)) for bucket, each in enumerate(cut))

        yield from _written(folder, number, parts())


def _parts(analysis: Any) -> dict[str, Any]:
    return dict(analysis.parts) if isinstance(analysis, Together) else {"": analysis}


def _merged(folder: Path, grouped: tuple[tuple[int, int], Iterable[Part]]) -> None:
    (bucket, place), states = grouped
    parts = list(_parts(_job(folder).analysis).items())
    name, analysis = parts[place]
    state = functools.reduce(analysis.merge, map(pickle.loads, _read(folder, states)))
    left = analysis.reduce(state) if hasattr(analysis, "reduce") else analysis.result(state)
    _keep_result(folder, bucket * len(parts) + place, (name, left))


def _write_shard(folder: Path, size: int, piece: Piece) -> None:
    job = _job(folder)
    number, _, group, start = piece
    with _refusals(folder, number):
        tables = map(_loaded(job.function), job.rows.batches(size, group, start))
        first = next(tables)
        with _whole(folder / f"shard-{number:012d}") as partial, pq.ParquetWriter(partial, first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)


def _cut(folder: Path, size: int, piece: Piece) -> Iterator[tuple[int, Part]]:
    job = _job(folder)
    number, _, group, start = piece
    with _refusals(folder, number):
        cut = (part for table in job.rows.batches(size, group, start) for part in job.cut(table, size))
        yield from _written(folder, number, ((bucket, _packed(part)) for bucket, part in cut))


def _packed(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _bucket(folder: Path, grouped: tuple[int, Iterable[Part]]) -> None:
    number, parts = grouped
    with _refusals(folder, number):
        table = pa.concat_tables(pa.ipc.open_stream(packed).read_all() for packed in _read(folder, parts))
        _keep_result(folder, number, _job(folder).work(table))


def _task(folder: Path, number: int) -> None:
    task = pickle.loads((folder / f"{_TASK}-{number:012d}").read_bytes())
    with _refusals(folder, number):
        _keep_result(folder, number, _job(folder).work(task))


# What is made of what they left.


def _results(folder: Path) -> list[Any]:
    return [pickle.loads(path.read_bytes()) for path in sorted(folder.glob("result-*"))]


def _collect_analyse(job: Analyse, folder: Path, size: int) -> Any:
    left: dict[str, list[Any]] = {}
    for name, value in _results(folder):
        left.setdefault(name, []).append(value)
    parts = _parts(job.analysis)
    found = {name: part.join(left[name]) if hasattr(part, "join") else left[name][0] for name, part in parts.items()}
    return found if isinstance(job.analysis, Together) else found[""]


def _collect_write(job: Write, folder: Path, size: int) -> int:
    shards = sorted(folder.glob("shard-*"))
    return job.put_together((table for shard in shards for table in batches(shard, None, size)), size)


def _collect_results(job: Job, folder: Path, size: int) -> list[Any]:
    return _results(folder)


_ADD: dict[type, Any] = {Analyse: _add_analyse, Write: _add_write, Shuffle: _add_shuffle, Each: _add_each}
_COLLECT: dict[type, Any] = {
    Analyse: _collect_analyse,
    Write: _collect_write,
    Shuffle: _collect_results,
    Each: _collect_results,
}
