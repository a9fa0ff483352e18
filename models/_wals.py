"""The rows of one side of a matrix in padded batches of about the same number of cells."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._cells import Cells, read_cells
from shortlist.models._checks import require

BATCH_CELLS = 65_536

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class PaddedRows:
    """Batches of rows of similar length; iterating yields `rows` `[B]`, `columns` `[B, L]` (−1 pads), `targets` and
    `weights` float32 `[B, L]`.

    Rows without a cell are left out. The longest come first, ties in the order of the rows. A batch holds so many rows
    that B (L + D) stays within `batch_cells`, which bounds the gathered vectors and the D × D systems alike; a row that
    is longer has a batch to itself.

    Args:
      cells: targets and confidences.
      dim: D.
      rows: which rows; all if None.
      batch_cells: see above.
      ids: int `[R]`, the rows of the table of factors that the rows of `cells` stand for; the same if None.
    """

    def __init__(
        self,
        cells: Cells,
        dim: int,
        rows: np.ndarray | None = None,
        batch_cells: int = BATCH_CELLS,
        ids: np.ndarray | None = None,
    ):
        self.cells = cells
        self.ids = np.arange(cells.shape[0], dtype=np.int32) if ids is None else ids
        self.lengths = np.diff(cells.starts)
        rows = np.arange(cells.shape[0]) if rows is None else np.asarray(rows)
        filled = self.lengths[rows] > 0
        self.empty, order = rows[~filled], rows[filled]
        order = order[np.argsort(-self.lengths[order], kind="stable")]
        self.batches: list[np.ndarray] = []
        first = 0
        while first < len(order):
            size = max(1, batch_cells // (int(self.lengths[order[first]]) + dim))
            self.batches.append(order[first : first + size])
            first += size

    def __len__(self) -> int:
        return len(self.batches)

    def parts(self) -> Iterator["PaddedRows"]:
        """The rows that are in memory at once."""
        yield self

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.batches:
            position = np.arange(self.lengths[rows[0]])
            inside = position < self.lengths[rows, np.newaxis]  # [B, L]
            index = np.where(inside, self.cells.starts[rows, np.newaxis] + position, 0)
            columns = np.where(inside, self.cells.columns[index], -1)
            yield rows, columns, _take(self.cells.values, index), _take(self.cells.weights, index)


def _take(numbers: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The numbers of cells; see `Cells` for those that all share one."""
    return numbers[index] if len(numbers) > 1 else np.full(index.shape, numbers[0])


def read_sides(
    x: tf.SparseTensor, sample_weight: tf.SparseTensor | None, dim: int, name: str = "x", duplicates: str = "sum"
) -> tuple[PaddedRows, PaddedRows]:
    """A matrix and its confidences by row and by column; raises what `read_cells` does."""
    cells = read_cells(x, name, duplicates, sample_weight)
    return PaddedRows(cells, dim), PaddedRows(cells.transposed(), dim)


def require_rows(name: str, rows: Any, size: int) -> np.ndarray:
    """`rows` as an array, or ShortlistError unless all are from 0 to `size` − 1."""
    rows = np.asarray(rows)
    outside = rows[(rows < 0) | (rows >= size)]
    rule = f"`{name}` must be from 0 to {size - 1}, rows of the table that was fitted."
    require(outside.size == 0, rule, **{name: outside[:1].tolist()})
    return rows


def read_new_rows(items: Any, weights: Any, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Checked columns, int32 `[B, L]`, and confidences, float32 `[B, L]`; see `WALS.fold_in`."""
    columns = np.asarray(items, np.int32)
    require_rows("items", np.maximum(columns, 0), num_items)
    ordered = np.sort(columns, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    rule = "`items` must hold an item once a user; add its weights up."
    require(not twice.any(), rule, items=ordered[:, 1:][twice][:1].tolist())
    given = np.ones(columns.shape, np.float32) if weights is None else np.asarray(weights, np.float32)
    rule = f"`weights` must be finite, not negative, and of the shape of items, {columns.shape}."
    require(given.shape == columns.shape, rule, shape=given.shape)
    wrong = ~(np.isfinite(given) & (given >= 0)) & (columns >= 0)
    require(not wrong.any(), rule, weights=given[wrong][:1].tolist())
    return columns, np.where(columns >= 0, given, np.float32(0))


def gramian(factors: np.ndarray, block: int = 1024) -> np.ndarray:
    """FᵀF as float64 `[D, D]`: float32 products of blocks of rows, added up in float64."""
    total = np.zeros((factors.shape[1],) * 2)
    for first in range(0, len(factors), block):
        part = factors[first : first + block]
        total += part.T @ part
    return total
