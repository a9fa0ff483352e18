"""Where the data work of a step is done: here, batch after batch, or by Apache Beam (`_beam.py`).

A step says what is to be done as jobs, and an engine does them. There are four kinds, each defined once by what it does
here: `Analyse`, `Write`, `Shuffle` and `Each`. What they call (analyses, functions, work) can be pickled, and makes the
same of the same however often and wherever it is called.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pydantic

from shortlist.components._analysis import Analysis, analyse
from shortlist.components._batches import BATCH, batches, rows_of, write_batches
from shortlist.components._config import Config
from shortlist.components._hashing import cut
from shortlist.components._sources import readable

Source: TypeAlias = "Path | pa.Table"
"""A Parquet file, or a table that is in memory."""
Function = Callable[[pa.Table], pa.Table]
"""Makes a batch of a batch."""
ROW = "row of the source"
"""The column with the number of a row, where a job says that it needs one."""


class EngineConfig(Config):
    """Where data work is done. It decides nothing of what an artifact holds.

    Args:
      name: "local", in this process, or "beam", by the runner of Apache Beam that `beam` names.
      beam: Beam's own flags without the dashes in front, such as "runner=FlinkRunner" and "streaming".
      batch: rows that a worker holds at a time.
    """

    name: Literal["local", "beam"] = "local"
    beam: tuple[str, ...] = ()
    batch: int = pydantic.Field(BATCH, ge=1)

    @pydantic.model_validator(mode="after")
    def _flags_for_beam(self) -> "EngineConfig":
        if self.beam and self.name != "beam":
            raise ValueError(
                f"`engine.beam` belongs to the engine beam: give --engine beam. Received: --beam-{self.beam[0]} for "
                f"the engine {self.name}."
            )
        return self


@dataclass(frozen=True)
class Rows:
    """Rows of interactions or of another table, read in batches.

    Args:
      source: a file, or a table.
      columns: those that are needed; None for all.
      numbered: with a further column `ROW`, the number of each row in the source.
      setting: that of the user which names the file: what of it cannot be read is refused by this name.
    """

    source: Source
    columns: Sequence[str] | None = None
    numbered: bool = False
    setting: str = ""

    def __len__(self) -> int:
        return rows_of(self.source) if isinstance(self.source, Path) else len(self.source)

    def batches(self, size: int, group: int | None = None, start: int = 0) -> Iterator[pa.Table]:
        """Tables of at most `size` rows, at least one, which may be empty: of all rows, or of a row group of the file
        that begins with the row `start`."""
        tables: Iterable[pa.Table]
        if isinstance(self.source, Path):
            tables = batches(self.source, self.columns, size, group)
            tables = readable(tables, self.source, self.setting) if self.setting else tables
        else:
            whole = self.source if self.columns is None else self.source.select(self.columns)
            tables = (whole.slice(at, size) for at in range(0, max(len(whole), 1), size))
        for table in tables:
            numbers = pa.array(np.arange(start, start + len(table)))
            start += len(table)
            yield table.append_column(ROW, numbers) if self.numbered else table


@dataclass(frozen=True)
class Analyse:
    """The result of an analysis of some tables together."""

    analysis: Analysis[Any]
    tables: Sequence[Rows]

    def here(self, size: int, folder: Path) -> Any:
        batches = itertools.chain.from_iterable(rows.batches(size) for rows in self.tables)
        return self.analysis.result(analyse(self.analysis, batches))


@dataclass(frozen=True)
class Write:
    """Writes what a function makes of every batch into one file, in order; how many rows it has.

    Args:
      out: the file.
      settings: of `Writer`.
      seen: is told what is written, in order, where the engine was started.
    """

    rows: Rows
    out: Path
    function: Function
    settings: Mapping[str, Any] = field(default_factory=dict)
    seen: Callable[[pa.Table], object] = field(default=lambda table: None)

    def here(self, size: int, folder: Path) -> int:
        return self.put_together(map(self.function, self.rows.batches(size)), size)

    def put_together(self, tables: Iterable[pa.Table], size: int) -> int:
        """Writes all of `tables`."""

        def watched() -> Iterator[pa.Table]:
            for table in tables:
                self.seen(table)
                yield table

        return write_batches(self.out, watched(), **{"group": size, **self.settings})


@dataclass(frozen=True)
class Shuffle:
    """What `work` makes of every bucket, in the order of the buckets.

    Rows with the same keys are in the same bucket, in the order of the source. A bucket has about `BATCHES` batches of
    rows, unless more have the same keys.

    Args:
      keys: columns of text or numbers.
    """

    rows: Rows
    keys: Sequence[str]
    work: Callable[[pa.Table], Any]

    BATCHES = 4

    def here(self, size: int, folder: Path) -> list[Any]:
        if self.buckets(size) == 1:
            return [self.work(pa.concat_tables(self.rows.batches(size)))]
        with tempfile.TemporaryDirectory(dir=folder, prefix=".shuffle-") as place, contextlib.ExitStack() as open_:
            files = [Path(place) / str(number) for number in range(self.buckets(size))]
            writers: dict[int, Any] = {}
            for table in self.rows.batches(size):
                for number, part in self.cut(table, size):
                    if number not in writers:
                        writers[number] = open_.enter_context(pa.ipc.new_file(str(files[number]), part.schema))
                    writers[number].write_table(part)
            open_.close()
            return [self.work(pa.ipc.open_file(str(file)).read_all()) for file in files]

    def buckets(self, size: int) -> int:
        """How many there are."""
        return max(1, -(-len(self.rows) // (self.BATCHES * size)))

    def cut(self, table: pa.Table, size: int) -> Iterator[tuple[int, pa.Table]]:
        """A batch's part of every bucket."""
        return cut(table, self.keys, self.buckets(size))


@dataclass(frozen=True)
class Each:
    """What `work` makes of every task, in their order. It is small: what is not, `work` writes down itself."""

    tasks: Sequence[Any]
    work: Callable[[Any], Any]

    def here(self, size: int, folder: Path) -> list[Any]:
        return [self.work(task) for task in self.tasks]


Job: TypeAlias = "Analyse | Write | Shuffle | Each"


class Engine:
    """The process that asks. Fast for what fits one machine: nothing is moved; Arrow and TensorFlow use its cores."""

    apart = False
    """Whether rows are read by other processes than this one."""

    def __init__(self, config: EngineConfig | None = None):
        self.config = config or EngineConfig()

    def run(self, folder: Path, *jobs: Job) -> list[Any]:
        """What the jobs make. They know nothing of each other.

        Args:
          folder: where workers leave what they make until it is put together; all of them see it.
          *jobs: what is to be done.

        Raises:
          ShortlistError: whatever a job refuses.
        """
        return [job.here(self.config.batch, folder) for job in jobs]


def engine_of(config: EngineConfig) -> Engine:
    """The engine of a configuration.

    Raises:
      ShortlistError: if it is not installed, or refuses its flags.
    """
    if config.name == "local":
        return Engine(config)
    from shortlist.components._beam import Beam

    return Beam(config)
