"""The stored cells of a sparse matrix as sorted arrays, whatever order they came in."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.models._checks import require


@dataclass(frozen=True)
class Cells:
    """The N cells of a matrix, each once, sorted by row and then column.

    Args:
      shape: rows and columns of the matrix.
      rows, columns: int32 `[N]`.
      values: float32 `[N]`, finite.
    """

    shape: tuple[int, int]
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 `[rows + 1]`: the cells of row r are `starts[r]` to `starts[r + 1]`."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.rows, minlength=self.shape[0]))])

    def transposed(self) -> "Cells":
        order = np.argsort(self.columns, kind="stable")
        return Cells(self.shape[::-1], self.columns[order], self.rows[order], self.values[order])

    def same_places_as(self, other: "Cells") -> bool:
        same = self.shape == other.shape and len(self.rows) == len(other.rows)
        return same and bool((self.rows == other.rows).all() and (self.columns == other.columns).all())


def read_cells(x: tf.SparseTensor, name: str = "x", duplicates: str = "sum") -> Cells:
    """Checks and sorts the cells of a `tf.SparseTensor` `[rows, columns]`.

    Args:
      x: numbers, in any order of indices.
      name: what the caller calls it, for errors.
      duplicates: "sum" adds the values given for one cell, "refuse" raises.

    Raises:
      ShortlistError: not a sparse matrix, no cell at all, an index outside it, a value that is not finite, a side
        beyond int32, or a duplicate that is refused; the message names the row.
    """
    require(duplicates in ("sum", "refuse"), "`duplicates` must be 'sum' or 'refuse'.", duplicates=duplicates)
    if not isinstance(x, tf.SparseTensor) or len(x.shape) != 2:
        raise ShortlistError(
            f"`{name}` must be a tf.SparseTensor [rows, columns]; tf.sparse.from_dense makes one of a matrix. "
            f"Received: {type(x).__name__} of shape {getattr(x, 'shape', None)}."
        )
    indices = np.asarray(x.indices, np.int64)
    shape = np.asarray(x.dense_shape, np.int64)
    require(
        bool((shape < 2**31).all()),
        f"`{name}` must have fewer than 2^31 rows and columns; number the ids from 0.",
        shape=shape.tolist(),
    )
    require(len(indices) > 0, f"`{name}` must have at least one cell; there is nothing to learn.", cells=0)
    outside = np.flatnonzero(((indices < 0) | (indices >= shape)).any(axis=1))
    if len(outside):
        row, column = indices[outside[0]]
        raise ShortlistError(
            f"`{name}` must have its indices inside its shape {shape.tolist()}; raise dense_shape or correct the ids. "
            f"Received: row {row}, column {column}."
        )
    with np.errstate(over="ignore"):
        values = np.asarray(x.values).astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        row, column = indices[wrong[0]]
        raise ShortlistError(
            f"`{name}` must hold finite float32 numbers; drop or correct the cell. "
            f"Received: {float(x.values[wrong[0]])} in row {row}, column {column}."
        )
    keys = indices[:, 0] * shape[1] + indices[:, 1]
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    if len(first) < len(keys):
        twice = int(keys[np.flatnonzero(keys[1:] == keys[:-1])[0]])
        if duplicates == "refuse":
            raise ShortlistError(
                f"`{name}` must have each cell once; merge them, or pass duplicates='sum'. "
                f"Received: row {twice // shape[1]}, column {twice % shape[1]} more than once."
            )
        keys, values = keys[first], np.add.reduceat(values.astype(np.float64), first).astype(np.float32)
    rows, columns = np.divmod(keys, shape[1])
    return Cells((int(shape[0]), int(shape[1])), rows.astype(np.int32), columns.astype(np.int32), values)
