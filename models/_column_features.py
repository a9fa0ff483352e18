"""The user's history with what an item is: its genres, its language or channel, and the item itself."""

from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, RankingQuery, cell_indices

DAY = 86_400.0
NEVER = 1e9
"""Seconds that stand for an event that there was not."""
PRIOR = 10.0
"""Impressions, and half as many watches, that an estimate of a rate or a mean begins with."""


def log_days(seconds: tf.Tensor) -> tf.Tensor:
    return tf.math.log1p(tf.maximum(seconds, 0.0) / DAY)


def log_odds(rate: tf.Tensor) -> tf.Tensor:
    return tf.math.log(rate) - tf.math.log1p(-rate)


class ColumnFeatures(tf.Module):
    """Features `[B, K]` of a candidate by its columns; a column is `genres` or a category.

    For each column, over the last watched items that share a value with the candidate: how many (`watched:`), the days
    since the last (`since:`), and how much of them was finished (`finished:`, the share of the length) or, for ratings,
    how they were rated (`rated:`, the share of the highest rating), less the user's own mean; `match:`, whether the
    user's own value of the column is the item's. For a log with impressions, the log-odds of a watch among what was
    shown with that value (`click_rate:`), and `ignored`, `since_ignored`: how often the item itself was shown and not
    watched, and when last. Rates and means begin with a prior: that of the user for a column, for a user the rate of
    the log and a mean of ½.

    Args:
      genres: float `[I, G]` multi-hot.
      categories: int32 `[I]` by name, 0 and 1 for a value that is missing or unknown.
      shared: those that users have as well.
      numbers: float `[I]` by name, NaN where unknown. `length` makes watch times to shares.
      weight_from: "watch_time", "rating" or "none", what `history_weight` of a query is.
      highest: the highest rating.
      base_rate: of a watch among all impressions; None for a log without impressions.
    """

    def __init__(
        self,
        genres: np.ndarray,
        categories: dict[str, np.ndarray],
        shared: tuple[str, ...] = (),
        numbers: dict[str, np.ndarray] | None = None,
        weight_from: str = "none",
        highest: float = 1.0,
        base_rate: float | None = None,
    ):
        super().__init__(name="column_features")
        constant = lambda value, dtype: tf.Variable(value, trainable=False, dtype=dtype)  # noqa: E731
        self.genres = constant((genres > 0).astype(np.float32), tf.float32)  # [I, G]
        self.rows = {name: constant(rows, tf.int32) for name, rows in categories.items()}  # [I]
        self.values = {name: max(int(rows.max(initial=0)), FIRST_ID) + 1 for name, rows in categories.items()}
        self.shared = tuple(shared)
        self.kind = {"watch_time": "finished", "rating": "rated"}.get(weight_from)
        length = (numbers or {}).get("length")
        if self.kind == "finished" and length is None:
            self.kind = None
        full = np.full(len(genres), highest) if self.kind == "rated" else length
        if self.kind:
            self.full = constant(np.nan_to_num(np.asarray(full, np.float32)), tf.float32)
        self.base_rate = base_rate

    @property
    def names(self) -> list[str]:
        """The features' names, in their order."""
        of_column = ["watched", "since", *filter(None, [self.kind]), *(["click_rate"] if self.base_rate else [])]
        return [
            *(f"{kind}:{name}" for name in ("genres", *self.rows) for kind in of_column),
            *(f"match:{name}" for name in self.shared),
            *([f"mean_{self.kind}"] if self.kind else []),
            *(("user_click_rate", "ignored", "since_ignored") if self.base_rate else ()),
        ]

    def __call__(
        self,
        query: RankingQuery,
        items: tf.Tensor,
        genres: tf.Tensor,
        history: tf.Tensor,
        times: tf.Tensor,
        weight: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Builds them: `items` int32 `[B, K]` and their `genres` `[B, K, G]`, above 0 where they have one; `history`,
        `times` and `weight` are the last items watched, `[B, L]`."""
        seen = tf.cast(history >= FIRST_ID, tf.float32)
        ago = tf.cast(query["time"][:, tf.newaxis] - times, tf.float32)
        columns: list[tf.Tensor] = []
        known: Any = None
        value, mean, rate = known, known, known
        if self.kind:
            full = tf.gather(self.full, history)
            known = seen * tf.cast((weight >= 0) & (full > 0), tf.float32)  # [B, L]
            value = tf.clip_by_value(tf.math.divide_no_nan(weight, full), 0.0, 1.0) * known
            mean = (tf.reduce_sum(value, 1, keepdims=True) + 0.5) / (tf.reduce_sum(known, 1, keepdims=True) + 1.0)
        if self.base_rate:
            clicks = tf.cast(query["history"] >= FIRST_ID, tf.float32)
            ignored = tf.cast(query["impressions"] >= FIRST_ID, tf.float32)
            total = tf.reduce_sum(clicks, 1, keepdims=True)
            shown = total + tf.reduce_sum(ignored, 1, keepdims=True)
            rate = (total + PRIOR * self.base_rate) / (shown + PRIOR)  # [B, 1]
        for name in ("genres", *self.rows):
            if name == "genres":
                same, last = self._shared_genres(genres, history, seen, ago)
            else:
                same, last = self._shared(name, items, history, seen, ago)
            columns += [tf.math.log1p(tf.reduce_sum(same, -1)), log_days(last)]
            if self.kind:
                held = tf.linalg.matvec(same, known)  # [B, K]
                columns.append((tf.linalg.matvec(same, value) + mean) / (held + 1.0) - mean)
            if self.base_rate:
                good = self._alike(name, items, query["history"], clicks)
                passed = self._alike(name, items, query["impressions"], ignored)
                columns.append(log_odds((good + PRIOR * rate) / (good + passed + PRIOR)))
        for name in self.shared:
            rows = self.rows[name]
            item, user = tf.gather(rows, items), query[f"user_{name}"][:, tf.newaxis]
            equal = tf.cast(item == user, tf.float32)
            columns.append(tf.where((item >= FIRST_ID) & (user > 0), equal, 0.5))
        everywhere = [mean] if self.kind else []
        if self.base_rate:
            everywhere.append(log_odds(rate))
        columns += [tf.broadcast_to(column, tf.shape(items)) for column in everywhere]
        if self.base_rate:
            columns += self._ignored(query, items, ignored)
        return columns

    def _shared(
        self, name: str, items: tf.Tensor, others: tf.Tensor, seen: tf.Tensor, ago: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Whether items `[B, K]` share a value of a category with `others` `[B, L]` where `seen`, 1 or 0 `[B, K, L]`,
        and the least of `ago` `[B, L]` among those, NEVER without one, `[B, K]`."""
        own, theirs = (tf.gather(self.rows[name], rows) for rows in (items, others))
        theirs = tf.where((seen > 0) & (theirs >= FIRST_ID), theirs, -1)
        equal = own[:, :, tf.newaxis] == theirs[:, tf.newaxis]
        return tf.cast(equal, tf.float32), tf.reduce_min(tf.where(equal, ago[:, tf.newaxis], NEVER), axis=-1)

    def _shared_genres(
        self, own: tf.Tensor, others: tf.Tensor, seen: tf.Tensor, ago: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The same by genres, of items that have those of `own` `[B, K, G]`."""
        theirs = tf.gather(self.genres, others) * seen[..., tf.newaxis]  # [B, L, G]
        same = tf.sign(tf.linalg.matmul(own, theirs, transpose_b=True))
        since = tf.maximum(ago, 0.0)[..., tf.newaxis]
        of_genre = tf.reduce_min(tf.where(theirs > 0, since, NEVER), axis=1, keepdims=True)  # [B, 1, G]
        lacking = NEVER - NEVER * NEVER * own  # NEVER, or far below 0 where it has it; a choice takes thrice as long
        last = tf.reduce_min(tf.maximum(of_genre, lacking), axis=-1)  # [B, K, G], less than [B, K, L]
        return same, tf.minimum(last, NEVER)  # the least of no genre at all is infinite

    def _alike(self, name: str, items: tf.Tensor, others: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
        """How many of `others` `[B, M]`, 1 where `counted`, have the value of items `[B, K]`, summed over values."""
        if name == "genres":
            held = tf.reduce_sum(tf.gather(self.genres, others) * counted[..., tf.newaxis], axis=1)  # [B, G]
            return tf.linalg.matvec(tf.gather(self.genres, items), held)
        theirs, own = (tf.gather(self.rows[name], rows) for rows in (others, items))
        held = tf.zeros([tf.shape(theirs)[0], self.values[name]])  # [B, V]
        held = tf.tensor_scatter_nd_add(held, cell_indices(theirs), counted)
        return tf.gather(held, own, batch_dims=1) * tf.cast(own >= FIRST_ID, tf.float32)

    def _ignored(self, query: RankingQuery, items: tf.Tensor, ignored: tf.Tensor) -> list[tf.Tensor]:
        passed = query["impressions"]
        where = cell_indices(passed)  # [B, M, 2]
        size = [tf.shape(passed)[0], tf.shape(self.genres)[0]]
        counts = tf.zeros(size)  # [B, I]
        counts = tf.gather(tf.tensor_scatter_nd_add(counts, where, ignored), items, batch_dims=1)
        ago = tf.cast(query["time"][:, tf.newaxis] - query["impressions_time"], tf.float32)
        last = tf.fill(size, NEVER)
        last = tf.tensor_scatter_nd_min(last, where, tf.where(ignored > 0, ago, NEVER))
        return [tf.math.log1p(counts), log_days(tf.gather(last, items, batch_dims=1))]
