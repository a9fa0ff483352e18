"""Rows that repeat an earlier one, in a file of any size: by hashes on disk, then by what the suspects really hold."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shortlist.components._batches import BUCKET, Writer, batches
from shortlist.components._hashing import hash_of, mix
from shortlist.components._tables import drop_duplicates, event_keys


class Duplicates:
    """Collects the hashes of the rows of a table, batch after batch, in a file of 8 bytes a row.

    Args:
      path: the file, gone in the end.
    """

    def __init__(self, path: Path):
        self.path = path

    def add(self, interactions: pa.Table) -> None:
        total = np.zeros(len(interactions), np.uint64)
        for name in event_keys(interactions.column_names):
            total = mix(total ^ _hashes(interactions[name]))
        with self.path.open("ab") as file:
            file.write(total.tobytes())

    def drop(self, path: Path) -> int:
        """Rewrites a file of these rows without those that repeat an earlier one; how many they are."""
        dropped = [_repeating(path, rows) for rows in self._suspects()]
        self.path.unlink()
        found = np.sort(np.concatenate(dropped)) if dropped else np.zeros(0, np.int64)
        if len(found):
            whole, start = path.rename(path.with_suffix(".whole")), 0
            with Writer(path) as writer:
                for table in batches(whole):
                    keep = np.ones(len(table), bool)
                    keep[_between(found, start, start + len(table)) - start] = False
                    writer.write(table.filter(pa.array(keep)))
                    start += len(table)
            whole.unlink()
        return len(found)

    def _suspects(self) -> Iterator[np.ndarray]:
        """Rows int64 `[N]`, ascending, whose hash another has too; those of one hash come together."""
        if not self.path.stat().st_size:
            return
        hashes = np.memmap(self.path, np.uint64, "r")
        ranges = -(-len(hashes) // BUCKET)
        for number in range(ranges):
            rows = np.concatenate(
                [
                    start + np.flatnonzero(hashes[start : start + BUCKET] % np.uint64(ranges) == number)
                    for start in range(0, len(hashes), BUCKET)
                ]
            )
            mine = hashes[rows]
            order = np.argsort(mine)
            same = np.diff(mine[order]) == 0
            twice = np.append(False, same) | np.append(same, False)
            if twice.any():
                yield np.sort(rows[order[twice]])


def _repeating(path: Path, rows: np.ndarray) -> np.ndarray:
    """Those of `rows`, ascending, that repeat the event of an earlier one of them."""
    found, start = [], 0
    for table in batches(path, event_keys(pq.read_schema(path).names)):
        mine = _between(rows, start, start + len(table))
        found.append(table.take(pa.array(mine - start)).append_column("row", pa.array(mine)))
        start += len(table)
    kept = drop_duplicates(pa.concat_tables(found))[0]["row"].to_numpy()
    return np.setdiff1d(rows, kept, assume_unique=True)


def _between(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
    return rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]


def _hashes(values: pa.ChunkedArray) -> np.ndarray:
    """uint64 `[N]`, of text or int64; a null is a value too."""
    values = values.combine_chunks()
    if pa.types.is_int64(values.type):
        absent = values.is_null().to_numpy(zero_copy_only=False)
        return np.where(absent, np.uint64(1), mix(values.fill_null(0).to_numpy().view(np.uint64)))
    encoded = values.dictionary_encode(null_encoding="encode")
    return mix(hash_of(encoded.dictionary))[encoded.indices.to_numpy()]
