"""Post-filtering: a shortlist made without context, weighted by or cut to what fits the context."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import Query
from shortlist.models._checks import require, require_integer, require_number
from shortlist.models._conditions import checked_contexts, condition_columns

MODES = ("weight", "filter")


@tf.keras.utils.register_keras_serializable("shortlist")
class PostFilter(tf.keras.layers.Layer):
    """Reorders or cuts a shortlist by how often the user watched such items in such a context.

    Of all positives in a context c, P(a | c) is the share with the attribute a (a genre), and P(a | u, c) that of the
    user's own, each drawn to what is known of more people: P(a | c) = (n_ca + m P(a)) / (n_c + m) and P(a | u, c) =
    (n_uca + m P(a | c)) / (n_uc + m), m the smoothing. With several known dimensions P is the geometric mean of theirs.
    An item's fit is the mean of P over its attributes; of an item without any, the mean over all attributes by how
    frequent they are. `weight` multiplies the score by the fit, less the lowest score of the shortlist where that is
    negative; `filter` drops items of a fit below the threshold. Without a known condition nothing changes.

    Source: Panniello et al. 2009, "Experimental comparison of pre- vs. post-filtering approaches in context-aware
    recommender systems", §3 (weight and filter); there P is of items, from neighbours.

    Args:
      num_users, num_items, num_attributes: U, I and A, the reserved rows of U and I included.
      contexts: by dimension, the number of its conditions.
      mode: "weight" or "filter".
      smoothing: m > 0, in positives.
      threshold: for "filter", in [0, 1].

    Call: `query`, a `Query` with `context_<dimension>`; `items` int32 `[B, K]`, 0 for none; `scores` float32 `[B, K]`
    → items and scores again, best first; what is dropped is item 0 with −∞, at the end.

    Raises:
      ShortlistError: for an argument out of range, and when called before `adapt`.

    Example:
      >>> layer = PostFilter(num_users=1, num_items=4, num_attributes=2, contexts={"day": 1}, smoothing=1.0)
      >>> watched = {"user": np.array([0, 0]), "item": np.array([3, 3]), "context_day": np.array([1, 1])}
      >>> layer.adapt(watched, attributes=np.array([[0, 0], [0, 0], [1, 0], [0, 1]]))
      >>> query = {"user": tf.constant([0]), "context_day": tf.constant([1])}
      >>> items, _ = layer(query, tf.constant([[2, 3]]), tf.constant([[0.9, 0.8]]))
      >>> items.numpy().tolist()
      [[3, 2]]
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        num_attributes: int,
        contexts: Mapping[str, int],
        mode: str = "weight",
        smoothing: float = 10.0,
        threshold: float = 0.1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_users = require_integer("num_users", num_users)
        self.num_items = require_integer("num_items", num_items)
        self.num_attributes = require_integer("num_attributes", num_attributes)
        self.contexts = checked_contexts(contexts)
        require(mode in MODES, f"`mode` must be one of {', '.join(MODES)}.", mode=mode)
        require(require_number("smoothing", smoothing) > 0, "`smoothing` must be above 0.", smoothing=smoothing)
        require(require_number("threshold", threshold) <= 1, "`threshold` must be in [0, 1].", threshold=threshold)
        self.mode, self.smoothing, self.threshold = mode, smoothing, threshold
        self.columns = 1 + sum(self.contexts.values())
        self.num_pairs = 0

    def _make(self, pairs: int) -> None:
        def weight(name: str, shape: tuple[int, ...], kind: Any = tf.float32) -> tf.Variable:
            return self.add_weight(name, shape, dtype=kind, initializer="zeros", trainable=False)

        self.num_pairs, own = pairs, max(pairs, 1)  # no variable of no rows: searchsorted needs one
        self.pair = weight("pair", (own,), tf.int64)
        self.count, self.total = weight("count", (own, self.num_attributes)), weight("total", (own,))
        self.everybody = weight("everybody", (self.columns, self.num_attributes))
        self.attributes = weight("attributes", (self.num_items, self.num_attributes))

    def adapt(self, inputs: Mapping[str, np.ndarray], attributes: np.ndarray) -> None:
        """Counts what was watched when.

        Args:
          inputs: of all positives, `user`, `item` and `context_<dimension>`, int `[N]` each.
          attributes: `[I, A]`, 1 where the item has the attribute, else 0.

        Raises:
          ShortlistError: without a positive, or for attributes of another shape.
        """
        attributes = np.asarray(attributes, np.float64)
        rule = f"`attributes` must be [{self.num_items}, {self.num_attributes}]."
        require(attributes.shape == (self.num_items, self.num_attributes), rule, shape=attributes.shape)
        user, item = np.asarray(inputs["user"]), np.asarray(inputs["item"])
        require(len(user) > 0, "`inputs` must hold at least one positive.", positives=len(user))
        query = {name: tf.constant(values, tf.int32) for name, values in inputs.items()}
        column = condition_columns(query, self.contexts).numpy()  # [N, C]
        has = attributes[item]  # [N, A]
        overall, m = has.mean(axis=0), self.smoothing
        everybody = np.tile(overall, (self.columns, 1))
        row, dimension = np.nonzero(column)
        cell = column[row, dimension]
        n = np.bincount(cell, minlength=self.columns)[:, np.newaxis]
        everybody = (_sums(cell, has[row], self.columns) + m * everybody) / (n + m)
        everybody[0] = overall
        pair, place = np.unique(user[row].astype(np.int64) * self.columns + cell, return_inverse=True)
        if not hasattr(self, "pair") or self.num_pairs != len(pair):
            self._make(len(pair))
        self.everybody.assign(everybody)
        self.attributes.assign(attributes)
        if len(pair):
            self.pair.assign(pair)
            self.count.assign(_sums(place, has[row], len(pair)))
            self.total.assign(np.bincount(place, minlength=len(pair)))
        self.built = True

    def shares(self, query: Query) -> tf.Tensor:
        """P(a | u, c), float32 `[B, A]`; ones where no condition is known."""
        require(hasattr(self, "pair"), "`PostFilter` must be adapted before it is called.", adapted=False)
        column = condition_columns(query, self.contexts)  # [B, C]
        key = tf.cast(query["user"], tf.int64)[:, tf.newaxis] * self.columns + column
        place = tf.minimum(tf.searchsorted(self.pair, tf.reshape(key, [-1])), tf.shape(self.pair)[0] - 1)
        place = tf.reshape(place, tf.shape(key))
        known = tf.cast(column > 0, tf.float32)
        own = tf.cast(tf.gather(self.pair, place) == key, tf.float32) * known
        count = tf.gather(self.count, place) * own[..., tf.newaxis]  # [B, C, A]
        total = (tf.gather(self.total, place) * own)[..., tf.newaxis]
        share = (count + self.smoothing * tf.gather(self.everybody, column)) / (total + self.smoothing)
        logs = tf.reduce_sum(tf.math.log(tf.maximum(share, 1e-12)) * known[..., tf.newaxis], axis=1)
        return tf.exp(tf.math.divide_no_nan(logs, tf.reduce_sum(known, axis=1, keepdims=True)))

    def fit(self, query: Query, items: tf.Tensor) -> tf.Tensor:
        """How well items int32 `[B, K]` fit the query's context, float32 `[B, K]`."""
        share = self.shares(query)
        has = tf.gather(self.attributes, items)  # [B, K, A]
        number = tf.reduce_sum(has, axis=2)
        frequency = tf.math.divide_no_nan(self.everybody[0], tf.reduce_sum(self.everybody[0]))
        usual = tf.linalg.matvec(share, frequency)[:, tf.newaxis]  # [B, 1]
        return tf.where(number > 0, tf.math.divide_no_nan(tf.linalg.matvec(has, share), number), usual)

    def call(self, query: Query, items: tf.Tensor, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        fit = self.fit(query, items)
        there = items > 0
        if self.mode == "weight":
            known = tf.reduce_any(condition_columns(query, self.contexts) > 0, axis=1, keepdims=True)
            low = tf.reduce_min(tf.where(there, scores, 0.0), axis=1, keepdims=True)
            scores = tf.where(known, (scores - tf.minimum(low, 0.0)) * fit, scores)
        else:
            there &= fit >= self.threshold
        scores = tf.where(there, scores, -np.inf)
        order = tf.argsort(scores, axis=1, direction="DESCENDING", stable=True)
        return tuple(tf.gather(x, order, batch_dims=1) for x in (tf.where(there, items, 0), scores))

    def get_config(self) -> dict[str, Any]:
        names = ("num_users", "num_items", "num_attributes", "mode", "smoothing", "threshold")
        return {**super().get_config(), **{n: getattr(self, n) for n in names}, "contexts": dict(self.contexts)}

    def get_build_config(self) -> dict[str, Any] | None:
        return {"num_pairs": self.num_pairs} if self.built else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        self._make(config["num_pairs"])
        self.built = True


def _sums(cell: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """The sums of the rows `[N, A]` of each cell, `[size, A]`."""
    return np.stack([np.bincount(cell, column, size) for column in values.T], axis=1)
