"""Layers that training, evaluation and the served graph share, so that they cannot differ."""

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike


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
        self.boundaries.assign(bounds)
        self.edges.assign(np.stack([begins, ends], axis=2).reshape(self.num_features, 2 * self.num_quantiles))
        lines = np.concatenate([np.zeros_like(between[:, :1]), between], axis=1)
        self.lines.assign(lines.astype(np.float32))  # what servers share converts nothing

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        values = tf.transpose(tf.reshape(tf.cast(inputs, tf.float32), [-1, self.num_features]))  # [F, M]
        line = tf.searchsorted(tf.convert_to_tensor(self.edges), values, side="right")
        start, slope, share = tf.unstack(tf.gather(tf.convert_to_tensor(self.lines), line, batch_dims=1), axis=-1)
        share += tf.math.multiply_no_nan(values - start, slope)
        return tf.reshape(tf.transpose(share), tf.shape(inputs))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_features": self.num_features, "num_quantiles": self.num_quantiles}


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
