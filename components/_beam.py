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
            self._ended(self._filled(jobs, scratch))
            for refused in sorted(scratch.glob(f"*/{_REFUSED}-*"), key=lambda p: (int(p.parent.name), p.name)):
                raise ShortlistError(refused.read_text("utf-8"))
            return [self._collected(job, scratch / str(number)) for number, job in enumerate(jobs)]
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

    def _filled(self, jobs: Sequence[Job], scratch: Path) -> Any:
        """A pipeline that does all jobs at once: the pieces of their tables, then the parts with the same keys."""
        import apache_beam as beam

        pipeline, size = self._pipeline(), self.config.batch
        pieces = [(number, piece) for number, job in enumerate(jobs) for piece in _pieces(job)]
        spread = pipeline | "pieces" >> beam.Create(pieces) | "spread" >> beam.Reshuffle()
        parts = spread | "work" >> beam.FlatMap(functools.partial(_work, scratch, size))
        if any(type(job) in _GROUPED for job in jobs):
            _ = parts | "group" >> beam.GroupByKey() | "end" >> beam.Map(functools.partial(_end, scratch))
        return pipeline

    def _collected(self, job: Job, folder: Path) -> Any:
        """What is made of what workers left."""
        if isinstance(job, Write):
            shards, size = sorted(folder.glob("shard-*")), self.config.batch
            return job.put_together((table for shard in shards for table in batches(shard, None, size)), size)
        results = [pickle.loads(path.read_bytes()) for path in sorted(folder.glob("result-*"))]
        if not isinstance(job, Analyse):
            return results
        left: dict[str, list[Any]] = {}
        for name, value in results:
            left.setdefault(name, []).append(value)
        parts = _parts(job.analysis)
        found = {
            name: part.join(left[name]) if hasattr(part, "join") else left[name][0] for name, part in parts.items()
        }
        return found if isinstance(job.analysis, Together) else found[""]

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


def _pieces(job: Job) -> Iterator[Piece]:
    """The row groups of a job's tables, or its tasks."""
    if isinstance(job, Each):
        yield from ((number, 0, None, 0) for number in range(len(job.tasks)))
        return
    number = 0
    for at, rows in enumerate(job.tables if isinstance(job, Analyse) else [job.rows]):
        assert isinstance(rows.source, Path)
        about, start = pq.read_metadata(rows.source), 0
        for group in range(about.num_row_groups) or (None,):
            yield number, at, group, start
            number += 1
            start += 0 if group is None else about.row_group(group).num_rows


# What workers do. `folder` is that of the job.


def _work(scratch: Path, size: int, numbered: tuple[int, Piece]) -> Iterator[tuple[tuple[int, int], Part]]:
    """Does what a job wants with a piece; parts of what has to come together, and their keys."""
    number, piece = numbered
    folder = scratch / str(number)
    parts: list[tuple[int, Part]] = []
    with _refusals(folder, piece[0]):
        job = _loaded(folder / _JOB)
        parts = _WORK[type(job)](folder, job, size, piece)
    yield from (((number, key), part) for key, part in parts)


def _end(scratch: Path, grouped: tuple[tuple[int, int], Iterable[Part]]) -> None:
    """Does what a job wants with the parts of a key."""
    (number, key), parts = grouped
    folder = scratch / str(number)
    with _refusals(folder, key):
        job = _loaded(folder / _JOB)
        _keep_result(folder, key, _GROUPED[type(job)](job, key, _read(folder, parts)))


@functools.lru_cache(maxsize=16)
def _loaded(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


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


def _written(folder: Path, number: int, parts: Iterable[tuple[int, Any]]) -> list[tuple[int, Part]]:
    """Writes the parts of a piece into one file of this attempt; their keys, and where each is."""
    name = f"parts-{number:012d}-{uuid.uuid4().hex}"
    found: list[tuple[int, Part]] = []
    with (folder / name).open("wb") as file:
        for key, part in parts:
            found.append((key, (name, file.tell(), len(part))))
            file.write(part)
    return found


def _read(folder: Path, parts: Iterable[Part]) -> Iterator[bytes]:
    """What was written, in the order of the pieces, and within a piece in that in which it was written."""
    for name, start, size in sorted(parts):
        with (folder / name).open("rb") as file:
            file.seek(start)
            yield file.read(size)


def _states(folder: Path, job: Analyse, size: int, piece: Piece) -> list[tuple[int, Part]]:
    """The state of each analysis after a piece, cut in buckets where it can be."""
    number, at, group, start = piece
    buckets = max(1, sum(map(len, job.tables)) // (Shuffle.BATCHES * size))
    state, parts = analyse(job.analysis, job.tables[at].batches(size, group, start)), _parts(job.analysis)

    def packed() -> Iterator[tuple[int, bytes]]:
        for place, (name, part) in enumerate(parts.items()):
            own = state[name] if name else state
            cut = part.split(own, buckets) if buckets > 1 and hasattr(part, "split") else [own]
            yield from ((bucket * len(parts) + place, pickle.dumps(each, 5)) for bucket, each in enumerate(cut))

    return _written(folder, number, packed())


def _parts(analysis: Any) -> dict[str, Any]:
    return dict(analysis.parts) if isinstance(analysis, Together) else {"": analysis}


def _merged(job: Analyse, key: int, states: Iterator[bytes]) -> tuple[str, Any]:
    parts = list(_parts(job.analysis).items())
    name, part = parts[key % len(parts)]
    state = functools.reduce(part.merge, map(pickle.loads, states))
    return name, part.reduce(state) if hasattr(part, "reduce") else part.result(state)


def _write_shard(folder: Path, job: Write, size: int, piece: Piece) -> list[tuple[int, Part]]:
    number, _, group, start = piece
    function: Any = job.function  # the file that it lies in
    tables = map(_loaded(function), job.rows.batches(size, group, start))
    first = next(tables)
    with _whole(folder / f"shard-{number:012d}") as partial, pq.ParquetWriter(partial, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)
    return []


def _cut(folder: Path, job: Shuffle, size: int, piece: Piece) -> list[tuple[int, Part]]:
    number, _, group, start = piece
    tables = job.rows.batches(size, group, start)
    parts = ((bucket, _packed(part)) for table in tables for bucket, part in job.cut(table, size))
    return _written(folder, number, parts)


def _packed(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _bucket(job: Shuffle, key: int, parts: Iterator[bytes]) -> Any:
    return job.work(pa.concat_tables(pa.ipc.open_stream(packed).read_all() for packed in parts))


def _task(folder: Path, job: Each, size: int, piece: Piece) -> list[tuple[int, Part]]:
    number = piece[0]
    _keep_result(folder, number, job.work(pickle.loads((folder / f"{_TASK}-{number:012d}").read_bytes())))
    return []


_WORK: dict[type, Any] = {Analyse: _states, Write: _write_shard, Shuffle: _cut, Each: _task}
_GROUPED: dict[type, Any] = {Analyse: _merged, Shuffle: _bucket}
