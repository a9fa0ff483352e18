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
        self.lines = self.add_weight("lines", (*shape, 3), **fixed)
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

        Of each, `lines` hold the value itself, the slope to the next, and the middle of those that equal it.
        """
        bounds = np.asarray(boundaries, np.float32)
        step = np.diff(bounds, axis=1, append=bounds[:, -1:])
        slope = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
        first = tf.searchsorted(bounds, bounds - _slack(bounds)).numpy()
        middle = (first + np.arange(self.num_quantiles)) / 2
        self.boundaries.assign(bounds)
        self.lines.assign(np.stack([bounds, slope, middle], axis=-1))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        values = tf.transpose(tf.reshape(tf.cast(inputs, tf.float32), [-1, self.num_features]))  # [F, M]
        slack = _slack(values)  # a tie is one, whatever the rounding of the batch it was computed in
        right = tf.searchsorted(tf.convert_to_tensor(self.boundaries), values + slack, side="right")
        low = tf.maximum(right - 1, 0)
        row = self.num_quantiles * tf.range(self.num_features)[:, tf.newaxis]
        below, slope, middle = tf.unstack(tf.gather(tf.reshape(self.lines, [-1, 3]), row + low), axis=-1)
        between = tf.cast(low, tf.float32) + tf.math.multiply_no_nan(values - below, slope)
        position = tf.where((right > 0) & (below >= values - slack), middle, between)
        last = float(self.num_quantiles - 1)
        return tf.reshape(tf.transpose(tf.clip_by_value(position, 0.0, last) / last), tf.shape(inputs))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_features": self.num_features, "num_quantiles": self.num_quantiles}


def _slack(values: Any) -> Any:
    return 1e-6 * (1.0 + abs(values))


def powers(x: tf.Tensor) -> tf.Tensor:
    """x, x² and √x beside each other, `[..., F]` → `[..., 3F]` (Covington et al. 2016, §4.2); x ≥ 0."""
    return tf.concat([x, tf.square(x), tf.sqrt(tf.maximum(x, 0.0))], axis=-1)


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
