"""The ranker: logistic regression on top of a small network, positives weighted by watch time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import register
from shortlist.models._checks import require, require_integer, require_number
from shortlist.models._layers import QuantileNormalization, powers

CUT = 5.0
"""Standard deviations at which a standardized feature is cut."""


@register("weighted_logistic")
class WeightedLogistic(tf.keras.Model):
    """Weighted logistic regression: the odds of a candidate are its expected watch time.

    z = network([x̃, x̃², √x̃, x′]), x̃ the quantile-normalized features, x′ the standardized ones; training minimizes
    −Σ_pos T log σ(z) − Σ_neg log(1 − σ(z)), T the watch time of a positive; serving ranks by the odds exp(z), which are
    E[T] / (1 − P), close to the expected watch time E[T] where the share of positives P is small.

    Source: Covington, Adams and Sargin 2016, §4.2 (the weights and the odds, normalization and powers). Unlike there,
    x′ = (x − mean) / deviation, cut at ±5, enters too: quantiles flatten the extremes, and among candidates that a
    retriever has chosen it is the extremes that matter (the first ranks, the most similar items).

    Args:
      num_features: F.
      hidden_units: widths of the ReLU layers; empty for a linear model.
      dropout: share of hidden units left out in training, in [0, 1).
      l2: weight of the squared kernels in the loss, at least 0.
      num_quantiles: kept a feature by the normalization, at least 2.

    Call: features float32 `[..., F]` → logits float32 `[...]`.

    Raises:
      ShortlistError: for an argument out of range.

    Example:
      >>> model = WeightedLogistic(num_features=2, hidden_units=(4,))
      >>> model.adapt(np.random.default_rng(0).normal(size=(100, 2)))
      >>> model.odds(tf.zeros([1, 5, 2])).shape
      TensorShape([1, 5])
    """

    def __init__(
        self,
        num_features: int,
        hidden_units: Sequence[int] = (128,),
        dropout: float = 0.0,
        l2: float = 0.0,
        num_quantiles: int = 101,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        require_integer("num_features", num_features, 1)
        require_integer("num_quantiles", num_quantiles, 2)
        require_number("l2", l2)
        require(0 <= dropout < 1, "`dropout` must be in [0, 1).", dropout=dropout)
        for units in hidden_units:
            require_integer("hidden_units", units, 1)
        self.num_features, self.hidden_units = num_features, tuple(hidden_units)
        self.dropout, self.l2, self.num_quantiles = dropout, l2, num_quantiles
        self.normalization = QuantileNormalization(num_features, num_quantiles)
        self.center = self.add_weight("center", (num_features,), initializer="zeros", trainable=False)
        self.scale = self.add_weight("scale", (num_features,), initializer="ones", trainable=False)
        regularizer = tf.keras.regularizers.L2(l2) if l2 else None
        self.hidden = [tf.keras.layers.Dense(u, "relu", kernel_regularizer=regularizer) for u in self.hidden_units]
        self.drop = tf.keras.layers.Dropout(dropout)
        self.logit = tf.keras.layers.Dense(1, kernel_regularizer=regularizer)
        width = 4 * num_features
        for layer in (*self.hidden, self.logit):
            layer.build((None, width))
            width = layer.units
        self.mean_loss = tf.keras.metrics.Mean("loss")  # for the logs of `fit`, which know only losses of `compile`
        self.built = True

    def adapt(self, features: np.ndarray) -> None:
        """Fits the normalization to training features, float `[N, F]`.

        Raises:
          ShortlistError: if they are not of that shape, or none.
        """
        rule = f"`features` must be [N, {self.num_features}], N at least 1."
        require(np.ndim(features) == 2 and features.shape[1] == self.num_features, rule, shape=np.shape(features))
        require(len(features) > 0, rule, shape=np.shape(features))
        self.normalization.adapt(features)
        self.center.assign(features.mean(axis=0, dtype=np.float64))  # millions of float32 don't add up in float32
        self.scale.assign(np.maximum(features.std(axis=0, dtype=np.float64), 1e-6))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        standard = tf.clip_by_value((inputs - self.center) / self.scale, -CUT, CUT)
        x = tf.concat([powers(self.normalization(inputs)), standard], axis=-1)  # [..., 4F]
        for layer in self.hidden:
            x = self.drop(layer(x), training=training)
        return tf.squeeze(self.logit(x), axis=-1)

    def compute_loss(
        self,
        x: tf.Tensor = None,
        y: tf.Tensor = None,
        y_pred: tf.Tensor = None,
        sample_weight: tf.Tensor = None,
    ) -> tf.Tensor:
        """The weighted logistic loss, mean over the batch: y in {0, 1}, `sample_weight` the watch time or 1."""
        loss = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(y, tf.float32), y_pred)
        if sample_weight is not None:
            loss *= tf.cast(sample_weight, tf.float32)
        total = tf.reduce_mean(loss) + tf.add_n([tf.constant(0.0), *self.losses])
        self.mean_loss.update_state(total, sample_weight=tf.shape(loss)[0])
        return total

    def odds(self, features: tf.Tensor) -> tf.Tensor:
        """exp(z), float32 `[...]`: the order of serving and the estimate of the expected watch time."""
        return tf.exp(self(features, training=False))

    def get_config(self) -> dict[str, Any]:
        return {
            "num_features": self.num_features,
            "hidden_units": self.hidden_units,
            "dropout": self.dropout,
            "l2": self.l2,
            "num_quantiles": self.num_quantiles,
            "name": self.name,
        }
