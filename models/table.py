"""Table: an order of items that was made elsewhere, such as news or what is sponsored."""

from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, Query, register
from shortlist.models._checks import require, require_integer
from shortlist.models._closed_form import ClosedForm


@register("table")
class Table(ClosedForm):
    """Scores items as a table does: of the one who asks if they have rows of their own in it, else of everybody.

    s_i(u) = the score of the row (u, i) if there is any row of u, else that of the row of i without a user. What has no
    such row is left out, with a score of −∞.

    Args:
      num_items: I, item rows, reserved ones included.
      most: of each user, and of everybody, only so many rows are kept, those of the highest score; None keeps all.

    Call: a `Query`, of which only `user` is used → scores float32 `[B, I]`.

    Raises:
      ShortlistError: for an argument out of range, and when asked before `fit`.

    Example:
      >>> model = Table(num_items=5)
      >>> _ = model.fit([2, 3, 3], [0.5, 0.7, 9.0], [0, 0, 6])
      >>> model.score_items({"user": tf.constant([6, 7])}).numpy()
      array([[-inf, -inf, -inf,  9. , -inf],
             [-inf, -inf,  0.5,  0.7, -inf]], dtype=float32)
    """

    def __init__(self, num_items: int, most: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_items = require_integer("num_items", num_items)
        self.most = None if most is None else require_integer("most", most)

    def make_weights(self, rows: int, columns: int) -> None:
        constant = {"initializer": "zeros", "trainable": False}
        self.of_all = self.add_weight("of_all", (self.num_items,), dtype=tf.float32, **constant)
        self.splits = self.add_weight("splits", (rows + 1,), dtype=tf.int64, **constant)
        self.item = self.add_weight("item", (columns,), dtype=tf.int32, **constant)
        self.score = self.add_weight("score", (columns,), dtype=tf.float32, **constant)

    def fit(self, x: Any, y: Any, users: Any = None) -> tf.keras.callbacks.History:
        """Takes the rows over; of two of the same user and item the higher score counts.

        Args:
          x: int `[N]`, item rows.
          y: float `[N]`, their scores.
          users: int `[N]`, whose row it is, 0 for everybody; None makes all rows everybody's.

        Raises:
          ShortlistError: for rows that don't fit, items outside the table, and scores that are not finite.
        """
        items, scores = np.asarray(x), np.asarray(y, np.float32)
        users = np.zeros(items.shape, np.int32) if users is None else np.asarray(users)
        rule = "`x`, `y` and `users` must have one entry a row, at least one."
        shapes = {"x": items.shape, "y": scores.shape, "users": users.shape}
        require(items.ndim == 1 and items.size > 0 and len(set(shapes.values())) == 1, rule, **shapes)
        low, high = int(items.min()), int(items.max())
        rule = f"`x` must be item rows from {FIRST_ID} to {self.num_items - 1}."
        require(low >= FIRST_ID and high < self.num_items, rule, lowest=low, highest=high)
        require(bool(np.isfinite(scores).all()), "`y` must be finite.", y="NaN or infinity")
        require(int(users.min()) >= 0, "`users` must be user rows, or 0.", lowest=int(users.min()))
        order = np.lexsort((-scores, items, users))
        users, items, scores = users[order], items[order], scores[order]
        new = np.concatenate([[True], (users[1:] != users[:-1]) | (items[1:] != items[:-1])])
        users, items, scores = users[new], items[new], scores[new]
        order = np.lexsort((items, -scores, users))
        users, items, scores = users[order], items[order], scores[order]
        if self.most is not None:
            kept = np.arange(len(users)) - np.searchsorted(users, users) < self.most
            users, items, scores = users[kept], items[kept], scores[kept]
        general = int((users == 0).sum())
        if not self.built:
            self.build((int(users.max()) + 1, len(users) - general))
        of_all = np.full(self.num_items, -np.inf, np.float32)
        of_all[items[:general]] = scores[:general]
        self.of_all.assign(of_all)
        self.splits.assign(np.searchsorted(users[general:], np.arange(self.table_shape[0] + 1)))
        self.item.assign(items[general:])
        self.score.assign(scores[general:])
        return tf.keras.callbacks.History()

    def score_items(self, query: Query) -> tf.Tensor:
        """Float32 `[B, I]`, −∞ for what has no row."""
        self.require_fitted()
        user = query["user"]
        known = (user >= FIRST_ID) & (user < self.table_shape[0])
        user = tf.where(known, user, 0)
        mine = tf.ragged.range(tf.gather(self.splits, user), tf.gather(self.splits, user + 1))  # [B, (R)]
        cells = tf.stack([mine.value_rowids(), tf.cast(tf.gather(self.item, mine.values), tf.int64)], axis=1)
        own = tf.fill([tf.shape(user)[0], self.num_items], -np.inf)
        own = tf.tensor_scatter_nd_update(own, cells, tf.gather(self.score, mine.values))
        return tf.where((mine.row_lengths() > 0)[:, tf.newaxis], own, self.of_all)
