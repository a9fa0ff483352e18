"""Vocabularies of text, and the rows of a text in them: 0 missing, 1 unknown, then the vocabulary's lines."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

OOV, FIRST_ID = 1, 2


def vocabulary(counts: pa.Table, min_count: int = 1, top: int | None = None) -> pa.Array:
    """The values with at least `min_count` rows, by count, ties by a hash; of these the first `top`.

    `counts` has the columns `value` and `count`, see `_analysis.Counts`.
    """
    counts = counts.filter(pc.greater_equal(counts["count"], min_count))
    names, number = counts["value"].combine_chunks(), counts["count"].to_numpy()
    digests = np.array([hashlib.blake2b(n.encode(), digest_size=8).digest() for n in names.to_pylist()], "S8")
    return names.take(pa.array(np.lexsort((digests, -number))[:top]))


def lookup(ids: pa.ChunkedArray, values: pa.Array | pa.ChunkedArray, first: int) -> pa.Array:
    """The place of each id in `values`, from `first`; OOV where it isn't there."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    rows = pc.add(pc.index_in(ids, value_set=values), first).fill_null(OOV).cast(pa.int32())
    return rows.combine_chunks() if isinstance(rows, pa.ChunkedArray) else rows


def ascending(values: pa.Array) -> pa.Array:
    """The values in their order."""
    return values.take(pc.array_sort_indices(values))


def category(column: pa.ChunkedArray, values: pa.Array) -> np.ndarray:
    """int32: 0 for a missing value, 1 for one that the vocabulary doesn't have."""
    return np.where(column.is_null().to_numpy(), 0, lookup(column, values, FIRST_ID).to_numpy()).astype(np.int32)


def one_line(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As text of one line each, as a vocabulary has it; "" is a missing value."""
    lines = pc.replace_substring_regex(column.cast(pa.string()), r"[\r\n]+", " ")
    return pc.if_else(pc.equal(lines, ""), pa.scalar(None, pa.string()), lines)


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def with_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """float32, null as NaN."""
    return column.cast(pa.float32()).fill_null(float("nan"))
