"""What a split by context means to a served graph: which half of an item or user a request is about."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import Query
from shortlist.models._checks import require, require_integer
from shortlist.models._conditions import checked_contexts


@tf.keras.utils.register_keras_serializable("shortlist")
class SplitRows(tf.keras.layers.Layer):
    """The rows of a table of items, or users, of which some are halves that belong to a context.

    Args:
      num_rows: R.
      contexts: by dimension, the number of its conditions.

    Call: a `Query` → whether each row is of its context, bool `[B, R]`; rows that are no half always are. An unknown
    condition belongs to the other half.

    Raises:
      ShortlistError: for an argument out of range, and from `set_halves` for arrays that don't fit.

    Example:
      >>> layer = SplitRows(num_rows=4, contexts={"place": 2})
      >>> layer.set_halves(required=np.array([[0], [0], [2], [2]]), inverse=[0, 0, 0, 1], sibling=[0, 1, 3, 2])
      >>> layer({"user": tf.constant([0, 0]), "context_place": tf.constant([2, 0])}).numpy().astype(int)
      array([[1, 1, 1, 0],
             [1, 1, 0, 1]])
    """

    def __init__(self, num_rows: int, contexts: Mapping[str, int], **kwargs: Any):
        super().__init__(**kwargs)
        self.num_rows, self.contexts = require_integer("num_rows", num_rows), checked_contexts(contexts)
        constant = {"dtype": tf.int32, "initializer": "zeros", "trainable": False}
        self.required = self.add_weight("required", (num_rows, len(self.contexts)), **constant)
        self.inverse = self.add_weight("inverse", (num_rows,), **constant)
        self.sibling = self.add_weight("sibling", (num_rows,), **constant)
        self.sibling.assign(np.arange(num_rows))

    def set_halves(self, required: np.ndarray, inverse: np.ndarray, sibling: np.ndarray) -> None:
        """Says which rows are halves.

        Args:
          required: int `[R, C]`, a condition of each dimension, 0 for any; all must hold.
          inverse: bool `[R]`, true for the other half, that of a context for which they don't.
          sibling: int `[R]`, the row of the other half, or the row itself.
        """
        for name, values in (("required", required), ("inverse", inverse), ("sibling", sibling)):
            values, weight = np.asarray(values), getattr(self, name)
            require(
                values.shape == weight.shape, f"`{name}` must be of shape {tuple(weight.shape)}.", shape=values.shape
            )
            weight.assign(values)

    def call(self, query: Query) -> tf.Tensor:
        return self._holds(query, self.required[tf.newaxis]) != tf.cast(self.inverse, tf.bool)

    def _holds(self, query: Query, required: tf.Tensor) -> tf.Tensor:
        """Whether required conditions hold, bool `[B, M]`, of `[B or 1, M, C]`."""
        holds = tf.ones_like(required[..., 0], tf.bool)
        for j, (name, size) in enumerate(self.contexts.items()):
            given = tf.cast(query.get(f"context_{name}", tf.zeros_like(query["user"])), tf.int32)[:, tf.newaxis]
            needed = required[..., j]
            holds &= (needed == 0) | ((needed == given) & (given <= size))
        return holds

    def choose(self, rows: tf.Tensor, query: Query) -> tf.Tensor:
        """Of each row int32 `[B]`, either half of it, the one that is of the query's context."""
        holds = self._holds(query, tf.gather(self.required, rows)[:, tf.newaxis])[:, 0]
        right = holds != tf.cast(tf.gather(self.inverse, rows), tf.bool)
        return tf.where(right, rows, tf.gather(self.sibling, rows))

    def with_siblings(self, rows: tf.Tensor) -> tf.Tensor:
        """Rows int32 `[B, E]` and their other halves, `[B, 2E]`: what was seen as one half is seen as both."""
        known = tf.clip_by_value(rows, 0, self.num_rows - 1)
        return tf.concat([rows, tf.where(rows == known, tf.gather(self.sibling, known), rows)], axis=1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_rows": self.num_rows, "contexts": dict(self.contexts)}
