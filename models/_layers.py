"""Layers that training, evaluation and the served graph share, so that they cannot differ."""

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

CELLS = 1024
"""Of equal width, that a column's range is cut into, each with what the search for a number in it would find."""


@tf.keras.utils.register_keras_serializable("shortlist")
class QuantileNormalization(tf.keras.layers.Layer):
    """Maps each number to its cumulative frequency: x̃ = P(X ≤ x), linear between quantiles.

    A value that equals several quantiles gets the middle of them, so a constant column maps to ½.

    Source: Covington, Adams and Sargin 2016, §4.2.

    Args:
      num_features: F, the columns.
      num_quantiles: N ≥ 2, kept a column.

    Call: float `[..., F]` → float32 `[..., F]` in [0, 1].

    Example:
      >>> layer = QuantileNormalization(num_features=1, num_quantiles=3)
      >>> layer.adapt(np.array([[0.0], [10.0], [20.0]]))
      >>> layer(tf.constant([[5.0]])).numpy().item()
      0.25
    """

    def __init__(self, num_features: int, num_quantiles: int = 101, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_features, self.num_quantiles = num_features, num_quantiles
        shape, fixed = (num_features, num_quantiles), {"initializer": "zeros", "trainable": False}
        self.boundaries = self.add_weight("boundaries", shape, **fixed)
        self.edges = self.add_weight("edges", (num_features, 2 * num_quantiles), **fixed)
        self.lines = self.add_weight("lines", (num_features, 2 * num_quantiles + 1, 3), **fixed)
        self.grid = self.add_weight("grid", (num_features, 2), **fixed)
        self.cells = self.add_weight("cells", (num_features, CELLS, 2), **fixed)
        self.cell_lines = self.add_weight("cell_lines", (num_features, CELLS, 3, 2), **fixed)
        self.set_boundaries(np.zeros(shape))

    def adapt(self, values: np.ndarray) -> None:
        """Fits the quantiles to `values`, float `[M, F]`; NaN is left out, a column of nothing else becomes zeros."""
        shares = np.linspace(0, 1, self.num_quantiles)
        if not self.num_features:
            return  # NaN or not, there is nothing to fit
        values = np.where(np.isnan(values).all(axis=0), 0.0, values)
        self.set_boundaries(np.nanquantile(values, shares, axis=0).T)

    def set_boundaries(self, boundaries: ArrayLike) -> None:
        """Sets the quantiles, float `[F, N]`, ascending in each row.

        Around each lies a stretch of what equals it but for the rounding of the batch that it was computed in; `edges`
        are where the stretches begin and end. Of what lies before the first edge and after each, `lines` hold a start,
        a slope and the share at the start.
        """
        bounds = np.asarray(boundaries, np.float32)
        last, slack = np.float32(self.num_quantiles - 1), 1e-6 * (1.0 + np.abs(bounds))
        step = np.diff(bounds, axis=1, append=bounds[:, -1:])
        slope = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
        place = np.broadcast_to(np.arange(self.num_quantiles, dtype=np.float32), bounds.shape)
        middle = (tf.searchsorted(bounds, bounds - slack).numpy() + place) / 2  # of those that equal it
        begins, ends = bounds - slack, bounds + slack
        ends[:, :-1] = np.minimum(ends[:, :-1], begins[:, 1:])
        on = np.stack([bounds, np.zeros_like(bounds), middle / last], axis=-1)
        after = np.stack([bounds, slope / last, place / last], axis=-1)
        between = np.stack([on, after], axis=2).reshape(self.num_features, 2 * self.num_quantiles, 3)
        edges = np.stack([begins, ends], axis=2).reshape(self.num_features, 2 * self.num_quantiles)
        lines = np.concatenate([np.zeros_like(between[:, :1]), between], axis=1)
        grid = np.stack([edges[:, 0], CELLS / (edges[:, -1] - edges[:, 0])], axis=1)
        of_columns = [_cells(*of_one) for of_one in zip(edges, lines, grid, strict=True)]
        cells = np.reshape(of_columns, [self.num_features, CELLS, 8])
        cell_lines = np.reshape(cells[..., 2:], self.cell_lines.shape)
        weights = self.boundaries, self.edges, self.lines, self.grid, self.cells, self.cell_lines
        values: list[np.ndarray] = [bounds, edges, lines, grid, cells[..., :2], cell_lines]
        for weight, value in zip(weights, values, strict=True):
            weight.assign(value.astype(np.float32))  # what servers share converts nothing

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        values = features_first(tf.cast(inputs, tf.float32))  # [F, ...], where a feature's tables stay in near memory
        cells, lines = tf.convert_to_tensor(self.cells), tf.convert_to_tensor(self.cell_lines)
        lowest, per_unit = (beside(column, values) for column in tf.unstack(self.grid, axis=1))
        place = tf.floor(tf.clip_by_value((values - lowest) * per_unit, 0.0, CELLS - 1.0))
        place += beside(CELLS * tf.range(self.num_features, dtype=tf.float32), values)  # whole numbers below 2²⁴
        place = tf.maximum(tf.cast(place, tf.int32), 0)  # of NaN it was negative
        first, second = _pairs(cells, place)
        line = tf.add_n([3 * place, tf.cast(values >= first, tf.int32), tf.cast(values >= second, tf.int32)])
        share, slope = _pairs(lines, line)
        share += (values - first) * slope
        unknown = tf.math.is_nan(tf.reduce_sum(share))  # crowded cells, NaN and infinity
        return features_last(tf.cond(unknown, lambda: self._searched(values, share), lambda: share))

    def _searched(self, values: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        """`share` `[F, ...]` with what is NaN found by a search among all edges of its feature."""
        shape, flat = tf.shape(share), [self.num_features, -1]
        values, share = tf.reshape(values, flat), tf.reshape(share, flat)
        features = tf.where(tf.reduce_any(tf.math.is_nan(share), axis=1))  # [R, 1]
        values, own, edges, lines = (tf.gather_nd(x, features) for x in (values, share, self.edges, self.lines))
        line = tf.searchsorted(edges, values, side="right")
        start, slope, found = tf.unstack(tf.gather(lines, line, batch_dims=1), axis=-1)
        found += tf.math.multiply_no_nan(values - start, slope)
        found = tf.tensor_scatter_nd_update(share, features, tf.where(tf.math.is_nan(own), found, own))
        return tf.reshape(found, shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_features": self.num_features, "num_quantiles": self.num_quantiles}


def features_first(x: tf.Tensor) -> tf.Tensor:
    """`[..., F]` → `[F, ...]`. TensorFlow leaves out what only turns back what was turned before."""
    last = x.shape.rank - 1
    return tf.transpose(x, [last, *range(last)])


def features_last(x: tf.Tensor) -> tf.Tensor:
    """`[F, ...]` → `[..., F]`."""
    return tf.transpose(x, [*range(1, x.shape.rank), 0])


def beside(column: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """A number of each feature, `[F]`, in the form that goes with `x`, `[F, ...]`."""
    return tf.reshape(column, [-1, *[1] * (x.shape.rank - 1)])


def _pairs(table: tf.Tensor, place: tf.Tensor) -> list[tf.Tensor]:
    """Both numbers at a place of a table, `[..., 2]`; of complex numbers one look-up finds both, side by side."""
    found = tf.gather_nd(tf.reshape(tf.bitcast(table, tf.complex64), [-1]), place[..., tf.newaxis])
    return [tf.math.real(found), tf.math.imag(found)]


def _cells(edges: np.ndarray, lines: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Of each cell its first two edges and the three lines around them, float32 `[CELLS, 8]`.

    A line is its share at the first edge, and its slope. In the place of an edge that is lacking stands a number that
    parts like from like. A cell of more than two edges has NaN for shares. `edges` `[2N]` and `lines` `[2N + 1, 3]` are
    those of one column, `grid` `[2]` its lowest edge and its cells per unit.
    """
    place = (edges.astype(np.float64) - grid[0]) * grid[1]
    cell = np.arange(CELLS)
    begin = np.searchsorted(place, cell - 0.01)  # an edge that rounding may put beside the cell counts as in it
    end = np.searchsorted(place, cell + 1.01, side="right")
    begin[0], end[-1] = 0, len(edges)  # what lies outside of the range is in the first cell or the last
    at = [begin]
    for _ in range(2):  # the line after an edge and all that equal it
        after = np.searchsorted(edges, edges[np.minimum(at[-1], len(edges) - 1)], side="right")
        at.append(np.where(at[-1] < end, after, at[-1]))
    padded = np.append(edges, np.float32(np.inf))
    first = np.where(begin < end, padded[begin], lines[begin, 0])
    second = np.where(at[1] < end, padded[at[1]], np.inf)
    start, slope, share = np.moveaxis(lines[np.stack(at)].astype(np.float64), -1, 0)  # [3, CELLS]
    share = np.where(at[2] < end, np.nan, share + (first - start) * slope)
    columns = [first, second, *np.stack([share, slope], axis=1).reshape(6, CELLS)]
    return np.stack(columns, axis=1).astype(np.float32)


def powers(x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
    """x, x², √x and `others` beside each other, `[..., F]` → `[..., 3F + …]` (Covington et al. 2016, §4.2); x ≥ 0."""
    return tf.concat([x, tf.square(x), tf.sqrt(tf.maximum(x, 0.0)), *others], axis=-1)


def last_n(history: tf.Tensor, n: int, *others: tf.Tensor) -> list[tf.Tensor]:
    """The last n entries of each row that aren't padding, in their order, padded with 0 on the right: `[B, n]` each.

    Args:
      history: int `[B, L]`, padded with 0 on the right; L may be 0.
      n: how many, at least 1.
      *others: tensors `[B, L]` to cut alike.
    """
    length = tf.reduce_sum(tf.cast(history != 0, tf.int32), axis=1)
    position = tf.maximum(length - n, 0)[:, tf.newaxis] + tf.range(n)[tf.newaxis]  # [B, n]
    position = tf.where(position < length[:, tf.newaxis], position, tf.shape(history)[1])  # past the end: a column of 0
    return [tf.gather(tf.pad(x, [[0, 0], [0, 1]]), position, batch_dims=1) for x in (history, *others)]
