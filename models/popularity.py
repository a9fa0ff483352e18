"""Popularity: what most people watched, of all time or of the last years."""

from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import Query, register
from shortlist.models._checks import require, require_integer
from shortlist.models._closed_form import ClosedForm

DAY = 86_400
MAX_CELLS = 2**27


@register("popularity")
class Popularity(ClosedForm):
    """Scores an item by how many positives it has, for everybody alike.

    Without a window: s_i = the number of positives of i. With one, at the request's time t, in whole periods of R days
    counted from 1970: s_i(t) = #{events of i: ⌊(t − window) / R⌋ ≤ period of the event < ⌊t / R⌋}. Both ends round down
    to the start of a period, so no event at or after t counts, and up to R days before t don't either. A request after
    the last period with an event is answered as at the end of that period. Before the first, all scores are 0.

    Args:
      num_items: I, item rows, reserved ones included.
      window_days: length of the window in days, at least `resolution_days`; None counts everything.
      resolution_days: R, the days of a period. The table has one row of I counts a period.

    Call: a `Query`, of which only `time` is used → scores float32 `[B, I]`.

    Raises:
      ShortlistError: for an argument out of range, and when asked before `fit`.

    Example:
      >>> model = Popularity(num_items=4)
      >>> _ = model.fit([2, 3, 3])
      >>> model.score_items({"time": tf.constant([0], tf.int64)}).numpy()
      array([[0., 0., 1., 2.]], dtype=float32)
    """

    def __init__(self, num_items: int, window_days: int | None = None, resolution_days: int = 30, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_items = require_integer("num_items", num_items)
        self.resolution_days = require_integer("resolution_days", resolution_days)
        if window_days is not None:
            window_days = require_integer("window_days", window_days, low=self.resolution_days)
        self.window_days = window_days

    def make_weights(self, rows: int, columns: int) -> None:
        constant = {"initializer": "zeros", "trainable": False}
        self.cumulative = self.add_weight("cumulative", (rows, columns), dtype=tf.int32, **constant)  # [T + 1, I]
        self.first_period = self.add_weight("first_period", (), dtype=tf.int64, **constant)

    def fit(self, x: Any, y: Any = None) -> tf.keras.callbacks.History:
        """Counts.

        Args:
          x: int `[N]`, the item row of each positive.
          y: int64 `[N]`, its time in seconds since 1970; only a model with a window needs it.

        Raises:
          ShortlistError: for rows outside the table, no events, times that are missing or span too many periods.
        """
        items = np.asarray(x)
        require(items.ndim == 1 and items.size > 0, "`x` must be item rows [N], at least one.", shape=items.shape)
        require(np.issubdtype(items.dtype, np.integer), "`x` must be integer item rows.", dtype=str(items.dtype))
        low, high = int(items.min()), int(items.max())
        rule = f"`x` must be item rows from 0 to {self.num_items - 1}; raise num_items or correct the ids."
        require(low >= 0 and high < self.num_items, rule, lowest=low, highest=high)
        first, periods, event_period = 0, 1, np.zeros(len(items), np.int64)
        if self.window_days is not None:
            times = np.asarray(y) if y is not None else np.zeros(0, np.int64)
            rule = "`y` must be integer seconds since 1970, one an event, when there is a window."
            require(times.shape == items.shape and np.issubdtype(times.dtype, np.integer), rule, shape=times.shape)
            event_period = times.astype(np.int64) // (self.resolution_days * DAY)
            first, last = int(event_period.min()), int(event_period.max())
            periods = last - first + 1
            rule = (
                f"`y` must span at most {MAX_CELLS // self.num_items:,} periods of {self.resolution_days} days; give "
                "seconds, not milliseconds, or raise resolution_days."
            )
            require((periods + 1) * self.num_items <= MAX_CELLS, rule, periods=periods)
        keys = (event_period - first + 1) * self.num_items + items
        counts = np.bincount(keys, minlength=(periods + 1) * self.num_items).reshape(periods + 1, self.num_items)
        rule = "`fit` must find as many periods as the first time; make a new model for other data."
        require(not self.built or self.table_shape == counts.shape, rule, periods=periods)
        if not self.built:
            self.build(counts.shape)
        self.cumulative.assign(np.cumsum(counts, axis=0).astype(np.int32))
        self.first_period.assign(first)
        return tf.keras.callbacks.History()

    def score_items(self, query: Query) -> tf.Tensor:
        """Counts as float32 `[B, I]`."""
        self.require_fitted()
        time = tf.cast(query["time"], tf.int64)
        periods = self.table_shape[0] - 1
        if self.window_days is None:
            before, start = tf.ones_like(time), tf.zeros_like(time)
        else:
            period = self.resolution_days * DAY
            now = tf.minimum(time, (self.first_period + periods) * period)
            before = now // period - self.first_period
            start = (now - self.window_days * DAY) // period - self.first_period
        ends = [tf.gather(self.cumulative, tf.clip_by_value(row, 0, periods)) for row in (before, start)]  # [B, I]
        return tf.cast(ends[0] - ends[1], tf.float32)
