"""EASE: one linear model from items to items, solved exactly."""

from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, Query, register
from shortlist.models._checks import require, require_integer, require_number
from shortlist.models._closed_form import ItemToItem

MOST = 20_000
BLOCK = 1024


@register("ease")
class EASE(ItemToItem):
    """Scores an item by a linear model of which items stand in the history, the same for all users, solved exactly.

    B minimizes |X − XB|² + l2·|B|² with B_jj = 0, X the users' items as ones and zeros: P = (XᵀX + l2·1)⁻¹,
    B_ij = −P_ij / P_jj (i ≠ j), in float64; s_j = Σ_{i in history} B_ij. An item that stands twice in the history
    counts once, as in X. Weights can be negative: items that speak against others.

    Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", equations 3 to 8. The paper keeps all of
    B. Here only each row's `neighbours` weights largest in size are kept, ties by the lower row.

    Measured with l2 = 150 on `validation` of the two MovieLens sets of about 100,000 ratings, NDCG@10 and Recall@100,
    and the megabytes of the weights of 9,066 items (the inverse of 20,000 takes 6.6 GB while it is made):

    | neighbours | demo | latest-small | MB |
    |---|---|---|---|
    | None | .095, .399 | .092, .382 | 329 |
    | 1000 | .093, .398 | .092, .380 | 73 |
    | 500 | .094, .396 | .092, .375 | 36 |
    | 200 | .091, .382 | .091, .362 | 15 |
    | 50 | .085, .361 | .083, .344 | 4 |

    Args:
      num_items: I, item rows, reserved ones included; to be fitted at most 20,002, for 20,000 items.
      l2: λ, above 0, in users. Over both sets 100 had the best NDCG@10 and 200 the best Recall@100; 150 lies between.
      neighbours: weights kept for every item of a history, at least 1; None keeps all.

    Call: a `Query`, of which only `history` is used; rows 0 (padding) and 1 (out of vocabulary) say nothing → scores
    float32 `[B, I]`.

    Raises:
      ShortlistError: for an argument out of range, and when asked before `fit`.

    Example:
      >>> model = EASE(num_items=4, l2=1.0)
      >>> _ = model.fit(tf.sparse.from_dense([[0, 0, 1, 1], [0, 0, 1, 1]]))
      >>> model.score_items({"history": tf.constant([[2, 0]])}).numpy().round(4)
      array([[0.    , 0.    , 0.    , 0.6667]], dtype=float32)
    """

    def __init__(self, num_items: int, l2: float = 150.0, neighbours: int | None = 1000, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_items = require_integer("num_items", num_items)
        self.l2 = require_number("l2", l2)
        require(self.l2 > 0, "`l2` must be above 0, or the inverse need not exist.", l2=l2)
        self.neighbours = None if neighbours is None else require_integer("neighbours", neighbours)

    def make_weights(self, rows: int, columns: int) -> None:
        constant = {"initializer": "zeros", "trainable": False}
        if columns < rows:
            self.nearest = self.add_weight("nearest", (rows, columns), dtype=tf.int32, **constant)  # [I, N]
        self.weight = self.add_weight("weight", (rows, columns), dtype=tf.float32, **constant)  # [I, N], or B whole

    def fit(self, x: tf.SparseTensor) -> tf.keras.callbacks.History:
        """Solves for B.

        Args:
          x: `[U, I]`; every stored cell is one positive, whatever its value, and counts once.

        Raises:
          ShortlistError: for too many items, a matrix with another number of columns, none at all, or no cell.
        """
        from shortlist.models._ease import weights  # numba, which a loaded model does not need

        rule = (
            f"`num_items` must be at most {MOST + FIRST_ID:,}, for {MOST:,} items: EASE inverts a matrix of items by "
            "items. Leave rare items out, such as by --set transform.min_count=5, or use item_knn."
        )
        require(self.num_items <= MOST + FIRST_ID, rule, num_items=self.num_items)
        b = weights(self.read_users(x), self.l2).astype(np.float32)
        if not self.built:
            self.build((self.num_items, min(self.neighbours or self.num_items, self.num_items)))
        kept = self.table_shape[1]
        if kept == self.num_items:
            self.weight.assign(b)
            return tf.keras.callbacks.History()
        blocks = (b[start : start + BLOCK] for start in range(0, len(b), BLOCK))
        nearest = np.concatenate([tf.math.top_k(np.abs(block), kept).indices.numpy() for block in blocks])  # [I, N]
        self.nearest.assign(nearest)
        self.weight.assign(np.take_along_axis(b, nearest, axis=1))
        return tf.keras.callbacks.History()

    def score_items(self, query: Query) -> tf.Tensor:
        """Sums of weights, float32 `[B, I]`."""
        self.require_fitted()
        history = query["history"]
        batch = tf.shape(history, tf.int64)[0]
        watched = tf.where(history >= FIRST_ID)  # [M, 2]
        places = tf.stack([watched[:, 0], tf.cast(tf.gather_nd(history, watched), tf.int64)], axis=1)
        times = tf.scatter_nd(places, tf.ones(tf.shape(places)[:1]), [batch, self.num_items])  # [B, I]
        once = tf.where(times > 0)  # [M, 2], a row and an item each
        if self.table_shape[1] == self.num_items:
            seen = tf.SparseTensor(once, tf.ones(tf.shape(once)[:1]), [batch, self.num_items])
            return tf.sparse.sparse_dense_matmul(seen, self.weight)
        return self.add_weights(once[:, :1], once[:, 1], self.weight, batch)
