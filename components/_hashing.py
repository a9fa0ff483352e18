"""Hashes that are the same on every machine and in every version of a library."""

import numpy as np
import pyarrow as pa


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
