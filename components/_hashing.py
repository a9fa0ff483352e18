"""Hashes that are the same on every machine and in every version of a library."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def hash_of(ids: pa.Array) -> np.ndarray:
    """uint64 [U]: the sum over an id's UTF-8 bytes of a random number for (position, byte)."""
    _, offsets, data = ids.cast(pa.large_binary()).buffers()
    ends = np.frombuffer(offsets, np.int64)[: len(ids) + 1]
    letters = np.frombuffer(data or b"", np.uint8)[: ends[-1]].astype(np.int64)
    place = np.arange(len(letters)) - np.repeat(ends[:-1], np.diff(ends))
    total = np.cumsum(np.append(np.uint64(0), mix((place * 256 + letters).astype(np.uint64))))
    return total[ends[1:]] - total[ends[:-1]]


def mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 step, a bijection of uint64. Source: Steele, Lea, Flood 2014."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_hashes(table: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """uint64 [N]: the same for rows with the same values in the columns `keys`, of text or numbers; a null is one."""
    total = np.zeros(len(table), np.uint64)
    for key in keys:
        total = mix(total ^ _value_hashes(table[key]))
    return total


def _value_hashes(values: pa.ChunkedArray) -> np.ndarray:
    if not len(values):
        return np.zeros(0, np.uint64)
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        missing = values.is_null().to_numpy()
        numbers = pc.fill_null(values, 0).to_numpy()
        wide = numbers.astype(np.int64 if numbers.dtype.kind == "i" else np.float64) + 0  # -0.0 is 0.0
        return np.where(missing, np.uint64(0), mix(wide.view(np.uint64)))
    known = values.combine_chunks().cast(pa.string()).dictionary_encode("encode")
    of = np.append(hash_of(known.dictionary.fill_null("")), np.uint64(0))
    return of[known.indices.fill_null(len(of) - 1).to_numpy()]


def cut(table: pa.Table, keys: Sequence[str], buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """The rows of every bucket, in their order; those with the same keys are in the same one."""
    if buckets == 1:
        yield 0, table
        return
    bucket = (row_hashes(table, keys) % np.uint64(buckets)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=buckets))
    for number, (first, end) in enumerate(zip(np.append(0, ends), ends, strict=False)):
        yield number, table.take(pa.array(order[first:end]))


def split_tables(tables: Sequence[pa.Table], key: str, buckets: int) -> list[list[pa.Table]]:
    """The same of some tables: a list a bucket."""
    found: list[list[pa.Table]] = [[] for _ in range(buckets)]
    for table in tables:
        for number, part in cut(table, [key], buckets):
            found[number].append(part)
    return found
