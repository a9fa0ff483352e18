"""The rows of one side of a matrix in padded batches of about the same number of cells."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._cells import Cells, read_cells
from shortlist.models._checks import require

BATCH_CELLS = 131_072
DAMPING = 5.0
"""Confidence that a bias must outweigh: it is pulled towards 0 as if so much were seen there."""

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

    @property
    def mean_weight(self) -> float:
        """The mean confidence of the cells."""
        return float(self.cells.weights.mean(dtype=np.float64))

    def parts(self) -> Iterator["PaddedRows"]:
        """The rows that are in memory at once."""
        yield self

    def count(self) -> None:
        """Brings `lengths` up to date: they are."""

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


class RowStream:
    """The rows of one side from a data set, a part of them in memory at once.

    Args:
      data: batches as dictionaries: `rows` int `[B]`, rows of the table of factors, each of the whole data set once;
        `columns` int `[B, L]`, ragged or padded with negative values, the observed rows of the other side; `targets`
        and `weights`, float of the same shape, 1 where left out.
      shape: rows of this side and of the other.
      dim: D.
      name: "users" or "items", for errors.
    """

    def __init__(self, data: tf.data.Dataset, shape: tuple[int, int], dim: int, name: str):
        self.data, self.shape, self.dim, self.name = data, shape, dim, name
        self.lengths, self.weight = np.zeros(shape[0], np.int64), 0.0
        self.steps = 0

    def __len__(self) -> int:
        """The batches that the last pass took; 0 before the first."""
        return self.steps

    @property
    def mean_weight(self) -> float:
        return self.weight / max(int(self.lengths.sum()), 1)

    def parts(self) -> Iterator[PaddedRows]:
        """The batches as they come, and then the rows that had no cell in any of them.

        Raises:
          ShortlistError: for a row or column out of range, a row that comes twice, what `read_cells` refuses, and when
            there is no cell at all.
        """
        lengths, given = np.zeros(self.shape[0], np.int64), np.zeros(self.shape[0], bool)
        self.steps, self.weight = 0, 0.0
        for batch in self.data:
            rows = require_rows("rows", np.asarray(batch["rows"]), self.shape[0])
            again = given[rows]
            given[rows] = True
            rule = f"`rows` must name a row of the {self.name} once in the whole data set, with all of its cells."
            require(not again.any() and len(np.unique(rows)) == len(rows), rule, rows=rows[again][:1].tolist())
            cells = self._cells(batch, rows)
            if cells is None:
                continue
            part = PaddedRows(cells, self.dim, ids=rows)
            lengths[rows] = part.lengths
            self.steps += len(part)
            self.weight += part.mean_weight * len(cells.columns)
            yield part
        require(self.steps > 0, f"The data set of the {self.name} must have at least one cell.", cells=0)
        self.lengths = lengths
        nothing, ids = np.empty(0, np.float32), np.flatnonzero(lengths == 0)
        starts, columns = np.zeros(len(ids) + 1, np.int64), np.empty(0, np.int32)
        yield PaddedRows(Cells((len(ids), self.shape[1]), starts, columns, nothing, nothing), self.dim, ids=ids)

    def count(self) -> None:
        """Brings `lengths` up to date by a pass over the data."""
        for _ in self.parts():
            pass

    def _cells(self, batch: dict[str, tf.Tensor], rows: np.ndarray) -> Cells | None:
        columns = batch["columns"]
        ragged = isinstance(columns, tf.RaggedTensor)
        inside = np.ones(0, bool) if ragged else np.asarray(columns) >= 0

        def flat(values: tf.Tensor) -> np.ndarray:
            return np.asarray(values.flat_values) if ragged else np.asarray(values)[inside]

        where = columns.value_rowids().numpy() if ragged else np.nonzero(inside)[0]
        indices = tf.constant(
            np.stack([where, require_rows("columns", flat(columns), self.shape[1])], axis=1), tf.int64
        )
        if not len(where):
            return None
        targets = flat(batch["targets"]) if "targets" in batch else np.ones(len(where), np.float32)
        x = tf.SparseTensor(indices, targets, (len(rows), self.shape[1]))
        weights = x.with_values(flat(batch["weights"])) if "weights" in batch else None
        return read_cells(x, f"{self.name}, the batch of row {rows[0]},", sample_weight=weights)


def two_sides(cells: Cells, dim: int) -> tuple[PaddedRows, PaddedRows]:
    """A matrix by row and by column."""
    return PaddedRows(cells, dim), PaddedRows(cells.transposed(), dim)


def read_sides(
    x: tf.SparseTensor, sample_weight: tf.SparseTensor | None, dim: int, name: str = "x", duplicates: str = "sum"
) -> tuple[PaddedRows, PaddedRows]:
    """A matrix and its confidences by row and by column; raises what `read_cells` does."""
    return two_sides(read_cells(x, name, duplicates, sample_weight), dim)


def biases(cells: Cells, center: str) -> tuple[float, np.ndarray, np.ndarray]:
    """The mean of the targets, and by how much users and items lie above it; see `WALS` for the formulas."""
    rows, weights = cells.rows, np.broadcast_to(cells.weights, cells.columns.shape)
    mean = float(np.average(np.broadcast_to(cells.values, rows.shape), weights=weights)) if weights.any() else 0.0
    of_users, of_items = (np.zeros(size, np.float32) for size in cells.shape)
    if center == "biases":
        left = cells.values - np.float32(mean)

        def above(ids: np.ndarray, size: int) -> np.ndarray:
            total = np.bincount(ids, weights * left, size)
            return (total / (np.bincount(ids, weights, size) + DAMPING)).astype(np.float32)

        of_items = above(cells.columns, cells.shape[1])
        left = left - of_items[cells.columns]
        of_users = above(rows, cells.shape[0])
    return mean, of_users, of_items


def centered(cells: Cells, mean: float, of_users: np.ndarray, of_items: np.ndarray) -> Cells:
    """The cells with the mean and the biases taken off their targets."""
    return replace(cells, values=cells.values - np.float32(mean) - of_users[cells.rows] - of_items[cells.columns])


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


def read_targets(targets: Any, columns: np.ndarray) -> np.ndarray:
    """Checked targets, float32 `[B, L]`, 0 where `columns` pad; see `WALS.fold_in`."""
    found = np.asarray(targets, np.float32)
    rule = f"`targets` must be finite and of the shape of items, {columns.shape}."
    require(found.shape == columns.shape, rule, shape=found.shape)
    wrong = ~np.isfinite(found) & (columns >= 0)
    require(not wrong.any(), rule, targets=found[wrong][:1].tolist())
    return np.where(columns >= 0, found, np.float32(0))


def gramian(factors: np.ndarray, block: int = 1024) -> np.ndarray:
    """FᵀF as float64 `[D, D]`: float32 products of blocks of rows, added up in float64."""
    total = np.zeros((factors.shape[1],) * 2)
    for first in range(0, len(factors), block):
        part = factors[first : first + block]
        total += part.T @ part
    return total
