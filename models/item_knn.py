"""Item-based nearest neighbours: items that the same people watched."""

from typing import Any

import tensorflow as tf

from shortlist.models._base import FIRST_ID, Query, register
from shortlist.models._checks import require_integer, require_number
from shortlist.models._closed_form import ItemToItem


@register("item_knn")
class ItemKNN(ItemToItem):
    """Scores an item by its similarity to the items of the history, in which only near neighbours count.

    sim(i, j) = n_ij / (√(n_i n_j) + shrink), with n_i the users of i and n_ij those of both; N(i) = the `neighbours`
    items most similar to i, ties by the lower row; s_j = Σ_{i in history} sim(i, j) [j ∈ N(i)]. An item that stands
    twice in the history counts twice.

    Source: Deshpande and Karypis 2004, §4 (cosine between binary columns, the k most similar items of each basket
    item); the shrinkage, which they don't have, distrusts pairs that few users share.

    Args:
      num_items: I, item rows, reserved ones included.
      neighbours: kept for every item, at least 1.
      shrink: at least 0, in users.

    Call: a `Query`, of which only `history` is used; rows 0 (padding) and 1 (out of vocabulary) say nothing → scores
    float32 `[B, I]`.

    Raises:
      ShortlistError: for an argument out of range, and when asked before `fit`.

    Example:
      >>> model = ItemKNN(num_items=4, neighbours=2, shrink=0.0)
      >>> _ = model.fit(tf.sparse.from_dense([[0, 0, 1, 1], [0, 0, 1, 1]]))
      >>> model.score_items({"history": tf.constant([[2, 0]])}).numpy()
      array([[0., 0., 0., 1.]], dtype=float32)
    """

    def __init__(self, num_items: int, neighbours: int = 25, shrink: float = 13.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_items = require_integer("num_items", num_items)
        self.neighbours = require_integer("neighbours", neighbours)
        self.shrink = require_number("shrink", shrink)

    def make_weights(self, rows: int, columns: int) -> None:
        constant = {"initializer": "zeros", "trainable": False}
        self.nearest = self.add_weight("nearest", (rows, columns), dtype=tf.int32, **constant)  # [I, N]
        self.similarity = self.add_weight("similarity", (rows, columns), dtype=tf.float32, **constant)  # [I, N]

    def fit(self, x: tf.SparseTensor) -> tf.keras.callbacks.History:
        """Finds every item's neighbours.

        Args:
          x: `[U, I]`; every stored cell is one positive, whatever its value, and counts once.

        Raises:
          ShortlistError: for a matrix with another number of columns, none at all, or no cell.
        """
        from shortlist.models._item_knn import nearest  # numba, which a loaded model does not need

        by_user = self.read_users(x)
        by_item = by_user.transposed()
        found = nearest(
            by_user.starts, by_user.columns, by_item.starts, by_item.columns, self.neighbours, self.shrink
        )  # [I, N] each
        if not self.built:
            self.build((self.num_items, self.neighbours))
        self.nearest.assign(found[0])
        self.similarity.assign(found[1])
        return tf.keras.callbacks.History()

    def score_items(self, query: Query) -> tf.Tensor:
        """Sums of similarities, float32 `[B, I]`."""
        self.require_fitted()
        history = query["history"]
        batch = tf.shape(history, tf.int64)[0]
        watched = tf.where(history >= FIRST_ID)  # [M, 2]
        return self.add_weights(watched[:, :1], tf.gather_nd(history, watched), self.similarity, batch)
