"""What a bundle with WALS among its sources answers besides, from the factors alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID
from shortlist.models._requests import ABSENT, HISTORY, ITEM, USER, WEIGHT, K, best_rows, counts, same_batch, signature
from shortlist.models._transform import IdLookup, IdNames


class WALSSignatures(tf.Module):
    """Folds histories in, explains a score by what was watched, and finds users who are alike, for string ids.

    Args:
      factors: a loaded WALS, see the `Model` artifact.
      item_rows, user_rows: from ids to the rows of its tables.
      item_ids: string `[I]`, "" for the reserved rows.
      user_file: the vocabulary of the users, one id a line.
      default_k: the k of a request that gives none.
      opened: scores `[B, I]` → those with −∞ for items that are never returned.
    """

    def __init__(
        self,
        factors: Any,
        item_rows: IdLookup,
        user_rows: IdLookup,
        item_ids: tf.Variable,
        user_file: str,
        default_k: int,
        opened: Callable[[tf.Tensor], tf.Tensor],
    ):
        super().__init__(name="wals")
        self.factors, self.item_rows, self.user_rows, self.item_ids = factors, item_rows, user_rows, item_ids
        self.user_ids, self.default_k, self.opened = IdNames(user_file), default_k, opened
        self.similar_users = signature(self._similar_users, USER, K)
        self.fold_in = signature(self._fold_in, HISTORY, WEIGHT, K)
        self.explain = signature(self._explain, HISTORY, ITEM)

    @property
    def interface(self) -> dict[str, Callable[..., Any]]:
        """The functions to be saved as signatures, by name."""
        return {name: getattr(self, name) for name in ("similar_users", "fold_in", "explain")}

    def _similar_users(self, user: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        """The users whose trained factors have the largest cosines; one without factors is nobody's neighbour."""
        same_batch(user, k=k)
        rows, vectors = self.user_rows(user), self.factors.user_vectors()  # [B], [U, D]
        length = tf.norm(vectors, axis=1)
        own = tf.gather(length, rows)  # [B]
        cosine = tf.linalg.matmul(tf.gather(vectors, rows), vectors, transpose_b=True)  # [B, U]
        cosine = tf.where(length > 0, tf.math.divide_no_nan(cosine, own[:, tf.newaxis] * length), -np.inf)
        k = counts(k, self.default_k, vectors.shape[0]) * tf.cast((rows >= FIRST_ID) & (own > 0), tf.int32)
        users, answer = best_rows(cosine, k, rows[:, tf.newaxis])
        return {"users": self.user_ids(users), **answer}

    def _fold_in(self, history: tf.Tensor, weights: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        """The best items outside of a history by u·v, with the exact u of a user who has just these."""
        same_batch(history, k=k)
        tf.debugging.assert_equal(tf.shape(weights), tf.shape(history), "`weights` must have the shape of `history`.")
        rows = self.item_rows(history)
        right = (tf.math.is_finite(weights) & (weights >= 0)) | (weights == ABSENT) | (rows < FIRST_ID)
        rule = "`weights` must be finite and not negative; give -1 for the usual 1."
        tf.debugging.assert_equal(tf.reduce_all(right), True, rule)
        vector = self.factors.fold_in_history(rows, weights)  # [B, D]
        vector = tf.debugging.check_numerics(vector, "`weights` must be smaller; the factors are not finite.")
        k = counts(k, self.default_k, self.item_ids.shape[0]) * tf.cast(tf.reduce_any(vector != 0, axis=1), tf.int32)
        scores = self.opened(tf.linalg.matmul(vector, self.factors.item_vectors(), transpose_b=True))
        items, answer = best_rows(scores, k, rows)
        return {"items": tf.gather(self.item_ids, items), **answer}

    def _explain(self, history: tf.Tensor, item: tf.Tensor) -> dict[str, tf.Tensor]:
        """What each of a history adds to `fold_in`'s score of an item."""
        same_batch(history, item=item)
        return {"contributions": self.factors.explain_history(self.item_rows(history), self.item_rows(item))}
