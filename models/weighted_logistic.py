"""The ranker: logistic regression on top of a small network, positives weighted by watch time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from shortlist.models._base import FIRST_ID, constructor_arguments, register
from shortlist.models._checks import require, require_integer, require_number
from shortlist.models._layers import QuantileNormalization, beside, features_first, features_last, last_n, powers
from shortlist.models._replicas import replicas, rows_of, total

CUT = 5.0
"""Standard deviations at which a standardized feature is cut."""
LADDER: dict[str, tuple[int, ...]] = {
    name: tuple(map(int, name.split("-"))) if name != "0" else ()
    for name in ("0", "256", "512", "1024", "512-256", "1024-512", "1024-512-256")
}
"""Hidden layers of the paper's table 1, by name."""

Inputs = Mapping[str, tf.Tensor]
"""`features` float32 `[..., F]`; with item embeddings also `item` int32 `[...]` and `history` int32 `[..., L]`, whose
leading axes may be 1, the last items watched, oldest first, padded with 0 on the right."""


def best_constant(z: np.ndarray, in_favour: np.ndarray, against: np.ndarray) -> float:
    """The b that minimizes Σ in_favour · softplus(−z − b) + against · softplus(z + b), all `[N]`: Newton's method."""
    b, total = 0.0, in_favour + against
    for _ in range(50):
        share = 1 / (1 + np.exp(-np.clip(z + b, -60, 60)))
        slope, curvature = (total * share).sum() - in_favour.sum(), (total * share * (1 - share)).sum()
        step = np.clip(slope / max(curvature, 1e-12), -1, 1)
        b -= step
        if abs(step) < 1e-9:
            break
    return float(b)


@register("weighted_logistic")
class WeightedLogistic(tf.keras.Model):
    """Weighted logistic regression: the odds of a candidate are its expected watch time.

    z = network([x̃, x̃², √x̃, x′, e(item), e(watched_1) … e(watched_L), mean e(watched)]), x̃ the quantile-normalized
    features, x′ the standardized ones, e one table for the impression and what was watched; training minimizes
    −Σ_pos T log σ(z) − Σ_neg log(1 − σ(z)), T the watch time of a positive; serving ranks by the odds exp(z), which are
    E[T] / (1 − P), close to the expected watch time E[T] where the share of positives P is small. With `exact` every
    positive is a negative of weight 1 as well, and the odds are E[T]. A second head on the same network is trained
    without weights, and its σ is P(watch).

    Source: Covington, Adams and Sargin 2016, §4.1 and §4.2 (the embeddings, the weights and the odds, normalization and
    powers); cross layers: Wang et al. 2021 (DCN-v2). Unlike there, x′ = (x − mean) / deviation, cut at ±5, enters too:
    quantiles flatten the extremes, and among candidates that a retriever has chosen it is the extremes that matter
    (the first ranks, the most similar items). `exact` and the second head are ours.

    Args:
      num_features: F; 0 for a constant.
      hidden_units: widths of the ReLU layers; empty for a linear model. `LADDER` has those of the paper.
      dropout: share of hidden units left out in training, in [0, 1).
      l2: weight of the squared kernels in the loss, and of the squared embeddings of a batch, at least 0.
      num_quantiles: kept a feature by the normalization, at least 2.
      cross_layers: DCN-v2 layers before the hidden ones.
      embedding_dim: D of the table of items; 0 for none.
      num_items: I, rows of the table; rows 0 and 1 are reserved, and their vectors are 0.
      history_length: L, the last items watched that enter.
      use_powers: whether x̃² and √x̃ enter.
      ignored: features that do not enter, by their place.
      exact: see above.

    Call: `Inputs` → `{"logit", "watch_logit"}` float32 `[...]`.

    Raises:
      ShortlistError: for an argument out of range.

    Example:
      >>> model = WeightedLogistic(num_features=2, hidden_units=(4,))
      >>> model.adapt(np.random.default_rng(0).normal(size=(100, 2)))
      >>> model.odds({"features": tf.zeros([1, 5, 2])}).shape
      TensorShape([1, 5])
    """

    def __init__(
        self,
        num_features: int,
        hidden_units: Sequence[int] = (128,),
        dropout: float = 0.0,
        l2: float = 0.0,
        num_quantiles: int = 101,
        cross_layers: int = 0,
        embedding_dim: int = 0,
        num_items: int = 0,
        history_length: int = 10,
        use_powers: bool = True,
        ignored: Sequence[int] = (),
        exact: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, value, least in (
            ("num_features", num_features, 0),
            ("num_quantiles", num_quantiles, 2),
            ("cross_layers", cross_layers, 0),
            ("embedding_dim", embedding_dim, 0),
            ("num_items", num_items, FIRST_ID if embedding_dim else 0),
            ("history_length", history_length, 1),
        ):
            require_integer(name, value, least)
        require_number("l2", l2)
        require(0 <= dropout < 1, "`dropout` must be in [0, 1).", dropout=dropout)
        for units in hidden_units:
            require_integer("hidden_units", units, 1)
        for place in ignored:
            rule = f"`ignored` must be places of the {num_features} features."
            require(isinstance(place, int) and 0 <= place < num_features, rule, ignored=tuple(ignored))
        self.num_features, self.hidden_units = num_features, tuple(hidden_units)
        self.dropout, self.l2, self.num_quantiles = dropout, l2, num_quantiles
        self.cross_layers, self.embedding_dim, self.num_items = cross_layers, embedding_dim, num_items
        self.history_length, self.use_powers = history_length, use_powers
        self.ignored, self.exact = tuple(ignored), exact
        self.normalization = QuantileNormalization(num_features, num_quantiles)
        self.center = self.add_weight("center", (num_features,), initializer="zeros", trainable=False)
        self.scale = self.add_weight("scale", (num_features,), initializer="ones", trainable=False)
        self.offset = self.add_weight("offset", (2,), initializer="zeros", trainable=False)
        if embedding_dim:
            initial = tf.keras.initializers.RandomNormal(stddev=0.1)
            self.table = self.add_weight("items", (num_items, embedding_dim), initializer=initial)
        regularizer = tf.keras.regularizers.L2(l2) if l2 else None
        self.cross = [tfrs.layers.dcn.Cross(kernel_regularizer=regularizer) for _ in range(cross_layers)]
        self.hidden = [tf.keras.layers.Dense(u, "relu", kernel_regularizer=regularizer) for u in self.hidden_units]
        self.drop = tf.keras.layers.Dropout(dropout)
        self.logit = tf.keras.layers.Dense(1, kernel_regularizer=regularizer, name="logit")
        self.watch_logit = tf.keras.layers.Dense(1, kernel_regularizer=regularizer, name="watch_logit")
        used = num_features - len(set(self.ignored))
        width = (4 if use_powers else 2) * used + embedding_dim * (history_length + 2) or 1
        for layer in self.cross:
            layer(tf.zeros([1, width]))  # its `build` leaves the kernel to the first call
        for layer in self.hidden:
            layer.build((None, width))
            width = layer.units
        for head in (self.logit, self.watch_logit):
            head.build((None, width))
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

    def start_from_base_rate(self, label: np.ndarray, weight: np.ndarray) -> None:
        """Sets the heads' constants to the best ones without features: log(Σ T / negatives) and log-odds of a watch.

        Args:
          label: in {0, 1} `[N]`, with at least one of each.
          weight: T of a positive, 1 of a negative, `[N]`.
        """
        positive = np.asarray(label) > 0
        time, negatives = float(np.sum(weight[positive], dtype=np.float64)), float((~positive).sum())
        of_head = {self.logit: time / (len(positive) if self.exact else negatives)}
        of_head[self.watch_logit] = positive.sum() / negatives
        for head, odds in of_head.items():
            head.bias.assign(tf.fill([1], float(np.log(odds))))

    def calibrate(self, inputs: Inputs, label: np.ndarray, weight: np.ndarray, batch_size: int = 8192) -> None:
        """Fits the two constants once more, to what the trained network says without dropout.

        Dropout makes logits noisy in training, and the odds of their mean are not the mean of their odds. At the
        minimum of the loss over a constant, Σ_pos T (1 − σ) = Σ_neg σ. What training goes on with stays as it was.

        Args:
          inputs: `Inputs` of N training examples.
          label: in {0, 1} `[N]`, with at least one of each.
          weight: T of a positive, 1 of a negative, `[N]`.
          batch_size: examples at a time.
        """
        self.offset.assign(tf.zeros(2))
        z = self.predict(inputs, batch_size=batch_size, verbose=0)
        label = np.asarray(label, np.float64)
        against = np.ones_like(label) if self.exact else 1 - label
        time = best_constant(z["logit"].astype(np.float64), label * weight, against)
        self.offset.assign([time, best_constant(z["watch_logit"].astype(np.float64), label, 1 - label)])

    def call(self, inputs: Inputs, training: bool = False) -> dict[str, tf.Tensor]:
        parts = self._numbers(inputs["features"])
        if self.embedding_dim:
            parts += self._embedded(inputs["item"], inputs["history"])
        parts = tf.concat(parts, axis=-1)
        first = x = tf.reshape(parts, [-1, parts.shape[-1]])  # TensorFlow fuses the layers of matrices alone
        for layer in self.cross:
            x = layer(first, x)
        for layer in self.hidden:
            x = self.drop(layer(x), training=training)
        offset = tf.zeros(2) if training else tf.convert_to_tensor(self.offset)
        heads = {"logit": self.logit(x) + offset[0], "watch_logit": self.watch_logit(x) + offset[1]}
        return {name: tf.reshape(z, tf.shape(parts)[:-1]) for name, z in heads.items()}

    def _numbers(self, features: tf.Tensor) -> list[tf.Tensor]:
        """x̃ with its powers, and x′."""
        used = [place for place in range(self.num_features) if place not in self.ignored]
        if not used and self.embedding_dim:
            return []
        if not used:  # a column of 0, since TensorFlow's graphs lose the constant added to a product over no columns
            return [tf.zeros_like(tf.reduce_sum(features, axis=-1, keepdims=True))]
        values = features_first(features)
        scale = beside(tf.math.reciprocal(self.scale), values)
        standard = features_last(tf.clip_by_value((values - beside(self.center, values)) * scale, -CUT, CUT))
        normal = self.normalization(features)
        if self.ignored:
            normal, standard = (tf.gather(x, used, axis=-1) for x in (normal, standard))
        return [powers(normal, standard) if self.use_powers else tf.concat([normal, standard], axis=-1)]

    def _embedded(self, item: tf.Tensor, history: tf.Tensor) -> list[tf.Tensor]:
        """The impression, the last items watched one by one, and their mean, `[..., D]`, `[..., L·D]`, `[..., D]`."""
        own, past = self._vectors(item), self._vectors(history)  # [..., D], [..., L, D]
        count = tf.reduce_sum(tf.cast(history >= FIRST_ID, tf.float32), axis=-1, keepdims=True)
        mean = tf.math.divide_no_nan(tf.reduce_sum(past, axis=-2), count)
        shape = tf.shape(past)
        flat = tf.reshape(past, tf.concat([shape[:-2], [self.history_length * self.embedding_dim]], axis=0))
        return [own, *(tf.broadcast_to(x, [*tf.unstack(tf.shape(own))[:-1], x.shape[-1]]) for x in (flat, mean))]

    def _vectors(self, rows: tf.Tensor) -> tf.Tensor:
        known = tf.cast(rows >= FIRST_ID, tf.float32)[..., tf.newaxis]
        return rows_of(self.table, rows) * known

    def compute_loss(
        self,
        x: Any = None,
        y: tf.Tensor = None,
        y_pred: Any = None,
        sample_weight: tf.Tensor = None,
    ) -> tf.Tensor:
        """The weighted logistic loss plus that of P(watch), mean over the batch; of a replica, what it adds to that.

        Args:
          x: `Inputs` of the batch.
          y: in {0, 1}.
          y_pred: what the call returned.
          sample_weight: T of a positive, 1 of a negative; None for 1.
        """
        label = tf.cast(y, tf.float32)
        weight = tf.ones_like(label) if sample_weight is None else tf.cast(sample_weight, tf.float32)
        z = y_pred["logit"]
        against = tf.ones_like(label) if self.exact else (1.0 - label) * weight
        loss = label * weight * tf.nn.softplus(-z) + against * tf.nn.softplus(z)
        watched = tf.nn.sigmoid_cross_entropy_with_logits(label, y_pred["watch_logit"])
        summed = tf.reduce_sum(loss + watched)
        if self.embedding_dim and self.l2:
            summed += self.l2 * tf.reduce_sum(tf.square(self._vectors(x["item"])))
        examples = total(tf.size(loss))
        mean = summed / examples + tf.add_n([tf.constant(0.0), *self.losses]) / replicas()
        self.mean_loss.update_state(mean * replicas(), sample_weight=examples / replicas())
        return mean

    def odds(self, inputs: Inputs) -> tf.Tensor:
        """exp(z), float32 `[...]`: the order of serving and the estimate of the expected watch time."""
        return tf.exp(self(inputs, training=False)["logit"])

    def score(self, features: tf.Tensor, items: tf.Tensor, history: tf.Tensor) -> dict[str, tf.Tensor]:
        """What is served of every candidate of a request: odds, probability of a watch, expected watch time.

        Args:
          features: float32 `[B, K, F]`.
          items: int32 `[B, K]`.
          history: int32 `[B, M]`, oldest first, padded with 0 on the right.

        Returns:
          `{"odds", "watch", "expected"}` float32 `[B, K]`: exp(z), P(watch), and E[T] = odds · (1 − P), the odds
          themselves with `exact`.
        """
        last = last_n(history, self.history_length)[0][:, tf.newaxis]  # [B, 1, L]
        logits = self({"features": features, "item": items, "history": last}, training=False)
        odds, watch = tf.exp(logits["logit"]), tf.sigmoid(logits["watch_logit"])
        not_watched = tf.sigmoid(-logits["watch_logit"])  # 1 − P has no digits left where P is close to 1
        return {"odds": odds, "watch": watch, "expected": odds if self.exact else odds * not_watched}

    def get_config(self) -> dict[str, Any]:
        return constructor_arguments(self)
