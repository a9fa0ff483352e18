"""What the models have in common whose weights get their shape, and their values, from `fit`."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from shortlist.models._base import Query, constructor_arguments
from shortlist.models._cells import Cells, read_cells
from shortlist.models._checks import require


class ClosedForm(tf.keras.Model):
    """A retriever that is fitted without `compile`; its weights exist once it is fitted or loaded. Abstract.

    A subclass keeps every constructor argument as an attribute of the same name and implements `make_weights` and
    `score_items`.
    """

    def make_weights(self, rows: int, columns: int) -> None:
        """Creates the weights for a table of this shape."""
        raise NotImplementedError

    def score_items(self, query: Query) -> tf.Tensor:
        raise NotImplementedError

    def build(self, input_shape: Sequence[int]) -> None:
        """Creates the weights. Keras passes a query's shapes when an unfitted model is called: that is refused."""
        if isinstance(input_shape, dict):
            self.require_fitted()
        self.table_shape = tuple(int(size) for size in input_shape)
        self.make_weights(*self.table_shape)
        self.built = True

    def require_fitted(self) -> None:
        name = type(self).__name__
        require(self.built, f"`{name}` must be fitted before it is asked; call fit first.", built=self.built)

    def call(self, inputs: Query) -> tf.Tensor:
        """Scores float32 `[B, I]`."""
        return self.score_items(inputs)

    def get_config(self) -> dict[str, Any]:
        return constructor_arguments(self)

    def get_build_config(self) -> dict[str, Any] | None:
        return {"input_shape": list(self.table_shape)} if self.built else None


class ItemToItem(ClosedForm):
    """A retriever that adds up weights from the items of the history to others. Abstract.

    A subclass has `num_items`, and int32 `nearest` `[I, N]`: the items that each item has a weight to.
    """

    def read_users(self, x: tf.SparseTensor) -> Cells:
        """The cells of `x`, `[U, I]`.

        Raises:
          ShortlistError: for a matrix with another number of columns, none at all, or no cell.
        """
        cells = read_cells(x)
        rule = f"`x` must have one column an item, {self.num_items} in all."
        require(cells.shape[1] == self.num_items, rule, shape=cells.shape)
        return cells

    def add_weights(self, query: tf.Tensor, item: tf.Tensor, weight: tf.Tensor, queries: tf.Tensor) -> tf.Tensor:
        """Sums over a history's items of their weights to each item.

        Args:
          query: int64 `[M, 1]`, whose history it is, ascending.
          item: `[M]`, an item of it.
          weight: float32 `[I, N]`, to the items of `nearest`.
          queries: int64, B.

        Returns:
          float32 `[B, I]`.
        """
        each = tf.searchsorted(query[:, 0], tf.range(queries + 1), out_type=tf.int64)  # [B + 1]
        columns, weights = tf.gather(self.nearest, item), tf.gather(weight, item)  # [M, N]
        # The one operation that adds them up where they belong, without a number for every cell of the batch.
        return tf.raw_ops.RaggedBincount(
            splits=each * weight.shape[1],
            values=tf.reshape(columns, [-1]),
            size=self.num_items,
            weights=tf.reshape(weights, [-1]),
        )
