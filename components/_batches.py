"""Parquet in record batches: tables that are larger than memory are read and written a piece at a time."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

T = TypeVar("T")
BATCH = 2**19
"""Rows that a pass over a table holds at a time."""
BUCKET = 2**22
"""Rows that are sorted in memory at a time; what has more is cut in buckets of users first."""
GROUP = 2**16
"""Rows of a row group of an encoded part."""


def batches(
    path: Path, columns: Sequence[str] | None = None, size: int = BATCH, group: int | None = None
) -> Iterator[pa.Table]:
    """The rows of a file, or of one of its row groups, in their order, at most `size` at a time; at least one table,
    which may be empty."""
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow if columns is None else pa.schema([file.schema_arrow.field(c) for c in columns])
        about, groups = (file.metadata, None) if group is None else (file.metadata.row_group(group), [group])
        if not about.num_rows:
            yield schema.empty_table()
        for batch in ahead(file.iter_batches(size, row_groups=groups, columns=columns)):
            yield pa.Table.from_batches([batch]).select(schema.names)


def ahead(things: Iterator[T]) -> Iterator[T]:
    """The same, each made while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        end = object()
        waiting: Future[Any] = pool.submit(next, things, end)
        while (thing := waiting.result()) is not end:
            waiting = pool.submit(next, things, end)
            yield thing


def rows_of(path: Path) -> int:
    """How many rows a file has."""
    return pq.read_metadata(path).num_rows


class Writer:
    """Writes tables behind each other into one file, the schema of the first being that of all.

    Args:
      path: the file.
      key: a column by which the rows come sorted, if no row group shall end where equal ones go on: of a part that is
        sorted by user, each row group then holds whole users, about `group` rows.
      group: rows of a row group.
    """

    def __init__(self, path: Path, key: str | None = None, group: int = BATCH):
        self.path, self.key, self.group, self.rows = path, key, group, 0
        self._file: pq.ParquetWriter | None = None
        self._held: list[pa.Table] = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, failed: Any, *_: Any) -> None:
        if self._file is not None:
            if failed is None and self._held:
                self._write(self._joined())
            self._file.close()

    def write(self, table: pa.Table) -> None:
        if self._file is None:
            self._file = pq.ParquetWriter(self.path, table.schema)
        self.rows += len(table)
        self._held.append(table)
        if sum(map(len, self._held)) < self.group:
            return
        table, start = self._joined(), 0
        for stop in self._ends(table):
            self._write(table.slice(start, stop - start))
            start = stop
        self._held = [table.slice(start)]

    def _joined(self) -> pa.Table:
        return self._held[0] if len(self._held) == 1 else pa.concat_tables(self._held)

    def _ends(self, table: pa.Table) -> list[int]:
        """Where row groups end in `table`, the rest of which waits for more."""
        ends = np.arange(self.group, len(table) + 1, self.group)
        if self.key is not None:
            key = table[self.key].to_numpy()
            changes = np.append(0, np.flatnonzero(key[1:] != key[:-1]) + 1)
            ends = np.unique(changes[np.searchsorted(changes, ends, "right") - 1])
        return [int(end) for end in ends if end]

    def _write(self, table: pa.Table) -> None:
        assert self._file is not None
        self._file.write_table(table.combine_chunks(), row_group_size=max(len(table), 1))


def write_batches(path: Path, tables: Iterable[pa.Table], **settings: Any) -> int:
    """Writes all of `tables`, of which there must be one, into a file; how many rows they have."""
    with Writer(path, **settings) as writer:
        for table in tables:
            writer.write(table)
    return writer.rows


def sort_by_key(path: Path, key: str, sizes: np.ndarray, tables: Callable[[], Iterable[pa.Table]]) -> None:
    """Writes the rows of `tables()` sorted by a key of whole numbers, equal ones in their order.

    As many passes as there are buckets of about `BUCKET` rows; nothing else is held.

    Args:
      path: the file to write.
      key: the column.
      sizes: int `[K]`, how many rows each key has.
      tables: a new pass over the rows.
    """
    bucket = (np.cumsum(sizes) - sizes) // BUCKET
    starts = np.append(np.flatnonzero(np.diff(bucket, prepend=-1)), len(sizes))
    with Writer(path, key, GROUP) as writer:
        for low, high in itertools.pairwise(starts):
            inside = pa.concat_tables(
                table.filter(pc.and_(pc.greater_equal(table[key], low), pc.less(table[key], high)))
                for table in tables()
            )
            writer.write(inside.take(pa.array(np.argsort(inside[key].to_numpy(), kind="stable"))))


def scattered(tables: Iterable[pa.Table], folder: Path, column: str, firsts: Sequence[str]) -> Iterator[pa.Table]:
    """The rows by the range that an id falls in, a table a range, through files that are gone when they are read.

    Args:
      tables: the rows; within a range they keep their order.
      folder: for the files.
      column: of the id, text.
      firsts: the id that each range begins with, ascending; what comes before the second is in the first.
    """
    folder.mkdir()
    paths = [folder / f"{n}.arrow" for n in range(len(firsts))]
    writers: list[pa.RecordBatchFileWriter] = []
    for table in tables:
        if not writers:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            writers = [pa.ipc.new_file(path, table.schema, options=options) for path in paths]
        ids = table[column].combine_chunks().dictionary_encode()
        of_id = np.zeros(len(ids.dictionary), np.uint16)
        for first in firsts[1:]:
            of_id += pc.greater_equal(ids.dictionary, first).to_numpy(zero_copy_only=False)
        bucket = of_id[ids.indices.to_numpy()]
        table = table.combine_chunks().take(pa.array(np.argsort(bucket, kind="stable")))
        stop = np.cumsum(np.bincount(bucket, minlength=len(firsts)))
        for writer, low, high in zip(writers, np.append(0, stop), stop, strict=False):
            if high > low:
                writer.write_table(table.slice(low, high - low))
    for writer in writers:
        writer.close()
    for path in paths:
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            table = reader.read_all()
        path.unlink()
        yield table
    folder.rmdir()


def smallest(numbers: Callable[[], Iterable[np.ndarray]], ranks: Iterable[int]) -> list[int]:
    """The numbers of these ranks, from 0, in ascending order, exactly: found in some passes over int64 arrays.

    Each pass counts in 65,536 equal steps, and the next one looks into the step where the rank lies.
    """
    ends = [(int(x.min()), int(x.max())) for x in numbers() if len(x)]
    low, high = min(a for a, _ in ends), max(b for _, b in ends)
    found = [[low, high, int(rank)] for rank in ranks]
    while any(low < high for low, high, _ in found):
        widths = [-(-(high - low + 1) // 2**16) for low, high, _ in found]
        counts = np.zeros((len(found), 2**16), np.int64)
        for x in numbers():
            for n, (low, high, _) in enumerate(found):
                inside = x[(x >= low) & (x <= high)]
                counts[n] += np.bincount((inside - low) // widths[n], minlength=2**16)
        for one, count, width in zip(found, np.cumsum(counts, axis=1), widths, strict=True):
            step = int(np.searchsorted(count, one[2], "right"))
            one[2] -= int(count[step - 1]) if step else 0
            one[0] += step * width
            one[1] = min(one[1], one[0] + width - 1)
    return [low for low, _, _ in found]
