"""Folding histories in, as a graph: nothing is refused, repeated and unknown items are sorted out on the way."""

import tensorflow as tf

from shortlist.models import _als_graph
from shortlist.models._base import FIRST_ID
from shortlist.models._closed_form import ClosedForm


class FoldsIn(ClosedForm):
    """A factorization whose users are solved for from their items. Abstract.

    A subclass has `user_factors` `[U, D]`, `item_factors` `[I, D]`, `_systems`, and of the items that it was fitted to
    `item_gramian` `[D, D]` and the number `fitted_items`.
    """

    user_factors: tf.Variable
    item_factors: tf.Variable
    item_gramian: tf.Variable
    fitted_items: tf.Variable

    def _systems(
        self,
        columns: tf.Tensor,
        targets: tf.Tensor,
        weights: tf.Tensor,
        other: tf.Tensor,
        gram: tf.Tensor,
        size: tf.Tensor | None = None,
    ) -> _als_graph.Systems:
        raise NotImplementedError

    def fold_in_history(self, history: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """`fold_in` for a graph: float32 `[B, D]`; see `cells_of` for the arguments."""
        return _als_graph.cholesky(self._history_systems(history, weights))[0]

    def explain_history(self, history: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        """`explain` for a graph: float32 `[B, L]`, zeros for a reserved `item` int32 `[B]`."""
        systems = self._history_systems(history, -tf.ones_like(history, tf.float32))
        vector = tf.where(item[:, tf.newaxis] < FIRST_ID, 0.0, tf.gather(self.item_factors, item))
        return _als_graph.contributions(systems, vector)

    def user_vectors(self) -> tf.Tensor:
        """The trained factors of the users, float32 `[U, D]`."""
        return tf.convert_to_tensor(self.user_factors)

    def _history_systems(self, history: tf.Tensor, weights: tf.Tensor) -> _als_graph.Systems:
        columns, confidences = cells_of(history, weights)
        factors = tf.convert_to_tensor(self.item_factors)
        ones = tf.ones_like(confidences)
        return self._systems(columns, ones, confidences, factors, self.item_gramian, self.fitted_items)


def cells_of(history: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The cells of new rows, each once: a repeated item is one cell, at its first place.

    Args:
      history: int32 `[B, L]`, rows of items; reserved ones are no cell.
      weights: float32 `[B, L]`, what each adds to its cell's confidence, negative where that is not said.

    Returns:
      `columns` int32 `[B, L]`, −1 where there is no cell, and `confidences` float32 `[B, L]`: the sum of what is said,
      1 where nothing is.
    """
    shape, size = tf.shape(history), tf.size(history)
    request = tf.range(shape[0], dtype=tf.int64)[:, tf.newaxis]
    key = request * tf.int32.max + tf.cast(history, tf.int64)  # [B, L]
    cell = tf.unique(tf.reshape(key, [-1])).idx  # [B * L]
    said = tf.reshape(weights, [-1]) >= 0
    total = tf.math.unsorted_segment_sum(tf.where(said, tf.reshape(weights, [-1]), 0.0), cell, size)
    any_said = tf.math.unsorted_segment_max(tf.cast(said, tf.int32), cell, size) > 0
    place = tf.range(size)
    first = tf.gather(tf.math.unsorted_segment_min(place, cell, size), cell) == place
    columns = tf.where(tf.reshape(first, shape) & (history >= FIRST_ID), history, -1)
    return columns, tf.reshape(tf.gather(tf.where(any_said, total, 1.0), cell), shape)
