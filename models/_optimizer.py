"""Adagrad for the rows of tables, alone or beside Adam for the dense parts of a network; Keras saves and loads both."""

from typing import Any

import tensorflow as tf

from shortlist.models._replicas import replicas, rows_of


def _step_rows(
    variable: tf.Variable, squares: tf.Variable, gradient: tf.IndexedSlices, rate: Any, epsilon: Any
) -> None:
    """A step of Adagrad on the rows of `gradient`, each once.

    The squares are gathered before anything is added: of a large table that fetches the rows on all threads, where a
    scatter waits for one after the other.
    """
    total = rows_of(squares, gradient.indices) + tf.square(gradient.values)
    squares.scatter_update(tf.IndexedSlices(total, gradient.indices))
    variable.scatter_add(tf.IndexedSlices(-rate * gradient.values * tf.math.rsqrt(total + epsilon), gradient.indices))


def once(gradient: Any) -> Any:
    """A sparse gradient with each of its rows once, so that replicas don't send each other a row of many examples as
    often; any other as it is."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, place = tf.unique(gradient.indices)
    return tf.IndexedSlices(tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows)), rows)


def whole(gradient: Any, variable: tf.Variable) -> Any:
    """A sparse gradient that is known to have most rows of its table as a dense one: replicas add those up, and would
    keep a copy of the other kind for each of them."""
    if not isinstance(gradient, tf.IndexedSlices) or 2 * (gradient.indices.shape[0] or 0) <= variable.shape[0]:
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])


@tf.keras.utils.register_keras_serializable("shortlist")
class TableAdagrad(tf.keras.optimizers.Adagrad):
    """The steps of Keras's Adagrad, with fewer waits for main memory where a gradient is sparse.

    Source: Duchi, Hazan and Singer 2011.

    Args: those of Adagrad.
    """

    def aggregate_gradients(self, grads_and_vars: Any) -> Any:
        if replicas() > 1:
            grads_and_vars = [(once(whole(gradient, variable)), variable) for gradient, variable in grads_and_vars]
        return super().aggregate_gradients(grads_and_vars)

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        squares = self._accumulators[self._index_dict[self._var_key(variable)]]
        _step_rows(variable, squares, gradient, tf.cast(self.learning_rate, variable.dtype), self.epsilon)


@tf.keras.utils.register_keras_serializable("shortlist")
class AdamWithTables(tf.keras.optimizers.Adam):
    """Adam, but a variable whose gradient is sparse, the table of an embedding, takes steps of Adagrad.

    Those touch only the rows of the batch, where Adam would go over the whole table.

    TFRS has `CompositeOptimizer` for it, which `model.keras` does not keep.

    Source: Kingma and Ba 2015; Duchi, Hazan and Singer 2011.

    Args:
      learning_rate: of Adam, a number or a schedule.
      table_learning_rate: of Adagrad; with a schedule it falls in the same proportion.
      **kwargs: those of Adam.
    """

    def __init__(self, learning_rate: Any = 0.001, table_learning_rate: float = 0.05, **kwargs: Any):
        super().__init__(learning_rate, **kwargs)
        self.table_learning_rate = table_learning_rate

    def aggregate_gradients(self, grads_and_vars: Any) -> Any:
        if replicas() > 1:
            grads_and_vars = [(once(gradient), variable) for gradient, variable in grads_and_vars]
        return super().aggregate_gradients(grads_and_vars)

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        rate = tf.constant(self.table_learning_rate, variable.dtype)
        if isinstance(self._learning_rate, tf.keras.optimizers.schedules.LearningRateSchedule):
            rate *= tf.cast(self.learning_rate / self._learning_rate(0), variable.dtype)
        squares = self._velocities[self._index_dict[self._var_key(variable)]]
        _step_rows(variable, squares, gradient, rate, self.epsilon)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "table_learning_rate": self.table_learning_rate}
