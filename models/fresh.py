"""Fresh: the newest items, whatever anybody likes."""

from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, Query, register
from shortlist.models._checks import require, require_integer, require_number
from shortlist.models._closed_form import ClosedForm

DAY = 86_400.0
UNKNOWN = np.iinfo(np.int64).max


@register("fresh")
class Fresh(ClosedForm):
    """Scores an item by its age at the request's time, for everybody alike.

    s_i(t) = (1 + n_i)^popularity / (1 + (t − t_i) / half-life) for an item that came at t_i ≤ t, with n_i positives.
    With popularity 0 only the age counts, and the half-life changes nothing in the order. An item that came later than
    the request, or nobody knows when, is left out, with a score of −∞.

    Measured on `validation` of MovieLens (100,004 ratings), where an item comes with its first training event, NDCG@10
    and Recall@100. n_i are all training events, those after the request too, which only an evaluation has:

    | half-life, days | popularity 0 | 0.5 | 1 |
    |---|---|---|---|
    | 30 | .009, .079 | .030, .153 | .042, .240 |
    | 365 | .009, .079 | .048, .202 | .060, .297 |
    | 1095 | .009, .079 | .055, .274 | .065, .307 |

    Args:
      num_items: I, item rows, reserved ones included.
      half_life_days: above 0; an item of this age scores half of what a new one does.
      popularity: at least 0.

    Call: a `Query`, of which only `time` is used → scores float32 `[B, I]`.

    Raises:
      ShortlistError: for an argument out of range, and when asked before `fit`.

    Example:
      >>> model = Fresh(num_items=5, half_life_days=1)
      >>> _ = model.fit([0, 0, 86400, 0, 259200])
      >>> model.score_items({"time": tf.constant([172800], tf.int64)}).numpy().round(3)
      array([[ -inf,  -inf, 0.5  , 0.333,  -inf]], dtype=float32)
    """

    def __init__(self, num_items: int, half_life_days: float = 365.0, popularity: float = 0.5, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_items = require_integer("num_items", num_items)
        self.half_life_days = require_number("half_life_days", half_life_days)
        require(self.half_life_days > 0, "`half_life_days` must be above 0.", half_life_days=half_life_days)
        self.popularity = require_number("popularity", popularity)

    def make_weights(self, rows: int, columns: int = 1) -> None:
        self.since = self.add_weight("since", (rows,), tf.int64, "zeros", trainable=False)  # [I]
        self.log_weight = self.add_weight("log_weight", (rows,), tf.float32, "zeros", trainable=False)  # [I]

    def fit(self, x: Any, y: Any = None) -> tf.keras.callbacks.History:
        """Takes the times.

        Args:
          x: int `[I]`, when each item came, in seconds since 1970; `UNKNOWN` where that is not known.
          y: int `[I]`, its positives; None stands for none.

        Raises:
          ShortlistError: for another number of items, and times that are not whole numbers.
        """
        times = np.asarray(x)
        count = np.zeros(self.num_items) if y is None else np.asarray(y, np.float64)
        rule = f"`x` must be whole seconds since 1970 and `y` a count, one for each of the {self.num_items:,} items."
        shapes = times.shape == count.shape == (self.num_items,)
        require(shapes and np.issubdtype(times.dtype, np.integer), rule, x=times.shape, y=count.shape)
        require(bool((count >= 0).all()), "`y` must be counts of at least 0.", lowest=float(count.min(initial=0)))
        if not self.built:
            self.build((self.num_items, 1))
        times = times.astype(np.int64)
        times[:FIRST_ID] = UNKNOWN
        self.since.assign(times)
        self.log_weight.assign(np.log1p(count) * self.popularity)
        return tf.keras.callbacks.History()

    def score_items(self, query: Query) -> tf.Tensor:
        """Float32 `[B, I]`, −∞ for what has not come yet."""
        self.require_fitted()
        time = tf.cast(query["time"], tf.int64)[:, tf.newaxis]
        days = tf.cast(tf.maximum(time - self.since, 0), tf.float32) / DAY  # [B, I]
        scores = tf.exp(self.log_weight) / (1 + days / self.half_life_days)
        return tf.where(self.since <= time, scores, -np.inf)
