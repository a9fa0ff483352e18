"""What the ranker sees of a (request, candidate) pair: one builder for training, evaluation and the served graph."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, Query
from shortlist.models._layers import last_n

RECENT = (1, 3, 10)  # how many of the last watched items the similarities look at
DAY = 86_400.0
YEAR = 365.2425 * DAY


@dataclass(frozen=True)
class Catalogue:
    """What is known of the items, by item row; counts and times are those of the training part.

    `genres` float32 `[I, G]` multi-hot; `year` int `[I]`, 0 if unknown; `count` float `[I]`, positives; `recent_count`,
    those of the last years of the data; `first_time` and `last_time` int64 `[I]` seconds, of its first and last event.
    """

    genres: np.ndarray
    year: np.ndarray
    count: np.ndarray
    recent_count: np.ndarray
    first_time: np.ndarray
    last_time: np.ndarray


class RankingFeatures(tf.Module):
    """Features of every candidate of a request, float32, none of them an id's magnitude.

    Each source's score enters as a z-score over the request's candidates and as the log of its rank, so that a refitted
    source means the same to the ranker as the one that it was trained with. The user's activity is there because a
    pointwise loss needs the base rate of the request. Similarities are cosines of item vectors.

    Args:
      catalogue: see `Catalogue`.
      vectors: item vectors float32 `[I, D]` by the name of their source.
      sources: names of the sources, in the order of their scores.
      history_length: the last watched items that the features look at, except for counts.
    """

    def __init__(
        self, catalogue: Catalogue, vectors: dict[str, np.ndarray], sources: tuple[str, ...], history_length: int = 50
    ):
        super().__init__(name="ranking_features")
        constant = lambda value, dtype=tf.float32: tf.Variable(value, trainable=False, dtype=dtype)  # noqa: E731
        norm = np.linalg.norm(catalogue.genres, axis=1, keepdims=True)
        self.genres = constant(catalogue.genres / np.maximum(norm, 1e-9))
        self.year = constant(catalogue.year.astype(np.float32))
        self.log_count = constant(np.log1p(catalogue.count))
        self.log_recent = constant(np.log1p(catalogue.recent_count))
        self.first_time = constant(catalogue.first_time, tf.int64)
        self.last_time = constant(catalogue.last_time, tf.int64)
        self.vectors = {name: constant(tf.math.l2_normalize(v, axis=1)) for name, v in vectors.items()}
        self.sources, self.history_length = tuple(sources), history_length

    @property
    def names(self) -> list[str]:
        """The features' names, in their order."""
        return [
            *(f"{kind}:{source}" for source in self.sources for kind in ("score_z", "log_rank")),
            "log_fused_rank",
            *("log_history", "log_gap", "log_last_day", "history_log_count"),
            *(f"cosine_{n}:{v}" for v in sorted(self.vectors) for n in (*(f"last_{n}" for n in RECENT), "all", "max")),
            *("genres_last_10", "genres_all", "year_difference", "year_distance", "age"),
            *("since_last_event", "since_first_event", "log_count", "log_recent"),
        ]

    def __call__(self, query: Query, items: tf.Tensor, scores: tf.Tensor, ranks: tf.Tensor) -> tf.Tensor:
        """Builds the features.

        Args:
          query: a `Query`.
          items: int32 `[B, K]`, best fused first; 0 where there is none.
          scores: float32 `[B, S, K]`, each source's own score of each candidate.
          ranks: float32 `[B, S, K]`, its rank in that source's list, from 1.

        Returns:
          float32 `[B, K, F]`; rows of missing candidates are 0.
        """
        valid = tf.cast(items >= FIRST_ID, tf.float32)  # [B, K]
        history, times = last_n(query["history"], self.history_length, query["history_time"])  # [B, L]
        seen = tf.cast(history >= FIRST_ID, tf.float32)
        length = tf.reduce_sum(seen, axis=1, keepdims=True)  # [B, 1]
        position = tf.reduce_sum(tf.cast(history != 0, tf.float32), axis=1, keepdims=True)
        back = position - tf.range(tf.cast(self.history_length, tf.float32))[tf.newaxis]  # 1 = the last watched
        weights = [seen * tf.cast(back <= n, tf.float32) for n in RECENT] + [seen]
        weights = tf.stack([tf.math.divide_no_nan(w, tf.reduce_sum(w, 1, keepdims=True)) for w in weights], 1)

        columns = []
        for source in range(len(self.sources)):
            columns += [_z_score(scores[:, source], valid), tf.math.log1p(ranks[:, source])]
        columns.append(tf.broadcast_to(tf.math.log1p(tf.range(tf.shape(items)[1], dtype=tf.float32)), tf.shape(items)))
        columns += [tf.broadcast_to(c, tf.shape(items)) for c in self._activity(query, history, times, seen, length)]
        for name in sorted(self.vectors):
            table = self.vectors[name]
            cosine = tf.linalg.matmul(tf.gather(table, items), tf.gather(table, history), transpose_b=True)  # [B, K, L]
            means = tf.linalg.matmul(cosine, weights, transpose_b=True)  # [B, K, 4]
            columns += tf.unstack(means, axis=-1)
            lowest = tf.where(seen[:, tf.newaxis] > 0, cosine, -1.0)
            columns.append(tf.reduce_max(lowest, axis=-1))
        columns += self._content(query, items, history, seen, weights)
        return tf.stack(columns, axis=-1) * valid[..., tf.newaxis]  # [B, K, F]

    def _activity(
        self, query: Query, history: tf.Tensor, times: tf.Tensor, seen: tf.Tensor, length: tf.Tensor
    ) -> list[tf.Tensor]:
        total = tf.reduce_sum(tf.cast(query["history"] >= FIRST_ID, tf.float32), axis=1, keepdims=True)
        ago = tf.cast(query["time"][:, tf.newaxis] - times, tf.float32)  # [B, L]
        gap = tf.reduce_min(tf.where(seen > 0, ago, 1e9), axis=1, keepdims=True)
        in_day = tf.reduce_sum(seen * tf.cast(ago <= DAY, tf.float32), axis=1, keepdims=True)
        popularity = tf.math.divide_no_nan(
            tf.reduce_sum(seen * tf.gather(self.log_count, history), 1, keepdims=True), length
        )
        return [tf.math.log1p(total), tf.math.log1p(tf.maximum(gap, 0.0)), tf.math.log1p(in_day), popularity]

    def _content(
        self, query: Query, items: tf.Tensor, history: tf.Tensor, seen: tf.Tensor, weights: tf.Tensor
    ) -> list[tf.Tensor]:
        genres = tf.gather(self.genres, items)  # [B, K, G]
        profile = tf.linalg.matmul(weights[:, 2:], tf.gather(self.genres, history))  # [B, 2, G]
        profile = tf.math.l2_normalize(profile, axis=-1)
        genre_10, genre_all = tf.unstack(tf.linalg.matmul(genres, profile, transpose_b=True), axis=-1)

        year, past = tf.gather(self.year, items), tf.gather(self.year, history)
        dated = weights[:, 2] * tf.cast(past > 0, tf.float32)
        mean_year = tf.math.divide_no_nan(tf.reduce_sum(dated * past, 1), tf.reduce_sum(dated, 1))[:, tf.newaxis]
        both = tf.cast((year > 0) & (mean_year > 0), tf.float32)
        difference = both * (year - mean_year)
        request_year = 1970.0 + tf.cast(query["time"], tf.float32)[:, tf.newaxis] / YEAR
        age = tf.where(year > 0, tf.maximum(request_year - year, 0.0), -1.0)

        def since(table: tf.Tensor) -> tf.Tensor:
            seconds = tf.cast(query["time"][:, tf.newaxis] - tf.gather(table, items), tf.float32)
            return tf.math.log1p(tf.maximum(seconds, 0.0) / DAY)

        return [
            *(genre_10, genre_all, difference, tf.abs(difference), age),
            *(since(self.last_time), since(self.first_time)),
            *(tf.gather(self.log_count, items), tf.gather(self.log_recent, items)),
        ]


def _z_score(scores: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    count = tf.reduce_sum(valid, axis=1, keepdims=True)
    high = tf.reduce_max(tf.where(valid > 0, scores, -np.inf), axis=1, keepdims=True)
    scores = tf.where(valid > 0, scores - high, 0.0)  # scores that are all alike become 0 without rounding
    mean = tf.math.divide_no_nan(tf.reduce_sum(scores, 1, keepdims=True), count)
    centred = (scores - mean) * valid
    deviation = tf.sqrt(tf.math.divide_no_nan(tf.reduce_sum(tf.square(centred), 1, keepdims=True), count))
    return tf.math.divide_no_nan(centred, deviation)
