"""The stored cells of a sparse matrix as sorted arrays, whatever order they came in."""

from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.models._checks import require


@dataclass(frozen=True)
class Cells:
    """The N cells of a matrix, each once, sorted by row and then column.

    Args:
      shape: rows and columns of the matrix.
      starts: int64 `[rows + 1]`: the cells of row r are `starts[r]` to `starts[r + 1]`.
      columns: int32 `[N]`.
      values: float32 `[N]`, finite; or `[1]`, if all have the same.
      weights: float32, as `values`; not negative.
    """

    shape: tuple[int, int]
    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    weights: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """int32 `[N]`."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), np.diff(self.starts))

    def transposed(self) -> "Cells":
        from shortlist.models._cell_kernels import transposed  # numba, which a loaded model does not need

        arrays = self.starts, self.columns, self.values, self.weights
        return Cells(self.shape[::-1], *transposed(*arrays, self.shape[1]))

    def same_places_as(self, other: "Cells") -> bool:
        same = self.shape == other.shape and len(self.columns) == len(other.columns)
        return same and bool((self.starts == other.starts).all() and (self.columns == other.columns).all())


def read_cells(
    x: tf.SparseTensor, name: str = "x", duplicates: str = "sum", sample_weight: tf.SparseTensor | None = None
) -> Cells:
    """Checks and sorts the cells of a `tf.SparseTensor` `[rows, columns]`.

    Args:
      x: numbers, in any order of indices.
      name: what the caller calls it, for errors.
      duplicates: "sum" adds the values (and weights) given for one cell, "refuse" raises.
      sample_weight: weights of the same cells, in the same order or another; 1 where None.

    Raises:
      ShortlistError: not a sparse matrix, no cell at all, an index outside it, a value that is not finite, a side
        beyond int32, a duplicate that is refused, and weights that are negative or belong to other cells; the message
        names the row.
    """
    from shortlist.models._cell_kernels import same  # numba, which a loaded model does not need

    require(duplicates in ("sum", "refuse"), "`duplicates` must be 'sum' or 'refuse'.", duplicates=duplicates)
    shape, indices, values = _checked(x, name)
    one = np.ones(1, np.float32)
    if sample_weight is None:
        return _sorted(shape, indices, values, one, name, duplicates)
    of_weights, places, weights = _checked(sample_weight, "sample_weight")
    if (weights < 0).any():
        wrong = int(np.argmax(weights < 0))
        raise ShortlistError(
            "`sample_weight` must not be negative; give 0 to a cell that is to be ignored. "
            f"Received: {weights[wrong]:g} in row {places[wrong, 0]}, column {places[wrong, 1]}."
        )
    if of_weights == shape and same(indices, places):
        return _sorted(shape, indices, values, weights, name, duplicates)
    cells = _sorted(shape, indices, values, one, name, duplicates)
    given = _sorted(of_weights, places, weights, one, "sample_weight", duplicates)
    rule = f"`sample_weight` must have a value for exactly the cells of {name}."
    require(given.same_places_as(cells), rule, cells=len(given.columns), cells_of_x=len(cells.columns))
    return replace(cells, weights=given.values)


def _checked(x: tf.SparseTensor, name: str) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    """The shape, the indices int64 `[N, 2]` and the values float32 `[N]`, or `[1]` if they are all the same."""
    from shortlist.models._cell_kernels import first_outside

    if not isinstance(x, tf.SparseTensor) or len(x.shape) != 2:
        raise ShortlistError(
            f"`{name}` must be a tf.SparseTensor [rows, columns]; tf.sparse.from_dense makes one of a matrix. "
            f"Received: {type(x).__name__} of shape {getattr(x, 'shape', None)}."
        )
    indices = np.asarray(x.indices)  # a view; with a dtype NumPy would copy
    rows, columns = (int(size) for size in x.dense_shape)
    require(
        max(rows, columns) < 2**31,
        f"`{name}` must have fewer than 2^31 rows and columns; number the ids from 0.",
        shape=[rows, columns],
    )
    require(len(indices) > 0, f"`{name}` must have at least one cell; there is nothing to learn.", cells=0)
    outside = first_outside(indices, rows, columns)
    if outside >= 0:
        row, column = indices[outside]
        raise ShortlistError(
            f"`{name}` must have its indices inside its shape {[rows, columns]}; raise dense_shape or correct the ids. "
            f"Received: row {row}, column {column}."
        )
    with np.errstate(over="ignore"):
        values = np.asarray(x.values).astype(np.float32, copy=False)
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        wrong = np.flatnonzero(~np.isfinite(values))
        row, column = indices[wrong[0]]
        raise ShortlistError(
            f"`{name}` must hold finite float32 numbers; drop or correct the cell. "
            f"Received: {float(x.values[wrong[0]])} in row {row}, column {column}."
        )
    return (rows, columns), indices, values[:1] if low == high else values


def _sorted(
    shape: tuple[int, int], indices: np.ndarray, values: np.ndarray, weights: np.ndarray, name: str, duplicates: str
) -> Cells:
    from shortlist.models._cell_kernels import by_row, first_twice, merged

    arrays = by_row(indices, values, weights, shape[0])
    row, column = first_twice(*arrays[:2])
    if row >= 0:
        if duplicates == "refuse":
            raise ShortlistError(
                f"`{name}` must have each cell once; merge them, or pass duplicates='sum'. "
                f"Received: row {row}, column {column} more than once."
            )
        whole = (np.broadcast_to(numbers, arrays[1].shape).copy() for numbers in arrays[2:])
        arrays = merged(*arrays[:2], *whole)
    return Cells(shape, *arrays)
